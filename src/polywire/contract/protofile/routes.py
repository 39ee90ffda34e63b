"""google.api.http as the arguments of `@rpc`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from polywire.contract.protofile.layout import Group, literal
from polywire.contract.rest import Route
from polywire.errors import ContractError

_DEFAULT_BODY = {"get": "", "delete": "", "post": "*", "put": "*", "patch": "*"}


@dataclass
class Routes:
    """The REST forms of one rpc."""

    written: list[Group] = field(default_factory=list)
    """`get("/orders/{order_id}")`"""
    verbs: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Sentences about bindings that a contract cannot express."""


def routes_of(rule: Any, streams_requests: bool) -> Routes:
    """The routes of an HttpRule and its additional bindings; none for None."""
    routes = Routes()
    for binding in [rule, *rule.additional_bindings] if rule is not None else []:
        _add(routes, binding, streams_requests)
    return routes


def _add(routes: Routes, binding: Any, streams_requests: bool) -> None:
    verb = binding.WhichOneof("pattern")
    if verb is None:
        return
    if verb == "custom":
        routes.left_out.append(_sentence(binding.custom.kind, binding.custom.path, "contracts have no such verb"))
        return
    path = getattr(binding, verb)
    why = _refusal(verb, path, binding, streams_requests)
    if why:
        routes.left_out.append(_sentence(verb.upper(), path, why))
        return
    arguments: list[str | Group] = [literal(path)]
    if binding.body != _DEFAULT_BODY[verb]:
        arguments.append(f"body={literal(binding.body) if binding.body else None}")
    routes.verbs.append(verb)
    routes.written.append(Group(f"{verb}(", arguments, ")"))


def _refusal(verb: str, path: str, binding: Any, streams_requests: bool) -> str:
    if binding.response_body:
        return f"it answers with the field {binding.response_body!r} alone"
    if verb == "get" and binding.body:
        return "a GET has no body"
    if verb == "get" and streams_requests:
        return "a GET cannot carry a stream"
    try:
        Route(verb=verb.upper(), path=path)
    except ContractError:
        return "its path has no form here"
    return ""


def _sentence(verb: str, path: str, why: str) -> str:
    return f"Left out: {verb} {path}, as {why}."
