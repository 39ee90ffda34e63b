"""What is special about the memory backend: its names, its bounds, its clock, and what its errors say."""

from __future__ import annotations

import asyncio
import gc
import secrets
from typing import Any

import pytest

from polywire.bus.backend.memory import MemoryFanout, MemoryLog, MemoryQueue
from polywire.bus.backend.memory import log as log_module
from polywire.bus.backend.memory import queue as queue_module
from polywire.bus.backend.opening import open_events, open_tasks
from polywire.bus.core import (
    Ack,
    Binding,
    Bury,
    Delivery,
    Envelope,
    GroupSpec,
    QueueConsumer,
    QueueSpec,
    Record,
    RetryAfter,
    Seek,
    Settlement,
    TopicSpec,
    new_id,
)
from polywire.bus.core.envelope import pack
from polywire.clock import SYSTEM_CLOCK
from polywire.errors import BackendLost, MessageRefused, NobodyListens, SetupError
from polywire.testing import ManualClock, settle


def message(text: str = "1", **fields: Any) -> Envelope:
    return Envelope(fields.pop("id", new_id()), "shop.v1.Mail", text.encode(), **fields)


async def queue_at(url: str = "memory:", *, clock: Any = None, **spec: Any) -> MemoryQueue:
    queue = MemoryQueue(url, clock=clock or ManualClock())
    await queue.start()
    await queue.declare([QueueSpec(name="mails", **spec)])
    return queue


async def log_at(url: str = "memory:", *, clock: Any = None, group: str = "billing", **spec: Any) -> MemoryLog:
    log = MemoryLog(url, clock=clock or ManualClock())
    await log.start()
    topic = TopicSpec(name="orders", **{"partitions": 1, **spec})
    await log.declare([topic], [GroupSpec(topic="orders", group=group)])
    return log


async def ack(consumer: QueueConsumer, deliveries: list[Delivery]) -> None:
    await consumer.settle((), deliveries)
    await consumer.settle([Settlement(delivery, Ack()) for delivery in deliveries])


# ---- names and sharing -----------------------------------------------------------------------------------------------


def test_urls_of_memory_open_its_queues_and_its_logs() -> None:
    assert type(open_tasks("memory:")) is MemoryQueue
    assert type(open_events("memory:")) is MemoryLog


async def test_two_without_a_name_share_nothing() -> None:
    clock = ManualClock()
    one, two = await queue_at(clock=clock), await queue_at(clock=clock)
    await one.send("mails", [message()])
    assert ((await one.stats("mails")).ready, (await two.stats("mails")).ready) == (1, 0)


async def test_two_of_one_name_share_their_queues_and_two_names_do_not() -> None:
    clock = ManualClock()
    one, two, other = [await queue_at(f"memory:{name}", clock=clock) for name in ("shared", "shared", "other")]
    await one.send("mails", [message()])
    ready = [(await queue.stats("mails")).ready for queue in (one, two, other)]
    assert ready == [1, 1, 0]
    await one.close()
    (got,) = await (await two.consumer("mails", limit=1)).receive(1)
    assert got.envelope.body == b"1"


async def test_a_name_is_forgotten_with_the_last_one_that_has_it() -> None:
    name = f"memory:{secrets.token_hex(4)}"
    clock = ManualClock()
    queue, log = await queue_at(name, clock=clock), await log_at(name, clock=clock)
    await queue.send("mails", [message()])
    await log.append("orders", [message()])
    del queue, log
    gc.collect()
    assert (await (await queue_at(name)).stats("mails")).ready == 0
    assert (await (await log_at(name)).stats("orders", "billing")).lag == 0


async def test_a_name_in_use_with_another_clock_is_refused() -> None:
    queue = await queue_at("memory:timed")
    with pytest.raises(SetupError) as caught:
        MemoryQueue("memory:timed", clock=ManualClock())
    assert str(caught.value) == (
        "'memory:timed' was not opened: it is in use here with another clock. Hand the same one to both."
    )
    await queue.close()


def test_an_odd_name_is_refused() -> None:
    with pytest.raises(SetupError) as caught:
        MemoryQueue("memory:a?b=c")
    assert str(caught.value) == (
        "'a?b=c' is no name of a memory backend. Use letters from A to z, digits, '.', '-' and '_', "
        "such as 'shop.mails'."
    )


def test_a_named_queue_that_outlives_its_event_loop_still_rings() -> None:
    async def first() -> MemoryQueue:
        queue = await queue_at("memory:outlives", clock=SYSTEM_CLOCK)
        await queue.send("mails", [message(not_before=SYSTEM_CLOCK.time() + 0.05)])
        await queue.close()
        return queue

    async def second(queue: MemoryQueue) -> bytes:
        await queue.start()
        async with asyncio.timeout(5):
            (got,) = await (await queue.consumer("mails", limit=1)).receive(1)
        return got.envelope.body

    kept = asyncio.run(first())
    assert asyncio.run(second(kept)) == b"1"


# ---- what is refused, and how ----------------------------------------------------------------------------------------


async def test_what_cannot_be_sent_says_why() -> None:
    queue = await queue_at()
    (gone,) = await queue.send("letters", [message(id="m1")])
    assert str(gone) == (
        "The message 'm1' was not sent: there is no queue 'letters'. "
        "Declare it, with `polywire bus apply` or when the service starts."
    )
    (large,) = await queue.send("mails", [message("x" * (16 * 1024 * 1024 + 1), id="m2")])
    assert str(large) == (
        "The message 'm2' was not sent to the queue 'mails': its body has 16777217 bytes, the limit is 16777216. "
        "Put the content where both sides reach it, and send its address."
    )
    await queue.close()
    (closed,) = await queue.send("mails", [message(id="m3")])
    assert str(closed) == "The message 'm3' was not sent to the queue 'mails': 'memory:' is not open."
    assert {type(error) for error in (gone, large, closed)} == {MessageRefused}


async def test_a_full_queue_refuses_more_until_something_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "MAX_MESSAGES", 3)
    queue = await queue_at()
    assert await queue.send("mails", [message() for _ in range(3)]) == [None] * 3
    (refused,) = await queue.send("mails", [message(id="m4")])
    assert str(refused) == (
        "The message 'm4' was not sent: the queue 'mails' is full, with 3 messages. "
        "Try again when some are done, or start more workers."
    )
    consumer = await queue.consumer("mails", limit=1)
    (got,) = await consumer.receive(1)
    await consumer.settle([Settlement(got, Bury("rejected"))])
    # The dead ones take room as well.
    assert isinstance((await queue.send("mails", [message()]))[0], MessageRefused)
    await ack(consumer, await consumer.receive(1))
    assert await queue.send("mails", [message()]) == [None]


async def test_a_queue_that_exists_otherwise_names_every_difference() -> None:
    queue = await queue_at()
    with pytest.raises(SetupError) as caught:
        await queue.declare([QueueSpec(name="mails", keyed=True, lease=5.0)])
    assert str(caught.value) == (
        "The queue 'mails' has keyed=False, but it is declared with keyed=True.\n"
        "The queue 'mails' has lease=30.0, but it is declared with lease=5.0.\n"
        "Declare it as it is, or delete it once it is empty and declare it anew."
    )
    assert await queue.check([QueueSpec(name="other")]) == ["would create the queue 'other'"]
    with pytest.raises(SetupError, match=r"^The queue 'many' was not declared: it has 11 priorities, 'memory:' offers"):
        await queue.declare([QueueSpec(name="many", priorities=11)])


async def test_what_is_not_there_or_not_open_says_so() -> None:
    queue = await queue_at()
    with pytest.raises(SetupError) as missing:
        await queue.stats("letters")
    assert str(missing.value) == (
        "There is no queue 'letters'. Declare it, with `polywire bus apply` or when the service starts."
    )
    await queue.close()
    with pytest.raises(BackendLost) as closed:
        await queue.stats("mails")
    assert str(closed.value) == "The queue 'mails' was not reached: 'memory:' is not open."


async def test_a_dead_letter_of_lost_workers_says_how_many() -> None:
    clock = ManualClock()
    queue = await queue_at(clock=clock, lost_limit=2, lease=10.0)
    await queue.send("mails", [message()])
    for _ in range(2):
        consumer = await queue.consumer("mails", limit=1)
        await consumer.settle((), await consumer.receive(1))
        consumer.kill()
        await clock.advance(9.9)
        assert (await queue.stats("mails")).in_flight == 1
        await clock.advance(0.2)
    (letter,) = await queue.dead("mails")
    assert (letter.reason, letter.error, letter.attempts) == ("worker_lost", "2 workers died while handling it.", 2)


# ---- bounds and bookkeeping ------------------------------------------------------------------------------------------


async def test_an_id_is_remembered_for_five_minutes() -> None:
    clock = ManualClock()
    queue = await queue_at(clock=clock)
    consumer = await queue.consumer("mails", limit=10)
    sent = message()
    await queue.send("mails", [sent])
    await ack(consumer, await consumer.receive(1))
    await clock.advance(299)
    await queue.send("mails", [sent])
    assert (await queue.stats("mails")).ready == 0
    await clock.advance(2)
    await queue.send("mails", [sent])
    assert (await queue.stats("mails")).ready == 1


async def test_a_message_that_waits_is_known_however_long() -> None:
    clock = ManualClock()
    queue = await queue_at(clock=clock)
    sent = message(not_before=clock.time() + 10_000)
    await queue.send("mails", [sent])
    await clock.advance(9_000)
    await queue.send("mails", [sent])
    assert (await queue.stats("mails")).delayed == 1


async def test_moving_a_message_again_and_again_takes_no_more_room() -> None:
    clock = ManualClock()
    queue = await queue_at(clock=clock)
    ready, later = message("ready"), message("later", not_before=clock.time() + 60)
    await queue.send("mails", [ready, later])
    for step in range(2_000):
        assert await queue.move("mails", later.id, clock.time() + 60 + step)
        assert await queue.move("mails", ready.id, clock.time() - 1)
    kept = queue._space.queues["mails"]
    assert len(kept._later) + sum(map(len, kept._levels)) < 250
    await clock.advance(3_000)
    consumer = await queue.consumer("mails", limit=10)
    assert sorted(got.envelope.body for got in await consumer.receive(10)) == [b"later", b"ready"]
    assert (await queue.stats("mails")).ready == 0


async def test_cancelling_ten_thousand_leaves_the_rest_in_order() -> None:
    queue = await queue_at()
    sent = [message(str(number)) for number in range(10_000)]
    await queue.send("mails", sent)
    for envelope in sent[::2]:
        assert await queue.cancel("mails", envelope.id)
    consumer = await queue.consumer("mails", limit=10_000)
    assert [int(got.envelope.body) for got in await consumer.receive(10_000)] == list(range(1, 10_000, 2))


async def test_keys_that_are_done_leave_nothing_behind() -> None:
    queue = await queue_at(keyed=True)
    await queue.send("mails", [message(key=f"k{number}") for number in range(100)])
    consumer = await queue.consumer("mails", limit=100)
    await ack(consumer, await consumer.receive(100))
    kept = queue._space.queues["mails"]
    assert (kept._behind, kept._by_id, len(kept._levels[0])) == ({}, {}, 0)


async def test_a_delayed_message_takes_its_place_in_its_key_when_it_is_due() -> None:
    clock = ManualClock()
    queue = await queue_at(clock=clock, keyed=True)
    await queue.send("mails", [message("later", key="a", not_before=clock.time() + 60), message("now", key="a")])
    consumer = await queue.consumer("mails", limit=10)
    (got,) = await consumer.receive(10)
    assert got.envelope.body == b"now"
    await clock.advance(61)
    assert (await queue.stats("mails")).ready == 1
    await ack(consumer, [got])
    (got,) = await consumer.receive(10)
    assert got.envelope.body == b"later"


async def test_a_message_without_a_key_waits_for_nobody_in_a_keyed_queue() -> None:
    queue = await queue_at(keyed=True)
    await queue.send("mails", [message("1"), message("2")])
    assert len(await (await queue.consumer("mails", limit=10)).receive(10)) == 2


async def test_of_many_waiting_consumers_none_sleeps_while_there_is_work() -> None:
    queue = await queue_at()
    consumers = [await queue.consumer("mails", limit=1) for _ in range(20)]
    receiving = [asyncio.ensure_future(consumer.receive(1)) for consumer in consumers]
    await settle()
    # Those that were cancelled in the moment of being woken hand on what they were woken for.
    await queue.send("mails", [message() for _ in range(10)])
    for task in receiving[:10]:
        task.cancel()
    done, _ = await asyncio.wait(receiving, timeout=1)
    got = [task.result() for task in done if not task.cancelled()]
    assert sum(map(len, got)) == 10
    await queue.close()
    await asyncio.wait(receiving)
    for task in receiving:
        assert task.cancelled() or task.exception() is not None or task.result()


async def test_foreign_bytes_are_read_where_they_are_one_of_ours() -> None:
    queue, log = await queue_at(), await log_at()
    queue.inject("mails", pack(message("ours")))
    queue.inject("mails", b"\xc1")
    log.inject("orders", pack(message("ours")))
    log.inject("orders", b"\xc1")
    deliveries = await (await queue.consumer("mails", limit=10)).receive(10)
    records = await (await log.consumer(["orders"], "billing", limit=10)).receive(10)
    for ours, odd in (deliveries, records):
        assert (ours.envelope.body, ours.unreadable) == (b"ours", None)
        assert odd.unreadable is not None
        assert odd.unreadable.startswith("The message is no polywire envelope: ")


async def test_an_endless_sender_lets_others_work() -> None:
    queue = await queue_at()
    consumer = await queue.consumer("mails", limit=1)
    receiving = asyncio.ensure_future(consumer.receive(1))
    for _ in range(1_000):
        await queue.send("mails", [message()])
        if receiving.done():
            break
    assert receiving.done()
    await receiving


# ---- logs ------------------------------------------------------------------------------------------------------------


async def test_a_log_forgets_its_oldest_events_over_its_bytes() -> None:
    log = await log_at(retention_bytes=30)
    for number in range(10):
        await log.append("orders", [message(f"{number}" * 10)])
    assert [record.offset for record in await log.read("orders", 0, 0, 100)] == [7, 8, 9]
    (first, *_) = await (await log.consumer(["orders"], "billing", limit=10)).receive(10)
    assert first.offset == 7


async def test_a_member_whose_events_were_forgotten_meanwhile_goes_on() -> None:
    clock = ManualClock()
    log = await log_at(clock=clock, retention=60.0)
    await log.append("orders", [message(str(number)) for number in range(4)])
    member = await log.consumer(["orders"], "billing", limit=10)
    held = await member.receive(2)
    await clock.advance(61)
    await log.append("orders", [message("new")])
    await log.read("orders", 0, 0, 1)
    (got,) = await member.receive(10)
    assert (got.offset, got.envelope.body) == (4, b"new")
    await member.done(held)
    await member.done([got])
    await member.close()
    assert (await log.stats("orders", "billing")).lag == 0
    await log.append("orders", [message("newer")])
    (got,) = await (await log.consumer(["orders"], "billing", limit=10)).receive(10)
    assert got.offset == 5


async def test_a_full_partition_refuses_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "MAX_EVENTS", 2)
    clock = ManualClock()
    log = await log_at(clock=clock, retention=60.0)
    assert await log.append("orders", [message(), message()]) == [None, None]
    (refused,) = await log.append("orders", [message(id="m3")])
    assert str(refused) == (
        "The message 'm3' was not sent: its partition of the topic 'orders' is full, with 2 events. "
        "Shorten the retention."
    )
    await clock.advance(61)
    assert await log.append("orders", [message()]) == [None]


async def test_what_a_log_refuses_says_why() -> None:
    log = await log_at()
    (gone,) = await log.append("carts", [message(id="m1")])
    assert str(gone) == (
        "The message 'm1' was not sent: there is no topic 'carts'. "
        "Declare it, with `polywire bus apply` or when the service starts."
    )
    with pytest.raises(SetupError, match=r"^There is no group 'nobody' of the topic 'orders'\. Declare it, "):
        await log.consumer(["orders"], "nobody", limit=1)
    with pytest.raises(SetupError, match=r"^The group 'billing' was not joined: it names no topic\.$"):
        await log.consumer([], "billing", limit=1)
    with pytest.raises(SetupError, match=r"^There is no partition 3 of the topic 'orders'\. Declare it, "):
        await log.read("orders", 3, 0, 1)
    with pytest.raises(SetupError, match=r"^The group 'late' was not declared: there is no topic 'carts'\.$"):
        await log.declare([], [GroupSpec(topic="carts", group="late")])
    with pytest.raises(SetupError, match=r"it starts at 'now'\. Choose 'earliest' or 'latest'\.$"):
        await log.declare([], [GroupSpec(topic="orders", group="late", start="now")])
    with pytest.raises(SetupError, match=r"^The topic 'none' was not declared: it has 0 partitions\.$"):
        await log.declare([TopicSpec(name="none", partitions=0)])
    with pytest.raises(
        ValueError, match=r"^Seek takes exactly one of time, offsets, earliest and latest; it was given 2"
    ):
        await log.seek("orders", "billing", Seek(earliest=True, latest=True))
    with pytest.raises(SetupError) as caught:
        await log.declare(
            [TopicSpec(name="orders", partitions=2)], [GroupSpec(topic="orders", group="billing", start="latest")]
        )
    assert str(caught.value) == (
        "The topic 'orders' has partitions=1, but it is declared with partitions=2.\n"
        "The group 'billing' of the topic 'orders' has start='earliest', but it is declared with start='latest'.\n"
        "Declare it as it is, or delete it once it is empty and declare it anew."
    )


async def test_a_member_that_does_not_let_go_loses_its_partition_after_half_the_rebalance_timeout() -> None:
    clock = ManualClock()
    log = await log_at(clock=clock, partitions=2)
    cancelled: list[bool] = []

    async def never(partitions: frozenset[Any]) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    first = await log.consumer(["orders"], "billing", limit=10, revoking=never)
    second = await log.consumer(["orders"], "billing", limit=10)
    await clock.advance(log_module.REBALANCE_TIMEOUT / 2 - 0.1)
    assert (len(first.assigned), len(second.assigned), cancelled) == (2, 0, [])
    await clock.advance(0.2)
    assert (len(first.assigned), len(second.assigned), cancelled) == (1, 1, [True])
    await log.close()


async def test_an_error_of_who_is_told_reaches_the_member_and_the_partition_goes_on() -> None:
    log = await log_at(partitions=2)

    async def broken(partitions: frozenset[Any]) -> None:
        raise ZeroDivisionError("mine")

    first = await log.consumer(["orders"], "billing", limit=10, revoking=broken)
    second = await log.consumer(["orders"], "billing", limit=10)
    await settle()
    assert len(second.assigned) == 1
    with pytest.raises(ZeroDivisionError, match="mine"):
        await first.receive(1)
    await first.close()
    assert len(second.assigned) == 2


async def test_closing_while_partitions_are_revoked_ends_all_of_it() -> None:
    clock = ManualClock()
    log = await log_at(clock=clock, partitions=2)

    async def slow(partitions: frozenset[Any]) -> None:
        await clock.sleep(3)

    first = await log.consumer(["orders"], "billing", limit=10, revoking=slow)
    second = await log.consumer(["orders"], "billing", limit=10)
    await settle()
    await first.close()
    assert len(second.assigned) == 2
    await log.close()
    assert clock.sleeping == 0


async def test_three_members_share_eight_partitions_evenly_and_keep_what_they_have() -> None:
    log = await log_at(partitions=8)
    members = [await log.consumer(["orders"], "billing", limit=10) for _ in range(2)]
    await settle()
    before = [member.assigned for member in members]
    members.append(await log.consumer(["orders"], "billing", limit=10))
    await settle()
    assert sorted(len(member.assigned) for member in members) == [2, 3, 3]
    assert all(member.assigned <= former for member, former in zip(members, before, strict=False))


async def test_of_what_a_dead_member_held_only_the_first_is_held_against_it_again() -> None:
    log = await log_at()
    await log.append("orders", [message("poison"), message("innocent")])
    for _ in range(3):
        member = await log.consumer(["orders"], "billing", limit=10)
        await member.receive(10)
        member.kill()
    member = await log.consumer(["orders"], "billing", limit=10)
    poison, innocent = await member.receive(10)
    assert (poison.lost, poison.attempt, innocent.lost) == (3, 4, 1)


async def test_a_retry_held_by_a_dead_member_counts_its_loss() -> None:
    log = await log_at()
    await log.append("orders", [message()])
    member = await log.consumer(["orders"], "billing", limit=10)
    (record,) = await member.receive(1)
    await member.retry(record, RetryAfter(0.0))
    (copy,) = await member.receive(1)
    assert (copy.attempt, copy.lost, copy.envelope.attempt) == (2, 0, 1)
    member.kill()
    (copy,) = await (await log.consumer(["orders"], "billing", limit=10)).receive(1)
    assert (copy.attempt, copy.lost, copy.retried) == (3, 1, True)


async def test_settling_an_event_that_is_no_longer_held_neither_retries_nor_buries_it() -> None:
    log = await log_at()
    await log.append("orders", [message()])
    former = await log.consumer(["orders"], "billing", limit=10)
    (stale,) = await former.receive(1)
    await former.close()
    await former.retry(stale, RetryAfter(0.0))
    await former.bury(stale, Bury("rejected"))
    member = await log.consumer(["orders"], "billing", limit=10)
    (again,) = await member.receive(10)
    assert not again.retried
    assert await log.dead("orders", "billing") == []


async def test_a_paused_partition_keeps_its_retries_too() -> None:
    log = await log_at()
    await log.append("orders", [message()])
    member = await log.consumer(["orders"], "billing", limit=10)
    (record,) = await member.receive(1)
    await member.retry(record, RetryAfter(0.0))
    member.pause([("orders", 0)])
    receiving = asyncio.ensure_future(member.receive(1))
    await settle()
    assert not receiving.done()
    member.resume([("orders", 0)])
    (copy,) = await receiving
    assert copy.retried


async def test_an_event_buried_again_after_a_replay_is_another_dead_letter() -> None:
    log = await log_at()
    await log.append("orders", [message()])
    for _ in range(2):
        member = await log.consumer(["orders"], "billing", limit=10)
        (record,) = await member.receive(1)
        await member.bury(record, Bury("rejected", "x" * 5_000))
        await member.close()
        await log.seek("orders", "billing", Seek(earliest=True))
    letters = await log.dead("orders", "billing")
    assert [len(letter.error) for letter in letters] == [2_000, 2_000]
    assert len({letter.position for letter in letters}) == 2


def test_a_record_says_where_it_stands() -> None:
    assert Record("orders", 3, 17, message()).position == "orders/3@17"


# ---- fan-outs --------------------------------------------------------------------------------------------------------


async def test_what_a_fanout_does_not_keep_says_why() -> None:
    fanout = MemoryFanout("memory:", clock=ManualClock())
    await fanout.start()
    await fanout.declare(["orders"], [Binding(topic="orders", group="billing", types=("shop.v1.Paid",))])
    (nobody,) = await fanout.publish("orders", [message(id="m1")])
    assert type(nobody) is NobodyListens
    assert str(nobody) == "The event 'm1' was not kept: no group of the topic 'orders' wants it."
    with pytest.raises(SetupError, match=r"^The group 'late' was not bound: there is no topic 'carts'\.$"):
        await fanout.declare([], [Binding(topic="carts", group="late")])
    await fanout.close()


async def test_a_topic_of_a_fanout_of_one_name_is_bound_for_all_who_have_it() -> None:
    clock = ManualClock()
    name = f"memory:{secrets.token_hex(4)}"
    one, two = MemoryFanout(name, clock=clock), MemoryFanout(name, clock=clock)
    for fanout in (one, two):
        await fanout.start()
    await one.declare(["orders"], [Binding(topic="orders", group="billing")])
    assert await two.publish("orders", [message()]) == [None]
    assert (await one.queues.stats("orders.billing")).ready == 1
