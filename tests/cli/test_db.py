"""`polywire db` brings the stores of a system up to date, and says how far they are."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polywire.cli import main
from polywire.durable.store.apsw import SqliteStore
from polywire.errors import SetupError

APP = """
from collections.abc import AsyncIterator

from polywire import App, Contract, Message, rpc
from polywire.durable.migrations import Migration
from polywire.durable.store.apsw import SqliteStore
from polywire.durable.store.seam import Store


class Ping(Message):
    text: str = ""


class {contract}(Contract, package="shelf.v1"):
    @rpc
    async def ping(self, ping: Ping) -> Ping:
        raise NotImplementedError


app = App("{name}")


@app.resource
def folder() -> str:
    return {folder!r}


@app.resource
async def store(folder: str) -> AsyncIterator[Store]:
    async with SqliteStore(folder + "/{file}.db", migrations=[
        Migration(1, "books", "CREATE TABLE book (title TEXT)"),
        Migration(2, "authors", "CREATE TABLE author (name TEXT)"),
    ]) as store:
        yield store


@app.service
class Service({contract}):
    def __init__(self, store: Store) -> None:
        self.store = store

    async def ping(self, ping: Ping) -> Ping:
        return ping
"""
SYSTEM = """
[system]
name = "shelf"

[services.books]
app = "db_books:app"

[services.loans]
app = "db_loans:app"
"""


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, contract in (("books", "Books"), ("loans", "Loans")):
        text = APP.format(contract=contract, name=name, folder=str(tmp_path), file=name)
        (tmp_path / f"db_{name}.py").write_text(text)
    (tmp_path / "polywire.toml").write_text(SYSTEM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("db_books", "db_loans"):
        sys.modules.pop(name, None)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["db", *arguments])
    return int(ended.value.code or 0)


def test_stores_are_brought_up_to_date_and_shown(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status") == 1
    assert capsys.readouterr().out == (
        "books\n"
        "  inbox: version 0 of 1, missing 1 (the messages done)\n"
        "  results: version 0 of 1, missing 1 (the outcomes of tasks)\n"
        "  schedule: version 0 of 1, missing 1 (the slots of schedules)\n"
        "  app: version 0 of 2, missing 1 (books), 2 (authors)\n"
        "loans\n"
        "  inbox: version 0 of 1, missing 1 (the messages done)\n"
        "  results: version 0 of 1, missing 1 (the outcomes of tasks)\n"
        "  schedule: version 0 of 1, missing 1 (the slots of schedules)\n"
        "  app: version 0 of 2, missing 1 (books), 2 (authors)\n"
    )
    assert run("upgrade") == 0
    everything = (
        "applied inbox 1 (the messages done), results 1 (the outcomes of tasks), schedule 1 (the slots of schedules), "
        "app 1 (books), app 2 (authors)"
    )
    assert capsys.readouterr().out == f"books: {everything}\nloans: {everything}\n"
    assert run("upgrade") == 0
    assert capsys.readouterr().out == "books: up to date\nloans: up to date\n"
    assert run("status") == 0
    assert capsys.readouterr().out.count("up to date") == 8


def test_a_store_that_is_out_of_date_is_named_with_the_command(shelf: Path) -> None:
    async def start() -> None:
        async with SqliteStore(shelf / "books.db"):
            pass

    with pytest.raises(SetupError) as caught:
        asyncio.run(start())
    assert str(caught.value) == (
        "Store 'books' was not opened: its schema is not up to date. Missing: inbox 1 (the messages done), results 1 "
        "(the outcomes of tasks), schedule 1 (the slots of schedules). Run `polywire db upgrade`, or open the store "
        "with `upgrade=True`."
    )


def test_the_store_of_schedules_is_upgraded_with_the_others(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shelf / "polywire.toml").write_text(SYSTEM + '\n[wires]\nschedule = "sqlite:schedule.db"\n')
    assert run("upgrade") == 0
    assert capsys.readouterr().out.startswith("schedule: applied inbox 1 (the messages done)")
    assert (shelf / "schedule.db").exists()


def test_a_store_that_needs_what_only_runs_with_the_system_is_told(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (shelf / "db_books.py").read_text()
    text = text.replace("async def store(folder: str)", "async def store(folder: str, me: Books)")
    (shelf / "db_books.py").write_text(text)
    assert run("upgrade") == 1
    assert capsys.readouterr().err == (
        "Error: The stores of app 'books' were not looked at: its resource 'store' needs 'me: Books', which is there "
        "only while the system runs. Let the store do without.\n"
    )


def test_a_newer_schema_is_shown_and_not_touched(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("upgrade") == 0
    text = (shelf / "db_books.py").read_text()
    (shelf / "db_books.py").write_text("\n".join(line for line in text.split("\n") if '"authors"' not in line))
    sys.modules.pop("db_books")
    capsys.readouterr()
    newer = (
        "The schema of 'app' has version 2 there, and this program knows version 1. Start the newer program, or "
        "restore a backup from before."
    )
    assert run("status") == 1
    assert f"  app: {newer}\n" in capsys.readouterr().out
    assert run("upgrade") == 1
    assert capsys.readouterr().err == f"Error: Store 'books' was not opened. {newer}\n"
