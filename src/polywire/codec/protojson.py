"""ProtoJSON, protobuf's own JSON, which Connect calls application/json: lowerCamelCase names, int64 as text, "90.500s".

Zero values are left out where protobuf would leave them out. Read are all spellings that the specification allows: null
for "not there", numbers as text and the other way round, URL-safe and unpadded base64, either name of a field, enums by
name or number; fields that this side does not know are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from polywire.codec.base import Codec, GeneratedCodec, Violation, violation_from_msgspec
from polywire.codec.checks import checker_for, run_check
from polywire.codec.json import malformed
from polywire.codec.protojson_reader import generate_lenient_reader, generate_strict_reader
from polywire.codec.protojson_writer import generate_writer
from polywire.codec.shadow import read_shadow
from polywire.codec.source import functions_for
from polywire.contract.message import Message

_encode = msgspec.json.Encoder().encode


def protojson_codec(message: type[Message]) -> Codec:
    return GeneratedCodec(encode=_encoder(message), decode=_decoder(message))


def _encoder(message: type[Message]) -> Callable[[Any], bytes]:
    checker = checker_for(message)
    render = functions_for(message, "ProtoJSON writer", generate_writer)["render"]

    def encode(value: Any) -> bytes:
        run_check(message, value, checker)
        return _encode(render(value))

    return encode


def _decoder(message: type[Message]) -> Callable[[bytes], Any]:
    read = functions_for(message, "ProtoJSON reader", generate_strict_reader)["read"]
    parse = msgspec.json.Decoder(read_shadow(message, strict=True)).decode
    lenient: list[Callable[[bytes], Any]] = []

    def decode(data: bytes) -> Any:
        try:
            return read(parse(data))
        except Violation as violation:
            raise violation.error() from None
        except msgspec.ValidationError:
            # Perhaps only because of a name that the strict shadow does not have.
            if not lenient:
                lenient.append(_lenient_decoder(message))
            return lenient[0](data)
        except msgspec.DecodeError as error:
            raise malformed(message, str(error)) from None
        except UnicodeDecodeError:
            raise malformed(message, "text that is not UTF-8") from None
        except RecursionError:
            raise malformed(message, "nested too deeply") from None

    return decode


def _lenient_decoder(message: type[Message]) -> Callable[[bytes], Any]:
    read = functions_for(message, "lenient ProtoJSON reader", generate_lenient_reader)["read"]
    parse = msgspec.json.Decoder(read_shadow(message, strict=False)).decode

    def decode(data: bytes) -> Any:
        try:
            return read(parse(data))
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
