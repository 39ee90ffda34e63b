"""Typed clients: an object of the contract's own type whose methods call over a channel, or send a task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from polywire.bus.sending.enqueue import sender_of
from polywire.bus.sending.sender import Sender
from polywire.call_rules import Underway
from polywire.channel import Channel, Requests
from polywire.contract import Contract, Kind, Message, Rpc, Service, Task, service_of
from polywire.errors import CallError, SetupError
from polywire.interceptor import Intercepted, Interceptor, around
from polywire.wire.seam import ClientStream, Outgoing

C = TypeVar("C", bound=Contract)


class ResponseStream(AsyncIterator[Any]):
    """The answers of a streaming call, as an async iterator that is an object and not a generator.

    The call starts with the first message asked for. Leaving the loop and letting go of the stream, cancelling the task
    that waits, or `cancel()` resets it and cancels the handler. One task reads.
    """

    def __init__(self, channel: Channel, rpc: Rpc, request: Message | AsyncIterator[Message] | None) -> None:
        self._channel = channel
        self._rpc = rpc
        self._request = request
        self._stream: ClientStream | None = None
        self._outgoing: Outgoing | None = None
        self._underway: Underway | None = None
        self._waiting = True
        """For the first answer."""
        self._requests: Requests | None = None
        self._sending: asyncio.Task[None] | None = None
        self._started = 0.0
        self._over = False

    def __aiter__(self) -> ResponseStream:
        return self

    async def __anext__(self) -> Any:
        if self._over:
            raise StopAsyncIteration
        try:
            if self._stream is None:
                await self._open()
            assert self._stream is not None  # noqa: S101 - _open sets it or raises
            if not self._requests_failed():
                answer = await self._stream.receive()
                if self._waiting:
                    self._first_answer()
                return answer
        except StopAsyncIteration:
            if not self._requests_failed():
                self._finish("ok")
                raise
        except CallError as error:
            if not self._requests_failed():
                if self._outgoing is not None:
                    self._channel.explained(error, self._outgoing)
                self._finish(error.code, error)
                raise
        except BaseException:
            self.cancel()
            raise
        # Here, where it is nobody's context: that the call was given up for it is no news.
        self.cancel()
        assert self._sending is not None  # noqa: S101 - the requests failed as they were sent
        return self._sending.result()

    def _requests_failed(self) -> bool:
        """The requests' own iterator raised something, which is what the caller wants to know."""
        requests, sending = self._requests, self._sending
        if self._over or requests is None or sending is None:
            return False
        return sending.done() and requests.error is not None

    async def _open(self) -> None:
        self._started = self._channel.now()
        self._outgoing, self._stream, self._underway = await self._channel.open(self._rpc)
        if self._rpc.streams_requests:
            self._requests = Requests(cast("AsyncIterator[Message]", self._request))
            self._sending = asyncio.get_running_loop().create_task(self._pump(self._stream, self._requests))
        else:
            await self._stream.send(cast("Message | None", self._request))
            self._stream.end_requests()

    def _first_answer(self) -> None:
        self._waiting = False
        if self._underway is not None:
            self._underway.answered()

    @staticmethod
    async def _pump(stream: ClientStream, requests: Requests) -> None:
        try:
            await requests.send_all(stream)
        except BaseException:
            # The requests' own iterator failed: wake whoever reads answers, who then finds this exception.
            stream.cancel()
            raise

    def _finish(self, code: str, error: CallError | None = None) -> None:
        if self._over:
            return
        self._over = True
        if self._underway is not None:
            self._underway.ended(error)
        if self._sending is not None:
            self._sending.cancel()
        if self._outgoing is not None:
            self._channel.tell(self._outgoing)
        self._channel.count(self._rpc, code, self._channel.now() - self._started)

    def cancel(self) -> None:
        """End the call. May be called at any time, twice."""
        if self._stream is not None and not self._over:
            if self._underway is not None:
                self._underway.given_up()
            self._stream.cancel()
            self._finish("cancelled")
        self._over = True

    async def aclose(self) -> None:
        """As `cancel`, for `contextlib.aclosing`."""
        self.cancel()

    def __del__(self) -> None:
        if not self._over and self._stream is not None:
            if self._underway is not None:
                self._underway.given_up()
            self._stream.cancel()
            if self._sending is not None and not self._sending.get_loop().is_closed():
                self._sending.cancel()


def client_for(
    contract: type[C],
    channel: Channel | None,
    sender: Sender | None = None,
    interceptors: Sequence[Interceptor] = (),
) -> C:
    """A client of *contract*: an object of that type whose methods call over *channel*, with *interceptors* around
    the calls, and send its tasks by *sender*.

    A contract without rpcs needs no channel, one without tasks no sender; a method whose half is missing raises
    SetupError. Raises ContractError where the contract could not travel, or its policies do not go together.
    """
    known = _client_classes.get(contract)
    if known is None:
        known = _client_classes[contract] = _client_class(contract)
    client = known.__new__(known)
    if channel is None and service_of(contract).rpcs:
        channel = cast(Channel, _NoChannel())
    elif channel is not None:
        for rpc in service_of(contract).rpcs.values():
            channel.prepare(rpc)
    client.__dict__["_channel"] = channel
    client.__dict__["_sender"] = sender
    if interceptors and channel is not None:
        _intercept(client, service_of(contract), channel.target, interceptors)
    return cast(C, client)


def _intercept(client: Contract, service: Service, target: str, interceptors: Sequence[Interceptor]) -> None:
    """Put *interceptors* around the methods that call; those of this client, not of its class."""
    for rpc in service.rpcs.values():
        call = Intercepted(rpc=rpc, side="client", target=target)
        client.__dict__[rpc.attribute] = _named(around(interceptors, call, getattr(client, rpc.attribute)), rpc)


class _NoChannel:
    """Of a client that was made for its tasks alone."""

    def __getattr__(self, name: str) -> Any:
        raise SetupError("An rpc was not called: its client was made for tasks alone, and has no address.")


_client_classes: dict[type[Contract], type[Contract]] = {}


def _client_class(contract: type[Contract]) -> type[Contract]:
    service = service_of(contract)
    methods = {rpc.attribute: _method(rpc) for rpc in service.rpcs.values()}
    methods |= {task.attribute: _task_method(task) for task in service.tasks.values()}
    return type(f"{contract.__name__}Client", (contract,), {"__doc__": service.doc, **methods})


def _task_method(task: Task) -> Callable[..., Any]:
    """A client's method for a task: sends it, and is back once it is durable."""
    if task.response is not None:

        def refuse(self: Any, *arguments: object) -> Awaitable[Any]:
            raise TypeError(
                f"{task.full_name} was not sent: it has a result, which is there later. Send it with "
                f"`receipt = await enqueue(client.{task.attribute}, ...)`, and then `await receipt.result()`."
            )

        made: Callable[..., Any] = refuse
    elif task.request is None:

        async def send_without(self: Any) -> None:
            await sender_of(self, task).send(task, None)

        made = send_without
    else:

        async def send(self: Any, message: Message) -> None:
            await sender_of(self, task).send(task, message)

        made = send
    return _named(made, task)


def _named(made: Callable[..., Any], declared: Rpc | Task) -> Callable[..., Any]:
    made.__name__ = declared.attribute
    made.__qualname__ = f"{declared.service}.{declared.attribute}"
    made.__doc__ = declared.doc
    made.__client_method__ = declared  # type: ignore[attr-defined]  # for `enqueue`, which finds its task by it
    return made


def _method(rpc: Rpc) -> Callable[..., Any]:
    """A client's method: checks what it is given, and hands it to the channel."""
    expected = rpc.request
    if rpc.kind is Kind.UNARY and expected is None:

        def call_without(self: Any) -> Awaitable[Any]:
            return cast("Awaitable[Any]", self._channel.unary(rpc, None))

        made: Callable[..., Any] = call_without
    elif rpc.kind is Kind.UNARY:

        def call(self: Any, request: Message) -> Awaitable[Any]:
            if type(request) is not expected:
                _check_argument(rpc, request)
            return cast("Awaitable[Any]", self._channel.unary(rpc, request))

        made = call
    elif rpc.kind is Kind.CLIENT_STREAM:

        def collect(self: Any, requests: AsyncIterator[Message]) -> Awaitable[Any]:
            _check_stream(rpc, requests)
            return cast("Awaitable[Any]", self._channel.collect(rpc, requests))

        made = collect
    elif rpc.kind is Kind.BIDIRECTIONAL:

        def converse(self: Any, requests: AsyncIterator[Message]) -> ResponseStream:
            _check_stream(rpc, requests)
            return ResponseStream(self._channel, rpc, requests)

        made = converse
    else:

        def watch(self: Any, *request: Message) -> ResponseStream:
            if expected is not None:
                _check_argument(rpc, *request)
            return ResponseStream(self._channel, rpc, request[0] if request else None)

        made = watch
    return _named(made, rpc)


def _check_argument(rpc: Rpc, request: object = None) -> None:
    if rpc.request is None or not isinstance(request, rpc.request):
        wanted = "no argument" if rpc.request is None else f"a {rpc.request.__qualname__}"
        raise TypeError(f"{rpc.full_name} was not called: it takes {wanted}, not a {type(request).__qualname__}.")


def _check_stream(rpc: Rpc, requests: object) -> None:
    if not hasattr(requests, "__anext__"):
        raise TypeError(
            f"{rpc.full_name} was not called: it takes an async iterator of messages, not a "
            f"{type(requests).__qualname__}. Call the generator function, and give what it returns."
        )
