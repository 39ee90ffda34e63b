"""polywire: one typed contract for the calls between services, over any wire.

The names of daily use. Each is loaded when it is first asked for (PEP 562), so that a program that only declares
contracts does not wait for servers and connections to be imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polywire import testing as testing
    from polywire.channel import CallDefaults as CallDefaults
    from polywire.clock import Clock as Clock
    from polywire.connecting import connect as connect
    from polywire.context import Call as Call
    from polywire.context import Metadata as Metadata
    from polywire.context import calling as calling
    from polywire.context import current as current
    from polywire.contract import Contract as Contract
    from polywire.contract import Double as Double
    from polywire.contract import Field as Field
    from polywire.contract import Float32 as Float32
    from polywire.contract import Int32 as Int32
    from polywire.contract import Int64 as Int64
    from polywire.contract import Message as Message
    from polywire.contract import UInt32 as UInt32
    from polywire.contract import UInt64 as UInt64
    from polywire.contract import delete as delete
    from polywire.contract import get as get
    from polywire.contract import patch as patch
    from polywire.contract import post as post
    from polywire.contract import put as put
    from polywire.contract import rpc as rpc
    from polywire.contract.details import ErrorInfo as ErrorInfo
    from polywire.contract.pagination import Page as Page
    from polywire.contract.pagination import PageQuery as PageQuery
    from polywire.contract.pagination import page_of as page_of
    from polywire.errors import DO_NOT_RETRY as DO_NOT_RETRY
    from polywire.errors import Aborted as Aborted
    from polywire.errors import AlreadyExists as AlreadyExists
    from polywire.errors import CallError as CallError
    from polywire.errors import Cancelled as Cancelled
    from polywire.errors import DataLoss as DataLoss
    from polywire.errors import DeadlineExceeded as DeadlineExceeded
    from polywire.errors import FailedPrecondition as FailedPrecondition
    from polywire.errors import Internal as Internal
    from polywire.errors import InvalidArgument as InvalidArgument
    from polywire.errors import NotFound as NotFound
    from polywire.errors import OutOfRange as OutOfRange
    from polywire.errors import PermissionDenied as PermissionDenied
    from polywire.errors import PolywireError as PolywireError
    from polywire.errors import ResourceExhausted as ResourceExhausted
    from polywire.errors import SetupError as SetupError
    from polywire.errors import Unauthenticated as Unauthenticated
    from polywire.errors import Unavailable as Unavailable
    from polywire.errors import Unimplemented as Unimplemented
    from polywire.errors import Unknown as Unknown
    from polywire.policy.retry import Retry as Retry
    from polywire.server import Server as Server
    from polywire.system.app import App as App
    from polywire.system.serving import serve as serve

_WHERE = {
    "polywire.clock": ("Clock",),
    "polywire.channel": ("CallDefaults",),
    "polywire.connecting": ("connect",),
    "polywire.context": ("Call", "Metadata", "calling", "current"),
    "polywire.contract": (
        "Contract", "Double", "Field", "Float32", "Int32", "Int64", "Message", "UInt32", "UInt64",
        "delete", "get", "patch", "post", "put", "rpc",
    ),
    "polywire.contract.details": ("ErrorInfo",),
    "polywire.contract.pagination": ("Page", "PageQuery", "page_of"),
    "polywire.errors": (
        "DO_NOT_RETRY", "Aborted", "AlreadyExists", "CallError", "Cancelled", "DataLoss", "DeadlineExceeded",
        "FailedPrecondition", "Internal", "InvalidArgument", "NotFound", "OutOfRange", "PermissionDenied",
        "PolywireError", "ResourceExhausted", "SetupError", "Unauthenticated", "Unavailable", "Unimplemented",
        "Unknown",
    ),
    "polywire.policy.retry": ("Retry",),
    "polywire.server": ("Server",),
    "polywire.system.app": ("App",),
    "polywire.system.serving": ("serve",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "DO_NOT_RETRY",
    "Aborted",
    "AlreadyExists",
    "App",
    "Call",
    "CallDefaults",
    "CallError",
    "Cancelled",
    "Clock",
    "Contract",
    "DataLoss",
    "DeadlineExceeded",
    "Double",
    "ErrorInfo",
    "FailedPrecondition",
    "Field",
    "Float32",
    "Int32",
    "Int64",
    "Internal",
    "InvalidArgument",
    "Message",
    "Metadata",
    "NotFound",
    "OutOfRange",
    "Page",
    "PageQuery",
    "PermissionDenied",
    "PolywireError",
    "ResourceExhausted",
    "Retry",
    "Server",
    "SetupError",
    "UInt32",
    "UInt64",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "calling",
    "connect",
    "current",
    "delete",
    "get",
    "page_of",
    "patch",
    "post",
    "put",
    "rpc",
    "serve",
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
