"""Bugs planted in the engines, each of which calls under faults have to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.faults import test_fault_load, test_fault_positions
from tests.faults.parrot_calls_support import Wire

from polywire.net.http1.client import Http1ClientConnection
from polywire.net.http2.client import Http2Client
from polywire.net.http2.upkeep import Upkeep
from polywire.net.loop import run

Plant = Callable[[pytest.MonkeyPatch], None]


def a_connection_that_was_given_up_is_used_again(patch: pytest.MonkeyPatch) -> None:
    def give_up(self: Any) -> None:
        self._drop()
        self._body = None
        self._released(self)

    patch.setattr(Http1ClientConnection, "give_up", give_up)


def late_frames_go_to_the_next_call(patch: pytest.MonkeyPatch) -> None:
    late: dict[int, list[int]] = {}
    reset, opened = Upkeep.reset_stream, Http2Client.open

    def reset_stream(self: Any, stream: Any, code: int) -> None:
        reset(self, stream, code)
        late.setdefault(id(self), []).append(stream.id)

    def open_next(self: Any, *given: Any, **options: Any) -> Any:
        stream = opened(self, *given, **options)
        for sid in late.pop(id(self), []):
            self.streams.setdefault(sid, stream)
        return stream

    patch.setattr(Upkeep, "reset_stream", reset_stream)
    patch.setattr(Http2Client, "open", open_next)


PLANTS: list[tuple[Plant, Wire]] = [
    (a_connection_that_was_given_up_is_used_again, "connect over HTTP/1.1"),
    (late_frames_go_to_the_next_call, "grpc"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("plant", "wire"), PLANTS, ids=[plant.__name__ for plant, _ in PLANTS])
def test_an_engine_that_mixes_answers_up_is_found(plant: Plant, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, ExceptionGroup)) as found:
        run(test_fault_load.loaded(wire))
    assert has_assertion(found.value)


@pytest.mark.slow
async def test_an_engine_that_says_of_all_lost_calls_that_they_reached_nobody_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Http2Client, "_was_sent", lambda _self, _sid: False)
    with pytest.raises(AssertionError):
        await test_fault_positions.test_a_connection_may_break_off_after_each_byte("grpc", "say")


def has_assertion(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(has_assertion, error.exceptions))
    return isinstance(error, AssertionError)
