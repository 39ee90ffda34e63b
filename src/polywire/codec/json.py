"""JSON with the declared names, as REST and `polywire call` speak it: msgspec does the work and validates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from polywire.codec.base import Codec, GeneratedCodec, Malformed, Violation, title_of, violation_from_msgspec
from polywire.codec.checks import checker_for, residual_checker_for, run_check
from polywire.codec.newer import reader_for_newer
from polywire.contract.message import Message
from polywire.contract.schema import closure_of, schema_of
from polywire.errors import ContractError

_encode = msgspec.json.Encoder().encode


def json_codec(message: type[Message]) -> Codec:
    for inner in closure_of(message):
        schema_of(inner)  # tells msgspec our limits before it looks at the class
    try:
        decoder = msgspec.json.Decoder(message)
    except (TypeError, ValueError) as error:
        raise ContractError(f"{message.__qualname__} cannot be read from JSON: {error}.") from error
    return GeneratedCodec(encode=_encoder(message), decode=_decoder(message, _read(message, decoder)))


def _encoder(message: type[Message]) -> Callable[[Any], bytes]:
    # msgspec writes whatever the object holds, so that is looked at first.
    checker = checker_for(message, json=True)

    def encode(value: Any) -> bytes:
        run_check(message, value, checker)
        return _encode(value)

    return encode


def _read(message: type[Message], decoder: msgspec.json.Decoder[Any]) -> Callable[[bytes], Any]:
    """What msgspec does, and what it leaves: values of a newer peer, and limits that are none of its own."""
    native = decoder.decode
    newer = reader_for_newer(message)
    residual = residual_checker_for(message)
    if newer is None and residual is None:
        return native

    def read(data: bytes) -> Any:
        try:
            value = native(data)
        except msgspec.ValidationError:
            if newer is None:
                raise
            value = newer(data)
        if residual is not None:
            residual(value)
        return value

    return read


def _decoder(message: type[Message], read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode(data: bytes) -> Any:
        try:
            return read(data)
        except Violation as violation:
            raise violation.error() from None
        except msgspec.ValidationError as error:
            raise violation_from_msgspec(str(error)).error() from None
        except msgspec.DecodeError as error:
            raise malformed(message, str(error)) from None
        except UnicodeDecodeError:
            raise malformed(message, "text that is not UTF-8") from None
        except RecursionError:
            raise malformed(message, "nested too deeply") from None

    return decode


def malformed(message: type[Message], why: str) -> Malformed:
    return Malformed(f"{title_of(message)}: the JSON is malformed ({why.removeprefix('JSON is malformed: ')}).")


__all__ = ["Violation", "json_codec", "malformed"]
