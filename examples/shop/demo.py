"""The shop with customers in it: starts the whole system, lets them in, watches, and checks the books.

make demo                               stays up afterwards and says what to try
make demo ARGS=--once                   ends by itself; exit status 1 if anything does not add up
make demo ARGS='--once --profile http'  the same calls between the services over REST instead of gRPC
make demo ARGS='--once --profile production'    tasks on RabbitMQ and events on Kafka, which it starts for itself
make demo ARGS='--once --chaos'         services are killed, hang, are slow and cut off; exit status 1 also if anybody
                                        waited for longer than the deadline
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aftermath import Aftermath, look, quiet, told, what_differs
from chaos import TROUBLE, NoTrouble, Saboteur, customers_in_trouble, own_system, paths, seen, settle, too_late
from customers import BARGAIN, STRANGERS, Outcome, Report, crowd, tell
from postbox import open_postbox
from production import NotAvailable, servers_of_production
from shop.api_v1 import Books, GatewayV1
from shop.contracts import OrderState, ProductSearch
from shop.database import data_directory
from shop.money import euros

from polywire import CallError, DeadlineExceeded, Unavailable, connect

HERE = Path(__file__).parent
POLYWIRE = Path(sys.executable).with_name("polywire")
PRODUCTION = "production"
FILE = "polywire.toml"
START_WITHIN = 30.0
STOP_WITHIN = 30.0
RECOVER_WITHIN = 20.0
"""Seconds after the last customer in which a shop that was in trouble has to put everything in order."""


class NotRunning(Exception):
    """The system did not come up, or did not go down as it should."""


@dataclass(kw_only=True)
class Options:
    once: bool
    profile: str | None
    in_process: bool
    chaos: bool
    customers: int
    seed: int
    port: int

    @classmethod
    def read(cls) -> Options:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument(
            "--once", action="store_true", help="end when the last customer has left, on fresh databases"
        )
        parser.add_argument("--profile", help="a profile of the system file, for example http")
        parser.add_argument("--in-process", action="store_true", help="all services in one process")
        parser.add_argument("--chaos", action="store_true", help="make trouble for the services while customers buy")
        parser.add_argument("--customers", type=int, default=300)
        parser.add_argument("--seed", type=int, help="the same seed makes the same choices")
        parser.add_argument("--port", type=int, default=8000, help="of the gateway; 0 picks a free one")
        given = parser.parse_args()
        if given.chaos and given.in_process:
            parser.error(
                "--chaos kills services, and with --in-process they are all one process. Leave one of the two out."
            )
        if given.chaos and not Path("/proc/self/fd").is_dir():
            parser.error("--chaos finds the processes of the services by /proc, which is not here. It needs Linux.")
        if given.seed is None:
            # A shop that stays has seen the customers of seed 1 before, and their orders with them.
            given.seed = 1 if given.once else random.randrange(1_000_000)
        given.port = given.port or free_port()
        return cls(**vars(given))


def free_port() -> int:
    """Not one of those that systems give to outgoing connections, which could take it before the shop does."""
    while True:
        port = random.randrange(10_000, 15_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def system_file(options: Options, data: Path) -> Path:
    return data / FILE if options.chaos else HERE / FILE


@contextlib.asynccontextmanager
async def running_shop(
    options: Options, data: Path, variables: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`polywire up`, with what it logs in a file. Raises NotRunning where it ends other than by being told to."""
    log = data / "shop.log"
    command = [str(POLYWIRE), "up", str(system_file(options, data))]
    command += ["--profile", options.profile] if options.profile else []
    command += ["--in-process"] if options.in_process else []
    environment = {
        **os.environ,
        "SHOP_DATA": str(data),
        **variables,
        **paths(),
        "POLYWIRE__SERVICES__GATEWAY__LISTEN": f"127.0.0.1:{options.port}",
    }
    with log.open("wb") as output:
        # A group of its own, so that Ctrl-C reaches this program first and the shop stays up until it is told.
        system = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        yield system
        if system.returncode is not None:
            raise NotRunning(f"The shop ended on its own, with status {system.returncode}.\n{_tail(log)}")
    finally:
        if system.returncode is None:
            system.send_signal(signal.SIGINT)
        try:
            status = await asyncio.wait_for(system.wait(), STOP_WITHIN)
        except TimeoutError:
            system.kill()
            raise NotRunning(f"The shop did not stop within {STOP_WITHIN:g} s.\n{_tail(log)}") from None
    if status != 0:
        raise NotRunning(f"The shop stopped with status {status} instead of 0.\n{_tail(log)}")


@contextlib.contextmanager
def bus_of(options: Options, data: Path) -> Iterator[dict[str, str]]:
    """Where the shop's tasks and events travel, as variables: on files beside its databases, or on servers."""
    bus, schedule = (f"sqlite:{data.absolute() / name}" for name in ("bus.db", "schedule.db"))
    variables = {"POLYWIRE__WIRES__SCHEDULE": schedule}
    if options.profile == PRODUCTION:
        with servers_of_production(data / "servers") as urls:
            yield {**variables, **urls}
    else:
        yield {**variables, "POLYWIRE__WIRES__TASKS": bus, "POLYWIRE__WIRES__EVENTS": bus}


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return f"The last lines of {log}:\n" + "\n".join(f"    {line}" for line in lines[-15:])


async def first_answer(shop: GatewayV1, port: int, system: asyncio.subprocess.Process) -> float:
    """Seconds until the shop answered its first request; whether it will is over once *system* has ended."""
    started = time.monotonic()
    while system.returncode is None:
        try:
            # Knocking first: a client that was refused waits longer and longer between its attempts to connect.
            _, knock = await asyncio.open_connection("127.0.0.1", port)
            knock.close()
            await shop.list_products(ProductSearch(limit=1))
        except (OSError, CallError) as error:
            if time.monotonic() - started > START_WITHIN:
                raise NotRunning(f"The shop did not answer within {START_WITHIN:g} s: {error}") from error
            await asyncio.sleep(0.02)
        else:
            break
    return time.monotonic() - started


async def quiet_books(shop: GatewayV1, within: float = 15.0) -> Books:
    """The books once every service can be asked and no order is under way, or as they are after *within* seconds."""
    deadline = time.monotonic() + within
    while True:
        late = time.monotonic() > deadline
        try:
            books = await shop.get_books()
        except (Unavailable, DeadlineExceeded):
            if late:
                raise
        else:
            if late or books.unfinished == 0:
                return books
        await asyncio.sleep(0.2)


def differences(before: Books, after: Books, report: Report, expected: Collection[str] = frozenset()) -> list[str]:
    """What does not add up: in the shop's own books, or between them and what the customers say. Requests may have
    failed with the *expected* codes."""
    problems = list(after.problems)
    if after.unfinished:
        problems.append(f"{after.unfinished} orders are still being placed or undone.")
    if report.asked != report.outcomes.total():
        problems.append(f"{report.asked} orders were tried, but {report.outcomes.total()} outcomes are known.")
    unexpected = {code: number for code, number in report.failures.items() if code not in expected}
    if unexpected:
        failed = ", ".join(f"{number} x {code}" for code, number in sorted(unexpected.items()))
        problems.append(f"Requests failed that should not have: {failed}.")
    seen = {
        "placed": (report.outcomes[Outcome.PLACED], grown(before, after, OrderState.CONFIRMED, OrderState.CANCELLED)),
        "cancelled": (report.cancelled, grown(before, after, OrderState.CANCELLED)),
        "declined": (report.outcomes[Outcome.DECLINED], grown(before, after, OrderState.DECLINED)),
        "out of stock": (report.outcomes[Outcome.OUT_OF_STOCK], grown(before, after, OrderState.OUT_OF_STOCK)),
        "failed": (report.outcomes[Outcome.FAILED], grown(before, after, OrderState.FAILED)),
    }
    problems += [
        f"Customers count {theirs} orders {name}, the shop {ours}."
        for name, (theirs, ours) in seen.items()
        if theirs != ours
    ]
    earned = after.orders.confirmed_cents - before.orders.confirmed_cents
    if earned != report.spent_cents:
        problems.append(f"Customers spent {euros(report.spent_cents)}, the shop earned {euros(earned)}.")
    return problems


def grown(before: Books, after: Books, *states: OrderState) -> int:
    return sum(after.orders.by_state.get(state, 0) - before.orders.by_state.get(state, 0) for state in states)


class Day:
    """From the first customer to the books, which have to balance with those of the morning."""

    def __init__(self, shop: GatewayV1, letters: Counter[str]) -> None:
        """*letters* is what the postbox has, by subject."""
        self._shop = shop
        self._letters = letters
        self._report = Report()
        self._books: Books
        self._aftermath: Aftermath

    async def begin(self) -> None:
        self._books, self._aftermath = await quiet_books(self._shop), await quiet(self._see, lambda _: True)

    async def as_usual(self, options: Options) -> list[str]:
        """What went wrong."""
        async with telling(self._report):
            await crowd(self._shop, self._report, customers=options.customers, seed=options.seed)
        after = await quiet_books(self._shop)
        aftermath = await quiet(self._see, lambda now: not self._missing(now))
        problems = differences(self._books, after, self._report) + self._missing(aftermath)
        print_summary(after, aftermath, self._report, problems)
        return problems

    async def of_trouble(self, options: Options, saboteur: Saboteur) -> list[str]:
        """What went wrong; trouble itself is not wrong, and not everybody needs to have heard of an order that stands
        (there is no outbox yet)."""
        report = self._report
        async with telling(report):
            sights = await customers_in_trouble(
                self._shop, saboteur, options.port, report, customers=options.customers, seed=options.seed
            )
        refusals = report.failures.copy()
        until = time.monotonic() + RECOVER_WITHIN
        await quiet_books(self._shop, within=RECOVER_WITHIN)
        fates = await settle(self._shop, report, within=until - time.monotonic())
        after = await quiet_books(self._shop, within=until - time.monotonic())
        enough = time.monotonic() + 5.0
        aftermath = await quiet(self._see, lambda now: not self._missing(now) or time.monotonic() > enough)
        problems = too_late(report, sights) + differences(self._books, after, report, expected=TROUBLE)
        print(seen(report, refusals, sights, fates), end="")
        print_summary(after, aftermath, report, problems, self._missing(aftermath))
        return problems

    async def _see(self) -> Aftermath:
        return await look(self._shop, self._letters, self._report)

    def _missing(self, now: Aftermath) -> list[str]:
        return what_differs(self._aftermath, now, self._report)


@contextlib.asynccontextmanager
async def telling(report: Report) -> AsyncIterator[None]:
    """Print how it goes inside the block."""
    task = asyncio.create_task(tell(report))
    try:
        yield
    finally:
        task.cancel()


def print_summary(
    books: Books, after: Aftermath, report: Report, problems: list[str], notes: Sequence[str] = ()
) -> None:
    """*notes* are no problems."""
    stock, money = books.stock, books.money
    states = ", ".join(
        f"{number:,} {state.replace('_', ' ')}" for state, number in sorted(books.orders.by_state.items())
    )
    outcomes = ", ".join(f"{report.outcomes[outcome]:,} {outcome}" for outcome in Outcome)
    kept = money.charged_cents - money.refunded_cents
    print(f"""
customers   {report.arrived:,} came, {report.left:,} left; {report.asked:,} orders tried = {outcomes}
requests    {report.requests:,}, {report.percentile(0.5):.1f} ms (p50), {report.percentile(0.99):.1f} ms (p99)
orders      {states}
stock       {stock.initial:,} units = {stock.on_hand:,} on hand + {stock.reserved:,} reserved + {stock.sold:,} sold
money       {euros(money.charged_cents)} charged - {euros(money.refunded_cents)} refunded = {euros(kept)}
            {euros(books.orders.confirmed_cents)} in confirmed orders
{told(after, report)}""")
    for note in notes:
        print(f"NOTE        {note}")
    for problem in problems:
        print(f"WRONG       {problem}")
    print("The books do not balance." if problems else "The books balance.", flush=True)


def print_what_to_try(address: str, data: Path, system: Path) -> None:
    call = f"{os.path.relpath(POLYWIRE)} call -s {os.path.relpath(system)}"
    print(
        f"""
The shop stays open until Ctrl-C. Try, in another terminal:

    curl '{address}/api/v1/products?search=oak&limit=3'
    curl '{address}/api/v1/products/{BARGAIN.product_id}'
    curl -i '{address}/api/v1/orders' -H 'content-type: application/json' -d '{{
        "user_id": "U-1", "items": [{{"product_id": "SKU-123", "quantity": 2}}], "card": "4242424242424242"}}'
    curl '{address}/api/v1/users/U-1/orders'
    curl '{address}/api/v2/products?category=Garden&limit=2'
    curl '{address}/api/v1/books'
    curl '{address}/api/v1/analytics'
    curl '{address}/api/v1/products/{BARGAIN.product_id}/recommendations'
    curl -i '{address}/api/v1/orders' -H 'content-type: application/json' -d '{{
        "user_id": "U-1", "items": [{{"product_id": "SKU-123", "quantity": 2}}], "card": "4000000000000002"}}'

or ask the services behind it, each by its contract:

    {call} shop.v1.Users/list_users city=Cork
    {call} shop.v1.Inventory/watch product_ids=SKU-123        # then buy some
    {call} shop.v1.Users/chat < {HERE / "chat.jsonl"}

and watch the calls between the services: tail -f {os.path.relpath(data / "shop.log")}
""",
        flush=True,
    )


async def visit(options: Options, data: Path, bus: Mapping[str, str]) -> list[str]:
    """Open the shop, let the customers in, and close it, with --once or by Ctrl-C. Returns what went wrong."""
    address = f"http://127.0.0.1:{options.port}"
    how = "in one process" if options.in_process else "as ten processes"
    print(f"Opening the shop {how}, databases in {data} ...", flush=True)
    async with (
        open_postbox() as (postbox, smtp),
        running_shop(options, data, {**bus, "SHOP_SMTP": smtp}) as system,
        connect(GatewayV1, address, defaults=STRANGERS) as shop,
    ):
        seconds = await first_answer(shop, options.port, system)
        if system.returncode is not None:
            return []  # `running_shop` tells why
        print(f"It answered its first request after {seconds:.1f} s, at {address}.")
        print(
            f"{options.customers} customers come in; many want the {BARGAIN.name}, and there is only {BARGAIN.units}.\n"
        )
        day = Day(shop, postbox.subjects)
        await day.begin()
        if options.chaos:
            problems = await day.of_trouble(options, Saboteur(system.pid, system_file(options, data), data))
        else:
            problems = await day.as_usual(options)
        if not options.once:
            interrupted = _interruption()
            print_what_to_try(address, data, system_file(options, data))
            await interrupted.wait()
            print("\nClosing the shop.", flush=True)
    return problems


def _interruption() -> asyncio.Event:
    """Set by Ctrl-C, which from now on closes the shop instead of ending this program."""
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    return told


def main() -> int:
    options = Options.read()
    try:
        with contextlib.ExitStack() as stack:
            if options.once:
                data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shop-")))
            else:
                data = data_directory()
                data.mkdir(parents=True, exist_ok=True)
            if options.chaos:
                own_system(data)
            if options.profile == PRODUCTION:
                print("Starting RabbitMQ and Kafka ...", flush=True)
            bus = stack.enter_context(bus_of(options, data))
            return 1 if asyncio.run(visit(options, data, bus)) else 0
    except (NotRunning, NotAvailable, NoTrouble, CallError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the shop is closed.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
