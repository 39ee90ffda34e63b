"""Calls REST routes: one endpoint, reached over the connections of a pool."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.codec import check, codec_for
from polywire.codec.failures import as_declared
from polywire.context import NO_METADATA
from polywire.contract import Kind, Message, Rpc
from polywire.contract.fields import INTEGER_RANGES
from polywire.contract.schema import FieldSchema, Form, schema_of
from polywire.errors import Internal, InvalidArgument
from polywire.net.pool import Pool
from polywire.net.stream import Field, Headers
from polywire.wire.compression import compress
from polywire.wire.http.connect_client import COMPRESS_FROM, ConnectStream, ConnectWire, inflated_answer, unreadable
from polywire.wire.http.inbound import REST_TIMEOUT
from polywire.wire.http.outbound import MAX_MESSAGE_BYTES, Calls, Reply, answer_head, fields_of, metadata_among
from polywire.wire.http.problem import error_from_response
from polywire.wire.http.requests import RequestReader
from polywire.wire.http.rest_plan import JSON
from polywire.wire.http.routing import Variable
from polywire.wire.http.values import text_of
from polywire.wire.seam import Outgoing

_UNRESERVED = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*\Z").match
_MAX_PATHS = 512
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode

Encoded = tuple[Headers, tuple[Field, ...], bytes]
"""Headers with the path, further headers made of fields, and the body."""


class RestWire:
    """The `EndpointWire` of REST: unary rpcs by the first route that their contract gives them.

    Streams, and rpcs without a route, take their Connect form in JSON, over *streaming*: REST itself has no agreed way
    to say how a stream ended. Both pools are this wire's own; *streaming* is of version "2". *secure* and *compress* as
    for `ConnectWire`.
    """

    name = "rest"

    def __init__(
        self,
        pool: Pool,
        *,
        streaming: Pool,
        secure: bool = False,
        compress: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.address = str(pool.address)
        self._calls = Calls(pool, clock=clock, limit=max_message_bytes)
        self._compress = compress
        self._connect = ConnectWire(
            streaming,
            encoding="json",
            secure=secure,
            compress=compress,
            clock=clock,
            max_message_bytes=max_message_bytes,
        )
        self._first: tuple[Field, ...] = (
            (b":scheme", b"https" if secure or pool.address.secure else b"http"),
            (b":authority", pool.address.authority.encode()),
        )
        self._routes: dict[Rpc, _RouteCall | None] = {}

    @property
    def usable(self) -> bool:
        return self._calls.usable and self._connect.usable

    @property
    def in_flight(self) -> int:
        return self._calls.in_flight + self._connect.in_flight

    def _route(self, rpc: Rpc) -> _RouteCall | None:
        """How to call *rpc* by its route; None where its Connect form is taken."""
        if rpc not in self._routes:
            takes = rpc.kind is Kind.UNARY and rpc.routes
            self._routes[rpc] = _RouteCall(rpc, self._first, gzip=self._compress) if takes else None
        return self._routes[rpc]

    def encode(self, rpc: Rpc, request: Message | None) -> Any:
        route = self._route(rpc)
        return self._connect.encode(rpc, request) if route is None else route.encode(request)

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        route = self._route(outgoing.rpc)
        if route is None:
            return await self._connect.unary(outgoing, encoded, wait_for_ready=wait_for_ready)
        headers, more, body = encoded
        tail = fields_of(outgoing)
        if outgoing.timeout is not None:
            tail.append((REST_TIMEOUT, b"%.6f" % max(outgoing.timeout, 1e-6)))
        if more:
            # What the message says wins over metadata of the same name, such as the key of `calling(idempotency_key=)`.
            bound = {name for name, _ in more}
            tail = [*[field for field in tail if field[0] not in bound], *more]
        if self._compress and len(body) >= COMPRESS_FROM:
            body = compress(body)
            tail.append((b"content-encoding", b"gzip"))
        reply = await self._calls.exchange(outgoing, headers, tail, body, wait_for_ready)
        return self._answer(route, outgoing, reply)

    def _answer(self, route: _RouteCall, outgoing: Outgoing, reply: Reply) -> Any:
        head = answer_head(reply.head, reply.tail)
        outgoing.headers = head.metadata
        outgoing.trailers = metadata_among(reply.trailers) if reply.trailers else NO_METADATA
        body = reply.body
        if head.coding != b"identity":
            body = inflated_answer(self.address, outgoing, head.coding, body, self._calls.limit)
        if not 200 <= head.status <= 299:
            error = error_from_response(head.status, reply.head.fields + reply.tail, body, self.address)
            error.metadata = outgoing.headers
            raise as_declared(error, outgoing.rpc)
        if outgoing.rpc.response is None:
            return None
        content_type = head.content_type
        if content_type != JSON:
            raise Internal(
                f"{self.address} answered {route.where} with {content_type[:60].decode('latin-1')!r} instead of "
                f"{JSON.decode()!r}. Is it the service, or a proxy?"
            )
        try:
            return route.decode(body)
        except InvalidArgument as error:
            raise unreadable(outgoing, error) from None

    async def stream(self, outgoing: Outgoing, *, wait_for_ready: bool = False) -> ConnectStream:
        return await self._connect.stream(outgoing, wait_for_ready=wait_for_ready)

    async def drain(self) -> None:
        await self._calls.drain()
        await self._connect.drain()

    async def close(self) -> None:
        await self._calls.close()
        await self._connect.close()


class _RouteCall:
    """One rpc by its first route: the reverse of `RequestReader`."""

    __slots__ = ("_encode", "_fixed", "_headers", "_last", "_omissible", "_paths", "_query", "_quick", "_reader",
                 "_route", "decode", "where")  # fmt: skip

    def __init__(self, rpc: Rpc, first: tuple[Field, ...], *, gzip: bool) -> None:
        route = self._route = rpc.routes[0]
        self._reader = RequestReader(rpc, route)
        self.where = self._reader.where
        self._encode: Callable[[Any], bytes] = codec_for(rpc.request, "json").encode
        self.decode: Callable[[bytes], Any] = codec_for(rpc.response, "json").decode
        self._headers = ((b":method", route.verb.encode()), *first)
        last: list[Field] = [(b"accept", JSON)]
        if route.body is not None:
            last.append((b"content-type", JSON))
        if gzip:
            last.append((b"accept-encoding", b"gzip"))
        self._last = tuple(last)
        self._paths: dict[str, Headers] = {}
        plain = self._reader.plain_body and route.verb != "PATCH"
        nothing = rpc.request is None and not self._reader.template.variables
        self._fixed = self._headers_for(self._reader.template.text) if plain or nothing else None
        """Where the path is always the same and the body is the message as it is."""
        fields = () if rpc.request is None else schema_of(rpc.request).fields
        self._query = {field.name: field for field in fields}
        self._quick = self._quick_pieces(fields)
        in_headers = {binding.name for _, binding in self._reader.headers}
        self._omissible = tuple(
            field for field in fields if not field.required and (route.verb == "PATCH" or field.name in in_headers)
        )
        """Fields that are left out where they have their default: all of a PATCH, and those that travel in headers."""

    def _quick_pieces(self, fields: tuple[FieldSchema, ...]) -> _Pieces | None:
        """How the target is put together where all fields are plain texts, numbers or booleans in path or query.

        Most GETs are like that, and need no JSON in between.
        """
        reader = self._reader
        by_name = {field.name: field for field in fields}
        if reader.body is not None or reader.reads_headers or not fields:
            return None
        if any(not _is_quick(field) for field in fields) or any(
            not variable.single or variable.literals[0] is not None or len(binding.path) > 1
            for variable, binding in reader.variables
        ):
            return None
        segments: list[str | FieldSchema] = ["/" + segment for segment in reader.template.segments]
        for variable, binding in reader.variables:
            segments[variable.start] = by_name.pop(binding.name)
        pieces: list[tuple[str, str, str]] = []
        before = ""
        for segment in segments:
            if isinstance(segment, str):
                before += segment
            else:
                pieces.append((before + "/", segment.attribute, segment.name))
                before = ""
        if reader.template.verb:
            before += ":" + reader.template.verb
        return pieces, before, [(f"{field.name}=", field.attribute) for field in by_name.values()]

    def _quick_path(self, pieces: _Pieces, request: Any) -> str:
        check(request)
        in_path, path, in_query = pieces
        start = ""
        for before, attribute, name in in_path:
            text = text_of(getattr(request, attribute))
            if not _UNRESERVED(text):
                text = self._segment(name, text)
            start += before + text
        path = start + path
        if in_query:
            pairs = [name + _quoted(text_of(getattr(request, attribute))) for name, attribute in in_query]
            return f"{path}?{'&'.join(pairs)}"
        return path

    def _segment(self, name: str, text: str) -> str:
        """A parameter as one segment of the path."""
        if not text:
            raise InvalidArgument(
                f"{self.where} was not called: {name} is part of its path and must not be empty.", field=name
            )
        # A segment of dots alone would be taken for a step in the path.
        return text if _UNRESERVED(text) else quote(text, safe="").replace(".", "%2E")

    def _headers_for(self, path: str) -> Headers:
        found = self._paths.get(path)
        if found is None:
            if len(self._paths) >= _MAX_PATHS:
                self._paths.clear()
            found = self._paths[path] = Headers((*self._headers, (b":path", path.encode()), *self._last))
        return found

    def encode(self, request: Message | None) -> Encoded:
        """Headers and body. Raises InvalidArgument where the message violates its contract or does not fit."""
        if self._quick is not None:
            return self._headers_for(self._quick_path(self._quick, request)), (), b""
        data = self._encode(request)
        if self._fixed is not None:
            return self._fixed, (), data if self._route.body is not None else b""
        document = _decode(data)
        reader = self._reader
        for field in self._omissible:
            if getattr(request, field.attribute) == field.default_value():
                document.pop(field.name, None)
        path = self._path(document)
        more = self._in_headers(document)
        body = b""
        if reader.body == "*":
            body = _encode(document)
        else:
            if reader.body is not None and reader.body in document:
                body = _encode(document.pop(reader.body))
            query = self._query_of(document)
            if query:
                path = f"{path}?{query}"
        return self._headers_for(path), more, body

    def _path(self, document: dict[str, Any]) -> str:
        template = self._reader.template
        segments: list[str] = list(template.segments)
        texts: list[tuple[Variable, str]] = []
        for variable, binding in self._reader.variables:
            value = _take(document, binding.path)
            text = "" if value is None else text_of(value)
            texts.append((variable, self._segments_of(variable, binding.name, text)))
        for variable, text in reversed(texts):
            segments[variable.start : variable.end] = [text]
        return "/" + "/".join(segments) + (f":{template.verb}" if template.verb else "")

    def _segments_of(self, variable: Variable, name: str, text: str) -> str:
        if not text or (variable.single and variable.literals[0] is None):
            return self._segment(name, text)
        parts = text.split("/")
        literals = variable.literals
        fits = len(parts) == len(literals) if variable.end is not None else len(parts) >= len(literals)
        if not fits or any(want not in (None, part) for want, part in zip(literals, parts, strict=False)):
            raise InvalidArgument(
                f"{self.where} was not called: {name} is {text[:80]!r}, which does not fit the path.", field=name
            )
        return quote(text, safe="/").replace("/.", "/%2E")

    def _in_headers(self, document: dict[str, Any]) -> tuple[Field, ...]:
        """Headers for the fields that travel in them; a list is its header repeated."""
        fields: list[Field] = []
        for header, binding in self._reader.headers:
            value = _take(document, binding.path)
            items = value if binding.many and value is not None else (value,)
            fields += [self._header(header, binding.name, item) for item in items if item is not None]
        return tuple(fields)

    @staticmethod
    def _header(header: bytes, name: str, value: Any) -> Field:
        text = text_of(value)
        if not text.isascii() or not text.isprintable() or text != text.strip():
            raise InvalidArgument(
                f"{name} travels in the header {header.decode()}, which has printable ASCII only, without white space "
                "around it.",
                field=name,
            )
        return header, text.encode()

    def _query_of(self, document: dict[str, Any]) -> str:
        pairs: list[str] = []
        for name, value in document.items():
            field = self._query[name]
            if value is None and field.default is not None:
                raise InvalidArgument(
                    f"{self.where} was not called: {name} is None, which a query cannot say where the default is "
                    "something else.",
                    field=name,
                )
            _append(pairs, name, value, dotted=field.value is not None and field.value.is_message)
        return "&".join(pairs)


_Pieces = tuple[list[tuple[str, str, str]], str, list[tuple[str, str]]]
"""Before a parameter, its attribute and its name; what follows the last; of the query, `name=` and attribute."""


def _is_quick(field: FieldSchema) -> bool:
    """Whether a field's value is its own text, always."""
    value = field.value
    return (
        field.form is Form.ONE
        and not field.nullable
        and value is not None
        and (value.kind in ("string", "bool") or value.kind in INTEGER_RANGES)
    )


def _append(pairs: list[str], name: str, value: Any, *, dotted: bool) -> None:
    """Scalars as they are, lists by repeating the name, messages of scalars with dots, and all else as JSON."""
    if value is None:
        return
    if isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
        pairs += [f"{name}={_quoted(text_of(item))}" for item in value]
    elif isinstance(value, dict) and dotted and value and not any(isinstance(v, (dict, list)) for v in value.values()):
        before = len(pairs)
        for inner, item in value.items():
            _append(pairs, f"{name}.{inner}", item, dotted=False)
        if len(pairs) == before:
            pairs.append(f"{name}=%7B%7D")
    else:
        pairs.append(f"{name}={_quoted(text_of(value))}")


def _quoted(text: str) -> str:
    return text if _UNRESERVED(text) else quote(text, safe="")


def _take(document: dict[str, Any], path: tuple[str, ...]) -> Any:
    """Remove what is at *path* and return it; None where there is nothing."""
    for name in path[:-1]:
        inner = document.get(name)
        if not isinstance(inner, dict):
            return None
        document = inner
    return document.pop(path[-1], None)
