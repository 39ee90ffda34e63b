"""The whole shop in one process: real clients between its services, over the local wire."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from customers import Outcome, Report, crowd
from shop.analytics import app as analytics
from shop.api_v1 import GatewayV1, NewOrder
from shop.backoffice import Mail
from shop.contracts import (
    Balance,
    Charge,
    ChargeId,
    ChargeState,
    ChatMessage,
    Inventory,
    Item,
    NewUser,
    OrdersOf,
    OutOfStock,
    Payment,
    Payments,
    Reserve,
    StockWatch,
    UserList,
    Users,
)
from shop.gateway import app as gateway
from shop.images import app as images
from shop.inventory import app as inventory
from shop.mail import app as mail
from shop.orders import app as orders
from shop.payments import app as payments
from shop.users import app as users
from shop.warehouse import app as warehouse
from shop_support import BARGAIN, GOOD_CARD, LetterBox

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import InvalidArgument, Unavailable
from polywire.testing import ManualClock
from polywire.testing.system import System, system


@pytest.fixture(autouse=True)
def _databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DATA", str(tmp_path))


@contextlib.asynccontextmanager
async def the_shop(replace: dict[type, object] | None = None, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[System]:
    """With *replace*, payments or something else of the test in place of the real ones; letters are never sent."""
    fakes = {Mail: LetterBox(), **(replace or {})}
    everything = (gateway, inventory, orders, payments, users, mail, images, warehouse, analytics)
    replaced = {app for app in everything if set(app.contracts) & set(fakes)}
    async with system(*(app for app in everything if app not in replaced), replace=fakes, clock=clock) as running:
        yield running


async def test_the_books_balance_after_a_crowd_of_customers() -> None:
    report = Report()
    # All at once in one process, on however slow a machine: time stands still, so that nobody's deadline comes.
    async with the_shop(clock=ManualClock()) as shop:
        await crowd(shop.client(GatewayV1), report, customers=120, seed=3, over=0.2, patience=0.0)
        books = await shop.client(GatewayV1).get_books()
    assert books.problems == []
    assert report.failures.total() == 0
    assert report.asked == report.outcomes.total() > 60
    assert min(report.outcomes[outcome] for outcome in (Outcome.PLACED, Outcome.DECLINED, Outcome.OUT_OF_STOCK)) > 0
    assert books.orders.confirmed_cents == report.spent_cents > 0


async def test_an_error_keeps_its_class_and_fields_on_its_way_through_three_services() -> None:
    async with the_shop() as shop:
        with pytest.raises(OutOfStock) as refusal:
            await shop.client(GatewayV1).place_order(
                NewOrder(user_id="U-1", items=[Item(product_id=BARGAIN, quantity=2)], card=GOOD_CARD)
            )
    assert refusal.value == OutOfStock(product_id=BARGAIN, wanted=2, on_hand=1)


async def test_a_request_that_violates_the_contract_is_refused_with_the_field_at_fault() -> None:
    async with the_shop() as shop:
        with pytest.raises(InvalidArgument) as refusal:
            await shop.client(GatewayV1).place_order(
                NewOrder(user_id="U-1", items=[Item(product_id=BARGAIN, quantity=0)], card=GOOD_CARD)
            )
    assert refusal.value.field == "items[0].quantity"


class PaymentsOutOfOrder(Payments):
    """Nobody at the till: charges do not get through."""

    async def charge(self, request: Charge) -> Payment:
        raise Unavailable("nobody at the till")

    async def refund(self, request: ChargeId) -> Payment:
        return Payment(charge_id=request.charge_id, state=ChargeState.VOID, amount_cents=0, card_ending="")

    async def get_balance(self) -> Balance:
        return Balance(charges=0, charged_cents=0, refunds=0, refunded_cents=0, declined=0)


async def test_without_payments_nothing_is_sold_and_nothing_stays_reserved() -> None:
    async with the_shop({Payments: PaymentsOutOfOrder()}) as shop:
        client = shop.client(GatewayV1)
        with pytest.raises(Unavailable):
            await client.place_order(
                NewOrder(user_id="U-1", items=[Item(product_id=BARGAIN, quantity=1)], card=GOOD_CARD)
            )
        books = await client.get_books()
        assert books.orders.by_state == {"failed": 1}
        assert books.stock.on_hand == books.stock.initial
        assert books.problems == []
        assert (await client.list_orders(OrdersOf(user_id="U-1"))).items[0].reason == "nobody at the till"


async def test_all_kinds_of_streams_work_between_the_services() -> None:
    async def newcomers() -> AsyncIterator[NewUser]:
        for number in range(3):
            yield NewUser(name=f"New {number}", email=f"new{number}@example.com", city="Nowhere")

    async def questions() -> AsyncIterator[ChatMessage]:
        yield ChatMessage(text="hello")
        yield ChatMessage(text="bye")

    async with the_shop() as shop:
        people = shop.client(Users)
        created = await people.create_users(newcomers())
        assert [user.user_id async for user in people.list_users(UserList(city="Nowhere"))] == created.user_ids
        assert [answer.text async for answer in people.chat(questions())] == [
            "Hello. How can I help?",
            "Goodbye. You asked 0 questions today.",
        ]
        warehouse = shop.client(Inventory)
        stock = warehouse.watch(StockWatch(product_ids=[BARGAIN]))
        assert (await anext(stock)).quantity == 1
        await warehouse.reserve(Reserve(reservation_id="r", items=[Item(product_id=BARGAIN, quantity=1)]))
        assert (await anext(stock)).quantity == 0
