"""Errors of a contract as messages: the detail that carries an error's fields, and who raises it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from polywire.contract.message import Message, MessageMeta
from polywire.contract.schema import assign_package, schema_of, upper_snake
from polywire.errors import CallError, ContractError, ErrorForm

if TYPE_CHECKING:
    from polywire.contract.rpc import Service

Raises = Mapping[str, type[CallError]]
"""Errors by the full name of their detail, `shop.v1.OutOfStock`."""

NOTHING: Raises = MappingProxyType({})
_making = threading.RLock()


def form_of(error: type[CallError]) -> ErrorForm:
    """What the class of an error declares. Raises ContractError for the canonical ones."""
    if error.__form__ is None:
        raise ContractError(
            f"{error.__qualname__} is canonical: every method may raise it, and it has no fields. Derive an error of "
            f"the contract from it, `class OutOfStock({error.__name__}): product_id: str`."
        )
    return error.__form__


def detail_of(error: type[CallError]) -> type[Message]:
    """The message with the fields of an error, made when it is first needed.

    Raises ContractError where a field could not travel, or where the message would show a sensitive one.
    """
    form = form_of(error)
    if form.detail is None:
        with _making:  # two of one name would be none for those who look for it
            if form.detail is None:
                form.detail = _made(error, form)
    detail: type[Message] = form.detail
    return detail


def _made(error: type[CallError], form: ErrorForm) -> Any:
    made: Any = MessageMeta(
        error.__name__, (Message,), _body(error, form), package=_package(error), name=form.name, reserved=form.reserved
    )
    made.__polywire__.error = error
    schema_of(made)  # what cannot travel is told here, before anybody has the class
    return made


def _body(error: type[CallError], form: ErrorForm) -> dict[str, Any]:
    hints = form.hints()
    for field in form.shown():
        if field in form.sensitive():
            raise ContractError(
                f"{error.__qualname__}: message={form.template!r} shows {field!r}, which is sensitive, to every caller "
                "and in every log. Leave it out of the message."
            )
    return {
        "__module__": error.__module__,
        "__qualname__": error.__name__,
        "__doc__": vars(error).get("__doc__"),
        "__annotations__": hints,
        **form.defaults,
    }


def _package(error: type[CallError]) -> str | None:
    """As declared, or that of the error that it is derived from."""
    for base in error.__mro__:
        form = base.__form__ if issubclass(base, CallError) else None
        if form is not None:
            package: str | None = form.package
            if package is None and form.detail is not None:
                package = form.detail.__polywire__.package
            if package is not None:
                return package
    return None


def name_of(error: type[CallError]) -> str:
    """On the wire: `shop.v1.OutOfStock`."""
    return schema_of(detail_of(error)).full_name


def reason_of(error: type[CallError]) -> str:
    """For programs that go by one word: `OUT_OF_STOCK`. It outlives versions of the package."""
    return upper_snake(form_of(error).name.rpartition(".")[2])


def travels(error: type[CallError]) -> bool:
    """Whether an error of this class has a detail of its own: it has fields, or some contract lists it."""
    form = error.__form__
    return form is not None and bool(form.written or form.package is not None or form.detail is not None)


def chain_of(error: type[CallError]) -> list[type[CallError]]:
    """The classes as which an error of this one travels: itself, and those above it that have a detail."""
    return [kind for kind in error.__mro__ if issubclass(kind, CallError) and travels(kind)]


def check_raises(where: str, raises: Sequence[type[CallError]]) -> tuple[type[CallError], ...]:
    """Refuse what `raises=` cannot list, where it stands."""
    if isinstance(raises, type):
        raise ContractError(f"{where}: raises={raises.__qualname__} is one error. Write raises=({raises.__name__},).")
    for error in raises:
        if not (isinstance(error, type) and issubclass(error, CallError)):
            raise ContractError(
                f"{where}: raises= lists {error!r}, which is no error of a call. "
                "Derive it from a canonical one, such as FailedPrecondition."
            )
        form_of(error)
        if error.__init__.__module__ != CallError.__module__:
            raise ContractError(
                f"{where}: raises= lists {error.__qualname__}, which has an __init__ of its own, so that a caller's "
                "side could not make one. Annotate its fields instead."
            )
    return tuple(raises)


def listed(package: str, user: str, raises: Iterable[type[CallError]]) -> Raises:
    """The errors that *user*, a contract or method of *package*, raises; those without a package get this one.

    Raises ContractError where one cannot travel, is used in two packages, or has the name of another.
    """
    found: dict[str, type[CallError]] = {}
    for error in raises:
        for kind in dict.fromkeys((error, *chain_of(error))):
            assign_package(detail_of(kind), package, user)
        other = found.setdefault(name_of(error), error)
        if other is not error:
            raise ContractError(
                f"{user} raises {other.__qualname__} and {error.__qualname__}, which are both called "
                f"{name_of(error)!r} on the wire. Give one of them another name=."
            )
    return MappingProxyType(found) if found else NOTHING


def errors_of(service: Service) -> dict[type[CallError], list[str]]:
    """The errors that a contract lists, each with the full names of the rpcs that raise it, `shop.v1.Orders.Place`."""
    found: dict[type[CallError], list[str]] = {}
    for rpc in service.rpcs.values():
        for error in rpc.raises.values():
            found.setdefault(error, []).append(f"{rpc.service}.{rpc.name}")
    return found
