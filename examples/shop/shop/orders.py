"""Orders: goods and money change hands together, or not at all.

    pending --reserve, charge, commit--> confirmed --cancel--> undoing --> cancelled
       +------- anything went wrong ---> undoing --refund, release--> out_of_stock | declined | failed

Until its row says confirmed an order promises nothing, and whatever was done for it is undone: refund and release can
be called for things that never happened, and then see to it that they never will. So an answer that was lost, a service
that was down or this process being killed half-way leave nothing behind once everyone is up again.

The rest of the shop is told of each step as an event, and the customer by a letter.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from polywire import (
    App,
    Bus,
    CallError,
    DeadlineExceeded,
    DeliveryError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    calling,
)
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import DO_NOT_RETRY
from shop.backoffice import Confirmation, Mail
from shop.contracts import (
    CardDeclined,
    Charge,
    ChargeId,
    Inventory,
    Order,
    OrderId,
    OrderLine,
    Orders,
    OrdersFound,
    OrdersOf,
    OrderState,
    OrderUndone,
    OutOfStock,
    Payments,
    PlaceOrder,
    Reservation,
    ReservationId,
    Reserve,
    Tally,
)
from shop.database import Database, Row, open_database
from shop.events import OrderCancelled, OrderConfirmed, OrderCreated, OrderEvent, OrderPaid

app = App("orders")
log = logging.getLogger("shop.orders")

ABANDONED_AFTER = 6.0
"""Seconds. `place` is stopped at its deadline, 5 s: what is pending for longer was left behind when a process died."""
SWEEP_EVERY = 1.0
TELL_WITHIN = 0.5
"""Seconds for each thing that is told, three times for an order: a bus that hangs makes it about two seconds slower."""


def create_tables(database: Database) -> None:
    database.run("""
        CREATE TABLE orders (
            number INTEGER PRIMARY KEY, order_id TEXT NOT NULL UNIQUE, key TEXT NOT NULL UNIQUE, request TEXT NOT NULL,
            user_id TEXT NOT NULL, state TEXT NOT NULL, outcome TEXT NOT NULL DEFAULT '',
            reason TEXT NOT NULL DEFAULT '', refusal TEXT NOT NULL DEFAULT '{}',
            total_cents INTEGER NOT NULL DEFAULT 0, placed_at REAL NOT NULL
        )""")
    database.run("CREATE INDEX orders_by_user ON orders (user_id, number)")
    database.run("CREATE INDEX orders_unfinished ON orders (state, placed_at) WHERE state IN ('pending', 'undoing')")
    database.run("""
        CREATE TABLE lines (
            order_id TEXT NOT NULL REFERENCES orders (order_id), product_id TEXT NOT NULL, name TEXT NOT NULL,
            quantity INTEGER NOT NULL, price_cents INTEGER NOT NULL, PRIMARY KEY (order_id, product_id)
        ) WITHOUT ROWID""")


class Ledger:
    """The orders as they stand on disk. Every change names the state it starts from, so that of two who want to move
    the same order (`place` at its end, the sweeper at its beginning) only one does."""

    def __init__(self, database: Database, clock: Clock = SYSTEM_CLOCK) -> None:
        self._database = database
        self._clock = clock

    def begin(self, request: PlaceOrder) -> str | None:
        """The id of a new pending order, or None where the key has one."""
        order_id = f"ord-{secrets.token_hex(8)}"
        written = self._database.run(
            "INSERT OR IGNORE INTO orders (order_id, key, request, user_id, state, placed_at)"
            " VALUES (?, ?, ?, ?, 'pending', ?)",
            order_id, request.key, _fingerprint(request), request.user_id, self._clock.time(),
        )  # fmt: skip
        return order_id if written else None

    def by_key(self, request: PlaceOrder) -> Order:
        """What was placed with this key before. Raises InvalidArgument where that was something else."""
        row = self._database.all("SELECT * FROM orders WHERE key = ?", request.key)[0]
        if row["request"] != _fingerprint(request):
            raise InvalidArgument(
                f"The key {request.key!r} was used for a different order. Use a new key for each order.", field="key"
            )
        return self._order(row)

    def get(self, order_id: str) -> Order:
        row = self._database.one("SELECT * FROM orders WHERE order_id = ?", order_id)
        if row is None:
            raise NotFound(f"There is no order {order_id!r}.")
        return self._order(row)

    def of_user(self, query: OrdersOf) -> OrdersFound:
        total = self._database.value("SELECT count(*) FROM orders WHERE user_id = ?", query.user_id)
        rows = self._database.all(
            "SELECT * FROM orders WHERE user_id = ? ORDER BY number DESC LIMIT ? OFFSET ?",
            query.user_id, query.limit, query.offset,
        )  # fmt: skip
        return OrdersFound(orders=[self._order(row) for row in rows], total=total)

    def write_lines(self, order_id: str, reservation: Reservation) -> int:
        """Keep what was reserved at which prices. Returns what it costs, in cents."""
        rows = [(order_id, i.product_id, i.name, i.quantity, i.price_cents) for i in reservation.items]
        total = sum(item.quantity * item.price_cents for item in reservation.items)
        with self._database.transaction():
            self._database.run_many("INSERT INTO lines VALUES (?, ?, ?, ?, ?)", list(rows))
            self._database.run("UPDATE orders SET total_cents = ? WHERE order_id = ?", total, order_id)
        return total

    def confirm(self, order_id: str) -> bool:
        """False where the order is no longer pending."""
        moved = self._database.run(
            "UPDATE orders SET state = 'confirmed' WHERE order_id = ? AND state = 'pending'", order_id
        )
        return moved == 1

    def give_up(self, order_id: str, outcome: OrderState, reason: str, *, was: OrderState = OrderState.PENDING) -> bool:
        """From now on the order is to be undone, and then *outcome*. False where it was not in the state *was*."""
        moved = self._database.run(
            "UPDATE orders SET state = 'undoing', outcome = ?, reason = ? WHERE order_id = ? AND state = ?",
            outcome, reason, order_id, was,
        )  # fmt: skip
        return moved == 1

    def refuse(self, order_id: str, error: CallError) -> OrderState:
        """Give a pending order up for an error, and keep what it says for whoever asks again. Returns its end."""
        outcome, fields = _refusal(error)
        with self._database.transaction():
            if self.give_up(order_id, outcome, error.message):
                self._database.run("UPDATE orders SET refusal = ? WHERE order_id = ?", json.dumps(fields), order_id)
        return outcome

    def refusal(self, order_id: str) -> dict[str, Any]:
        """The fields of the error for which an order was refused."""
        fields: dict[str, Any] = json.loads(
            self._database.value("SELECT refusal FROM orders WHERE order_id = ?", order_id)
        )
        return fields

    def fate(self, order_id: str) -> tuple[OrderState, str]:
        """What becomes of an order that was given up, and why."""
        row = self._database.all("SELECT outcome, reason FROM orders WHERE order_id = ?", order_id)[0]
        return OrderState(row["outcome"]), row["reason"]

    def undone(self, order_id: str) -> None:
        self._database.run("UPDATE orders SET state = outcome WHERE order_id = ? AND state = 'undoing'", order_id)

    def give_up_abandoned(self) -> None:
        self._database.run(
            "UPDATE orders SET state = 'undoing', outcome = 'failed', reason = 'The order was interrupted.'"
            " WHERE state = 'pending' AND placed_at < ?",
            self._clock.time() - ABANDONED_AFTER,
        )

    def to_undo(self) -> list[str]:
        rows = self._database.all("SELECT order_id FROM orders WHERE state = 'undoing' ORDER BY placed_at LIMIT 100")
        return [row["order_id"] for row in rows]

    def tally(self) -> Tally:
        states = self._database.all("SELECT state, count(*) AS number FROM orders GROUP BY state")
        units, cents = self._database.all(
            "SELECT coalesce(sum(quantity), 0), coalesce(sum(quantity * price_cents), 0)"
            " FROM lines JOIN orders USING (order_id) WHERE state = 'confirmed'"
        )[0]
        by_state = {row["state"]: row["number"] for row in states}
        return Tally(by_state=by_state, confirmed_units=units, confirmed_cents=cents)

    def _order(self, row: Row) -> Order:
        lines = self._database.all("SELECT * FROM lines WHERE order_id = ?", row["order_id"])
        return Order(
            order_id=row["order_id"],
            user_id=row["user_id"],
            state=OrderState(row["state"]),
            lines=[
                OrderLine(
                    product_id=line["product_id"],
                    name=line["name"],
                    quantity=line["quantity"],
                    price_cents=line["price_cents"],
                )
                for line in lines
            ],
            total_cents=row["total_cents"],
            placed_at=datetime.fromtimestamp(row["placed_at"], UTC),
            reason=row["reason"],
        )


def _fingerprint(request: PlaceOrder) -> str:
    """What makes two requests the same order. The card number is not kept."""
    return json.dumps([request.user_id, request.card[-4:], [[i.product_id, i.quantity] for i in request.items]])


def _refusal(error: CallError) -> tuple[OrderState, dict[str, object]]:
    """What becomes of an order that ended with *error*, and what the error says."""
    if isinstance(error, OutOfStock):
        said = {"product_id": error.product_id, "wanted": error.wanted, "on_hand": error.on_hand}
        return OrderState.OUT_OF_STOCK, said
    if isinstance(error, CardDeclined):
        return OrderState.DECLINED, {"card_ending": error.card_ending}
    return OrderState.FAILED, {}


class News:
    """Tells the rest of the shop how an order goes on.

    It is told after it was written, and there is no outbox yet: where this process is killed in between, or the bus
    cannot be reached in time, the order stands and nobody hears of it. The log then has it.
    """

    def __init__(self, bus: Bus, mail: Mail) -> None:
        self._bus = bus
        self._mail = mail

    async def created(self, order: Order) -> None:
        await self._try(OrderCreated(order_id=order.order_id, user_id=order.user_id, placed_at=order.placed_at))

    async def paid(self, order_id: str, amount_cents: int) -> None:
        await self._try(OrderPaid(order_id=order_id, amount_cents=amount_cents))

    async def confirmed(self, order: Order, email: str | None) -> None:
        event = OrderConfirmed(
            order_id=order.order_id,
            user_id=order.user_id,
            placed_at=order.placed_at,
            lines=order.lines,
            total_cents=order.total_cents,
        )
        letters = [] if email is None else [self._write_to(email, order)]
        await asyncio.gather(self._try(event), *letters)

    async def cancelled(self, order_id: str, outcome: OrderState, reason: str) -> None:
        """Raises DeliveryError where it could not be told."""
        with calling(timeout=TELL_WITHIN):
            await self._bus.publish(OrderCancelled(order_id=order_id, outcome=outcome, reason=reason))

    async def _try(self, event: OrderEvent) -> None:
        try:
            with calling(timeout=TELL_WITHIN):
                await self._bus.publish(event)
        except DeliveryError as trouble:
            log.error("order %s goes on, but not everybody knows: %s", event.order_id, trouble)

    async def _write_to(self, email: str, order: Order) -> None:
        letter = Confirmation(order_id=order.order_id, email=email, lines=order.lines, total_cents=order.total_cents)
        try:
            with calling(timeout=TELL_WITHIN):
                await self._mail.send_confirmation(letter)
        except DeliveryError as trouble:
            log.error("order %s is confirmed, but its customer gets no letter: %s", order.order_id, trouble)


class Undo:
    """Gives back what was done for an order: at once where that works, and otherwise again until it does."""

    def __init__(self, ledger: Ledger, inventory: Inventory, payments: Payments, news: News) -> None:
        self._ledger = ledger
        self._inventory = inventory
        self._payments = payments
        self._news = news
        self._wake = asyncio.Event()

    async def order(self, order_id: str) -> None:
        """Raises CallError where a service did not answer, DeliveryError where the end could not be told; the order
        then stays `undoing`. So the end is told at least once: before it is written, and again after a crash."""
        await self._payments.refund(ChargeId(charge_id=order_id))
        await self._inventory.release(ReservationId(reservation_id=order_id))
        await self._news.cancelled(order_id, *self._ledger.fate(order_id))
        self._ledger.undone(order_id)

    async def now_or_later(self, order_id: str) -> None:
        try:
            await self.order(order_id)
        except (CallError, DeliveryError) as trouble:
            log.warning("order %s will be undone later: %s", order_id, trouble)

    def soon(self) -> None:
        """Let the sweeper look now."""
        self._wake.set()

    async def sweep(self) -> None:
        self._ledger.give_up_abandoned()
        for order_id in self._ledger.to_undo():
            try:
                await self.order(order_id)
            except (Unavailable, DeadlineExceeded, DeliveryError) as error:
                # The others would meet the same fate now; all of them come round again.
                log.warning("order %s could not be undone yet: %s", order_id, error)
                return
            except CallError as error:
                # Trouble of its own, which must not hold up the others.
                log.error("order %s cannot be undone: %s", order_id, error)

    async def keep_sweeping(self) -> None:
        while True:
            try:
                await self.sweep()
            except sqlite3.Error:
                log.exception("the sweeper could not read or write its orders; it tries again")
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_EVERY):
                    await self._wake.wait()


@app.resource
def ledger(clock: Clock) -> Iterator[Ledger]:
    with open_database("orders", create_tables) as database:
        yield Ledger(database, clock)


@app.resource
def news(bus: Bus, mail: Mail) -> News:
    return News(bus, mail)


@app.resource
async def undo(ledger: Ledger, inventory: Inventory, payments: Payments, news: News) -> AsyncIterator[Undo]:
    undo = Undo(ledger, inventory, payments, news)
    sweeping = asyncio.create_task(undo.keep_sweeping())
    try:
        yield undo
    finally:
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping


@app.service
class OrderService(Orders):
    def __init__(self, inventory: Inventory, payments: Payments, ledger: Ledger, undo: Undo, news: News) -> None:
        self._inventory = inventory
        self._payments = payments
        self._ledger = ledger
        self._undo = undo
        self._news = news

    async def place(self, request: PlaceOrder) -> Order:
        order_id = self._ledger.begin(request)
        if order_id is None:
            return self._answer_again(self._ledger.by_key(request))
        try:
            await self._news.created(self._ledger.get(order_id))
            await self._carry_out(order_id, request)
        except CallError as error:
            outcome = self._ledger.refuse(order_id, error)
            await self._undo.now_or_later(order_id)
            if outcome is OrderState.FAILED and not isinstance(error, NotFound | InvalidArgument):
                raise OrderUndone(order_id=order_id, retry_after=DO_NOT_RETRY) from error
            raise
        except BaseException:
            # Our caller has gone or its time is up: no time for anything but a note to ourselves.
            self._ledger.give_up(order_id, OrderState.FAILED, "The order took too long.")
            self._undo.soon()
            raise
        order = self._ledger.get(order_id)
        await self._news.confirmed(order, request.email)
        return order

    async def _carry_out(self, order_id: str, request: PlaceOrder) -> None:
        """The order's own id is that of its reservation and of its charge: trying again finds what was done."""
        reservation = await self._inventory.reserve(Reserve(reservation_id=order_id, items=request.items))
        total = self._ledger.write_lines(order_id, reservation)
        await self._payments.charge(Charge(charge_id=order_id, amount_cents=total, card=request.card))
        await self._news.paid(order_id, total)
        await self._inventory.commit(ReservationId(reservation_id=order_id))
        if not self._ledger.confirm(order_id):
            raise Unavailable(f"Order {order_id} took so long that it was given up.")

    def _answer_again(self, order: Order) -> Order:
        """The same answer to the same key."""
        if order.state in (OrderState.PENDING, OrderState.UNDOING):
            raise Unavailable(f"Order {order.order_id} is {order.state}. Ask again in a moment.", retry_after=0.5)
        if order.state is OrderState.OUT_OF_STOCK:
            raise OutOfStock(order.reason, **self._ledger.refusal(order.order_id))
        if order.state is OrderState.DECLINED:
            raise CardDeclined(order.reason, **self._ledger.refusal(order.order_id))
        if order.state is OrderState.FAILED:
            raise OrderUndone(order_id=order.order_id, retry_after=DO_NOT_RETRY)
        return order

    async def get_order(self, query: OrderId) -> Order:
        return self._ledger.get(query.order_id)

    async def list_orders(self, query: OrdersOf) -> OrdersFound:
        return self._ledger.of_user(query)

    async def cancel(self, request: OrderId) -> Order:
        cancelled = self._ledger.give_up(
            request.order_id, OrderState.CANCELLED, "Cancelled by the customer.", was=OrderState.CONFIRMED
        )
        order = self._ledger.get(request.order_id)
        if not cancelled:
            if order.state in (OrderState.CANCELLED, OrderState.UNDOING):
                return order
            raise FailedPrecondition(f"Order {order.order_id} is {order.state}; only a confirmed one can be cancelled.")
        await self._undo.now_or_later(order.order_id)
        return self._ledger.get(order.order_id)

    async def tally(self) -> Tally:
        return self._ledger.tally()
