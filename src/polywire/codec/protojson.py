"""ProtoJSON, protobuf's own JSON, which Connect calls application/json: lowerCamelCase names, int64 as text, "90.500s".

Zero values are left out where protobuf would leave them out. Read are all spellings that the specification allows: null
for "not there", numbers as text and the other way round, URL-safe and unpadded base64, either name of a field, enums by
name or number; fields that this side does not know are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec

from polywire.codec.base import Codec, GeneratedCodec, Violation, violation_from_msgspec
from polywire.codec.checks import checker_for, run_check
from polywire.codec.json import malformed
from polywire.codec.protobuf import proto_codec
from polywire.codec.protojson_reader import generate_lenient_reader, generate_strict_reader
from polywire.codec.protojson_special import SPECIAL, Special, parsed
from polywire.codec.protojson_writer import generate_writer
from polywire.codec.shadow import read_shadow
from polywire.codec.source import functions_for
from polywire.contract import wellknown
from polywire.contract.message import Message, message_named

_encode = msgspec.json.Encoder().encode


def protojson_codec(message: type[Message]) -> Codec:
    return GeneratedCodec(encode=_encoder(message), decode=_decoder(message))


def _encoder(message: type[Message]) -> Callable[[Any], bytes]:
    checker = checker_for(message)
    render = functions_for(message, "ProtoJSON writer", generate_writer)["render"]

    def encode(value: Any) -> bytes:
        run_check(message, value, checker)
        try:
            return _encode(render(value))
        except Violation as violation:
            raise violation.error_of(message.__name__) from None

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


def _render_any(value: wellknown.Any) -> dict[str, Any]:
    """The fields of the message inside beside its type, or its own special form under "value"."""
    if not value.type_url and not value.value:
        return {}
    message = _named(value.type_url)
    inner = codec_for_protojson(message)
    text = inner.encode(_proto(message).decode(value.value))
    if message in SPECIAL:
        return {"@type": value.type_url, "value": msgspec.Raw(text)}
    return {"@type": value.type_url, **msgspec.json.decode(text, type=dict[str, msgspec.Raw])}


def _read_any(raw: msgspec.Raw) -> wellknown.Any:
    fields = parsed(raw, dict[str, msgspec.Raw])
    if not fields:
        return wellknown.Any()
    url = parsed(fields.pop("@type", msgspec.Raw(b'""')), str)
    message = _named(url)
    text = fields.get("value", msgspec.Raw(b"null")) if message in SPECIAL else _encode(fields)
    value = codec_for_protojson(message).decode(bytes(text))
    return wellknown.Any(type_url=url, value=_proto(message).encode(value))


def _named(url: str) -> type[Message]:
    message = message_named(url.rpartition("/")[2])
    if message is None:
        raise Violation("@type", f"this program has no message {url[:200]!r}")
    return message


_proto = cache(proto_codec)
codec_for_protojson = cache(protojson_codec)
SPECIAL[wellknown.Any] = Special(_render_any, _read_any)
