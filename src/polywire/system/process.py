"""Services of a system behind their listeners in this process, from start to a stop that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from polywire.bus.consumer import Alone
from polywire.bus.consumer.run import MessageLog
from polywire.bus.sending import Bus
from polywire.clock import SYSTEM_CLOCK
from polywire.contract import contracts_of
from polywire.errors import SetupError
from polywire.server import Server
from polywire.services import MAX_MESSAGE_BYTES, STREAM_IDLE_TIMEOUT, AccessLog, Authenticator
from polywire.system.assembly import Made
from polywire.system.bus_plan import connected_bus
from polywire.system.consuming import BUS, Consumers, consumers_of, stores_among
from polywire.system.faults import FaultWatch
from polywire.system.hosting import hosting
from polywire.system.instances import Instance
from polywire.system.plan import GIVEN, Plan
from polywire.system.remote import wiring_of
from polywire.system.scheduling import ticker_of
from polywire.system.tokens import tokens_of
from polywire.system.trust import TrustWatch, allowed_of, authenticator_of, server_tls
from polywire.system.wiring import Wiring, start_order
from polywire.system.working import pool_for
from polywire.telemetry.blocking import LoopWatch
from polywire.wire.seam import Dispatcher

log = logging.getLogger("polywire.system")

DEFAULT_LISTEN = "127.0.0.1:0"

MakeAccessLog = Callable[[str], AccessLog | None]
"""The access log of a service, by its name."""
MakeMessageLog = Callable[[str], MessageLog | None]
"""The log of the messages that a service handles, by its name."""


class Process:
    """The services that run here."""

    def __init__(self, plan: Plan, instance: Instance | None = None) -> None:
        self.plan = plan
        self._instance = instance
        self.servers: dict[str, Server] = {}
        self.consumers: dict[str, Consumers] = {}
        self.addresses: dict[str, str] = {}
        """Where each listens, with the ports that were chosen."""

    def watched(self) -> contextlib.AbstractContextManager[object]:
        """Have code reported that blocks the event loop, for as long as the block lasts."""
        limits = [self.plan.system.services[name].timeouts.blocking for name in self.servers]
        limit = min((limit for limit in limits if limit > 0), default=0.0)
        return LoopWatch(limit=limit, named=self._method_of) if limit > 0 else contextlib.nullcontext()

    def _method_of(self, task: asyncio.Task[object]) -> str | None:
        found = (server.services.method_of(task) for server in self.servers.values())
        return next((method for method in found if method is not None), None)

    async def listen(self) -> None:
        """Listen with every server, those that others here call first. Raises SetupError where one cannot; of several
        it is named, a single one is named by whoever runs it."""
        for name in start_order({name: self.plan.needs(name) for name in self.servers}):
            try:
                self.addresses[name] = await self._listen(name)
            except SetupError as error:
                if len(self.servers) == 1:
                    raise
                raise SetupError(f"Service {name!r} did not start: {error}") from error

    async def _listen(self, name: str) -> str:
        entry = self.plan.system.services[name]
        server, instance = self.servers[name], self._instance
        if instance is None:
            return await server.start(",".join(entry.listen or (DEFAULT_LISTEN,)))
        # An address of its own, for callers of the system, which so share their calls out; and the port of all.
        if instance.own is not None:
            server.take_over(instance.own)
            address = instance.own.address
        elif instance.count == 1:
            address = instance.port.address
        else:
            address = await server.start((entry.address or (DEFAULT_LISTEN,))[instance.index])
        server.share(instance.port, instance.place)
        return address

    async def drain(self) -> None:
        """Stop without losing a request or a message: each service before those that it calls."""
        for name in reversed(start_order({name: self.plan.needs(name) for name in self.servers})):
            timeouts = self.plan.system.services[name].timeouts
            await asyncio.gather(
                self.consumers[name].stop(timeouts.grace),
                self.servers[name].drain(delay=timeouts.drain_delay, grace=timeouts.grace),
            )

    async def consume(self) -> None:
        """Begin to handle tasks and events. Raises SetupError where one cannot be."""
        for consumers in self.consumers.values():
            await consumers.start()

    async def close(self) -> None:
        """Stop now: what was not drained is given back."""
        for consumers in self.consumers.values():
            await consumers.stop(0.0)
        for server in self.servers.values():
            await server.close()


@contextlib.asynccontextmanager
async def processing(
    plan: Plan,
    names: Sequence[str],
    *,
    access_log: MakeAccessLog,
    message_log: MakeMessageLog = lambda _name: None,
    instance: Instance | None = None,
) -> AsyncIterator[Process]:
    """Run the services *names* of *plan* until the end of the block, where they are closed if they were not drained.

    With *instance*, the only one of them runs here as one of several.

    A single one calls the others over their wires; of several, each calls those beside it without leaving the process.
    Raises SetupError where one cannot start; what was opened by then is closed.
    """
    process = Process(plan, instance)
    tokens = tokens_of(plan.system)
    here: dict[str, Dispatcher] = {}
    wirings = {name: wiring_of(plan, name, names, here, tokens.get(name)) for name in names}
    alone = Alone(SYSTEM_CLOCK)

    def make(name: str, made: Made) -> Dispatcher:
        authenticator = authenticator_of(plan.system, name, tokens)
        consumers = process.consumers[name] = consumers_of(
            made.services,
            bus.backends,
            stores=stores_among(made.resources),
            results=bus.results,
            ticker=ticker_of(plan.part(name).handles, bus.senders[name], bus.schedule),
            message_log=message_log(name),
            alone=alone,
            processes=partial(pool_for, plan, name),
        )
        callable_objects = [each for each in made.services if contracts_of(type(each))]
        server = _server(plan, name, callable_objects, authenticator, access_log(name), consumers)
        process.servers[name] = server
        return server.services

    async with connected_bus(plan.system, {name: plan.part(name) for name in names}) as bus:
        for name in names:
            wirings[name].sender = bus.senders[name]
        given = {name: {**GIVEN, BUS: Bus(bus.senders[name])} for name in names}
        async with hosting({name: plan.assemblies[name] for name in names}, wirings, make, given=given):
            try:
                await process.consume()
                await process.listen()
                with TrustWatch(plan.system, names), _fault_watch(plan, wirings), process.watched():
                    yield process
            finally:
                await process.close()


def _fault_watch(plan: Plan, wirings: Mapping[str, Wiring]) -> FaultWatch:
    faults = [wiring.faults for wiring in wirings.values() if wiring.faults is not None]
    # An app that is served alone has no file, and nobody who could name its calls.
    return FaultWatch(plan.system.directory, faults if os.path.exists(plan.system.file) else [])


def _server(
    plan: Plan,
    name: str,
    objects: list[Any],
    authenticator: Authenticator | None,
    access_log: AccessLog | None,
    consumers: Consumers,
) -> Server:
    system = plan.system
    entry = system.services[name]
    return Server(
        objects,
        name=name,
        limits=entry.limits,
        authenticator=authenticator,
        allow=allowed_of(entry),
        public=entry.public,
        tls=server_tls(system, entry),
        access_log=access_log,
        interceptors=plan.assemblies[name].app.interceptors,
        shedding=entry.shedding,
        max_message_bytes=entry.max_message_bytes or MAX_MESSAGE_BYTES,
        stream_idle_timeout=entry.stream_idle_timeout or STREAM_IDLE_TIMEOUT,
        also_ready=lambda: consumers.ready,
    )
