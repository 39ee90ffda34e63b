"""Serves every rpc over the Connect protocol, over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qsl

from polywire.clock import Clock
from polywire.codec import Codec, codec_for
from polywire.context import Call
from polywire.contract import Kind
from polywire.errors import CallError, Cancelled, Internal, InvalidArgument, ResourceExhausted, Unimplemented
from polywire.net.stream import Field, Head, Headers, Receiver, Stream, StreamClosed
from polywire.wire.compression import compress
from polywire.wire.framing import COMPRESSED, PREFIX_SIZE, Frames, framed, whole_frame
from polywire.wire.http import connect_protocol as connect
from polywire.wire.http.body import Gathering, Ignoring
from polywire.wire.http.connect_protocol import CODECS, STREAM_TYPES, UNARY_TYPES, Encoding
from polywire.wire.http.inbound import Inbound, accepts_gzip
from polywire.wire.http.problem import retry_fields
from polywire.wire.http.rest_server import CANCEL, Target, drained, respond, safe_fields
from polywire.wire.incoming import Incoming
from polywire.wire.seam import REQUEST_ID, Dispatcher, Handler, fields_from_metadata, start_task, unknown_method

_REQUEST_ID = REQUEST_ID.encode()
_GZIP: Field = (b"content-encoding", b"gzip")
_STREAM_GZIP: Field = (connect.STREAM_ENCODING, b"gzip")
_ACCEPT_GZIP: Field = (b"accept-encoding", b"gzip")
_VARY: Field = (b"vary", b"accept-encoding")

_UNARY = {
    encoding: Headers(((b":status", b"200"), (b"content-type", content_type)))
    for content_type, encoding in UNARY_TYPES.items()
}
_STREAMED = {
    encoding: Headers(((b":status", b"200"), (b"content-type", content_type)))
    for content_type, encoding in STREAM_TYPES.items()
}
_errors: dict[int, Headers] = {}


def _error_headers(status: int) -> Headers:
    found = _errors.get(status)
    if found is None:
        fields = ((b":status", b"%d" % status), (b"content-type", b"application/json"))
        found = _errors[status] = Headers(fields)
    return found


class ConnectServer:
    """The Connect forms of a dispatcher's rpcs; `target` finds what a request is for."""

    def __init__(self, dispatcher: Dispatcher, *, clock: Clock, compress_above: int | None) -> None:
        self.dispatcher = dispatcher
        self.clock = clock
        self.compress_above = compress_above
        self._plans: dict[bytes, ConnectPlan] = {}
        self._services = {name.encode() for name in dispatcher.services}
        made: dict[Handler, ConnectPlan] = {}
        for path, handler in dispatcher.handlers.items():
            plan = made.get(handler)
            if plan is None:
                plan = made[handler] = ConnectPlan(handler)
            self._plans[path.encode()] = plan

    def target(self, head: Head, path: bytes) -> Target | None:
        """What a request with this head is for; None where *path* is of no known rpc."""
        plan = self._plans.get(path)
        if plan is None:
            return self._unknown_method(path)
        if head.method == b"POST":
            return ConnectTarget(self, plan)
        if head.method == b"GET" and plan.gettable:
            return ConnectTarget(self, plan, query=head.path.partition(b"?")[2])
        allow = b"GET, POST" if plan.gettable else b"POST"
        return _Status(Headers(((b":status", b"405"), (b"allow", allow))))

    def _unknown_method(self, path: bytes) -> Target | None:
        service, _, method = path[1:].partition(b"/")
        if service not in self._services or b"/" in method:
            return None
        return _UnknownMethod(self, service.decode(), method[:80].decode("latin-1"))

    def reject(self, stream: Stream, call: Call, error: CallError, status: int | None = None) -> None:
        """Answer a request that no handler gets to see."""
        self.dispatcher.rejected(call, error)
        send_error(stream, error, call, status)


class ConnectPlan:
    """One rpc over Connect."""

    __slots__ = ("answers", "gettable", "handler", "method", "requests", "unary")

    def __init__(self, handler: Handler) -> None:
        rpc = handler.rpc
        self.handler = handler
        self.method = rpc.full_name
        self.unary = rpc.kind is Kind.UNARY
        self.requests: dict[Encoding, Codec] = {e: codec_for(rpc.request, name) for e, name in CODECS.items()}
        self.answers: dict[Encoding, Codec] = {e: codec_for(rpc.response, name) for e, name in CODECS.items()}
        # GET is for what has no side effects. Idempotent alone is not that: a route with another verb says so.
        reads = not rpc.routes or any(route.verb == "GET" for route in rpc.routes)
        self.gettable = self.unary and rpc.idempotent and reads


class _Status(Target):
    """An answer that is a status alone, as Connect has it for what is no call at all."""

    __slots__ = ("_headers",)

    def __init__(self, headers: Headers) -> None:
        self._headers = headers

    def begin(self, stream: Stream) -> Receiver:
        respond(stream, self._headers, (), b"")
        return Ignoring(stream)


class _UnknownMethod(Target):
    """A method that its service does not have."""

    __slots__ = ("_method", "_server", "_service")

    def __init__(self, server: ConnectServer, service: str, method: str) -> None:
        self._server = server
        self._service = service
        self._method = method

    def begin(self, stream: Stream) -> Receiver:
        call = Inbound(stream.head.fields + stream.tail).call("", stream, "connect", None, self._server.clock)
        error = unknown_method(self._server.dispatcher, f"/{self._service}/{self._method}")
        self._server.reject(stream, call, error, 404)
        return Ignoring(stream)


class ConnectTarget(Target):
    """An rpc, reached by POST, or by GET with *query*."""

    __slots__ = ("_inbound", "_query", "plan", "server")

    def __init__(self, server: ConnectServer, plan: ConnectPlan, query: bytes | None = None) -> None:
        self.server = server
        self.plan = plan
        self._query = query
        self._inbound: ConnectInbound | None = None

    def begin(self, stream: Stream) -> Receiver:
        plan, server = self.plan, self.server
        inbound = self._inbound
        if inbound is None:
            inbound = self._inbound = ConnectInbound(stream.head.fields, plan, self._query)
        call = None
        if stream.tail:
            if inbound.encoding is not None:
                call = inbound.call_amended(
                    plan.method,
                    stream,
                    "connect",
                    inbound.timeout,
                    server.clock,
                    connect.TIMEOUT,
                    connect.parse_timeout,
                )
            if call is None:
                inbound = ConnectInbound(inbound.fields + stream.tail, plan, self._query)
        if inbound.encoding is None:
            _NO_SUCH_TYPE[plan.unary].begin(stream)
            return Ignoring(stream)
        rpc = plan.handler.rpc
        if call is None:
            call = inbound.call(plan.method, stream, "connect", inbound.timeout, server.clock)
        if inbound.refusal is not None:
            return self._refused(stream, inbound, call, inbound.refusal)
        if plan.unary:
            return UnaryCall(self, stream, inbound, call)
        if rpc.kind is Kind.SERVER_STREAM:
            return ServerStreamCall(self, stream, inbound, call)
        if rpc.kind is Kind.BIDIRECTIONAL and stream.version != "2":
            respond(stream, _NEEDS_HTTP2, (), b"")
            return Ignoring(stream)
        refused = server.dispatcher.take_place(plan.handler, call)
        if refused is not None:
            return self._refused(stream, inbound, call, refused)
        return RequestStreamCall(self, stream, inbound, call)

    def _refused(self, stream: Stream, inbound: ConnectInbound, call: Call, error: CallError) -> Receiver:
        """Answer a request that no handler gets to see."""
        if self.plan.unary:
            self.server.reject(stream, call, error)
        else:
            self.server.dispatcher.rejected(call, error)
            Answers(self, stream, inbound, call).finish(error)
        return Ignoring(stream)


_NEEDS_HTTP2 = Headers(((b":status", b"505"), (b"connection", b"close")))
_NO_SUCH_TYPE = {
    unary: _Status(Headers(((b":status", b"415"), (b"accept-post", b", ".join(types)))))
    for unary, types in ((True, UNARY_TYPES), (False, STREAM_TYPES))
}


class UnknownCompression(Unimplemented):
    """The request is compressed in a way that is not known here."""


class ConnectInbound(Inbound):
    """A Connect request's headers (or, with GET, its query): how it is encoded, and whether it can be served."""

    __slots__ = ("coding", "encoding", "gzip", "message", "refusal", "timeout")

    def __init__(self, fields: tuple[Field, ...], plan: ConnectPlan, query: bytes | None) -> None:
        super().__init__(fields)
        get = self.named.get
        self.timeout: float | None = None
        self.refusal: CallError | None = None
        self.message: bytes | None = None
        """With GET, the message."""
        self.encoding: Encoding | None
        version = get(connect.VERSION)
        if query is not None:
            parameters = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="latin-1"))
            known = parameters.get("encoding", "")
            self.encoding = "proto" if known == "proto" else "json" if known == "json" else None
            self.coding = parameters.get("compression", "identity").encode("latin-1")
            version = parameters["connect"].encode("latin-1") if "connect" in parameters else version
            if version is not None and version.startswith(b"v"):
                version = version[1:]
            self._read_message(parameters)
        else:
            types = UNARY_TYPES if plan.unary else STREAM_TYPES
            self.encoding = types.get(connect.media_type(get(b"content-type", b"")))
            self.coding = get(b"content-encoding" if plan.unary else connect.STREAM_ENCODING, b"identity").lower()
        self.gzip = accepts_gzip(get(b"accept-encoding" if plan.unary else connect.STREAM_ACCEPT))
        if version is not None and version != b"1":
            self.refusal = InvalidArgument(
                f"{plan.method} was not called: connect-protocol-version is {version[:20].decode('latin-1')!r}, but 1 "
                "is the only one."
            )
        if self.coding not in (b"gzip", b"identity", b""):
            self.refusal = UnknownCompression(
                f"{plan.method} was not called: its request is compressed with "
                f"{self.coding[:40].decode('latin-1')!r}, which is not known here. Use 'gzip' or 'identity'."
            )
        given = get(connect.TIMEOUT)
        if given is not None:
            try:
                self.timeout = connect.parse_timeout(given)
            except ValueError:
                self.refusal = InvalidArgument(
                    f"{plan.method} was not called: connect-timeout-ms is {given[:40].decode('latin-1')!r}, but it has "
                    "to be a number of milliseconds of at most 10 digits."
                )

    def _read_message(self, parameters: dict[str, str]) -> None:
        text = parameters.get("message")
        if text is None:
            self.refusal = InvalidArgument("The query has no `message`.")
        elif parameters.get("base64") == "1":
            plain = text.rstrip("=")
            try:
                self.message = base64.b64decode(
                    plain.replace("-", "+").replace("_", "/") + "=" * (-len(plain) % 4), validate=True
                )
            except (binascii.Error, ValueError):
                self.refusal = InvalidArgument("The `message` of the query is not base64.")
        else:
            self.message = text.encode("latin-1")


class UnaryCall(Gathering):
    """A unary call, from its head to its answer."""

    __slots__ = ("_extra", "call", "inbound", "started", "target")

    def __init__(self, target: ConnectTarget, stream: Stream, inbound: ConnectInbound, call: Call) -> None:
        super().__init__(stream, target.server.dispatcher.max_message_bytes)
        self.target = target
        self.inbound = inbound
        self.call = call
        self.started = False
        self._extra: list[Field] | None = None

    def oversized(self) -> None:
        self.target.server.reject(self.stream, self.call, _oversized(self.limit))

    def failed(self, error: StreamClosed) -> None:
        dispatcher = self.target.server.dispatcher
        if self.started:
            dispatcher.cancel(self.call)
        elif self._size <= self.limit:
            self.started = True
            dispatcher.rejected(self.call, Cancelled("The caller went away before its request was complete."))

    def complete(self) -> None:
        self.started = True
        refused = self.target.server.dispatcher.take_place(self.target.plan.handler, self.call)
        if refused is None:
            start_task(asyncio.get_running_loop(), self.run(), self.call)
            return
        self.turn_away(refused)
        # As after a call that was answered: those that are turned away come in great numbers.
        del self.stream

    def turn_away(self, refused: CallError) -> None:
        """Answer a call that there is no room for."""
        self.target.server.reject(self.stream, self.call, refused)

    async def run(self) -> None:
        """Call the handler and answer."""
        target, inbound = self.target, self.inbound
        plan = target.plan
        encoding = inbound.encoding
        assert encoding is not None  # noqa: S101 - or the request had been refused
        decode: Callable[[bytes], Any] = plan.requests[encoding].decode
        body = self.body
        if inbound.message is not None:
            body = inbound.message
        if inbound.coding == b"gzip":
            decode = self._inflating(decode)
        try:
            answer = await target.server.dispatcher.unary(plan.handler, self.call, decode, body, self._encode)
        except CallError as error:
            send_error(self.stream, error, self.call)
        except BaseException:
            self.stream.reset(CANCEL)
            raise
        else:
            self._respond(encoding, answer)
        finally:
            # Stream and receiver hold each other; without this every call would be left to the garbage collector.
            del self.stream

    def _inflating(self, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        limit = self.limit
        return lambda body: decode(connect.inflated(body, limit))

    def _encode(self, answer: Any) -> bytes:
        call = self.call
        encoding = self.inbound.encoding
        assert encoding is not None  # noqa: S101 - or the request had been refused
        if call.response_metadata is not None:
            self._extra = fields_from_metadata(call.response_metadata)
        if call.trailing_metadata is not None:
            trailers = fields_from_metadata(call.trailing_metadata)
            self._extra = [*(self._extra or ()), *((connect.TRAILER + name, value) for name, value in trailers)]
        return self.target.plan.answers[encoding].encode(answer)

    def _respond(self, encoding: Encoding, body: bytes) -> None:
        tail: tuple[Field, ...] = ((_REQUEST_ID, self.call.request_id.encode()),)
        if self._extra is not None:
            tail = (*tail, *self._extra)
        above = self.target.server.compress_above
        if above is not None and len(body) > above:
            tail = (*tail, _VARY)
            if self.inbound.gzip:
                body = compress(body)
                tail = (*tail, _GZIP)
        self.stream.respond(_UNARY[encoding], tail, body)


class Answers:
    """The answer's side of a streaming call: its messages, and the one that ends it."""

    __slots__ = ("_begun", "_compress_above", "_encode", "_encoding", "_gzip", "call", "stream")

    def __init__(self, target: ConnectTarget, stream: Stream, inbound: ConnectInbound, call: Call) -> None:
        assert inbound.encoding is not None  # noqa: S101 - or the request had been refused
        self.stream = stream
        self.call = call
        self._encoding: Encoding = inbound.encoding
        self._encode = target.plan.answers[inbound.encoding].encode
        self._compress_above = target.server.compress_above if inbound.gzip else None
        self._begun = False
        self._gzip = inbound.gzip

    def frame(self, answer: Any) -> bytes:
        """One answer, ready to be sent."""
        payload = self._encode(answer)
        if self._compress_above is not None and len(payload) > self._compress_above:
            return framed(compress(payload), COMPRESSED)
        return framed(payload)

    def send(self, answer: Any) -> Coroutine[Any, Any, None] | None:
        """See `Dispatcher.stream`."""
        frame = self.frame(answer)
        if not self._begun:
            self._begin(fields_from_metadata(self.call.response_metadata or ()))
        self.stream.send_data(frame)
        return None if self.stream.writable else drained(self.stream)

    def _begin(self, extra: list[Field]) -> None:
        fields = [(_REQUEST_ID, self.call.request_id.encode()), *extra]
        if self._gzip:
            fields.append(_STREAM_GZIP)
        self._begun = True
        self.stream.send_headers(_STREAMED[self._encoding], fields)

    def finish(self, error: CallError | None, last: bytes = b"") -> None:
        """Send the message *last*, if any, and end with success, or with *error*."""
        call = self.call
        if not self._begun:
            pairs = call.response_metadata
            self._begin(safe_fields(call, pairs) if pairs else [])
        try:
            end = connect.end_of_stream(error, call.trailing_metadata)
        except InvalidArgument:
            safe_fields(call, call.trailing_metadata or ())  # logs what is wrong
            end = connect.end_of_stream(error or Internal(f"internal error, request id {call.request_id}"), None)
        self.stream.send_data(last + framed(end, connect.END_STREAM), end=True)


class ServerStreamCall(UnaryCall):
    """One request, a stream of answers."""

    __slots__ = ("_answers",)

    def __init__(self, target: ConnectTarget, stream: Stream, inbound: ConnectInbound, call: Call) -> None:
        super().__init__(target, stream, inbound, call)
        self.limit += PREFIX_SIZE
        self._answers = Answers(target, stream, inbound, call)

    def oversized(self) -> None:
        self.turn_away(_oversized(self.limit - PREFIX_SIZE))

    def turn_away(self, refused: CallError) -> None:
        self.target.server.dispatcher.rejected(self.call, refused)
        self._answers.finish(refused)

    async def run(self) -> None:
        target = self.target
        error: CallError | None = None
        try:
            await target.server.dispatcher.stream(target.plan.handler, self.call, self._request, self._answers.send)
        except CallError as failure:
            error = failure
        except BaseException:
            self.stream.reset(CANCEL)
            raise
        self._answers.finish(error)

    def _request(self) -> Any:
        """The only message of the request."""
        frame = whole_frame(self.body)
        if frame is None:
            raise Unimplemented(
                f"{self.target.plan.handler.rpc.full_name} takes exactly one message, but the request has "
                f"{'none' if len(self.body) < PREFIX_SIZE else 'several, or one that is not complete'}."
            )
        encoding = self.inbound.encoding
        assert encoding is not None  # noqa: S101 - or the request had been refused
        payload = connect.unpacked(*frame, self.inbound.coding, self.limit - PREFIX_SIZE)
        return self.target.plan.requests[encoding].decode(payload)


class RequestStreamCall:
    """A stream of requests, with one answer or a stream of them."""

    __slots__ = ("_answers", "_call", "_dispatcher", "_incoming")

    def __init__(self, target: ConnectTarget, stream: Stream, inbound: ConnectInbound, call: Call) -> None:
        encoding = inbound.encoding
        assert encoding is not None  # noqa: S101 - or the request had been refused
        dispatcher = target.server.dispatcher
        limit = dispatcher.max_message_bytes
        decode = target.plan.requests[encoding].decode
        coding = inbound.coding
        self._call = call
        self._dispatcher = dispatcher
        self._answers = Answers(target, stream, inbound, call)
        self._incoming: Incoming[Any] = Incoming(
            stream, Frames(limit), lambda flags, payload: decode(connect.unpacked(flags, payload, coding, limit))
        )
        start_task(asyncio.get_running_loop(), self._run(target.plan.handler), call)

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        """Only at a client."""

    def data_received(self, data: bytes) -> None:
        self._incoming.feed(data)

    def ended(self, trailers: tuple[Field, ...]) -> None:
        self._incoming.end()

    def failed(self, error: StreamClosed) -> None:
        self._incoming.fail(Cancelled("The caller went away before its requests were complete."))
        self._dispatcher.cancel(self._call)

    async def _run(self, handler: Handler) -> None:
        answers, incoming = self._answers, self._incoming
        error: CallError | None = None
        last = b""
        try:
            if handler.rpc.streams_responses:
                await self._dispatcher.stream(handler, self._call, incoming, answers.send)
            else:
                last = await self._dispatcher.collect(handler, self._call, incoming, answers.frame)
        except CallError as failure:
            error = failure
        except BaseException:
            answers.stream.reset(CANCEL)
            raise
        answers.finish(error, last)
        incoming.discard()


def send_error(stream: Stream, error: CallError, call: Call, status: int | None = None) -> None:
    """Answer a unary call with *error*."""
    fields: list[Field] = [(_REQUEST_ID, call.request_id.encode()), *retry_fields(error)]
    if isinstance(error, UnknownCompression):
        fields.append(_ACCEPT_GZIP)
    if call.response_metadata is not None:
        fields += safe_fields(call, call.response_metadata)
    if call.trailing_metadata is not None:
        trailers = safe_fields(call, call.trailing_metadata)
        fields += [(connect.TRAILER + name, value) for name, value in trailers]
    body = connect.error_body(error)
    stream.respond(_error_headers(error.http_status if status is None else status), fields, body)


def _oversized(limit: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"A message of more than {limit} bytes was not read. Split it, or raise `max_message_bytes` at its receiver."
    )
