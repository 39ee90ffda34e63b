"""The resolved form of a message: every field with its number, its names and its type on the wire."""

from __future__ import annotations

import enum
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Union
from uuid import UUID

import msgspec

from polywire.contract.fields import (
    FLOAT_KINDS,
    INT64_MAX,
    INTEGER_RANGES,
    UNSPECIFIED,
    Constraints,
    FieldOptions,
    form_of,
)
from polywire.contract.message import NAME, Message, hints_of
from polywire.contract.shape import (
    EnumMember,
    EnumSchema,
    FieldSchema,
    Form,
    Member,
    Presence,
    Schema,
    Value,
)
from polywire.errors import ContractError

if TYPE_CHECKING:
    from polywire.contract.rpc import Rpc, Service
    from polywire.contract.task import Task

__all__ = [
    "EnumMember",
    "EnumSchema",
    "FieldSchema",
    "Form",
    "Member",
    "Presence",
    "Schema",
    "Value",
    "assign_package",
    "assign_packages",
    "closure_of",
    "enum_schema_of",
    "enums_of",
    "lower_camel",
    "schema_of",
    "snake",
    "upper_snake",
]

MAX_NUMBER = 2**29 - 1
RESERVED_BY_PROTOBUF = range(19000, 20000)

_PLAIN_KINDS: dict[Any, str] = {
    str: "string",
    bool: "bool",
    int: "int64",
    float: "double",
    bytes: "bytes",
    datetime: "timestamp",
    timedelta: "duration",
    Decimal: "decimal",
    UUID: "uuid",
}
KEY_KINDS = frozenset(INTEGER_RANGES) | {"string"}
SUPPORTED = (
    "str, bool, int, float, bytes, datetime, timedelta, Decimal, UUID, an Enum, a Message, a union of tagged messages, "
    "list[...], dict[...] and `... | None`"
)


_enums: dict[type[enum.Enum], EnumSchema] = {}


def enum_schema_of(cls: type[enum.Enum]) -> EnumSchema:
    """The numbers and wire names of an Enum: integer values are the numbers, others count from 1 as declared.

    Raises ContractError where two members would have one name, or an integer is not one of 32 bits.
    """
    found = _enums.get(cls)
    if found is None:
        found = _enums[cls] = _read_enum(cls)
    return found


def _read_enum(cls: type[enum.Enum]) -> EnumSchema:
    form = form_of(cls)
    name = form.name or cls.__name__
    prefix = upper_snake(name.rpartition(".")[2])
    members = list(cls.__members__.items())
    if not members:
        raise ContractError(f"{cls.__qualname__} is an Enum without members, which nothing can be. Add one.")
    integer = all(isinstance(member.value, int) and not isinstance(member.value, bool) for _, member in members)
    texts = all(isinstance(member.value, str) for _, member in members)
    if not integer and not texts:
        raise ContractError(
            f"{cls.__qualname__} has values that are neither all text nor all integers, so JSON could not tell them. "
            "Give it str or int values."
        )
    given = form.names or {}
    order = {member: number for number, member in enumerate(cls, start=1)}
    read: list[EnumMember] = []
    for attribute, member in members:
        number = member.value if integer else order[member]
        if not -(2**31) <= number < 2**31:
            raise ContractError(f"{cls.__qualname__}.{attribute} is {number}, but an enum number has 32 bits.")
        wire = given.get(attribute) or f"{prefix}_{attribute.upper()}"
        if any(other.name == wire for other in read):
            raise ContractError(
                f"{cls.__qualname__} has two members called {wire!r} on the wire. "
                "Name one of them with @enum_form(names=...)."
            )
        read.append(EnumMember(attribute=attribute, name=wire, number=number, member=member))
    zero = next((member.name for member in read if member.number == 0), f"{prefix}_{UNSPECIFIED}")
    return EnumSchema(enum=cls, name=name, package=form.package, zero_name=zero, members=tuple(read))


def schema_of(message: type[Message]) -> Schema:
    """Resolve the fields of a message. The result is kept with the class.

    Raises ContractError where a field's type cannot travel, or where two fields would have one number or name.
    """
    cache = message.__polywire__.cache
    found = cache.get("schema")
    if found is None:
        found = cache["schema"] = _read(message)
    return typing.cast(Schema, found)


def closure_of(*messages: type[Message]) -> list[type[Message]]:
    """These messages and all that can be inside of them, each once, in the order of meeting them."""
    found: dict[type[Message], None] = {}
    waiting = list(reversed(messages))
    while waiting:
        message = waiting.pop()
        if message not in found:
            found[message] = None
            waiting.extend(reversed(list(_inside(schema_of(message)))))
    return list(found)


def enums_of(messages: Iterable[type[Message]]) -> list[type[enum.Enum]]:
    """The enums that fields of these messages hold, each once."""
    found: dict[type[enum.Enum], None] = {}
    for message in messages:
        for field in schema_of(message).fields:
            values = [field.value, *(member.transparent for member in field.members)]
            found.update((value.python, None) for value in values if value is not None and value.kind == "enum")
    return list(found)


def _inside(schema: Schema) -> Iterator[type[Message]]:
    for field in schema.fields:
        if field.value is not None and field.value.is_message:
            yield field.value.python
        for member in field.members:
            yield member.message


def assign_packages(services: Iterable[Service]) -> None:
    """Give each message without a package that of the only contract package using it.

    Raises ContractError, naming both, where two packages use it. Calling it again with more services is fine.
    """
    for service in services:
        methods: list[Rpc | Task] = [*service.rpcs.values(), *service.tasks.values()]
        used = [message for method in methods for message in (method.request, method.response) if message]
        forms = [error.__form__ for method in methods for error in method.raises.values()]
        details = [form.detail for form in forms if form is not None]
        for message in closure_of(*used, *details):
            if not message.__polywire__.transparent:  # those are nowhere on the wire
                assign_package(message, service.package, service.full_name)


def assign_package(message: type[Message], package: str, user: str) -> None:
    """Give a message without a package that of its *user*. Raises ContractError where another package has it."""
    declaration = message.__polywire__
    first = declaration.cache.get("assigned by")
    if declaration.package is None:
        declaration.package = package
        declaration.cache["assigned by"] = user, package
    elif first is not None and first[1] != package:
        base = "Message" if declaration.error is None else declaration.error.__bases__[0].__name__
        raise ContractError(
            f"{message.__qualname__} has no package of its own and is used by {first[0]} and by {user}, which are in "
            f"different packages. Say which it belongs to: class {message.__name__}({base}, package={first[1]!r})."
        )


# Reading a class


def _read(message: type[Message]) -> Schema:
    declaration = message.__polywire__
    where = message.__qualname__
    fields: list[FieldSchema] = []
    hints = hints_of(message)
    split = {attribute: _split(hint) for attribute, hint in hints.items()}
    numbers = _Numbers(where, declaration.reserved, [options for _, options in split.values()])
    defaults = _defaults(message)
    encoded = dict(zip(message.__struct_fields__, message.__struct_encode_fields__, strict=True))
    for attribute, (hint, options) in split.items():
        if options.name is not None and options.name != encoded[attribute]:
            raise ContractError(
                f"{where}.{attribute}: name={options.name!r} has to stand in the class itself, as "
                "Annotated[..., Field(name=...)], not in an alias."
            )
        fields.append(_field(where, attribute, encoded[attribute], hint, options, numbers, defaults[attribute]))
    _refuse_twins(where, fields, declaration.reserved)
    if declaration.transparent:
        _check_transparent(where, fields)
    # msgspec reads the annotations when its first decoder is made; from here on they hold our limits in its words.
    message.__annotations__ = {field.attribute: _for_msgspec(hints[field.attribute], field) for field in fields}
    doc = (message.__doc__ or "") if "__doc__" in vars(message) else ""
    return Schema(
        message=message,
        name=declaration.name,
        fields=tuple(fields),
        reserved=declaration.reserved,
        transparent=declaration.transparent,
        doc=doc,
    )


class _Numbers:
    """Hands out field numbers in the order of declaration, as C does for enums: one more than the last."""

    def __init__(self, where: str, reserved: Iterable[int | str | range], options: Iterable[FieldOptions]) -> None:
        self._where = where
        self._last = 0
        # As ranges: `reserved 1000 to max` has half a billion numbers.
        self._reserved = [
            range(entry, entry + 1) if isinstance(entry, int) else entry
            for entry in reserved
            if not isinstance(entry, str)
        ]
        self._given: set[int] = set()
        for option in options:
            self._given.update(option.numbers)
            if option.number is not None:
                self._given.add(option.number)
        self._used: dict[int, str] = {}

    def take(self, field: str, given: int | None) -> int:
        number = self._next() if given is None else given
        if not 1 <= number <= MAX_NUMBER:
            raise ContractError(
                f"{self._where}.{field}: number={number} is no field number. They go from 1 to {MAX_NUMBER}."
            )
        if number in RESERVED_BY_PROTOBUF:
            raise ContractError(
                f"{self._where}.{field}: number={number} is one of 19000 to 19999, which protobuf keeps for itself."
            )
        if any(number in span for span in self._reserved):
            raise ContractError(
                f"{self._where}.{field}: number={number} is reserved, as an older field had it. Take one that is free."
            )
        if number in self._used:
            raise ContractError(
                f"{self._where}.{field} has number {number}, as has {self._used[number]}. "
                "Give one of them another with Field(number=...)."
            )
        self._used[number] = field
        self._last = number
        return number

    def _next(self) -> int:
        number = self._last + 1
        while True:
            span = next((span for span in (*self._reserved, RESERVED_BY_PROTOBUF) if number in span), None)
            if span is not None:
                number = span.stop
            elif number in self._given:
                number += 1
            else:
                return number


def _defaults(message: type[Message]) -> dict[str, tuple[Any, Any]]:
    """Of each field: its default and its default factory, NODEFAULT where it has none."""
    names, values = message.__struct_fields__, message.__struct_defaults__
    found = dict.fromkeys(names, (msgspec.NODEFAULT, msgspec.NODEFAULT))
    for name, value in zip(names[len(names) - len(values) :], values, strict=True):
        factory = getattr(value, "factory", None) if type(value).__name__ == "Factory" else None
        found[name] = (value, msgspec.NODEFAULT) if factory is None else (msgspec.NODEFAULT, factory)
    return found


def _split(hint: Any) -> tuple[Any, FieldOptions]:
    """The type inside of `Annotated`, and everything that `Field(...)` says about it."""
    options = FieldOptions()
    if typing.get_origin(hint) is Annotated:
        for part in hint.__metadata__:
            if isinstance(part, FieldOptions):
                options = options.merged(part)
        hint = hint.__origin__
    return hint, options


def _field(
    where: str,
    attribute: str,
    name: str,
    hint: Any,
    options: FieldOptions,
    numbers: _Numbers,
    defaults: tuple[Any, Any],
) -> FieldSchema:
    default, factory = defaults
    at = f"{where}.{attribute}"
    alternatives, nullable = _alternatives(hint)
    common: dict[str, Any] = {
        "attribute": attribute,
        "name": name,
        "json_name": options.json_name or lower_camel(name),
        "nullable": nullable,
        "required": default is msgspec.NODEFAULT and factory is msgspec.NODEFAULT,
        "default": default,
        "default_factory": factory,
        "sensitive": options.sensitive,
        "description": options.description,
    }
    if nullable and not common["required"] and default is not None:
        raise ContractError(
            f"{at} may be None but has another default, and protobuf could not tell the two apart. "
            "Make None the default, or leave None out of the type."
        )
    if len(alternatives) > 1 or _is_transparent(alternatives[0]):
        members = _members(at, attribute, alternatives, options, numbers)
        presence = Presence.REQUIRED if common["required"] and not nullable else Presence.EXPLICIT
        return FieldSchema(**common, number=0, form=Form.ONEOF, value=None, members=members, presence=presence)
    if options.numbers or options.names:
        raise ContractError(f"{at} is no union: write Field(number=..., name=...) instead of numbers and names.")
    inner, more = _split(alternatives[0])
    options = more.merged(options)
    number = numbers.take(attribute, options.number)
    origin = typing.get_origin(inner) or inner
    if origin in (list, dict):
        _refuse_defaults_of_collections(at, common, nullable)
        _check_constraints(at, options.constraints, "list" if origin is list else "map")
        key, value = _elements(at, inner)
        form = Form.LIST if origin is list else Form.MAP
        return FieldSchema(**common, number=number, form=form, value=value, key=key, constraints=options.constraints)
    value = _value(at, inner, options)
    presence = _presence(value, nullable, common["required"], default)
    return FieldSchema(**common, number=number, form=Form.ONE, value=value, presence=presence)


def _alternatives(hint: Any) -> tuple[list[Any], bool]:
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return [hint], False
    arguments = typing.get_args(hint)
    return [argument for argument in arguments if argument is not type(None)], type(None) in arguments


def _is_transparent(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Message) and hint.__polywire__.transparent


def _members(
    at: str, attribute: str, alternatives: list[Any], options: FieldOptions, numbers: _Numbers
) -> tuple[Member, ...]:
    if options.number is not None:
        raise ContractError(f"{at} is a union, whose members have a number each: write Field(numbers=(...)).")
    given: Sequence[object]
    for label, given in (("numbers", options.numbers), ("names", options.names), ("json_names", options.json_names)):
        if given and len(given) != len(alternatives):
            raise ContractError(f"{at} has {len(alternatives)} members, but Field({label}=...) gives {len(given)}.")
    members = []
    for index, alternative in enumerate(alternatives):
        tag = alternative.__struct_config__.tag if _is_message(alternative) else None
        if tag is None:
            raise ContractError(
                f"{at} is a union with {_spelled(alternative)}, which cannot be told from the others. "
                "A union is made of messages with a tag each: class Card(Message, tag='card')."
            )
        name = options.names[index] if options.names else _member_name(alternative, tag)
        number = numbers.take(attribute, options.numbers[index] if options.numbers else None)
        members.append(
            Member(
                name=name,
                json_name=options.json_names[index] if options.json_names else lower_camel(name),
                number=number,
                tag=tag,
                message=alternative,
                transparent=_inside_transparent(alternative),
            )
        )
    return tuple(members)


def _is_message(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Message)


def _member_name(message: type[Message], tag: str | int) -> str:
    if isinstance(tag, str) and NAME.match(tag) and "." not in tag:
        return snake(tag)
    return snake(message.__name__)


def _inside_transparent(message: type[Message]) -> Value | None:
    if not message.__polywire__.transparent:
        return None
    return schema_of(message).fields[0].value


def _check_transparent(where: str, fields: list[FieldSchema]) -> None:
    if len(fields) != 1 or fields[0].form is not Form.ONE or fields[0].nullable or not fields[0].required:
        raise ContractError(
            f"{where} is transparent, so it has to have exactly one field that is neither a list nor a map, without a "
            "default and never None."
        )


def _refuse_defaults_of_collections(at: str, common: dict[str, Any], nullable: bool) -> None:
    if nullable:
        raise ContractError(
            f"{at} may be None, but protobuf cannot tell a missing list or map from an empty one. "
            "Leave `| None` out, or put the list into a message of its own."
        )
    factory = common["default_factory"]
    if common["default"] is not msgspec.NODEFAULT or (factory is not msgspec.NODEFAULT and factory()):
        raise ContractError(
            f"{at} has a default that is not empty, but protobuf cannot tell a missing list or map from an empty one."
        )


def _elements(at: str, hint: Any) -> tuple[Value | None, Value]:
    """The key (of a map) and the value of a collection."""
    arguments = typing.get_args(hint)
    if not arguments:
        raise ContractError(f"{at} does not say what is in it. Write list[str] or dict[str, int].")
    element, options = _split(arguments[-1])
    if typing.get_origin(element) in (list, dict) or element in (list, dict):
        raise ContractError(
            f"{at} is a {'list' if len(arguments) == 1 else 'map'} of lists or maps, which protobuf cannot say. "
            "Put the inner one into a message of its own."
        )
    alternatives, nullable = _alternatives(element)
    if nullable or len(alternatives) > 1 or _is_transparent(element):
        raise ContractError(
            f"{at} holds elements of several types, which protobuf cannot say. Put the union into a message of its own."
        )
    value = _value(at, element, options)
    if len(arguments) == 1:
        return None, value
    key = _value(at, *_split(arguments[0]))
    if key.kind not in KEY_KINDS:
        raise ContractError(
            f"{at} has keys of type {_spelled(arguments[0])}; keys of a map are str or int (any width)."
        )
    return key, value


def _value(at: str, hint: Any, options: FieldOptions) -> Value:
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        enum_schema_of(hint)
        kind = "enum"
    elif _is_message(hint):
        kind = "message"
    elif hint in _PLAIN_KINDS:
        kind = options.kind or _PLAIN_KINDS[hint]
    else:
        raise ContractError(f"{at} is annotated {_spelled(hint)}, which cannot travel. Use one of: {SUPPORTED}.")
    _check_constraints(at, options.constraints, kind)
    return Value(kind=kind, python=hint, constraints=options.constraints)


_BOUNDS = frozenset({"gt", "ge", "lt", "le"})
_LENGTHS = frozenset({"min_length", "max_length"})


def _check_constraints(at: str, constraints: Constraints, kind: str) -> None:
    allowed: frozenset[str] = frozenset()
    if kind in INTEGER_RANGES or kind in FLOAT_KINDS:
        allowed = _BOUNDS | {"multiple_of"}
    elif kind == "decimal":
        allowed = _BOUNDS
    elif kind == "string":
        allowed = _LENGTHS | {"pattern"}
    elif kind in ("bytes", "list", "map"):
        allowed = _LENGTHS
    elif kind == "enum":
        allowed = frozenset({"known"})
    for limit in Constraints.__dataclass_fields__:
        given = getattr(constraints, limit)
        if given in (None, False):
            continue
        if limit not in allowed:
            raise ContractError(f"{at}: Field({limit}=...) does not go with a field of type {kind}.")
        if kind in INTEGER_RANGES and not (isinstance(given, int) and -INT64_MAX <= given <= INT64_MAX):
            raise ContractError(f"{at}: Field({limit}={given!r}) has to be an integer of 64 bits, as the field is one.")
    if constraints.pattern is not None:
        try:
            re.compile(constraints.pattern)
        except re.error as error:
            raise ContractError(f"{at}: pattern={constraints.pattern!r} is no regular expression: {error}.") from error


def _presence(value: Value, nullable: bool, required: bool, default: Any) -> Presence:
    if nullable:
        return Presence.EXPLICIT
    if value.proto == "message":
        return Presence.REQUIRED if required else Presence.EXPLICIT
    return Presence.IMPLICIT if required or _is_zero(value, default) else Presence.EXPLICIT


def _is_zero(value: Value, default: Any) -> bool:
    if default is msgspec.NODEFAULT:
        return False
    if value.kind == "enum":
        return any(member.member is default and member.number == 0 for member in enum_schema_of(value.python).members)
    if value.kind in ("decimal", "double", "float"):
        return str(default) in ("0", "0.0")  # neither -0.0 nor Decimal("0.00")
    return value.kind != "uuid" and not default


def _refuse_twins(where: str, fields: list[FieldSchema], reserved: tuple[int | str | range, ...]) -> None:
    seen: dict[str, str] = {}
    json_names: dict[str, str] = {}
    for field in fields:
        own = [(field.name, field.json_name)]
        for name, json_name in own + [(member.name, member.json_name) for member in field.members]:
            if name in reserved:
                raise ContractError(
                    f"{where}.{field.attribute}: the name {name!r} is reserved, as an older field had it."
                )
            if name in seen or json_name in json_names:
                other = seen.get(name) or json_names[json_name]
                raise ContractError(
                    f"{where}.{field.attribute} has the name {name!r} on the wire, which collides with {other}. "
                    "Give one of them Field(name=...), or a union Field(names=(...))."
                )
            seen[name] = json_names[json_name] = field.attribute


# What msgspec is told


def _for_msgspec(hint: Any, field: FieldSchema) -> Any:
    """The annotation again, with the limits of *field* in msgspec's own terms beside ours."""
    bare, _ = _split(hint)
    if field.form is Form.ONEOF:
        return hint
    value = _value_for_msgspec(field.holds)
    inner: Any = value
    if field.form is Form.LIST:
        inner = _with_meta(list[value], field.constraints)  # type: ignore[valid-type]  # a type that is made at run time
    elif field.form is Form.MAP:
        key = _value_for_msgspec(field.keyed_by)
        inner = _with_meta(dict[key, value], field.constraints)  # type: ignore[valid-type]  # a type that is made at run time
    parts = getattr(hint, "__metadata__", ())
    options = [part for part in parts if isinstance(part, FieldOptions)]
    _, own = _split(_alternatives(bare)[0][0])
    if field.nullable:
        inner = Union[inner, None]  # noqa: UP007  # *inner* is a value here
    told = [*options, *([own] if own != FieldOptions() else [])]
    return Annotated[(inner, *told)] if told else inner


def _value_for_msgspec(value: Value) -> Any:
    limits = value.constraints
    kind = value.kind
    inner = value.python
    if kind in INTEGER_RANGES:
        low, high = INTEGER_RANGES[kind]
        # msgspec's bounds stop at int64; what exceeds them is checked after decoding.
        meta: dict[str, Any] = {"ge": low if limits.ge is None else max(low, limits.ge), "le": min(high, INT64_MAX)}
        if kind in ("uint64", "fixed64"):
            del meta["le"]
        if limits.gt is not None:
            meta["ge"] = max(meta["ge"], limits.gt + 1)
        upper = (meta.get("le"), limits.le, None if limits.lt is None else limits.lt - 1)
        if any(bound is not None for bound in upper):
            meta["le"] = min(bound for bound in upper if bound is not None)
        if limits.multiple_of is not None:
            meta["multiple_of"] = limits.multiple_of
        return Annotated[inner, msgspec.Meta(**meta)]
    if kind == "timestamp":
        return Annotated[inner, msgspec.Meta(tz=True)]
    if kind in ("decimal", "enum"):
        return inner
    return _with_meta(inner, limits)


def _with_meta(hint: Any, limits: Constraints) -> Any:
    given = {
        limit: getattr(limits, limit)
        for limit in Constraints.__dataclass_fields__
        if limit != "known" and getattr(limits, limit) is not None
    }
    return Annotated[hint, msgspec.Meta(**given)] if given else hint


# Names


def lower_camel(name: str) -> str:
    """`product_id` as `productId`, the way protobuf derives JSON names."""
    head, *tail = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in tail)


def snake(name: str) -> str:
    """`CreditCard` as `credit_card`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def upper_snake(name: str) -> str:
    """`OrderState` as `ORDER_STATE`."""
    return snake(name).upper()


def _spelled(hint: Any) -> str:
    return f"`{hint.__name__ if isinstance(hint, type) else hint}`"
