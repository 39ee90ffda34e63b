"""Serves the REST routes of contracts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any

from msgspec.structs import replace

from polywire.clock import Clock
from polywire.codec import Malformed, codec_for
from polywire.context import Call
from polywire.contract import Kind
from polywire.contract.pagination import Page, link_header, links_of
from polywire.errors import CallError, Cancelled, InvalidArgument, SetupError
from polywire.net.stream import Field, Head, Headers, Receiver, Stream, StreamClosed
from polywire.wire.compression import Corrupt, TooLarge, compress, decompress
from polywire.wire.http import problem
from polywire.wire.http.body import Gathering, Ignoring
from polywire.wire.http.inbound import REST_TIMEOUT, Inbound, accepts, accepts_gzip, rest_timeout
from polywire.wire.http.lines import Lines
from polywire.wire.http.requests import Parts
from polywire.wire.http.rest_plan import RestPlan
from polywire.wire.http.routing import BadPath, Found, Router
from polywire.wire.incoming import Incoming
from polywire.wire.seam import REQUEST_ID, Dispatcher, fields_from_metadata, start_task

log = logging.getLogger("polywire.server")

CANCEL = 0x8
"""RST_STREAM: the exchange is not wanted any more."""
COMPRESS_ABOVE = 16 * 1024
"""Bytes. Below, gzip saves less on the network than it costs in the event loop."""
VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_REQUEST_ID = REQUEST_ID.encode()
_GZIP: Field = (b"content-encoding", b"gzip")
_VARY: Field = (b"vary", b"accept-encoding")
ERROR_TRAILER = b"polywire-error"
"""After a streamed answer that failed midway: the code. Its last line is the problem document then."""


class RestServer:
    """All REST routes of a dispatcher's services; `target` finds what a request is for.

    Raises SetupError where two rpcs have the same route, naming both.
    """

    def __init__(self, dispatcher: Dispatcher, *, clock: Clock, compress_above: int | None = COMPRESS_ABOVE) -> None:
        self.dispatcher = dispatcher
        self.clock = clock
        self.compress_above = compress_above
        self._router: Router[RestPlan] = Router()
        for handler in dict.fromkeys(dispatcher.handlers.values()):
            for route in handler.rpc.routes:
                self._add(RestPlan(handler, route))

    def _add(self, plan: RestPlan) -> None:
        other = self._router.add(plan.route.verb, plan.reader.template, plan)
        if other is not None:
            raise SetupError(
                f"{plan.where} cannot be served: {other.where} takes the same requests. Change one of the paths, or "
                "give one contract a prefix of its own, `prefix='/api/v2'`."
            )

    def target(self, head: Head) -> Target:
        """What a request with this head is for; it can be asked again for every request with the same head."""
        verb = head.method.decode("latin-1")
        path, _, query = head.path.decode("latin-1").partition("?")
        if not path.startswith("/"):
            # `*` of OPTIONS, and CONNECT, which names no path at all.
            return self._pathless(verb)
        try:
            found = self._router.find("GET" if verb == "HEAD" else verb, path)
        except BadPath as error:
            return Refused(self, problem.BadHeader(f"The request was not understood: the path {error}."))
        if isinstance(found, Found) and not (verb == "HEAD" and found.plan.handler.rpc.streams_responses):
            return RestTarget(self, found, path, query)
        allowed = {found.plan.route.verb} if isinstance(found, Found) else found
        return self.not_found(verb, path, allowed)

    def route_at(self, verb: str, path: str) -> str | None:
        """The rpc that a request would reach, for a sentence."""
        found = self._router.find(verb, path)
        return found.plan.where if isinstance(found, Found) else None

    def _pathless(self, verb: str) -> Target:
        allow = (b"allow", ", ".join(VERBS).encode())
        if verb == "OPTIONS":
            return Bare(Headers(((b":status", b"204"), allow)))
        refusal = problem.MethodNotAllowed(f"{verb} is not served here: this is no proxy.")
        refusal.fields = (allow,)
        return Refused(self, refusal)

    def not_found(self, verb: str, path: str, allowed: set[str]) -> Target:
        """What a request is told whose path has only the verbs *allowed*, or none."""
        shown = repr(path if len(path) <= 200 else path[:200] + "...")[1:-1]
        if not allowed:
            return Refused(
                self,
                problem.NoRoute(f"There is nothing at {shown}. Look for a typing error, or a slash at the end."),
            )
        if "GET" in allowed and verb != "HEAD":
            allowed = allowed | {"HEAD"}
        allow = (b"allow", ", ".join(name for name in VERBS if name in allowed or name == "OPTIONS").encode())
        if verb == "OPTIONS":
            return Bare(Headers(((b":status", b"204"), allow)))
        refusal = problem.MethodNotAllowed(f"{verb[:40]} is not possible at {shown}. It has {allow[1].decode()}.")
        refusal.fields = (allow,)
        return Refused(self, refusal)

    def reject(self, stream: Stream, call: Call, error: CallError) -> None:
        """Answer a request that no handler gets to see."""
        self.dispatcher.rejected(call, error)
        send_problem(stream, error, call.request_id)


class Target:
    """What a request is for. Kept in `Head.memo`, so it holds nothing of any one request."""

    __slots__ = ()

    def begin(self, stream: Stream) -> Receiver:
        """Take a request on."""
        raise NotImplementedError


class Bare(Target):
    """An answer of headers alone."""

    __slots__ = ("_headers",)

    def __init__(self, headers: Headers) -> None:
        self._headers = headers

    def begin(self, stream: Stream) -> Receiver:
        stream.respond(self._headers, (), b"")
        return Ignoring(stream)


class Refused(Target):
    """A request that nothing here can answer."""

    __slots__ = ("_error", "_server")

    def __init__(self, server: RestServer, error: CallError) -> None:
        self._server = server
        self._error = error

    def begin(self, stream: Stream) -> Receiver:
        inbound = Inbound(stream.head.fields + stream.tail)
        call = inbound.call("", stream, "rest", None, self._server.clock)
        self._server.reject(stream, call, self._error)
        return Ignoring(stream)


class RestTarget(Target):
    """A route, with what path and query of one head say."""

    __slots__ = ("_fault", "_inbound", "_parts", "_segments", "encoded", "path", "plan", "query", "server")

    def __init__(self, server: RestServer, found: Found[RestPlan], path: str, query: str) -> None:
        self.server = server
        self.plan = found.plan
        self._segments = found.segments
        self.path = path
        self.query = query
        self._parts: Parts | None = None
        self._fault: InvalidArgument | None = None
        self._inbound: RestInbound | None = None
        self.encoded: bytes | None = None
        """The whole message as JSON, where nothing of it is in the body."""

    def begin(self, stream: Stream) -> Receiver:
        inbound = self._inbound
        if inbound is None:
            inbound = self._inbound = RestInbound(stream.head.fields, self.plan)
        plan = self.plan
        server = self.server
        call = None
        if stream.tail:
            call = inbound.call_amended(
                plan.method, stream, "rest", inbound.timeout, server.clock, REST_TIMEOUT, rest_timeout
            )
            if call is None:
                inbound = RestInbound(inbound.fields + stream.tail, plan)
        if call is None:
            call = inbound.call(plan.method, stream, "rest", inbound.timeout, server.clock)
        if inbound.refusal is not None:
            server.reject(stream, call, inbound.refusal)
            return Ignoring(stream)
        kind = plan.kind
        if kind is Kind.UNARY:
            return RestCall(self, stream, inbound, call)
        if kind is Kind.SERVER_STREAM:
            return RestStream(self, stream, inbound, call)
        refused = server.dispatcher.take_place(plan.handler, call)
        if refused is not None:
            server.reject(stream, call, refused)
            return Ignoring(stream)
        return RestCollection(self, stream, inbound, call)

    def parts(self, inbound: RestInbound) -> Parts:
        """What is known of the message without its body. Raises InvalidArgument."""
        reader = self.plan.reader
        if reader.reads_headers:
            return reader.parts(self.path, self._segments, self.query, inbound.fields)
        if self._parts is None:
            if self._fault is not None:
                raise type(self._fault)(self._fault.message, field=self._fault.field)
            try:
                self._parts = reader.parts(self.path, self._segments, self.query, ())
            except InvalidArgument as error:
                self._fault = error
                raise
            if reader.body is None:
                self.encoded = reader.encoded(self._parts)
        return self._parts


class RestInbound(Inbound):
    """A REST request's headers: whether its route can serve them. The rest is looked at when it matters."""

    __slots__ = ("refusal", "timeout")

    def __init__(self, fields: tuple[Field, ...], plan: RestPlan) -> None:
        super().__init__(fields)
        get = self.named.get
        self.timeout: float | None = None
        self.refusal: CallError | None = None
        given = get(REST_TIMEOUT)
        if given is not None:
            try:
                self.timeout = rest_timeout(given)
            except ValueError:
                self.refusal = problem.BadHeader(
                    f"{plan.where} was not called: the header {REST_TIMEOUT.decode()} is "
                    f"{given[:40].decode('latin-1')!r}, but it has to be a number of seconds such as 1.5."
                )
        if not plan.bodiless and not accepts(get(b"accept"), plan.produced):
            self.refusal = problem.NotAcceptable(
                f"{plan.where} was not called: its answer is {plan.produced.decode()}, which the Accept header leaves "
                "out."
            )

    @property
    def content_type(self) -> bytes:
        return self.named.get(b"content-type", b"").partition(b";")[0].strip().lower()

    @property
    def coding(self) -> bytes:
        return self.named.get(b"content-encoding", b"identity").strip().lower()


class RestCall(Gathering):
    """A request for one answer, from its head to its answer."""

    __slots__ = ("_extra", "call", "inbound", "started", "target")

    def __init__(self, target: RestTarget, stream: Stream, inbound: RestInbound, call: Call) -> None:
        super().__init__(stream, target.server.dispatcher.max_message_bytes)
        self.target = target
        self.inbound = inbound
        self.call = call
        self.started = False
        self._extra: list[Field] | None = None

    def oversized(self) -> None:
        error = problem.BodyTooLarge(
            f"{self.target.plan.where} was not called: its body is over the limit of {self.limit} bytes. Split it, or "
            "raise `max_message_bytes` of the service."
        )
        self.target.server.reject(self.stream, self.call, error)

    def failed(self, error: StreamClosed) -> None:
        dispatcher = self.target.server.dispatcher
        if self.started:
            dispatcher.cancel(self.call)
        elif self._size <= self.limit:
            self.started = True
            dispatcher.rejected(self.call, Cancelled("The caller went away before its request was complete."))

    def complete(self) -> None:
        self.started = True
        server = self.target.server
        refused = server.dispatcher.take_place(self.target.plan.handler, self.call)
        if refused is None:
            start_task(asyncio.get_running_loop(), self.run(), self.call)
            return
        server.reject(self.stream, self.call, refused)
        # As after a call that was answered: those that are turned away come in great numbers.
        del self.stream

    async def run(self) -> None:
        """Call the handler and answer."""
        target = self.target
        try:
            body = await target.server.dispatcher.unary(
                target.plan.handler, self.call, self.decode, self.body, self._encode
            )
        except CallError as error:
            send_problem(self.stream, error, self.call.request_id, self._error_fields())
        except BaseException:
            self.stream.reset(CANCEL)
            raise
        else:
            self._respond(body)
        finally:
            # Stream and receiver hold each other; without this every call would be left to the garbage collector.
            del self.stream

    def decode(self, body: bytes) -> Any:
        """The request message. Raises InvalidArgument, and what else HTTP has a status for."""
        target = self.target
        reader = target.plan.reader
        if body:
            body = self._readable(body)
        if reader.plain_body:
            return reader.message({}, body)
        encoded = target.encoded
        if encoded is not None:
            return reader.decode(encoded)
        parts = target.parts(self.inbound)
        return reader.message(parts, body)

    def _readable(self, body: bytes) -> bytes:
        """*body* as the JSON it is to be; nothing where the route has no use for one."""
        plan, inbound = self.target.plan, self.inbound
        if not plan.accepted:
            return b""
        if inbound.content_type not in plan.accepted:
            raise unsupported(plan, inbound)
        coding = inbound.coding
        return self._inflated(body, coding) if coding != b"identity" else body

    def _inflated(self, body: bytes, coding: bytes) -> bytes:
        plan = self.target.plan
        if coding != b"gzip":
            error = problem.UnsupportedMediaType(
                f"{plan.where} was not called: its body is encoded as {coding[:40].decode('latin-1')!r}; gzip is known."
            )
            error.fields = ((b"accept-encoding", b"gzip"),)
            raise error
        try:
            return decompress(body, self.limit)
        except TooLarge:
            raise problem.BodyTooLarge(
                f"{plan.where} was not called: its body is over the limit of {self.limit} bytes once it is "
                "decompressed. Split it, or raise `max_message_bytes` of the service."
            ) from None
        except Corrupt as error:
            raise Malformed(f"{plan.where} was not called: its body is not gzip: {error}.") from None

    def _encode(self, answer: Any) -> bytes:
        """The answer's bytes; also its headers, as whatever is wrong with them is the handler's fault too."""
        plan = self.target.plan
        call = self.call
        if plan.paged:
            answer = self._linked(answer)
        body = plan.encode(answer)
        if plan.decorate is not None:
            self._extra = [*(self._extra or ()), *plan.decorate(answer)]
        if call.response_metadata is not None or call.trailing_metadata is not None:
            pairs = (*(call.response_metadata or ()), *(call.trailing_metadata or ()))
            self._extra = [*(self._extra or ()), *fields_from_metadata(pairs)]
        return body

    def _linked(self, page: Any) -> Any:
        """A page of a list with the links around it, which are in a header as well."""
        if not isinstance(page, Page) or page.links:
            return page
        links = links_of(page, self.target.path, self.target.query)
        self._extra = [(b"link", link_header(links).encode("latin-1"))]
        return replace(page, links=links)

    def _error_fields(self) -> Iterable[Field]:
        call = self.call
        pairs = (*(call.response_metadata or ()), *(call.trailing_metadata or ()))
        return safe_fields(call, pairs) if pairs else ()

    def _respond(self, body: bytes) -> None:
        server = self.target.server
        plan = self.target.plan
        tail: Iterable[Field] = ((_REQUEST_ID, self.call.request_id.encode()),)
        if self._extra is not None:
            tail = (*tail, *self._extra)
        if plan.bodiless:
            body = b""
        elif server.compress_above is not None and len(body) > server.compress_above:
            tail = (*tail, _VARY)
            if accepts_gzip(self.inbound.named.get(b"accept-encoding")):
                body = compress(body)
                tail = (*tail, _GZIP)
        respond(self.stream, plan.headers, tuple(tail), body)


class RestStream(RestCall):
    """A request for a stream of answers: one JSON document per line."""

    __slots__ = ("_begun",)

    def __init__(self, target: RestTarget, stream: Stream, inbound: RestInbound, call: Call) -> None:
        super().__init__(target, stream, inbound, call)
        self._begun = False

    async def run(self) -> None:
        target = self.target
        try:
            await target.server.dispatcher.stream(
                target.plan.handler, self.call, lambda: self.decode(self.body), self._send
            )
        except CallError as error:
            self._fail(error)
        except BaseException:
            self.stream.reset(CANCEL)
            raise
        else:
            if not self._begun:
                self._begin()
            pairs = self.call.trailing_metadata
            self._end(safe_fields(self.call, pairs) if pairs else [])

    def _send(self, answer: Any) -> Coroutine[Any, Any, None] | None:
        line = self.target.plan.encode(answer) + b"\n"
        if not self._begun:
            self._begin()
        self.stream.send_data(line)
        return None if self.stream.writable else drained(self.stream)

    def _begin(self) -> None:
        call = self.call
        fields = [(_REQUEST_ID, call.request_id.encode())]
        if call.response_metadata is not None:
            fields += fields_from_metadata(call.response_metadata)
        self._begun = True
        self.stream.send_headers(self.target.plan.headers, fields)

    def _fail(self, error: CallError) -> None:
        if not self._begun:
            send_problem(self.stream, error, self.call.request_id, self._error_fields())
            return
        # The status is gone. A last line tells whoever reads the lines, the trailer tells it beyond doubt.
        self.stream.send_data(problem.document_of(error, self.call.request_id) + b"\n")
        pairs = self.call.trailing_metadata or ()
        self._end([*safe_fields(self.call, pairs), (ERROR_TRAILER, error.code.encode())])

    def _end(self, trailers: list[Field]) -> None:
        if trailers:
            self.stream.send_trailers(_NO_HEADERS, trailers)
        else:
            self.stream.send_data(b"", end=True)


_NO_HEADERS = Headers(())


class RestCollection:
    """A stream of requests, one JSON document per line, for one answer."""

    __slots__ = ("_answer", "_incoming")

    def __init__(self, target: RestTarget, stream: Stream, inbound: RestInbound, call: Call) -> None:
        self._answer = _CollectionAnswer(target, stream, inbound, call)
        decode = codec_for(target.plan.handler.rpc.request, "json").decode
        lines = Lines(target.server.dispatcher.max_message_bytes)
        self._incoming: Incoming[Any] = Incoming(stream, lines, lambda _, line: decode(line))
        if inbound.content_type not in target.plan.accepted:
            self._incoming.fail(unsupported(target.plan, inbound))
        elif inbound.coding != b"identity":
            self._incoming.fail(problem.UnsupportedMediaType(f"{target.plan.where} takes no compressed stream."))
        self._answer.started = True
        start_task(asyncio.get_running_loop(), self._answer.collect(self._incoming), call)

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        """Only at a client."""

    def data_received(self, data: bytes) -> None:
        self._incoming.feed(data)

    def ended(self, trailers: tuple[Field, ...]) -> None:
        self._incoming.feed(b"\n")  # the last line may lack its end
        self._incoming.end()

    def failed(self, error: StreamClosed) -> None:
        self._incoming.fail(Cancelled("The caller went away before its requests were complete."))
        self._answer.failed(error)


class _CollectionAnswer(RestCall):
    """The answer to a `RestCollection`."""

    __slots__ = ()

    async def collect(self, incoming: Incoming[Any]) -> None:
        """Call the handler and answer."""
        target = self.target
        try:
            body = await target.server.dispatcher.collect(target.plan.handler, self.call, incoming, self._encode)
        except CallError as error:
            send_problem(self.stream, error, self.call.request_id, self._error_fields())
        except BaseException:
            self.stream.reset(CANCEL)
            raise
        else:
            self._respond(body)
        incoming.discard()


def unsupported(plan: RestPlan, inbound: Inbound) -> problem.UnsupportedMediaType:
    """The answer to a body of another type than the route reads."""
    given = inbound.named.get(b"content-type")
    what = "has no Content-Type" if given is None else f"is {given[:80].decode('latin-1')!r}"
    accepted = b", ".join(plan.accepted)
    error = problem.UnsupportedMediaType(
        f"{plan.where} was not called: its body {what}, but it has to be {accepted.decode()}."
    )
    name = {"POST": b"accept-post", "PATCH": b"accept-patch"}.get(plan.route.verb, b"accept")
    error.fields = ((name, accepted),)
    return error


def send_problem(stream: Stream, error: CallError, request_id: str, more: Iterable[Field] = ()) -> None:
    """Answer with a problem document."""
    fields = (*problem.fields_of(error, request_id), *more)
    respond(stream, problem.headers_for(problem.status_of(error)), fields, problem.document_of(error, request_id))


def respond(stream: Stream, headers: Headers, tail: tuple[Field, ...], body: bytes) -> None:
    """A whole answer; to HEAD its headers alone."""
    if stream.version == "2" and stream.head.method == b"HEAD":
        stream.send_headers(headers, (*tail, (b"content-length", b"%d" % len(body))), end=True)
    else:
        stream.respond(headers, tail, body)


def safe_fields(call: Call, pairs: Iterable[tuple[str, Any]]) -> list[Field]:
    """Metadata beside an error or behind a stream, when it is too late to fail for what no header can carry."""
    fields: list[Field] = []
    for pair in pairs:
        try:
            fields += fields_from_metadata([pair])
        except InvalidArgument as error:
            log.error("%s: %s (request id %s)", call.method, error, call.request_id)
    return fields


async def drained(stream: Stream) -> None:
    """Wait until the peer takes more. Raises Cancelled where it has gone."""
    try:
        await stream.drain()
    except StreamClosed as error:
        raise Cancelled(f"The caller went away: {error.reason}.") from None
