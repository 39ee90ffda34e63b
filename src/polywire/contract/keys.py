"""Keys of messages: the field that orders them, and its value as text."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Union
from uuid import UUID

from polywire.contract.message import Message, hints_of
from polywire.errors import ContractError

MAX_KEY_BYTES = 255
"""What every backend can carry."""
_KINDS = (str, int, UUID, enum.Enum)


def check_key(where: str, message: type[Message] | None, key: str) -> None:
    """Raises ContractError where *key* is no field of *message* that can be a key."""
    if message is None:
        raise ContractError(f"{where}: key={key!r} names a field, but it takes no message.")
    if key not in message.__struct_fields__:
        fields = ", ".join(message.__struct_fields__) or "none"
        raise ContractError(f"{where}: key={key!r} is no field of {message.__qualname__}. Its fields are: {fields}.")
    try:
        hint = hints_of(message)[key]
    except ContractError:
        return  # it names a class that comes later in its module; whoever sends it looks again
    for kind in _alternatives(hint):
        if kind is not types.NoneType and not _is_key(kind):
            raise ContractError(
                f"{where}: key={key!r} is annotated {getattr(kind, '__qualname__', kind)!r}, but a key is a str, an "
                "int, a UUID or an Enum."
            )


def has_key(where: str, message: type[Message] | None, key: str) -> bool:
    """Whether *message* has the field *key*. Raises ContractError where it has, and that can be no key."""
    if message is None or key not in message.__struct_fields__:
        return False
    check_key(where, message, key)
    return True


def _is_key(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, _KINDS) and kind is not bool


def _alternatives(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is Annotated:
        return _alternatives(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [kind for part in typing.get_args(hint) for kind in _alternatives(part)]
    return [hint]


def key_reader(key: str) -> Callable[[Any], str | None]:
    """A function from a message to the text of its key; None where the field is None, and it is not ordered."""

    def read(message: Any) -> str | None:
        value = getattr(message, key)
        return value if type(value) is str or value is None else key_text(value)

    return read


def key_text(value: object) -> str:
    """The same for equal values, in every process. Raises TypeError for what is no key."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str | int | UUID) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"a key is a str, an int, a UUID or an Enum, not a {type(value).__qualname__}")
