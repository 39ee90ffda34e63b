"""Stores, the inbox and schedules in a system under test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from polywire import App, Bus, Contract, Event, Every, Message, SetupError, current, enqueue, subscribe, task, testing
from polywire.durable.migrations import Migration
from polywire.durable.store.apsw import SqliteStore
from polywire.testing import ManualClock


class Paid(Event, topic="storetest.paid", key="order"):
    order: str


class Note(Message, package="storetest.v1"):
    text: str


class Notes(Contract, package="storetest.v1"):
    @task(once=True)
    async def keep(self, note: Note) -> None:
        raise NotImplementedError

    @task(schedule=Every(60.0))
    async def sweep(self) -> None:
        raise NotImplementedError


LEDGER = (Migration(1, "what was paid", "CREATE TABLE ledger (paid TEXT NOT NULL)"),)


def app_at(path: Path) -> App:
    app = App("ledger")

    @app.resource
    async def store() -> AsyncIterator[SqliteStore]:
        async with SqliteStore(path, migrations=LEDGER, upgrade=True) as opened:
            yield opened

    @app.service
    class Ledger:
        def __init__(self, store: SqliteStore) -> None:
            self.store = store
            self.handled = 0

        @subscribe(Paid, group="ledger")
        async def book(self, event: Paid) -> None:
            self.handled += 1
            async with self.store.transaction() as tx:
                await tx.execute("INSERT INTO ledger VALUES ($1)", (event.order,))

    @app.service
    class NoteService(Notes):
        def __init__(self) -> None:
            self.kept: list[str] = []
            self.swept: list[str] = []

        async def keep(self, note: Note) -> None:
            self.kept.append(note.text)

        async def sweep(self) -> None:
            message = current().message
            assert message is not None
            self.swept.append(message.id)

    return app


def by_name(system: testing.System, name: str) -> object:
    """A service object of a class that only its app knows."""
    for objects in system._objects.values():
        for found in objects:
            if type(found).__name__ == name:
                return found
    raise AssertionError(name)


def test_an_event_that_comes_twice_has_its_effect_once(tmp_path: Path) -> None:
    async def scenario() -> list[tuple[object, ...]]:
        async with testing.system(app_at(tmp_path / "ledger.db")) as system:
            for _ in range(2):
                await system.bus.publish(Paid(order="1"), id="the-same")
            await system.bus.publish(Paid(order="2"))
            await system.settled()

            ledger = by_name(system, "Ledger")
            assert ledger.handled == 3  # type: ignore[attr-defined]  # made by text
            async with ledger.store.read() as view:  # type: ignore[attr-defined]  # made by text
                rows: list[tuple[object, ...]] = await view.fetch_all("SELECT paid FROM ledger ORDER BY paid")
            return rows

    assert asyncio.run(scenario()) == [("1",), ("2",)]


def test_a_task_declared_once_is_handled_once_although_its_message_came_again(tmp_path: Path) -> None:
    async def handled(system: testing.System) -> list[str]:
        await enqueue(system.client(Notes).keep, Note(text="a"), id="the-same")
        await system.settled()
        notes = by_name(system, "NoteService")
        return notes.kept  # type: ignore[attr-defined,no-any-return]  # made by text

    async def scenario() -> None:
        for expected in (["a"], []):
            # Another bus each time, which knows nothing of the first message; the store does.
            async with testing.system(app_at(tmp_path / "ledger.db")) as system:
                assert await handled(system) == expected

    asyncio.run(scenario())


def test_a_scheduled_task_runs_by_the_manual_clock_once_for_each_slot(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        async with testing.system(app_at(tmp_path / "ledger.db"), clock=clock) as system:
            for _ in range(3):
                await clock.advance(60.0)
                await system.settled()
            swept = by_name(system, "NoteService").swept  # type: ignore[attr-defined]  # made by text
            assert len(swept) == len(set(swept)) == 3
            assert system.enqueued(Notes.sweep) == [None, None, None]

    asyncio.run(scenario())


def test_once_without_a_store_is_refused_at_the_start() -> None:
    app = App("notes")

    @app.service
    class Forgetful(Notes):
        def __init__(self, bus: Bus) -> None: ...

        async def keep(self, note: Note) -> None: ...

        async def sweep(self) -> None: ...

    async def scenario() -> None:
        async with testing.system(app):
            raise AssertionError("it started")

    with pytest.raises(SetupError) as caught:
        asyncio.run(scenario())
    assert str(caught.value) == (
        "storetest.v1.Notes/Keep cannot be run: it is once=True, but there is no inbox. Give the app a store."
    )
