"""The store on SQLite keeps what stores promise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.durable.migrations import Migration
from polywire.durable.store.apsw import SqliteStore
from polywire.durable.store.seam import Store
from polywire.testing.stores import PROBE, StoreSuite


class TestSqliteStore(StoreSuite):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "probe.db"

    def opening(
        self, *, migrations: Sequence[Migration] = PROBE, upgrade: bool = True, clock: Clock | None = None
    ) -> AbstractAsyncContextManager[Store]:
        return SqliteStore(self.path, migrations=migrations, upgrade=upgrade, clock=clock or SYSTEM_CLOCK)
