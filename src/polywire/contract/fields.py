"""What an annotation says about a field: its number, its names, its limits, and its integer type on the wire."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from polywire.errors import ContractError

E = TypeVar("E", bound=type[enum.Enum])

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What a value has to satisfy beyond its type; None where nothing is demanded."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    multiple_of: float | None = None
    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None
    known: bool = False
    """Of an enum: only members that this side knows."""

    def __bool__(self) -> bool:
        return self != NO_CONSTRAINTS


NO_CONSTRAINTS = Constraints()


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldOptions:
    """What `Field(...)` says; kept in the annotation as it was written."""

    number: int | None = None
    numbers: tuple[int, ...] = ()
    name: str | None = None
    names: tuple[str, ...] = ()
    json_name: str | None = None
    json_names: tuple[str, ...] = ()
    sensitive: bool = False
    description: str = ""
    kind: str | None = None
    constraints: Constraints = NO_CONSTRAINTS

    def merged(self, other: FieldOptions) -> FieldOptions:
        """Both together, for `Annotated[Int32, Field(ge=1)]`; what *other*, written further out, says wins."""
        limits = {
            limit: bound
            for limit in Constraints.__dataclass_fields__
            # By identity: a bound of 0 equals False, and counts.
            if (bound := getattr(other.constraints, limit)) is not None and bound is not False
        }
        return FieldOptions(
            number=self.number if other.number is None else other.number,
            numbers=other.numbers or self.numbers,
            name=other.name or self.name,
            names=other.names or self.names,
            json_name=other.json_name or self.json_name,
            json_names=other.json_names or self.json_names,
            sensitive=self.sensitive or other.sensitive,
            description=other.description or self.description,
            kind=other.kind or self.kind,
            constraints=replace(self.constraints, **limits),
        )


def Field(  # noqa: N802  # it reads as a declaration where it is used
    *,
    number: int | None = None,
    numbers: tuple[int, ...] = (),
    name: str | None = None,
    names: tuple[str, ...] = (),
    json_name: str | None = None,
    json_names: tuple[str, ...] = (),
    sensitive: bool = False,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    multiple_of: float | None = None,
    pattern: str | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    known: bool = False,
    description: str = "",
) -> Any:
    """Say more about a field than its type, inside of `Annotated`: `Annotated[int, Field(number=2, ge=1)]`.

    *number* is the protobuf field number and *name* the name on the wire (protobuf and JSON), where they differ from
    the derived ones; *json_name* is the one in ProtoJSON alone, where it is not *name* in lowerCamelCase; *numbers*,
    *names* and *json_names* are those of a union's members, in its order. *sensitive* keeps the value out of `repr`.
    *known* refuses values of an enum that this side does not know; without it they pass through.
    The limits are those of JSON Schema: *pattern* is searched for, not anchored; lengths count characters, bytes or
    elements.
    """
    constraints = Constraints(
        gt=gt,
        ge=ge,
        lt=lt,
        le=le,
        multiple_of=multiple_of,
        pattern=pattern,
        min_length=min_length,
        max_length=max_length,
        known=known,
    )
    return FieldOptions(
        number=number,
        numbers=tuple(numbers),
        name=name,
        names=tuple(names),
        json_name=json_name,
        json_names=tuple(json_names),
        sensitive=sensitive,
        description=description,
        constraints=constraints,
    )


Int32 = Annotated[int, FieldOptions(kind="int32")]
Int64 = Annotated[int, FieldOptions(kind="int64")]
UInt32 = Annotated[int, FieldOptions(kind="uint32")]
UInt64 = Annotated[int, FieldOptions(kind="uint64")]
SInt32 = Annotated[int, FieldOptions(kind="sint32")]
SInt64 = Annotated[int, FieldOptions(kind="sint64")]
Fixed32 = Annotated[int, FieldOptions(kind="fixed32")]
Fixed64 = Annotated[int, FieldOptions(kind="fixed64")]
SFixed32 = Annotated[int, FieldOptions(kind="sfixed32")]
SFixed64 = Annotated[int, FieldOptions(kind="sfixed64")]
Float32 = Annotated[float, FieldOptions(kind="float")]
Double = Annotated[float, FieldOptions(kind="double")]

INTEGER_RANGES: dict[str, tuple[int, int]] = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (INT64_MIN, INT64_MAX),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
    "sint32": (-(2**31), 2**31 - 1),
    "sint64": (INT64_MIN, INT64_MAX),
    "fixed32": (0, 2**32 - 1),
    "fixed64": (0, 2**64 - 1),
    "sfixed32": (-(2**31), 2**31 - 1),
    "sfixed64": (INT64_MIN, INT64_MAX),
}
FLOAT_KINDS = frozenset({"float", "double"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EnumForm:
    """How an enum appears on the wire where that differs from what is derived."""

    name: str | None = None
    package: str | None = None
    names: Mapping[str, str] | None = None
    """Python member name to the name on the wire."""


_FORM = "__polywire_enum__"


def enum_form(
    *, name: str | None = None, package: str | None = None, names: Mapping[str, str] | None = None
) -> Callable[[E], E]:
    """Decorate an Enum whose names on the wire are not the derived ones.

    Derived: the class's own name, and `STATE_PAID` for `State.PAID`. *names* maps members to theirs; *name* may be
    dotted for an enum that is nested in a message.
    """

    def mark(cls: E) -> E:
        for member in names or ():
            if member not in cls.__members__:
                raise ContractError(
                    f"enum_form(names=...) names {member!r}, which {cls.__qualname__} does not have. "
                    f"Its members: {', '.join(cls.__members__)}."
                )
        setattr(cls, _FORM, EnumForm(name=name, package=package, names=names))
        return cls

    return mark


def form_of(cls: type[enum.Enum]) -> EnumForm:
    form: EnumForm = cls.__dict__.get(_FORM) or EnumForm()
    return form


UNSPECIFIED = "UNSPECIFIED"
_UNRECOGNIZED = "UNRECOGNIZED_"


def unrecognized(cls: type[enum.Enum], *, number: int | None = None, value: Any = None) -> Any:
    """A stand-in for a value of *cls* that this side does not know, sent by a newer peer or left unset.

    It is an instance of the enum, though none of its members, so that code which does not look at it goes on working,
    and it is sent on as it came. Its name is `UNRECOGNIZED_7`, or `UNSPECIFIED` for number 0.
    """
    integer = issubclass(cls, int) or all(isinstance(member.value, int) for member in cls)
    if number is None:
        number = value if isinstance(value, int) else _number_in(value)
    name = UNSPECIFIED if number == 0 else f"{_UNRECOGNIZED}{value if number is None else number}"
    if integer:
        value = number if number is not None else 0
    elif value is None:
        value = name
    member_type: Any = getattr(cls, "_member_type_", object)
    member: Any = object.__new__(cls) if member_type is object else member_type.__new__(cls, value)
    member._name_ = name
    member._value_ = value
    member.__objclass__ = cls
    member._sort_order_ = -1
    member._number_ = number or 0
    return member


def _number_in(value: Any) -> int | None:
    """The number inside of a stand-in's own text, so that it survives a trip through JSON."""
    if value == UNSPECIFIED:
        return 0
    if isinstance(value, str) and value.startswith(_UNRECOGNIZED):
        digits = value[len(_UNRECOGNIZED) :]
        if len(digits) <= 11 and digits.lstrip("-").isdecimal() and -(2**31) <= int(digits) < 2**31:
            return int(digits)
    return None


def is_recognized(member: enum.Enum) -> bool:
    """Whether *member* is one of its enum's own, not a stand-in for a value that this side does not know."""
    return member.__class__.__members__.get(member._name_) is member
