"""What follows from orders: told as events, and done by letters, parcels, pictures, statistics and recommendations."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from email import message_from_bytes
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiosmtpd.controller import Controller
from demo import free_port
from shop.analytics import app as analytics
from shop.api_v1 import GatewayV1, NewOrder
from shop.backoffice import (
    Activity,
    Analytics,
    Companion,
    Confirmation,
    Images,
    Mail,
    Recommendations,
    Resize,
    Warehouse,
)
from shop.contracts import Item, Order, OrderId, OrderLine, OrderState, PlaceOrder, ProductQuery
from shop.events import OrderCancelled, OrderConfirmed, OrderCreated, OrderEvent, OrderPaid, PageView
from shop.gateway import app as gateway
from shop.images import app as images
from shop.inventory import app as inventory
from shop.mail import app as mail
from shop.orders import app as orders
from shop.payments import app as payments
from shop.users import app as users
from shop.views import MOST_WAITING, PageViews
from shop.warehouse import app as warehouse
from shop_support import BAD_CARD, GOOD_CARD, Listening, hand_made_shop, order

from polywire import FailedPrecondition, MessageRefused, NotFound, enqueue
from polywire.testing import ManualClock
from polywire.testing.system import System, system

EVERYTHING = (gateway, inventory, orders, payments, users, mail, images, warehouse, analytics)
SOON = 20.0


class PostOffice:
    """A mail server: what it got, and what it answers."""

    def __init__(self) -> None:
        self.letters: list[str] = []
        """Subjects."""
        self.texts: list[str] = []
        self.refusals: list[str] = []
        """What it answers instead of taking a recipient, one for each time."""

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if self.refusals:
            return self.refusals.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        letter = message_from_bytes(envelope.content)
        assert letter["To"] == envelope.rcpt_tos[0]
        self.letters.append(letter["Subject"])
        self.texts.append(str(letter.get_payload()))
        return "250 OK"


@pytest.fixture(autouse=True)
def _databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DATA", str(tmp_path))


@pytest.fixture
def post_office(monkeypatch: pytest.MonkeyPatch) -> Iterator[PostOffice]:
    office = PostOffice()
    with opened(office) as address:
        monkeypatch.setenv("SHOP_SMTP", address)
        yield office


@contextlib.contextmanager
def opened(office: PostOffice, port: int = 0) -> Iterator[str]:
    """Where it listens."""
    controller = Controller(office, hostname="127.0.0.1", port=port or free_port())
    controller.start()
    try:
        yield f"127.0.0.1:{controller.port}"
    finally:
        controller.stop()


async def all_done(shop: System, clock: ManualClock) -> None:
    """All that follows is done, gathering batches and page views included."""
    await shop.settled()
    for _ in range(2):
        await clock.advance(0.3)
        await shop.settled()


async def buy(shop: System, *product_ids: str, card: str = GOOD_CARD) -> Order:
    items = [Item(product_id=product_id, quantity=2) for product_id in product_ids]
    return await shop.client(GatewayV1).place_order(NewOrder(user_id="U-1", items=items, card=card))


# An order and what follows


async def test_an_order_is_told_packed_counted_learnt_from_and_its_customer_gets_a_letter(
    post_office: PostOffice,
) -> None:
    clock = ManualClock()
    async with system(*EVERYTHING, clock=clock) as shop:
        placed = await buy(shop, "SKU-123", "SKU-124")
        await all_done(shop, clock)
        assert [told_by(shop, kind) for kind in (OrderCreated, OrderPaid, OrderConfirmed, OrderCancelled)] == [
            [placed.order_id], [placed.order_id], [placed.order_id], []
        ]  # fmt: skip
        assert shop.published(OrderConfirmed)[0].lines == placed.lines
        assert shop.published(OrderPaid)[0].amount_cents == placed.total_cents
        assert post_office.letters == [f"Your order {placed.order_id}"]
        assert "2 x Folding Slate Desk Lamp" in post_office.texts[0]
        office = await shop.client(GatewayV1).get_backoffice()
        assert (office.mails.sent, office.baskets.orders, office.baskets.pairs) == (1, 1, 1)
        assert (office.parcels.packed, office.parcels.units) == (1, 4)
        activity = await shop.client(Analytics).get_activity()
        assert (activity.orders, activity.revenue_cents) == (1, placed.total_cents)
        assert activity.days[0].day == placed.placed_at.date().isoformat()


def told_by(shop: System, kind: type[OrderEvent]) -> list[str]:
    return [event.order_id for event in shop.published(kind)]


async def test_a_cancelled_order_is_unpacked_and_no_longer_counted(post_office: PostOffice) -> None:
    clock = ManualClock()
    async with system(*EVERYTHING, clock=clock) as shop:
        placed = await buy(shop, "SKU-123")
        await all_done(shop, clock)
        assert (await shop.client(Analytics).get_activity()).orders == 1
        await shop.client(GatewayV1).cancel_order(OrderId(order_id=placed.order_id))
        await all_done(shop, clock)
        assert shop.published(OrderCancelled) == [
            OrderCancelled(order_id=placed.order_id, outcome=OrderState.CANCELLED, reason="Cancelled by the customer.")
        ]
        parcels = await shop.client(Warehouse).count_parcels()
        assert (parcels.packed, parcels.unpacked, parcels.units) == (0, 1, 0)
        activity = await shop.client(Analytics).get_activity()
        assert (activity.orders, activity.revenue_cents) == (0, 0)


async def test_an_order_that_is_declined_ends_as_cancelled_without_letter_or_parcel(post_office: PostOffice) -> None:
    async with system(*EVERYTHING) as shop:
        with pytest.raises(FailedPrecondition):
            await buy(shop, "SKU-123", card=BAD_CARD)
        await shop.settled()
        (created,), (cancelled,) = shop.published(OrderCreated), shop.published(OrderCancelled)
        assert created.order_id == cancelled.order_id
        assert (cancelled.outcome, cancelled.reason) == (OrderState.DECLINED, "The card ending in 0002 was declined.")
        assert (shop.published(OrderPaid), shop.published(OrderConfirmed)) == ([], [])
        assert post_office.letters == []
        assert (await shop.client(Warehouse).count_parcels()).unpacked == 0


LINES = [OrderLine(product_id=f"SKU-{n}", name=f"Thing {n}", quantity=1, price_cents=500) for n in (1, 2)]
CONFIRMED = OrderConfirmed(
    order_id="ord-1", user_id="U-1", placed_at=datetime(2026, 3, 1, 23, tzinfo=UTC), lines=LINES, total_cents=1000
)
CANCELLED = OrderCancelled(order_id="ord-1", outcome=OrderState.CANCELLED, reason="")
BEHIND = (warehouse, analytics)


async def test_what_is_told_twice_counts_once() -> None:
    view = PageView(view_id="v", product_id="SKU-1", at=datetime(2026, 3, 1, tzinfo=UTC))
    clock = ManualClock()
    async with system(*BEHIND, clock=clock) as shop:
        for _ in range(2):
            await shop.bus.publish_all([CONFIRMED, CONFIRMED, view, view])
            await all_done(shop, clock)
        assert (await shop.client(Warehouse).count_parcels()).packed == 1
        assert (await shop.client(Recommendations).count_baskets()).pairs == 1
        activity = await shop.client(Analytics).get_activity()
        assert (activity.views, activity.orders, activity.revenue_cents) == (1, 1, 1000)
        for _ in range(2):
            await shop.bus.publish_all([CANCELLED, CANCELLED])
            await all_done(shop, clock)
        assert (await shop.client(Warehouse).count_parcels()).unpacked == 1
        activity = await shop.client(Analytics).get_activity()
        assert (activity.orders, activity.revenue_cents, activity.days[0].orders) == (0, 0, 0)


async def test_at_night_a_report_of_the_day_is_written_and_stays_as_it_is() -> None:
    clock = ManualClock()  # it is 22:13:20
    async with system(*BEHIND, clock=clock) as shop:
        books = shop.client(Analytics)
        today = datetime.fromtimestamp(clock.time(), UTC)
        evening = msgspec.structs.replace(CONFIRMED, placed_at=today)
        await shop.bus.publish(evening)
        await all_done(shop, clock)
        assert (await books.list_reports()).items == []
        await clock.advance(2 * 3600)
        await all_done(shop, clock)
        reports = (await books.list_reports()).items
        assert [(report.day, report.orders, report.revenue_cents) for report in reports] == [("2023-11-14", 1, 1000)]
        assert reports[0].written_at.isoformat(timespec="minutes") == "2023-11-15T00:05+00:00"
        await shop.bus.publish(CANCELLED)
        await all_done(shop, clock)
        await clock.advance(24 * 3600)
        await all_done(shop, clock)
        assert (await books.list_reports()).items == reports
        assert len(shop.enqueued(Analytics.close_days)) == 2


async def test_a_cancellation_that_comes_before_its_confirmation_counts() -> None:
    clock = ManualClock()
    async with system(*BEHIND, clock=clock) as shop:
        for event in (CANCELLED, CONFIRMED):
            await shop.bus.publish(event)
            await all_done(shop, clock)
        parcels = await shop.client(Warehouse).count_parcels()
        assert (parcels.packed, parcels.unpacked) == (0, 0)
        assert (await shop.client(Analytics).get_activity()) == Activity(
            views=0, top=[], days=[], orders=0, revenue_cents=0
        )


async def test_the_most_frequent_companions_come_first_and_are_counted_anew_after_forgetting() -> None:
    def basket(number: int, *products: int) -> OrderConfirmed:
        lines = [OrderLine(product_id=f"SKU-{n}", name="", quantity=1, price_cents=1) for n in products]
        return OrderConfirmed(
            order_id=f"ord-{number}", user_id="U-1", placed_at=CONFIRMED.placed_at, lines=lines, total_cents=1
        )

    baskets = [basket(1, 1, 2), basket(2, 1, 3), basket(3, 1, 3, 2), basket(4, 1, 3), basket(5, 4)]
    expected = [Companion(product_id="SKU-3", orders=3), Companion(product_id="SKU-2", orders=2)]
    async with system(*BEHIND) as shop:
        advice = shop.client(Recommendations)
        await shop.bus.publish_all(baskets)
        await shop.settled()
        assert (await advice.recommend(ProductQuery(product_id="SKU-1"))).companions == expected
        assert (await advice.recommend(ProductQuery(product_id="SKU-4"))).companions == []
        assert (await advice.forget()).orders == 0
        assert (await advice.recommend(ProductQuery(product_id="SKU-1"))).companions == []
        await shop.bus.publish_all(baskets)  # as a replay does
        await shop.settled()
        assert (await advice.recommend(ProductQuery(product_id="SKU-1"))).companions == expected


# Orders whose bus is in trouble

TROUBLE = MessageRefused("the bus is down")


async def test_an_order_stands_although_nobody_could_be_told(caplog: pytest.LogCaptureFixture) -> None:
    with hand_made_shop() as shop:
        shop.bus.trouble = shop.mail.trouble = TROUBLE
        request = order()
        placed = await shop.orders.place(
            PlaceOrder(key="k", user_id="U-1", items=request.items, card=request.card, email="ada@example.com")
        )
        assert placed.state is OrderState.CONFIRMED
        assert await shop.problems() == []
    said = f"order {placed.order_id} goes on, but not everybody knows: the bus is down"
    letter = f"order {placed.order_id} is confirmed, but its customer gets no letter: the bus is down"
    assert [record.getMessage() for record in caplog.records] == [said, said, said, letter]


async def test_a_cancelled_order_stays_in_undoing_until_it_could_be_told() -> None:
    with hand_made_shop() as shop:
        placed = await shop.orders.place(order())
        shop.bus.trouble = TROUBLE
        assert (await shop.orders.cancel(OrderId(order_id=placed.order_id))).state is OrderState.UNDOING
        await shop.undo.sweep()
        assert await shop.state_of(placed) is OrderState.UNDOING
        shop.bus.trouble = None
        await shop.undo.sweep()
        assert await shop.state_of(placed) is OrderState.CANCELLED
        assert [type(event) for event in shop.bus.told] == [OrderCreated, OrderPaid, OrderConfirmed, OrderCancelled]
        books = await shop.v1.get_books()
        assert (books.problems, books.money.refunds) == ([], 1)


async def test_an_order_without_an_address_gets_no_letter_and_one_with_gets_one() -> None:
    with hand_made_shop() as shop:
        await shop.orders.place(order())
        assert shop.mail.letters == []
        placed = await shop.v1.place_order(
            NewOrder(user_id="U-1", items=[Item(product_id="SKU-123", quantity=1)], card=GOOD_CARD)
        )
        (letter,) = shop.mail.letters
        assert (letter.order_id, letter.total_cents, letter.lines) == (
            placed.order_id, placed.total_cents, placed.lines
        )  # fmt: skip
        assert "@" in letter.email


# Page views


async def test_a_product_that_is_looked_at_is_told_a_moment_later_and_one_that_does_not_exist_is_not() -> None:
    with hand_made_shop() as shop:
        await shop.v1.get_product(ProductQuery(product_id="SKU-123"))
        with pytest.raises(NotFound):
            await shop.v1.get_product(ProductQuery(product_id="SKU-1"))
        assert shop.bus.told == []
        telling = asyncio.create_task(shop.views.keep_telling())
        await shop.clock.advance(0.1)
        telling.cancel()
        (view,) = shop.bus.told
        assert isinstance(view, PageView)
        assert (view.product_id, view.at.timestamp()) == ("SKU-123", shop.clock.time() - 0.1)


async def test_browsing_goes_on_where_views_cannot_be_told_and_the_log_has_how_many_were_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with hand_made_shop() as shop:
        shop.bus.trouble = TROUBLE
        for _ in range(3):
            assert (await shop.v1.get_product(ProductQuery(product_id="SKU-123"))).units > 0
        await shop.views.tell()
        assert shop.views.lost == 3
        shop.bus.trouble = None
        await shop.v1.get_product(ProductQuery(product_id="SKU-123"))
        await shop.views.tell()
        assert (shop.views.lost, len(shop.bus.told)) == (3, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "page views could not be told: the bus is down",
        "3 page views will not be counted",
    ]


async def test_of_too_many_views_the_oldest_are_lost() -> None:
    bus = Listening()
    views = PageViews(bus, ManualClock())
    for number in range(MOST_WAITING + 7):
        views.seen(f"SKU-{number}")
    await views.tell()
    assert (views.lost, len(bus.told)) == (7, MOST_WAITING)
    assert isinstance(bus.told[0], PageView)
    assert bus.told[0].product_id == "SKU-7"


async def test_views_that_wait_when_the_shop_closes_are_told_before_it_does() -> None:
    async with system(*EVERYTHING, clock=ManualClock()) as shop:
        await shop.client(GatewayV1).get_product(ProductQuery(product_id="SKU-123"))
        assert shop.published(PageView) == []
    assert [view.product_id for view in shop.published(PageView)] == ["SKU-123"]


# Letters

LETTER = Confirmation(order_id="ord-1", email="ada@example.com", lines=LINES, total_cents=1000)


@contextlib.asynccontextmanager
async def post(clock: ManualClock) -> AsyncIterator[System]:
    async with system(mail, clock=clock) as shop:
        yield shop


async def test_a_letter_that_is_asked_for_twice_is_sent_once(post_office: PostOffice) -> None:
    async with post(ManualClock()) as shop:
        for _ in range(2):
            await shop.client(Mail).send_confirmation(LETTER)
        await shop.settled()
        await shop.client(Mail).send_confirmation(LETTER)
        await shop.settled()
        assert post_office.letters == ["Your order ord-1"]
        assert (await shop.client(Mail).count_mails()).sent == 1


async def test_letters_wait_for_a_mail_server_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, office, port = ManualClock(), PostOffice(), free_port()
    monkeypatch.setenv("SHOP_SMTP", f"127.0.0.1:{port}")
    async with post(clock) as shop:
        await shop.client(Mail).send_confirmation(LETTER)
        await shop.settled()
        for _ in range(3):
            await clock.advance(150)
            await shop.settled()
        assert await shop.dead(Mail.send_confirmation) == []
        with opened(office, port):
            await clock.advance(150)
            await shop.settled()
        assert office.letters == ["Your order ord-1"]


async def test_an_address_that_is_refused_for_good_is_a_dead_letter_and_one_refused_for_now_is_not(
    post_office: PostOffice,
) -> None:
    clock = ManualClock()
    async with post(clock) as shop:
        post_office.refusals = ["450 the box is full", "550 nobody of that name"]
        await shop.client(Mail).send_confirmation(LETTER)
        await shop.settled()
        assert await shop.dead(Mail.send_confirmation) == []
        await clock.advance(150)
        await shop.settled()
        (dead,) = await shop.dead(Mail.send_confirmation)
        assert (dead.reason, dead.error, dead.attempts) == (
            "rejected", "'ada@example.com' gets no mail: 550 nobody of that name", 2
        )  # fmt: skip
        assert post_office.letters == []


# Pictures


async def test_a_picture_is_shrunk_kept_and_its_result_comes_back() -> None:
    async with system(images) as shop:
        pictures = shop.client(Images)
        request = Resize(product_id="SKU-123", width=16)
        with pytest.raises(NotFound) as missing:
            await pictures.find_thumb(request)
        assert str(missing.value) == "There is no picture of 'SKU-123' that is 16 pixels wide (yet)."
        asked = [await enqueue(pictures.resize, request) for _ in range(2)]
        thumb, again = [await receipt.result(timeout=SOON) for receipt in asked]
        assert thumb == again == await pictures.find_thumb(request)
        assert (await pictures.count_pictures()).made == 1
    width, height, rows = read_png(thumb.png)
    assert (width, height, len(rows)) == (16, 16, 16 * (1 + 3 * 16))


def read_png(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and unpacked rows, all checksums verified."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.pack(">I", zlib.crc32(kind + data)) == png[at + 8 + length : at + 12 + length]
        chunks[kind], at = data, at + 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    return width, height, zlib.decompress(chunks[b"IDAT"])
