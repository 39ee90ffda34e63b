"""The suite can fail: each planted bug in a wire is caught by the test that is there for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.codec.status import travelled
from polywire.contract import Contract, Message
from polywire.contract.details import UnknownDetail
from polywire.discovery import StaticResolver
from polywire.errors import CallError, Internal, Unavailable
from polywire.services import Authenticator, Services
from polywire.testing.wires import Served, WireSuite
from polywire.wire.local import LocalWire
from polywire.wire.seam import Outgoing

C = TypeVar("C", bound=Contract)


class MixesUpAnswers(LocalWire):
    """Hands every second caller the answer of the one before."""

    _last: Any = None

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        answer = await super().unary(outgoing, encoded, wait_for_ready=wait_for_ready)
        stale, self._last = self._last, answer
        return answer if stale is None else stale


class MakesEveryErrorInternal(LocalWire):
    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        try:
            return await super().unary(outgoing, encoded, wait_for_ready=wait_for_ready)
        except CallError as error:
            raise Internal(str(error)) from None


class LosesDetails(LocalWire):
    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        try:
            return await super().unary(outgoing, encoded, wait_for_ready=wait_for_ready)
        except CallError as error:
            error.details = ()
            raise


class LosesClasses(LocalWire):
    """Raises the canonical error, whatever the contract lists."""

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        try:
            return await super().unary(outgoing, encoded, wait_for_ready=wait_for_ready)
        except CallError as error:
            raise travelled(error) from None


class RaisesWhatNobodyLists(LocalWire):
    """Goes by what the program knows, and not by the contract of its caller."""

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        try:
            return await super().unary(outgoing, encoded, wait_for_ready=wait_for_ready)
        except CallError as error:
            for detail in error.details:
                kind = type(detail).__polywire__.error if isinstance(detail, Message) else None
                if kind is not None:
                    fields = {name: getattr(detail, name) for name in detail.__struct_fields__}
                    raise kind(error.message, **fields) from None
            raise


class FailsOverWhatItCannotRead(LocalWire):
    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        try:
            return await super().unary(outgoing, encoded, wait_for_ready=wait_for_ready)
        except CallError as error:
            if any(isinstance(detail, UnknownDetail) for detail in error.details):
                raise Internal("a detail could not be read") from error
            raise


class SharesErrors(LocalWire):
    """Hands over the object that the handler raised."""

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        try:
            return await super().unary(outgoing, encoded, wait_for_ready=wait_for_ready)
        except CallError:
            service: Any = self._dispatcher.handlers[outgoing.rpc.path].function.__self__  # type: ignore[attr-defined]  # a bound method
            raise service.raised[-1] from None


class HasNoDeadline(LocalWire):
    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        outgoing.deadline = None
        return await super().unary(outgoing, encoded, wait_for_ready=wait_for_ready)


class ForgetsToCancel(LocalWire):
    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        work = asyncio.ensure_future(super().unary(outgoing, encoded, wait_for_ready=wait_for_ready))
        return await asyncio.shield(work)


class DropsMetadata(LocalWire):
    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        outgoing.metadata = ()
        return await super().unary(outgoing, encoded, wait_for_ready=wait_for_ready)


class ForgetsTheToken(LocalWire):
    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        outgoing.authorization = None
        return await super().unary(outgoing, encoded, wait_for_ready=wait_for_ready)


class ForgetsTheRequestId(LocalWire):
    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        outgoing.request_id = ""
        return await super().unary(outgoing, encoded, wait_for_ready=wait_for_ready)


class ClaimsThatNothingArrived(LocalWire):
    """Calls every loss safe to retry."""

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        try:
            return await super().unary(outgoing, encoded, wait_for_ready=wait_for_ready)
        except Unavailable as error:
            error.reached = "no"
            raise


class _Reversed:
    """A stream that hands out pairs of answers in the wrong order."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._held: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def receive(self) -> Any:
        if self._held:
            return self._held.pop()
        first = await self._inner.receive()
        with contextlib.suppress(StopAsyncIteration):
            second = await self._inner.receive()
            self._held.append(first)
            return second
        return first


class ReordersStreams(LocalWire):
    async def stream(self, outgoing: Outgoing, *, wait_for_ready: bool = False) -> Any:
        return _Reversed(await super().stream(outgoing, wait_for_ready=wait_for_ready))


class _Keeping:
    """A stream that does not notice when it is let go of."""

    kept: list[Any] = []

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.kept.append(inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def cancel(self) -> None:
        """Forgotten."""


class KeepsStreams(LocalWire):
    async def stream(self, outgoing: Outgoing, *, wait_for_ready: bool = False) -> Any:
        return _Keeping(await super().stream(outgoing, wait_for_ready=wait_for_ready))


class _BrokenServed:
    def __init__(self, services: Services, kind: type[LocalWire]) -> None:
        self.services = services
        self.kind = kind
        self.wires: list[LocalWire] = []

    def client(self, contract: type[C], *, token: str | None = None) -> C:
        def open_wire(address: str) -> LocalWire:
            self.wires.append(self.kind(self.services))
            return self.wires[-1]

        given = None if token is None else (lambda: token)
        return client_for(contract, Channel("probe", Endpoints(StaticResolver(["local"]), open_wire), token=given))

    async def cut(self) -> None:
        for wire in self.wires:
            await wire.close()


PLANTED = [
    (MixesUpAnswers, "test_answers_of_concurrent_calls_are_not_mixed_up"),
    (MakesEveryErrorInternal, "test_every_canonical_code_arrives_as_its_class_with_message_and_details"),
    (LosesDetails, "test_every_canonical_code_arrives_as_its_class_with_message_and_details"),
    (LosesClasses, "test_an_error_of_the_contract_is_raised_as_the_same_class_with_its_fields"),
    (LosesClasses, "test_an_error_of_the_contract_without_fields_is_raised_as_the_same_class"),
    (LosesDetails, "test_an_error_that_the_contract_does_not_list_has_its_code_message_and_fields"),
    (LosesDetails, "test_a_contract_that_lists_no_errors_gets_the_canonical_one_with_the_fields"),
    (RaisesWhatNobodyLists, "test_an_error_that_the_contract_does_not_list_has_its_code_message_and_fields"),
    (RaisesWhatNobodyLists, "test_a_contract_that_lists_no_errors_gets_the_canonical_one_with_the_fields"),
    (FailsOverWhatItCannotRead, "test_fields_that_cannot_be_read_leave_the_canonical_error"),
    (SharesErrors, "test_what_a_caller_does_to_an_error_is_not_seen_by_the_handler"),
    (HasNoDeadline, "test_a_call_ends_at_its_deadline_and_the_handler_is_cancelled"),
    (HasNoDeadline, "test_the_deadline_is_known_to_the_handler_and_to_those_it_calls"),
    (ForgetsToCancel, "test_a_cancelled_call_cancels_its_handler"),
    (DropsMetadata, "test_metadata_travels_both_ways"),
    (ForgetsTheToken, "test_a_caller_is_known_by_its_token"),
    (ForgetsTheRequestId, "test_the_request_id_is_the_same_on_every_hop"),
    (ClaimsThatNothingArrived, "test_a_call_that_may_have_arrived_is_not_tried_again_unless_it_is_safe"),
    (ClaimsThatNothingArrived, "test_a_lost_connection_is_unavailable_and_maybe_reached"),
    (ReordersStreams, "test_a_streamed_answer_arrives_in_order_and_ends"),
    (KeepsStreams, "test_letting_go_of_a_stream_ends_its_handler"),
]


@pytest.mark.parametrize(("kind", "test"), PLANTED, ids=[f"{kind.__name__}-{test[5:]}" for kind, test in PLANTED])
async def test_the_suite_catches_a_broken_wire(
    kind: type[LocalWire], test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polywire.testing.wires.SOON", 0.5)
    monkeypatch.setattr("polywire.testing.wire_errors.SOON", 0.5)

    class Suite(WireSuite):
        @asynccontextmanager
        async def serving(self, *services: object, authenticator: Authenticator | None = None) -> AsyncIterator[Served]:
            served = _BrokenServed(Services(services, authenticator=authenticator), kind)
            try:
                yield served
            finally:
                await served.cut()
                await served.services.finish(0)

    with pytest.raises((AssertionError, CallError, TimeoutError)):
        await getattr(Suite(), test)()
