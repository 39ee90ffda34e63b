"""What is promised: messages, contracts and their rpcs."""

from polywire.contract.message import Message
from polywire.contract.rest import Route, delete, get, patch, post, put
from polywire.contract.rpc import Contract, Kind, Rpc, Service, contracts_of, rpc, service_of, wire_name

__all__ = [
    "Contract",
    "Kind",
    "Message",
    "Route",
    "Rpc",
    "Service",
    "contracts_of",
    "delete",
    "get",
    "patch",
    "post",
    "put",
    "rpc",
    "service_of",
    "wire_name",
]
