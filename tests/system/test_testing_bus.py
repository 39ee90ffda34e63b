"""Tasks and events of a system under test: sent, handled, failed, and what a test may ask about them."""

from __future__ import annotations

import asyncio
import time

import pytest

from polywire import (
    App,
    Bus,
    Contract,
    Event,
    Message,
    NotFound,
    Reject,
    Retry,
    SetupError,
    current,
    enqueue,
    rpc,
    subscribe,
    task,
    testing,
)
from polywire.testing import ManualClock


class Order(Message, package="bustest.v1"):
    order_id: str


class Thumb(Message, package="bustest.v1"):
    width: int


class OrderPaid(Event, topic="bustest.orders", key="order_id"):
    order_id: str


class Mail(Contract, package="bustest.v1"):
    @task(retry=Retry(attempts=3, base=1.0))
    async def confirm(self, order: Order) -> None:
        raise NotImplementedError

    @task
    async def shrink(self, order: Order) -> Thumb:
        raise NotImplementedError

    @task
    async def block(self, order: Order) -> None:
        raise NotImplementedError


class Orders(Contract, package="bustest.v1"):
    @rpc
    async def place(self, order: Order) -> Order:
        raise NotImplementedError


orders_app = App("orders")
mail_app = App("mail")


@orders_app.service
class OrderService(Orders):
    def __init__(self, mail: Mail, bus: Bus) -> None:
        self.mail = mail
        self.bus = bus

    async def place(self, order: Order) -> Order:
        await self.mail.confirm(order)
        await self.bus.publish(OrderPaid(order_id=order.order_id))
        return order


@mail_app.service
class MailService(Mail):
    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []
        self.blocked: list[str] = []

    async def confirm(self, order: Order) -> None:
        message = current().message
        assert message is not None
        self.sent.append((order.order_id, message.attempt))
        if order.order_id == "fails":
            raise ConnectionError("no mail server")
        if order.order_id == "never":
            raise Reject("no such address")

    async def shrink(self, order: Order) -> Thumb:
        if order.order_id == "missing":
            raise NotFound("no picture")
        return Thumb(width=64)

    def block(self, order: Order) -> None:  # type: ignore[override]  # pyright: ignore  # a thread's, so not async
        time.sleep(0.05)
        self.blocked.append(order.order_id)


@mail_app.service
class Warehouse:
    def __init__(self) -> None:
        self.packed: list[str] = []

    @subscribe(OrderPaid, group="warehouse")
    async def pack(self, event: OrderPaid) -> None:
        if event.order_id == "unpackable":
            raise Reject("too large")
        self.packed.append(event.order_id)


def test_tasks_and_events_are_handled_by_the_time_the_system_settled() -> None:
    async def scenario() -> None:
        async with testing.system(orders_app, mail_app) as system:
            await system.client(Orders).place(Order(order_id="1"))
            await system.settled()

            assert system.service(MailService).sent == [("1", 1)]
            assert system.service(Warehouse).packed == ["1"]
            assert system.published(OrderPaid) == [OrderPaid(order_id="1")]
            assert system.enqueued(Mail.confirm) == [Order(order_id="1")]
            assert system.enqueued(Mail.shrink) == []

    asyncio.run(scenario())


def test_attempts_wait_for_the_manual_clock_and_end_in_the_dead_letters() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        async with testing.system(orders_app, mail_app, clock=clock) as system:
            await system.client(Mail).confirm(Order(order_id="fails"))
            await system.settled()
            assert system.service(MailService).sent == [("fails", 1)]

            for _ in range(3):
                await clock.advance(10.0)
                await system.settled()

            assert system.service(MailService).sent == [("fails", 1), ("fails", 2), ("fails", 3)]
            (letter,) = await system.dead(Mail.confirm)
            assert (letter.reason, letter.error, letter.attempts) == ("attempts", "ConnectionError: no mail server", 3)

    asyncio.run(scenario())


def test_what_a_handler_rejects_is_dead_at_once_task_or_event() -> None:
    async def scenario() -> None:
        async with testing.system(orders_app, mail_app) as system:
            await system.client(Orders).place(Order(order_id="never"))
            await system.bus.publish(OrderPaid(order_id="unpackable"))
            await system.settled()

            (letter,) = await system.dead(Mail.confirm)
            assert (letter.reason, letter.error) == ("rejected", "no such address")
            (event,) = await system.dead(Warehouse.pack)
            assert (event.reason, event.error) == ("rejected", "too large")
            assert system.service(Warehouse).packed == ["never"]

    asyncio.run(scenario())


def test_a_result_comes_back_and_so_does_an_error_of_the_contract() -> None:
    async def scenario() -> None:
        async with testing.system(orders_app, mail_app) as system:
            mail = system.client(Mail)
            receipt = await enqueue(mail.shrink, Order(order_id="1"))
            assert await receipt.result(timeout=5) == Thumb(width=64)

            missing = await enqueue(mail.shrink, Order(order_id="missing"))
            await system.settled()
            for letter in await system.dead(Mail.shrink):
                assert letter.error == "NotFound: no picture"

            assert missing.id != receipt.id

    asyncio.run(scenario())


def test_a_handler_in_a_thread_counts_as_work_under_way() -> None:
    async def scenario() -> None:
        async with testing.system(orders_app, mail_app) as system:
            await enqueue(system.client(Mail).block, Order(order_id="1"))
            await system.settled()

            assert system.service(MailService).blocked == ["1"]

    asyncio.run(scenario())


def test_a_delayed_task_waits_for_its_time() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        async with testing.system(orders_app, mail_app, clock=clock) as system:
            await enqueue(system.client(Mail).confirm, Order(order_id="later"), delay=3600)
            await system.settled()
            assert system.service(MailService).sent == []

            await clock.advance(3601)
            await system.settled()
            assert system.service(MailService).sent == [("later", 1)]

    asyncio.run(scenario())


class FakeMail(Mail):
    def __init__(self) -> None:
        self.confirmed: list[str] = []

    async def confirm(self, order: Order) -> None:
        self.confirmed.append(order.order_id)

    async def shrink(self, order: Order) -> Thumb:
        return Thumb(width=1)

    async def block(self, order: Order) -> None: ...


def test_a_fake_handles_the_tasks_of_the_contract_it_stands_for() -> None:
    async def scenario() -> None:
        fake = FakeMail()
        async with testing.system(orders_app, replace={Mail: fake}) as system:
            await system.client(Orders).place(Order(order_id="1"))
            await system.settled()

            assert fake.confirmed == ["1"]

    asyncio.run(scenario())


half_app = App("half")


@half_app.service
class Half(Mail):
    async def confirm(self, order: Order) -> None: ...


def test_a_task_without_a_method_is_refused_at_the_start() -> None:
    async def scenario() -> None:
        async with testing.system(half_app):
            raise AssertionError("it started")

    with pytest.raises(SetupError) as caught:
        asyncio.run(scenario())
    assert str(caught.value) == (
        "Half implements bustest.v1.Mail, but not its task shrink. Its messages would wait for ever: write the method, "
        "or leave the contract to another service."
    )
