"""Structs with ProtoJSON's names and types, so that msgspec reads and writes it; generated code copies to and fro."""

from __future__ import annotations

from typing import Any

import msgspec

from polywire.codec.protojson_special import SPECIAL, Special
from polywire.codec.source import functions_lock
from polywire.contract.fields import FLOAT_KINDS, INTEGER_RANGES
from polywire.contract.message import Message
from polywire.contract.schema import FieldSchema, Form, Member, Value, closure_of, schema_of

_TEXTS = frozenset({"string", "bytes", "timestamp", "duration", "decimal", "uuid"})


class Slot:
    """One JSON name of a message: a field, or a member of a oneof."""

    __slots__ = ("field", "json_name", "member", "name", "slot")

    def __init__(self, slot: str, field: FieldSchema, member: Member | None) -> None:
        source: FieldSchema | Member = field if member is None else member
        self.slot = slot
        """The attribute of the shadow."""
        self.field = field
        self.member = member
        self.name = source.name
        self.json_name = source.json_name

    @property
    def special(self) -> Special | None:
        """How this one message in this slot is written, where that is not by its fields."""
        if self.member is not None:
            value = self.member.transparent
            return SPECIAL.get(value.python if value is not None else self.member.message)
        return SPECIAL.get(self.field.holds.python) if self.field.form is Form.ONE else None

    @property
    def chosen(self) -> Member:
        """`member` of a slot that is one's."""
        if self.member is None:
            raise LookupError(f"{self.name} is no member of a oneof")
        return self.member


def slots_of(message: type[Message]) -> list[Slot]:
    slots: list[Slot] = []
    for field in schema_of(message).fields:
        for member in field.members or (None,):
            slots.append(Slot(f"f{len(slots)}", field, member))
    return slots


def written_shadow(message: type[Message]) -> type[Any]:
    """A Struct to be encoded: whatever is UNSET in it is left out."""
    slots = slots_of(message)
    return msgspec.defstruct(
        message.__name__,
        [(slot.slot, Any, msgspec.UNSET) for slot in slots],
        rename={slot.slot: slot.json_name for slot in slots},
        kw_only=True,
        gc=False,
    )


def read_shadow(message: type[Message], *, strict: bool) -> type[Any]:
    """A Struct to be decoded, whose fields are None where JSON has null or nothing.

    The *strict* one knows only the canonical names and refuses any other, so that the other one, which ignores what it
    does not know and also takes the names of the `.proto`, is needed for few messages.
    """
    if message in SPECIAL:
        return msgspec.Raw
    cache, kind = message.__polywire__.cache, ("shadow", strict)
    if kind not in cache:
        with functions_lock:
            _make(message, strict)
    found: type[Any] = cache[kind]
    return found


def _make(message: type[Message], strict: bool) -> None:
    kind = "shadow", strict
    new = [inner for inner in closure_of(message) if kind not in inner.__polywire__.cache]
    for inner in new:
        inner.__polywire__.cache[kind] = _blank(inner, strict)
    for inner in new:
        # Only now: messages may contain each other, and msgspec looks at annotations when a decoder is made.
        shadow = inner.__polywire__.cache[kind]
        types = {slot.slot: _or_none(_type_of_slot(slot, strict)) for slot in slots_of(inner)}
        shadow.__annotations__ = {name: types[name.removesuffix("_")] for name in shadow.__struct_fields__}


def _or_none(hint: Any) -> Any:
    return hint if hint is msgspec.Raw else hint | None


def _blank(message: type[Message], strict: bool) -> type[Any]:
    slots = slots_of(message)
    names = {slot.slot: slot.json_name for slot in slots}
    if not strict:
        names.update((f"{slot.slot}_", slot.name) for slot in slots if slot.name != slot.json_name)
    return msgspec.defstruct(
        message.__name__,
        [(name, Any, None) for name in names],
        rename=names,
        kw_only=True,
        gc=False,
        forbid_unknown_fields=strict,
    )


def _type_of_slot(slot: Slot, strict: bool) -> Any:
    if slot.member is not None:
        return _type_of(slot.member.transparent or Value(kind="message", python=slot.member.message), strict)
    field = slot.field
    element = _type_of(field.holds, strict)
    if field.form is Form.LIST:
        return list[element]  # type: ignore[valid-type]  # a type made at run time
    if field.form is Form.MAP:
        return dict[str, element]  # type: ignore[valid-type]  # a type made at run time
    return element


def _type_of(value: Value, strict: bool) -> Any:
    if value.python in SPECIAL:
        return msgspec.Raw
    if value.kind == "message":
        return read_shadow(value.python, strict=strict)
    if value.kind in _TEXTS:
        return str
    if value.kind == "bool":
        return bool
    if value.kind == "enum":
        return str | int
    if value.kind in INTEGER_RANGES or value.kind in FLOAT_KINDS:
        return int | float | str
    raise AssertionError(value.kind)
