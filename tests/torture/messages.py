"""What is sent, what its handler does with it, and the ledger of those who send it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import msgspec

from polywire.bus.core import Envelope, new_id
from polywire.contract import Message

TYPE = "torture.v1.Jobs/Do"
SOURCE = "torture"
ATTEMPTS = 6
FAILURES = 2
"""Attempts of a `retry` that fail."""
DIES = {"poison": "attempts", "reject": "rejected", "deadly": "worker_lost"}
"""Kinds that end in the dead letters, and as what."""
KINDS: Mapping[str, int] = {"plain": 84, "retry": 7, "delayed": 6, "poison": 2, "reject": 1}
"""Kinds by weight. `plain` ones have one effect; `slow` ones take longer than a worker that ends gives them; a `deadly`
one kills its worker."""
DELAYS = 0.2, 1.5
"""Seconds that a `delayed` one waits at least and at most."""


def group_of(topic: str) -> str:
    """Of one topic alone: Kafka knows groups by their name, and moves the members of all that have one."""
    return f"{topic}-readers"


class Job(Message):
    n: int
    kind: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A queue or a topic."""

    name: str
    log: bool = False
    """A topic, read by the group `group_of` it."""
    keys: int = 0
    """How many keys there are; 0 where messages have none."""
    mixed: bool = False
    """Half of the messages have no key."""
    delays: bool = False


class Sent(msgspec.Struct, kw_only=True):
    """A message as its sender knows it."""

    id: str
    place: str
    kind: str
    n: int
    """Of the messages of its key, which one it is."""
    key: str | None = None
    due: float | None = None
    """Seconds since the epoch before which it must not be handled."""
    state: str = "sending"
    """Then `confirmed`, `maybe` where nobody knows, `refused` where it was certainly not sent."""

    def envelope(self) -> Envelope:
        body = msgspec.json.encode({"n": self.n, "kind": self.kind})
        return Envelope(
            self.id, TYPE, body, source=SOURCE, time=time.time(), key=self.key, not_before=self.due
        )  # fmt: skip


class Mix:
    """Makes the messages of one run."""

    def __init__(self, dice: Random, kinds: Mapping[str, int] = KINDS, deadly_every: int = 0) -> None:
        self._dice = dice
        self._kinds, self._weights = list(kinds), list(kinds.values())
        self._deadly_every = deadly_every
        self._numbers: dict[tuple[str, str | None], int] = {}
        self._made = 0

    def batch(self, place: Place, keys: Sequence[str]) -> list[Sent]:
        """A few messages. No two of them have the same key, so that one that is sent again overtakes none."""
        chosen: list[str | None] = list(self._dice.sample(list(keys), self._dice.randint(1, len(keys)))) if keys else []
        if place.mixed or not keys:
            chosen += [None] * self._dice.randint(1, 4)
        return [self._one(place, key) for key in chosen]

    def _one(self, place: Place, key: str | None) -> Sent:
        self._made += 1
        kind = self._dice.choices(self._kinds, self._weights)[0]
        if self._deadly_every and self._made % self._deadly_every == 0:
            kind = "deadly"
        due = None
        if kind == "delayed":
            due = time.time() + self._dice.uniform(*DELAYS) if place.delays and key is None else None
            kind = "plain" if due is None else kind
        number = self._numbers[place.name, key] = self._numbers.get((place.name, key), 0) + 1
        return Sent(id=new_id(), place=place.name, kind=kind, n=number, key=key, due=due)


class Ledger:
    """Written and synced before a message is sent, and again once it is known what became of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def begin(self, messages: Sequence[Sent]) -> None:
        self.count += len(messages)
        await self._write([msgspec.json.encode(sent) for sent in messages])

    async def end(self, messages: Sequence[Sent]) -> None:
        await self._write([msgspec.json.encode({"id": sent.id, "state": sent.state}) for sent in messages])

    async def _write(self, lines: Sequence[bytes]) -> None:
        os.write(self._file, b"".join(line + b"\n" for line in lines))
        await asyncio.to_thread(os.fsync, self._file)

    def close(self) -> None:
        os.close(self._file)


def read_ledger(path: Path) -> dict[str, Sent]:
    """What was sent, by id, with the last that was known about it."""
    found: dict[str, Sent] = {}
    for line in path.read_bytes().splitlines():
        entry = msgspec.json.decode(line)
        if "place" in entry:
            found[entry["id"]] = msgspec.convert(entry, Sent)
        else:
            found[entry["id"]].state = entry["state"]
    return found
