"""Finds the route of a request path: literal segments before parameters, whatever the order of declaration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from polywire.errors import ContractError

P = TypeVar("P")

_VARIABLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.]*)(?:=([^{}]*))?\}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ENCODED_SLASH = re.compile(r"(%2[Ff])")


class BadPath(ValueError):
    """The path, or the query, is not properly percent-encoded UTF-8."""


class Variable:
    """A field bound by a path: the segments *start* to *end* (None: all that are left)."""

    __slots__ = ("end", "field", "literals", "start")

    def __init__(self, field: str, start: int, end: int | None, literals: tuple[str | None, ...]) -> None:
        self.field = field
        self.start = start
        self.end = end
        self.literals = literals
        """Of its segments: the text demanded, or None for any."""

    @property
    def single(self) -> bool:
        return self.end == self.start + 1


class Template:
    """A path pattern as google.api.http has it: `/v1/{name=shelves/*}/books/{id}:read`, read once."""

    __slots__ = ("segments", "text", "variables", "verb")

    def __init__(self, text: str) -> None:
        self.text = text
        body, self.verb = _split_verb(text)
        segments: list[str] = []
        variables: list[Variable] = []
        position = 1
        while position <= len(body):
            end = _segment_end(body, position)
            part = body[position:end]
            match = _VARIABLE.fullmatch(part)
            if match is not None:
                inner = (match[2] or "*").split("/")
                start = len(segments)
                last = None if inner[-1] == "**" else start + len(inner)
                literals = tuple(None if piece in ("*", "**") else piece for piece in inner)
                variables.append(Variable(match[1], start, last, literals))
                segments += inner
            elif "{" in part or "}" in part:
                raise ContractError(
                    f"The REST path {text!r} cannot be served: a parameter has to be a whole segment between slashes, "
                    "as in /orders/{order_id}/items."
                )
            else:
                segments.append(part)
            position = end + 1
        if "**" in segments[:-1]:
            raise ContractError(f"The REST path {text!r} cannot be served: `**` has to be its last segment.")
        self.segments = tuple(segments)
        """Literals, `*` and `**`."""
        self.variables = tuple(variables)

    @property
    def shape(self) -> tuple[tuple[str, ...], str]:
        """Equal for two templates that match the same paths."""
        return self.segments, self.verb


def _split_verb(text: str) -> tuple[str, str]:
    """The path and its custom verb: `/v1/{name}:cancel` is `/v1/{name}` and `cancel`."""
    last = max(text.rfind("}"), text.rfind("/"))
    colon = text.find(":", last + 1)
    if colon < 0 or (text[last] == "/" and colon == last + 1):
        return text, ""
    return text[:colon], text[colon + 1 :]


def _segment_end(body: str, position: int) -> int:
    """The next slash outside of braces."""
    depth = 0
    for index in range(position, len(body)):
        character = body[index]
        if character == "/" and not depth:
            return index
        depth += (character == "{") - (character == "}")
    return len(body)


class Found(Generic[P]):
    """The plans of one path, by verb, and the path's decoded segments."""

    __slots__ = ("plan", "segments")

    def __init__(self, plan: P, segments: list[str]) -> None:
        self.plan = plan
        self.segments = segments


class _Node(Generic[P]):
    __slots__ = ("any", "leaves", "literals", "rest")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[P]] = {}
        self.any: _Node[P] | None = None
        self.rest: _Node[P] | None = None
        self.leaves: dict[str, dict[str, P]] = {}
        """By custom verb (usually the empty one), then by HTTP verb."""

    def child(self, segment: str) -> _Node[P]:
        if segment == "*":
            self.any = self.any or _Node()
            return self.any
        if segment == "**":
            self.rest = self.rest or _Node()
            return self.rest
        return self.literals.setdefault(segment, _Node())


class Router(Generic[P]):
    """All routes of a server. A path ending in a slash is not the path without it."""

    def __init__(self) -> None:
        self._root: _Node[P] = _Node()
        self._suffixes: set[str] = set()

    def add(self, verb: str, template: Template, plan: P) -> P | None:
        """Returns the plan that has the same verb and shape already, in which case nothing is added."""
        node = self._root
        for segment in template.segments:
            node = node.child(segment)
        plans = node.leaves.setdefault(template.verb, {})
        if verb in plans:
            return plans[verb]
        plans[verb] = plan
        if template.verb:
            self._suffixes.add(template.verb)
        return None

    def find(self, verb: str, path: str) -> Found[P] | set[str]:
        """The route of *path* with *verb*; else the verbs that the path has, none if it is unknown. Raises BadPath."""
        segments = decode_segments(path)
        if not self._suffixes:
            plans = self._most_literal(segments)
            if plans is not None and verb in plans:
                return Found(plans[verb], segments)
        allowed: set[str] = set()
        for plans in self._candidates(segments):
            plan = plans.get(verb)
            if plan is not None:
                return Found(plan, segments)
            allowed.update(plans)
        return allowed

    def _most_literal(self, segments: list[str]) -> dict[str, P] | None:
        """What `_candidates` would find first, where the most literal way does not lead astray."""
        node = self._root
        for segment in segments:
            following = node.literals.get(segment)
            if following is None:
                following = node.any
                if following is None or not segment:
                    return None
            node = following
        return node.leaves.get("")

    def _candidates(self, segments: list[str]) -> Iterator[dict[str, P]]:
        if self._suffixes and segments:
            stem, colon, suffix = segments[-1].rpartition(":")
            if colon and suffix in self._suffixes:
                last = segments[-1]
                segments[-1] = stem
                yield from _walk(self._root, segments, 0, suffix)
                segments[-1] = last
        yield from _walk(self._root, segments, 0, "")


def _walk(node: _Node[P], segments: list[str], index: int, suffix: str) -> Iterator[dict[str, P]]:
    """The plans of every pattern that matches, the most literal first. As deep as the patterns, not as the path."""
    if index == len(segments):
        plans = node.leaves.get(suffix)
        if plans is not None:
            yield plans
        return
    segment = segments[index]
    literal = node.literals.get(segment)
    if literal is not None:
        yield from _walk(literal, segments, index + 1, suffix)
    if node.any is not None and segment:
        yield from _walk(node.any, segments, index + 1, suffix)
    if node.rest is not None and any(segments[index:]):
        plans = node.rest.leaves.get(suffix)
        if plans is not None:
            yield plans


def decode_segments(path: str) -> list[str]:
    """The segments of a path that begins with a slash, percent-decoded. Raises BadPath."""
    segments = path[1:].split("/")
    if "%" in path:
        return [decode_text(segment) if "%" in segment else segment for segment in segments]
    return segments


def decode_text(text: str) -> str:
    """Percent-decode. Raises BadPath."""
    if _BAD_ESCAPE.search(text):
        raise BadPath(f"{text[:80]!r} has a percent sign that is not followed by two hexadecimal digits")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise BadPath(f"{text[:80]!r} is not percent-encoded UTF-8") from None


def decode_rest(path: str, start: int) -> str:
    """The segments from *start* on as one value, in which an encoded slash stays encoded (google.api.http)."""
    raw = "/".join(path[1:].split("/")[start:])
    if "%" not in raw:
        return raw
    return "".join(part if part in ("%2F", "%2f") else decode_text(part) for part in _ENCODED_SLASH.split(raw))
