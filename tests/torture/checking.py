"""What a run left behind, and whether it is as promised."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.messages import DIES, FAILURES, Sent, read_ledger
from tests.torture.stage import LOST_LIMIT
from tests.torture.worker import EFFECTS

from polywire.bus.core import DeadLetter
from polywire.durable.store.apsw import SqliteStore

SHOWN = 5
"""Examples of each problem."""
EARLY = 0.05
"""Seconds by which clocks of processes may be read apart."""


@dataclass(frozen=True, slots=True)
class Start:
    """Of a handler."""

    id: str
    attempt: int
    time: float


@dataclass(slots=True, kw_only=True)
class Evidence:
    sent: dict[str, Sent]
    effects: list[str] = field(default_factory=list)
    """Ids, in the order in which they were committed."""
    dead: list[DeadLetter] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    begun: Counter[str] = field(default_factory=Counter)
    """How often a start was about to be told to the backend, by id."""
    stopped: list[str] = field(default_factory=list)
    """Ids of what the inbox stopped, once for each time."""
    released: int = 0
    """By workers that ended in order."""
    pending: int | None = 0
    strange: list[str] = field(default_factory=list)

    @property
    def duplicates(self) -> int:
        return len(self.stopped)

    @property
    def done(self) -> set[str]:
        return set(self.effects)

    @property
    def buried(self) -> dict[str, str]:
        """Reasons by id, of what is dead and has no effect."""
        done = self.done
        return {letter.envelope.id: letter.reason for letter in self.dead if letter.envelope.id not in done}

    def state(self, *states: str) -> set[str]:
        return {name for name, sent in self.sent.items() if sent.state in states}


async def gather_evidence(directory: Path, dead: list[DeadLetter], pending: int | None) -> Evidence:
    """Of the ledger, the store and the notes of the workers, all read from the disk."""
    sent = await asyncio.to_thread(read_ledger, directory / "ledger.jsonl")
    found = Evidence(sent=sent, effects=await read_effects(directory), dead=dead, pending=pending)
    await asyncio.to_thread(_read_all_notes, directory, found)
    return found


async def read_effects(directory: Path) -> list[str]:
    async with SqliteStore(directory / "effects.db", migrations=EFFECTS) as store, store.read() as view:
        return [str(row[0]) for row in await view.fetch_all("SELECT message FROM effect ORDER BY n")]


def _read_all_notes(directory: Path, found: Evidence) -> None:
    for path in sorted(directory.glob("worker-*.log")):
        _read_notes(path, found)


def _read_notes(path: Path, found: Evidence) -> None:
    text = path.read_text()
    for line in text[: text.rfind("\n") + 1].splitlines():
        what, *words = line.split()
        if what == "start":
            found.starts.append(Start(words[0], int(words[1]), float(words[2])))
        elif what == "begin":
            found.begun[words[0]] += 1
        elif what == "duplicate":
            found.stopped.append(words[0])
        elif what == "ended":
            found.released += int(words[0])


# ---- what is promised ------------------------------------------------------------------------------------------------


def lost(found: Evidence) -> list[str]:
    """No confirmed message is lost."""
    missing = found.state("confirmed") - found.done - set(found.buried)
    return [f"{_name(found, name)} was confirmed and is neither done nor dead" for name in sorted(missing)]


def twice(found: Evidence) -> list[str]:
    """Effects behind the inbox happen once."""
    return [f"{_name(found, name)} has {count} effects" for name, count in Counter(found.effects).items() if count > 1]


def order(found: Evidence) -> list[str]:
    """The first effects of a key are in the order in which its messages were sent."""
    last: dict[tuple[str, str], int] = {}
    wrong = []
    for name in dict.fromkeys(found.effects):
        sent = found.sent.get(name)
        if sent is None or sent.key is None:
            continue
        before = last.get((sent.place, sent.key), 0)
        if sent.n < before:
            wrong.append(f"{_name(found, name)} of key {sent.key!r} came after number {before}")
        last[sent.place, sent.key] = max(before, sent.n)
    return wrong


def accounts(found: Evidence) -> list[str]:
    """done + dead + pending = confirmed, and of what is perhaps sent what arrived."""
    arrived = found.done | set(found.buried)
    strangers = arrived - found.state("confirmed", "maybe")
    wrong = [f"{name} arrived, and nobody sent it" for name in strangers - set(found.sent)]
    wrong += [f"{_name(found, name)} arrived, and was {found.sent[name].state}" for name in strangers & set(found.sent)]
    expected = len(found.state("confirmed")) + len(arrived & found.state("maybe"))
    if found.pending is None or len(arrived) + found.pending != expected:
        wrong.append(
            f"{len(found.done)} done + {len(found.buried)} dead + {found.pending} pending is not {expected}, "
            f"which were confirmed or perhaps sent and arrived"
        )
    return wrong


def innocent(found: Evidence) -> list[str]:
    """Nothing is dead but what failed for good, or was under way each time when workers died."""
    wrong = []
    for name, reason in found.buried.items():
        kind = found.sent[name].kind if name in found.sent else "plain"
        if reason == "worker_lost" and found.begun[name] >= LOST_LIMIT:
            continue
        if DIES.get(kind) != reason:
            wrong.append(f"{_name(found, name)} is dead as {reason}, and was begun {found.begun[name]} times")
    deadly = [name for name in found.done if name in found.sent and found.sent[name].kind in DIES]
    return wrong + [f"{_name(found, name)} is done" for name in deadly]


def early(found: Evidence) -> list[str]:
    """Delayed messages are not handled before their time."""
    wrong = []
    for start in found.starts:
        sent = found.sent.get(start.id)
        if sent is not None and sent.due is not None and start.time < sent.due - EARLY:
            wrong.append(f"{_name(found, start.id)} was started {sent.due - start.time:.3f} s too early")
    return wrong


def strange(found: Evidence) -> list[str]:
    """Workers end when they are told to, and not before."""
    return found.strange


def attempts(found: Evidence) -> list[str]:
    """What was released costs no attempt. Only for runs in which nobody was killed.

    What was done and comes again, as its acknowledgement got lost, was not released.
    """
    failures, stopped = {"retry": FAILURES}, set(found.stopped)
    return [
        f"{_name(found, start.id)} was started as attempt {start.attempt}"
        for start in found.starts
        if (sent := found.sent[start.id]).kind not in DIES
        and start.id not in stopped
        and start.attempt > 1 + failures.get(sent.kind, 0)
    ]


Check = Callable[[Evidence], list[str]]
CHECKS: tuple[Check, ...] = (lost, twice, order, accounts, innocent, early, strange)


def problems(found: Evidence, checks: Iterable[Check] = CHECKS) -> list[str]:
    """What is not as promised, a sentence each."""
    wrong = []
    for check in checks:
        found_wrong = check(found)
        wrong += [f"{check.__name__}: {sentence}" for sentence in found_wrong[:SHOWN]]
        if len(found_wrong) > SHOWN:
            wrong.append(f"{check.__name__}: and {len(found_wrong) - SHOWN} more")
    return wrong


def _name(found: Evidence, name: str) -> str:
    sent = found.sent.get(name)
    return name if sent is None else f"{name} ({sent.kind} number {sent.n} of {sent.place})"
