"""What every wire promises, as tests: derive a class from `WireSuite` and override `serving`."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Protocol, TypeVar
from uuid import UUID

from polywire import errors
from polywire.client import client_for
from polywire.context import calling, current
from polywire.contract import Contract, Field, Message, get, post, rpc
from polywire.contract.details import ErrorInfo
from polywire.errors import (
    DO_NOT_RETRY,
    CallError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from polywire.services import Authenticator
from polywire.testing.wire_errors import ErrorRules

C = TypeVar("C", bound=Contract)
SOON = 5.0
"""Seconds within which everything here happens, many times over."""


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Card(Message, tag="card"):
    number: str


class Cash(Message, tag="cash"):
    amount: Decimal


class Everything(Message):
    """A field of every kind that can travel."""

    text: str = ""
    flag: bool = False
    number: int = 0
    ratio: float = 0.0
    blob: bytes = b""
    at: datetime | None = None
    lasts: timedelta | None = None
    price: Decimal | None = None
    id: UUID | None = None
    colour: Colour | None = None
    numbers: list[int] = []
    words: dict[str, str] = {}
    inner: Everything | None = None
    inners: list[Everything] = []
    payment: Card | Cash | None = None


class Text(Message):
    text: str


class Amount(Message):
    amount: Annotated[int, Field(ge=0, le=1000)]


class Failure(Message):
    code: str
    text: str = ""
    retry_after: float | None = None


class Seen(Message):
    """What a handler found out about its call."""

    request_id: str = ""
    method: str = ""
    time_left: float | None = None
    tenant: str = ""
    token: bytes = b""
    caller: str | None = None
    traceparent: str | None = None
    baggage: str | None = None
    attempt: int = 0


class Probe(Contract, package="polywire.probe.v1"):
    """Methods that show what a wire does."""

    @rpc(post("/probe/echo"), idempotent=True)
    async def echo(self, everything: Everything) -> Everything:
        """What it was sent."""
        raise NotImplementedError

    @rpc(post("/probe/nothing"))
    async def nothing(self) -> None:
        """No argument, no result."""
        raise NotImplementedError

    @rpc(post("/probe/amount"))
    async def amount(self, amount: Amount) -> Amount:
        """Ten times as much: more than 1000 breaks the contract."""
        raise NotImplementedError

    @rpc(post("/probe/fail"))
    async def fail(self, failure: Failure) -> Text:
        """Raise the error asked for."""
        raise NotImplementedError

    @rpc(post("/probe/fail_once"), idempotent=True)
    async def fail_once(self, failure: Failure) -> Text:
        """Raise the error asked for at the first call with that text, answer the second."""
        raise NotImplementedError

    @rpc(post("/probe/fail_once_unsafely"))
    async def fail_once_unsafely(self, failure: Failure) -> Text:
        """As `fail_once`, but not declared idempotent."""
        raise NotImplementedError

    @rpc(get("/probe/seen"))
    async def seen(self) -> Seen:
        """What the handler knows of the call."""
        raise NotImplementedError

    @rpc(get("/probe/seen_behind"))
    async def seen_behind(self) -> Seen:
        """What a handler knows that was called by this one."""
        raise NotImplementedError

    @rpc(post("/probe/wait"), timeout=4 * SOON)  # not the deadline is to end it where a test waits for something else
    async def wait(self, text: Text) -> Text:
        """Do not answer until `release` is called."""
        raise NotImplementedError

    @rpc
    def count(self, amount: Amount) -> AsyncIterator[Amount]:
        """The numbers below the amount, one by one; 1000 has no end, 999 fails after three."""
        raise NotImplementedError

    @rpc
    async def total(self, amounts: AsyncIterator[Amount]) -> Amount:
        """The sum of all; answers early once a 1000 comes."""
        raise NotImplementedError

    @rpc
    def chat(self, texts: AsyncIterator[Text]) -> AsyncIterator[Text]:
        """Each text in capitals, as it comes."""
        raise NotImplementedError

    @rpc(post("/probe/missing"))
    async def missing(self) -> None:
        """The service does not implement it."""
        raise NotImplementedError


@dataclass
class ProbeService(Probe):
    """The other end of the suite. It notes what happened to its handlers."""

    behind: Probe | None = None
    started: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    produced: int = 0
    failed: set[str] = field(default_factory=set)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    happened: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def _note(self, where: list[str], what: str) -> None:
        where.append(what)
        async with self.happened:
            self.happened.notify_all()

    async def until(self, where: list[str], what: str) -> None:
        """Wait until *what* was noted."""
        async with asyncio.timeout(SOON), self.happened:
            await self.happened.wait_for(lambda: what in where)

    async def echo(self, everything: Everything) -> Everything:
        everything.words["seen"] = "yes"
        return everything

    async def nothing(self) -> None:
        self.started.append("nothing")

    async def amount(self, amount: Amount) -> Amount:
        return Amount(amount=amount.amount * 10)

    async def fail(self, failure: Failure) -> Text:
        self.started.append(failure.text)
        if failure.code == "a bug":
            raise ZeroDivisionError("the secret of the service")
        raise _error(failure)

    async def fail_once(self, failure: Failure) -> Text:
        self.started.append(failure.text)
        if failure.text not in self.failed:
            self.failed.add(failure.text)
            raise _error(failure)
        return Text(text=failure.text)

    async def fail_once_unsafely(self, failure: Failure) -> Text:
        return await self.fail_once(failure)

    async def seen(self) -> Seen:
        call = current()
        call.respond_with("x-before", "first")
        call.trail_with("x-after", "last")
        call.trail_with("x-after-bin", b"\x00\xff")
        return Seen(
            request_id=call.request_id,
            method=call.method,
            time_left=call.time_left(),
            tenant=str(call.metadata.get("tenant", "")),
            token=_bytes(call.metadata.get("token-bin", b"")),
            caller=call.caller,
            traceparent=call.traceparent,
            baggage=call.baggage,
            attempt=call.attempt,
        )

    async def seen_behind(self) -> Seen:
        assert self.behind is not None
        with calling(timeout=SOON * 10):
            return await self.behind.seen()

    async def wait(self, text: Text) -> Text:
        await self._note(self.started, text.text)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(text.text)
            raise
        finally:
            await asyncio.shield(self._note(self.ended, text.text))
        return text

    async def count(self, amount: Amount) -> AsyncIterator[Amount]:
        try:
            number = 0
            while number < amount.amount or amount.amount == 1000:
                if amount.amount == 999 and number == 3:
                    raise ResourceExhausted("no more numbers")
                self.produced += 1
                yield Amount(amount=number % 1000)
                number += 1
        finally:
            self.ended.append(f"count {amount.amount}")
            async with self.happened:
                self.happened.notify_all()

    async def total(self, amounts: AsyncIterator[Amount]) -> Amount:
        total = 0
        async for amount in amounts:
            if amount.amount == 1000:
                return amount
            total += amount.amount
        return Amount(amount=total)

    async def chat(self, texts: AsyncIterator[Text]) -> AsyncIterator[Text]:
        try:
            async for text in texts:
                if text.text == "fail":
                    raise NotFound("nobody to talk to")
                yield Text(text=text.text.upper())
                if text.text == "bye":
                    return
        finally:
            self.ended.append("chat")
            async with self.happened:
                self.happened.notify_all()


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _error(failure: Failure) -> CallError:
    details = (ErrorInfo(reason="PROBED", domain="polywire.probe", metadata={"a": "b"}),)
    return errors.BY_CODE[failure.code](failure.text, details=details, retry_after=failure.retry_after)


class Served(Protocol):
    """A service that is being served over the wire under test."""

    def client(self, contract: type[C], *, token: str | None = None) -> C:
        """A client with a connection of its own."""
        ...

    async def cut(self) -> None:
        """Lose every connection, as when a process is killed."""


class Tokens:
    """An authenticator for the suite: the token is the name of the caller, backwards."""

    def caller_of(self, call: Any) -> str | None:
        given = call.credentials or ""
        return "orders" if given == "Bearer sredro" else None


class WireSuite(ErrorRules):
    """The rules of a call (`EndpointWire` and `Dispatcher` in `polywire.wire.seam`) as tests, the same for every wire.

    Override `serving`. A wire that cannot stream both ways at once says so with `bidirectional = False`.
    """

    bidirectional = True

    def serving(
        self, *services: object, authenticator: Authenticator | None = None
    ) -> AbstractAsyncContextManager[Served]:
        """Serve *services* over the wire under test."""
        raise NotImplementedError

    # Values

    async def test_every_kind_of_field_arrives_as_it_was_sent(self) -> None:
        sent = Everything(
            text="grün ✓",
            flag=True,
            number=-(2**53),
            ratio=0.1,
            blob=b"\x00\xff",
            at=datetime(2026, 11, 21, 12, 30, 15, 250000, tzinfo=UTC),
            lasts=timedelta(seconds=90, milliseconds=500),
            price=Decimal("12.50"),
            id=UUID("12345678-1234-5678-1234-567812345678"),
            colour=Colour.GREEN,
            numbers=[1, -2, 3],
            words={"a": "b"},
            inner=Everything(text="inside"),
            inners=[Everything(number=1), Everything(number=2)],
            payment=Card(number="4111"),
        )
        async with self.serving(ProbeService()) as served:
            got = await served.client(Probe).echo(sent)
        sent.words["seen"] = "yes"
        assert got == sent

    async def test_an_empty_message_arrives_empty(self) -> None:
        async with self.serving(ProbeService()) as served:
            assert await served.client(Probe).echo(Everything()) == Everything(words={"seen": "yes"})

    async def test_what_a_handler_does_to_its_request_is_not_seen_by_the_caller(self) -> None:
        sent = Everything(words={"a": "b"})
        async with self.serving(ProbeService()) as served:
            await served.client(Probe).echo(sent)
        assert sent.words == {"a": "b"}

    async def test_a_method_without_argument_and_result_is_called(self) -> None:
        service = ProbeService()
        async with self.serving(service) as served:
            assert await served.client(Probe).nothing() is None  # type: ignore[func-returns-value]  # that is what is tested
        assert service.started == ["nothing"]

    async def test_a_message_of_three_megabytes_goes_both_ways(self) -> None:
        async with self.serving(ProbeService()) as served:
            got = await served.client(Probe).echo(Everything(text="x" * 3_000_000))
        assert len(got.text) == 3_000_000

    async def test_a_message_over_the_limit_is_refused_and_the_next_one_served(self) -> None:
        async with self.serving(ProbeService()) as served:
            client = served.client(Probe)
            error = await _failing(client.echo(Everything(text="x" * 5_000_000)))
            assert type(error) is ResourceExhausted
            assert await client.echo(Everything(text="x")) == Everything(text="x", words={"seen": "yes"})

    async def test_a_streamed_message_over_the_limit_is_refused_and_the_next_call_served(self) -> None:
        async def texts(text: str) -> AsyncIterator[Text]:
            yield Text(text=text)

        if not self.bidirectional:
            return
        async with self.serving(ProbeService()) as served, asyncio.timeout(SOON):
            client = served.client(Probe)
            try:
                async for _ in client.chat(texts("x" * 5_000_000)):
                    raise AssertionError("this was answered")
            except ResourceExhausted:
                pass
            else:
                raise AssertionError("the refusal was not noticed")
            assert [text.text async for text in client.chat(texts("a"))] == ["A"]

    async def test_answers_of_concurrent_calls_are_not_mixed_up(self) -> None:
        async with self.serving(ProbeService()) as served:
            client = served.client(Probe)
            texts = [f"number {i}" for i in range(200)]
            answers = await asyncio.gather(*(client.echo(Everything(text=text)) for text in texts))
        assert [answer.text for answer in answers] == texts

    # Errors

    async def test_every_canonical_code_arrives_as_its_class_with_message_and_details(self) -> None:
        async with self.serving(ProbeService()) as served:
            client = served.client(Probe)
            for code, kind in errors.BY_CODE.items():
                try:
                    await client.fail(Failure(code=code, text=f"went wrong: {code} ✓"))
                except CallError as error:
                    assert type(error) is kind
                    assert error.message == f"went wrong: {code} ✓"
                    assert error.details == (ErrorInfo(reason="PROBED", domain="polywire.probe", metadata={"a": "b"}),)
                    assert error.method == "polywire.probe.v1.Probe/Fail"
                else:
                    raise AssertionError(f"{code} did not arrive")

    async def test_pushback_arrives_in_seconds(self) -> None:
        async with self.serving(ProbeService()) as served:
            client = served.client(Probe)
            for pushback in (1.5, DO_NOT_RETRY):
                error = await _failing(client.fail(Failure(code="aborted", text="later", retry_after=pushback)))
                assert error.retry_after == pushback

    async def test_an_exception_of_the_handler_is_internal_and_keeps_its_secret(self) -> None:
        async with self.serving(ProbeService()) as served:
            with calling(metadata={"tenant": "a"}):
                error = await _failing(served.client(Probe).fail(Failure(code="a bug")))
        assert type(error) is Internal
        assert error.message == f"internal error, request id {error.request_id}"
        assert error.request_id

    async def test_a_request_that_breaks_its_contract_names_the_field(self) -> None:
        async with self.serving(ProbeService()) as served:
            error = await _failing(served.client(Probe).amount(Amount(amount=-1)))
        assert isinstance(error, InvalidArgument)
        assert error.field == "amount"

    async def test_an_answer_that_breaks_its_contract_is_internal(self) -> None:
        async with self.serving(ProbeService()) as served:
            error = await _failing(served.client(Probe).amount(Amount(amount=101)))
        assert type(error) is Internal
        assert error.message == f"internal error, request id {error.request_id}"

    async def test_a_method_that_the_service_does_not_implement_is_unimplemented(self) -> None:
        async with self.serving(ProbeService()) as served:
            error = await _failing(served.client(Probe).missing())
        assert type(error) is Unimplemented
        assert error.message == (
            "polywire.probe.v1.Probe/Missing is in the contract, but the service does not implement it."
        )

    async def test_a_service_that_is_not_there_is_unimplemented(self) -> None:
        class Elsewhere(Contract, package="polywire.probe.v1"):
            @rpc
            async def call(self) -> None:
                raise NotImplementedError

        async with self.serving(ProbeService()) as served:
            error = await _failing(served.client(Elsewhere).call())
        assert type(error) is Unimplemented

    # Time

    async def test_a_call_ends_at_its_deadline_and_the_handler_is_cancelled(self) -> None:
        service = ProbeService()
        async with self.serving(service) as served:
            with calling(timeout=0.05):
                error = await _failing(served.client(Probe).wait(Text(text="a")))
            assert type(error) is DeadlineExceeded
            await service.until(service.ended, "a")
        assert service.cancelled == ["a"]

    async def test_the_deadline_is_known_to_the_handler_and_to_those_it_calls(self) -> None:
        async with (
            self.serving(ProbeService()) as behind,
            self.serving(ProbeService(behind=behind.client(Probe))) as front,
        ):
            with calling(timeout=2.0):
                seen = await front.client(Probe).seen_behind()
        assert seen.time_left is not None
        assert 0 < seen.time_left <= 2.0

    async def test_a_cancelled_call_cancels_its_handler(self) -> None:
        service = ProbeService()
        async with self.serving(service) as served:
            call = asyncio.ensure_future(served.client(Probe).wait(Text(text="a")))
            await service.until(service.started, "a")
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
            await service.until(service.ended, "a")
        assert service.cancelled == ["a"]

    async def test_the_connection_serves_others_after_a_cancelled_call(self) -> None:
        service = ProbeService()
        async with self.serving(service) as served:
            client = served.client(Probe)
            for _ in range(3):
                call = asyncio.ensure_future(client.wait(Text(text="a")))
                await service.until(service.started, "a")
                service.started.clear()
                call.cancel()
                await asyncio.wait([call])
                assert (await client.echo(Everything(text="b"))).text == "b"

    # What travels beside

    async def test_metadata_travels_both_ways(self) -> None:
        async with self.serving(ProbeService()) as served:
            with calling(metadata={"tenant": "a", "token-bin": b"\x00\x01\xff"}) as call:
                seen = await served.client(Probe).seen()
        assert (seen.tenant, seen.token) == ("a", b"\x00\x01\xff")
        assert call.headers["x-before"] == "first"
        assert {**call.headers, **call.trailers}["x-after"] == "last"
        assert {**call.headers, **call.trailers}["x-after-bin"] == b"\x00\xff"
        assert call.attempts == 1
        assert call.endpoint

    async def test_metadata_that_no_header_can_carry_is_refused_before_it_is_sent(self) -> None:
        service = ProbeService()
        async with self.serving(service) as served:
            for name, value in (
                ("tenant", "a\r\nb: c"),
                ("a b", "c"),
                ("raw-bin", "text"),
                ("x", b"bytes"),
                ("te", "x"),
            ):
                with calling(metadata={name: value}):
                    error = await _failing(served.client(Probe).nothing())
                assert isinstance(error, InvalidArgument), name
        assert service.started == []

    async def test_the_request_id_is_the_same_on_every_hop(self) -> None:
        async with (
            self.serving(ProbeService()) as behind,
            self.serving(ProbeService(behind=behind.client(Probe))) as front,
        ):
            first = await front.client(Probe).seen_behind()
            second = await front.client(Probe).seen_behind()
        assert first.request_id
        assert first.request_id != second.request_id

    async def test_the_handler_knows_its_method_by_the_full_name(self) -> None:
        async with self.serving(ProbeService()) as served:
            seen = await served.client(Probe).seen()
        assert (seen.method, seen.attempt) == ("polywire.probe.v1.Probe/Seen", 1)

    # Who is calling

    async def test_a_caller_is_known_by_its_token(self) -> None:
        async with self.serving(ProbeService(), authenticator=Tokens()) as served:
            assert (await served.client(Probe, token="sredro").seen()).caller == "orders"

    async def test_a_call_with_a_wrong_token_or_none_is_unauthenticated(self) -> None:
        async with self.serving(ProbeService(), authenticator=Tokens()) as served:
            wrong = await _failing(served.client(Probe, token="guess").seen())
            none = await _failing(served.client(Probe).seen())
        assert type(wrong) is type(none) is Unauthenticated
        assert wrong.message == ("polywire.probe.v1.Probe/Seen was refused: the credentials are not valid here.")
        assert none.message == "polywire.probe.v1.Probe/Seen was refused: it needs credentials, and none came."

    # Attempts

    async def test_an_idempotent_call_is_tried_again_after_unavailable(self) -> None:
        service = ProbeService()
        async with self.serving(service) as served:
            with calling() as call:
                answer = await served.client(Probe).fail_once(Failure(code="unavailable", text="a"))
        assert answer.text == "a"
        assert service.started == ["a", "a"]
        assert call.attempts == 2

    async def test_a_call_that_may_have_arrived_is_not_tried_again_unless_it_is_safe(self) -> None:
        service = ProbeService()
        async with self.serving(service) as served:
            client = served.client(Probe)
            error = await _failing(client.fail_once_unsafely(Failure(code="unavailable", text="a")))
            assert isinstance(error, Unavailable)
            assert error.reached == "maybe"
            with calling(idempotency_key="k1"):
                answer = await client.fail_once_unsafely(Failure(code="unavailable", text="b"))
        assert answer.text == "b"
        assert service.started == ["a", "b", "b"]

    async def test_pushback_forbids_another_attempt(self) -> None:
        service = ProbeService()
        async with self.serving(service) as served:
            failure = Failure(code="unavailable", text="a", retry_after=DO_NOT_RETRY)
            error = await _failing(served.client(Probe).fail_once(failure))
        assert isinstance(error, Unavailable)
        assert service.started == ["a"]

    async def test_a_lost_connection_is_unavailable_and_maybe_reached(self) -> None:
        service = ProbeService()
        async with self.serving(service) as served:
            call = asyncio.ensure_future(served.client(Probe).wait(Text(text="a")))
            await service.until(service.started, "a")
            await served.cut()
            error = await _failing(call)
        assert isinstance(error, Unavailable)
        assert error.reached == "maybe"

    # Streams

    async def test_a_streamed_answer_arrives_in_order_and_ends(self) -> None:
        async with self.serving(ProbeService()) as served:
            got = [amount.amount async for amount in served.client(Probe).count(Amount(amount=500))]
        assert got == list(range(500))

    async def test_an_empty_streamed_answer_ends(self) -> None:
        async with self.serving(ProbeService()) as served:
            assert [amount async for amount in served.client(Probe).count(Amount(amount=0))] == []

    async def test_an_error_comes_after_the_messages_before_it(self) -> None:
        got = []
        async with self.serving(ProbeService()) as served:
            try:
                async for amount in served.client(Probe).count(Amount(amount=999)):
                    got.append(amount.amount)
            except ResourceExhausted as error:
                assert error.message == "no more numbers"
            else:
                raise AssertionError("the error did not arrive")
        assert got == [0, 1, 2]

    async def test_a_reader_that_does_not_read_holds_the_handler_back(self) -> None:
        service = ProbeService()
        async with self.serving(service) as served:
            stream = served.client(Probe).count(Amount(amount=1000))
            await anext(stream)
            seen, quiet = -1, 0
            while quiet < 5:
                quiet = quiet + 1 if seen == service.produced else 0
                seen = service.produced
                await asyncio.sleep(0.1)
                # Buffers of both sides and the sockets between them, in messages of at least 8 bytes each.
                assert service.produced < 2_000_000

    async def test_letting_go_of_a_stream_ends_its_handler(self) -> None:
        service = ProbeService()
        async with self.serving(service) as served:
            async for _ in served.client(Probe).count(Amount(amount=1000)):
                break
            await service.until(service.ended, "count 1000")

    async def test_a_stream_ends_at_its_deadline(self) -> None:
        service = ProbeService()
        async with self.serving(service) as served:
            with calling(timeout=0.1):
                try:
                    async for _ in served.client(Probe).count(Amount(amount=1000)):
                        await asyncio.sleep(0)
                except DeadlineExceeded:
                    pass
                else:
                    raise AssertionError("the deadline was not kept")
            await service.until(service.ended, "count 1000")

    async def test_streamed_requests_are_answered_once(self) -> None:
        async def amounts() -> AsyncIterator[Amount]:
            for number in range(20):
                yield Amount(amount=number)

        async with self.serving(ProbeService()) as served:
            assert (await served.client(Probe).total(amounts())).amount == 190

    async def test_no_streamed_requests_at_all_are_answered(self) -> None:
        async def amounts() -> AsyncIterator[Amount]:
            for number in range(0):
                yield Amount(amount=number)

        async with self.serving(ProbeService()) as served:
            assert (await served.client(Probe).total(amounts())).amount == 0

    async def test_an_answer_may_come_before_the_requests_end(self) -> None:
        async def amounts() -> AsyncIterator[Amount]:
            yield Amount(amount=1000)
            await asyncio.Event().wait()

        if self.bidirectional:
            async with self.serving(ProbeService()) as served, asyncio.timeout(SOON):
                assert (await served.client(Probe).total(amounts())).amount == 1000

    async def test_an_exception_among_the_requests_reaches_the_caller_as_it_is(self) -> None:
        async def amounts(failure: Exception) -> AsyncIterator[Amount]:
            yield Amount(amount=1)
            raise failure

        async with self.serving(ProbeService()) as served:
            # An error of another call is the requests' own as well, and none of this call.
            for failure in (ZeroDivisionError("mine"), Unavailable("mine", reached="no")):
                try:
                    async with asyncio.timeout(SOON):
                        await served.client(Probe).total(amounts(failure))
                except (ZeroDivisionError, Unavailable) as error:
                    assert error is failure
                else:
                    raise AssertionError("the exception was lost")

    async def test_an_exception_among_the_requests_of_a_conversation_reaches_its_reader_as_it_is(self) -> None:
        if not self.bidirectional:
            return
        service = ProbeService()
        failing = asyncio.Event()

        async def texts(failure: Exception) -> AsyncIterator[Text]:
            yield Text(text="hello")
            await failing.wait()
            raise failure

        async with self.serving(service) as served, asyncio.timeout(SOON):
            for failure in (ZeroDivisionError("mine"), Unavailable("mine", reached="no")):
                service.ended.clear()
                conversation = served.client(Probe).chat(texts(failure))
                assert (await anext(conversation)).text == "HELLO"
                asyncio.get_running_loop().call_soon(failing.set)  # while the reader waits
                try:
                    await anext(conversation)
                except (ZeroDivisionError, Unavailable) as error:
                    assert error is failure
                else:
                    raise AssertionError("the exception was lost")
                await service.until(service.ended, "chat")
                failing.clear()

    async def test_a_streamed_request_that_breaks_its_contract_ends_the_call_and_names_the_field(self) -> None:
        service = ProbeService()
        answered = asyncio.Event()

        async def amounts() -> AsyncIterator[Amount]:
            amount = Amount(amount=1)
            yield amount
            amount.amount = 1001
            yield amount
            await asyncio.Event().wait()

        async def texts() -> AsyncIterator[Text]:
            text = Text(text="hello")
            yield text
            await answered.wait()
            text.text = 3  # type: ignore[assignment]  # that is the point
            yield text
            await asyncio.Event().wait()

        async with self.serving(service) as served:
            client = served.client(Probe)
            error = await _failing(client.total(amounts()))
            assert type(error) is InvalidArgument
            assert "amount" in error.message
            assert error.method == "polywire.probe.v1.Probe/Total"
            if self.bidirectional:
                conversation = client.chat(texts())
                assert (await anext(conversation)).text == "HELLO"
                answered.set()
                error = await _failing(anext(conversation))
                assert type(error) is InvalidArgument
                assert "text" in error.message
                await service.until(service.ended, "chat")

    async def test_a_conversation_goes_back_and_forth(self) -> None:
        if not self.bidirectional:
            return
        asked: asyncio.Queue[str] = asyncio.Queue()

        async def texts() -> AsyncIterator[Text]:
            while True:
                yield Text(text=await asked.get())

        async with self.serving(ProbeService()) as served, asyncio.timeout(SOON):
            conversation = served.client(Probe).chat(texts())
            for word in ("hello", "again", "bye"):
                asked.put_nowait(word)
                assert (await anext(conversation)).text == word.upper()
            assert [text async for text in conversation] == []

    async def test_a_conversation_that_fails_tells_why(self) -> None:
        if not self.bidirectional:
            return

        async def texts() -> AsyncIterator[Text]:
            yield Text(text="hello")
            yield Text(text="fail")
            await asyncio.Event().wait()

        got = []
        async with self.serving(ProbeService()) as served, asyncio.timeout(SOON):
            try:
                async for text in served.client(Probe).chat(texts()):
                    got.append(text.text)
            except NotFound as error:
                assert error.message == "nobody to talk to"
            else:
                raise AssertionError("the error did not arrive")
        assert got == ["HELLO"]

    async def test_a_cancelled_conversation_ends_its_handler(self) -> None:
        if not self.bidirectional:
            return
        service = ProbeService()

        async def texts() -> AsyncIterator[Text]:
            yield Text(text="hello")
            await asyncio.Event().wait()

        async with self.serving(service) as served:
            conversation: Any = served.client(Probe).chat(texts())
            async with aclosing(conversation):
                assert (await anext(conversation)).text == "HELLO"
            await service.until(service.ended, "chat")

    async def test_a_stream_whose_connection_is_lost_is_unavailable(self) -> None:
        async with self.serving(ProbeService()) as served:
            stream = served.client(Probe).count(Amount(amount=1000))
            await anext(stream)
            await served.cut()
            try:
                async with asyncio.timeout(4 * SOON):  # what the sockets hold is read first
                    async for _ in stream:
                        pass
            except (Unavailable, Cancelled) as error:
                assert type(error) is Unavailable
                assert error.reached == "maybe"
            else:
                raise AssertionError("the loss was not noticed")


async def _failing(call: Any) -> CallError:
    """The error that *call* raises."""
    try:
        async with asyncio.timeout(SOON):
            answer = await call
    except CallError as error:
        return error
    raise AssertionError(f"expected an error, got {answer!r}")


__all__ = ["Probe", "ProbeService", "Served", "Tokens", "WireSuite", "client_for"]
