"""Code of the user's own around calls, on the side that calls and on the side that answers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

from polywire.contract import Kind, Rpc

Side = Literal["client", "server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intercepted:
    """Which calls an interceptor is around: one method, on one side."""

    rpc: Rpc
    side: Side
    target: str = ""
    """Of a client: the service that is called, as the system file names it, or its address."""

    @property
    def method(self) -> str:
        """`shop.v1.Inventory/CheckStock`"""
        return self.rpc.full_name


class Interceptor:
    """Something around every call of a client or a server: derive a class, and override what it is for.

    On the client it is around the whole call, all attempts together; `calling(...)` around *proceed* sets metadata and
    time. On the server it runs in the call's own task once its caller has been admitted and the request is decoded;
    `current()` is the call. What it returns must be what the contract says; what it raises goes where an error of the
    handler, or of the call, would go. It may call *proceed* not at all, or, on the client, several times.

    One object serves all calls, at the same time.
    """

    async def unary(self, call: Intercepted, request: Any, proceed: Callable[[Any], Awaitable[Any]]) -> Any:
        """A method with one request, None where it takes none, and one answer."""
        return await proceed(request)

    async def collect(
        self, call: Intercepted, requests: AsyncIterator[Any], proceed: Callable[[AsyncIterator[Any]], Awaitable[Any]]
    ) -> Any:
        """A method with a stream of requests, and one answer."""
        return await proceed(requests)

    async def stream(
        self, call: Intercepted, request: Any, proceed: Callable[[Any], AsyncIterator[Any]]
    ) -> AsyncIterator[Any]:
        """A method with a stream of answers; *request* is a message (or None), or the stream of them where both sides
        stream. What *proceed* returned is closed when this ends, however it ends."""
        async for answer in proceed(request):
            yield answer


def around(interceptors: Sequence[Interceptor], call: Intercepted, function: Callable[..., Any]) -> Callable[..., Any]:
    """*function*, which answers *call*, with *interceptors* around it, the first one outermost.

    *function* and what is returned take the request or the stream of requests, or nothing where the method takes
    nothing.
    """
    if call.rpc.request is None and call.rpc.kind in (Kind.UNARY, Kind.SERVER_STREAM):
        wrapped: Callable[..., Any] = _folded(interceptors, call, lambda _request: function())
        return lambda: wrapped(None)
    return _folded(interceptors, call, function)


def _folded(interceptors: Sequence[Interceptor], call: Intercepted, function: Callable[..., Any]) -> Callable[..., Any]:
    for interceptor in reversed(interceptors):
        if call.rpc.streams_responses:
            function = partial(AroundStream, interceptor, call, function)
        else:
            one = interceptor.collect if call.rpc.streams_requests else interceptor.unary
            function = partial(_proceeding, one, call, function)
    return function


async def _proceeding(
    one: Callable[..., Awaitable[Any]], call: Intercepted, function: Callable[..., Awaitable[Any]], request: Any
) -> Any:
    return await one(call, request, function)


class AroundStream(AsyncIterator[Any]):
    """The answers of a streaming call as an interceptor lets them through.

    It sees to it that whatever the interceptor has opened is closed with it, also where its author forgot.
    """

    def __init__(
        self, interceptor: Interceptor, call: Intercepted, function: Callable[..., Any], request: Any = None
    ) -> None:
        opened: list[Any] = []

        # It knows nothing of this object, which is let go at once where nobody wants more answers.
        def proceed(request: Any) -> AsyncIterator[Any]:
            answers: AsyncIterator[Any] = function(request)
            opened.append(answers)
            return answers

        self._opened = opened
        self._answers: AsyncIterator[Any] = interceptor.stream(call, request, proceed)

    def __aiter__(self) -> AroundStream:
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._answers)
        except BaseException:
            await self.aclose()
            raise

    def cancel(self) -> None:
        """End the call of a client. May be called at any time, twice."""
        for answers in self._opened:
            answers.cancel()

    async def aclose(self) -> None:
        """Run what the interceptor has in its `finally`, then close what it opened. May be called twice."""
        async with contextlib.AsyncExitStack() as stack:
            for answers in self._opened:
                stack.push_async_callback(_close, answers)
            await _close(self._answers)

    def __del__(self) -> None:
        for answers in self._opened:
            if isinstance(answers, Cancellable):
                answers.cancel()


@runtime_checkable
class Cancellable(Protocol):
    """The answers of a client's call."""

    def cancel(self) -> None: ...


async def _close(iterator: Any) -> None:
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()
