"""Errors of a contract on their way: their fields as details, and the same class again at the caller."""

from __future__ import annotations

import logging
from typing import Any

from polywire.codec import codec_for
from polywire.contract.details import UnknownDetail
from polywire.contract.failures import chain_of, detail_of, name_of
from polywire.contract.message import Message
from polywire.contract.rpc import Rpc
from polywire.contract.schema import schema_of
from polywire.contract.task import Task
from polywire.errors import CallError, ContractError, InvalidArgument

log = logging.getLogger("polywire.errors")

TYPE_URL = "type.googleapis.com/"
MAX_DETAIL_BYTES = 4096
"""Of the fields of one error: on gRPC they are in a trailer, with everything else that an error says."""


def own_details(error: CallError) -> list[tuple[str, bytes]]:
    """Type URL and bytes of the fields of an error of a contract; empty for a canonical one.

    First as its own class, then as each error that it is derived from, for callers who know only that one. What cannot
    be sent or is too much is logged and left out: the error itself has to arrive.
    """
    if error.__form__ is None:
        return []
    packed = []
    for kind in chain_of(type(error)):
        try:
            value = codec_for(detail_of(kind), "proto").encode(fields_as_message(error, kind))
        except (ContractError, InvalidArgument) as wrong:
            log.error("the fields of %s were not sent: %s", kind.__qualname__, wrong)
            continue
        if len(value) > MAX_DETAIL_BYTES:
            log.error(
                "the fields of %s were not sent: they have %d bytes, and %d is the most", kind.__qualname__,
                len(value), MAX_DETAIL_BYTES,
            )  # fmt: skip
            continue
        packed.append((TYPE_URL + name_of(kind), value))
    return packed


def fields_as_message(error: CallError, kind: type[CallError] | None = None) -> Message:
    """The fields of an error of a contract, or those of them that *kind*, a class above its own, has."""
    kind = kind or type(error)
    form = kind.__form__
    return detail_of(kind)(**({} if form is None else form.values_of(error)))


def as_declared(error: CallError, method: Rpc | Task) -> CallError:
    """*error* as the class that the contract of *method* lists for one of its details, where it does; else *error*.

    A detail whose bytes cannot be read, or that came with another code than its class has, changes nothing.
    """
    if not method.raises or not error.details:
        return error
    kind: type[CallError] | None = None
    values: dict[str, Any] = {}
    for detail in error.details:
        listed = method.raises.get(_name(detail))
        if listed is None or listed.number != error.number or (kind is not None and not issubclass(listed, kind)):
            continue
        message = _read(detail, detail_of(listed))
        if message is not None:
            kind, values = listed, {field: getattr(message, field) for field in message.__struct_fields__}
    return error if kind is None else _raised_as(kind, values, error)


def _name(detail: Any) -> str:
    if isinstance(detail, UnknownDetail):
        return detail.type_url.rpartition("/")[2]
    return schema_of(type(detail)).full_name


def _read(detail: Any, expected: type[Message]) -> Message | None:
    if not isinstance(detail, UnknownDetail):
        return detail if isinstance(detail, expected) else None
    try:
        message: Message = codec_for(expected, "proto").decode(detail.value)
    except InvalidArgument as wrong:
        log.debug("the fields of %s could not be read: %s", expected.__qualname__, wrong)
        return None
    return message


def _raised_as(kind: type[CallError], values: dict[str, Any], error: CallError) -> CallError:
    form = kind.__form__
    assert form is not None  # noqa: S101 - only such are listed
    names = {name_of(above) for above in chain_of(kind)}
    beside = {keyword: getattr(error, keyword) for keyword in form.keywords}
    beside["details"] = [detail for detail in error.details if _name(detail) not in names]
    raised = kind(error.message, **beside, **values)
    raised.metadata = error.metadata
    return raised.with_traceback(error.__traceback__)
