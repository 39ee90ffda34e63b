"""Results of tasks, and the line that is logged for each run."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from consumer_support import (
    GROUP,
    QUEUE,
    Bench,
    Job,
    Script,
    bench,
    envelope,
    event,
    event_handler,
    handling,
    log_bench,
    until,
)

from polywire.bus.backend.memory_results import MemoryResults
from polywire.bus.consumer import Handling, QueueRunner, task_handling
from polywire.bus.core.results import result_key, value_of
from polywire.contract import Contract, Message, service_of, task
from polywire.contract.retry import Backoff, Retry
from polywire.errors import BackendLost, CallError, Internal, NotFound, Reject
from polywire.telemetry.message_log import MessageLog

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


class Thumb(Message):
    size: int


class Images(Contract, package="shop.v1"):
    @task(retry=Retry(attempts=2, base=0.0), timeout=7.0)
    async def resize(self, job: Job) -> Thumb:
        raise NotImplementedError

    @task(at_most_once=True)
    async def ping(self) -> None:
        raise NotImplementedError


class Impl(Images):
    def __init__(self) -> None:
        self.plan: list[BaseException] = []
        self.runs = 0

    async def resize(self, job: Job) -> Thumb:
        self.runs += 1
        if self.plan:
            raise self.plan.pop(0)
        return Thumb(size=job.n * 2)

    async def ping(self) -> None:
        self.runs += 1


RESIZE = service_of(Images).tasks["resize"]
PING = service_of(Images).tasks["ping"]


def asked(n: int, store: str | None = "results") -> Any:
    return envelope(n, type=RESIZE.full_name, reply_to=store)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Bench, Impl, MemoryResults, QueueRunner]]:
    async with bench() as b:
        impl, store = Impl(), MemoryResults(clock=b.clock)
        await store.start()
        handlings = [task_handling(RESIZE, impl.resize, {"results": store}), task_handling(PING, impl.ping)]
        runner = await b.run(*handlings)
        yield b, impl, store, runner
        await runner.stop(0.0)
        await store.close()


async def outcome(store: MemoryResults, n: int) -> Any:
    found = await store.wait(result_key(RESIZE.full_name, f"m{n}"), timeout=None)
    assert found is not None
    return value_of(found, RESIZE.full_name, RESIZE.response)


def test_a_handling_is_read_from_its_task() -> None:
    impl = Impl()
    made = task_handling(RESIZE, impl.resize)
    assert (made.title, made.timeout, made.backoff.attempts, made.in_thread) == ("shop.v1.Images/Resize", 7.0, 2, False)
    ping = task_handling(PING, impl.ping)
    assert (ping.at_most_once, ping.empty, ping.backoff.attempts, ping.answers) == (True, True, 1, None)


async def test_a_result_is_there_once_the_task_is_done() -> None:
    async with serving() as (b, _, store, runner):
        await b.send(asked(4))
        assert (await outcome(store, 4)).size == 8
        await b.empty()
        assert runner.counters.done == 1


async def test_a_task_without_an_argument_is_called_without_one() -> None:
    async with serving() as (b, impl, _, runner):
        await b.send(envelope(1, type=PING.full_name, body=b""))
        await until(lambda: runner.counters.done == 1)
        assert impl.runs == 1


async def test_the_error_of_a_task_that_was_given_up_comes_back_as_its_class() -> None:
    async with serving() as (b, impl, store, _):
        impl.plan = [NotFound("no such image"), NotFound("no such image")]
        await b.send(asked(1))
        with pytest.raises(NotFound, match="no such image"):
            await outcome(store, 1)


@pytest.mark.parametrize("plan", [[Reject("secret")], [ValueError("secret")] * 2])
async def test_any_other_error_is_told_without_its_text(plan: list[BaseException]) -> None:
    async with serving() as (b, impl, store, _):
        impl.plan = plan
        await b.send(asked(1))
        with pytest.raises(Internal) as raised:
            await outcome(store, 1)
        assert "secret" not in str(raised.value)


async def test_who_waits_is_told_of_messages_that_no_handler_got() -> None:
    async with serving() as (b, impl, store, _):
        sent = asked(1)
        sent.expires = b.clock.time() - 1.0
        broken = asked(2)
        broken.body = b"{"
        await b.send(sent, broken)
        for n in (1, 2):
            with pytest.raises(CallError):
                await outcome(store, n)
        assert impl.runs == 0


async def test_a_result_for_a_store_that_is_not_here_is_an_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (b, impl, _, runner):
        await b.send(asked(1, "elsewhere"), asked(2, None))
        await b.empty()
        assert (impl.runs, runner.counters.done) == (2, 2)
        assert caplog.messages == [
            "the result of shop.v1.Images/Resize is not kept: it was to go to the store 'elsewhere', and this process "
            "has 'results' (id m1)"
        ]


async def test_a_result_that_cannot_be_kept_counts_as_a_failure() -> None:
    async with serving() as (b, impl, store, runner):
        put = store.put
        failures = [BackendLost("gone")]

        async def fail(*arguments: Any, **options: Any) -> None:
            if failures:
                raise failures.pop()
            await put(*arguments, **options)

        store.put = fail  # type: ignore[method-assign]  # replaced for the test
        await b.send(asked(3))
        assert (await outcome(store, 3)).size == 6
        await b.empty()
        assert (impl.runs, runner.counters.retried) == (2, 1)


async def test_a_failure_that_cannot_be_told_keeps_the_message_until_it_is() -> None:
    async with serving() as (b, impl, store, runner):
        impl.plan = [Reject("no")]
        put = store.put
        failures = [BackendLost("gone")]

        async def fail(*arguments: Any, **options: Any) -> None:
            if failures:
                raise failures.pop()
            await put(*arguments, **options)

        store.put = fail  # type: ignore[method-assign]  # replaced for the test
        impl.plan += [Reject("no")]
        await b.send(asked(3))
        for _ in range(3):
            await b.clock.advance(5.0)
        with pytest.raises(Internal):
            await outcome(store, 3)
        await b.empty()
        assert (runner.counters.retried, runner.counters.dead) == (1, 1)


# ---- log lines ----


async def lines_of(format: Any, *more: Handling) -> list[str]:
    written: list[str] = []
    async with bench() as b:
        script = Script()
        script.plan[2] = [ValueError("secret")]
        script.always[3] = Reject("secret")
        message_log = MessageLog(written.append, format=format, service="images", clock=b.clock)
        await b.run(handling(script.handle), message_log=message_log, concurrency=1)
        await b.send(envelope(1, request_id="r1", traceparent=TRACE), envelope(2), envelope(3, id='b"ad\n'))
        for _ in range(3):
            await b.clock.advance(1.0)
        await b.empty()
        message_log.close()
    return "".join(written).splitlines()


async def test_each_run_is_a_line_of_text() -> None:
    lines = await lines_of("text")
    assert [line.partition(" ")[2] for line in lines] == [
        f"INFO    shop.v1.Jobs/Do DONE shop.v1.Jobs 0.00 ms id=m1 request=r1 trace={'a' * 32}",
        "WARNING shop.v1.Jobs/Do RETRY shop.v1.Jobs 0.00 ms id=m2",
        'ERROR   shop.v1.Jobs/Do REJECTED shop.v1.Jobs 0.00 ms id="b\\"ad\\n"',
        "INFO    shop.v1.Jobs/Do DONE shop.v1.Jobs 0.00 ms id=m2 attempt=2",
    ]
    assert "secret" not in "".join(lines)


async def test_each_run_is_a_line_of_json() -> None:
    lines = [json.loads(line) for line in await lines_of("json")]
    assert [line["polywire.outcome"] for line in lines] == ["done", "retry", "rejected", "done"]
    first = lines[0]
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "severity": "INFO",
        "service.name": "images",
        "polywire.message.type": "shop.v1.Jobs/Do",
        "polywire.outcome": "done",
        "messaging.destination.name": QUEUE,
        "duration": 0.0,
        "messaging.message.id": "m1",
        "request_id": "r1",
        "trace_id": "a" * 32,
    }
    assert lines[3]["polywire.attempt"] == 2


async def test_the_line_of_an_event_names_its_group() -> None:
    written: list[str] = []
    async with log_bench(1) as b:
        message_log = MessageLog(written.append, format="json", clock=b.clock)
        await b.run(event_handler(Script().handle, backoff=Backoff(attempts=1, base=0, cap=0)), message_log=message_log)
        await b.append(event(1))
        await b.caught_up()
        message_log.close()
    [line] = [json.loads(line) for line in "".join(written).splitlines()]
    assert line["messaging.consumer.group.name"] == GROUP
