"""`polywire bus`: what an operator sees and does, on the embedded bus of a small system."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_up_bus import tinybus

from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.core import Bury, Seek, Settlement
from polywire.cli import main
from polywire.cli.bus import moment, seek_of
from polywire.errors import SetupError

QUEUE = "tinybus.v1.Work"
GROUP = "tinybus.jobs/works"


def bus(directory: Path, *arguments: str, status: int = 0) -> str:
    """What the command says, on both outputs."""
    said = io.StringIO()
    ended = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(["bus", *arguments, "--system", str(directory / "polywire.toml")])
        except SystemExit as end:
            ended = int(end.code or 0)
    assert ended == status, said.getvalue()
    return said.getvalue()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """With a system whose bus is as declared."""
    tinybus(tmp_path)
    bus(tmp_path, "apply")
    return tmp_path


def rows(directory: Path) -> dict[str, dict[str, object]]:
    found = [json.loads(line) for line in bus(directory, "status", "--json").splitlines()]
    return {row["name"]: row for row in found}


def bury_all(directory: Path, error: str) -> None:
    """As a worker that gives up on everything that waits."""

    async def work() -> None:
        queue = SqliteQueue(f"sqlite:{directory / '.polywire' / 'bus.db'}")
        await queue.start()
        consumer = await queue.consumer(QUEUE, limit=100)
        waiting = (await queue.stats(QUEUE)).ready
        while waiting:
            received = await consumer.receive(100)
            started = await consumer.settle([], starting=received)
            await consumer.settle([Settlement(one, Bury("rejected", error)) for one in started])
            waiting -= len(received)
        await consumer.close()
        await queue.close()

    asyncio.run(work())


def test_plan_names_what_is_missing_and_apply_creates_it(tmp_path: Path) -> None:
    tinybus(tmp_path)
    planned = bus(tmp_path, "plan", status=1)
    assert planned.splitlines() == [
        f"would create the queue '{QUEUE}'",
        "would create the topic 'tinybus.jobs' with 8 partitions",
        "would create the group 'works' of 'tinybus.jobs'",
    ]

    assert bus(tmp_path, "apply").splitlines() == [
        f"created the queue '{QUEUE}'",
        "created the topic 'tinybus.jobs' with 8 partitions",
        "created the group 'works' of 'tinybus.jobs'",
        "All queues, topics and groups are as declared.",
    ]
    assert bus(tmp_path, "plan") == "All queues, topics and groups are as declared.\n"


def test_what_is_sent_from_the_shell_is_there_to_be_seen(directory: Path) -> None:
    identifier = bus(directory, "enqueue", f"{QUEUE}/do", "name=a").strip()
    event = bus(directory, "publish", "tinybus.jobs.JobAccepted", "name=b", "--id", "event-1").strip()

    assert event == "event-1"
    found = rows(directory)
    assert (found[QUEUE]["ready"], found[QUEUE]["dead"]) == (1, 0)
    assert found[GROUP]["ready"] == 1
    (line,) = bus(directory, "peek", QUEUE).splitlines()
    seen = json.loads(line)
    assert (seen["id"], seen["type"], seen["source"], seen["body"]) == (
        identifier,
        "tinybus.v1.Work/Do",
        "operator",
        '{"name":"a"}',
    )
    (line,) = bus(directory, "peek", GROUP).splitlines()
    assert json.loads(line)["body"] == '{"name":"b"}'
    assert bus(directory, "status").splitlines()[0].split() == [
        "NAME", "READY", "DELAYED", "IN", "FLIGHT", "DEAD", "OLDEST", "MEMBERS",
    ]  # fmt: skip


def test_dead_letters_are_listed_shown_sent_again_and_dropped(directory: Path) -> None:
    for name in ("a", "b", "c"):
        bus(directory, "enqueue", f"{QUEUE}/do", f"name={name}", "--id", name)
    bury_all(directory, "no such address")

    listed = bus(directory, "dead", "list", QUEUE).splitlines()
    assert len(listed) == 4
    assert listed[0].endswith("tinybus.v1.Work/Do  rejected after 1  no such address")
    assert listed[-1] == f"3 dead letters of {QUEUE}."
    shown = json.loads(bus(directory, "dead", "show", QUEUE, "b"))
    assert (shown["id"], shown["reason"], shown["error"], shown["body"]) == (
        "b",
        "rejected",
        "no such address",
        '{"name":"b"}',
    )

    would = bus(directory, "dead", "retry", QUEUE, "--error", "address", "--dry-run")
    assert would == f"3 dead letters of {QUEUE} would be retried.\n"
    assert rows(directory)[QUEUE]["dead"] == 3
    assert bus(directory, "dead", "retry", QUEUE, "--id", "a") == f"1 dead letters of {QUEUE} retried.\n"
    assert (rows(directory)[QUEUE]["ready"], rows(directory)[QUEUE]["dead"]) == (1, 2)
    assert bus(directory, "dead", "drop", QUEUE, "--all", "--rate", "100") == f"2 dead letters of {QUEUE} dropped.\n"
    assert rows(directory)[QUEUE]["dead"] == 0


def test_nothing_is_retried_or_dropped_without_being_named(directory: Path) -> None:
    assert bus(directory, "dead", "drop", QUEUE, status=1) == (
        f"Error: Nothing was dropped: say which dead letters of {QUEUE}, by --id, --type, --reason, --error, --since "
        "or --until, or --all.\n"
    )
    assert bus(directory, "dead", "show", QUEUE, "x", status=1) == (
        f"Error: {QUEUE} has no dead letter with the id 'x'. `polywire bus dead list {QUEUE}` lists them.\n"
    )


def test_a_group_is_sent_to_the_end_and_back(directory: Path) -> None:
    for name in ("a", "b", "c"):
        bus(directory, "publish", "tinybus.jobs.JobAccepted", f"name={name}")
    assert rows(directory)[GROUP]["ready"] == 3

    assert bus(directory, "replay", GROUP, "--from", "latest") == f"{GROUP} goes on from latest.\n"
    assert rows(directory)[GROUP]["ready"] == 0
    bus(directory, "replay", GROUP, "--from", "1h")
    assert rows(directory)[GROUP]["ready"] == 3


def test_what_is_not_there_is_named_with_what_is(directory: Path) -> None:
    assert bus(directory, "peek", "tinybus.v1.Wrk", status=1) == (
        f"Error: There is no queue or group 'tinybus.v1.Wrk'. Did you mean '{QUEUE}'? There are: {QUEUE}, {GROUP}.\n"
    )
    assert bus(directory, "replay", QUEUE, "--from", "earliest", status=1) == (
        f"Error: '{QUEUE}' was not replayed: a queue keeps nothing that was done. Only groups of a log can be.\n"
    )


def test_times_and_offsets_are_read_as_they_are_typed() -> None:
    assert moment("2026-11-21T10:00") == datetime(2026, 11, 21, 10, tzinfo=UTC).timestamp()
    assert abs(moment("2h") - (datetime.now(UTC).timestamp() - 7200)) < 5
    assert seek_of("0=17,1=4") == Seek(offsets={0: 17, 1: 4})
    assert seek_of("earliest") == Seek(earliest=True)
    with pytest.raises(SetupError) as caught:
        seek_of("yesterday")
    assert str(caught.value) == ("'yesterday' is no time. Write 2026-11-21T10:00, or how long ago: 90s, 30m, 2h, 7d.")
