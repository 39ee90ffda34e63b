"""Trouble on purpose: services are killed, hang, are slow or cut off while customers buy; and what they saw of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from customers import BARGAIN, Outcome, Report, crowd, place, send_back
from shop.api_v1 import ORDER_WITHIN, PAGE_WITHIN, GatewayV1
from shop.contracts import Bank, Order, Pace

from polywire import calling, connect
from polywire.policy.faults import Fault
from polywire.system.addresses import noted
from polywire.system.faults import FaultFile

HERE = Path(__file__).parent
COME_OVER = 15.0
"""Seconds in which the customers come in: longer than the trouble lasts, so that some meet none."""
TRIES = 3
GRACE = 1.0
"""Seconds by which a machine that has much to do may be late in noticing that a deadline has passed."""
TROUBLE = frozenset({"unavailable", "deadline_exceeded", "resource_exhausted"})
"""With what the shop may answer in trouble. Anything else it would have made up."""
ADVISED = [f"SKU-{BARGAIN.number}", "SKU-123", "SKU-301"]


class NoTrouble(Exception):
    """Some of the trouble could not be made."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something that is done to the shop, so many seconds after the first customer."""

    at: float
    what: str
    do: Callable[[], Awaitable[None]]


LOST = Fault(caller="orders", target="payments", drop="answer", share=0.5)


def part(caller: str, target: str) -> Fault:
    return Fault(caller=caller, target=target, partition=True)


class Saboteur:
    """Makes trouble for the services of a running shop, which are processes of `polywire up`. Knows Linux only."""

    patience = 15.0
    """Seconds: a process that was killed has to be back by then, and one that is to be slow has to hear of it."""

    def __init__(self, up: int, system: Path, data: Path) -> None:
        """*up* is the pid of `polywire up`, which runs *system*."""
        self._up = up
        self._system = system
        self._data = data
        self._hanging: dict[str, list[int]] = {}
        self._faults: dict[tuple[str, str], str] = {}
        """Ids, by caller and target."""

    def programme(self) -> list[Act]:
        return [
            Act(1.0, "one of the two inventories is killed", lambda: self.kill("inventory")),
            Act(2.0, "the bank takes 1 s for a charge", lambda: self.slow_bank(1)),
            Act(4.0, "the bank takes 3 s, which is longer than anybody waits", lambda: self.slow_bank(3)),
            Act(5.0, "the gateway cannot reach analytics, which recommends", self.break_(part("gateway", "analytics"))),
            Act(5.5, "the bank takes no time again", lambda: self.slow_bank(0)),
            Act(6.5, "half of what payments answers is lost", self.break_(LOST)),
            Act(7.5, "payments can be heard again", self.mend("orders", "payments")),
            Act(8.0, "the gateway reaches analytics again", self.mend("gateway", "analytics")),
            Act(8.5, "users hangs", lambda: self.hang("users")),
            Act(10.0, "users goes on", lambda: self.let_go("users")),
            Act(10.5, "orders cannot reach inventory", self.break_(part("orders", "inventory"))),
            Act(11.5, "orders reaches inventory again", self.mend("orders", "inventory")),
            Act(12.0, "orders is killed", lambda: self.kill("orders")),
        ]

    async def perform(self) -> None:
        """Do all of the programme. Whatever happens, nothing hangs afterwards. Raises NoTrouble."""
        started = time.monotonic()
        try:
            for act in self.programme():
                await asyncio.sleep(max(0.0, started + act.at - time.monotonic()))
                await act.do()
                print(f"{time.monotonic() - started:4.0f} s  TROUBLE: {act.what}", flush=True)
        finally:
            for service in list(self._hanging):
                await self.let_go(service)

    async def kill(self, service: str) -> None:
        """One process of the *service*, by SIGKILL."""
        os.kill((await self._processes(service))[0], signal.SIGKILL)

    async def hang(self, service: str) -> None:
        """Its connections stay open and nothing comes back, as with a machine that swaps."""
        self._hanging[service] = await self._processes(service)
        for process in self._hanging[service]:
            os.kill(process, signal.SIGSTOP)

    async def let_go(self, service: str) -> None:
        for process in self._hanging.pop(service):
            os.kill(process, signal.SIGCONT)

    async def slow_bank(self, seconds: float) -> None:
        """As `polywire call shop.v1.Bank/set_pace seconds=...`."""
        address = noted(self._system.parent).get("payments")
        if address is None:
            raise NoTrouble(f"The bank was not made slow: no `polywire up` says where payments in {self._system} is.")
        async with connect(Bank, f"grpc://{address}", token=os.environ.get("SHOP_ORDERS_TOKEN")) as bank:
            with calling(timeout=self.patience):
                await bank.set_pace(Pace(seconds=seconds))

    def break_(self, fault: Fault) -> Callable[[], Awaitable[None]]:
        """As `polywire fault add`, without the second that a command takes to start."""

        async def add() -> None:
            self._faults[fault.caller, fault.target] = FaultFile(self._system.parent).add(fault).id

        return add

    def mend(self, caller: str, target: str) -> Callable[[], Awaitable[None]]:
        """As `polywire fault clear`."""

        async def clear() -> None:
            FaultFile(self._system.parent).clear([self._faults.pop((caller, target))])

        return clear

    async def _processes(self, service: str) -> list[int]:
        """At least one, the oldest first. Raises NoTrouble."""
        until = time.monotonic() + self.patience
        while True:
            found = processes_of(self._up, self._data / f"{service}.db")
            if found:
                return found
            if time.monotonic() > until:
                raise NoTrouble(f"No trouble was made for {service!r}: it has had no process for {self.patience:g} s.")
            await asyncio.sleep(0.05)


def own_system(data: Path) -> Path:
    """A system file of its own in *data*, as faults hold for every shop that runs from the same directory."""
    return Path(shutil.copy(HERE / "polywire.toml", data))


def paths() -> dict[str, str]:
    """By which the code of the shop is found from other directories, as variables."""
    return {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])}


def processes_of(up: int, database: Path) -> list[int]:
    """The children of *up* that have the database open, by which a service is known."""
    children = Path(f"/proc/{up}/task/{up}/children").read_text().split()
    return sorted(int(child) for child in children if str(database.absolute()) in _files_of(child))


def _files_of(process: str) -> set[str]:
    try:
        return {os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()}
    except OSError:  # it has ended, or closed a file in the meantime
        return set()


@dataclass(kw_only=True)
class Sights:
    """What browsers saw, which bring no deadline of their own: how long they wait is up to the shop."""

    statuses: Counter[int] = field(default_factory=Counter)
    viewed: int = 0
    """Products."""
    fallbacks: int = 0
    broken: int = 0
    """Connections that ended without an answer."""
    longest: float = 0.0


async def browse(port: int, sights: Sights, over: asyncio.Event) -> None:
    """Look at products and what goes with them, again and again."""
    while not over.is_set():
        for product_id in ADVISED:
            for page in ("", "/recommendations"):
                await asyncio.to_thread(_see, port, f"/api/v1/products/{product_id}{page}", sights)
        await asyncio.sleep(0.1)


def _see(port: int, path: str, sights: Sights) -> None:
    started = time.monotonic()
    connection = HTTPConnection("127.0.0.1", port, timeout=10 * PAGE_WITHIN)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(1 << 20)
    except (OSError, HTTPException):
        sights.broken += 1
    else:
        sights.statuses[answer.status] += 1
        if answer.status == 200:
            page = json.loads(body)
            sights.viewed += "product_id" in page
            sights.fallbacks += page.get("fallback", False)
    finally:
        connection.close()
        sights.longest = max(sights.longest, time.monotonic() - started)


async def customers_in_trouble(
    shop: GatewayV1, saboteur: Saboteur, port: int, report: Report, *, customers: int, seed: int
) -> Sights:
    """Let the customers in and make trouble for them, until the last one has left and the trouble is over. Raises
    NoTrouble where it could not be made."""
    sights, over = Sights(), asyncio.Event()
    browsers = [asyncio.create_task(browse(port, sights, over)) for _ in range(2)]
    trouble = asyncio.create_task(saboteur.perform())
    try:
        await crowd(shop, report, customers=customers, seed=seed, over=COME_OVER, patience=0.7, tries=TRIES)
        await trouble
    finally:
        over.set()
        trouble.cancel()
        await asyncio.wait([trouble, *browsers])
    for browser in browsers:
        browser.result()
    report.viewed += sights.viewed
    return sights


async def settle(shop: GatewayV1, report: Report, within: float = 15.0) -> Counter[Outcome]:
    """Let those ask once more who do not know what became of their orders, now that the trouble is over, until they do
    or *within* is over. Returns what they are told; where an order never came, it is placed now."""
    told: Counter[Outcome] = Counter()
    until = time.monotonic() + within
    while (report.unclear or report.unclear_returns) and time.monotonic() < until:
        while report.unclear and (placed := await place(shop, *report.unclear[0], report)) is not None:
            told[_note_fate(placed, report)] += 1
            del report.unclear[0]
        while report.unclear_returns and await send_back(shop, report.unclear_returns[0], report):
            del report.unclear_returns[0]
        await asyncio.sleep(0.1)
    return told


def _note_fate(placed: Order | Outcome, report: Report) -> Outcome:
    """What became of an order that was counted as failed."""
    outcome = placed if isinstance(placed, Outcome) else Outcome.PLACED
    report.outcomes[Outcome.FAILED] -= 1
    report.outcomes[outcome] += 1
    if isinstance(placed, Order):
        report.placed(placed)
    return outcome


def too_late(report: Report, sights: Sights) -> list[str]:
    """Who waited for longer than the deadline, and what else should not have been seen, in sentences."""
    waits = [*report.longest.items(), (PAGE_WITHIN, sights.longest)]
    problems = [
        f"Somebody waited {longest:.2f} s for an answer that was due after {within:g} s (and {GRACE:g} s of grace)."
        for within, longest in waits
        if longest > within + GRACE
    ]
    if unclear := len(report.unclear) + len(report.unclear_returns):
        problems.append(f"{unclear} customers could not learn what became of their orders.")
    if sights.broken:
        problems.append(f"{sights.broken} connections of browsers ended without an answer.")
    odd = sorted(set(sights.statuses) - {200, 429, 503, 504})
    if odd:
        problems.append(f"Browsers were answered with {', '.join(map(str, odd))}, which trouble is no reason for.")
    return problems


def seen(report: Report, refusals: Counter[str], sights: Sights, told: Counter[Outcome]) -> str:
    """The lines of the summary. *refusals* are what customers met while there was trouble, by code; *told* is what
    those were told who asked once more."""
    outcomes = ", ".join(f"{report.outcomes[outcome]:,} {outcome}" for outcome in Outcome)
    late = ", ".join(f"{number} {outcome}" for outcome, number in sorted(told.items())) or "none"
    refused = ", ".join(f"{number} x {code}" for code, number in sorted(refusals.items())) or "none"
    statuses = ", ".join(f"{number:,} x {status}" for status, number in sorted(sights.statuses.items()))
    page, order = (report.longest.get(within, 0.0) for within in (PAGE_WITHIN, ORDER_WITHIN))
    return f"""
What the customers saw while services were killed, hung, were slow and were cut off:

orders      {report.asked:,} tried = {outcomes}
unclear     {report.asked_again} learned by asking again how it had ended, {told.total()} after the trouble: {late}
requests    {report.requests:,}; refused: {refused}; {report.retried} were answered when they were sent again
advice      {report.advised} pages, {report.fallbacks} of them without asking recommendations
waits       at most {page:.2f} s of {PAGE_WITHIN:g} s for a page and {order:.2f} s of {ORDER_WITHIN:g} s for an order
browsers    {statuses}; {sights.fallbacks} without asking recommendations; at most {sights.longest:.2f} s
"""
