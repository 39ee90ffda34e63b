"""`polywire up`: a whole system on this machine, in many processes or in one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from polywire.net.loop import run as run_loop
from polywire.system import environment
from polywire.system.addresses import Reservations, noted, remove_note, urls, write_note
from polywire.system.faults import FaultFile
from polywire.system.file import SystemFile
from polywire.system.forking import Forked, fork_all
from polywire.system.instances import Ports, instances_of
from polywire.system.plan import Plan, plan
from polywire.system.relay import OURS, Relay
from polywire.system.reloading import Reloading
from polywire.system.serving import run_service, run_services
from polywire.system.shutdown import Shutdown
from polywire.system.supervised import Supervised
from polywire.system.supervisor import Job, Supervisor
from polywire.telemetry import logs
from polywire.telemetry.access_log import AccessLog, LogFormat
from polywire.telemetry.message_log import MessageLog

Announce = Callable[[str], None]


@contextlib.contextmanager
def prepared(system: SystemFile, *, only: Sequence[str] | None, in_process: bool) -> Iterator[Plan]:
    """The plan of what is to run, with an address for every service that was given none.

    Services that this `up` does not run are taken where another one on this machine runs them.
    """
    made = plan(system, only=only, in_process=in_process)
    elsewhere = noted(system.directory)
    reservations = Reservations()
    try:
        picked = {}
        for name, entry in system.services.items():
            if name in made.apps and entry.listen is None:
                # An `address` in the file is where it runs elsewhere; this time it runs here.
                picked[name] = reservations.reserve()
            elif entry.target is None:
                picked[name] = elsewhere.get(name) or reservations.reserve()
        placed = system.with_listen(picked)
        several = {} if in_process else {name: placed.services[name].instances for name in made.apps}
        # Each instance has an address of its own as well, so that callers can choose among them.
        own = {name: [reservations.reserve() for _ in range(count)] for name, count in several.items() if count > 1}
        reservations.release_where_needed()
        yield replace(made, system=placed.with_address(own))
    finally:
        reservations.close()


class Announcement:
    """Says once that the system is ready: a table on a terminal, a line in JSON; and notes where others find it."""

    def __init__(
        self, made: Plan, relay: Relay, announce: Announce | None, then: Callable[[], None], began: float
    ) -> None:
        self._made = made
        self._relay = relay
        self._announce = announce
        self._then = then
        self._began = began

    def __call__(self, addresses: Mapping[str, str]) -> None:
        FaultFile(self._made.system.directory).forget()
        try:
            write_note(self._made.system.directory, addresses)
        except OSError as error:
            self._relay.say(f"`polywire call` will not find the services by itself: {error}", severity="WARNING")
        took = time.monotonic() - self._began
        text = f"{self._made.system.name} is ready after {took:.2f} s"
        if self._announce is None:
            places = ", ".join(f"{name} at {address}" for name, address in addresses.items())
            self._relay.say(f"{text}: {places}")
        else:
            self._announce(f"\n{text}. Ctrl-C stops it.\n\n{table(self._made, addresses)}\n")
        self._then()


def table(made: Plan, addresses: Mapping[str, str]) -> str:
    """Services, where they are, and what they implement, in columns."""
    rows = [("SERVICE", "URL", "IMPLEMENTS")]
    for name in made.apps:
        secure = made.system.services[name].secure
        where = " ".join(urls(addresses[name], secure=secure))
        rows.append((name, where, ", ".join(contract for contract, owner in made.owners.items() if owner == name)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip() + "\n" for row in rows)


def fork_services(made: Plan, ports: Ports, *, format: LogFormat) -> Mapping[str, Forked]:
    """Start the processes of every service of the plan. To be called where `can_fork` says so."""
    instances = instances_of(made, ports)

    def serve(label: str, supervised: Supervised) -> None:
        instance = instances[label]
        name = label if instance is None else instance.service
        for other, port in ports.items():
            if other != name:
                port.close()
        run_loop(run_service(made, name, format=format, supervised=supervised, instance=instance))

    return fork_all(list(instances), serve)


async def up(
    made: Plan,
    ports: Ports,
    relay: Relay,
    *,
    format: LogFormat,
    announce: Announce | None,
    then: Callable[[Shutdown], None],
    began: float,
    forked: Mapping[str, Forked] | None = None,
    reload: SystemFile | None = None,
) -> None:
    """Run every service of the plan in processes of its own until a signal; those *forked* already are taken over.
    With *reload*, the system as its file has it, services are started anew where their code or that file changes.

    Raises SetupError saying which one did not start and why.
    """
    supervisor: Supervisor | None = None

    def at_once() -> None:
        if supervisor is not None:
            supervisor.kill()

    shutdown = Shutdown(at_once=at_once)
    supervisor = Supervisor(_jobs(made, ports, format, reload=reload is not None), relay, shutdown, forked=forked)
    announcement = Announcement(made, relay, announce, lambda: then(shutdown), began)

    def ready(addresses: Mapping[str, str]) -> None:
        announcement({name: ports[name].address if name in ports else addresses[name] for name in made.apps})

    with shutdown.listening(), _stopping_is_said(shutdown, relay):
        try:
            await supervisor.run(ready, Reloading(reload, relay).run if reload is not None else None)
        finally:
            remove_note(made.system.directory)
            FaultFile(made.system.directory).forget()


async def up_in_process(
    made: Plan,
    relay: Relay,
    *,
    format: LogFormat,
    announce: Announce | None,
    then: Callable[[Shutdown], None],
    began: float,
) -> None:
    """Run every service of the plan in this process until a signal. Raises SetupError where one does not start."""
    logged: list[AccessLog | MessageLog] = []

    def make_access_log(name: str) -> AccessLog:
        made = AccessLog(partial(relay.lines, name), format=format, service=name)
        logged.append(made)
        return made

    def make_message_log(name: str) -> MessageLog:
        made = MessageLog(partial(relay.lines, name), format=format, service=name)
        logged.append(made)
        return made

    def flush() -> None:
        for lines in logged:
            lines.flush()

    def write_ours(text: str) -> None:
        relay.lines(OURS, text)

    logs.configure(write_ours, format=format, before=flush)
    shutdown = Shutdown(at_once=flush)
    names = list(made.apps)
    try:
        with _stopping_is_said(shutdown, relay):
            await run_services(
                made,
                names,
                shutdown=shutdown,
                make_access_log=make_access_log,
                make_message_log=make_message_log,
                ready=Announcement(made, relay, announce, lambda: then(shutdown), began),
            )
    finally:
        flush()
        remove_note(made.system.directory)
        FaultFile(made.system.directory).forget()


@contextlib.contextmanager
def _stopping_is_said(shutdown: Shutdown, relay: Relay) -> Iterator[None]:
    async def wait() -> None:
        await shutdown.wait()
        relay.say("stopping: calls under way are finished first; a second Ctrl-C does not wait for them")

    task = asyncio.get_running_loop().create_task(wait())
    try:
        yield
    finally:
        task.cancel()


def _jobs(made: Plan, ports: Ports, format: LogFormat, *, reload: bool) -> list[Job]:
    system = made.system
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", environment.FILE: system.file}
    if system.profile is not None:
        environ[environment.PROFILE] = system.profile
    if reload:
        environ[environment.RELOAD] = str(system.directory)
    # What was worked out here is handed down, so that no service has to import the others or could choose otherwise.
    for name, entry in system.services.items():
        contracts = [contract for contract, owner in made.owners.items() if owner == name]
        if contracts:
            environ[environment.serves(name)] = ",".join(contracts)
        for key, addresses in (("listen", entry.listen), ("address", entry.target)):
            if addresses:
                environ[environment.spelled(("services", name, key))] = ",".join(addresses)
    jobs = []
    for label, instance in instances_of(made, ports).items():
        name = label if instance is None else instance.service
        timeouts = system.services[name].timeouts
        jobs.append(
            Job(
                name=label,
                service=name,
                command=[sys.executable, "-m", "polywire.cli", "serve", name, "--log", format],
                environ=environ,
                needs=made.needs(name),
                start_timeout=timeouts.start,
                stop_timeout=timeouts.stop,
                instance=instance,
            )
        )
    return jobs
