"""What has to exist on a RabbitMQ: made, compared with what is there, and named."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polywire.bus.backend.rabbitmq_connection import Asking, Client, Refused
from polywire.bus.backend.rabbitmq_messages import encode
from polywire.bus.core import Envelope, QueueSpec
from polywire.errors import SetupError

OLDEST = (3, 10)
DELIVERY_LIMIT = 50
"""Of the broker: a net far behind our own counts, for messages that kill whoever reads them."""
LANE_LIMIT = 1_000
"""Of a lane, which gives back everything that was fetched ahead each time it changes hands."""
NO_LIMIT = 1_000_000
"""Of queues from which messages are only read to be looked at. 4.x has a limit of 20 where none is set."""
CONSUMER_TIMEOUT = 7 * 24 * 3600 * 1000
"""Milliseconds that a delivery may take, from RabbitMQ 3.12; before, the broker's own setting counts (30 minutes)."""

DELAYS = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)
"""Seconds of the queues in which delayed messages wait; longer waits are several of them after another."""
DUE = "polywire.due"
"""The exchange through which they come back, each to the queue that its routing key names."""
UNROUTED = "polywire.unrouted"
"""Where they go whose queue was deleted meanwhile."""
WOULD_CREATE = "would create "
MAX_LANES = 64
NOTES = 10_000
"""That are kept for each queue. A consumer writes one each time it starts handlers."""

Message = tuple[str, str, str, bytes, bytes]
"""Id, exchange, routing key, properties and body."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, slots=True)
class Queue:
    name: str
    arguments: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Exchange:
    name: str
    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Bound:
    """*destination* (a queue, or an exchange) gets from exchange *source* what fits."""

    source: str
    destination: str
    key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    to_exchange: bool = False


@dataclass(frozen=True, slots=True)
class Absent:
    """A queue that would be there if something else had been declared under the same name."""

    name: str
    otherwise: str
    """What is wrong where it exists."""


@dataclass(frozen=True, slots=True)
class Together:
    """Where queue *first* is there, *last* is too: they are made in the order of last to first."""

    first: str
    last: str
    otherwise: str


Wanted = Queue | Exchange | Bound | Absent | Together


# ---- names and arguments -----------------------------------------------------------------------------------------


def levels(spec: QueueSpec) -> list[str]:
    """The queues of an unkeyed queue's priorities, the lowest first."""
    return [spec.name, *(f"{spec.name}.p{level}" for level in range(1, spec.priorities))]


def lanes(spec: QueueSpec) -> list[str]:
    return [f"{spec.name}.lane.{number}" for number in range(spec.lanes)]


def suspects(name: str) -> str:
    return f"{name}.suspects"


def dead(name: str) -> str:
    return f"{name}.dead"


def notes(name: str) -> str:
    return f"{name}.notes"


def members(name: str) -> str:
    return f"{name}.members"


def delay_queue(seconds: float) -> str:
    return f"polywire.delay.{seconds * 1000:.0f}ms"


def _work(name: str, *, single: bool = False, limit: int = DELIVERY_LIMIT) -> Queue:
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead(name),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-consumer-timeout": CONSUMER_TIMEOUT,
    }
    if single:
        arguments["x-single-active-consumer"] = True
    return Queue(name, arguments)


def _kept(name: str) -> Queue:
    return Queue(name, {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT, "x-overflow": "reject-publish"})


def _notes(name: str) -> Queue:
    """Only the last ones: what is still under way is written again before so many others have come."""
    kept = _kept(notes(name))
    return Queue(kept.name, {**kept.arguments, "x-max-length": NOTES, "x-overflow": "drop-head"})


def _of(queue: Queue, name: str) -> Queue:
    """*queue*, with the dead letters of *name*."""
    return Queue(queue.name, {**queue.arguments, "x-dead-letter-routing-key": dead(name)})


def shared() -> list[Wanted]:
    """What all queues use: the delays, each queue behind an exchange that keeps the routing key."""
    wanted: list[Wanted] = [
        Exchange(UNROUTED, "fanout"),
        _kept(UNROUTED),
        Bound(UNROUTED, UNROUTED),
        Exchange(DUE, "direct", {"alternate-exchange": UNROUTED}),
    ]
    for seconds in DELAYS:
        name = delay_queue(seconds)
        arguments = {
            "x-queue-type": "quorum",
            "x-message-ttl": round(seconds * 1000),
            "x-dead-letter-exchange": DUE,
            # At most once is the default, and loses what is under way when the broker dies.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-delivery-limit": NO_LIMIT,
        }
        wanted += [Exchange(name, "fanout"), Queue(name, arguments), Bound(name, name)]
    return wanted


def of_queue(spec: QueueSpec) -> list[Wanted]:
    """Its own queues, and what must not be there."""
    name = spec.name
    if not _NAME.fullmatch(name):
        raise SetupError(
            f"The queue {name!r} was not declared: its name has to be a letter or digit, and up to 199 more of "
            f"letters, digits, '.', '-' and '_'."
        )
    wanted: list[Wanted] = [_kept(dead(name)), _notes(name)]
    if spec.keyed:
        if not 1 <= spec.lanes <= MAX_LANES:
            raise SetupError(f"The queue {name!r} was not declared: lanes={spec.lanes} is not from 1 to {MAX_LANES}.")
        wanted.append(Absent(name, f"queue {name!r} is not keyed"))
        wanted.append(_kept(members(name)))
        first, last = lanes(spec)[0], lanes(spec)[-1]
        wanted.append(Together(first, last, f"queue {name!r} has fewer than {spec.lanes} lanes"))
        for lane in reversed(lanes(spec)):
            wanted += [_of(_work(lane, single=True, limit=LANE_LIMIT), name), Bound(DUE, lane, lane)]
        more = f"{name}.lane.{spec.lanes}"
        wanted.append(Absent(more, f"queue {name!r} has more than {spec.lanes} lanes"))
        return wanted
    wanted.append(Absent(f"{name}.lane.0", f"queue {name!r} is keyed"))
    for level in levels(spec):
        wanted += [_of(_work(level), name), Bound(DUE, level, level)]
    wanted += [_of(_work(suspects(name), single=True), name), Bound(DUE, suspects(name), suspects(name))]
    more = f"{name}.p{max(spec.priorities, 1)}"
    wanted.append(Absent(more, f"queue {name!r} has more than {spec.priorities} priorities"))
    return wanted


# ---- on the broker -----------------------------------------------------------------------------------------------


async def compare(client: Client, groups: Iterable[Sequence[Wanted]], *, create: bool) -> list[str]:
    """What differs, a line each; with *create*, what is missing is made and is no difference. Without, each line says
    what would be done about it."""
    client.check_version(OLDEST)
    lines = [line for wanted in groups for line in await client.run(_compare(client, wanted, create))]
    if create:
        return lines
    return [line if line.startswith(WOULD_CREATE) else f"would refuse: {line}" for line in lines]


async def _compare(client: Client, wanted: Sequence[Wanted], create: bool) -> list[str]:
    lines: list[str] = []
    asking = await client.asking()
    # First what could be in the way: nothing is made beside something different.
    for each in sorted(wanted, key=lambda each: not isinstance(each, Absent | Together)):
        if lines and isinstance(each, Bound):
            continue
        try:
            line = await _one(asking, each, create)
        except Refused as error:
            line = _difference(each, str(error)) if error.code == 406 else f"{_what(each)}: {error}"
        if line:
            lines.append(line)
            if isinstance(each, Absent | Together):
                break
        if not asking.channel.is_open:
            asking = await client.asking()
    asking.close()
    return lines


async def _one(asking: Asking, each: Wanted, create: bool) -> str | None:
    channel = asking.channel
    if isinstance(each, Absent):
        return each.otherwise if await _exists(asking, each.name) else None
    if isinstance(each, Together):
        only_first = await _exists(asking, each.first) and not await _exists(asking, each.last)
        return each.otherwise if only_first else None
    if isinstance(each, Bound):
        if create:  # Whether a binding is there cannot be asked over AMQP.
            bind = channel.exchange_bind if each.to_exchange else channel.queue_bind
            what = {"destination" if each.to_exchange else "queue": each.destination}
            source = "source" if each.to_exchange else "exchange"
            await asking.ask(
                bind, **what, **{source: each.source}, routing_key=each.key, arguments=dict(each.arguments)
            )
        return None
    if not create and not await _exists(asking, each.name, exchange=isinstance(each, Exchange)):
        return f"{WOULD_CREATE}the {_what(each)}"
    if isinstance(each, Queue):
        await asking.ask(channel.queue_declare, queue=each.name, durable=True, arguments=dict(each.arguments))
    else:
        await asking.ask(
            channel.exchange_declare,
            exchange=each.name,
            exchange_type=each.kind,
            durable=True,
            arguments=dict(each.arguments),
        )
    return None


async def _exists(asking: Asking, name: str, *, exchange: bool = False) -> bool:
    """Where it does not, the channel is closed."""
    channel = asking.channel
    try:
        if exchange:
            await asking.ask(channel.exchange_declare, exchange=name, passive=True)
        else:
            await asking.ask(channel.queue_declare, queue=name, passive=True)
    except Refused as error:
        if error.code == 404:
            return False
        raise
    return True


_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' for .*: received (?P<got>.*) but current is (?P<now>.*)"
)


def _difference(each: Wanted, text: str) -> str:
    """In our words where the broker's can be understood."""
    found = _INEQUIVALENT.search(text)
    if found is None:
        return f"{_what(each)} is different: {text}"
    now, got = (re.sub(r"(the value )?'(.*)' of type '\w+'", r"'\2'", found[side]) for side in ("now", "got"))
    return f"{_what(each)} has {found['name']} {now}, not {got}"


def _what(each: Wanted) -> str:
    if isinstance(each, Together):
        return f"queue {each.first!r}"
    if isinstance(each, Bound):
        return f"the binding of {each.destination!r} to {each.source!r}"
    return f"{'exchange' if isinstance(each, Exchange) else 'queue'} {each.name!r}"


async def depths(client: Client, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Waiting messages and consumers of those queues that exist."""

    async def ask() -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        asking = await client.asking()
        for name in names:
            try:
                frame = await asking.ask(asking.channel.queue_declare, queue=name, passive=True)
            except Refused as error:
                if error.code != 404:
                    raise
                asking = await client.asking()
            else:
                found[name] = frame.method.message_count, frame.method.consumer_count
        asking.close()
        return found

    return await client.run(ask())


async def exchange_exists(client: Client, name: str) -> bool:
    async def ask() -> bool:
        asking = await client.asking()
        try:
            return await _exists(asking, name, exchange=True)
        finally:
            asking.close()

    return await client.run(ask())


async def found_spec(client: Client, name: str) -> QueueSpec | None:
    """A queue as it exists, for those who did not declare it; None where there is none."""
    first = await depths(client, [name, f"{name}.lane.0"])
    if name in first:
        more = await _count(client, f"{name}.p{{}}", 1)
        return QueueSpec(name=name, priorities=1 + more)
    if first:
        return QueueSpec(name=name, keyed=True, lanes=1 + await _count(client, f"{name}.lane.{{}}", 1))
    return None


async def _count(client: Client, pattern: str, start: int) -> int:
    """How many queues of a numbered row there are from *start* on."""
    number = start
    while await depths(client, [pattern.format(number)]):
        number += 1
    return number - start


# ---- which queue, and when ---------------------------------------------------------------------------------------


def address(spec: QueueSpec, envelope: Envelope) -> str:
    """The queue on the broker that a message of *spec* belongs to."""
    if spec.keyed:
        return f"{spec.name}.lane.{lane_of(envelope.key, spec.lanes)}"
    if envelope.lost:
        return suspects(spec.name)
    level = min(max(envelope.priority, 0), spec.priorities - 1)
    return f"{spec.name}.p{level}" if level else spec.name


def slot_of(key: str | None) -> int:
    """From 0 to 63, the same in every process and version."""
    return zlib.crc32(key.encode()) % MAX_LANES if key else 0


def lane_of(key: str | None, lanes: int) -> int:
    return slot_of(key) % lanes


def routed(envelope: Envelope, to: str, now: float, own: dict[str, str] | None = None) -> Message:
    """A message for queue *to*, through the longest delay that ends before it is due."""
    properties = encode(envelope, own)
    if envelope.not_before is not None and (seconds := delay_for(envelope.not_before - now)):
        return envelope.id, delay_queue(seconds), to, properties, envelope.body
    return envelope.id, "", to, properties, envelope.body


def delay_for(remaining: float) -> float:
    """The longest of DELAYS that is over within *remaining* seconds; 0 where none is."""
    return next((seconds for seconds in reversed(DELAYS) if seconds <= remaining), 0.0)
