"""`polywire call`: one call of any method, over any wire."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from polywire.cli import finding, request
from polywire.cli.options import profile_option, system_option
from polywire.client import client_for
from polywire.codec import codec_for
from polywire.codec.failures import fields_as_message
from polywire.connecting import RemoteWire, channel_to, wire_of
from polywire.context import Calling, calling
from polywire.contract import Message, Rpc
from polywire.errors import CallError, SetupError
from polywire.net.address import parse_addresses
from polywire.net.loop import run
from polywire.net.tls import ClientTls
from polywire.system.file import WIRES, SystemFile, load
from polywire.system.tokens import TokenSource
from polywire.system.trust import client_tls


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a call goes, and how."""

    addresses: tuple[str, ...]
    wire: RemoteWire
    tls: ClientTls | None


@click.command(short_help="Call a method and print the answer.")
@click.argument("method", metavar="METHOD")
@click.argument("fields", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "text", metavar="JSON", help="The request as JSON, in place of KEY=VALUE.")
@click.option("--address", metavar="ADDRESS", help="Where to call, with grpc:// or http:// before it if need be.")
@click.option("--wire", type=click.Choice([wire for wire in WIRES if wire != "local"]), help="What to call over.")
@click.option("--contract", "path", metavar="MODULE:NAME", help="A contract or app to use instead of a system file.")
@click.option("--timeout", type=float, metavar="SECONDS", help="For the whole call.")
@click.option("--metadata", "-m", multiple=True, metavar="KEY=VALUE", help="Send metadata. Repeatable.")
@click.option("--token", metavar="TOKEN", help="A bearer token; env:NAME and file:PATH say where it is.")
@click.option("--ca", metavar="FILE", help="Who signed the server's certificate, with grpcs:// or https://.")
@click.option("--certificate", metavar="FILE", help="A certificate to show, where the server asks for one.")
@click.option("--key", metavar="FILE", help="Its key, where that is not in the same file.")
@click.option("--verbose", "-v", is_flag=True, help="Say on standard error what came beside the answer.")
@system_option
@profile_option
def command(
    method: str,
    fields: tuple[str, ...],
    text: str | None,
    address: str | None,
    wire: RemoteWire | None,
    path: str | None,
    timeout: float | None,
    metadata: tuple[str, ...],
    token: str | None,
    ca: str | None,
    certificate: str | None,
    key: str | None,
    verbose: bool,
    file: str | None,
    profile: str | None,
) -> int:
    """Call METHOD and print its answer as JSON, a line for each message.

    Texts, numbers and true are given as KEY=VALUE, a part of a message as KEY.PART=VALUE, a list by repeating
    KEY=VALUE, and anything as KEY:=JSON. For methods that take a stream, standard input has a message in JSON on
    each line, unless one is given here. An error goes to standard error, and the exit status is 1.

    \b
        polywire call shop.v1.Inventory/check_stock product_id=SKU-123
        polywire call shop.v1.Orders/Place customer=ada items:='[{"product_id": "SKU-1", "quantity": 2}]'
        polywire call shop.v1.Inventory/watch --address grpc://127.0.0.1:8001 --contract shop.contracts:Inventory
    """
    system = None if path is not None else load(file, profile=profile)
    known = finding.catalogue_of_system(system) if system else finding.catalogue_of_import(path or "")
    found = finding.find(known, method)
    requests = _requests(found.rpc, fields, text)
    place = _place(system, found, address, wire, ca)
    if certificate is not None:
        place = replace(place, tls=replace(place.tls or ClientTls(), certificate=certificate, key=key))
    source = None if token is None else _token(token)
    with calling(timeout=timeout, metadata=dict(_pair(item) for item in metadata)) as asked:
        return run(_call(system, found, place, requests, source, asked if verbose else None))


def _requests(rpc: Rpc, fields: Sequence[str], text: str | None) -> list[Message | None] | None:
    """The requests, or None where they are to come from standard input."""
    if text is not None and fields:
        raise SetupError("Give the request as KEY=VALUE or with --json, not both.")
    if text is not None:
        return [request.from_json(rpc.request, line) for line in text.splitlines() if line.strip()]
    if rpc.streams_requests and not fields:
        return None
    return [request.from_arguments(rpc.request, fields)]


def _place(
    system: SystemFile | None, found: finding.Found, address: str | None, wire: RemoteWire | None, ca: str | None
) -> Place:
    if address is not None:
        addresses = tuple(address.split(","))
        chosen = wire or wire_of(parse_addresses(addresses))
    elif system is not None:
        addresses = finding.address_of(system, found)
        configured = system.wires.of(found.rpc.service)
        chosen = wire or ("grpc" if configured == "local" else configured)
    else:
        raise SetupError("Say where to call: `--address grpc://host:port`.")
    tls = ClientTls(ca=ca) if ca is not None else None
    served = system.services[found.service].tls if system is not None and found.service else None
    if tls is None and served is not None and system is not None and address is None:
        tls = client_tls(system, None, found.service)
    return Place(addresses=addresses, wire=chosen, tls=tls)


def _token(text: str) -> Callable[[], str]:
    if text.startswith(("env:", "file:")):
        return TokenSource(text)
    return lambda: text


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise SetupError(f"--metadata {text!r} is not KEY=VALUE.")
    return name.lower(), value


async def _call(
    system: SystemFile | None,
    found: finding.Found,
    place: Place,
    requests: list[Message | None] | None,
    token: Callable[[], str] | None,
    asked: Calling | None,
) -> int:
    levels = None if system is None or not found.service else system.levels(found.service)
    channel = channel_to(place.addresses, wire=place.wire, token=token, tls=place.tls, levels=levels)
    try:
        await _print_answers(found.rpc, getattr(client_for(found.contract, channel), found.rpc.attribute), requests)
    except CallError as error:
        click.echo(_described(error), err=True)
        return 1
    finally:
        if asked is not None:
            click.echo(_beside(asked), err=True)
        await channel.close()
    return 0


async def _print_answers(rpc: Rpc, method: Callable[..., Any], requests: list[Message | None] | None) -> None:
    encode = codec_for(rpc.response, "json").encode

    def show(answer: Any) -> None:
        click.echo("null" if rpc.response is None else encode(answer).decode())

    if rpc.streams_requests:
        arguments: tuple[Any, ...] = (_each(requests) if requests is not None else _from_stdin(rpc),)
    else:
        arguments = () if rpc.request is None else tuple(requests or ())
    if not rpc.streams_responses:
        show(await method(*arguments))
        return
    async for answer in method(*arguments):
        show(answer)


async def _each(requests: Sequence[Message | None]) -> AsyncIterator[Message | None]:
    for message in requests:
        yield message


async def _from_stdin(rpc: Rpc) -> AsyncIterator[Message | None]:
    """A message for each line of standard input, as it comes."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        if line.strip():
            yield request.from_json(rpc.request, line)


def _described(error: CallError) -> str:
    lines = [f"Error: {error.code}: {error.message or 'no message'}"]
    details = error.details if error.__form__ is None else (fields_as_message(error), *error.details)
    lines += [f"  {detail!r}" for detail in details]
    if error.request_id:
        lines.append(f"  request id {error.request_id}")
    return "\n".join(lines)


def _beside(asked: Calling) -> str:
    pairs = [*asked.headers.pairs(), *asked.trailers.pairs()]
    attempts = "1 attempt" if asked.attempts == 1 else f"{asked.attempts} attempts"
    first = f"{asked.endpoint or 'nobody'} answered after {attempts}"
    return "\n".join([first, *(f"  {name}: {value!r}" for name, value in pairs)])
