"""Request messages from what was typed: `product_id=SKU-123`, `address.city=Rome`, `items:=[...]`, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from polywire.codec import codec_for
from polywire.contract import Message
from polywire.errors import InvalidArgument, SetupError
from polywire.system.reading import did_you_mean


def from_arguments(message: type[Message] | None, arguments: Sequence[str]) -> Message | None:
    """The message that *arguments* spell. Raises SetupError for what it cannot have."""
    if message is None:
        if arguments:
            raise SetupError(f"The method takes no message, so {arguments[0]!r} has no place in one.")
        return None
    values: dict[str, Any] = {}
    for argument in arguments:
        _set(values, argument)
    # First of all: msgspec keeps what it learns of a class when it first meets it, and the codec has more to tell it.
    codec_for(message, "json")
    info = msgspec.inspect.type_info(message)
    try:
        # Lax where a person types: "3" is a number where a number is wanted.
        made = msgspec.convert(_shaped(info, values, ""), message, strict=False)
        return from_json(message, msgspec.json.encode(made))
    except msgspec.ValidationError as error:
        raise SetupError(f"The request is no {message.__qualname__}: {error}.") from error


def from_json(message: type[Message] | None, text: str | bytes) -> Message | None:
    """The message that *text* is. Raises SetupError where it is none."""
    data = text.encode() if isinstance(text, str) else text
    try:
        decoded: Message | None = codec_for(message, "json").decode(data)
    except InvalidArgument as error:
        name = "Empty" if message is None else message.__qualname__
        raise SetupError(f"The request is no {name}: {error.message}") from error
    return decoded


def _set(values: dict[str, Any], argument: str) -> None:
    name, equals, text = argument.partition("=")
    if not equals or not name.rstrip(":"):
        raise SetupError(f"{argument!r} is not KEY=VALUE. For a value in JSON write KEY:=VALUE.")
    value: Any = text
    if name.endswith(":"):
        name = name[:-1]
        try:
            value = json.loads(text)
        except ValueError as error:
            raise SetupError(f"{argument!r}: what follows := is not JSON: {error}.") from error
    *parents, key = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise SetupError(f"{argument!r} gives {parent!r} a part, and it has a value already.")
    if key in values and name == argument.partition("=")[0]:
        # A key again means a list.
        earlier = values[key]
        values[key] = [*(earlier if isinstance(earlier, list) else [earlier]), value]
    else:
        values[key] = value


def _shaped(info: msgspec.inspect.Type, value: Any, path: str) -> Any:
    """*value* with single texts in lists where lists are wanted. Raises SetupError for unknown names."""
    if isinstance(info, msgspec.inspect.Metadata):
        return _shaped(info.type, value, path)
    if isinstance(info, msgspec.inspect.UnionType):
        whole = [part for part in info.types if not isinstance(part, msgspec.inspect.NoneType)]
        return _shaped(whole[0], value, path) if len(whole) == 1 else value
    if isinstance(info, msgspec.inspect.ListType) and isinstance(value, str):
        return [value]
    if isinstance(info, msgspec.inspect.StructType) and isinstance(value, dict):
        return _shaped_struct(info, value, path)
    return value


def _shaped_struct(info: msgspec.inspect.StructType, value: dict[str, Any], path: str) -> dict[str, Any]:
    fields = {field.encode_name: field.type for field in info.fields}
    spellings = {field.name: field.encode_name for field in info.fields} | {name: name for name in fields}
    shaped = {}
    for key, inner in value.items():
        if key not in spellings:
            raise SetupError(
                f"{info.cls.__qualname__} has no field {path + key!r}. {did_you_mean(key, fields)}"
                f"It has: {', '.join(fields) or 'none'}."
            )
        name = spellings[key]
        shaped[name] = _shaped(fields[name], inner, f"{path}{key}.")
    return shaped
