"""The REST side of a comparison: what a client knows by verb and path."""

from __future__ import annotations

from collections.abc import Iterator

from polywire.contract.breaking.contracts import Contracts
from polywire.contract.breaking.findings import Finding
from polywire.contract.breaking.payloads import Pair, Walk, judge_rest
from polywire.contract.breaking.rest_model import UNKNOWN, RestRoute, field_at, fields_of, routes_of
from polywire.contract.breaking.rest_types import spelled, understands
from polywire.contract.breaking.wire_rules import WIRE_RULES
from polywire.contract.export_standard import EMPTY


def compare_rest(old: Contracts, new: Contracts) -> Iterator[Finding]:
    """What would break clients of the routes of before, which are known by verb and path, whatever method has them."""
    routes = routes_of(new)
    walk = Walk(old, new, judge_rest, "REST_ENUM_VALUE_NO_DELETE")
    for before in routes_of(old):
        after = _same_route(before, routes)
        if after is None:
            yield _finding("REST_ROUTE_NO_DELETE", before, _where_it_went(before, routes))
        else:
            yield from _Pair(old, new, before, after, walk).findings()
    for name, was in old.rpcs.items():
        now = new.rpcs.get(name)
        for error in was.raises if was.routes and now is not None else ():
            if now is not None and error in now.raises:
                yield from walk.message("response", error, error)


def _finding(rule: str, route: RestRoute, change: str) -> Finding:
    return Finding(rule=WIRE_RULES[rule], where=route.text, change=change)


def _same_route(before: RestRoute, routes: list[RestRoute]) -> RestRoute | None:
    same = [route for route in routes if (route.verb, route.shape) == (before.verb, before.shape)]
    wider = [route for route in routes if route.verb == before.verb and _is_wider(route.shape, before.shape)]
    return next(iter([*same, *wider]), None)


def _is_wider(shape: str, than: str) -> bool:
    """`/files/{**}` takes what `/files/{}` took."""
    return "{**}" in shape and shape.replace("{**}", "{}") == than


def _where_it_went(before: RestRoute, routes: list[RestRoute]) -> str:
    said = f"{before.text} of {before.method} is gone."
    verbs = [route.verb for route in routes if route.shape == before.shape]
    if verbs:
        return f"{said} The path has {' and '.join(verbs)} now."
    moved = [route.text for route in routes if route.method == before.method]
    return f"{said} The method has {' and '.join(moved)} now." if moved else said


class _Pair:
    """A route as it was and as it is."""

    def __init__(self, old: Contracts, new: Contracts, before: RestRoute, after: RestRoute, walk: Walk) -> None:
        self.old, self.new, self.before, self.after, self._walk = old, new, before, after, walk
        self._exact = old.is_python and new.is_python

    def findings(self) -> Iterator[Finding]:
        for rule, change in (
            *self._streaming(),
            *self._path(),
            *self._query(),
            *self._headers(),
            *self._body(),
            *self._answer(),
        ):
            yield _finding(rule, self.after, change)
        yield from self._request()
        yield from self._response()

    def _streaming(self) -> Iterator[tuple[str, str]]:
        before, after = self.before, self.after
        for was, now, what in (
            (before.takes_stream, after.takes_stream, "It takes"),
            (before.answers_stream, after.answers_stream, "It answers"),
        ):
            if was != now:
                change = f"{what} {'lines of JSON' if now else 'one JSON value'} now."
                yield "REST_ROUTE_SAME_STREAMING", change

    def _understands_text(self, name: str, new_name: str) -> str:
        """What changed about the type of something in a path, a query or a header; empty if it fits."""
        was, now = field_at(self.old, self.before.request, name), field_at(self.new, self.after.request, new_name)
        if was is None or now is None or understands(now, was, exact=self._exact, text=True):
            return ""
        return f"{name!r} was {spelled(was)} and is {spelled(now)} now."

    def _path(self) -> Iterator[tuple[str, str]]:
        for name, new_name in zip(self.before.variables, self.after.variables, strict=False):
            change = self._understands_text(name, new_name)
            if change:
                yield "REST_PATH_PARAMETER_SAME_TYPE", change

    def _query(self) -> Iterator[tuple[str, str]]:
        query = self.after.query(self.new)
        for name in self.before.query(self.old):
            if name not in query:
                yield "REST_QUERY_PARAMETER_NO_DELETE", f"{name!r} is not read from the query now{self._place(name)}."
                continue
            change = self._understands_text(name, name)
            if change:
                yield "REST_QUERY_PARAMETER_SAME_TYPE", change

    def _place(self, name: str) -> str:
        """Where a field comes from now that came from the query."""
        after = self.after
        if field_at(self.new, after.request, name) is None:
            return ", and there is no such field"
        if name in after.variables:
            return ", but from the path"
        if after.headers is not UNKNOWN and name in after.headers.values():
            return ", but from a header"
        return ", but from the body"

    def _headers(self) -> Iterator[tuple[str, str]]:
        if self.before.headers is UNKNOWN or self.after.headers is UNKNOWN:
            return
        for header, field in self.before.headers.items():
            if header not in self.after.headers:
                yield "REST_HEADER_NO_DELETE", f"The header {header!r} is not read now."
                continue
            change = self._understands_text(field, self.after.headers[header])
            if change:
                yield "REST_REQUEST_FIELD_SAME_TYPE", f"In the header {header!r}, {change}"

    def _body(self) -> Iterator[tuple[str, str]]:
        was, now = self.before.body, self.after.body
        if was != now:
            yield "REST_BODY_SAME_FIELD", f"The body was {_body(was)} and is {_body(now)} now."

    def _answer(self) -> Iterator[tuple[str, str]]:
        before, after = self.before, self.after
        was, now = (_answer(route.response, route.response_body) for route in (before, after))
        if was != now:
            yield "REST_RESPONSE_SAME_BODY", f"The answer was {was} and is {now} now."
        if UNKNOWN not in (before.status, after.status) and before.status != after.status:
            yield "REST_STATUS_SAME", f"A success was {before.status} and is {after.status} now."
        if UNKNOWN not in (before.response_headers, after.response_headers):
            for header in sorted(before.response_headers - after.response_headers):
                yield "REST_RESPONSE_HEADER_NO_DELETE", f"The answer has no header {header!r} now."

    def _request(self) -> Iterator[Finding]:
        before, after = self.before, self.after
        bound = tuple({*route.variables, *_header_fields(route)} for route in (before, after))
        if before.body == after.body == "*":
            yield from self._walk.message("request", before.request, after.request, skip=(bound[0], bound[1]))
            return
        if before.body and before.body == after.body:
            yield from self._one("request", before.request, after.request, before.body)
        yield from self._required(bound[1])

    def _required(self, bound: set[str]) -> Iterator[Finding]:
        """What has to be in the query, or as a body, that was not needed; parts of the path are always there."""
        was = fields_of(self.old, self.before.request)
        for name, field in fields_of(self.new, self.after.request).items():
            if name in bound - set(_header_fields(self.after)) or name == self.before.body == self.after.body:
                continue
            pair = Pair(direction="request", was=was.get(name), now=field, exact=self._exact, reserved=False)
            for rule, change in judge_rest(pair):
                if rule == "REST_REQUEST_FIELD_REQUIRED":
                    where = f"{self.after.request}.{name}"
                    yield Finding(rule=WIRE_RULES[rule], where=where, change=change)

    def _response(self) -> Iterator[Finding]:
        before, after = self.before, self.after
        if EMPTY in (before.response, after.response) or before.response_body != after.response_body:
            return
        if before.response_body:
            yield from self._one("response", before.response, after.response, before.response_body)
        else:
            yield from self._walk.message("response", before.response, after.response)

    def _one(self, direction: str, before: str, after: str, name: str) -> Iterator[Finding]:
        was, now = fields_of(self.old, before), fields_of(self.new, after)
        others = ({*was} - {name}, {*now} - {name})
        yield from self._walk.message("request" if direction == "request" else "response", before, after, skip=others)


def _header_fields(route: RestRoute) -> tuple[str, ...]:
    return () if route.headers is UNKNOWN else tuple(route.headers.values())


def _body(selector: str) -> str:
    if selector == "*":
        return "the message"
    return f"the field {selector!r}" if selector else "nothing"


def _answer(response: str, selector: str) -> str:
    if response == EMPTY:
        return "nothing"
    return f"the field {selector!r}" if selector else "the message"
