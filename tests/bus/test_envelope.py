"""Ids and headers of messages."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid

import pytest

from polywire.bus.core import new_id
from polywire.bus.core.envelope import checked_headers


def test_ids_are_uuids_of_version_7_which_never_go_back() -> None:
    made = [new_id() for _ in range(5000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    for text in made:
        read = uuid.UUID(text)
        assert (str(read), read.version, read.variant) == (text, 7, uuid.RFC_4122)


def test_an_id_says_when_it_was_made() -> None:
    """In a process of its own, as ids do not go back."""
    made = _printed("print(new_id(4_000_000_000.5))")
    assert uuid.UUID(made[0]).int >> 80 == 4_000_000_000_500


def test_ids_of_several_threads_are_different() -> None:
    made: list[list[str]] = [[] for _ in range(4)]

    def make(into: list[str]) -> None:
        into.extend(new_id() for _ in range(2000))

    threads = [threading.Thread(target=make, args=(into,)) for into in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({text for into in made for text in into}) == 8000


def test_a_forked_child_makes_other_ids() -> None:
    made = _printed("new_id(); import os; os.fork(); print(''.join(new_id() + ' ' for _ in range(100)), end='')")
    assert len({text[19:] for text in made}) == len(made) == 200


def _printed(program: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", f"from polywire.bus.core import new_id; {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.split()


def test_names_of_headers_are_lowered_and_checked_each_time() -> None:
    for _ in range(2):
        assert checked_headers([("Tenant", "a"), ("x.y_z-1", "ü")]) == {"tenant": "a", "x.y_z-1": "ü"}
        with pytest.raises(ValueError, match="is no name of a header") as raised:
            checked_headers([("a b", "1")])
        assert str(raised.value) == (
            "The message was not sent: 'a b' is no name of a header. Use letters, digits, '-', '_'."
        )
    for name in ("", "a\n", "ä", "a:b"):
        with pytest.raises(ValueError, match="is no name of a header"):
            checked_headers([(name, "1")])


def test_headers_are_counted_in_bytes() -> None:
    assert checked_headers([("a", "x" * 8191)]) == {"a": "x" * 8191}
    with pytest.raises(ValueError, match="Put the rest into the message") as raised:
        checked_headers([("a", "é" * 4096)])
    assert str(raised.value) == (
        "The message was not sent: its 1 headers have 8193 bytes; at most 64 with 8192 bytes may go along. "
        "Put the rest into the message."
    )
