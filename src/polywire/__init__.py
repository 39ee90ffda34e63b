"""polywire: one typed contract for the calls between services, over any wire.

The names of daily use. Each is loaded when it is first asked for (PEP 562), so that a program that only declares
contracts does not wait for servers and connections to be imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polywire import testing as testing
    from polywire.admission import Authenticator as Authenticator
    from polywire.admission import allow as allow
    from polywire.bus.sending import Bus as Bus
    from polywire.bus.sending import Receipt as Receipt
    from polywire.bus.sending import enqueue as enqueue
    from polywire.bus.sending import enqueue_all as enqueue_all
    from polywire.bus.sending import receipt as receipt
    from polywire.channel import CallDefaults as CallDefaults
    from polywire.clock import Clock as Clock
    from polywire.connecting import connect as connect
    from polywire.context import Call as Call
    from polywire.context import Metadata as Metadata
    from polywire.context import calling as calling
    from polywire.context import current as current
    from polywire.contract import Batch as Batch
    from polywire.contract import Contract as Contract
    from polywire.contract import Cron as Cron
    from polywire.contract import Double as Double
    from polywire.contract import Event as Event
    from polywire.contract import Every as Every
    from polywire.contract import Field as Field
    from polywire.contract import Float32 as Float32
    from polywire.contract import Int32 as Int32
    from polywire.contract import Int64 as Int64
    from polywire.contract import Message as Message
    from polywire.contract import Retry as Retry
    from polywire.contract import UInt32 as UInt32
    from polywire.contract import UInt64 as UInt64
    from polywire.contract import Where as Where
    from polywire.contract import delete as delete
    from polywire.contract import get as get
    from polywire.contract import patch as patch
    from polywire.contract import post as post
    from polywire.contract import put as put
    from polywire.contract import rpc as rpc
    from polywire.contract import subscribe as subscribe
    from polywire.contract import task as task
    from polywire.contract.details import ErrorInfo as ErrorInfo
    from polywire.contract.pagination import Page as Page
    from polywire.contract.pagination import PageQuery as PageQuery
    from polywire.contract.pagination import page_of as page_of
    from polywire.contract.policies import Balance as Balance
    from polywire.contract.policies import Breaker as Breaker
    from polywire.contract.policies import Bulkhead as Bulkhead
    from polywire.contract.policies import Ejection as Ejection
    from polywire.contract.policies import Fallback as Fallback
    from polywire.contract.policies import Hedge as Hedge
    from polywire.contract.policies import Shedding as Shedding
    from polywire.contract.priority import Priority as Priority
    from polywire.errors import DO_NOT_RETRY as DO_NOT_RETRY
    from polywire.errors import Aborted as Aborted
    from polywire.errors import AlreadyExists as AlreadyExists
    from polywire.errors import BatchFailed as BatchFailed
    from polywire.errors import CallError as CallError
    from polywire.errors import Cancelled as Cancelled
    from polywire.errors import DataLoss as DataLoss
    from polywire.errors import DeadlineExceeded as DeadlineExceeded
    from polywire.errors import DeliveryError as DeliveryError
    from polywire.errors import FailedPrecondition as FailedPrecondition
    from polywire.errors import Internal as Internal
    from polywire.errors import InvalidArgument as InvalidArgument
    from polywire.errors import MessageRefused as MessageRefused
    from polywire.errors import NobodyListens as NobodyListens
    from polywire.errors import NotFound as NotFound
    from polywire.errors import OutOfRange as OutOfRange
    from polywire.errors import PartlySent as PartlySent
    from polywire.errors import PermissionDenied as PermissionDenied
    from polywire.errors import PolywireError as PolywireError
    from polywire.errors import PublishUnknown as PublishUnknown
    from polywire.errors import Reject as Reject
    from polywire.errors import ResourceExhausted as ResourceExhausted
    from polywire.errors import RetryLater as RetryLater
    from polywire.errors import SetupError as SetupError
    from polywire.errors import Unauthenticated as Unauthenticated
    from polywire.errors import Unavailable as Unavailable
    from polywire.errors import Unimplemented as Unimplemented
    from polywire.errors import Unknown as Unknown
    from polywire.interceptor import Intercepted as Intercepted
    from polywire.interceptor import Interceptor as Interceptor
    from polywire.server import Server as Server
    from polywire.system.app import App as App
    from polywire.system.outside import OpenBus as OpenBus
    from polywire.system.outside import open_bus as open_bus
    from polywire.system.serving import serve as serve
    from polywire.threads import in_thread as in_thread

_WHERE = {
    "polywire.admission": ("Authenticator", "allow"),
    "polywire.bus.sending": ("Bus", "Receipt", "enqueue", "enqueue_all", "receipt"),
    "polywire.channel": ("CallDefaults",),
    "polywire.clock": ("Clock",),
    "polywire.connecting": ("connect",),
    "polywire.context": ("Call", "Metadata", "calling", "current"),
    "polywire.contract": (
        "Batch", "Contract", "Cron", "Double", "Event", "Every", "Field", "Float32", "Int32", "Int64", "Message",
        "Retry", "UInt32", "UInt64", "Where", "delete", "get", "patch", "post", "put", "rpc", "subscribe", "task",
    ),
    "polywire.contract.details": ("ErrorInfo",),
    "polywire.contract.pagination": ("Page", "PageQuery", "page_of"),
    "polywire.contract.policies": ("Balance", "Breaker", "Bulkhead", "Ejection", "Fallback", "Hedge", "Shedding"),
    "polywire.contract.priority": ("Priority",),
    "polywire.errors": (
        "DO_NOT_RETRY", "Aborted", "AlreadyExists", "BatchFailed", "CallError", "Cancelled", "DataLoss",
        "DeadlineExceeded", "DeliveryError", "FailedPrecondition", "Internal", "InvalidArgument", "MessageRefused",
        "NobodyListens", "NotFound", "OutOfRange", "PartlySent", "PermissionDenied", "PolywireError",
        "PublishUnknown", "Reject", "ResourceExhausted", "RetryLater", "SetupError", "Unauthenticated",
        "Unavailable", "Unimplemented", "Unknown",
    ),
    "polywire.interceptor": ("Intercepted", "Interceptor"),
    "polywire.server": ("Server",),
    "polywire.system.app": ("App",),
    "polywire.system.outside": ("OpenBus", "open_bus"),
    "polywire.system.serving": ("serve",),
    "polywire.threads": ("in_thread",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "DO_NOT_RETRY",
    "Aborted",
    "AlreadyExists",
    "App",
    "Authenticator",
    "Balance",
    "Batch",
    "BatchFailed",
    "Breaker",
    "Bulkhead",
    "Bus",
    "Call",
    "CallDefaults",
    "CallError",
    "Cancelled",
    "Clock",
    "Contract",
    "Cron",
    "DataLoss",
    "DeadlineExceeded",
    "DeliveryError",
    "Double",
    "Ejection",
    "ErrorInfo",
    "Event",
    "Every",
    "FailedPrecondition",
    "Fallback",
    "Field",
    "Float32",
    "Hedge",
    "Int32",
    "Int64",
    "Intercepted",
    "Interceptor",
    "Internal",
    "InvalidArgument",
    "Message",
    "MessageRefused",
    "Metadata",
    "NobodyListens",
    "NotFound",
    "OpenBus",
    "OutOfRange",
    "Page",
    "PageQuery",
    "PartlySent",
    "PermissionDenied",
    "PolywireError",
    "Priority",
    "PublishUnknown",
    "Receipt",
    "Reject",
    "ResourceExhausted",
    "Retry",
    "RetryLater",
    "Server",
    "SetupError",
    "Shedding",
    "UInt32",
    "UInt64",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "Where",
    "allow",
    "calling",
    "connect",
    "current",
    "delete",
    "enqueue",
    "enqueue_all",
    "get",
    "in_thread",
    "open_bus",
    "page_of",
    "patch",
    "post",
    "put",
    "receipt",
    "rpc",
    "serve",
    "subscribe",
    "task",
    "testing",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "testing":
        return import_module("polywire.testing")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'polywire' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
