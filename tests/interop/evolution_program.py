"""One of two programs, as a process: `VERSION serve` until its input ends, or `VERSION call ADDRESS WIRE...`."""

from __future__ import annotations

import asyncio
import enum
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from polywire import serve
from polywire.channel import CallDefaults, Channel, Endpoints
from polywire.client import client_for
from polywire.connecting import channel_to
from polywire.discovery import StaticResolver
from polywire.errors import CallError
from polywire.net.pool import Pool
from polywire.policy.retry import Retry
from polywire.wire.http import ConnectWire


async def serving(program: Any) -> None:
    async with serve(program.app) as address:
        print(address, flush=True)
        await asyncio.to_thread(sys.stdin.read)


def channel(address: str, wire: str) -> Channel:
    if wire == "connect+json":
        endpoints = Endpoints(StaticResolver([address]), lambda at: ConnectWire(Pool(at), encoding="json"))
        return Channel("store", endpoints, defaults=CallDefaults(retry=Retry(attempts=1)))
    remote: Any = wire
    return channel_to(address, wire=remote)


async def calling(program: Any, address: str, wire: str) -> dict[str, Any]:
    """What each call brought, by its name."""
    opened = channel(address, wire)
    client = client_for(program.Store, opened)
    brought = {}
    try:
        for name, call in program.CALLS.items():
            try:
                brought[name] = seen(await call(client))
            except CallError as error:
                brought[name] = f"{error.code}: {error}"
    finally:
        await opened.close()
    return brought


async def calling_over(program: Any, address: str, wires: Sequence[str]) -> None:
    print(json.dumps({wire: await calling(program, address, wire) for wire in wires}))


def seen(value: Any) -> Any:
    """A value as this program sees it: enums by name, members of a union with their class."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, msgspec.Struct):
        fields = {name: seen(getattr(value, name)) for name in value.__struct_fields__}
        return {"is": type(value).__name__, **fields} if type(value).__struct_config__.tag else fields
    if isinstance(value, list):
        return [seen(element) for element in value]
    if isinstance(value, dict):
        return {key: seen(element) for key, element in value.items()}
    return value


def main() -> None:
    program = importlib.import_module(f"evolution_{sys.argv[1]}")
    if sys.argv[2] == "serve":
        asyncio.run(serving(program))
    else:
        asyncio.run(calling_over(program, sys.argv[3], sys.argv[4:]))


if __name__ == "__main__":
    main()
