"""The dispatcher: what a handler may do, and what its caller is told."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from polywire import Contract, Message, calling, current, rpc
from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.context import Call
from polywire.discovery import StaticResolver
from polywire.errors import (
    DO_NOT_RETRY,
    CallError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    NotFound,
    SetupError,
    Unauthenticated,
    Unavailable,
)
from polywire.server import BearerTokens
from polywire.services import Services
from polywire.testing import ManualClock, settle
from polywire.wire.local import LocalWire


class Word(Message, package="unit.v1"):
    word: str = ""


class Runner(Contract, package="unit.v1"):
    @rpc
    async def run(self, word: Word) -> Word:
        raise NotImplementedError

    @rpc
    def listen(self, word: Word) -> AsyncIterator[Word]:
        raise NotImplementedError


class RunnerService(Runner):
    """Runs whatever the test hands it."""

    def __init__(self, body: Callable[[], Awaitable[Any]] | None = None) -> None:
        self.body = body
        self.closed = 0

    async def run(self, word: Word) -> Word:
        assert self.body is not None
        await self.body()
        return word

    async def listen(self, word: Word) -> AsyncIterator[Word]:
        try:
            yield word
            await asyncio.Event().wait()
        finally:
            self.closed += 1


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def record(self, call: Call, code: str, duration: float) -> None:
        self.lines.append((call.method, code))


def client_of(services: Services, clock: ManualClock | None = None) -> Runner:
    wires = Endpoints(StaticResolver(["local"]), lambda _: LocalWire(services))
    return client_for(Runner, Channel("runner", wires))


async def running(body: Callable[[], Awaitable[Any]]) -> None:
    """Run *body* as a handler."""
    await client_of(Services([RunnerService(body)])).run(Word())


# A handler behaves as any other task (docs/decisions/0002).


async def test_a_handler_has_a_task_of_its_own() -> None:
    seen: list[asyncio.Task[Any] | None] = []

    async def body() -> None:
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)
        seen.append(asyncio.current_task())

    await running(body)
    assert seen[0] is not None
    assert seen[0] is seen[1]
    assert seen[0] is not asyncio.current_task()


async def test_timeouts_and_task_groups_work_in_a_handler() -> None:
    async def body() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        done: list[int] = []

        async def part(number: int) -> None:
            await asyncio.sleep(0)
            done.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(part(number))
        assert sorted(done) == [0, 1, 2]

    await running(body)


async def test_context_variables_of_callers_and_handlers_are_strangers() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
    seen: list[str] = []

    async def body() -> None:
        seen.append(variable.get())
        variable.set("the handler's")

    variable.set("the caller's")
    await running(body)
    assert seen == ["nothing"]
    assert variable.get() == "the caller's"


async def test_tasks_that_a_handler_starts_know_its_call() -> None:
    seen: list[str] = []

    async def body() -> None:
        async def part() -> None:
            seen.append(current().method)

        await asyncio.create_task(part())

    await running(body)
    assert seen == ["unit.v1.Runner/Run"]


def test_there_is_no_current_call_outside_of_a_handler() -> None:
    with pytest.raises(LookupError) as caught:
        current()
    assert str(caught.value) == (
        "current() was asked for outside of a handler: there is no call under way here. "
        "Use it inside a service's method, or `calling(...)` to describe calls that you make."
    )


async def test_a_handler_may_answer_after_it_was_cancelled_at_its_deadline_but_nobody_waits() -> None:
    async def body() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # it tidies up first
            raise

    log = Log()
    services = Services([RunnerService(body)], access_log=log)
    with calling(timeout=0.02), pytest.raises(DeadlineExceeded):
        await client_of(services).run(Word())
    await services.finish(1.0)
    assert log.lines == [("unit.v1.Runner/Run", "deadline_exceeded")]


# What callers are told.


async def test_a_bug_is_logged_with_its_stack_and_told_without(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        raise ZeroDivisionError("the password is hunter2")

    with caplog.at_level(logging.ERROR), pytest.raises(Internal) as caught:
        await running(body)
    assert str(caught.value) == f"internal error, request id {caught.value.request_id}"
    (record,) = caplog.records
    assert record.getMessage() == (
        f"unit.v1.Runner/Run failed with an exception that is no error of its contract "
        f"(request id {caught.value.request_id})"
    )
    assert record.exc_info is not None
    assert "hunter2" in str(record.exc_info[1])


async def test_a_handler_cannot_say_that_it_was_not_reached() -> None:
    async def body() -> None:
        raise Unavailable("come back later", reached="no")

    with pytest.raises(Unavailable) as caught:
        await running(body)
    assert caught.value.reached == "maybe"


def nested(error: CallError) -> Callable[[], Awaitable[None]]:
    """A handler whose own call ended with *error*."""

    async def body() -> None:
        error.method = "shop.v1.Inventory/CheckStock"
        raise error

    return body


async def test_a_nested_call_that_did_not_get_through_tells_no_address_and_is_not_taken_for_this_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = Unavailable("10.0.0.7:8001 did not answer: connection refused.", reached="no", retry_after=DO_NOT_RETRY)
    with pytest.raises(Unavailable) as caught:
        await running(nested(lost))
    assert str(caught.value) == (
        "unit.v1.Runner/Run could not be completed: shop.v1.Inventory/CheckStock is not available."
    )
    assert caught.value.reached == "maybe"
    assert caught.value.retry_after == DO_NOT_RETRY
    assert "10.0.0.7:8001 did not answer" in caplog.text


async def test_a_nested_call_that_ran_out_of_time_is_told_by_its_name() -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        await running(nested(DeadlineExceeded("did not answer within 0.5 s")))
    assert str(caught.value) == (
        "unit.v1.Runner/Run could not be completed: shop.v1.Inventory/CheckStock did not answer in time."
    )


async def test_wrong_credentials_of_this_service_are_not_its_callers_business() -> None:
    with pytest.raises(Internal) as caught:
        await running(nested(Unauthenticated("needs credentials")))
    assert str(caught.value) == f"internal error, request id {caught.value.request_id}"


async def test_an_error_of_the_other_services_domain_goes_on_as_it_is() -> None:
    with pytest.raises(NotFound) as caught:
        await running(nested(NotFound("no product 'SKU-1'")))
    assert str(caught.value) == "no product 'SKU-1'"


async def test_a_handler_cancelled_by_itself_is_not_taken_for_a_failure_of_its_own() -> None:
    async def body() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    with pytest.raises(Cancelled):
        await running(body)


async def test_a_principal_is_believed_only_from_a_caller_that_proved_who_it_is() -> None:
    class Trusting:
        def caller_of(self, call: Call) -> str | None:
            return "gateway"

    for authenticator, believed in ((None, None), (Trusting(), "user-1")):
        seen: list[str | None] = []

        async def body(seen: list[str | None] = seen) -> None:
            seen.append(current().principal)

        services = Services([RunnerService(body)], authenticator=authenticator)
        call = Call("unit.v1.Runner/Run")
        call.principal = "user-1"
        handler = services.handlers["/unit.v1.Runner/Run"]
        await asyncio.create_task(services.unary(handler, call, lambda _: Word(), b"", lambda _: b""))
        assert seen == [believed]


# Admission and the end.


async def test_work_whose_deadline_has_passed_is_refused_before_it_starts() -> None:
    clock = ManualClock()
    ran: list[str] = []

    async def body() -> None:
        ran.append("ran")

    services = Services([RunnerService(body)], clock=clock)
    handler = services.handlers["/unit.v1.Runner/Run"]
    call = Call("unit.v1.Runner/Run", deadline=clock.monotonic() - 0.001, clock=clock)
    with pytest.raises(DeadlineExceeded) as caught:
        await services.unary(handler, call, lambda _: ran.append("decoded"), b"", lambda _: b"")
    assert str(caught.value) == "unit.v1.Runner/Run was not started: its deadline had passed when it arrived."
    assert ran == []


async def test_a_call_whose_caller_left_before_it_started_is_not_run() -> None:
    services = Services([RunnerService()])
    call = Call("unit.v1.Runner/Run")
    services.cancel(call)
    with pytest.raises(Cancelled) as caught:
        await services.unary(services.handlers["/unit.v1.Runner/Run"], call, lambda _: Word(), b"", lambda _: b"")
    assert str(caught.value) == "unit.v1.Runner/Run was not started: its caller had gone."


async def test_finishing_waits_for_what_runs_and_then_refuses() -> None:
    release = asyncio.Event()
    services = Services([RunnerService(release.wait)])
    client = client_of(services)
    call = asyncio.ensure_future(client.run(Word(word="a")))
    await settle()
    finishing = asyncio.ensure_future(services.finish(5.0))
    await settle()
    assert not finishing.done()
    release.set()
    assert await call == Word(word="a")
    await finishing
    with pytest.raises(Unavailable) as caught:
        await client.run(Word())
    assert caught.value.reached == "no"


async def test_what_does_not_finish_in_its_grace_is_stopped_and_told() -> None:
    log = Log()
    services = Services([RunnerService(asyncio.Event().wait)], access_log=log)
    call = asyncio.ensure_future(client_of(services).run(Word()))
    await settle()
    await services.finish(0.01)
    with pytest.raises(Unavailable) as caught:
        await call
    assert str(caught.value) == "unit.v1.Runner/Run was stopped: the service is shutting down."
    assert log.lines == [("unit.v1.Runner/Run", "unavailable")]


async def test_a_stream_on_which_nothing_moves_is_ended_after_the_idle_limit() -> None:
    clock = ManualClock()
    service = RunnerService()
    services = Services([service], clock=clock, stream_idle_timeout=60.0)
    got: list[Word] = []

    async def send(word: Word) -> None:
        got.append(word)

    call = Call("unit.v1.Runner/Listen", clock=clock)
    handler = services.handlers["/unit.v1.Runner/Listen"]
    task = asyncio.ensure_future(services.stream(handler, call, lambda: Word(word="a"), send))
    await settle()
    await clock.advance(59)
    assert not task.done()
    await clock.advance(2)
    with pytest.raises(Cancelled) as caught:
        await task
    assert str(caught.value) == (
        "unit.v1.Runner/Listen was ended: no message went either way for 60 s. "
        "Open the stream again, or give it a deadline."
    )
    assert (got, service.closed) == ([Word(word="a")], 1)


async def test_streams_without_a_deadline_end_when_the_service_is_asked_to_stop() -> None:
    service = RunnerService()
    services = Services([service])
    client = client_of(services)
    stream = client.listen(Word(word="a"))
    assert await anext(stream) == Word(word="a")
    services.end_streams()
    with pytest.raises(Unavailable) as caught:
        await anext(stream)
    assert str(caught.value) == "unit.v1.Runner/Listen was stopped: the service is shutting down."
    assert service.closed == 1


async def test_unknown_methods_share_one_counter_however_many_names_a_peer_tries() -> None:
    services = Services([RunnerService()])
    for number in range(1000):
        services.rejected(Call(f"nonsense/{number}"), CallError("x"))
    assert set(services.counters) == {"unknown"}


# Putting services together.


def test_an_object_without_a_contract_cannot_be_served() -> None:
    with pytest.raises(SetupError) as caught:
        Services([object()])
    assert str(caught.value) == (
        "object cannot be served: it implements no contract. Derive it from one, `class StockService(Inventory): ...`."
    )


def test_one_contract_cannot_be_implemented_twice_in_one_process() -> None:
    with pytest.raises(SetupError) as caught:
        Services([RunnerService(), RunnerService()])
    assert str(caught.value) == (
        "unit.v1.Runner is implemented twice: by RunnerService and by another service of the same process. "
        "Serve one of them elsewhere."
    )


def test_a_token_names_its_service_and_may_change_while_running() -> None:
    tokens = {"orders": "one", "users": "two", "off": ""}
    check = BearerTokens({name: lambda name=name: tokens[name] for name in tokens})  # type: ignore[misc]  # default binds

    def caller(credentials: str | None) -> str | None:
        call = Call()
        call.credentials = credentials
        return check.caller_of(call)

    assert caller("Bearer one") == "orders"
    assert caller("bearer two") == "users"
    for wrong in (None, "", "Bearer", "Bearer ", "Basic one", "Bearer three", "one"):
        assert caller(wrong) is None
    tokens["orders"] = "three"
    assert caller("Bearer three") == "orders"
    assert caller("Bearer one") is None
