"""Messages as protobuf: parsed by the official runtime, copied and written by code generated for each message.

Reading goes through the runtime (upb): it parses and validates in C, and the generated code copies its fields into the
Message. Writing does not: the generated code looks most of what it writes up in tables and joins it in f-strings, which
costs less than building the runtime's objects from Python (`benchmarks/codecs.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NoReturn

from google.protobuf.message import DecodeError

from polywire.codec.base import Codec, GeneratedCodec, Malformed, Violation, title_of
from polywire.codec.checks import checker_for, explain
from polywire.codec.descriptors import runtime_class
from polywire.codec.proto_reader import generate_reader
from polywire.codec.proto_writer import generate_writer
from polywire.codec.source import functions_for
from polywire.contract.message import Message

UNENCODABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,
    struct.error,
    Violation,
)
"""What generated writers stumble over when a value is not what its type says."""


def proto_codec(message: type[Message]) -> Codec:
    read = functions_for(message, "protobuf reader", generate_reader)["read"]
    return GeneratedCodec(encode=_encoder(message), decode=_decoder(message, read))


def _encoder(message: type[Message]) -> Callable[[Any], bytes]:
    write: Callable[[Any], str] = functions_for(message, "protobuf writer", generate_writer)["write"]
    checker = checker_for(message)

    def encode(value: Any) -> bytes:
        try:
            return write(value).encode("latin-1")
        except UNENCODABLE as error:
            explain(message, value, error, checker)

    return encode


def _decoder(message: type[Message], read: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    parse = runtime_class(message).FromString

    def decode(data: bytes) -> Any:
        try:
            return read(parse(data))
        except DecodeError as error:
            refuse(message, error)
        except Violation as violation:
            raise violation.error() from None

    return decode


def refuse(message: type[Message] | None, error: DecodeError) -> NoReturn:
    raise Malformed(
        f"{title_of(message)}: the protobuf bytes are malformed or truncated, or hold text that is not UTF-8."
    ) from error
