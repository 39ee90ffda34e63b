"""The file bus keeps what every bus promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from polywire.bus.backend import sqlite_events as events
from polywire.bus.backend import sqlite_messages as messages
from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.backend.sqlite_file import Transaction
from polywire.bus.backend.sqlite_log import SqliteLog
from polywire.bus.core import EventLog, TaskQueue
from polywire.testing.logs import LogSuite
from polywire.testing.queues import QueueSuite


class TestSqliteQueue(QueueSuite):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def url(self) -> str:
        return f"sqlite:{self.folder / 'bus.db'}"

    async def put_raw(self, backend: TaskQueue, queue: str, data: bytes) -> None:
        assert isinstance(backend, SqliteQueue)
        row = await backend.known(queue)
        assert row is not None
        values = [row.n, "foreign", None, 0, None, data]

        def put(tx: Transaction) -> None:
            messages.insert(tx, values, keyed=row.keyed, delayed=False)
            tx.changed.add(row.channel)

        await backend.file.do(put)

    async def cut(self, backend: TaskQueue) -> None:
        self.skip("a file has no connection that could be lost; test_sqlite_faults lets its disk fail")

    async def restart_backend(self, url: str) -> None:
        self.skip("a file has no server; test_sqlite_power cuts the power, and test_sqlite_processes kills processes")


class TestSqliteLog(LogSuite):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def url(self) -> str:
        return f"sqlite:{self.folder / 'bus.db'}"

    async def put_raw(self, backend: EventLog, topic: str, data: bytes) -> None:
        assert isinstance(backend, SqliteLog)

        def put(tx: Transaction) -> None:
            row = events.find_topic(tx.connection, topic)
            assert row is not None
            events.append(tx, {(row.n, 0): [data]})

        await backend.file.do(put)

    async def restart_backend(self, url: str) -> None:
        self.skip("a file has no server; test_sqlite_power cuts the power, and test_sqlite_processes kills processes")
