"""The life of a process that serves: start, tell that it is ready, wait for a signal, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from polywire.connecting import wire_of
from polywire.contract import Contract, service_of
from polywire.contract.policies import Shedding
from polywire.errors import SetupError
from polywire.net.address import parse_addresses
from polywire.net.loop import run as run_loop
from polywire.net.stream import Limits
from polywire.net.tls import ServerTls
from polywire.services import AccessLog
from polywire.system.app import App
from polywire.system.assembly import assemble
from polywire.system.file import ServiceEntry, SystemFile, Timeouts, Tls, Wire, Wires
from polywire.system.instances import Instance
from polywire.system.loaded import LoadedCode
from polywire.system.output import LineOutput
from polywire.system.outside import wires_at
from polywire.system.plan import GIVEN, Plan, plan
from polywire.system.process import MakeMessageLog, processing
from polywire.system.reading import Settings
from polywire.system.shutdown import Shutdown
from polywire.system.supervised import Supervised
from polywire.telemetry import logs
from polywire.telemetry.access_log import AccessLog as Lines
from polywire.telemetry.access_log import LogFormat
from polywire.telemetry.message_log import MessageLog

log = logging.getLogger("polywire.system")

NO_BUS = Wires()
Targets = Mapping[type[Contract], str | Sequence[str]]
"""Where the contracts are that an app calls outside of itself: addresses, with grpc:// or http:// before them."""


@contextlib.asynccontextmanager
async def serve(
    app: App,
    address: str = "127.0.0.1:0",
    *,
    targets: Targets | None = None,
    public: bool = False,
    tls: ServerTls | None = None,
    tasks: str | None = None,
    events: str | None = None,
    schedule: str | None = None,
    limits: Limits | None = None,
    shedding: Shedding | None = None,
    drain_delay: float = 0.0,
    grace: float = 20.0,
    access_log: AccessLog | None = None,
) -> AsyncIterator[str]:
    """Serve *app* outside of a system for the length of the block, which gets the address with its port.

    *tasks*, *events* and *schedule* are the URLs of what its messages travel on, as `[wires]` of a system file has
    them; files are looked for in the current directory. *shedding* bounds how many calls are worked on at once.

    At the end of the block what is under way has *grace* seconds to finish; see `Server.drain`. Signals are left alone;
    `run` minds them. Raises SetupError where the app cannot be started or *address* cannot be listened on.
    """
    entry = ServiceEntry(
        name=app.name,
        app="",
        listen=(address,),
        public=public,
        tls=None if tls is None else _tls(tls),
        limits=limits or Limits(),
        shedding=shedding or Shedding(),
        timeouts=Timeouts(drain_delay=drain_delay, grace=grace),
    )
    wires = wires_at(tasks=tasks, events=events, schedule=schedule)
    made = standalone(app, entry, _by_name(targets), wires)
    async with processing(made, [app.name], access_log=lambda _name: access_log) as process:
        try:
            yield process.addresses[app.name]
        finally:
            await process.drain()


def run(
    app: App,
    address: str,
    *,
    targets: Targets | None = None,
    tasks: str | None = None,
    events: str | None = None,
    schedule: str | None = None,
    log_format: LogFormat = "text",
) -> None:
    """Serve *app* as all that this process does, with its logs on standard output, until SIGTERM or SIGINT; then drain.

    A second signal ends the process at once. Raises SetupError as `serve` does.
    """
    entry = ServiceEntry(name=app.name, app="", listen=(address,))
    made = standalone(app, entry, _by_name(targets), wires_at(tasks=tasks, events=events, schedule=schedule))
    run_loop(run_service(made, app.name, format=log_format, supervised=None))


def _by_name(targets: Targets | None) -> dict[str, tuple[str, ...]]:
    return {
        service_of(contract).full_name: (address,) if isinstance(address, str) else tuple(address)
        for contract, address in (targets or {}).items()
    }


def standalone(app: App, entry: ServiceEntry, targets: Mapping[str, tuple[str, ...]], bus: Wires = NO_BUS) -> Plan:
    """The plan of an app that is a system of its own; *targets* has the addresses of the contracts that it calls, *bus*
    what its messages travel on."""
    for contract in assemble(app, given=GIVEN).clients:
        needed = service_of(contract).full_name
        if contract not in app.contracts and needed not in targets:
            raise SetupError(
                f"app {app.name!r} calls {needed}, and does not implement it. Say where it is: "
                f'`targets={{{contract.__name__}: "grpc://host:port"}}`, or on the command line '
                f"`--target {needed}=grpc://host:port`."
            )
    services = {entry.name: entry}
    wires: dict[str, Wire] = {}
    for name, addresses in targets.items():
        services[name] = ServiceEntry(name=name, address=addresses, serves=(name,), outside=True)
        wires[name] = wire_of(parse_addresses(addresses))
    system = SystemFile(
        name=app.name,
        file="serve(...)",
        directory=Path.cwd(),
        services=services,
        wires=replace(bus, by_contract=wires),
        settings=Settings({}, {}, "serve(...)"),
    )
    return plan(system, only=[entry.name], given={entry.name: app})


def _tls(tls: ServerTls) -> Tls:
    key, ca = tls.key, tls.client_ca
    return Tls(
        certificate=str(tls.certificate), key=None if key is None else str(key), ca=None if ca is None else str(ca)
    )


async def run_services(
    made: Plan,
    names: Sequence[str],
    *,
    shutdown: Shutdown,
    make_access_log: Callable[[str], AccessLog | None],
    make_message_log: MakeMessageLog,
    ready: Callable[[Mapping[str, str]], None],
    instance: Instance | None = None,
) -> None:
    """Run the services *names* of a plan in this process until *shutdown*, then drain.

    *ready* gets their addresses once all of them listen. Raises SetupError where one cannot start.
    """
    with shutdown.listening():
        async with processing(
            made, names, access_log=make_access_log, message_log=make_message_log, instance=instance
        ) as process:
            ready(process.addresses)
            await shutdown.wait()
            await process.drain()


async def run_service(
    made: Plan,
    name: str,
    *,
    format: LogFormat,
    supervised: Supervised | None,
    instance: Instance | None = None,
) -> None:
    """Run one service of a plan as the whole of this process, with its logs on standard output."""
    output = LineOutput(format=format, service=name)
    lines = Lines(output, format=format, service=name)
    messages = MessageLog(output, format=format, service=name)

    ours = threading.get_ident()

    def flush() -> None:
        # What other threads say need not keep its place among the calls, which are the event loop's.
        if threading.get_ident() == ours:
            lines.flush()
            messages.flush()

    def close() -> None:
        lines.close()
        messages.close()

    logs.configure(output, format=format, service=name, before=flush)
    shutdown = Shutdown(at_once=close)
    timeouts = made.system.services[name].timeouts
    if supervised is not None:
        orphaned = partial(asyncio.get_running_loop().call_soon_threadsafe, shutdown.ask)
        supervised.watch(orphaned, patience=timeouts.drain_delay + timeouts.grace + 5.0)

    def ready(addresses: Mapping[str, str]) -> None:
        log.info("%s listens on %s", name, addresses[name])
        if supervised is not None:
            loaded.tell()
            serves = [contract for contract, owner in made.owners.items() if owner == name]
            supervised.ready(addresses[name], serves=serves, needs=made.needs(name))

    loaded = LoadedCode(supervised)
    try:
        with loaded.told():
            await run_services(
                made,
                [name],
                shutdown=shutdown,
                make_access_log=lambda _name: lines,
                make_message_log=lambda _name: messages,
                ready=ready,
                instance=instance,
            )
        log.info("%s has stopped", name)
    finally:
        close()
