"""Sending tasks through a client: direct calls, options, receipts, results, and fakes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sending_support import (
    NOTHING,
    Confirmation,
    Images,
    Mail,
    OrderPlaced,
    RecordingQueue,
    Resize,
    Thumb,
    images_over,
    mail_over,
    sender_over,
    until,
    without,
)

from polywire.bus.backend.memory import MemoryQueue
from polywire.bus.backend.memory_results import MemoryResults
from polywire.bus.consumer import QueueRunner, task_handling
from polywire.bus.consumer.results import StoredAnswers
from polywire.bus.core import Ack, Envelope, Settlement, TaskQueue
from polywire.bus.core.envelope import PROTOBUF
from polywire.bus.core.results import Results
from polywire.bus.sending import BusWires, Sender, enqueue, enqueue_all, queues_of, receipt
from polywire.client import client_for
from polywire.codec import codec_for
from polywire.context import Call, _current, calling
from polywire.contract import assign_packages, service_of
from polywire.errors import (
    BackendLost,
    Cancelled,
    DeadlineExceeded,
    Internal,
    MessageRefused,
    NotFound,
    PartlySent,
    PublishUnknown,
    ResourceExhausted,
    SetupError,
    UndecodableMessage,
    Unsupported,
)
from polywire.testing import ManualClock

RESIZE = service_of(Images).tasks["resize"]
EPOCH = 1_700_000_000.0


def answers(results: Results) -> StoredAnswers:
    """What a worker tells the sender by."""
    return StoredAnswers(RESIZE, {results.name: results})


# ---- sending -----------------------------------------------------------------------------------------------------


async def test_a_direct_call_of_a_task_is_back_once_it_is_durable() -> None:
    backend = RecordingQueue()
    backend.waits = asyncio.Event()
    calling_it = asyncio.ensure_future(mail_over(sender_over(backend)).send_confirmation(Confirmation(order_id="1")))
    await until(lambda: backend.under_way == 1)
    assert not calling_it.done()
    backend.waits.set()
    await calling_it
    ((queue, envelope),) = backend.sent
    assert queue == "shop.v1.Mail"
    assert envelope.body == b'{"order_id":"1","text":""}'


async def test_the_envelope_says_what_who_and_when() -> None:
    backend = RecordingQueue()
    await mail_over(sender_over(backend, clock=ManualClock())).send_confirmation(Confirmation(order_id="17"))
    (envelope,) = backend.envelopes
    assert envelope.type == "shop.v1.Mail/SendConfirmation"
    assert (envelope.source, envelope.time, envelope.content_type) == ("orders", EPOCH, "application/json")
    assert (envelope.key, envelope.priority, envelope.version) == ("17", 0, 1)
    assert (envelope.not_before, envelope.expires, envelope.headers, envelope.reply_to) == (None, None, None, None)
    assert len(envelope.id) == 36


async def test_protobuf_is_a_choice_of_the_sender() -> None:
    assign_packages([service_of(Mail)])
    backend = RecordingQueue()
    await mail_over(sender_over(backend, format="proto")).send_confirmation(Confirmation(order_id="17"))
    (envelope,) = backend.envelopes
    assert envelope.content_type == PROTOBUF
    assert codec_for(Confirmation, "proto").decode(envelope.body) == Confirmation(order_id="17")


async def test_options_are_laid_over_what_is_declared() -> None:
    backend = RecordingQueue()
    sender = sender_over(backend, clock=ManualClock())
    await enqueue(images_over(sender).sweep, priority=2, delay=60, expires=90, id="mine", headers={"Tenant": "a"})
    await enqueue(mail_over(sender).send_confirmation, Confirmation(order_id="1"), key="other")
    first, second = backend.envelopes
    assert (first.id, first.priority, first.headers) == ("mine", 2, {"tenant": "a"})
    assert (first.not_before, first.expires) == (EPOCH + 60, EPOCH + 90)
    assert second.key == "other"


async def test_what_a_message_is_part_of_travels_with_it() -> None:
    class Incoming:
        id = "cause"
        attempt = 1
        key = None
        position = ""
        published_at = 0.0
        headers: dict[str, str] = {}

        def extend(self, seconds: float) -> None: ...

    backend = RecordingQueue()
    call = Call(request_id="r-1")
    call.traceparent, call.tracestate, call.message = "00-aa-bb-01", "a=b", Incoming()
    token = _current.set(call)
    try:
        await mail_over(sender_over(backend)).send_confirmation(Confirmation(order_id="1"))
    finally:
        _current.reset(token)
    (envelope,) = backend.envelopes
    assert (envelope.request_id, envelope.traceparent, envelope.tracestate) == ("r-1", "00-aa-bb-01", "a=b")
    assert envelope.causation_id == "cause"


async def test_a_task_with_a_result_is_not_called_directly() -> None:
    with pytest.raises(TypeError) as refused:
        await images_over(sender_over(RecordingQueue())).resize(Resize(picture="a"))
    assert str(refused.value) == (
        "shop.v1.Images/Resize was not sent: it has a result, which is there later. Send it with "
        "`receipt = await enqueue(client.resize, ...)`, and then `await receipt.result()`."
    )


async def test_a_call_has_no_message() -> None:
    assert Call().message is None


async def test_an_rpc_is_not_enqueued() -> None:
    class FakeImages(Images):
        async def look(self, request: Resize) -> Thumb:
            return Thumb(data=b"")

    for images in (images_over(sender_over(RecordingQueue())), FakeImages()):
        with pytest.raises(TypeError) as refused:
            await enqueue(images.look, Resize(picture="a"))
        assert str(refused.value) == (
            "shop.v1.Images/Look was not sent: it is an rpc, which is called and awaited. "
            "Declare it with @task to have it done later."
        )


async def test_a_client_without_its_half_says_so() -> None:
    with pytest.raises(SetupError) as refused:
        await client_for(Mail, None).send_confirmation(Confirmation(order_id="1"))
    assert str(refused.value) == (
        "shop.v1.Mail/SendConfirmation was not sent: this client has no wire for tasks. Ask for it in the "
        "constructor of a service, or of `open_bus`: `connect` reaches rpcs alone."
    )
    with pytest.raises(SetupError) as refused:
        await images_over(sender_over(RecordingQueue())).look(Resize(picture="a"))
    assert str(refused.value) == "An rpc was not called: its client was made for tasks alone, and has no address."


async def test_a_contract_without_a_wire_says_so() -> None:
    with pytest.raises(SetupError) as refused:
        await mail_over(Sender("orders")).send_confirmation(Confirmation(order_id="1"))
    assert str(refused.value) == (
        "shop.v1.Mail was not sent: there is no wire for its tasks. Name one in the system file, "
        "[wires] tasks = 'sqlite:.polywire/bus.db'."
    )


async def test_each_contract_takes_its_own_wire() -> None:
    mails, rest = RecordingQueue(), RecordingQueue()
    wires: BusWires[Any] = BusWires(default=rest, by_name={"shop.v1.Mail": mails})
    sender = Sender("orders", tasks=wires)
    await mail_over(sender).send_confirmation(Confirmation(order_id="1"))
    await images_over(sender).sweep()
    assert [place for place, _ in mails.sent] == ["shop.v1.Mail"]
    assert [place for place, _ in rest.sent] == ["shop.v1.Images"]
    assert wires.all() == (rest, mails)


async def test_a_wrong_message_is_not_sent() -> None:
    backend = RecordingQueue()
    with pytest.raises(TypeError) as refused:
        await mail_over(sender_over(backend)).send_confirmation(Resize(picture="a"))  # type: ignore[arg-type]  # wrong on purpose
    assert str(refused.value) == "shop.v1.Mail/SendConfirmation was not sent: it takes a Confirmation, not a Resize."
    with pytest.raises(TypeError) as refused:
        await enqueue(images_over(sender_over(backend)).sweep, Resize(picture="a"))  # type: ignore[arg-type]  # wrong on purpose
    assert str(refused.value) == "shop.v1.Images/Sweep was not sent: it takes nothing, not a Resize."
    assert backend.sent == []


async def test_a_message_that_is_not_what_its_class_says_is_not_sent() -> None:
    backend = RecordingQueue()
    sender = sender_over(backend)
    with pytest.raises(MessageRefused) as refused:
        await mail_over(sender).send_confirmation(Confirmation(order_id="1", text=5))  # type: ignore[arg-type]  # wrong on purpose
    assert str(refused.value).startswith(
        "shop.v1.Mail/SendConfirmation was not sent: it is not what its class says. Confirmation.text: "
    )
    assert sender.counters["shop.v1.Mail/SendConfirmation"].refused == 1
    assert backend.sent == []


async def test_a_body_over_the_limit_is_refused_after_encoding() -> None:
    backend = RecordingQueue()
    with pytest.raises(MessageRefused) as refused:
        await enqueue(
            mail_over(sender_over(backend)).send_confirmation, Confirmation(order_id="1", text="x" * 1000), id="m"
        )
    assert str(refused.value) == (
        "The message 'm' was not sent to the queue 'shop.v1.Mail': its body has 1026 bytes, the limit is 1000. "
        "Put the content where both sides reach it, and send its address."
    )
    assert backend.sent == []


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"delay": -1}, MessageRefused, "delay=-1 is no number of seconds from now."),
        ({"expires": float("nan")}, MessageRefused, "expires=nan is no number of seconds from now."),
        (
            {"delay": 60, "expires": 60},
            MessageRefused,
            "it would have expired (expires=60) before it could be handled (delay=60).",
        ),
        ({"expires": 0}, MessageRefused, "it would have expired (expires=0) before it could be handled (delay=0)."),
        (
            {"delay": 3601},
            Unsupported,
            "delay=3601 is over the 3600 s that 'fake' can wait. Make it shorter, or choose another wire.",
        ),
        (
            {"priority": 3},
            MessageRefused,
            "priority=3 is none of its queue's levels, which are 0 to 2. Declare more with priorities=.",
        ),
        (
            {"key": "a"},
            Unsupported,
            "key='a' would keep no order, as none is declared. Declare it with key='...', the name of a field.",
        ),
        ({"id": ""}, MessageRefused, "id='' cannot travel. Take 1 to 255 bytes of printable text."),
        ({"id": "a\nb"}, MessageRefused, "id='a\\nb' cannot travel. Take 1 to 255 bytes of printable text."),
        ({"id": 5}, MessageRefused, "id=5 cannot travel. Take 1 to 255 bytes of printable text."),
        (
            {"id": "x" * 256},
            MessageRefused,
            f"id='{'x' * 76}... cannot travel. Take 1 to 255 bytes of printable text.",
        ),
        (
            {"headers": {"a b": "c"}},
            MessageRefused,
            "its headers cannot travel. The message was not sent: 'a b' is no name of a header. "
            "Use letters, digits, '-', '_'.",
        ),
    ],
)
async def test_an_option_that_cannot_be_kept_is_refused(
    options: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    backend = RecordingQueue()
    sender = sender_over(backend)
    with pytest.raises(kind) as refused:
        await enqueue(images_over(sender).resize, Resize(picture="a"), **options)
    assert str(refused.value) == f"shop.v1.Images/Resize was not sent: {sentence}"
    assert sender.counters["shop.v1.Images/Resize"].refused == 1
    assert backend.sent == []


async def test_a_header_that_is_no_text_is_refused() -> None:
    with pytest.raises(MessageRefused, match=r"^shop.v1.Images/Sweep was not sent: its headers cannot travel\. "):
        await enqueue(images_over(sender_over(RecordingQueue())).sweep, headers={"a": 5})  # type: ignore[dict-item]  # wrong on purpose


async def test_a_key_that_no_backend_carries_is_refused() -> None:
    mail = mail_over(sender_over(RecordingQueue()))
    for key in ("", "x" * 256, "a\x00b"):
        with pytest.raises(MessageRefused, match=r"key='.*' cannot travel\. Take 1 to 255 bytes|key='x+\.\.\. cannot"):
            await mail.send_confirmation(Confirmation(order_id=key))


async def test_a_delay_on_a_backend_without_is_refused_at_the_call() -> None:
    backend = RecordingQueue(without(delay=False))
    with pytest.raises(Unsupported) as refused:
        await enqueue(images_over(sender_over(backend)).sweep, delay=5)
    assert str(refused.value) == (
        "shop.v1.Images/Sweep was not sent: 'fake' cannot deliver later, and delay=5 was asked for. "
        "Leave it out, or choose another wire."
    )


async def test_what_is_declared_and_not_kept_is_refused_at_the_start() -> None:
    sender = sender_over(RecordingQueue(NOTHING))
    with pytest.raises(SetupError) as refused:
        sender.check([Images])
    assert str(refused.value) == (
        "shop.v1.Images/Resize cannot be sent to queue 'shop.v1.Images': 'poor' has 1 level of priority, not 3. "
        "Change what @task(...) asks for, or the wire of its tasks."
    )
    with pytest.raises(SetupError) as refused:
        sender.check([Mail])
    assert str(refused.value) == (
        "shop.v1.Mail/SendConfirmation cannot be sent to queue 'shop.v1.Mail': 'poor' keeps no order by key. "
        "Change what @task(...) asks for, or the wire of its tasks."
    )
    with pytest.raises(SetupError) as refused:
        sender.check(events=[OrderPlaced])
    assert str(refused.value) == (
        "shop.v1.OrderPlaced cannot be published to topic 'shop.orders': 'poor' keeps no order by key. "
        "Leave out key=, or change the wire of its events."
    )
    sender_over(RecordingQueue()).check([Images, Mail])


# ---- many --------------------------------------------------------------------------------------------------------


async def test_many_are_sent_in_few_calls_and_in_order() -> None:
    backend = RecordingQueue()
    receipts = await enqueue_all(
        mail_over(sender_over(backend)).send_confirmation, [Confirmation(order_id=str(i)) for i in range(2500)]
    )
    assert backend.sizes == [1000, 1000, 500]
    assert [envelope.key for envelope in backend.envelopes] == [str(i) for i in range(2500)]
    assert [found.id for found in receipts] == [envelope.id for envelope in backend.envelopes]


async def test_a_partial_failure_is_told_by_index_and_the_rest_is_sent() -> None:
    backend = RecordingQueue()
    lost = PublishUnknown("lost", id="c")
    backend.answers = [None, lost]
    with pytest.raises(PartlySent) as error:
        await enqueue_all(
            mail_over(sender_over(backend)).send_confirmation,
            [Confirmation(order_id="1"), Confirmation(order_id="2", text="x" * 1000), Confirmation(order_id="3")],
            ids=["a", "b", "c"],
        )
    assert list(error.value.errors) == [1, 2]
    assert isinstance(error.value.errors[1], MessageRefused)
    assert error.value.errors[2] is lost
    assert error.value.ids == ("a", "b", "c")
    assert str(error.value) == (
        "2 of 3 messages were not confirmed, number 1 first: The message 'b' was not sent to the queue 'shop.v1.Mail': "
        "its body has 1026 bytes, the limit is 1000. Put the content where both sides reach it, and send its address."
    )
    assert [envelope.id for envelope in backend.envelopes] == ["a", "c"]


async def test_none_are_sent_at_all_where_the_ids_do_not_match() -> None:
    with pytest.raises(ValueError, match=r"^nothing was sent: there are 1 ids for 2 messages$"):
        await enqueue_all(
            images_over(sender_over(RecordingQueue())).resize, [Resize(picture="a"), Resize(picture="b")], ids=["1"]
        )


# ---- receipts and results ----------------------------------------------------------------------------------------


async def test_a_result_comes_back_through_the_store() -> None:
    backend, results = RecordingQueue(), MemoryResults()
    images = images_over(sender_over(backend, results=results))
    sent = await enqueue(images.resize, Resize(picture="a"))
    (envelope,) = backend.envelopes
    assert envelope.reply_to == "memory"
    waiting = asyncio.ensure_future(sent.result(timeout=5))
    await asyncio.sleep(0)
    await answers(results).done(envelope, Thumb(data=b"small"))
    assert await waiting == Thumb(data=b"small")
    assert await receipt(images.resize, sent.id).result() == Thumb(data=b"small")
    assert repr(sent) == f"Receipt('shop.v1.Images/Resize', {sent.id!r})"


async def test_a_result_travels_in_the_format_of_its_task() -> None:
    backend, results = RecordingQueue(), MemoryResults()
    sent = await enqueue(images_over(sender_over(backend, results=results, format="proto")).resize, Resize(picture="a"))
    await answers(results).done(backend.envelopes[0], Thumb(data=b"small"))
    kept = await results.wait(f"shop.v1.Images/Resize#{sent.id}", timeout=0)
    assert kept is not None
    assert (kept.content_type, await sent.result()) == (PROTOBUF, Thumb(data=b"small"))


async def failed_with(tell: Callable[[StoredAnswers, Envelope], Coroutine[Any, Any, None]]) -> Exception:
    """What waiting for a result raises, once a worker told how it ended."""
    backend, results = RecordingQueue(), MemoryResults(max_bytes=500)
    sent = await enqueue(images_over(sender_over(backend, results=results)).resize, Resize(picture="a"), id="m")
    await tell(answers(results), backend.envelopes[0])
    with pytest.raises(Exception) as error:  # noqa: PT011 - which one is the caller's
        await sent.result(timeout=1)
    return error.value


async def test_a_failure_comes_back_as_the_contracts_error() -> None:
    error = await failed_with(lambda told, message: told.given_up(message, "attempts", NotFound("no picture 'a'")))
    assert type(error) is NotFound
    assert str(error) == "no picture 'a'"


async def test_any_other_failure_stays_with_the_operators() -> None:
    error = await failed_with(lambda told, message: told.given_up(message, "attempts", KeyError("secret")))
    assert type(error) is Internal
    assert str(error) == (
        "shop.v1.Images/Resize was given up (attempts). Its error is in the dead letters of its queue, id 'm'."
    )


async def test_a_result_that_is_wrong_or_too_large_is_a_failure_that_says_so() -> None:
    wrong = await failed_with(lambda told, message: told.done(message, Thumb(data="text")))  # type: ignore[arg-type]  # wrong on purpose
    assert type(wrong) is Internal
    assert str(wrong).startswith("shop.v1.Images/Resize was done, but what it returned is not what its contract says: ")
    large = await failed_with(lambda told, message: told.done(message, Thumb(data=b"x" * 1000)))
    assert type(large) is ResourceExhausted
    assert str(large) == (
        "shop.v1.Images/Resize was done, but its result of 1347 bytes was not kept: the store takes 500. "
        "Keep the result elsewhere, and return where."
    )


async def test_nothing_is_kept_where_nobody_waits() -> None:
    results = MemoryResults()
    await answers(results).done(Envelope("m", RESIZE.full_name, b""), Thumb(data=b""))
    assert await results.wait("shop.v1.Images/Resize#m", timeout=0) is None


async def test_waiting_for_a_result_ends_in_time_and_the_task_goes_on() -> None:
    clock = ManualClock()
    backend, results = RecordingQueue(), MemoryResults(clock=clock)
    sent = await enqueue(
        images_over(sender_over(backend, results=results, clock=clock)).resize, Resize(picture="a"), id="m"
    )
    waiting = asyncio.ensure_future(sent.result(timeout=5))
    await clock.advance(5)
    with pytest.raises(DeadlineExceeded) as late:
        await waiting
    assert str(late.value) == (
        "shop.v1.Images/Resize has no result after 5 s, id 'm'. It may be waiting or running still; a result is kept "
        "for 60 s."
    )
    await answers(results).done(backend.envelopes[0], Thumb(data=b"1"))
    assert await sent.result() == Thumb(data=b"1")


async def test_the_deadline_of_the_call_under_way_bounds_the_waiting() -> None:
    clock = ManualClock()
    sent = receipt(
        images_over(sender_over(RecordingQueue(), results=MemoryResults(clock=clock), clock=clock)).resize, "m"
    )
    token = _current.set(Call(deadline=clock.monotonic() + 2, clock=clock))
    try:
        waiting = asyncio.ensure_future(sent.result(timeout=5))
    finally:
        _current.reset(token)
    await clock.advance(2)
    with pytest.raises(DeadlineExceeded, match="has no result after 2 s"):
        await waiting
    with calling(timeout=3):
        waiting = asyncio.ensure_future(sent.result())
        await clock.advance(3)
    with pytest.raises(DeadlineExceeded, match="has no result after 3 s"):
        await waiting


async def test_what_has_no_result_cannot_be_waited_for() -> None:
    sent = await enqueue(images_over(sender_over(RecordingQueue())).sweep)
    with pytest.raises(TypeError) as refused:
        await sent.result()
    assert str(refused.value) == (
        "shop.v1.Images/Sweep has no result to wait for: it returns None. Let it return a message if its end matters."
    )


async def test_a_result_without_a_store_says_so() -> None:
    backend = RecordingQueue()
    sent = await enqueue(images_over(sender_over(backend)).resize, Resize(picture="a"))
    assert backend.envelopes[0].reply_to is None
    with pytest.raises(SetupError) as refused:
        await sent.result()
    assert str(refused.value) == (
        "The result of shop.v1.Images/Resize cannot be waited for: there is no store of results. "
        "Name one in the system file, [wires] schedule = 'sqlite:.polywire/schedule.db'."
    )


async def test_a_waiting_task_is_taken_back_or_moved() -> None:
    backend, results = RecordingQueue(), MemoryResults()
    sent = await enqueue(images_over(sender_over(backend, results=results)).resize, Resize(picture="a"), delay=60)
    assert await sent.move(1e9)
    assert backend.moved == [("shop.v1.Images", sent.id, 1e9)]
    assert await sent.cancel()
    assert backend.cancelled == [("shop.v1.Images", sent.id)]
    with pytest.raises(Cancelled) as cancelled:
        await sent.result()
    assert str(cancelled.value) == "shop.v1.Images/Resize was cancelled through its receipt before it was done."


def _sender_to(queue: TaskQueue, results: Results) -> Sender:
    return Sender("orders", tasks=BusWires(default=queue), results=results)


async def test_a_running_task_is_cancelled_through_its_receipt() -> None:
    results = MemoryResults()
    queue = MemoryQueue()
    await queue.start()
    await queue.declare(queues_of([Images]))
    begun, ended = asyncio.Event(), asyncio.Event()

    async def resize(request: Resize) -> Thumb:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    task = service_of(Images).tasks["resize"]
    runner = QueueRunner(queue, task.queue, [task_handling(task, resize, {results.name: results})])
    await runner.start()
    sent = await enqueue(images_over(_sender_to(queue, results)).resize, Resize(picture="a"))
    async with asyncio.timeout(60.0):
        await begun.wait()
        assert await sent.cancel()
        await ended.wait()
        with pytest.raises(Cancelled) as cancelled:
            await sent.result()
    assert str(cancelled.value) == "shop.v1.Images/Resize was cancelled through its receipt before it was done."
    assert not await sent.cancel()
    await runner.stop(0.0)
    assert await queue.dead(task.queue) == []
    await queue.close()


async def test_a_backend_that_finds_nothing_by_id_refuses_to_cancel() -> None:
    images = images_over(sender_over(RecordingQueue(without(cancel=False))))
    for ask in (receipt(images.sweep, "m").cancel, lambda: receipt(images.sweep, "m").move(1.0)):
        with pytest.raises(Unsupported) as refused:
            await ask()
        assert str(refused.value) == (
            "shop.v1.Images/Sweep was not taken back or moved, id 'm': 'fake' cannot find a waiting message by its id. "
            "Choose another wire for its tasks."
        )


# ---- fakes -------------------------------------------------------------------------------------------------------


class FakeImages(Images):
    def __init__(self) -> None:
        self.swept = 0

    async def resize(self, request: Resize) -> Thumb:
        if not request.picture:
            raise NotFound("no picture")
        return Thumb(data=request.picture.encode())

    async def sweep(self) -> None:
        self.swept += 1


async def test_a_method_of_a_fake_is_awaited_at_once() -> None:
    fake = FakeImages()
    done = await enqueue(fake.resize, Resize(picture="a"), id="mine", delay=60)
    assert (done.id, await done.result()) == ("mine", Thumb(data=b"a"))
    assert (await done.cancel(), await done.move(1.0), repr(done)) == (False, False, "Receipt(done, 'mine')")
    both = await enqueue_all(fake.resize, [Resize(picture="a"), Resize(picture="b")])
    assert [await one.result() for one in both] == [Thumb(data=b"a"), Thumb(data=b"b")]
    with pytest.raises(NotFound):
        await enqueue(fake.resize, Resize(picture=""))


async def test_a_fake_has_no_result_where_the_contract_has_none() -> None:
    fake = FakeImages()
    done = await enqueue(fake.sweep)
    assert fake.swept == 1
    with pytest.raises(TypeError, match="has no result to wait for"):
        await done.result()


async def test_nothing_can_be_found_again_through_a_fake() -> None:
    with pytest.raises(TypeError) as refused:
        receipt(FakeImages().sweep, "m")
    assert str(refused.value) == (
        "FakeImages.sweep belongs to no client, so nothing was sent with it that could be found again by id 'm'."
    )


# ---- the store of results ----------------------------------------------------------------------------------------


async def test_the_memory_store_forgets_in_time_and_beyond_its_size() -> None:
    clock = ManualClock()
    results = MemoryResults(clock=clock, max_results=2, max_total_bytes=2000)
    task = answers(results)

    def asked(id: str) -> Envelope:
        return Envelope(id, RESIZE.full_name, b"", reply_to="memory")

    async def kept() -> list[str]:
        return [i for i in "abcd" if await results.wait(f"shop.v1.Images/Resize#{i}", timeout=0) is not None]

    for name in "abc":
        await task.done(asked(name), Thumb(data=b""))
    assert await kept() == ["b", "c"]
    await task.done(asked("d"), Thumb(data=b"x" * 1490))
    assert await kept() == ["d"]
    await clock.advance(59)
    assert await kept() == ["d"]
    await clock.advance(1)
    assert await kept() == []


async def test_a_closed_store_wakes_who_waits() -> None:
    results = MemoryResults()
    await results.start()
    waiting = asyncio.ensure_future(results.wait("a", timeout=None))
    await asyncio.sleep(0)
    await results.close()
    await results.close()
    for late in (waiting, asyncio.ensure_future(results.wait("a", timeout=1))):
        with pytest.raises(BackendLost, match=r"^The store of results 'memory' was closed\.$"):
            await late


async def test_a_result_in_an_unknown_format_is_undecodable() -> None:
    from polywire.bus.core.results import Outcome, value_of

    with pytest.raises(UndecodableMessage) as unknown:
        value_of(Outcome(body=b"", content_type="text/plain"), "a/B", Thumb)
    assert str(unknown.value) == (
        "The result of a/B was not read: it is 'text/plain', which this program does not know."
    )
    with pytest.raises(UndecodableMessage, match=r"^The result of a/B was not read: "):
        value_of(Outcome(body=b"{"), "a/B", Thumb)


# ---- over a real queue -------------------------------------------------------------------------------------------


async def test_a_task_goes_through_a_real_queue_and_its_result_comes_back() -> None:
    queue, results = MemoryQueue("memory:"), MemoryResults()
    await queue.start()
    await queue.declare(queues_of([Images, Mail]))
    wires: BusWires[TaskQueue] = BusWires(default=queue)
    images = images_over(Sender("orders", tasks=wires, results=results))
    try:
        later = await enqueue(images.resize, Resize(picture="b"), delay=3600)
        sent = await enqueue(images.resize, Resize(picture="a"))
        consumer = await queue.consumer("shop.v1.Images", limit=10)
        (delivery,) = await consumer.receive(10)
        assert delivery.envelope.id == sent.id
        assert codec_for(Resize, "json").decode(delivery.envelope.body) == Resize(picture="a")
        await consumer.settle([], [delivery])
        await answers(results).done(delivery.envelope, Thumb(data=b"a"))
        await consumer.settle([Settlement(delivery, Ack())])
        assert await sent.result(timeout=1) == Thumb(data=b"a")
        assert not await sent.cancel()
        assert await later.cancel()
        with pytest.raises(Cancelled):
            await later.result(timeout=1)
        await consumer.close()
    finally:
        await queue.close()
