"""`polywire methods`: what can be called."""

from __future__ import annotations

import click

from polywire.cli import finding
from polywire.cli.options import profile_option, system_option
from polywire.contract import Rpc, Service, service_of
from polywire.errors import SetupError
from polywire.system.file import load


@click.command(short_help="List the methods that can be called.")
@click.argument("name", required=False, metavar="[CONTRACT]")
@click.option("--contract", "path", metavar="MODULE:NAME", help="A contract or app to use instead of a system file.")
@system_option
@profile_option
def command(name: str | None, path: str | None, file: str | None, profile: str | None) -> None:
    """List every contract of the system with its methods, or those of one CONTRACT."""
    if path is not None:
        known = finding.catalogue_of_import(path)
    else:
        known = finding.catalogue_of_system(load(file, profile=profile))
    if name is not None and name not in known:
        raise SetupError(f"There is no contract {name!r}. There are: {', '.join(known) or 'none'}.")
    for full_name in [name] if name is not None else list(known):
        contract, owner = known[full_name]
        click.echo(_listing(service_of(contract), owner), nl=False)


def _listing(service: Service, owner: str) -> str:
    heading = service.full_name + (f"  [{owner}]" if owner else "")
    rows = [
        (
            f"  {rpc.attribute}",
            signature(rpc),
            ", ".join(f"{route.verb} {service.prefix}{route.path}" for route in rpc.routes),
        )
        for rpc in service.rpcs.values()
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip() for row in rows]
    return "\n".join([heading, *lines, ""])


def signature(rpc: Rpc) -> str:
    """`(StockQuery) -> stream Stock`."""
    request = "" if rpc.request is None else rpc.request.__qualname__
    response = "nothing" if rpc.response is None else rpc.response.__qualname__
    taken = f"stream {request}" if rpc.streams_requests else request
    given = f"stream {response}" if rpc.streams_responses else response
    return f"({taken}) -> {given}"
