"""What requests and answers hold, field by field, as it was and as it is: REST's JSON, and what holds on every wire."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from polywire.contract.breaking.contracts import Contracts
from polywire.contract.breaking.findings import Finding
from polywire.contract.breaking.rest_model import UNKNOWN, Holds, JsonField, fields_of, reserved_names
from polywire.contract.breaking.rest_types import refused, spelled, understands
from polywire.contract.breaking.wire_rules import WIRE_RULES
from polywire.contract.message import Message
from polywire.contract.schema import schema_of

Direction = Literal["request", "response"]
"""Requests are written by who speaks OLD and read by who speaks NEW, responses the other way round."""
Change = tuple[str, str]
"""The rule and what changed."""
_IN = {"request": "in a request", "response": "in an answer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A field of one name; None on the side that does not have it."""

    direction: Direction
    was: JsonField | None
    now: JsonField | None
    exact: bool
    """Whether both sides are Python."""
    reserved: bool
    """Whether NEW reserves the name."""

    @property
    def reader(self) -> JsonField | None:
        return self.now if self.direction == "request" else self.was

    @property
    def writer(self) -> JsonField | None:
        return self.was if self.direction == "request" else self.now


Judge = Callable[[Pair], Iterator[Change]]


class Walk:
    """Goes through messages and what is in them; each pair of messages once in each direction."""

    def __init__(self, old: Contracts, new: Contracts, judge: Judge, enum_rule: str = "") -> None:
        self.old, self.new, self._judge, self._enum_rule = old, new, judge, enum_rule
        self._exact = old.is_python and new.is_python
        self._seen: set[tuple[str, str, str]] = set()
        self._waiting: list[tuple[Direction, str, str]] = []
        """Pairs of messages that were met inside of others: a list, as they may be nested without end."""

    @property
    def met(self) -> set[str]:
        """The messages of OLD that were looked at so far."""
        return {before for _, before, _ in self._seen}

    def message(
        self, direction: Direction, before: str, after: str, *, skip: tuple[Collection[str], Collection[str]] = ((), ())
    ) -> Iterator[Finding]:
        """What the judge finds in a pair of messages, and in all that is in them. *skip*: fields that are not there."""
        if not any(skip):
            self._waiting.append((direction, before, after))
        else:
            yield from self._fields(direction, before, after, skip)
        while self._waiting:
            pair = self._waiting.pop()
            if pair not in self._seen:
                self._seen.add(pair)
                yield from self._fields(*pair, ((), ()))

    def _fields(
        self, direction: Direction, before: str, after: str, skip: tuple[Collection[str], Collection[str]]
    ) -> Iterator[Finding]:
        was, now = fields_of(self.old, before), fields_of(self.new, after)
        reserved = reserved_names(self.new, after)
        for name in [*was, *(name for name in now if name not in was)]:
            if name in skip[0] or name in skip[1]:
                continue
            yield from self._field(
                f"{after}.{name}",
                Pair(
                    direction=direction,
                    was=was.get(name),
                    now=now.get(name),
                    exact=self._exact,
                    reserved=name in reserved,
                ),
            )

    def _field(self, where: str, pair: Pair) -> Iterator[Finding]:
        for rule, change in self._judge(pair):
            yield Finding(rule=WIRE_RULES[rule], where=where, change=change)
        if pair.was is None or pair.now is None or pair.was.form is not pair.now.form:
            return
        for tag, before in pair.was.members.items():
            if tag in pair.now.members:
                self._waiting.append((pair.direction, before, pair.now.members[tag]))
        if pair.was.holds is not None and pair.now.holds is not None:
            yield from self._inside(pair.direction, pair.was.holds, pair.now.holds)

    def _inside(self, direction: Direction, was: Holds, now: Holds) -> Iterator[Finding]:
        if was.kind == now.kind == "message":
            self._waiting.append((direction, was.type, now.type))
        elif was.kind == now.kind == "enum" and self._enum_rule:
            yield from self._enum(was.type, now.type)

    def _enum(self, before: str, after: str) -> Iterator[Finding]:
        was, now = self.old.enums.get(before), self.new.enums.get(after)
        if was is None or now is None or ("enum", before, after) in self._seen:
            return
        self._seen.add(("enum", before, after))
        values = {member.member.value for member in now.members}
        for member in was.members:
            if member.member.value not in values:
                change = f"{member.member.value!r} is gone from JSON."
                where = f"{after}.{member.attribute}"
                yield Finding(rule=WIRE_RULES[self._enum_rule], where=where, change=change)


def judge_rest(pair: Pair) -> Iterator[Change]:
    """What a change of a field means for REST's JSON."""
    place, side = _IN[pair.direction], f"REST_{pair.direction.upper()}"
    if pair.now is None:
        # Of an answer, who reads it needs a default of his own besides.
        needed = pair.direction == "response" and pair.was is not None and pair.was.required is True
        if needed or not pair.reserved:
            yield f"{side}_FIELD_NO_DELETE", f"It is gone, and stood {place}."
        return
    yield from _required(pair)
    if pair.was is None or pair.reader is None or pair.writer is None:
        return
    if not understands(pair.reader, pair.writer, exact=pair.exact):
        yield f"{side}_FIELD_SAME_TYPE", f"It was {spelled(pair.was)} and is {spelled(pair.now)} now, {place}."
    if pair.reader.nullable is False and pair.writer.nullable is True:
        said = "could be null and cannot now" if pair.direction == "request" else "was never null and may be now"
        yield f"{side}_FIELD_NULLABLE", f"It {said}, {place}."
    if pair.was.members and pair.now.members:
        yield from _tags(pair.was, pair.now)


def _required(pair: Pair) -> Iterator[Change]:
    if pair.direction == "request" and pair.now is not None and pair.now.required is True:
        if pair.was is None:
            yield (
                "REST_REQUEST_FIELD_REQUIRED",
                "It is new and has no default, so that requests without it are refused.",
            )
        elif pair.was.required is False:
            yield "REST_REQUEST_FIELD_REQUIRED", "It lost its default, so that requests without it are refused."


def _tags(was: JsonField, now: JsonField) -> Iterator[Change]:
    if was.tag_field != now.tag_field:
        change = f"The tag was in {was.tag_field!r} and is in {now.tag_field!r} now."
        yield "REST_ONEOF_SAME_TAGS", change
    for tag in was.members:
        if tag not in now.members:
            yield "REST_ONEOF_SAME_TAGS", f"The tag {tag!r} is gone."


def judge_contract(pair: Pair) -> Iterator[Change]:
    """What a change of a field means on every wire, as far as Python says so."""
    needed = pair.now is not None and pair.now.needed_everywhere is True
    if pair.direction == "request" and needed and (pair.was is None or pair.was.needed_everywhere is False):
        yield "CONTRACT_FIELD_REQUIRED", "It has to be there now, on every wire."
    if pair.was is None or pair.now is None or not pair.exact:
        return
    yield from _limits(pair)
    optional = pair.was.required is False and pair.now.required is False
    if pair.direction == "request" and optional and not _same_default(pair.was.default, pair.now.default):
        change = f"Its default was {_shown(pair.was.default)} and is {_shown(pair.now.default)} now."
        yield "CONTRACT_FIELD_SAME_DEFAULT", change


def _limits(pair: Pair) -> Iterator[Change]:
    reader, writer = pair.reader, pair.writer
    if reader is None or writer is None or reader.form is not writer.form:
        return
    limits = [(reader.constraints, writer.constraints, "")]
    for read, written, of in ((reader.holds, writer.holds, ""), (reader.key, writer.key, "keys: ")):
        if read is not None and written is not None and read.kind == written.kind:
            limits.append((read.constraints, written.constraints, of))
    for narrow, wide, of in limits:
        what = refused(narrow, wide)
        if what and pair.direction == "request":
            yield "CONTRACT_REQUEST_LIMITS", f"It refuses {of}{what} now, which it took before."
        elif what:
            yield "CONTRACT_RESPONSE_LIMITS", f"It may be {of}{what} now, which clients of before refuse."


def _same_default(was: object, now: object) -> bool:
    if was is UNKNOWN or now is UNKNOWN:
        return True
    return type(was).__name__ == type(now).__name__ and _shown(was) == _shown(now)


def _shown(value: object) -> str:
    """As JSON has it, whichever class it is of."""
    return msgspec.json.encode(value).decode() if value is not msgspec.NODEFAULT else "none"


def compare_promises(old: Contracts, new: Contracts) -> Iterator[Finding]:
    """What holds on every wire, for all methods; and, both ways, for messages that no method uses, such as events."""
    walk = Walk(old, new, judge_contract)
    methods = new.methods
    for name, was in old.methods.items():
        now = methods.get(name)
        if now is not None and was.request is not None and now.request is not None:
            yield from walk.message("request", _name(was.request), _name(now.request))
        if now is not None and was.response is not None and now.response is not None:
            yield from walk.message("response", _name(was.response), _name(now.response))
        for error in was.raises if now is not None else ():
            if now is not None and error in now.raises:
                yield from walk.message("response", error, error)
    met = walk.met
    for name in old.schemas:
        if name in new.schemas and name not in met:
            yield from walk.message("request", name, name)
            yield from walk.message("response", name, name)


def _name(message: type[Message]) -> str:
    return schema_of(message).full_name
