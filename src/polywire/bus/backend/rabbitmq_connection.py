"""Connections to RabbitMQ, in a thread of their own: heartbeats go on where a handler blocks the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import ssl
import struct
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout
from pika.channel import Channel
from pika.exceptions import (
    AMQPError,
    AMQPHeartbeatTimeout,
    ChannelClosed,
    ConnectionClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    StreamLostError,
)
from pika.frame import decode_frame

from polywire.bus.backend.rabbitmq_messages import frames
from polywire.bus.core.urls import masked
from polywire.errors import (
    BackendLost,
    BackendUnreachable,
    DeliveryError,
    MessageRefused,
    PublishUnknown,
    SetupError,
)

LOGGER = logging.getLogger("polywire.bus.rabbitmq")

T = TypeVar("T")

MAX_OUTSTANDING = 1024
"""Publishes that wait for their confirmation at a time; more wait their turn."""
MAX_WAITING = 10_000
"""Publishes that wait their turn, or for the connection to come back; more are refused at once."""
PUBLISH_TIMEOUT = 30.0
"""Seconds for a confirmation where the sender names none."""
CONNECT_TIMEOUT = 10.0
HEARTBEAT = 20
"""Seconds; the broker gives up a silent machine after two of them."""
GRACE = 0.1
"""Seconds between the last acknowledgement on a channel and its end."""
NO_TAG = 2**63 - 1
"""A delivery tag that no channel comes to."""
BACKOFF = (0.1, 5.0)
"""Seconds: the first wait before connecting again, and the longest."""


# ---- where it is -------------------------------------------------------------------------------------------------

_OPTIONS = ("ca_file", "cert_file", "key_file", "password_file", "heartbeat", "connect_timeout")
_ENVIRONMENT = "POLYWIRE_AMQP_"
"""Before an option's name in upper case, where the URL does not name it: POLYWIRE_AMQP_CA_FILE; and ..._PASSWORD."""


@dataclass(frozen=True, slots=True)
class Address:
    """A broker as its URL names it. Its text has no password."""

    shown: str
    parameters: pika.ConnectionParameters = field(repr=False)

    def __str__(self) -> str:
        return self.shown


def parse(url: str) -> Address:
    """From `amqp://user:password@host:port/vhost?heartbeat=20` or `amqps:`. Raises SetupError."""
    shown = masked(url)
    try:
        parts = urlsplit(url)
        port = parts.port
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True))
    except ValueError:
        raise _wrong(shown, "it is no URL") from None
    if not parts.hostname:
        raise _wrong(shown, "it names no host")
    if unknown := [name for name in options if name not in _OPTIONS]:
        raise _wrong(shown, f"{unknown[0]!r} is no option of it. Choose from: {', '.join(_OPTIONS)}")
    for name in _OPTIONS:
        if name not in options and (value := os.environ.get(_ENVIRONMENT + name.upper())):
            options[name] = value
    vhost = unquote(parts.path[1:]) or "/"
    secure = parts.scheme.lower() == "amqps"
    timeout = _number(shown, options, "connect_timeout", CONNECT_TIMEOUT)
    parameters = pika.ConnectionParameters(
        host=parts.hostname,
        port=port or (5671 if secure else 5672),
        virtual_host=vhost,
        credentials=pika.PlainCredentials(
            unquote(parts.username or "guest"), _password(shown, parts.password, options)
        ),
        heartbeat=int(_number(shown, options, "heartbeat", HEARTBEAT)),
        socket_timeout=timeout,
        stack_timeout=timeout,
        ssl_options=_tls(shown, parts.hostname, options) if secure else None,
        client_properties={"product": "polywire"},
    )
    return Address(shown, parameters)


def _wrong(shown: str, reason: str) -> SetupError:
    return SetupError(f"{shown!r} was not opened: {reason}. Write it as 'amqp://user:password@host:5672/vhost'.")


def _number(shown: str, options: dict[str, str], name: str, default: float) -> float:
    text = options.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1 <= number <= 3600:
        raise _wrong(shown, f"{name}={text!r} is no number of seconds from 1 to 3600")
    return number


def _password(shown: str, password: str | None, options: dict[str, str]) -> str:
    if password is not None:
        return unquote(password)
    if path := options.get("password_file"):
        try:
            with open(path) as file:
                return file.read().strip()
        except OSError as error:
            raise _wrong(shown, f"its password was not read from {path!r}: {error.strerror}") from None
    return os.environ.get(_ENVIRONMENT + "PASSWORD", "guest")


def _tls(shown: str, host: str, options: dict[str, str]) -> pika.SSLOptions:
    try:
        context = ssl.create_default_context(cafile=options.get("ca_file"))
    except OSError as error:
        raise _wrong(shown, f"ca_file={options['ca_file']!r} was not read: {error.strerror or error}") from None
    if cert := options.get("cert_file"):
        try:
            context.load_cert_chain(cert, options.get("key_file"))
        except OSError as error:
            raise _wrong(shown, f"cert_file={cert!r} was not read: {error.strerror or error}") from None
    return pika.SSLOptions(context, host)


# ---- two threads -------------------------------------------------------------------------------------------------


class Handover:
    """Calls from the thread of one event loop to be made in that of another, as many as come together at one go.

    The other thread is woken at the end of the turn: woken by the first call, it would contend for the interpreter with
    those that are still to come.
    """

    def __init__(self, here: asyncio.AbstractEventLoop, there: asyncio.AbstractEventLoop) -> None:
        self._here = here
        self._there = there
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False

    def put(self, function: Callable[..., object], *arguments: Any) -> None:
        """From the thread of *here*."""
        self._calls.append((function, arguments))
        if not self._woken:
            self._woken = True
            self._here.call_soon(self._wake)

    def _wake(self) -> None:
        # A loop that is gone has nobody left who would want to know.
        with contextlib.suppress(RuntimeError):
            self._there.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        self._woken = False  # Before looking: who comes after this wakes us again.
        calls = self._calls
        while calls:
            function, arguments = calls.popleft()
            function(*arguments)


class Line:
    """The thread with the event loop in which connections live, and the way there and back."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        own = asyncio.get_running_loop()
        self.there = Handover(own, self.loop)
        self.back = Handover(self.loop, own)
        self._thread = threading.Thread(target=self._run, name="polywire-rabbitmq", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* there and wait for it here; cancelling this cancels it."""
        try:
            await asyncio.sleep(0)  # What was put before is on its way then, and is done first.
        except asyncio.CancelledError:
            work.close()
            raise
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_in_turn(work), self.loop))

    async def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        await asyncio.to_thread(self._thread.join)


async def _in_turn(work: Coroutine[Any, Any, T]) -> T:
    """What *work* was told to hand back is handed back before its result."""
    try:
        return await work
    finally:
        await asyncio.sleep(0)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


# ---- one connection ----------------------------------------------------------------------------------------------

_FRAME = struct.Struct(">BHI")
_U64 = struct.Struct(">Q")
_DELIVER = b"\x00\x3c\x00\x3c"
_RETURN = b"\x00\x3c\x00\x32"
_ACK = b"\x00\x3c\x00\x50"
_NACK = b"\x00\x3c\x00\x78"


class Incoming(NamedTuple):
    """A message as the broker hands it out."""

    tag: int
    redelivered: bool
    properties: bytes
    body: bytes


Sink = Callable[[Incoming], None]


class Confirms:
    """What a publishing channel hears about what was published on it."""

    def confirmed(self, tag: int, multiple: bool, positive: bool) -> None:
        raise NotImplementedError

    def returned(self, reply: str, routing_key: str, properties: bytes) -> None:
        raise NotImplementedError


class Connection(AsyncioConnection):
    """pika's, with deliveries, returns and confirmations taken from the bytes directly.

    pika makes six objects of each message and decodes every header twice; deliveries of channels with a sink and
    confirmations do without. Everything else is pika's own.
    """

    def __init__(self, parameters: pika.ConnectionParameters, **callbacks: Any) -> None:
        self.sinks: dict[int, Sink] = {}
        self.confirms: dict[int, Confirms] = {}
        self._partial: dict[int, _Partial] = {}
        super().__init__(parameters, **callbacks)

    def write(self, data: bytes) -> None:
        """Frames that were made elsewhere. Nothing is written to a connection that is gone: its link says so."""
        if data and self._transport is not None:  # pyright: ignore[reportAttributeAccessIssue]  # pika's types leave it out
            self._output_marshaled_frames((data,))  # pyright: ignore[reportAttributeAccessIssue]  # pika's types leave it out

    @property
    def frame_max(self) -> int:
        return int(self.params.frame_max or 131_072)

    def _on_data_available(self, data_in: bytes) -> None:
        buffer = self._frame_buffer + data_in if self._frame_buffer else data_in
        at, end = 0, len(buffer)
        while end - at >= 8:
            kind, channel, size = _FRAME.unpack_from(buffer, at)
            stop = at + 8 + size
            if buffer[at : at + 4] == b"AMQP":
                stop = at + 8
            elif stop > end:
                break
            if not self._taken(kind, channel, buffer, at + 7, stop - 1):
                self._frame_buffer = b""
                _, frame = decode_frame(buffer[at:stop])
                if frame is not None:
                    self._process_frame(frame)  # pyright: ignore[reportAttributeAccessIssue]  # pika's types leave it out
            else:
                self.frames_received += 1
            self.bytes_received += stop - at
            at = stop
        self._frame_buffer = buffer[at:]

    def _taken(self, kind: int, channel: int, buffer: bytes, at: int, stop: int) -> bool:
        """Whether the frame with its payload from *at* to *stop* was one of those that we read ourselves."""
        if kind == 1:
            method = buffer[at : at + 4]
            if method == _DELIVER and channel in self.sinks:
                at += 5 + buffer[at + 4]
                self._partial[channel] = _Partial(_U64.unpack_from(buffer, at)[0], buffer[at + 8] != 0)
                return True
            if method == _RETURN and channel in self.confirms:
                self._partial[channel] = _returned(buffer, at + 6)
                return True
            if method in (_ACK, _NACK) and channel in self.confirms:
                (tag,) = _U64.unpack_from(buffer, at + 4)
                self.confirms[channel].confirmed(tag, bool(buffer[at + 12] & 1), method == _ACK)
                return True
            return False
        partial = self._partial.get(channel)
        if partial is None:
            return False
        if kind == 2:
            (partial.missing,) = _U64.unpack_from(buffer, at + 4)
            partial.properties = buffer[at + 12 : stop]
        elif kind == 3:
            partial.chunks.append(buffer[at:stop])
            partial.missing -= stop - at
        if partial.missing <= 0:
            del self._partial[channel]
            self._finished(channel, partial)
        return True

    def _finished(self, channel: int, partial: _Partial) -> None:
        if partial.reply is not None:
            self.confirms[channel].returned(partial.reply, partial.routing_key, partial.properties)
        elif (sink := self.sinks.get(channel)) is not None:
            body = partial.chunks[0] if len(partial.chunks) == 1 else b"".join(partial.chunks)
            sink(Incoming(partial.tag, partial.redelivered, partial.properties, body))


@dataclass(slots=True)
class _Partial:
    tag: int
    redelivered: bool
    reply: str | None = None
    routing_key: str = ""
    missing: int = 0
    properties: bytes = b""
    chunks: list[bytes] = field(default_factory=list)


_ACKNOWLEDGEMENT = struct.Struct(">BHIIQBB")


def acknowledgement(channel: int, tag: int, *, multiple: bool) -> bytes:
    return _ACKNOWLEDGEMENT.pack(1, channel, 13, 0x003C0050, tag, multiple, 0xCE)


class Tags:
    """Delivery tags of one channel: which are settled, and how to say so in few words."""

    def __init__(self) -> None:
        self._all_up_to = 0
        self._beyond: set[int] = set()

    def settled(self, tags: Iterable[int]) -> tuple[int, list[int]]:
        """The highest of *tags* up to which now all are settled (0 where there is none), and the rest of *tags*."""
        new = sorted(tags)
        self._beyond.update(new)
        while self._all_up_to + 1 in self._beyond:
            self._all_up_to += 1
            self._beyond.discard(self._all_up_to)
        covered = bisect_right(new, self._all_up_to)
        return (new[covered - 1] if covered else 0), new[covered:]


def _returned(buffer: bytes, at: int) -> _Partial:
    texts = []
    for _ in range(3):  # reply text, exchange, routing key
        end = at + 1 + buffer[at]
        texts.append(buffer[at + 1 : end].decode("utf-8", "replace"))
        at = end
    return _Partial(0, False, texts[0], texts[2])


class Link:
    """One connection that is made again, with backoff, whenever it is lost. Lives in the thread of its Line.

    *opened* is awaited on each connection before it counts as open; *lost* is told why it broke.
    """

    def __init__(
        self,
        address: Address,
        opened: Callable[[Connection], Coroutine[Any, Any, None]],
        lost: Callable[[str], None],
    ) -> None:
        self._address = address
        self._opened = opened
        self._lost = lost
        self._keeper: asyncio.Task[None] | None = None
        self._gone: asyncio.Future[str] | None = None
        self._usable = asyncio.Event()
        self.connection: Connection | None = None
        self.problem = "it was never connected"
        self._blamed: str | None = None

    async def open(self) -> None:
        """Connect once, and stay connected from then on. Raises BackendUnreachable."""
        await self._connect()
        self._keeper = asyncio.create_task(self._keep())

    async def usable(self, timeout: float) -> Connection:
        """The connection, once there is one. Raises BackendUnreachable after *timeout* seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.connection is None:
                    await self._usable.wait()
        except TimeoutError:
            raise BackendUnreachable(
                f"RabbitMQ at '{self._address}' did not come back within {timeout:g} s: {self.problem}."
            ) from None
        return self.connection

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        connection, gone = self.connection, self._gone
        self._drop("it was closed")
        if connection is not None and gone is not None and not gone.done():
            with contextlib.suppress(AMQPError):
                connection.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await gone

    def fail(self, connection: Connection, reason: str) -> None:
        """Give a connection up that is of no use any more."""
        self._blamed = reason
        _abandon(connection)

    async def _keep(self) -> None:
        wait = BACKOFF[0]
        while True:
            if self._gone is not None:
                await asyncio.shield(self._gone)
            # Jittered, so that workers that lost their broker together do not come back together.
            await asyncio.sleep(wait * (0.5 + random.random() / 2))  # noqa: S311 - no secret
            try:
                await self._connect()
                wait = BACKOFF[0]
            except BackendUnreachable:
                self._gone = None
                wait = min(wait * 2, BACKOFF[1])

    def _broke(self, connection: object, gone: asyncio.Future[str], reason: str) -> None:
        reason, self._blamed = self._blamed or reason, None
        if self.connection is connection:
            self._drop(reason)
        _answer(gone, reason)

    def _drop(self, reason: str) -> None:
        self.problem = reason
        self._usable.clear()
        if self.connection is not None:
            self.connection = None
            self._lost(reason)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        gone: asyncio.Future[str] = loop.create_future()
        connection = Connection(
            self._address.parameters,
            on_open_callback=lambda _: _answer(opened, None),
            on_open_error_callback=lambda _, error: _fail(opened, _Failed(error)),
            on_close_callback=lambda broken, error: self._broke(broken, gone, _reason(error)),
            custom_ioloop=loop,
        )
        try:
            async with asyncio.timeout(float(self._address.parameters.stack_timeout or CONNECT_TIMEOUT) + 1):
                await opened
                await self._opened(connection)
        except (TimeoutError, AMQPError, _Failed, DeliveryError) as error:
            _abandon(connection)
            reason = error.reason if isinstance(error, _Failed) else _reason(error)
            self.problem = reason
            raise BackendUnreachable(f"RabbitMQ at '{self._address}' was not reached: {reason}.") from None
        except asyncio.CancelledError:
            _abandon(connection)
            raise
        self.connection, self._gone = connection, gone
        self._usable.set()


def _answer(future: asyncio.Future[T], result: T) -> None:
    """Where somebody still waits for it."""
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


class _Failed(Exception):
    def __init__(self, error: BaseException) -> None:
        self.reason = _reason(error)


def _abandon(connection: Connection) -> None:
    with contextlib.suppress(AMQPError):
        connection.close()


def _reason(error: BaseException) -> str:
    """In words, and without what pika knows about credentials."""
    for found in _nested(error):
        if isinstance(found, ProbableAuthenticationError):
            return "it refused the user or the password"
        if isinstance(found, ProbableAccessDeniedError):
            return "it refused access to the virtual host"
        if isinstance(found, ConnectionClosedByBroker | ChannelClosed):
            if "Login was refused" in found.reply_text:
                return "it refused the user or the password"
            return str(found.reply_text).rstrip(".")
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"TLS failed: {found.verify_message}"
        if isinstance(found, ssl.SSLError):
            return f"TLS failed: {found.reason}"
        if isinstance(found, AMQPHeartbeatTimeout):
            return "it sent no heartbeat"
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        if isinstance(found, TimeoutError | AMQPConnectorStackTimeout):
            return "it did not answer in time"
        if isinstance(found, StreamLostError):
            return "the connection was closed without a word"
    return str(error) or type(error).__name__


def _nested(error: BaseException) -> Iterator[BaseException]:
    """What pika wrapped, the innermost first."""
    inner = [*getattr(error, "exceptions", ()), getattr(error, "exception", None), *error.args]
    for each in inner:
        if isinstance(each, BaseException):
            yield from _nested(each)
    yield error


# ---- asking ------------------------------------------------------------------------------------------------------


class Asking:
    """A channel on which one thing is asked after the other. Closed by the broker when it refuses."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._waiting: asyncio.Future[Any] | None = None
        self._tags = Tags()
        self._acknowledged = -GRACE
        self.refused: str | None = None
        channel.add_on_close_callback(self._closed)

    async def ask(self, method: Callable[..., Any], **arguments: Any) -> Any:
        """Call a method of the channel that takes a callback. Raises Refused with the broker's words, BackendLost."""
        if not self.channel.is_open:
            raise BackendLost(f"RabbitMQ was not asked: {self.refused or 'the channel is closed'}.")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting = answer
        method(callback=lambda frame: _answer(answer, frame), **arguments)
        return await answer

    def acknowledge(self, tags: Iterable[int]) -> None:
        """Messages that came over this channel; as many as possible in one, which is one command to the queue."""
        up_to, rest = self._tags.settled(tags)
        number = self.channel.channel_number
        data = [acknowledgement(number, up_to, multiple=True)] if up_to else []
        data += [acknowledgement(number, tag, multiple=False) for tag in rest]
        connection = self.channel.connection
        if isinstance(connection, Connection):
            connection.write(b"".join(data))
        self._acknowledged = time.monotonic()

    def give_back(self, tags: Iterable[int]) -> None:
        """To the queue, which puts them at its end."""
        for tag in tags:
            self._tags.settled([tag])
            self.channel.basic_nack(tag, requeue=True)

    def close(self) -> None:
        if self.channel.is_open:
            self.channel.close()

    async def closed(self, *, in_order: bool = False) -> None:
        """Close it, and wait until the broker has put back what was not acknowledged; *in_order*: before the next
        consumer of a queue with a single active one gets anything."""
        if self.channel.is_closed:
            return
        # A channel that has more than 32 commands under way to a quorum queue keeps the next ones back for a moment,
        # and forgets them when it is closed: what was acknowledged would come again.
        await asyncio.sleep(max(0.0, self._acknowledged + GRACE - time.monotonic()))
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.channel.add_on_close_callback(lambda _channel, _error: _answer(gone, None))
        if in_order:
            # The broker cancels the consumers of a channel that is closed, and the next one gets what follows before
            # anything is put back. What a channel had that breaks is put back first. So break it, by a wrong tag.
            self.channel.basic_ack(NO_TAG)
        else:
            self.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await gone

    def _closed(self, channel: Channel, error: BaseException) -> None:
        self.refused = _reason(error)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(
                Refused(error.reply_code, self.refused)
                if isinstance(error, ChannelClosed)
                else BackendLost(f"The connection to RabbitMQ broke: {self.refused}.")
            )


class Refused(Exception):
    """The broker said no and closed the channel: 404 there is no such thing, 405 locked, 406 it is different."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


async def channel_of(connection: Connection, number: int | None = None) -> Asking:
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Channel] = loop.create_future()
    try:
        channel = connection.channel(channel_number=number, on_open_callback=opened.set_result)
    except AMQPError as error:
        raise BackendLost(f"The connection to RabbitMQ broke: {_reason(error)}.") from None
    channel.add_on_close_callback(
        lambda _, error: _fail(opened, BackendLost(f"No channel was opened: {_reason(error)}."))
    )
    return Asking(await opened)


# ---- publishing --------------------------------------------------------------------------------------------------

CHANNEL = 1
"""The number of the publishing channel, so that frames can be made before they are sent."""


class Batch:
    """Publishes that are waited for together."""

    __slots__ = ("deadline", "done", "given_up", "open", "results")

    def __init__(self, size: int, deadline: float, done: asyncio.Future[None]) -> None:
        self.results: list[Exception | None] = [None] * size
        self.open = size
        self.deadline = deadline
        self.done = done
        self.given_up = False


class Publish(NamedTuple):
    """One message on its way."""

    batch: Batch
    place: int
    """In the batch."""
    id: str
    to: str
    """The routing key."""
    data: bytes
    """Its frames."""


class Publisher(Confirms):
    """Publishes with confirmations: at most MAX_OUTSTANDING unconfirmed ones, in the order of the calls."""

    def __init__(self, address: Address, line: Line) -> None:
        self._address = address
        self._line = line
        self._connection: Connection | None = None
        self._next = 1
        self._outstanding: dict[int, Publish] = {}
        self._returned: dict[int, str] = {}
        self._waiting: deque[Publish] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._writing = False
        """What waits is about to be written."""
        self._stopped = False
        self.link = Link(address, self._opened, self._lost)
        self.frame_max = 131_072

    # -- from the caller's thread

    async def publish(
        self, messages: list[tuple[str, str, str, bytes, bytes]], timeout: float | None
    ) -> list[Exception | None]:
        """Each is id, exchange, routing key, properties and body. Returns None or the error for each, in order."""
        if not messages:
            return []
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        seconds = PUBLISH_TIMEOUT if timeout is None else timeout
        batch = Batch(len(messages), time.monotonic() + seconds, future)
        publishes = [
            Publish(
                batch,
                index,
                name,
                key,
                frames(CHANNEL, exchange.encode(), key.encode(), properties, body, self.frame_max),
            )
            for index, (name, exchange, key, properties, body) in enumerate(messages)
        ]
        self._line.there.put(self._take, publishes)
        try:
            await future
        except asyncio.CancelledError:
            batch.given_up = True  # What has not been written yet will not be.
            raise
        return batch.results

    # -- in the thread of the line

    def _take(self, publishes: list[Publish]) -> None:
        if self._stopped:
            for publish in publishes:
                self._finish(publish, MessageRefused(f"{_named(publish)} was not sent: the backend was closed."))
            return
        if len(self._waiting) + len(publishes) > MAX_WAITING:
            error = f"{len(self._waiting)} others are waiting already. Send more slowly, or fewer at a time"
            for publish in publishes:
                self._finish(publish, MessageRefused(f"{_named(publish)} was not sent: {error}."))
            return
        self._waiting.extend(publishes)
        self._write_soon()
        if self._sweeper is None:
            self._sweeper = self._line.loop.call_later(0.05, self._sweep)

    def _write_soon(self) -> None:
        """At the end of this turn: what came together is one piece, and one call of the kernel, here and there."""
        if not self._writing:
            self._writing = True
            self._line.loop.call_soon(self._write)

    def _write(self) -> None:
        self._writing = False
        connection = self._connection
        if connection is None:
            return
        waiting, outstanding = self._waiting, self._outstanding
        data: list[bytes] = []
        while waiting and len(outstanding) < MAX_OUTSTANDING:
            publish = waiting.popleft()
            if publish.batch.given_up:
                continue
            outstanding[self._next] = publish
            self._next += 1
            data.append(publish.data)
        if data:
            connection.write(b"".join(data))

    def confirmed(self, tag: int, multiple: bool, positive: bool) -> None:
        # In the order of publishing, which is that of the tags.
        tags = list(takewhile(tag.__ge__, self._outstanding)) if multiple else (tag,)
        for each in tags:
            publish = self._outstanding.pop(each, None)
            if publish is None:
                continue
            if not positive:
                self._returned.pop(each, None)
                self._finish(publish, PublishUnknown(_unconfirmed(publish, "RabbitMQ refused it"), id=publish.id))
            elif self._returned and (reply := self._returned.pop(each, None)) is not None:
                self._finish(
                    publish, Unroutable(publish.to, reply, f"{_named(publish)} was not sent: there is no such queue.")
                )
            else:
                self._finish(publish, None)
        if self._waiting:
            self._write_soon()

    def returned(self, reply: str, routing_key: str, properties: bytes) -> None:
        """It is confirmed next. Which one it was, its id says; the same id twice goes to the same place twice."""
        from polywire.bus.backend.rabbitmq_messages import decode

        identifier = decode(properties, b"").envelope.id
        for tag, publish in self._outstanding.items():
            if publish.id == identifier and publish.to == routing_key and tag not in self._returned:
                self._returned[tag] = reply
                return

    def _finish(self, publish: Publish, error: Exception | None) -> None:
        batch = publish.batch
        batch.results[publish.place] = error
        batch.open -= 1
        if batch.open == 0:
            self._line.back.put(_answer, batch.done, None)

    async def _opened(self, connection: Connection) -> None:
        asking = await channel_of(connection, CHANNEL)
        await asking.ask(asking.channel.confirm_delivery, ack_nack_callback=_taken_elsewhere)
        connection.confirms[CHANNEL] = self
        asking.channel.add_on_close_callback(lambda _, error: self.link.fail(connection, _reason(error)))
        self._next = 1
        self.frame_max = connection.frame_max
        self._connection = connection
        self._write_soon()

    def _lost(self, reason: str) -> None:
        self._connection = None
        lost, self._outstanding = self._outstanding, {}
        self._returned.clear()
        for publish in lost.values():
            text = _unconfirmed(publish, f"the connection broke ({reason})")
            self._finish(publish, PublishUnknown(text, id=publish.id))

    def _sweep(self) -> None:
        """Fail what is late. Not a timer each: those would cost more than the publishing."""
        self._sweeper = None
        now = time.monotonic()
        for tag, publish in list(self._outstanding.items()):
            if publish.batch.deadline <= now:
                # The confirmation may still come: it is for nobody then.
                del self._outstanding[tag]
                self._finish(
                    publish, PublishUnknown(_unconfirmed(publish, "no confirmation came in time"), id=publish.id)
                )
        self._waiting = deque(publish for publish in self._waiting if not self._expired(publish, now))
        if self._outstanding or self._waiting:
            self._sweeper = self._line.loop.call_later(0.05, self._sweep)

    def _expired(self, publish: Publish, now: float) -> bool:
        if publish.batch.given_up:
            return True
        if publish.batch.deadline > now:
            return False
        reason = (
            "too many others were waiting"
            if self._connection
            else f"RabbitMQ at '{self._address}' is not connected ({self.link.problem})"
        )
        self._finish(publish, MessageRefused(f"{_named(publish)} was not sent: {reason}. Try again later."))
        return True

    def stop(self) -> None:
        """Answer whoever still waits, and whoever comes now."""
        self._stopped = True
        self._lost("it was closed")
        for publish in self._waiting:
            self._finish(publish, MessageRefused(f"{_named(publish)} was not sent: the backend was closed."))
        self._waiting.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None


class Unroutable(MessageRefused):
    """The broker gave it back: nothing is bound to where it was sent."""

    def __init__(self, to: str, reply: str, message: str) -> None:
        super().__init__(message)
        self.to = to
        self.reply = reply


def _taken_elsewhere(frame: object) -> None:
    """pika wants a callback for confirmations; `Connection` reads them before pika does."""


def _named(publish: Publish) -> str:
    return f"Message {publish.id!r} to {publish.to!r}"


def _unconfirmed(publish: Publish, reason: str) -> str:
    return f"{_named(publish)} was not confirmed: {reason}. Perhaps it was sent; send it again with the same id."


# ---- both together -----------------------------------------------------------------------------------------------


class Client:
    """A connection to publish and to ask on, and one to consume on: a broker that holds up publishers holds up their
    whole connection, and acknowledgements must get through."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._quieten_pika()
        self.line: Line | None = None
        self._publisher: Publisher | None = None
        self._consuming: Link | None = None
        self._losing: dict[object, Callable[[str], None]] = {}
        self.reading: set[str] = set()
        """Queues that are read on this connection."""
        self.version: tuple[int, ...] = ()
        """Of the broker, as it said when it was connected first: (3, 10, 8)."""

    async def open(self) -> None:
        """Raises BackendUnreachable."""
        line = Line()
        try:
            await line.run(self._open(line))
        except BaseException:
            await line.close()
            raise
        self.line = line

    async def close(self) -> None:
        """May be called twice."""
        line, self.line = self.line, None
        if line is not None:
            await line.run(self._close())
            await line.close()

    @property
    def connected(self) -> bool:
        return bool(
            self._publisher and self._publisher.link.connection and self._consuming and self._consuming.connection
        )

    def check_version(self, oldest: tuple[int, ...]) -> None:
        """Raises SetupError where the broker is older."""
        if self.version and self.version < oldest:
            mine, least = (".".join(map(str, version)) for version in (self.version, oldest))
            raise SetupError(
                f"RabbitMQ at '{self.address}' is {mine}, which cannot delay messages without losing any. "
                f"Upgrade it to {least} or later."
            )

    @property
    def publisher(self) -> Publisher:
        if self._publisher is None or self.line is None:
            raise BackendUnreachable(f"RabbitMQ at '{self.address}' is not open: call `start` first.")
        return self._publisher

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """In the thread of the connections."""
        if self.line is None:
            work.close()
            raise BackendUnreachable(f"RabbitMQ at '{self.address}' is not open: call `start` first.")
        return await self.line.run(work)

    # -- in the thread of the line

    async def _open(self, line: Line) -> None:
        self._publisher = Publisher(self.address, line)
        self._consuming = Link(self.address, self._consuming_opened, self._consuming_lost)
        await self._publisher.link.open()
        connection = self._publisher.link.connection
        properties = (connection.server_properties if connection else None) or {}
        self.version = version_of(str(properties.get("version", "")))
        try:
            await self._consuming.open()
        except BaseException:
            await self._publisher.link.close()
            raise

    async def _close(self) -> None:
        if self._consuming is not None:
            await self._consuming.close()
        if self._publisher is not None:
            await self._publisher.link.close()
            self._publisher.stop()

    async def _consuming_opened(self, connection: Connection) -> None:
        """Consumers open their own channels."""

    def _consuming_lost(self, reason: str) -> None:
        for told in list(self._losing.values()):
            told(reason)

    async def consuming(self, timeout: float) -> Connection:
        """The connection to consume on. Raises BackendUnreachable."""
        if self._consuming is None:
            raise BackendUnreachable(f"RabbitMQ at '{self.address}' is not open: call `start` first.")
        return await self._consuming.usable(timeout)

    async def asking(self, timeout: float = CONNECT_TIMEOUT) -> Asking:
        """A new channel to ask on. Raises BackendUnreachable."""
        return await channel_of(await self.publisher.link.usable(timeout))

    def when_lost(self, who: object, told: Callable[[str], None]) -> None:
        self._losing[who] = told

    def forget(self, who: object) -> None:
        self._losing.pop(who, None)

    @staticmethod
    def _quieten_pika() -> None:
        # It logs every broken connection several times as an error, which we report ourselves.
        logger = logging.getLogger("pika")
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)


def version_of(text: str) -> tuple[int, ...]:
    """`3.10.8` -> (3, 10, 8); what follows a number is left out."""
    return tuple(int(digits) for part in text.split(".")[:3] if (digits := "".join(_leading_digits(part))))


def _leading_digits(text: str) -> Iterator[str]:
    for character in text:
        if not character.isdecimal():
            return
        yield character
