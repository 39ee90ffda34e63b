"""Error details as Connect writes them in JSON, and as problem documents carry them too."""

from __future__ import annotations

import base64
import binascii
import logging
from typing import Any

import msgspec

from polywire.codec import codec_for
from polywire.codec.failures import TYPE_URL, own_details
from polywire.codec.status import MAX_DETAILS, details_of, unpack_details
from polywire.codec.status import error_from as error_of_code
from polywire.contract import Message
from polywire.errors import BY_CODE, CallError, InvalidArgument

log = logging.getLogger("polywire.server")

Packed = tuple[str, bytes]


def packed_details(error: CallError, *, derived: bool = True) -> list[Packed]:
    """As `details_of`, but what cannot be sent is logged and left out, so that the error arrives."""
    try:
        return details_of(error, derived=derived)
    except (TypeError, InvalidArgument) as wrong:
        log.error("the details of %s: %s were not sent: %s", error.code, error.message, wrong)
        return own_details(error)


def details_in_json(packed: list[Packed]) -> list[dict[str, Any]]:
    """Each detail as `type`, base64 `value`, and `debug` for people where the type is known here."""
    found = []
    for (url, value), message in zip(packed, unpack_details(packed), strict=True):
        encoded = base64.b64encode(value).rstrip(b"=").decode()
        entry: dict[str, Any] = {"type": url.rpartition("/")[2], "value": encoded}
        if isinstance(message, Message):
            try:
                entry["debug"] = msgspec.Raw(codec_for(type(message), "protojson").encode(message))
            except InvalidArgument as wrong:
                log.debug("a detail has no JSON form: %s", wrong)
        found.append(entry)
    return found


def error_from(code: str, message: str, details: Any, *, fields: Message | None = None) -> CallError:
    """The error that another side described. Details that cannot be read are left out. Raises KeyError for a code that
    does not exist.

    *fields*: those of an error of a contract as they stood beside the details; one of that type among them wins.
    """
    entries = details[:MAX_DETAILS] if isinstance(details, list) else []
    packed = [found for found in map(_unpacked, entries) if found is not None]
    unpacked = unpack_details(packed)
    if fields is not None and not any(isinstance(detail, type(fields)) for detail in unpacked):
        unpacked = (fields, *unpacked)
    return error_of_code(BY_CODE[code].number, message, unpacked)


def _unpacked(detail: Any) -> Packed | None:
    if not isinstance(detail, dict):
        return None
    name, value = detail.get("type"), detail.get("value")
    if not isinstance(name, str) or not isinstance(value, str):
        return None
    try:
        content = base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return (name if "/" in name else TYPE_URL + name), content
