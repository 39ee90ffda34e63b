"""The till: charges cards, gives money back, and does neither twice."""

from __future__ import annotations

import os
from collections.abc import Iterator

from polywire import App, FailedPrecondition, InvalidArgument, SetupError
from polywire.clock import SYSTEM_CLOCK, Clock
from shop.contracts import Balance, Bank, CardDeclined, Charge, ChargeId, ChargeState, Pace, Payment, Payments
from shop.database import Database, Row, open_database

app = App("payments")

DECLINED_CARDS = ("0002", "0069")
"""Cards that end so are declined, as with the test cards of payment providers."""
LIMIT_CENTS = 1_000_000
"""What a card of this shop's customers is good for at once."""
BANK_SECONDS = "SHOP_BANK_SECONDS"
MOST_SECONDS = 60.0


def create_tables(database: Database) -> None:
    database.run("""
        CREATE TABLE charges (
            charge_id TEXT PRIMARY KEY, state TEXT NOT NULL, amount_cents INTEGER NOT NULL, card_ending TEXT NOT NULL
        ) WITHOUT ROWID""")


@app.resource
def database() -> Iterator[Database]:
    with open_database("payments", create_tables) as database:
        yield database


class Line:
    """The line to the bank, and how long the bank takes."""

    def __init__(self, seconds: float = 0.0, clock: Clock = SYSTEM_CLOCK) -> None:
        self.seconds = seconds
        self._clock = clock

    async def wait(self, seconds: float) -> None:
        if seconds > 0:
            await self._clock.sleep(seconds)


@app.resource
def line(clock: Clock) -> Line:
    return Line(bank_seconds(), clock)


def bank_seconds() -> float:
    """Of $SHOP_BANK_SECONDS, 0 without it. Raises SetupError where that is no time, or too long a one."""
    text = os.environ.get(BANK_SECONDS, "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MOST_SECONDS:
        raise SetupError(
            f"The till was not opened: {BANK_SECONDS} is {text!r}, and has to be a number of seconds between 0 and "
            f"{MOST_SECONDS:g}. Set it so, or leave it out for a bank that takes no time."
        )
    return seconds


@app.service
class BankService(Bank):
    def __init__(self, line: Line) -> None:
        self._line = line

    async def set_pace(self, pace: Pace) -> None:
        self._line.seconds = pace.seconds


@app.service
class PaymentService(Payments):
    """One row per charge id, written once and then only moved from charged to refunded.

    A bank that is slow changes nothing in that. Who asked may have given up before the row is there, or before they
    hear of it: they cannot tell one from the other and need not, for the refund holds in both cases.
    """

    def __init__(self, database: Database, line: Line) -> None:
        self._database = database
        self._line = line

    async def charge(self, request: Charge) -> Payment:
        half = self._line.seconds / 2
        await self._line.wait(half)
        try:
            return self._charge(request)
        finally:
            await self._line.wait(half)

    def _charge(self, request: Charge) -> Payment:
        ending = request.card[-4:]
        with self._database.transaction():
            self._database.run(
                "INSERT OR IGNORE INTO charges VALUES (?, ?, ?, ?)",
                request.charge_id, _verdict(request), request.amount_cents, ending,
            )  # fmt: skip
            payment = self._payment(request.charge_id)
        if payment.state is ChargeState.DECLINED:
            raise CardDeclined(card_ending=payment.card_ending)
        if payment.state is not ChargeState.CHARGED:
            raise FailedPrecondition(f"Charge {request.charge_id!r} is {payment.state} and cannot be made any more.")
        if (payment.amount_cents, payment.card_ending) != (request.amount_cents, ending):
            raise InvalidArgument(
                f"Charge {request.charge_id!r} was made before, with another card or amount. Use a new charge id.",
                field="charge_id",
            )
        return payment

    async def refund(self, request: ChargeId) -> Payment:
        with self._database.transaction():
            # Should the charge come after its refund (it was slow, its caller gave up), it finds this and is refused.
            self._database.run("INSERT OR IGNORE INTO charges VALUES (?, 'void', 0, '')", request.charge_id)
            self._database.run(
                "UPDATE charges SET state = 'refunded' WHERE charge_id = ? AND state = 'charged'", request.charge_id
            )
            return self._payment(request.charge_id)

    async def get_balance(self) -> Balance:
        sums: dict[str, Row] = {
            row["state"]: row
            for row in self._database.all(
                "SELECT state, count(*) AS number, sum(amount_cents) AS cents FROM charges GROUP BY state"
            )
        }

        def total(column: str, *states: ChargeState) -> int:
            return sum(sums[state][column] for state in states if state in sums)

        return Balance(
            charges=total("number", ChargeState.CHARGED, ChargeState.REFUNDED),
            charged_cents=total("cents", ChargeState.CHARGED, ChargeState.REFUNDED),
            refunds=total("number", ChargeState.REFUNDED),
            refunded_cents=total("cents", ChargeState.REFUNDED),
            declined=total("number", ChargeState.DECLINED),
        )

    def _payment(self, charge_id: str) -> Payment:
        row = self._database.all("SELECT * FROM charges WHERE charge_id = ?", charge_id)[0]
        return Payment(
            charge_id=charge_id,
            state=ChargeState(row["state"]),
            amount_cents=row["amount_cents"],
            card_ending=row["card_ending"],
        )


def _verdict(request: Charge) -> ChargeState:
    if request.card.endswith(DECLINED_CARDS) or request.amount_cents > LIMIT_CENTS:
        return ChargeState.DECLINED
    return ChargeState.CHARGED
