"""A wire with trouble on it, put around another one while faults are switched on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.codec import codec_for
from polywire.contract import Message
from polywire.errors import BY_CODE, CallError, InvalidArgument, Unavailable
from polywire.policy.faults import Fault
from polywire.policy.levels import spellings
from polywire.wire.seam import ClientStream, EndpointWire, Outgoing, not_in_time


class Edge:
    """The calls of one service to another, and the faults between them now; its wires look here at each call."""

    def __init__(self, caller: str, target: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.caller = caller
        self.target = target
        self.clock = clock
        self.faults: tuple[Fault, ...] = ()
        self._waiting: set[asyncio.Future[None]] = set()
        """Who waits for the faults to change."""
        self._free_at: dict[Fault, float] = {}
        """When what passes through a narrow link will have passed."""

    def switch(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        self._free_at = {fault: at for fault, at in self._free_at.items() if fault in self.faults}
        for woken in self._waiting:
            _wake(woken)

    def around(self, wire: EndpointWire) -> EndpointWire:
        """*wire* with the faults of this edge on it."""
        return wire if isinstance(wire, FaultyWire) else FaultyWire(wire, self)

    def without(self, wire: EndpointWire) -> EndpointWire:
        """What `around` was put around."""
        return wire.inner if isinstance(wire, FaultyWire) else wire

    def met(self, outgoing: Outgoing, endpoint: str) -> list[Fault]:
        """The faults that this call meets."""
        methods = spellings(outgoing.rpc)
        return [fault for fault in self.faults if fault.meets(methods, endpoint, self.clock.random)]

    async def wait(self, seconds: float, outgoing: Outgoing) -> None:
        """Let time pass, at most until the deadline. Raises DeadlineExceeded there."""
        if outgoing.deadline is not None:
            left = outgoing.deadline - self.clock.monotonic()
            if left <= seconds:
                await self.clock.sleep(max(0.0, left))
                raise not_in_time(outgoing)
        await self.clock.sleep(seconds)

    async def change(self, outgoing: Outgoing) -> None:
        """Wait until other faults are switched on, at most until the deadline. Raises DeadlineExceeded there."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = None
        if outgoing.deadline is not None:
            left = outgoing.deadline - self.clock.monotonic()
            if left <= 0:
                raise not_in_time(outgoing)
            timer = self.clock.call_later(left, partial(_wake, woken))
        self._waiting.add(woken)
        try:
            await woken
        finally:
            self._waiting.discard(woken)
            if timer is not None:
                timer.cancel()

    async def nothing(self, outgoing: Outgoing) -> None:
        """Hear nothing until the deadline. Raises DeadlineExceeded there; without one it does not end by itself."""
        if outgoing.deadline is None:
            await asyncio.get_running_loop().create_future()
        else:
            await self.wait(outgoing.deadline - self.clock.monotonic(), outgoing)

    async def carry(self, faults: Sequence[Fault], size: int, outgoing: Outgoing) -> None:
        """Let *size* bytes pass through links that are narrow, after those that came before."""
        for fault in faults:
            if fault.bandwidth is not None:
                now = self.clock.monotonic()
                passed = max(now, self._free_at.get(fault, now)) + size / fault.bandwidth
                self._free_at[fault] = passed
                await self.wait(passed - now, outgoing)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


class FaultyWire:
    """*inner*, on which calls meet the faults of an edge. What is switched on later meets the calls after that.

    It is equal to *inner*: what is known of an endpoint, such as that it is left out, holds with faults and without.
    """

    def __init__(self, inner: EndpointWire, edge: Edge) -> None:
        self.inner = inner
        self.name = inner.name
        self.address = inner.address
        self._edge = edge
        self._held = 0
        """Calls that the wire beneath does not know of yet, or any more."""

    def __eq__(self, other: object) -> bool:
        return self.inner == (other.inner if isinstance(other, FaultyWire) else other)

    def __hash__(self) -> int:
        return hash(self.inner)

    @property
    def in_flight(self) -> int:
        return self.inner.in_flight + self._held

    @property
    def usable(self) -> bool:
        return self.inner.usable

    def encode(self, rpc: Any, request: Message | None) -> Any:
        # As the wire beneath has it: faults may be switched off before the next attempt.
        return self.inner.encode(rpc, request)

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Message | None:
        faults = self._edge.met(outgoing, self.address)
        await self._before(faults, outgoing, wait_for_ready)
        await self._held_up(self._edge.carry(faults, _size(encoded), outgoing))
        deaf = any(fault.drop == "answer" for fault in faults)
        outgoing = _retimed(outgoing, self._edge.clock)
        try:
            answer = await self.inner.unary(outgoing, encoded, wait_for_ready=wait_for_ready)
        except CallError as error:
            if deaf and _came_back(error, outgoing):
                await self._held_up(self._edge.nothing(outgoing))
            raise
        if deaf:
            await self._held_up(self._edge.nothing(outgoing))
        if any(fault.bandwidth is not None for fault in faults):
            await self._held_up(self._edge.carry(faults, _length(outgoing.rpc.response, answer), outgoing))
        return answer

    async def stream(self, outgoing: Outgoing, *, wait_for_ready: bool = False) -> ClientStream:
        faults = self._edge.met(outgoing, self.address)
        await self._before(faults, outgoing, wait_for_ready)
        deaf = any(fault.drop == "answer" for fault in faults)
        outgoing = _retimed(outgoing, self._edge.clock)
        try:
            stream = await self.inner.stream(outgoing, wait_for_ready=wait_for_ready)
        except CallError as error:
            if deaf and _came_back(error, outgoing):
                await self._held_up(self._edge.nothing(outgoing))
            raise
        if deaf or any(fault.bandwidth is not None for fault in faults):
            return FaultyStream(stream, outgoing, self._edge, faults)
        return stream

    async def _held_up(self, trouble: Any) -> None:
        self._held += 1
        try:
            await trouble
        finally:
            self._held -= 1

    async def _before(self, faults: Sequence[Fault], outgoing: Outgoing, wait_for_ready: bool) -> None:
        """What happens to a call before anything of it is sent."""
        partitions = [fault for fault in faults if fault.partition]
        if partitions:
            await self._held_up(self._apart(partitions, outgoing, wait_for_ready))
        for fault in faults:
            if fault.delay is not None:
                await self._held_up(self._edge.wait(fault.delay, outgoing))
            if fault.error is not None:
                raise self._error(fault.error, outgoing)
            if fault.drop == "request":
                await self._held_up(self._edge.nothing(outgoing))

    async def _apart(self, partitions: Sequence[Fault], outgoing: Outgoing, wait_for_ready: bool) -> None:
        """The target cannot be reached: an error, or a wait until none of *partitions*, which were met, is there."""
        while wait_for_ready and any(fault in self._edge.faults for fault in partitions):
            await self._edge.change(outgoing)
        if not wait_for_ready:
            raise Unavailable(
                f"{self.address} was not reached: a fault keeps {self._edge.caller!r} and {self._edge.target!r} apart.",
                reached="no",
            )

    def _error(self, code: str, outgoing: Outgoing) -> CallError:
        return BY_CODE[code](
            f"{outgoing.rpc.full_name} failed: a fault is switched on from {self._edge.caller!r} to "
            f"{self._edge.target!r}."
        )

    async def drain(self) -> None:
        await self.inner.drain()

    async def close(self) -> None:
        await self.inner.close()


class FaultyStream:
    """A stream over a link that is narrow, or on which answers are lost."""

    def __init__(self, inner: ClientStream, outgoing: Outgoing, edge: Edge, faults: Sequence[Fault]) -> None:
        self._inner = inner
        self._outgoing = outgoing
        self._edge = edge
        self._faults = faults
        self._deaf = any(fault.drop == "answer" for fault in faults)
        self._cancelled = False
        self._failure: CallError | None = None
        """What the call ended with on the link; the stream beneath was only told to end."""

    async def send(self, message: Message | None) -> None:
        await self._pass(self._edge.carry(self._faults, _length(self._outgoing.rpc.request, message), self._outgoing))
        try:
            await self._inner.send(message)
        except CallError as error:
            await self._ended(error)
            raise

    def end_requests(self) -> None:
        self._inner.end_requests()

    async def receive(self) -> Message | None:
        try:
            message = await self._inner.receive()
        except (CallError, StopAsyncIteration) as end:
            await self._ended(end)
            raise
        if self._deaf:
            await self._pass(self._edge.nothing(self._outgoing))
        await self._pass(self._edge.carry(self._faults, _length(self._outgoing.rpc.response, message), self._outgoing))
        return message

    async def _ended(self, end: CallError | StopAsyncIteration) -> None:
        """The stream beneath came to its *end*. Raises what the call ended with on the link, if that is not the same;
        where answers are lost, that one is lost too."""
        if self._failure is not None:
            raise self._failure from None
        if self._deaf and not self._cancelled and _came_back(end, self._outgoing):
            await self._pass(self._edge.nothing(self._outgoing))

    async def _pass(self, link: Coroutine[Any, Any, None]) -> None:
        """Wait for the link. Where the time is up on it, the call is over in both directions."""
        try:
            await link
        except CallError as error:
            self._failure = self._failure or error
            self._inner.cancel()
            raise self._failure from None

    def cancel(self) -> None:
        self._cancelled = True
        self._inner.cancel()


def _came_back(end: CallError | StopAsyncIteration, outgoing: Outgoing) -> bool:
    """Whether a call ended with what the other side said; it did not where it was never sent, or the connection broke
    before an answer began."""
    return outgoing.headers is not None or not isinstance(end, Unavailable | InvalidArgument)


def _retimed(outgoing: Outgoing, clock: Clock) -> Outgoing:
    """*outgoing* with the time that is left after it was held up, and no answer yet."""
    if outgoing.deadline is not None:
        outgoing.timeout = max(0.0, outgoing.deadline - clock.monotonic())
    outgoing.headers = None
    return outgoing


def _size(encoded: Any) -> int:
    """Bytes of a request as its wire has it: bytes, or a tuple with them."""
    if isinstance(encoded, tuple):
        return sum(map(_size, encoded))
    return len(encoded) if isinstance(encoded, bytes) else 0


def _length(kind: Any, message: Message | None) -> int:
    return len(codec_for(kind, "proto").encode(message))
