"""`make demo`: customers come, buy and leave, and the program says whether everything adds up."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from customers import Outcome, Report
from demo import differences
from shop.api_v1 import Books
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
