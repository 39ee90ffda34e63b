"""What a REST route means, worked out once when the server starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec

from polywire.codec import codec_for
from polywire.contract import Kind, Message, Route
from polywire.contract.pagination import Page
from polywire.contract.schema import schema_of
from polywire.errors import ContractError
from polywire.net.stream import Field, Headers
from polywire.wire.http.requests import RequestReader
from polywire.wire.http.values import is_scalar, text_of
from polywire.wire.seam import Handler

JSON = b"application/json"
NDJSON = b"application/x-ndjson"
MERGE_PATCH = b"application/merge-patch+json"

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_NO_CONTROLS = re.compile(r"[^\x20-\x7e]")

Decorate = Callable[[Any], list[Field]]
"""From an answer to the headers made of its fields."""


class RestPlan:
    """One route of one handler."""

    __slots__ = (
        "accepted",
        "decorate",
        "encode",
        "handler",
        "headers",
        "kind",
        "method",
        "paged",
        "produced",
        "reader",
        "route",
        "where",
    )

    def __init__(self, handler: Handler, route: Route) -> None:
        rpc = handler.rpc
        self.handler = handler
        self.method = rpc.full_name
        self.kind = rpc.kind
        self.paged = rpc.response is not None and issubclass(rpc.response, Page) and self.kind is Kind.UNARY
        self.route = route
        self.reader = RequestReader(rpc, route)
        self.where = self.reader.where
        self._check_kind()
        status = route.status or (204 if rpc.response is None else 200)
        self._check_status(status)
        self.encode: Callable[[Any], bytes] = codec_for(rpc.response, "json").encode
        self.produced = NDJSON if rpc.streams_responses else JSON
        """The media type of the answer."""
        self.accepted = self._accepted()
        """The media types of a request's body."""
        fields: list[Field] = [(b":status", b"%d" % status)]
        if rpc.response is not None:
            fields.append((b"content-type", self.produced))
        self.headers = Headers(fields)
        """Of every success."""
        self.decorate = self._decorator()

    @property
    def bodiless(self) -> bool:
        return self.handler.rpc.response is None

    def _refuse(self, what: str) -> ContractError:
        return ContractError(f"{self.where} cannot be served: {what}")

    def _check_kind(self) -> None:
        kind, route = self.handler.rpc.kind, self.route
        if kind is Kind.BIDIRECTIONAL:
            raise self._refuse(
                "REST has no conversation in both directions. Leave the route out; the method can be called over gRPC "
                "and Connect."
            )
        if kind is Kind.CLIENT_STREAM and (self.reader.body != "*" or not self.reader.plain_body):
            raise self._refuse("its requests are the lines of the body, so nothing can come from the path or headers.")
        if kind is Kind.SERVER_STREAM and (route.location or route.response_headers):
            raise self._refuse("a stream of answers has no single one to take headers from.")

    def _check_status(self, status: int) -> None:
        if not 200 <= status <= 299:
            raise self._refuse(f"status={status} is no success. Take one from 200 to 299, and raise errors for others.")
        if status in (204, 205) and not self.bodiless:
            raise self._refuse(f"status={status} has no body, but the method returns a message.")

    def _accepted(self) -> tuple[bytes, ...]:
        if self.reader.body is None:
            return ()
        if self.handler.rpc.streams_requests:
            return (NDJSON,)
        return (JSON, MERGE_PATCH) if self.route.verb == "PATCH" else (JSON,)

    def _decorator(self) -> Decorate | None:
        route, response = self.route, self.handler.rpc.response
        makers: list[Decorate] = []
        if route.location is not None:
            makers.append(self._location(route.location, response))
        for attribute, name in route.response_headers.items():
            if not _HEADER_NAME.match(name):
                raise self._refuse(f"response_headers names {name!r}, which no header can be called.")
            makers.append(_header(name.lower().encode(), self._scalar(response, attribute, "response_headers")))
        if not makers:
            return None
        return lambda answer: [field for make in makers for field in make(answer)]

    def _location(self, template: str, response: type[Message] | None) -> Decorate:
        parts = _PARAMETER.split(template)
        if not template.startswith(("/", "http://", "https://")) or "{" in "".join(parts[::2]):
            raise self._refuse(f"location={template!r} is no path. Write it like '/orders/{{order_id}}'.")
        if template.startswith("/"):
            # Relative to the contract's prefix, as the route's own path is.
            parts[0] = self.handler.rpc.prefix + parts[0]
        readers = [self._scalar(response, name, "location") for name in parts[1::2]]

        def location(answer: Any) -> list[Field]:
            texts = [quote(_text(read(answer)), safe="") for read in readers]
            path = "".join(part for pair in zip(parts[::2], [*texts, ""], strict=True) for part in pair)
            return [(b"location", path.encode())]

        return location

    def _scalar(self, response: type[Message] | None, name: str, place: str) -> Callable[[Any], Any]:
        if response is None:
            raise self._refuse(f"its {place} names {name!r}, but the method returns nothing.")
        for field in schema_of(response).fields:
            if name in (field.attribute, field.name):
                if not is_scalar(field):
                    raise self._refuse(f"its {place} names {name!r}, which is no single value.")
                attribute = field.attribute
                return lambda answer: getattr(answer, attribute)
        known = ", ".join(field.name for field in schema_of(response).fields)
        raise self._refuse(
            f"its {place} names {name!r}, which {response.__qualname__} does not have. Its fields: {known}."
        )


def _text(value: Any) -> str:
    return text_of(msgspec.to_builtins(value))


def _header(name: bytes, read: Callable[[Any], Any]) -> Decorate:
    def make(answer: Any) -> list[Field]:
        value = read(answer)
        # What no header can carry is percent-encoded, as in a path.
        return [] if value is None else [(name, _NO_CONTROLS.sub(_escaped, _text(value).strip()).encode())]

    return make


def _escaped(match: re.Match[str]) -> str:
    return quote(match[0])
