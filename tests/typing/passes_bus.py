"""What users write about tasks and events, as both type checkers accept it; checked, not run."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import assert_type
from uuid import UUID

from polywire import (
    Batch,
    BatchFailed,
    Bus,
    Contract,
    Cron,
    Event,
    Every,
    Message,
    PartlySent,
    PublishUnknown,
    Receipt,
    Reject,
    Retry,
    RetryLater,
    Where,
    current,
    enqueue,
    enqueue_all,
    receipt,
    rpc,
    subscribe,
    task,
)


class Confirmation(Message):
    order_id: str


class Resize(Message):
    picture: str
    width: int = 100


class Thumb(Message):
    picture: str
    data: bytes


class Mail(Contract, package="shop.v1"):
    @task(retry=Retry(attempts=5, give_up_on=(ValueError,)), timeout=30, key="order_id")
    async def send_confirmation(self, mail: Confirmation) -> None: ...


class Images(Contract, package="shop.v1"):
    @task(runs_in="process", priorities=3, priority=1, concurrency=2, rate=10.0, result_ttl=60)
    async def resize(self, request: Resize) -> Thumb:
        raise NotImplementedError

    @task(queue="nightly", schedule=Cron("0 3 * * *", zone="Europe/Berlin", missed="all"))
    async def report(self) -> None: ...

    @task(queue="sweep", schedule=Every(60.0, missed="skip"), at_most_once=True)
    async def sweep(self) -> None: ...

    @task
    async def plain(self, request: Resize) -> Thumb:
        raise NotImplementedError

    @rpc
    async def look(self, request: Resize) -> Thumb:
        raise NotImplementedError


class ShopEvent(Event, package="shop.v1"):
    note: str = ""


class OrderPlaced(ShopEvent, topic="shop.orders", key="order_id"):
    order_id: str
    total: Decimal


class OrderPaid(ShopEvent, topic="shop.orders", key="order_id", version=2, name="Paid"):
    order_id: str
    by: UUID


class PageView(Event, topic="shop.views", frozen=True):
    page: str


placed = OrderPlaced(order_id="1", total=Decimal(1), note="")
assert_type(placed.order_id, str)
assert_type(placed.note, str)


class Warehouse:
    @subscribe(OrderPlaced, group="warehouse")
    async def pack(self, event: OrderPlaced) -> None:
        if not event.order_id:
            raise Reject("an order has an id")
        raise RetryLater(after=5)

    @subscribe(
        OrderPaid,
        group="audit",
        retry=Retry(attempts=2, base=0.1, cap=1, retry_on=(OSError,)),
        timeout=5,
        where=Where("shop.v1.#", headers={"tenant": "a"}),
        on_dead="park_key",
        once=True,
        runs_in="thread",
        concurrency=3,
        start="latest",
    )
    def audit(self, event: OrderPaid) -> None:
        message = current().message
        if message is not None:
            assert_type(message.attempt, int)
            assert_type(message.key, str | None)
            message.extend(10)

    @subscribe(PageView, group="analytics", batch=Batch(500, wait=0.2))
    async def count(self, views: Sequence[PageView]) -> None:
        for view in views:
            assert_type(view, PageView)
        raise BatchFailed({0: ValueError()})

    @subscribe(OrderPlaced, OrderPaid, group="both")
    async def either(self, event: OrderPlaced | OrderPaid) -> None:
        assert_type(event.order_id, str)

    @subscribe(OrderPlaced, group="all")
    async def anything(self, event: Event) -> None: ...


class Shop:
    def __init__(self, mail: Mail, images: Images, bus: Bus) -> None:
        self.mail = mail
        self.images = images
        self.bus = bus

    async def place(self) -> None:
        assert_type(await self.bus.publish(placed, id="1", delay=1, key="a", expires=5, headers={"a": "b"}), str)
        assert_type(await self.bus.publish_all([placed, PageView(page="/")]), list[str])
        await self.mail.send_confirmation(Confirmation(order_id="1"))
        later = await enqueue(self.images.resize, Resize(picture="a"), delay=3600, priority=2)
        assert_type(later, Receipt[Thumb])
        assert_type(await later.result(timeout=5), Thumb)
        assert_type(await later.cancel(), bool)
        assert_type(await later.move(1e9), bool)
        assert_type(await enqueue(self.images.report), Receipt[None])
        assert_type(await enqueue(self.mail.send_confirmation, Confirmation(order_id="1")), Receipt[None])
        assert_type(receipt(self.images.resize, later.id), Receipt[Thumb])
        assert_type(receipt(self.images.report, "id"), Receipt[None])
        try:
            many = await enqueue_all(self.images.resize, [Resize(picture="a"), Resize(picture="b")], ids=["1", "2"])
            assert_type(many, list[Receipt[Thumb]])
        except PartlySent as error:
            assert_type(error.errors, dict[int, Exception])
            assert_type(error.ids, tuple[str, ...])
        except PublishUnknown as error:
            assert_type(error.id, str)


async def test_of_a_user() -> None:
    warehouse = Warehouse()
    await warehouse.pack(placed)
    await warehouse.count([PageView(page="/")])
    await warehouse.either(placed)
    warehouse.audit(OrderPaid(order_id="1", by=UUID(int=0)))
