"""What comes back from a gRPC server: the receivers of one answer, and of a stream of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from polywire.codec.failures import as_declared
from polywire.context import NO_METADATA, Metadata
from polywire.contract import Rpc
from polywire.errors import CallError, Cancelled, Internal, InvalidArgument
from polywire.net.stream import Field, Head, Stream, StreamClosed
from polywire.policy.deadline import Slot
from polywire.wire.compression import ACCEPTED, GZIP
from polywire.wire.framing import Frames
from polywire.wire.grpc.messages import SingleBody, plain
from polywire.wire.grpc.protocol import ENCODING, STATUS, is_grpc
from polywire.wire.grpc.route import CONTENT_TYPE_FIELD
from polywire.wire.grpc.status import error_from_http, error_from_lost, error_from_trailers, with_metadata
from polywire.wire.incoming import Incoming
from polywire.wire.seam import Outgoing, metadata_from_fields, not_in_time

CANCEL = 0x8
"""RST_STREAM's code for a call that is given up."""

_OK = ((STATUS, b"0"),)
_DECISIVE = frozenset({CONTENT_TYPE_FIELD, ENCODING, STATUS})


class AnswerHead:
    """What the headers of an answer say; kept in `Head.memo` for all answers that begin with the same ones."""

    __slots__ = ("content_type", "encoding", "final", "grpc", "gzip", "metadata", "status")

    def __init__(self, head: Head, fields: tuple[Field, ...]) -> None:
        named = dict(fields)
        self.status = head.status
        self.content_type = named.get(CONTENT_TYPE_FIELD, b"")
        self.final = STATUS in named
        """The status is here: no message will come."""
        self.grpc = self.final or (head.status == 200 and is_grpc(self.content_type))
        self.encoding = named.get(ENCODING, b"identity").decode("latin-1").lower()
        self.gzip = self.encoding == GZIP
        self.metadata: Metadata = metadata_from_fields(fields) or NO_METADATA


class Endpoint(Protocol):
    """What receivers ask of the wire that they belong to."""

    address: str

    def in_time(self, outgoing: Outgoing) -> bool:
        """Whether the deadline is still to come."""
        ...

    def finished(self, slot: Slot | None, receiver: Any) -> None:
        """A streaming call is over."""


def read_head(head: Head, tail: tuple[Field, ...], outgoing: Outgoing) -> AnswerHead:
    """What *head* and *tail* say; the metadata is told to *outgoing*."""
    known = head.memo
    if type(known) is not AnswerHead:
        known = head.memo = AnswerHead(head, head.fields)
    if tail:
        whole = AnswerHead(head, head.fields + tail)
        outgoing.headers = whole.metadata
        return whole
    outgoing.headers = known.metadata
    return known


def refusal(head: AnswerHead, address: str) -> CallError | None:
    """Why an answer with this head cannot be read, if so."""
    if not head.grpc:
        return error_from_http(head.status, head.content_type, address)
    if head.encoding not in ACCEPTED:
        return Internal(
            f"{address} compressed its answer with {head.encoding[:40]!r}, although only {' and '.join(ACCEPTED)} were "
            "offered."
        )
    return None


def outcome(
    head: AnswerHead | None, stream: Stream, trailers: tuple[Field, ...], outgoing: Outgoing, address: str
) -> CallError | None:
    """How a call ended whose answer came to its end: None if well."""
    if head is None:
        return Internal(f"{address} ended its answer before it began.")
    fields = stream.head.fields + stream.tail if head.final else trailers
    try:
        error = error_from_trailers(fields)
    except LookupError:
        return error_from_http(head.status, head.content_type, address)
    outgoing.trailers = metadata_from_fields(trailers) or NO_METADATA
    if error is None:
        return None
    return as_declared(with_metadata(error, head.metadata, outgoing.trailers), outgoing.rpc)


def lost(closed: StreamClosed, outgoing: Outgoing, endpoint: Endpoint) -> CallError:
    """How a call ended whose exchange broke off."""
    error = error_from_lost(closed, endpoint.address)
    if isinstance(error, Cancelled) and not endpoint.in_time(outgoing):
        # A server that keeps deadlines too may give up a moment before our own alarm rings.
        return not_in_time(outgoing)
    return error


def unreadable(rpc: Rpc, error: InvalidArgument) -> Internal:
    """What is wrong with an answer is not its caller's fault."""
    return Internal(f"The answer of {rpc.full_name} could not be read: {error.message}")


class Answer(SingleBody):
    """Takes the only answer of a unary call into *future*, as bytes."""

    __slots__ = ("_endpoint", "_head", "_outgoing", "future")

    def __init__(self, endpoint: Endpoint, outgoing: Outgoing, limit: int, future: asyncio.Future[bytes]) -> None:
        # SingleBody's part is written out: one call less for each call made.
        self._limit = limit
        self._body = None
        self._frames = None
        self._endpoint = endpoint
        self._outgoing = outgoing
        self._head: AnswerHead | None = None
        self.future = future

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        known = self._head = read_head(head, tail, self._outgoing)
        if not known.grpc or known.encoding not in ACCEPTED:
            refused = refusal(known, self._endpoint.address)
            if refused is not None:
                self._give_up(refused)

    def _gather(self, data: bytes) -> None:
        super()._gather(data)
        fault = self.fault_so_far()
        if fault is not None:
            self._give_up(fault)

    def ended(self, trailers: tuple[Field, ...]) -> None:
        future = self.future
        if future.done():
            return
        body = self._body
        if body is not None and not body[0] and trailers == _OK:
            self._outgoing.trailers = NO_METADATA
            future.set_result(body[5:])
            return
        error = outcome(self._head, self.stream, trailers, self._outgoing, self._endpoint.address)
        if error is not None:
            future.set_exception(error)
            return
        try:
            future.set_result(self._whole())
        except CallError as broken:
            future.set_exception(broken)

    def _whole(self) -> bytes:
        flags, payload = self.frame(f"The answer of {self._outgoing.rpc.full_name}")
        gzip = self._head is not None and self._head.gzip
        return plain(flags, payload, gzip=gzip, limit=self._limit)

    def failed(self, error: StreamClosed) -> None:
        if not self.future.done():
            self.future.set_exception(lost(error, self._outgoing, self._endpoint))

    def expire(self) -> None:
        """The deadline has come."""
        self._give_up(not_in_time(self._outgoing))

    def abandon(self) -> None:
        """Nobody waits any more."""
        self.stream.reset(CANCEL)
        if not self.future.cancel() and not self.future.cancelled():
            self.future.exception()  # seen, so that it is not reported as forgotten

    def _give_up(self, error: CallError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.stream.reset(CANCEL)


class StreamedAnswers:
    """Takes the answers of a streaming call. It does not know the `ClientStream`, so that dropping that is noticed."""

    __slots__ = ("_decode", "_endpoint", "_head", "_limit", "_outgoing", "error", "messages", "over", "slot", "stream")

    stream: Stream
    messages: Incoming[Any]

    def __init__(self, endpoint: Endpoint, outgoing: Outgoing, limit: int, decode: Callable[[bytes], Any]) -> None:
        self._endpoint = endpoint
        self._outgoing = outgoing
        self._limit = limit
        self._decode = decode
        self._head: AnswerHead | None = None
        self.slot: Slot | None = None
        """Of the deadline's alarm."""
        self.over = False
        """Nothing will come or go any more."""
        self.error: CallError | None = None
        """Why, if not well."""

    def attach(self, stream: Stream) -> None:
        """The exchange was opened as *stream*."""
        self.stream = stream
        self.messages = Incoming(stream, Frames(self._limit), self._message)

    def _message(self, flags: int, payload: bytes) -> Any:
        if flags:
            gzip = self._head is not None and self._head.gzip
            payload = plain(flags, payload, gzip=gzip, limit=self._limit)
        try:
            return self._decode(payload)
        except InvalidArgument as error:
            raise unreadable(self._outgoing.rpc, error) from error

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        self._head = read_head(head, tail, self._outgoing)
        refused = refusal(self._head, self._endpoint.address)
        if refused is not None:
            self.give_up(refused)

    def data_received(self, data: bytes) -> None:
        self.messages.feed(data)

    def ended(self, trailers: tuple[Field, ...]) -> None:
        if not self.over:
            self._end(outcome(self._head, self.stream, trailers, self._outgoing, self._endpoint.address))

    def failed(self, error: StreamClosed) -> None:
        if not self.over:
            self._end(lost(error, self._outgoing, self._endpoint))

    def expire(self) -> None:
        """The deadline has come."""
        self.give_up(not_in_time(self._outgoing))

    def give_up(self, error: CallError) -> None:
        """End the call from this side, with *error* for whoever uses it."""
        if not self.over:
            self._end(error)
            self.stream.reset(CANCEL)

    def _end(self, error: CallError | None) -> None:
        self.over = True
        self.error = error
        if error is None:
            self.messages.end()
        else:
            self.messages.fail(error)
        self._endpoint.finished(self.slot, self)
