"""What a message looks like once it is resolved: values that codecs and exports are made from."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import msgspec

from polywire.contract.fields import NO_CONSTRAINTS, Constraints
from polywire.contract.message import Message

_ON_THE_WIRE = {"decimal": "string", "uuid": "string", "timestamp": "message", "duration": "message"}


class Form(enum.Enum):
    """How many values a field holds."""

    ONE = "one"
    LIST = "list"
    MAP = "map"
    ONEOF = "oneof"
    """One of several messages, told apart by their tag."""


class Presence(enum.Enum):
    """What an absent field means in protobuf."""

    IMPLICIT = "implicit"
    """Its zero value; so zero is not written."""
    EXPLICIT = "explicit"
    """Its default; so zero is written. Exported `optional` where it is a scalar."""
    REQUIRED = "required"
    """A message or a oneof that has to be there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One value: what a field holds, or an element of a list, or a key or value of a map."""

    kind: str
    """A protobuf scalar type, or `enum`, `message`, `timestamp`, `duration`, `decimal` or `uuid`."""
    python: Any
    """The Python type: `int`, `datetime`, the Enum, the Message."""
    constraints: Constraints = NO_CONSTRAINTS

    @property
    def proto(self) -> str:
        """The protobuf type: a scalar, `enum` or `message`. Decimals and UUIDs travel as text."""
        return _ON_THE_WIRE.get(self.kind, self.kind)

    @property
    def is_message(self) -> bool:
        """Whether it is a message that this project declared (timestamps and durations are not)."""
        return self.kind == "message"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One of the messages that a oneof may hold."""

    name: str
    json_name: str
    number: int
    tag: str | int
    message: type[Message]
    transparent: Value | None = None
    """The scalar that stands on the wire in place of the message, where that is declared transparent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSchema:
    """One field of a message."""

    attribute: str
    """The name in Python."""
    name: str
    """The name in protobuf and in REST JSON."""
    json_name: str
    """The name in ProtoJSON."""
    number: int
    """0 for a oneof, whose members have numbers of their own."""
    form: Form
    value: Value | None
    """What it holds, each of what it holds, or the values of a map; None for a oneof."""
    key: Value | None = None
    members: tuple[Member, ...] = ()
    nullable: bool = False
    """Whether None is among its values."""
    required: bool = False
    """Whether it has no default, so that JSON has to have it."""
    presence: Presence = Presence.IMPLICIT
    default: Any = msgspec.NODEFAULT
    default_factory: Any = msgspec.NODEFAULT
    constraints: Constraints = NO_CONSTRAINTS
    """Of the list or map itself; those of a single value are with the value."""
    sensitive: bool = False
    description: str = ""

    @property
    def holds(self) -> Value:
        """`value` of a field that is no oneof."""
        if self.value is None:
            raise LookupError(f"{self.attribute} is a oneof, which holds one of several messages")
        return self.value

    @property
    def keyed_by(self) -> Value:
        """`key` of a field that is a map."""
        if self.key is None:
            raise LookupError(f"{self.attribute} is no map")
        return self.key

    def default_value(self) -> Any:
        """A fresh default; `msgspec.NODEFAULT` without one."""
        if self.default_factory is not msgspec.NODEFAULT:
            return self.default_factory()
        return self.default


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A message, resolved. `schema_of(SomeMessage)` returns it; codecs and exports are made from it."""

    message: type[Message]
    name: str
    """On the wire, dotted where it is nested: `Stock`, `Order.Item`."""
    fields: tuple[FieldSchema, ...]
    """In the order of declaration."""
    reserved: tuple[int | str | range, ...]
    transparent: bool
    doc: str

    @property
    def package(self) -> str:
        """As declared, or as assigned by `assign_packages`; empty until then."""
        return self.message.__polywire__.package or ""

    @property
    def full_name(self) -> str:
        """`shop.v1.Stock`"""
        return f"{self.package}.{self.name}" if self.package else self.name

    def field(self, attribute: str) -> FieldSchema:
        for field in self.fields:
            if field.attribute == attribute:
                return field
        raise KeyError(attribute)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnumMember:
    attribute: str
    name: str
    """On the wire: `STATE_PAID`."""
    number: int
    member: enum.Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class EnumSchema:
    """An enum, resolved. Number 0 is always there: `STATE_UNSPECIFIED` where no member has it."""

    enum: Any
    name: str
    package: str | None
    zero_name: str
    members: tuple[EnumMember, ...]

    def by_number(self) -> dict[int, Any]:
        """The first member of each number (aliases share one)."""
        found: dict[int, Any] = {}
        for member in self.members:
            found.setdefault(member.number, member.member)
        return found
