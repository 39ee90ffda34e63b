"""`make demo`: customers come, buy and leave, and the program says whether everything adds up."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from aftermath import Aftermath, what_differs
from customers import Outcome, Report
from demo import differences
from shop.api_v1 import BackOffice, Books
from shop.backoffice import Activity, BasketCount, MailCount, ParcelCount, PictureCount
from shop.contracts import Balance, StockCount, Tally
from shop_support import SHOP

DEMO = [sys.executable, str(SHOP / "demo.py"), "--port", "0", "--customers", "60"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--profile", "http"), ("--in-process",)], ids=["grpc", "http", "in-process"])
def test_the_demo_ends_by_itself_with_books_that_balance(how: tuple[str, ...]) -> None:
    done = subprocess.run([*DEMO, "--once", *how], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("The books balance.\n")
    assert "60 came, 60 left;" in done.stdout
    placed = re.search(r"= (\d+) placed", done.stdout)
    assert placed is not None
    assert f"\nletters     {placed[1]} sent, {placed[1]} in the postbox\n" in done.stdout
    assert f" in {placed[1]} orders\n" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_the_demo_stays_open_until_it_is_interrupted(tmp_path: Path) -> None:
    environ = {**os.environ, "SHOP_DATA": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([*DEMO, "--in-process"], stdout=subprocess.PIPE, text=True, env=environ) as demo:
        assert demo.stdout is not None
        lines = []
        for line in demo.stdout:
            lines.append(line)
            if line.startswith("and watch the calls between the services"):
                break
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(60) == 0, "".join(lines) + rest
    assert "The books balance.\n" in lines
    assert any("curl 'http://127.0.0.1:" in line for line in lines)


@pytest.mark.slow
def test_the_demo_says_what_the_system_said_where_it_cannot_start(tmp_path: Path) -> None:
    environ = {**os.environ, "SHOP_DATA": str(tmp_path), "POLYWIRE__SERVICES__ORDERS__APP": "shop.nothing:app"}
    done = subprocess.run([*DEMO, "--once"], capture_output=True, text=True, timeout=100, env=environ)
    assert done.returncode == 1
    assert done.stderr.startswith("The shop ended on its own, with status ")
    assert "shop.nothing" in done.stderr


def books(**by_state: int) -> Books:
    confirmed = by_state.get("confirmed", 0)
    return Books(
        stock=StockCount(initial=100, on_hand=100 - confirmed, reserved=0, sold=confirmed),
        orders=Tally(by_state=by_state, confirmed_units=confirmed, confirmed_cents=confirmed * 500),
        money=Balance(charges=confirmed, charged_cents=confirmed * 500, refunds=0, refunded_cents=0, declined=0),
        unfinished=0,
        problems=[],
    )


def report() -> Report:
    made = Report(arrived=3, left=3, asked=3, spent_cents=500)
    made.outcomes.update({Outcome.PLACED: 1, Outcome.DECLINED: 1, Outcome.OUT_OF_STOCK: 1})
    return made


AFTER = {"confirmed": 1, "declined": 1, "out_of_stock": 1}


def test_nothing_is_wrong_where_shop_and_customers_agree() -> None:
    assert differences(books(), books(**AFTER), report()) == []
    assert differences(books(confirmed=4), books(confirmed=5, declined=1, out_of_stock=1), report()) == []


def test_every_difference_is_a_sentence() -> None:
    bad = copy.deepcopy(report())
    bad.asked = 5
    bad.spent_cents = 400
    bad.failures["unavailable"] = 2
    bad.outcomes[Outcome.DECLINED] = 2
    after = books(**AFTER)
    after.unfinished = 1
    after.problems = ["Stock: something."]
    assert differences(books(), after, bad) == [
        "Stock: something.",
        "1 orders are still being placed or undone.",
        "5 orders were tried, but 4 outcomes are known.",
        "Requests failed that should not have: 2 x unavailable.",
        "Customers count 2 orders declined, the shop 1.",
        "Customers spent 4.00 EUR, the shop earned 5.00 EUR.",
    ]


def aftermath(orders: int = 0, *, cancelled: int = 0, letters: int | None = None) -> Aftermath:
    """Of so many orders for two units of two products and 5 EUR each."""
    stay = orders - cancelled
    return Aftermath(
        office=BackOffice(
            mails=MailCount(sent=orders),
            parcels=ParcelCount(packed=stay, unpacked=cancelled, units=stay * 2),
            pictures=PictureCount(made=0),
            baskets=BasketCount(orders=orders, pairs=orders),
        ),
        activity=Activity(views=orders * 2, top=[], days=[], orders=stay, revenue_cents=stay * 500),
        letters=Counter(f"Your order ord-{number}" for number in range(orders if letters is None else letters)),
        no_pictures=0,
    )


def two_orders() -> Report:
    """One of which is sent back."""
    return Report(spent_cents=500, units=2, cancelled=1, order_ids=["ord-0", "ord-1"], pairs=2, viewed=4)


def test_nothing_is_wrong_where_the_back_office_has_done_all_that_follows() -> None:
    assert what_differs(aftermath(), aftermath(2, cancelled=1), two_orders()) == []


def test_everything_that_does_not_follow_is_a_sentence() -> None:
    report = two_orders()
    report.pictures = {"SKU-1", "SKU-2"}
    after = dataclasses.replace(aftermath(1, letters=1), no_pictures=1)
    after.letters["Your order ord-0"] = 2
    assert what_differs(aftermath(), after, report) == [
        "There should be 2 letters sent, and there are 1.",
        "There should be 1 parcels unpacked, and there are 0.",
        "There should be 4 products looked at, and there are 2.",
        "There should be 2 orders to learn from, and there are 1.",
        "There should be 2 pairs of products bought together, and there are 1.",
        "1 of 2 customers got no letter about their order.",
        "1 of 2 customers got more than one letter about their order.",
        "1 of 2 pictures that were asked for were not made.",
    ]
