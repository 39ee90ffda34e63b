"""Every error polywire raises on purpose.

* PolywireError
  + CallError                 a call did not bring back an answer; one class per canonical code (google.rpc.Code)
    - Cancelled               the caller gave it up
    - Unknown                 the other side failed in a way it did not name
    - InvalidArgument         the request is wrong, whatever the state of the service
    - DeadlineExceeded        it ran out of time; the work may or may not have been done
    - NotFound                what the request names does not exist
    - AlreadyExists           what the request would create exists
    - PermissionDenied        this caller may not do this
    - ResourceExhausted       a quota or a limit is used up
    - FailedPrecondition      the state of the service does not allow it now
    - Aborted                 it lost against something concurrent; repeating it from the start may help
    - OutOfRange              past the end of something
    - Unimplemented           the service has no such method
    - Internal                the other side broke an invariant of its own
    - Unavailable             nobody answered; `reached` says whether the request got there
    - DataLoss                data is gone or corrupt for good
    - Unauthenticated         no valid credentials
                              Errors of a contract are subclasses of these, with fields of their own.
  + SetupError                the program is put together wrongly; raised before it serves
    - ContractError           a contract or a message is declared wrongly
    - SystemFileError         the system file says something impossible
  + DeliveryError             a task or an event
    - MessageRefused          was certainly not sent
      . NobodyListens         because no group is subscribed to it
    - PublishUnknown          was perhaps sent; sending it again with the same id is safe behind an inbox
    - PartlySent              some of several messages were not confirmed; `errors` has the error of each
    - BackendUnreachable      cannot travel: the backend does not answer
    - BackendLost             the connection to the backend broke, and with it what was held over it
    - ConsumerClosed          a consumer was closed while somebody was receiving from it
    - UndecodableMessage      is not readable
    - GroupRunning            a group cannot be sent elsewhere while its members run
    - Unsupported             the backend cannot do this at all
    - AlreadyDone             the inbox has it: its effects are there
    - PublishInTransaction    sent inside a transaction that could still be rolled back
  + StoreError                a transaction of a store did not happen, or nobody knows whether it did
    - StoreBusy               because others held the store for too long
    - ConstraintViolated      because a row would break a rule of its table
  + Verdict                   raised by a handler, to say what becomes of its message
    - RetryLater              again, after a while
    - Reject                  never again: to the dead letters
    - BatchFailed             these of a batch failed, the others are done

Only these cross a public function. A driver's own errors are chained as ``__cause__``.
"""

from __future__ import annotations

import inspect
import string
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, dataclass_transform

Reached = Literal["no", "maybe"]
Committed = Literal["no", "maybe"]

DO_NOT_RETRY = -1.0
"""As `retry_after`: whoever is above must not try this call again (gRPC's negative pushback)."""


class PolywireError(Exception):
    """The root: catch it to catch everything that polywire raises on purpose."""


class SetupError(PolywireError):
    """The program is put together wrongly. Raised before it serves, never at the first message."""


class ContractError(SetupError):
    """A contract or a message is declared in a way that could not work on every wire."""


class SystemFileError(SetupError):
    """The system file, or an environment variable that overrides it, says something impossible."""


def _positional(*, default: Any, kw_only: Literal[False]) -> Any:
    """Tells type checkers that a field of an error may be given without its name; returns *default*."""
    return default


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(_positional,))
class _WithFields(PolywireError):
    """Lets type checkers make the constructor of a CallError's subclass from its annotations, as `CallError` does."""


class CallError(_WithFields):
    """A call did not bring back an answer.

    Raise one of its subclasses in a handler and the caller gets the same code, message and details on every wire.
    *details* are messages that say more, such as those of `polywire.contract.details` (google.rpc.ErrorInfo and its
    kin); *retry_after* is pushback in seconds for whoever retries: None leaves it to them, `DO_NOT_RETRY` forbids it.

    An error of a contract is a subclass of a canonical one with annotated fields, `class OutOfStock(NotFound):
    product_id: str`. It is made with keywords, compared by class, message and fields, and raised as the same class at
    callers whose contract lists it in `raises=`. Class keywords: *message* says what went wrong, with the fields in it
    (`"{product_id} is out of stock"`; otherwise the docstring's first paragraph does); *http_status* replaces the
    canonical one on REST routes; *package*, *name* and *reserved* are as for a Message.
    """

    code: ClassVar[str] = "unknown"
    """The canonical name, as on the wire, in metrics and in Connect's error body."""
    number: ClassVar[int] = 2
    """google.rpc.Code, the value of `grpc-status`."""
    http_status: ClassVar[int] = 500
    """The HTTP twin, as google/rpc/code.proto maps it."""
    __form__: ClassVar[ErrorForm | None] = None
    """What a subclass that is not canonical declares."""

    message: str = _positional(default="", kw_only=False)
    details: Sequence[Any] = ()
    retry_after: float | None = None

    def __init_subclass__(
        cls,
        *,
        package: str | None = None,
        name: str | None = None,
        message: str | None = None,
        http_status: int | None = None,
        reserved: tuple[int | str | range, ...] = (),
    ) -> None:
        super().__init_subclass__()
        if cls.__module__ != __name__:
            cls.__form__ = ErrorForm(cls, package, name, message, http_status, reserved)
            if getattr(cls.__init__, "__module__", "") == __name__:
                cls.__init__ = _init_with_fields  # type: ignore[method-assign]  # as type checkers derive it
            elif cls.__form__.written:
                raise ContractError(
                    f"{cls.__qualname__} has fields and an __init__ of its own, so that a caller's side could not make "
                    "one. Leave the __init__ out: there is one that takes the fields as keywords."
                )

    def __init__(self, message: str = "", *, details: Sequence[Any] = (), retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.retry_after = retry_after
        self.method: str | None = None
        """The full name of the method called, `shop.v1.Inventory/CheckStock`; set where the error reaches a caller."""
        self.request_id: str | None = None
        self.attempts = 1
        """How often the call was tried, where the error reaches a caller."""
        self.metadata: Any = None
        """What came with the error: a `polywire.context.Metadata` of response headers and trailers, or None."""

    def __str__(self) -> str:
        return self.message or self.code

    def __repr__(self) -> str:
        if self.__form__ is None:
            return super().__repr__()
        hidden = self.__form__.sensitive()
        values = self.__form__.values_of(self)
        shown = [f"{name}={'***' if name in hidden else repr(value)}" for name, value in values.items()]
        return f"{type(self).__name__}({', '.join([repr(self.message), *shown])})"

    def __eq__(self, other: object) -> bool:
        if self.__form__ is None or type(other) is not type(self):
            return NotImplemented
        values_of = self.__form__.values_of
        return self.message == other.message and values_of(self) == values_of(other)

    def __hash__(self) -> int:
        return super().__hash__() if self.__form__ is None else hash((type(self), self.message))

    def __reduce__(self) -> Any:
        """Copying, and handing it to another process of a pool: exceptions are otherwise made anew from their text."""
        if self.__form__ is None:
            return super().__reduce__()
        return _blank, (type(self), self.args), self.__dict__


class Cancelled(CallError):
    code = "cancelled"
    number = 1
    http_status = 499


class Unknown(CallError):
    code = "unknown"
    number = 2
    http_status = 500


class InvalidArgument(CallError):
    """The request is wrong, whatever the state of the service.

    *field* names the part at fault, in dotted form with indices (`items[2].quantity`), if there is one.
    """

    code = "invalid_argument"
    number = 3
    http_status = 400

    field: str | None = None

    def __init__(
        self,
        message: str = "",
        *,
        field: str | None = None,
        details: Sequence[Any] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, details=details, retry_after=retry_after)
        self.field = field


class DeadlineExceeded(CallError):
    code = "deadline_exceeded"
    number = 4
    http_status = 504


class NotFound(CallError):
    code = "not_found"
    number = 5
    http_status = 404


class AlreadyExists(CallError):
    code = "already_exists"
    number = 6
    http_status = 409


class PermissionDenied(CallError):
    code = "permission_denied"
    number = 7
    http_status = 403


class ResourceExhausted(CallError):
    code = "resource_exhausted"
    number = 8
    http_status = 429


class FailedPrecondition(CallError):
    code = "failed_precondition"
    number = 9
    http_status = 400


class Aborted(CallError):
    code = "aborted"
    number = 10
    http_status = 409


class OutOfRange(CallError):
    code = "out_of_range"
    number = 11
    http_status = 400


class Unimplemented(CallError):
    code = "unimplemented"
    number = 12
    http_status = 501


class Internal(CallError):
    code = "internal"
    number = 13
    http_status = 500


class Unavailable(CallError):
    """Nobody answered, or whoever did says it cannot work now.

    *reached* is ``"no"`` only where it is certain that no handler saw the request; then any call may be tried again.
    In doubt it is ``"maybe"``, and only idempotent calls are.
    """

    code = "unavailable"
    number = 14
    http_status = 503

    reached: Reached = "maybe"

    def __init__(
        self,
        message: str = "",
        *,
        reached: Reached = "maybe",
        details: Sequence[Any] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, details=details, retry_after=retry_after)
        self.reached = reached


class DataLoss(CallError):
    code = "data_loss"
    number = 15
    http_status = 500


class Unauthenticated(CallError):
    code = "unauthenticated"
    number = 16
    http_status = 401


BY_NUMBER: dict[int, type[CallError]] = {
    error.number: error
    for error in (
        Cancelled,
        Unknown,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}
BY_CODE: dict[str, type[CallError]] = {error.code: error for error in BY_NUMBER.values()}


# Errors of a contract

REST_STATUSES: dict[str, frozenset[int]] = {
    InvalidArgument.code: frozenset({400, 422}),
    NotFound.code: frozenset({404, 410}),
    PermissionDenied.code: frozenset({403, 404, 451}),
    ResourceExhausted.code: frozenset({413, 429}),
    FailedPrecondition.code: frozenset({400, 402, 409, 412, 422, 423, 428}),
    Aborted.code: frozenset({409, 412, 423}),
    OutOfRange.code: frozenset({400, 416, 422}),
}
"""What `http_status=` of a class may be: statuses that tell a client without the problem document to do the same. Other
codes have their canonical one alone, as proxies and clients act on those statuses by themselves (retry, log in)."""

RESERVED_BY_ERRORS = frozenset({"attempts", "field", "metadata", "method", "reached", "request_id", *dir(CallError)})
"""What no field can be called, as some or all errors have such an attribute."""


class ErrorForm:
    """What the class statement of an error says beside its code, and what was derived from the class since."""

    __slots__ = (
        "_namespace", "_sensitive", "canonical", "defaults", "detail", "error", "keywords", "name", "package",
        "reserved", "rest_status", "template", "text", "written",
    )  # fmt: skip

    def __init__(
        self,
        error: type[CallError],
        package: str | None,
        name: str | None,
        template: str | None,
        http_status: int | None,
        reserved: tuple[int | str | range, ...],
    ) -> None:
        forms = [base.__form__ for base in error.__mro__[1:] if issubclass(base, CallError) and base.__form__]
        above = forms[0] if forms else None
        self.error = error
        self.canonical: type[CallError] = BY_NUMBER.get(error.number, CallError)
        self.keywords = frozenset(inspect.signature(self.canonical.__init__).parameters) - {"self", "message"}
        """What its constructor takes beside the message and the fields."""
        self.written: dict[str, tuple[type[CallError], Any]] = {}
        """Each field with the class that declares it, and its annotation as it was written."""
        self.defaults: dict[str, Any] = {}
        self._namespace = _names_around(error.__qualname__)
        self._sensitive: frozenset[str] | None = None
        for form in reversed(forms):
            self._add(form.written, form.defaults)
        self._read_fields()
        self.template: str | None = template if template is not None or above is None else above.template
        self.text: str = _first_paragraph(error) or ("" if above is None else above.text)
        self._check_template()
        self.rest_status: int | None = http_status if http_status is not None or above is None else above.rest_status
        self._check_status(http_status)
        self.name = name or error.__name__
        self.package = package
        self.reserved = reserved
        self.detail: Any = None
        """The message that carries the fields, made by `polywire.contract.failures` when it is first needed."""

    def _read_fields(self) -> None:
        error = self.error
        for field, hint in inspect.get_annotations(error).items():
            if "ClassVar" in str(hint):
                continue
            if field in RESERVED_BY_ERRORS or field.startswith("_"):
                why = f"every error has {field!r} of its own" if field in RESERVED_BY_ERRORS else "it begins with '_'"
                raise ContractError(
                    f"{error.__qualname__}.{field} cannot be a field: {why}. "
                    "Call it something else; Annotated[..., Field(name=...)] gives it that name on the wire."
                )
            own = vars(error)
            self._add({field: (error, hint)}, {field: own[field]} if field in own else {})

    def _add(self, written: dict[str, tuple[type[CallError], Any]], defaults: dict[str, Any]) -> None:
        """Take fields, in place of those of the same names."""
        self.written.update(written)
        self.defaults = {name: value for name, value in self.defaults.items() if name not in written} | defaults

    def _check_template(self) -> None:
        if self.template is None:
            return
        where = f"{self.error.__qualname__}: message={self.template!r}"
        try:
            named = self.shown()
        except ValueError as wrong:
            raise ContractError(f"{where} is no template: {wrong}. Write braces that mean themselves twice.") from None
        for name in named:
            if name not in self.written:
                raise ContractError(f"{where} names {name!r}, which is no field. {self._choices()}")

    def shown(self) -> list[str]:
        """What the message has in it. Raises ValueError for a template that is none."""
        return [name for _, name, _, _ in string.Formatter().parse(self.template or "") if name is not None]

    def _check_status(self, status: int | None) -> None:
        allowed = REST_STATUSES.get(self.canonical.code, frozenset({self.canonical.http_status}))
        if status is not None and status not in allowed:
            raise ContractError(
                f"{self.error.__qualname__}: http_status={status} does not go with {self.canonical.code}, as who does "
                f"not read the body would take it for something else. Take {_listed(sorted(allowed), 'or')}, or "
                "derive it from another canonical error."
            )

    def _choices(self) -> str:
        fields = _listed(self.written, "and")
        return f"It has {fields}." if fields else "It has none."

    def taken_from(self, given: dict[str, Any]) -> dict[str, Any]:
        """The values of the fields, taken out of the keywords *given*. Raises TypeError for too few and too many."""
        values = {}
        for field in self.written:
            if field in given:
                values[field] = given.pop(field)
            elif field in self.defaults:
                default = self.defaults[field]
                values[field] = default.copy() if isinstance(default, (list, dict)) else default
            else:
                raise TypeError(f"{self.error.__qualname__} was not made: its field {field!r} is missing.")
        for extra in given.keys() - self.keywords:
            raise TypeError(f"{self.error.__qualname__} was not made: {extra!r} is no field. {self._choices()}")
        return values

    def values_of(self, error: CallError) -> dict[str, Any]:
        return {field: getattr(error, field) for field in self.written}

    def message_of(self, values: Mapping[str, Any]) -> str:
        """What an error says that is made without a message."""
        if self.template is None:
            return self.text
        try:
            return self.template.format_map(values)
        except (TypeError, ValueError):
            # A value that its format cannot show must not put another error into the place of this one.
            return self.template

    def hints(self) -> dict[str, Any]:
        """The type of each field, with every name in it resolved. Raises ContractError where one is not defined."""
        return {field: _resolved(owner, field, hint) for field, (owner, hint) in self.written.items()}

    def names(self) -> dict[str, Any]:
        """What annotations can name where the class stands."""
        error = self.error
        module = vars(sys.modules[error.__module__]) if error.__module__ in sys.modules else {}
        return {**self._namespace, **module, error.__name__: error}

    def sensitive(self) -> frozenset[str]:
        """The fields whose values do not belong into logs; all of them if the annotations cannot be read."""
        if self._sensitive is None:
            try:
                hints = self.hints()
            except ContractError:
                return frozenset(self.written)
            self._sensitive = frozenset(field for field, hint in hints.items() if _is_sensitive(hint))
        return self._sensitive


def _listed(things: Any, word: str) -> str:
    *most, last = map(str, things) if things else [""]
    return f"{', '.join(most)} {word} {last}" if most else last


def _first_paragraph(error: type[CallError]) -> str:
    return " ".join(inspect.cleandoc(vars(error).get("__doc__") or "").split("\n\n")[0].split())


def _names_around(qualname: str) -> dict[str, Any]:
    """The types that are local where an error stands in a function; nothing for one of a module."""
    parts = qualname.split(".")
    found: dict[str, Any] = {}
    if "<locals>" in parts:
        for depth in range(len(parts) - parts.count("<locals>") - 1):
            for key, value in sys._getframe(3 + depth).f_locals.items():
                if isinstance(value, (type, types.GenericAlias, types.UnionType)) or typing.get_origin(value):
                    found.setdefault(key, value)
    return found


def _resolved(owner: type[CallError], field: str, hint: Any) -> Any:
    def holder() -> None: ...

    form = owner.__form__
    names = {} if form is None else form.names()
    holder.__annotations__ = {"hint": hint}
    try:
        return typing.get_type_hints(holder, names, names, include_extras=True)["hint"]
    except NameError as wrong:
        raise ContractError(
            f"{owner.__qualname__}.{field} is annotated {hint!r}, but {wrong.name!r} is not defined where the class "
            "stands. Import it outside of `if TYPE_CHECKING`, at the top of the module."
        ) from wrong
    except (SyntaxError, TypeError) as wrong:
        where = f"{owner.__qualname__}.{field}"
        raise ContractError(f"{where} is annotated {hint!r}, which is no type: {wrong}.") from wrong


def _is_sensitive(hint: Any) -> bool:
    if any(getattr(part, "sensitive", False) for part in getattr(hint, "__metadata__", ())):
        return True
    return any(_is_sensitive(part) for part in typing.get_args(hint) if typing.get_args(part))


def _init_with_fields(self: CallError, message: str = "", **given: Any) -> None:
    form = self.__form__
    assert form is not None  # noqa: S101 - set together with this constructor
    values = form.taken_from(given)
    form.canonical.__init__(self, message or form.message_of(values), **given)
    self.__dict__.update(values)


def _blank(error: type[CallError], arguments: tuple[Any, ...]) -> CallError:
    return error.__new__(error, *arguments)


class DeliveryError(PolywireError):
    """A task or an event was not sent, not received or not settled as asked."""


class MessageRefused(DeliveryError):
    """The message was certainly not sent. Sending it again as it is will fail again, unless the text says otherwise."""


class NobodyListens(MessageRefused):
    """No group is subscribed to the event, and the sender asked to be told."""


class PublishUnknown(DeliveryError):
    """Nobody confirmed the message: perhaps it was sent, perhaps not.

    *id* is the message's. Sending it again with the same id is safe where its handlers use the inbox.
    """

    def __init__(self, message: str, *, id: str) -> None:
        super().__init__(message)
        self.id = id


class PartlySent(DeliveryError):
    """Of several messages, some were not confirmed; the others are durable.

    *errors* has the error of each of them, by index: MessageRefused or PublishUnknown. *ids* has the ids of all.
    """

    def __init__(self, errors: Mapping[int, Exception], *, ids: Sequence[str]) -> None:
        first = next(iter(errors))
        super().__init__(
            f"{len(errors)} of {len(ids)} messages were not confirmed, number {first} first: {errors[first]}"
        )
        self.errors = dict(errors)
        self.ids = tuple(ids)


class BackendUnreachable(DeliveryError):
    """The backend does not answer at its address, or does not let us in."""


class BackendLost(DeliveryError):
    """The connection to the backend broke; what was held over it is somebody else's now."""


class ConsumerClosed(DeliveryError):
    """The consumer was closed."""


class UndecodableMessage(DeliveryError):
    """The bytes of a message cannot be read as what they should be."""


class GroupRunning(DeliveryError):
    """The position of a group cannot be changed while its members run."""


class Unsupported(DeliveryError):
    """The backend cannot do this at all."""


class AlreadyDone(DeliveryError):
    """The inbox has this message: its effects were committed before. The consumer acknowledges it."""


class PublishInTransaction(DeliveryError):
    """A message was to be sent inside a transaction that could still be rolled back, and there is no outbox."""


class StoreError(PolywireError):
    """A store did not do what it was asked. What was done in the same transaction is rolled back.

    *committed* is ``"maybe"`` where a commit failed in a way that leaves open what is on disk; behind the inbox it is
    safe to do it all again.
    """

    def __init__(self, message: str, *, committed: Committed = "no") -> None:
        super().__init__(message)
        self.committed: Committed = committed


class StoreBusy(StoreError):
    """The turn of a transaction did not come in time: nothing of it was done."""


class ConstraintViolated(StoreError):
    """A row would break a rule of its table: a key that is there already, a reference to nothing, a failed check.

    Only the statement is undone; go on after it inside `tx.savepoint()`, which works on every store.
    """


class Verdict(PolywireError):
    """What becomes of a message, said by its handler by raising one."""


class RetryLater(Verdict):
    """Handle the message again, *after* seconds from now, or after the policy's own delay where that is None.

    It counts as an attempt like any failure.
    """

    def __init__(self, message: str = "", *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Reject(Verdict):
    """Never handle the message again: it goes to the dead letters, with *reason* as its error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BatchFailed(Verdict):
    """Of a batch, the messages at these indices failed, each with its error; the others are done."""

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        super().__init__(f"{len(errors)} messages of a batch failed")
        self.errors = dict(errors)
