"""What every wire promises about errors of a contract; part of `WireSuite`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from polywire.codec.failures import MAX_DETAIL_BYTES, TYPE_URL, fields_as_message
from polywire.contract import Contract, Field, Message, post, rpc
from polywire.contract.details import ErrorInfo, UnknownDetail
from polywire.contract.failures import detail_of
from polywire.errors import (
    Aborted,
    CallError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)

if TYPE_CHECKING:
    from polywire.services import Authenticator
    from polywire.testing.wires import Served

SOON = 5.0
_PACKAGE = "polywire.probe.v1"


class Jammed(FailedPrecondition, http_status=409, message="Tray {tray} is jammed."):
    """Paper is stuck."""

    tray: Annotated[int, Field(ge=0)]
    sheets: list[str] = []
    since: datetime | None = None


class Torn(Jammed):
    """What the older contract does not know yet."""

    corner: str


class NoPaper(ResourceExhausted):
    """There is no paper."""


class Maintained(Unavailable):
    by: str


class Reserved(PermissionDenied, http_status=404):
    owner: str


class WrongSize(InvalidArgument, http_status=422):
    widest: int


class Haunted(Aborted, package=_PACKAGE):
    """Nobody's contract lists it."""

    ghost: str


class OldJammed(FailedPrecondition, package=_PACKAGE, name="Jammed"):
    tray: int


class Job(Message):
    trouble: str


class Press(Contract, package=_PACKAGE, raises=(Jammed, Torn, NoPaper, WrongSize)):
    """A method of every kind, each of which raises what the job asks for."""

    @rpc(post("/press/print_one"), raises=(Maintained, Reserved))
    async def print_one(self, job: Job) -> Job:
        raise NotImplementedError

    @rpc
    def print_each(self, job: Job) -> AsyncIterator[Job]:
        raise NotImplementedError

    @rpc
    async def print_all(self, jobs: AsyncIterator[Job]) -> Job:
        raise NotImplementedError

    @rpc
    def print_along(self, jobs: AsyncIterator[Job]) -> AsyncIterator[Job]:
        raise NotImplementedError


class OldPress(Contract, package=_PACKAGE, name="Press", raises=(OldJammed,)):
    """An earlier version of the contract."""

    @rpc(post("/press/print_one"))
    async def print_one(self, job: Job) -> Job:
        raise NotImplementedError


class OldestPress(Contract, package=_PACKAGE, name="Press"):
    """From before errors had classes."""

    @rpc(post("/press/print_one"))
    async def print_one(self, job: Job) -> Job:
        raise NotImplementedError


def _jammed() -> Jammed:
    since = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
    return Jammed(
        tray=2, sheets=["a", "✓"], since=since, details=[ErrorInfo(reason="PROBED", domain="probe")], retry_after=1.5
    )


_TROUBLES: dict[str, Callable[[], CallError]] = {
    "jammed": _jammed,
    "torn": lambda: Torn("Torn it is.", tray=3, corner="left"),
    "no paper": NoPaper,
    "maintained": lambda: Maintained("Come back.", by="the smith"),
    "reserved": lambda: Reserved("not yours", owner="ada"),
    "wrong size": lambda: WrongSize("too wide", field="trouble", widest=21),
    "haunted": lambda: Haunted("boo", ghost="white"),
    "malformed": lambda: FailedPrecondition("odd", details=[_detail(b"\xff\xff")]),
    "forbidden": lambda: FailedPrecondition("odd", details=[_detail(b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")]),
    "other code": lambda: NotFound("odd", details=[fields_as_message(Jammed(tray=1))]),
    "too much": lambda: Jammed("big", tray=1, sheets=["x" * MAX_DETAIL_BYTES]),
    "broken": lambda: Jammed("my own mistake", tray="two"),  # type: ignore[arg-type]  # that is the mistake
}


def _detail(value: bytes) -> UnknownDetail:
    return UnknownDetail(f"{TYPE_URL}{_PACKAGE}.Jammed", value)


@dataclass
class PressService(Press):
    behind: Press | None = None
    raised: list[CallError] = field(default_factory=list)

    def _trouble(self, job: Job) -> CallError:
        error = _TROUBLES[job.trouble]()
        self.raised.append(error)
        return error

    async def print_one(self, job: Job) -> Job:
        if self.behind is not None:
            return await self.behind.print_one(job)
        raise self._trouble(job)

    async def print_each(self, job: Job) -> AsyncIterator[Job]:
        yield job
        raise self._trouble(job)

    async def print_all(self, jobs: AsyncIterator[Job]) -> Job:
        async for job in jobs:
            raise self._trouble(job)
        raise NotImplementedError

    async def print_along(self, jobs: AsyncIterator[Job]) -> AsyncIterator[Job]:
        async for job in jobs:
            yield job
            raise self._trouble(job)


class ErrorRules:
    """The rules of errors of a contract (`polywire.errors.CallError`) as tests; `WireSuite` has them."""

    bidirectional = True

    def serving(
        self, *services: object, authenticator: Authenticator | None = None
    ) -> AbstractAsyncContextManager[Served]:
        """Serve *services* over the wire under test."""
        raise NotImplementedError

    async def _raised(self, trouble: str, contract: Any = Press) -> CallError:
        """What a unary call of *contract* raises."""
        async with self.serving(PressService()) as served:
            return await _raised_by(served.client(contract).print_one(Job(trouble=trouble)))

    async def test_an_error_of_the_contract_is_raised_as_the_same_class_with_its_fields(self) -> None:
        error = await self._raised("jammed")
        assert type(error) is Jammed
        assert error == _jammed()
        assert (error.message, error.tray, error.sheets) == ("Tray 2 is jammed.", 2, ["a", "✓"])
        assert error.since == datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
        assert ErrorInfo(reason="PROBED", domain="probe") in error.details
        assert not any(isinstance(detail, detail_of(Jammed)) for detail in error.details)
        assert (error.retry_after, error.method) == (1.5, f"{_PACKAGE}.Press/PrintOne")

    async def test_an_error_of_the_contract_without_fields_is_raised_as_the_same_class(self) -> None:
        assert await self._raised("no paper") == NoPaper("There is no paper.")

    async def test_an_error_of_one_method_is_raised_as_the_same_class(self) -> None:
        error = await self._raised("maintained")
        assert error == Maintained("Come back.", by="the smith")
        assert isinstance(error, Maintained)
        assert error.reached == "maybe"

    async def test_an_error_of_the_contract_names_the_field_of_the_request_at_fault(self) -> None:
        error = await self._raised("wrong size")
        assert isinstance(error, WrongSize)
        assert (error.field, error.widest, error.message) == ("trouble", 21, "too wide")

    async def test_the_most_special_class_that_the_contract_lists_is_raised(self) -> None:
        assert await self._raised("torn") == Torn("Torn it is.", tray=3, corner="left")

    async def test_an_error_that_the_contract_does_not_list_has_its_code_message_and_fields(self) -> None:
        error = await self._raised("haunted")
        assert type(error) is Aborted
        assert error.message == "boo"
        assert error.details == (fields_as_message(Haunted(ghost="white")),)

    async def test_an_older_contract_ignores_newer_fields(self) -> None:
        error = await self._raised("jammed", OldPress)
        assert error == OldJammed("Tray 2 is jammed.", tray=2)

    async def test_an_older_contract_gets_the_class_it_knows_of_a_newer_and_more_special_error(self) -> None:
        error = await self._raised("torn", OldPress)
        assert error == OldJammed("Torn it is.", tray=3)
        assert error.details == (fields_as_message(Torn(tray=3, corner="left")),)

    async def test_a_contract_that_lists_no_errors_gets_the_canonical_one_with_the_fields(self) -> None:
        error = await self._raised("no paper", OldestPress)
        assert type(error) is ResourceExhausted
        assert error.message == "There is no paper."
        assert error.details == (fields_as_message(NoPaper()),)

    async def test_fields_that_cannot_be_read_leave_the_canonical_error(self) -> None:
        for trouble in ("malformed", "forbidden"):
            error = await self._raised(trouble)
            assert type(error) is FailedPrecondition, trouble
            assert error.message == "odd"
            (detail,) = error.details
            assert isinstance(detail, UnknownDetail), trouble
            assert detail.type_url == f"{TYPE_URL}{_PACKAGE}.Jammed"

    async def test_fields_under_another_code_leave_the_canonical_error(self) -> None:
        error = await self._raised("other code")
        assert type(error) is NotFound
        assert (error.message, len(error.details)) == ("odd", 1)

    async def test_fields_over_the_limit_are_left_out_and_the_error_arrives(self) -> None:
        error = await self._raised("too much")
        assert (type(error), error.message, error.details) == (FailedPrecondition, "big", ())

    async def test_fields_that_are_not_what_they_should_be_are_left_out_and_the_error_arrives(self) -> None:
        error = await self._raised("broken")
        assert (type(error), error.message, error.details) == (FailedPrecondition, "my own mistake", ())

    async def test_an_error_of_the_contract_goes_through_a_service_in_between(self) -> None:
        async with (
            self.serving(PressService()) as behind,
            self.serving(PressService(behind=behind.client(Press))) as front,
        ):
            errors = [
                await _raised_by(front.client(Press).print_one(Job(trouble=trouble)))
                for trouble in ("jammed", "reserved", "maintained")
            ]
        assert errors == [_jammed(), Reserved("not yours", owner="ada"), Maintained("Come back.", by="the smith")]

    async def test_what_a_caller_does_to_an_error_is_not_seen_by_the_handler(self) -> None:
        service = PressService()
        async with self.serving(service) as served:
            error = await _raised_by(served.client(Press).print_one(Job(trouble="jammed")))
        assert isinstance(error, Jammed)
        error.sheets.append("mine")
        assert service.raised == [_jammed()]

    async def test_an_error_of_the_contract_ends_a_streamed_answer(self) -> None:
        got = []

        async def read(client: Press) -> None:
            async for job in client.print_each(Job(trouble="jammed")):
                got.append(job.trouble)

        async with self.serving(PressService()) as served:
            assert await _raised_by(read(served.client(Press))) == _jammed()
        assert got == ["jammed"]

    async def test_an_error_of_the_contract_answers_streamed_requests(self) -> None:
        async with self.serving(PressService()) as served:
            error = await _raised_by(served.client(Press).print_all(_jobs("jammed")))
        assert error == _jammed()

    async def test_an_error_of_the_contract_ends_a_conversation(self) -> None:
        if not self.bidirectional:
            return

        async def read(client: Press) -> None:
            async for _ in client.print_along(_jobs("torn")):
                pass

        async with self.serving(PressService()) as served:
            error = await _raised_by(read(served.client(Press)))
        assert error == Torn("Torn it is.", tray=3, corner="left")


async def _jobs(trouble: str) -> AsyncIterator[Job]:
    yield Job(trouble=trouble)


async def _raised_by(call: Awaitable[object]) -> CallError:
    try:
        async with asyncio.timeout(SOON):
            answer = await call
    except CallError as error:
        return error
    raise AssertionError(f"expected an error, got {answer!r}")
