"""How an rpc appears as a REST resource: verb, path and where each field of the request comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from polywire.errors import ContractError

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.]*)(?:=([^{}]*))?\}")
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One REST route of an rpc. Made by `get`, `post`, `put`, `patch` and `delete`.

    The same rules as google.api.http: fields named in the path come from the path, *body* says which field is the
    request body (`"*"`: all that are not bound elsewhere), and whatever is left comes from the query string.
    """

    verb: str
    path: str
    """With `{field}` for one segment and `{field=**}` for the rest of the path; relative to the contract's prefix."""
    body: str | None = None
    status: int | None = None
    """Of a success; by default 200, or 204 where the rpc returns nothing."""
    location: str | None = None
    """A `Location` header for the answer, with `{field}` taken from the response."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Request fields that come from headers: field name to header name."""
    response_headers: Mapping[str, str] = field(default_factory=dict)
    """Response fields that are also sent as headers: field name to header name."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The fields named in the path, in order."""
        return tuple(match[1] for match in _PARAMETER.finditer(self.path))

    def __post_init__(self) -> None:
        if not self.path.startswith("/"):
            raise ContractError(
                f"{self.verb} {self.path!r} is no REST path: it has to begin with '/'. Write '/{self.path}'."
            )
        rest = _PARAMETER.sub("", self.path)
        if "{" in rest or "}" in rest or "?" in rest or "#" in rest:
            raise ContractError(
                f"{self.verb} {self.path!r} is no REST path: parameters are written {{field}} or {{field=**}}, "
                "and fields outside the path come from the query by themselves."
            )
        if len(set(self.parameters)) != len(self.parameters):
            raise ContractError(f"{self.verb} {self.path!r} names a parameter twice. Each may appear once.")


def get(
    path: str,
    *,
    status: int | None = None,
    headers: Mapping[str, str] = _NOTHING,
    response_headers: Mapping[str, str] = _NOTHING,
) -> Route:
    """`GET path`: no body; fields that are not in the path come from the query string."""
    return Route(verb="GET", path=path, status=status, headers=headers, response_headers=response_headers)


def post(
    path: str,
    *,
    body: str | None = "*",
    status: int | None = None,
    location: str | None = None,
    headers: Mapping[str, str] = _NOTHING,
    response_headers: Mapping[str, str] = _NOTHING,
) -> Route:
    """`POST path`; give `status=201, location="/orders/{order_id}"` where it creates something."""
    return Route(
        verb="POST",
        path=path,
        body=body,
        status=status,
        location=location,
        headers=headers,
        response_headers=response_headers,
    )


def put(
    path: str,
    *,
    body: str | None = "*",
    status: int | None = None,
    location: str | None = None,
    headers: Mapping[str, str] = _NOTHING,
    response_headers: Mapping[str, str] = _NOTHING,
) -> Route:
    """`PUT path`: replace, so declare the rpc idempotent."""
    return Route(
        verb="PUT",
        path=path,
        body=body,
        status=status,
        location=location,
        headers=headers,
        response_headers=response_headers,
    )


def patch(
    path: str,
    *,
    body: str | None = "*",
    status: int | None = None,
    headers: Mapping[str, str] = _NOTHING,
    response_headers: Mapping[str, str] = _NOTHING,
) -> Route:
    """`PATCH path`: change some fields."""
    return Route(verb="PATCH", path=path, body=body, status=status, headers=headers, response_headers=response_headers)


def delete(
    path: str,
    *,
    body: str | None = None,
    status: int | None = None,
    headers: Mapping[str, str] = _NOTHING,
    response_headers: Mapping[str, str] = _NOTHING,
) -> Route:
    """`DELETE path`: 204 where the rpc returns nothing."""
    return Route(verb="DELETE", path=path, body=body, status=status, headers=headers, response_headers=response_headers)
