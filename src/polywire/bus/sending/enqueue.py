"""Sending a task with options: `enqueue(self.images.resize, Resize(...), delay=60)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, overload

from polywire.bus.core import new_id
from polywire.bus.sending.options import Options
from polywire.bus.sending.receipts import DoneReceipt, Receipt
from polywire.bus.sending.sender import Sender
from polywire.contract import Contract, Message, Rpc, Task, contracts_of, service_of
from polywire.errors import SetupError

M = TypeVar("M", bound=Message)
R = TypeVar("R")


@overload
async def enqueue(
    method: Callable[[M], Coroutine[Any, Any, R]],
    message: M,
    /,
    *,
    id: str | None = None,
    delay: float | None = None,
    key: str | None = None,
    expires: float | None = None,
    priority: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Receipt[R]: ...
@overload
async def enqueue(
    method: Callable[[], Coroutine[Any, Any, R]],
    /,
    *,
    id: str | None = None,
    delay: float | None = None,
    key: str | None = None,
    expires: float | None = None,
    priority: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Receipt[R]: ...
async def enqueue(
    method: Callable[..., Coroutine[Any, Any, Any]],
    message: Message | None = None,
    /,
    *,
    id: str | None = None,
    delay: float | None = None,
    key: str | None = None,
    expires: float | None = None,
    priority: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Receipt[Any]:
    """Send a task, *method* of a client, and return its receipt once it is durable.

    *id*, made here if it is not given, stays the same when a task is sent again; *delay* in seconds; *key*, in place of
    the declared field's value; *expires*, in seconds from now, after which no handler starts any more; *priority*,
    where its queue has levels; *headers*, for its handler. Raises as `Bus.publish`.

    A method that belongs to no client, such as that of a fake in a test, is awaited at once; its result is in the
    receipt.
    """
    found = client_task(method)
    if found is None:
        return await _done_at_once(method, message, id)
    sender, task = found
    options = Options(id=id, delay=delay, key=key, expires=expires, priority=priority, headers=headers)
    return Receipt(sender, task, await sender.send(task, message, options, wants_result=True))


async def enqueue_all(
    method: Callable[[M], Coroutine[Any, Any, R]],
    messages: Sequence[M],
    /,
    *,
    ids: Sequence[str] | None = None,
    delay: float | None = None,
    key: str | None = None,
    expires: float | None = None,
    priority: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> list[Receipt[R]]:
    """Send a task many times, with the same options, and return the receipts once all are durable.

    Raises PartlySent where some were not confirmed, with the error of each by index.
    """
    found = client_task(method)
    if found is None:
        given: Sequence[str | None] = [None] * len(messages) if ids is None else ids
        return [await _done_at_once(method, message, own) for message, own in zip(messages, given, strict=True)]
    sender, task = found
    options = Options(delay=delay, key=key, expires=expires, priority=priority, headers=headers)
    sent = await sender.send_all(task, messages, options, ids=ids, wants_result=True)
    return [Receipt(sender, task, own) for own in sent]


@overload
def receipt(method: Callable[[M], Coroutine[Any, Any, R]], id: str, /) -> Receipt[R]: ...
@overload
def receipt(method: Callable[[], Coroutine[Any, Any, R]], id: str, /) -> Receipt[R]: ...
def receipt(method: Callable[..., Coroutine[Any, Any, Any]], id: str, /) -> Receipt[Any]:
    """The receipt of a task that was sent before, here or elsewhere, from the id of its message."""
    found = client_task(method)
    if found is None:
        raise TypeError(
            f"{_title(method)} belongs to no client, so nothing was sent with it that could be found again by "
            f"id {id!r}."
        )
    sender, task = found
    return Receipt(sender, task, id)


def client_task(method: Callable[..., Any]) -> tuple[Sender, Task] | None:
    """The task that *method* of a client sends, with its sender; None where it belongs to no client.

    Raises TypeError where it is an rpc, and SetupError where its client has no wire for tasks.
    """
    function = getattr(method, "__func__", method)
    declared = getattr(function, "__client_method__", None)
    if declared is None:
        _refuse_rpc(declared_by(method))
        return None
    _refuse_rpc(declared)
    return sender_of(getattr(method, "__self__", None), declared), declared


def sender_of(client: Any, task: Task) -> Sender:
    sender: Sender | None = client.__dict__.get("_sender")
    if sender is None:
        raise SetupError(
            f"{task.full_name} was not sent: this client has no wire for tasks. Ask for it in the constructor of a "
            "service, or of `open_bus`: `connect` reaches rpcs alone."
        )
    return sender


def declared_by(method: Callable[..., Any]) -> Rpc | Task | None:
    """What the contract says of a method of an object that implements it, such as a fake."""
    owner = getattr(method, "__self__", None)
    if not isinstance(owner, Contract):
        return None
    name = getattr(method, "__name__", "")
    for contract in contracts_of(type(owner)):
        service = service_of(contract)
        found = service.tasks.get(name) or service.rpcs.get(name)
        if found is not None:
            return found
    return None


def _refuse_rpc(declared: Rpc | Task | None) -> None:
    if isinstance(declared, Rpc):
        raise TypeError(
            f"{declared.full_name} was not sent: it is an rpc, which is called and awaited. "
            "Declare it with @task to have it done later."
        )


async def _done_at_once(method: Callable[..., Any], message: Message | None, id: str | None) -> Receipt[Any]:
    answer = method() if message is None else method(message)
    value = await answer if inspect.isawaitable(answer) else answer
    task = declared_by(method)
    return DoneReceipt(task if isinstance(task, Task) else None, id or new_id(), value)


def _title(method: Any) -> str:
    return str(getattr(method, "__qualname__", method))
