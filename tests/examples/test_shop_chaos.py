"""The shop in trouble: killed, hanging and slow services, what customers see of it, and whether the books balance."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos import Act, NoTrouble, Saboteur, Sights, own_system, processes_of, seen, settle, too_late
from customers import Outcome, Report
from demo import differences
from shop.api_v1 import ORDER_WITHIN, PAGE_WITHIN, NewOrder
from shop.contracts import Charge, ChargeId, ChargeState, Item, OrderState, PlaceOrder
from shop.database import Database, Turns
from shop.gateway import MOST_OF
from shop.payments import bank_seconds
from shop_support import BARGAIN, GOOD_CARD, SHOP, RunningShop, hand_made_shop, running_shop, until

from polywire.errors import FailedPrecondition, SetupError, Unavailable
from polywire.system.addresses import noted
from polywire.testing import settle as settle_tasks

DEMO = [sys.executable, str(SHOP / "demo.py"), "--port", "0"]
ORDER = {"user_id": "U-1", "items": [{"product_id": "SKU-123", "quantity": 1}], "card": GOOD_CARD}


@pytest.mark.slow
def test_after_trouble_the_books_balance_and_nobody_waited_for_longer_than_the_deadline(tmp_path: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*DEMO, "--customers", "150", "--once", "--chaos"], capture_output=True, text=True, timeout=110, env=environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.endswith("The books balance.\n")
    assert re.findall(r"TROUBLE: (.*)", done.stdout) == [
        act.what for act in Saboteur(0, tmp_path, tmp_path).programme()
    ]
    asked, *outcomes = map(
        int, told(r"orders +(\d+) tried = (\d+) placed, (\d+) dec.*, (\d+) out .*, (\d+) failed", done)
    )
    assert asked == sum(outcomes)
    assert outcomes[0] > 0
    page, order = told(r"waits +at most ([\d.]+) s of 3 s for a page and ([\d.]+) s of 8 s for an order", done)
    fallbacks, browser = told(r"browsers +.*; (\d+) without asking recommendations; at most ([\d.]+) s", done)
    assert max(float(page), float(browser)) <= 4
    assert float(order) <= 9
    assert int(fallbacks) > 0
    assert list(tmp_path.iterdir()) == []


def told(line: str, done: subprocess.CompletedProcess[str]) -> tuple[str, ...]:
    """What the groups of *line* matched in what the demo printed."""
    found = re.search(f"^{line}$", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    return found.groups()


def test_trouble_needs_processes() -> None:
    done = subprocess.run([*DEMO, "--chaos", "--in-process"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.endswith(
        "demo.py: error: --chaos kills services, and with --in-process they are all one process. "
        "Leave one of the two out.\n"
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningShop]:
    data = tmp_path_factory.mktemp("shop")
    own_system(data)
    with running_shop(data, SHOP_BANK_SECONDS="0.2") as running:
        # Services that start last are in the note by which commands find them once all are ready.
        until(lambda: "payments" in noted(data))
        yield running


# A page without recommendations


@pytest.mark.slow
def test_a_page_has_other_recommendations_while_those_who_know_them_hang(shop: RunningShop) -> None:
    known, unknown = (f"/api/v1/products/{product_id}/recommendations" for product_id in ("SKU-301", "SKU-400"))
    items = [{"product_id": product_id, "quantity": 1} for product_id in ("SKU-301", "SKU-302")]
    assert shop.curl("POST", "/api/v1/orders", {**ORDER, "items": items}).status == 201
    until(lambda: companions(shop, known) == ("SKU-302", False))
    learned = shop.curl("GET", known).body
    with hanging(shop, "analytics"):
        assert shop.curl("GET", known).body == {**learned, "fallback": True}
        instead = shop.curl("GET", unknown).body
        assert instead["fallback"]
        assert [(item["product_id"], item["orders"]) for item in instead["items"]] == [
            (product.product_id, 0) for product in MOST_OF
        ]
        missing = shop.curl("GET", "/api/v1/products/SKU-1/recommendations")
        assert (missing.status, missing.error["message"]) == (404, "There is no product 'SKU-1'.")
    until(lambda: companions(shop, unknown) == ("", False))
    shop.polywire("fault", "add", "gateway", "analytics", "--partition")
    until(lambda: companions(shop, known) == ("SKU-302", True))
    shop.polywire("fault", "clear")
    until(lambda: companions(shop, known) == ("SKU-302", False))
    assert "shop.v1.Recommendations/Recommend is answered by its fallback: " in shop.log


def companions(shop: RunningShop, path: str) -> tuple[str, bool]:
    """Their ids, and whether they were fallen back on."""
    page = shop.curl("GET", path).body
    return ",".join(item["product_id"] for item in page["items"]), page["fallback"]


@contextlib.contextmanager
def hanging(shop: RunningShop, service: str) -> Iterator[None]:
    (process,) = processes_of(shop.up.pid, shop.log_file.parent / f"{service}.db")
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


# A slow bank


@pytest.mark.slow
def test_an_order_is_paid_once_or_given_back_however_slow_the_bank_is(shop: RunningShop) -> None:
    before = shop.curl("GET", "/api/v1/books").body
    assert shop.curl("POST", "/api/v1/orders", ORDER).status == 201
    for seconds in (2.6, 60):
        set_pace(shop, seconds)
        late = shop.curl("POST", "/api/v1/orders", ORDER)
        assert (late.status, late.error["code"], late.error["reason"]) == (503, "unavailable", "ORDER_UNDONE")
        assert late.error["message"] == (
            f"Order {late.error['details']['order_id']} was interrupted, and whatever was charged is given back. "
            "Place it again with a new key."
        )
    set_pace(shop, 0)
    until(lambda: shop.curl("GET", "/api/v1/books").body["unfinished"] == 0)
    assert shop.curl("POST", "/api/v1/orders", ORDER).status == 201
    after = shop.curl("GET", "/api/v1/books").body
    assert after["problems"] == []
    grown = Counter(after["orders"]["by_state"])
    grown.subtract(before["orders"]["by_state"])
    assert +grown == {"confirmed": 2, "failed": 2}
    assert kept(after) - kept(before) == 2


def kept(books: Any) -> int:
    """Charges that were not given back."""
    return int(books["money"]["charges"] - books["money"]["refunds"])


def set_pace(shop: RunningShop, seconds: float) -> None:
    shop.polywire("call", "shop.v1.Bank/set_pace", f"seconds={seconds}")


async def test_a_charge_given_up_before_the_money_moved_is_void_and_one_given_up_after_is_refunded() -> None:
    with hand_made_shop() as shop:
        shop.line.seconds = 10.0
        for charge_id, wait, state in (("early", 4.0, ChargeState.VOID), ("late", 6.0, ChargeState.REFUNDED)):
            charging = asyncio.create_task(
                shop.payments.charge(Charge(charge_id=charge_id, amount_cents=500, card=GOOD_CARD))
            )
            await settle_tasks()
            await shop.clock.advance(wait)
            charging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await charging
            assert (await shop.payments.refund(ChargeId(charge_id=charge_id))).state is state
        shop.line.seconds = 0.0
        for charge_id in ("early", "late"):
            with pytest.raises(FailedPrecondition):
                await shop.payments.charge(Charge(charge_id=charge_id, amount_cents=500, card=GOOD_CARD))
        balance = await shop.payments.get_balance()
        assert (balance.charged_cents, balance.refunded_cents) == (500, 500)


@pytest.mark.parametrize("text", ["soon", "-1", "61", "nan", ""])
def test_a_pace_that_is_none_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SHOP_BANK_SECONDS", text)
    with pytest.raises(SetupError) as refusal:
        bank_seconds()
    assert str(refusal.value) == (
        f"The till was not opened: SHOP_BANK_SECONDS is {text!r}, and has to be a number of seconds between 0 and 60. "
        "Set it so, or leave it out for a bank that takes no time."
    )


# Those who make trouble


@pytest.mark.slow
async def test_what_hangs_goes_on_when_the_trouble_ends_early(shop: RunningShop) -> None:
    data = shop.log_file.parent
    saboteur = HangsUsers(shop.up.pid, shop.system, data)
    (process,) = processes_of(shop.up.pid, data / "users.db")
    trouble = asyncio.create_task(saboteur.perform())
    async with asyncio.timeout(60):
        await saboteur.hangs.wait()
    until(lambda: state_of(process) == "T")
    trouble.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trouble
    until(lambda: state_of(process) != "T")
    with pytest.raises(NoTrouble) as missing:
        await saboteur.hang("nobody")
    assert str(missing.value) == "No trouble was made for 'nobody': it has had no process for 0.1 s."
    nowhere = data / "nowhere" / "polywire.toml"
    with pytest.raises(NoTrouble) as refused:
        await Saboteur(shop.up.pid, nowhere, data).slow_bank(1)
    assert str(refused.value) == (f"The bank was not made slow: no `polywire up` says where payments in {nowhere} is.")


class HangsUsers(Saboteur):
    patience = 0.1

    def __init__(self, up: int, system: Path, data: Path) -> None:
        super().__init__(up, system, data)
        self.hangs = asyncio.Event()

    def programme(self) -> list[Act]:
        return [
            Act(0.0, "users hangs", lambda: self.hang("users")),
            Act(0.0, "the test sees it", self.tell),
            Act(3600.0, "nobody waits for this", lambda: self.let_go("users")),
        ]

    async def tell(self) -> None:
        self.hangs.set()


def state_of(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


# What is made of what was seen


def test_whoever_waited_too_long_is_a_sentence() -> None:
    in_time = Report(longest={PAGE_WITHIN: 3.9, ORDER_WITHIN: 8.9})
    assert too_late(in_time, Sights(longest=3.9, statuses=Counter({200: 5, 503: 1}))) == []
    late = Report(longest={PAGE_WITHIN: 1.0, ORDER_WITHIN: 9.25})
    assert too_late(late, Sights(longest=5.0, broken=2, statuses=Counter({200: 5, 500: 1, 404: 1}))) == [
        "Somebody waited 9.25 s for an answer that was due after 8 s (and 1 s of grace).",
        "Somebody waited 5.00 s for an answer that was due after 3 s (and 1 s of grace).",
        "2 connections of browsers ended without an answer.",
        "Browsers were answered with 404, 500, which trouble is no reason for.",
    ]


async def test_trouble_excuses_no_answer_that_is_made_up_and_no_order_that_is_not_known() -> None:
    report = Report(failures=Counter(unavailable=3, internal=2), asked=1)
    with hand_made_shop() as shop:
        books = await shop.v1.get_books()
    assert differences(books, books, report, expected={"unavailable"}) == [
        "1 orders were tried, but 0 outcomes are known.",
        "Requests failed that should not have: 2 x internal.",
    ]


async def test_those_who_left_with_empty_hands_learn_afterwards_what_became_of_their_orders() -> None:
    report = Report(outcomes=Counter({Outcome.FAILED: 4}))
    with hand_made_shop() as shop:
        stands = await shop.v1.place_order(wish("stands"))
        bought = await shop.v1.place_order(wish("bought"))
        shop.ledger.begin(as_placed("lost"))
        for name in ("stands", "never came", "lost"):
            report.unclear.append((name, wish(name)))
        report.unclear.append(("late", wish("late", product_id=BARGAIN, quantity=2)))
        report.unclear_returns.append(bought)
        report.placed(bought)
        await shop.clock.advance(10.0)
        await shop.undo.sweep()
        told = await settle(shop.v1, report)
        assert told == {Outcome.PLACED: 2, Outcome.FAILED: 1, Outcome.OUT_OF_STOCK: 1}
        assert report.outcomes == {Outcome.PLACED: 2, Outcome.FAILED: 1, Outcome.OUT_OF_STOCK: 1}
        assert report.order_ids[:2] == [bought.order_id, stands.order_id]
        assert (report.cancelled, report.unclear, report.unclear_returns) == (1, [], [])
        assert await shop.state_of(bought) is OrderState.CANCELLED
        assert (await shop.v1.get_books()).orders.confirmed_cents == report.spent_cents
        assert await shop.problems() == []


def wish(key: str, *, product_id: str = "SKU-123", quantity: int = 1) -> NewOrder:
    items = [Item(product_id=product_id, quantity=quantity)]
    return NewOrder(user_id="U-1", items=items, card=GOOD_CARD, idempotency_key=key)


def as_placed(key: str) -> PlaceOrder:
    """As orders gets it."""
    order = wish(key)
    return PlaceOrder(key=f"{order.user_id}/{key}", user_id=order.user_id, items=order.items, card=order.card)


def test_the_summary_has_all_that_was_seen() -> None:
    report = Report(asked=5, requests=1_234, retried=7, asked_again=2, advised=9, fallbacks=3)
    report.outcomes.update({Outcome.PLACED: 3, Outcome.FAILED: 2})
    report.longest = {PAGE_WITHIN: 1.5, ORDER_WITHIN: 5.25}
    sights = Sights(statuses=Counter({200: 40, 504: 2}), fallbacks=6, longest=1.004)
    told = Counter({Outcome.PLACED: 1, Outcome.FAILED: 2})
    assert (
        seen(report, Counter(unavailable=4, deadline_exceeded=1), sights, told)
        == """
What the customers saw while services were killed, hung, were slow and were cut off:

orders      5 tried = 3 placed, 0 declined, 0 out of stock, 2 failed
unclear     2 learned by asking again how it had ended, 3 after the trouble: 2 failed, 1 placed
requests    1,234; refused: 1 x deadline_exceeded, 4 x unavailable; 7 were answered when they were sent again
advice      9 pages, 3 of them without asking recommendations
waits       at most 1.50 s of 3 s for a page and 5.25 s of 8 s for an order
browsers    40 x 200, 2 x 504; 6 without asking recommendations; at most 1.00 s
"""
    )


# Two processes that write to one database


def test_processes_take_turns_and_nothing_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "counter.db"
    add = [sys.executable, "-c", ADD, str(file)]
    writers = [subprocess.Popen(add, env={**os.environ, "PYTHONPATH": WHERE}) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with contextlib.closing(Database(file)) as database:
        assert database.value("SELECT number FROM counter") == 3 * 200
        assert database.value("PRAGMA integrity_check") == "ok"


WHERE = f"{SHOP}:{os.environ.get('PYTHONPATH', '')}"
ADD = """
import sys
from pathlib import Path
from shop.database import Database, Turns

def create(database):
    database.run("CREATE TABLE counter (number INTEGER NOT NULL)")
    database.run("INSERT INTO counter VALUES (0)")

file = Path(sys.argv[1])
database = Database(file, create, turns=Turns(file.with_suffix(".lock"), wait=60.0))
for _ in range(200):
    with database.transaction():
        number = database.value("SELECT number FROM counter")
        database.run("UPDATE counter SET number = ?", number + 1)
database.close()
"""


def test_a_turn_that_is_not_given_back_is_an_error_and_one_of_a_killed_process_is_free(tmp_path: Path) -> None:
    lock = tmp_path / "counter.lock"
    with contextlib.closing(Turns(lock, wait=0.05)) as turns:
        take = [sys.executable, "-c", TAKE, str(lock)]
        with subprocess.Popen(
            take, env={**os.environ, "PYTHONPATH": WHERE}, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "taken\n"
            with pytest.raises(Unavailable) as refusal:
                turns.take()
            other.kill()
        assert str(refusal.value) == (
            "Nothing was written to 'counter': another process has been writing to it for 0.05 s. "
            "Ask again; if that goes on, look for a process that is stopped."
        )
        assert refusal.value.reached == "no"
        turns.take()


TAKE = """
import sys, time
from pathlib import Path
from shop.database import Turns

Turns(Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(600)
"""
