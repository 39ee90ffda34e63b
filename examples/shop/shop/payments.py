"""The till: charges cards, gives money back, and does neither twice."""

from __future__ import annotations

from collections.abc import Iterator

from polywire import App, FailedPrecondition, InvalidArgument
from shop.contracts import Balance, CardDeclined, Charge, ChargeId, ChargeState, Payment, Payments
from shop.database import Database, Row, open_database

app = App("payments")

DECLINED_CARDS = ("0002", "0069")
"""Cards that end so are declined, as with the test cards of payment providers."""
LIMIT_CENTS = 1_000_000
"""What a card of this shop's customers is good for at once."""


def create_tables(database: Database) -> None:
    database.run("""
        CREATE TABLE charges (
            charge_id TEXT PRIMARY KEY, state TEXT NOT NULL, amount_cents INTEGER NOT NULL, card_ending TEXT NOT NULL
        ) WITHOUT ROWID""")


@app.resource
def database() -> Iterator[Database]:
    with open_database("payments", create_tables) as database:
        yield database


@app.service
class PaymentService(Payments):
    """One row per charge id, written once and then only moved from charged to refunded."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def charge(self, request: Charge) -> Payment:
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
