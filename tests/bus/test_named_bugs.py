"""The bugs that a bus must not have, planted into the backend where each belongs: the test that finds it, by name.

Memory and the consumer, which is one for all, have theirs in `test_suites_catch_bugs` and `test_consumer_planted`.
Two of the bugs have no place in a backend: sqlite makes no retry copies, as a message keeps its row; and in a log what
was handed out counts as started, so that attempts are counted at nothing else.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import named_bugs_support as bugs
import pytest
from sqlite_disk_support import Disk

from polywire.errors import BackendLost, ConsumerClosed
from polywire.testing import buses

pytestmark = pytest.mark.slow

PATIENCE = 10.0
"""Seconds after which a suite that waits for what a bug has lost gives up; what is not lost comes far sooner."""

RABBITMQ = "test_rabbitmq_suite.TestRabbitQueue"
SQLITE_QUEUE = "test_sqlite_suite.TestSqliteQueue"
SQLITE_LOG = "test_sqlite_suite.TestSqliteLog"
KAFKA = "test_kafka_suite.TestKafka"

PLANTED: list[tuple[str, str]] = [
    # ack before handling
    ("rabbitmq_acks_before_handling", f"{RABBITMQ}.test_a_consumer_killed_before_ack_loses_no_message"),
    ("sqlite_acks_before_handling", f"{SQLITE_QUEUE}.test_a_consumer_killed_before_ack_loses_no_message"),
    ("kafka_is_done_before_handling", f"{KAFKA}.test_only_what_was_done_without_a_gap_is_not_read_again"),
    # commit of the last finished offset
    ("kafka_commits_the_last_finished", f"{KAFKA}.test_only_what_was_done_without_a_gap_is_not_read_again"),
    ("sqlite_commits_the_last_finished", f"{SQLITE_LOG}.test_only_what_was_done_without_a_gap_is_not_read_again"),
    # unfenced ack
    ("rabbitmq_acks_without_fence", f"{RABBITMQ}.test_a_delivery_that_was_settled_cannot_be_settled_again_or_started"),
    ("sqlite_acks_without_fence", f"{SQLITE_QUEUE}.test_settling_what_is_no_longer_held_changes_nothing"),
    (
        "kafka_commits_without_fence",
        f"{KAFKA}.test_done_of_an_older_epoch_is_ignored_when_its_next_reader_is_killed",
    ),
    # retry copy after ack
    (
        "rabbitmq_copies_after_the_ack",
        "test_rabbitmq.test_the_copy_of_a_retry_is_confirmed_before_the_original_is_acknowledged",
    ),
    ("kafka_copies_after_the_ack", "test_kafka_copies.test_an_event_whose_copy_cannot_be_written_is_not_done"),
    # publish without confirm
    (
        "rabbitmq_publishes_without_confirm",
        "test_rabbitmq_confirms.test_what_nobody_confirms_is_perhaps_sent_and_never_confirmed",
    ),
    ("kafka_publishes_without_confirm", "test_kafka.test_a_message_that_the_broker_finds_too_large_is_refused"),
    (
        "sqlite_confirms_before_the_commit",
        "test_sqlite_faults.test_a_message_whose_commit_failed_may_have_been_sent",
    ),
    # basic_cancel with deliveries outstanding
    (
        "rabbitmq_cancels_as_pika_does",
        "test_rabbitmq.test_more_shutdowns_than_the_broker_counts_bury_no_message",
    ),
    (
        "rabbitmq_cancels_lanes_too",
        f"{RABBITMQ}.test_order_per_key_is_kept_when_a_consumer_is_closed_while_another_one_waits",
    ),
    (
        "rabbitmq_closes_lanes_in_order_of_the_broker",
        f"{RABBITMQ}.test_order_per_key_is_kept_when_a_consumer_is_closed_while_another_one_waits",
    ),
    # attempts counted at claim
    ("rabbitmq_counts_at_claim", f"{RABBITMQ}.test_what_was_received_but_never_started_costs_no_attempt"),
    ("sqlite_counts_at_claim", f"{SQLITE_QUEUE}.test_what_was_received_but_never_started_costs_no_attempt"),
]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """As in `test_sqlite_faults`."""
    made = Disk()
    yield made
    made.close()


def _suite(kind: type[Any], request: pytest.FixtureRequest) -> Any:
    """As pytest prepares it, with less patience."""
    suite = type(kind.__name__, (kind,), {"patience": PATIENCE})()
    if kind.__name__ == "TestRabbitQueue":
        suite.server = request.getfixturevalue("rabbitmq_url")
    elif kind.__name__ == "TestKafka":
        type(suite).address = request.getfixturevalue("kafka_url")
    else:
        suite.folder = request.getfixturevalue("tmp_path")
    return suite


def _found(path: str, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A test by module, class where it has one, and name."""
    module, *names = path.split(".")
    found: Any = importlib.import_module(module)
    if len(names) == 2:
        found = _suite(getattr(found, names[0]), request)
    test: Callable[..., Any] = getattr(found, names[-1])
    return test


async def _run(test: Callable[..., Any], fixtures: dict[str, Any]) -> None:
    try:
        await test(**fixtures)
    except unittest.SkipTest as reason:
        pytest.fail(f"it proves nothing: it was skipped, because {reason}")


@pytest.mark.parametrize(("bug", "found_by"), PLANTED, ids=[bug for bug, _ in PLANTED])
def test_a_bug_of_a_backend_is_found_by_name(
    bug: str, found_by: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = _found(found_by, request)
    fixtures = {name: request.getfixturevalue(name) for name in inspect.signature(test).parameters}
    getattr(bugs, bug)(monkeypatch.setattr)
    program = str(Path(bugs.__file__).resolve())
    monkeypatch.setattr(buses, "WORKER", [program, bug])
    with pytest.raises((AssertionError, BackendLost, ConsumerClosed, TimeoutError)):
        asyncio.run(_run(test, fixtures))
