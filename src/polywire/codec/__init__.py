"""Typed objects to bytes and back: protobuf, JSON with the declared names, and protobuf's own JSON."""

from __future__ import annotations

from typing import Literal, TypeVar

from polywire.codec import empty
from polywire.codec.base import Codec, GeneratedCodec, Malformed
from polywire.codec.checks import check
from polywire.codec.json import json_codec
from polywire.codec.protobuf import proto_codec
from polywire.codec.protojson import protojson_codec
from polywire.contract.message import Message

Format = Literal["proto", "json", "protojson"]
AnyMessage = TypeVar("AnyMessage", bound=Message)

_MAKERS = {"proto": proto_codec, "json": json_codec, "protojson": protojson_codec}


def codec_for(message: type[Message] | None, format: Format) -> Codec:
    """The codec of a message type, made at first use and kept with the class; None is google.protobuf.Empty.

    Raises ContractError where the class cannot be a message on the wire.
    """
    if message is None:
        return empty.CODECS[format]
    cache = message.__polywire__.cache
    key = "codec", format
    found: Codec | None = cache.get(key)
    if found is None:
        found = cache[key] = _MAKERS[format](message)
    return found


def copy(message: AnyMessage) -> AnyMessage:
    """What the other side would get, had the object travelled. Raises InvalidArgument where it could not."""
    codec = codec_for(type(message), "proto")
    copied: AnyMessage = codec.decode(codec.encode(message))
    return copied


__all__ = ["Codec", "Format", "GeneratedCodec", "Malformed", "check", "codec_for", "copy"]
