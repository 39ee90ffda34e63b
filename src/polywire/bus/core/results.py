"""The seam of results: how a task ended, kept for a while under a name."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from polywire.bus.core.envelope import JSON, PROTOBUF
from polywire.codec import Format, codec_for
from polywire.codec.status import MAX_DETAILS, details_of, error_from, unpack_details
from polywire.contract import Message
from polywire.errors import CallError, Cancelled, Internal, InvalidArgument, ResourceExhausted, UndecodableMessage

MAX_RESULT_BYTES = 1024 * 1024
"""Of one outcome, where the store has no lower limit."""
MAX_ERROR_CHARS = 2_000

FORMATS: dict[str, Format] = {JSON: "json", PROTOBUF: "proto"}
CONTENT_TYPES: dict[Format, str] = {"json": JSON, "proto": PROTOBUF}


class Outcome(msgspec.Struct, array_like=True, frozen=True):
    """How a task ended: with the *body* of its result where *code* is 0, otherwise with an error."""

    body: bytes = b""
    content_type: str = JSON
    code: int = 0
    """google.rpc.Code"""
    message: str = ""
    details: list[tuple[str, bytes]] = []
    """Type URL and value of each (google.protobuf.Any)."""

    @property
    def size(self) -> int:
        """Bytes, near enough for limits."""
        return len(self.body) + len(self.message) + sum(len(url) + len(value) for url, value in self.details)


class Results(Protocol):
    """A store of outcomes, opened by `start`, used from one event loop.

    * What was put can be waited for before and after, by anybody who knows the key, until its time is over.
    * Its size is bounded: beyond the limit the oldest outcomes go first. Nothing is put that is over `max_bytes`.
    """

    name: str
    """As the system file names the store; a task carries it as `reply_to`."""
    max_bytes: int
    """Of one outcome."""
    shared: bool
    """Other processes put and wait as well."""

    async def start(self) -> None: ...

    async def close(self) -> None:
        """May be called twice. Who still waits gets BackendLost."""

    async def put(self, key: str, outcome: Outcome, *, ttl: float) -> None:
        """Keep it for *ttl* seconds, in place of an earlier one. Raises MessageRefused where it is over `max_bytes`,
        BackendLost where it cannot be told whether it is kept."""

    async def wait(self, key: str, *, timeout: float | None) -> Outcome | None:
        """The outcome, as soon as there is one; None where there is none within *timeout* seconds."""
        ...


def result_key(task: str, id: str) -> str:
    """Under which the outcome of message *id* of *task* (its full name) is kept: ids may repeat over tasks."""
    return f"{task}#{id}"


def success(
    task: str, response: type[Message] | None, value: object, *, format: Format = "json", max_bytes: int
) -> Outcome:
    """The outcome of a handler that returned *value*; a failure where that is not what *task* promises, or too much."""
    try:
        body = codec_for(response, format).encode(value)
    except InvalidArgument as error:
        return failure(Internal(f"{task} was done, but what it returned is not what its contract says: {error}."))
    if len(body) > max_bytes:
        return failure(
            ResourceExhausted(
                f"{task} was done, but its result of {len(body)} bytes was not kept: the store takes {max_bytes}. "
                "Keep the result elsewhere, and return where."
            )
        )
    return Outcome(body=body, content_type=CONTENT_TYPES[format])


def failure(error: CallError) -> Outcome:
    """The outcome of a task that was given up with an error of its contract."""
    try:
        details = details_of(error)[:MAX_DETAILS]
    except (TypeError, InvalidArgument):
        details = []  # a detail only explains; the error itself has to get through
    return Outcome(code=error.number, message=str(error)[:MAX_ERROR_CHARS], details=details)


def given_up(task: str, id: str, reason: str) -> Outcome:
    """The outcome of a task that was given up with any other error, which only its operators get to see."""
    return failure(
        Internal(f"{task} was given up ({reason}). Its error is in the dead letters of its queue, id {id!r}.")
    )


def cancelled(task: str) -> Outcome:
    """The outcome of a task that was taken back before it was done."""
    return failure(Cancelled(f"{task} was cancelled through its receipt before it was done."))


def value_of(outcome: Outcome, task: str, response: type[Message] | None) -> Any:
    """The result that *outcome* has. Raises the error that it has instead, or UndecodableMessage."""
    if outcome.code:
        raise error_from(outcome.code, outcome.message, unpack_details(outcome.details[:MAX_DETAILS]))
    known = FORMATS.get(outcome.content_type)
    if known is None:
        raise UndecodableMessage(
            f"The result of {task} was not read: it is {outcome.content_type!r}, which this program does not know."
        )
    try:
        return codec_for(response, known).decode(outcome.body)
    except InvalidArgument as error:
        raise UndecodableMessage(f"The result of {task} was not read: {error}") from error
