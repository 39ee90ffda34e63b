"""No argument and no result: google.protobuf.Empty."""

from __future__ import annotations

from typing import Any

import msgspec
from google.protobuf import empty_pb2
from google.protobuf.message import DecodeError

from polywire.codec.base import Codec, GeneratedCodec, Malformed
from polywire.errors import InvalidArgument

_parse = empty_pb2.Empty.FromString
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _encode_proto(message: Any) -> bytes:
    _refuse_anything(message)
    return b""


def _encode_json(message: Any) -> bytes:
    _refuse_anything(message)
    return b"{}"


def _refuse_anything(message: Any) -> None:
    if message is not None:
        raise InvalidArgument(f"nothing was to be sent, not an instance of {type(message).__name__}.")


def _decode_proto(data: bytes) -> None:
    if data:
        try:
            _parse(data)
        except DecodeError as error:
            raise Malformed("google.protobuf.Empty: the protobuf bytes are malformed or truncated.") from error


def _decode_json(data: bytes) -> None:
    """An object (its fields are ignored, as those of a newer peer) or nothing at all."""
    if not data or data == b"{}":
        return
    try:
        _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidArgument("expected an empty object") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"google.protobuf.Empty: the JSON is malformed ({error}).") from error


CODECS: dict[str, Codec] = {
    "proto": GeneratedCodec(encode=_encode_proto, decode=_decode_proto),
    "json": GeneratedCodec(encode=_encode_json, decode=_decode_json),
    "protojson": GeneratedCodec(encode=_encode_json, decode=_decode_json),
}
