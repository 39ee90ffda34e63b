"""Publishing events: keys, headers, groups that are not there, deadlines, limits, transactions, and many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from typing import Any

import pytest
from sending_support import (
    Confirmation,
    OrderPlaced,
    PageView,
    RecordingFanout,
    RecordingLog,
    RecordingQueue,
    images_over,
    mail_over,
    sender_over,
    until,
    without,
)

from polywire.bus.backend.memory import MemoryLog
from polywire.bus.core import EventLog, Fanout, Record
from polywire.bus.sending import Bus, BusWires, Sender, enqueue, enqueue_all, topics_of
from polywire.bus.sending.pending import Pending
from polywire.context import Call, _current, calling, transaction_open, transaction_or_none
from polywire.contract import Event, subscribe, subscriptions_of
from polywire.errors import (
    BackendUnreachable,
    ContractError,
    MessageRefused,
    NobodyListens,
    PartlySent,
    PublishInTransaction,
    PublishUnknown,
    SetupError,
    Unsupported,
)
from polywire.testing import ManualClock

PLACED = OrderPlaced(order_id="17", total=Decimal("9.99"))


@contextmanager
def under_way(call: Call) -> Iterator[None]:
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


# ---- what is sent ------------------------------------------------------------------------------------------------


async def test_an_event_goes_to_its_topic_with_its_type_key_and_version() -> None:
    for backend in (RecordingLog(), RecordingFanout()):
        sent = await Bus(sender_over(backend)).publish(PLACED)
        ((topic, envelope),) = backend.sent
        assert topic == "shop.orders"
        assert (envelope.id, envelope.type, envelope.key, envelope.version) == (sent, "shop.v1.OrderPlaced", "17", 2)
        assert envelope.body == b'{"order_id":"17","total":"9.99"}'
        assert envelope.source == "orders"


async def test_options_of_an_event() -> None:
    backend = RecordingLog()
    sent = await Bus(sender_over(backend, clock=ManualClock(epoch=1000.0))).publish(
        PLACED, id="mine", delay=10, key="other", expires=20, headers={"Tenant": "a"}
    )
    (envelope,) = backend.envelopes
    assert (sent, envelope.id, envelope.key, envelope.headers) == ("mine", "mine", "other", {"tenant": "a"})
    assert (envelope.not_before, envelope.expires) == (1010.0, 1020.0)


async def test_a_log_orders_any_key_and_a_fanout_only_declared_ones() -> None:
    log = RecordingLog()
    await Bus(sender_over(log)).publish(PageView(page="/"), key="visitor")
    assert log.envelopes[0].key == "visitor"
    with pytest.raises(Unsupported) as refused:
        await Bus(sender_over(RecordingFanout())).publish(PageView(page="/"), key="visitor")
    assert str(refused.value) == (
        "shop.views.PageView was not sent: key='visitor' would keep no order, as none is declared. "
        "Declare it with key='...', the name of a field."
    )


async def test_only_events_with_a_topic_are_published() -> None:
    class Base(Event):
        pass

    bus = Bus(sender_over(RecordingLog()))
    with pytest.raises(TypeError, match=r"^nothing was published: an event is wanted, not a Confirmation\.$"):
        await bus.publish(Confirmation(order_id="1"))  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ContractError, match="has no topic, so it cannot be published"):
        await bus.publish(Base())
    with pytest.raises(SetupError, match=r"^shop\.orders was not sent: there is no wire for its events\. Name one in "):
        await Bus(Sender("orders")).publish(PLACED)


async def test_each_topic_takes_its_own_wire() -> None:
    orders, rest = RecordingLog(), RecordingFanout()
    wires: Any = BusWires(default=rest, by_name={"shop.orders": orders})
    await Bus(Sender("orders", events=wires)).publish_all([PLACED, PageView(page="/"), PLACED])
    assert [topic for topic, _ in orders.sent] == ["shop.orders"] * 2
    assert [topic for topic, _ in rest.sent] == ["shop.views"]


# ---- who listens -------------------------------------------------------------------------------------------------


async def test_an_event_that_no_group_of_a_fanout_wants_is_counted() -> None:
    backend = RecordingFanout()
    backend.answers = [NobodyListens("nobody")] * 2
    sender = sender_over(backend)
    assert await Bus(sender).publish(PLACED, id="m") == "m"
    assert await Bus(sender).publish_all([PLACED, PLACED], ids=["a", "b"]) == ["a", "b"]
    counted = sender.counters["shop.v1.OrderPlaced"]
    assert (counted.confirmed, counted.unheard, counted.refused, counted.unknown) == (1, 2, 0, 0)


async def test_an_event_that_no_group_of_a_fanout_wants_is_refused_on_request() -> None:
    backend = RecordingFanout()
    backend.answers = [NobodyListens("nobody"), NobodyListens("nobody")]
    with pytest.raises(NobodyListens):
        await Bus(sender_over(backend)).publish(PLACED, require_subscriber=True)
    with pytest.raises(PartlySent) as error:
        await Bus(sender_over(backend, require_subscriber=True)).publish_all([PLACED, PLACED])
    assert list(error.value.errors) == [0]


async def test_a_log_without_groups_is_refused_on_request_and_asked_rarely() -> None:
    clock = ManualClock()
    backend = RecordingLog()
    bus = Bus(sender_over(backend, require_subscriber=True, clock=clock))
    with pytest.raises(NobodyListens) as refused:
        await bus.publish(PLACED, id="m")
    assert str(refused.value) == (
        "shop.v1.OrderPlaced was not sent to the topic 'shop.orders', id 'm': no group reads it. "
        "Start or declare one, or publish without require_subscriber."
    )
    await bus.publish(PLACED, require_subscriber=False)
    assert (len(backend.sent), backend.asked) == (1, 1)
    backend.known = ["warehouse"]
    for _ in range(5):
        await bus.publish(PLACED)
    assert (len(backend.sent), backend.asked) == (6, 2)
    await clock.advance(5)
    await bus.publish(PLACED)
    assert backend.asked == 3


# ---- time --------------------------------------------------------------------------------------------------------


async def test_the_shortest_deadline_of_the_caller_bounds_the_confirmation() -> None:
    clock = ManualClock()
    backend = RecordingLog()
    bus = Bus(sender_over(backend, clock=clock))
    await bus.publish(PLACED)
    with calling(timeout=3):
        await bus.publish(PLACED)
        with under_way(Call(deadline=clock.monotonic() + 2, clock=clock)):
            await bus.publish(PLACED)
    with calling(timeout=60):
        await bus.publish(PLACED)
    assert backend.timeouts == [10.0, 3.0, 2.0, 60.0]
    assert {envelope.expires for envelope in backend.envelopes} == {None}


async def test_an_unconfirmed_event_is_unknown_and_may_be_repeated_with_its_id() -> None:
    clock = ManualClock()
    backend = RecordingLog()
    backend.waits = asyncio.Event()
    sender = sender_over(backend, clock=clock)
    with calling(timeout=2):
        publishing = asyncio.ensure_future(Bus(sender).publish(PLACED, id="m"))
    await until(lambda: backend.under_way == 1)
    await clock.advance(2)
    assert not publishing.done()  # a moment for the backend's own answer
    await clock.advance(0.5)
    with pytest.raises(PublishUnknown) as unknown:
        await publishing
    assert unknown.value.id == "m"
    assert str(unknown.value) == (
        "shop.v1.OrderPlaced was perhaps sent to the topic 'shop.orders': nobody confirmed it within 2 s. "
        "Sending it again with id='m' is safe where its handlers use the inbox."
    )
    assert sender.counters["shop.v1.OrderPlaced"].unknown == 1
    sender.close()


async def test_our_own_alarm_leaves_no_cancellation_behind() -> None:
    """Later awaits of the same task must not be cancelled by it, and timeouts around it must work."""
    clock = ManualClock()
    backend = RecordingLog()
    backend.waits = asyncio.Event()

    async def publish() -> int:
        with calling(timeout=1), suppress(PublishUnknown):
            await Bus(sender_over(backend, clock=clock)).publish(PLACED)
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        return task.cancelling()

    publishing = asyncio.ensure_future(publish())
    await until(lambda: backend.under_way == 1)
    await clock.advance(2)
    assert await publishing == 0


async def test_a_callers_own_cancellation_goes_through() -> None:
    backend = RecordingLog()
    backend.waits = asyncio.Event()
    sender = sender_over(backend, max_pending=1)
    publishing = asyncio.ensure_future(Bus(sender).publish(PLACED))
    await until(lambda: backend.under_way == 1)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    backend.waits.set()
    await Bus(sender).publish(PLACED)  # its place is free again
    sender.close()


async def test_a_callers_own_cancellation_goes_through_in_the_moment_of_our_alarm() -> None:
    clock = ManualClock()

    class Both(RecordingLog):
        async def append(self, *arguments: Any, **options: Any) -> list[Exception | None]:
            try:
                return await super().append(*arguments, **options)
            except asyncio.CancelledError:
                publishing.cancel()
                raise

    backend = Both()
    backend.waits = asyncio.Event()
    with calling(timeout=1):
        publishing = asyncio.ensure_future(Bus(sender_over(backend, clock=clock)).publish(PLACED))
    await until(lambda: backend.under_way == 1)
    await clock.advance(2)
    with pytest.raises(asyncio.CancelledError):
        await publishing


async def test_after_the_deadline_nothing_is_sent() -> None:
    clock = ManualClock()
    backend = RecordingLog()
    with under_way(Call(deadline=clock.monotonic(), clock=clock)), pytest.raises(MessageRefused) as refused:
        await Bus(sender_over(backend, clock=clock)).publish(PLACED, id="m")
    assert str(refused.value) == (
        "shop.v1.OrderPlaced was not sent to the topic 'shop.orders', id 'm': the caller's deadline had passed. "
        "It may be sent again."
    )
    assert backend.sizes == []


async def test_what_concerns_the_whole_backend_is_raised_as_it_is() -> None:
    class Gone(RecordingLog):
        async def append(self, *arguments: Any, **options: Any) -> list[Exception | None]:
            raise BackendUnreachable("gone")

    sender = sender_over(Gone(), max_pending=1)
    for _ in range(3):
        with pytest.raises(BackendUnreachable, match=r"^gone$"):
            await Bus(sender).publish(PLACED)


# ---- limits ------------------------------------------------------------------------------------------------------


async def test_pending_messages_are_bounded_and_wait_their_turn() -> None:
    backend = RecordingLog()
    backend.waits = asyncio.Event()
    bus = Bus(sender_over(backend, max_pending=3))
    publishing = [asyncio.ensure_future(bus.publish(PLACED, id=str(i))) for i in range(10)]
    await until(lambda: backend.under_way == 3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert backend.under_way == 3
    backend.waits.set()
    assert await asyncio.gather(*publishing) == [str(i) for i in range(10)]
    assert [envelope.id for envelope in backend.envelopes] == [str(i) for i in range(10)]


async def test_who_finds_no_turn_by_the_deadline_is_refused() -> None:
    clock = ManualClock()
    backend = RecordingLog()
    backend.waits = asyncio.Event()
    bus = Bus(sender_over(backend, clock=clock, max_pending=1))
    first = asyncio.ensure_future(bus.publish(PLACED))
    await until(lambda: backend.under_way == 1)
    with calling(timeout=2):
        second = asyncio.ensure_future(bus.publish(PLACED, id="m"))
    await clock.advance(2)
    with pytest.raises(MessageRefused) as refused:
        await second
    assert str(refused.value) == (
        "shop.v1.OrderPlaced was not sent to the topic 'shop.orders', id 'm': 1 on their way are the limit, and "
        "no place was free within 2 s. It may be sent again."
    )
    backend.waits.set()
    await first
    assert len(backend.sent) == 1


async def test_many_fit_through_a_small_door() -> None:
    backend = RecordingLog()
    await Bus(sender_over(backend, max_pending=7)).publish_all([PLACED] * 20)
    assert backend.sizes == [7, 7, 6]


async def test_a_deadline_in_the_middle_of_many_says_what_was_not_sent() -> None:
    clock = ManualClock()

    class Slow(RecordingLog):
        async def append(self, *arguments: Any, **options: Any) -> list[Exception | None]:
            await clock.sleep(2)
            return await super().append(*arguments, **options)

    backend = Slow()
    bus = Bus(sender_over(backend, clock=clock, max_pending=1))
    with calling(timeout=3.9):
        publishing = asyncio.ensure_future(bus.publish_all([PLACED] * 4, ids=list("abcd")))
    await clock.advance(10)
    with pytest.raises(PartlySent) as error:
        await publishing
    assert [type(found) for found in error.value.errors.values()] == [MessageRefused, MessageRefused]
    assert list(error.value.errors) == [2, 3]
    assert [envelope.id for envelope in backend.envelopes] == ["a", "b"]


async def test_places_are_handed_over_in_order_and_never_lost() -> None:
    pending = Pending(3, ManualClock())
    assert pending.take(2)
    big = asyncio.ensure_future(pending.wait(3, 10))
    small = asyncio.ensure_future(pending.wait(1, 10))
    await asyncio.sleep(0)
    assert not pending.take(1)  # who came first goes first
    big.cancel()
    await asyncio.wait([big])
    assert await small
    assert pending.free == 0
    late = asyncio.ensure_future(pending.wait(3, 10))
    await asyncio.sleep(0)
    pending.give(3)
    late.cancel()  # in the moment in which it got its places
    await asyncio.wait([late])
    assert late.cancelled()
    assert pending.free == 3


# ---- transactions ------------------------------------------------------------------------------------------------


async def test_nothing_is_sent_inside_a_transaction() -> None:
    backend = RecordingLog()
    bus = Bus(sender_over(backend))
    queue = RecordingQueue()
    sender = sender_over(queue)
    with transaction_open("orders.db"):
        assert transaction_or_none() == "orders.db"
        for send in (
            bus.publish(PLACED),
            bus.publish_all([PLACED]),
            mail_over(sender).send_confirmation(Confirmation(order_id="1")),
            enqueue(images_over(sender).sweep),
            enqueue_all(mail_over(sender).send_confirmation, [Confirmation(order_id="1")]),
        ):
            with pytest.raises(PublishInTransaction) as refused:
                await send
            assert str(refused.value) == (
                "Nothing was sent: a transaction of 'orders.db' is open, and the message would stay sent if it were "
                "rolled back. Send it after the transaction."
            )
    assert backend.sent == queue.sent == []
    assert transaction_or_none() is None
    await bus.publish(PLACED)


async def test_a_transaction_of_one_task_does_not_stop_another() -> None:
    backend = RecordingLog()
    opened, done = asyncio.Event(), asyncio.Event()

    async def holds() -> None:
        with transaction_open("orders.db"):
            opened.set()
            await done.wait()

    holding = asyncio.ensure_future(holds())
    await opened.wait()
    await Bus(sender_over(backend)).publish(PLACED)
    done.set()
    await holding
    assert len(backend.sent) == 1


# ---- over a real log ---------------------------------------------------------------------------------------------


class Warehouse:
    @subscribe(OrderPlaced, group="warehouse")
    async def pack(self, event: OrderPlaced) -> None: ...


async def test_events_go_through_a_real_log_in_the_order_of_their_key() -> None:
    log = MemoryLog("memory:")
    await log.start()
    found = topics_of([PageView], subscriptions_of(Warehouse))
    await log.declare(found.topics, found.groups)
    wires: BusWires[EventLog | Fanout] = BusWires(default=log)
    bus = Bus(Sender("orders", events=wires, require_subscriber=True))
    try:
        with pytest.raises(NobodyListens):
            await bus.publish(PageView(page="/"))
        ids = await bus.publish_all([OrderPlaced(order_id="1", total=Decimal(i)) for i in range(50)])
        consumer = await log.consumer(["shop.orders"], "warehouse", limit=100)
        records: list[Record] = []
        async with asyncio.timeout(10):
            while len(records) < 50:
                records += await consumer.receive(100)
        assert [record.envelope.id for record in records] == ids
        assert len({record.partition for record in records}) == 1
        with pytest.raises(Unsupported, match="'memory' cannot deliver later, and delay=5 was asked for"):
            await bus.publish(PLACED, delay=5)
        await consumer.close()
    finally:
        await log.close()


async def test_a_body_over_the_limit_of_the_backend_is_refused() -> None:
    backend = RecordingLog(without(max_message_bytes=10))
    with pytest.raises(MessageRefused) as refused:
        await Bus(sender_over(backend)).publish(PLACED, id="m")
    assert str(refused.value) == (
        "The message 'm' was not sent to the topic 'shop.orders': its body has 32 bytes, the limit is 10. "
        "Put the content where both sides reach it, and send its address."
    )
