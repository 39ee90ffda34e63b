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

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

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


class CallError(PolywireError):
    """A call did not bring back an answer.

    Raise one of its subclasses in a handler and the caller gets the same class, message and details on every wire.
    *details* are messages that say more, such as those of `polywire.contract.details` (google.rpc.ErrorInfo and its
    kin); *retry_after* is pushback in seconds for whoever retries: None leaves it to them, `DO_NOT_RETRY` forbids it.
    """

    code: ClassVar[str] = "unknown"
    """The canonical name, as on the wire, in metrics and in Connect's error body."""
    number: ClassVar[int] = 2
    """google.rpc.Code, the value of `grpc-status`."""
    http_status: ClassVar[int] = 500
    """The HTTP twin, as google/rpc/code.proto maps it."""

    def __init__(self, message: str = "", *, details: Sequence[Any] = (), retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: tuple[Any, ...] = tuple(details)
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

    def __init__(
        self,
        message: str = "",
        *,
        reached: Reached = "maybe",
        details: Sequence[Any] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, details=details, retry_after=retry_after)
        self.reached: Reached = reached


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
