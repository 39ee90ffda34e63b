"""What a member keeps per partition, and what its commits say: without a server."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from polywire.bus.backend import kafka_lane
from polywire.bus.backend.kafka_lane import AHEAD, BUFFERED, BUFFERED_BYTES, DUE, KafkaRecord, Lane, RetryLane
from polywire.bus.backend.kafka_marks import Mark, inherited, read
from polywire.bus.backend.kafka_messages import ORIGIN, headers_of
from polywire.bus.core import Envelope

PLACE = ("orders", 0)


class Arrived:
    """A message as librdkafka hands it over."""

    def __init__(
        self, offset: int, envelope: Envelope, told: dict[str, str] | None = None, topic: str = "orders"
    ) -> None:
        self._offset = offset
        self._envelope = envelope
        self._topic = topic
        self._headers = [
            (name, str(value).encode()) for name, value in {**headers_of(envelope), **(told or {})}.items()
        ]

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes:
        return self._envelope.body

    def headers(self) -> Any:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return (1, 0)


def lane(mark: Mark | None = None, *, arrived: range = range(0), limit: int = 100) -> Lane:
    made = Lane(PLACE, 1, mark or Mark(0), limit)
    for offset in arrived:
        made.arrive(message(offset), offset)
    return made


def message(offset: int, body: bytes = b"x") -> Arrived:
    return Arrived(offset, Envelope(f"id-{offset}", "shop.v1.OrderPaid", body))


def go(lane: Lane, most: int = 1000) -> list[KafkaRecord]:
    """What may be handed out, once all that has to be committed before is."""
    taken: list[KafkaRecord] = lane.take(most, 0.0)
    while (mark := lane.cover()) is not None and len(taken) < most:
        lane.covered(mark)
        more = lane.take(most - len(taken), 0.0)
        if not more:
            break
        taken += more
    return taken


def offsets(records: list[KafkaRecord]) -> list[int]:
    return [record.at for record in records]


# ---- the watermark -------------------------------------------------------------------------------------------------


def test_only_what_is_done_without_a_gap_moves_the_watermark() -> None:
    made = lane(arrived=range(6))
    assert offsets(go(made)) == [0, 1, 2, 3, 4, 5]
    for offset, watermark in ((3, 0), (1, 0), (0, 2), (5, 2), (2, 4), (4, 6)):
        made.finish(offset)
        assert made.watermark == watermark
        assert made.mark().offset == watermark


def test_offsets_that_a_log_left_out_do_not_hold_up_the_watermark() -> None:
    made = lane(Mark(5))
    for offset in (7, 10, 11):
        made.arrive(message(offset), offset)
    go(made)
    made.finish(7)
    assert made.watermark == 8
    made.finish(11)
    made.finish(10)
    assert made.watermark == 12


def test_any_order_of_finishing_ends_at_the_last_offset_and_never_passes_what_is_not_done() -> None:
    for seed in range(200):
        dice = random.Random(seed)
        made = lane(arrived=range(30))
        held = offsets(go(made))
        dice.shuffle(held)
        open_ = set(held)
        for offset in held:
            made.finish(offset)
            open_.discard(offset)
            assert made.watermark == min(open_, default=30)


def test_what_was_never_handed_out_cannot_be_done() -> None:
    made = lane(arrived=range(3))
    made.finish(0)
    assert made.watermark == 0
    assert not made.holds(0)


def test_a_log_that_starts_over_is_read_from_there() -> None:
    made = lane(Mark(100), arrived=range(100, 103))
    go(made)
    made.arrive(message(0), 0)
    assert made.watermark == 0
    assert not made.holds(100)
    assert offsets(go(made)) == [0]


# ---- bounds --------------------------------------------------------------------------------------------------------


def test_a_lane_holds_at_most_its_limit() -> None:
    made = lane(arrived=range(50), limit=10)
    assert len(go(made)) == 10
    assert go(made) == []
    made.finish(4)
    assert offsets(go(made)) == [10]


def test_a_lane_does_not_go_on_far_behind_a_record_that_is_not_done() -> None:
    made = lane(arrived=range(3 * AHEAD), limit=10)
    (first,) = go(made, 1)
    seen = 1
    while records := go(made):
        seen += len(records)
        for record in records:
            made.finish(record.at)
    assert seen == AHEAD
    made.finish(first.at)
    assert offsets(go(made)) == list(range(AHEAD, AHEAD + 10))


def test_a_lane_is_full_by_number_or_by_bytes() -> None:
    made = lane(arrived=range(BUFFERED - 1))
    assert not made.full
    made.arrive(message(BUFFERED - 1), BUFFERED - 1)
    assert made.full
    for _ in range(10):
        for record in go(made):
            made.finish(record.at)
    assert made.low
    large = lane()
    large.arrive(message(0, b"x" * BUFFERED_BYTES), 0)
    assert large.full
    assert not large.low
    assert len(go(large)) == 1
    assert large.low


# ---- after a crash -------------------------------------------------------------------------------------------------


def after_crash(made: Lane, *, reach: int = 20) -> Lane:
    """The lane of the next member, who reads what the last commit said."""
    mark = made.committed or Mark(0)
    again = inherited(read(mark.offset, mark.text), reach)
    return lane(again, arrived=range(again.offset, 100), limit=10)


def commit(made: Lane, mark: Mark | None) -> None:
    assert mark is not None
    made.covered(mark)
    made.committed = mark


def test_the_first_batch_goes_only_after_a_commit_and_later_ones_at_once() -> None:
    made = lane(arrived=range(30), limit=10)
    assert made.take(10, 0.0) == []
    mark = made.cover()
    assert mark == Mark(0, True, 10)
    assert mark is not None
    assert mark.text == "polywire open=1 started=10 lost=0 suspects=0 guarded=0"
    commit(made, mark)
    assert len(made.take(10, 0.0)) == 10
    for offset in range(10):
        made.finish(offset)
    assert len(made.take(10, 0.0)) == 10
    assert made.mark() == Mark(10, True, 20)


def test_what_was_handed_out_by_a_dead_member_comes_one_at_a_time_and_counts_as_lost() -> None:
    made = lane(arrived=range(30), limit=3)
    commit(made, made.cover())
    made.take(3, 0.0)
    again = after_crash(made)
    mark = again.cover()
    assert mark == Mark(0, True, 1, 1, 3, 20)
    commit(again, mark)
    (record,) = again.take(10, 0.0)
    assert (record.at, record.lost, record.attempt) == (0, 1, 2)
    assert again.cover() is None
    again.finish(0)
    commit(again, again.cover())
    (record,) = again.take(10, 0.0)
    assert (record.at, record.lost) == (1, 1)
    again.finish(1)
    commit(again, again.cover())
    again.finish(again.take(10, 0.0)[0].at)
    # No suspects any more, but as far as the dead one may have got each batch is noted before it goes.
    assert again.take(10, 0.0) == []
    assert again.cover() == Mark(3, True, 13, 0, 0, 20)


@pytest.mark.parametrize("poison", [0, 1, 7, 9, 10, 15, 25])
@pytest.mark.parametrize("commits", [0.0, 0.3, 1.0])
def test_a_record_that_kills_its_workers_is_convicted_and_no_other(poison: int, commits: float) -> None:
    """Whatever the luck with the commits in between, which are made with probability *commits*."""
    for seed in range(20):
        dice = random.Random(seed)
        lost: dict[int, int] = {}
        made = lane(arrived=range(100), limit=10)
        crashes = 0
        while (convicted := run_until_crash(made, poison, lost, lambda dice=dice: dice.random() < commits)) is None:
            crashes += 1
            assert crashes < 8
            made = after_crash(made, reach=60)
        assert convicted == poison
        assert {offset for offset, count in lost.items() if count > 1} <= {poison}


def run_until_crash(made: Lane, poison: int, lost: dict[int, int], lucky: Any) -> int | None:
    """Handle one after the other, in order; returns what is lost for the third time, None where the worker died."""
    while True:
        if (mark := made.cover()) is not None:
            commit(made, mark)
        records = made.take(10, 0.0)
        assert records
        for record in records:
            lost[record.at] = max(lost.get(record.at, 0), record.lost)
            if record.lost >= 3:
                return record.at
            if record.at == poison:
                return None
            made.finish(record.at)
            if lucky():
                made.committed = made.mark()


def test_what_a_dead_member_held_behind_a_slow_one_goes_beside_it_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = lane(Mark(0, True, 0, 1, 5, 20), arrived=range(10))
    commit(made, made.cover())
    made.take(10, 0.0)
    assert made.cover() is None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + kafka_lane.SUSPECT + 0.1)
    assert made.cover() == Mark(0, True, 2, 1, 5, 20)


def test_who_leaves_in_order_costs_nobody_anything() -> None:
    made = lane(arrived=range(30), limit=3)
    commit(made, made.cover())
    made.take(3, 0.0)
    made.finish(0)
    last = made.last_mark()
    assert last == Mark(1, False, 3)
    assert inherited(last, 1000) == last
    # What was lost before stays lost.
    suspect = lane(Mark(4, True, 4, 2, 6, 50), arrived=range(4, 30))
    assert suspect.last_mark() == Mark(4, False, 4, 2, 6, 50)
    assert go(lane(suspect.last_mark(), arrived=range(4, 30)), 1)[0].lost == 2


def test_every_commit_repeats_the_generation_of_the_group() -> None:
    made = lane(Mark(0, generation=3), arrived=range(30), limit=3)
    commit(made, made.cover())
    assert [record.generation for record in made.take(10, 0.0)] == [3, 3, 3]
    made.finish(0)
    for mark in (made.mark(), made.last_mark(), inherited(made.mark(), 10)):
        assert mark.generation == 3
        assert read(mark.offset, mark.text) == mark
    assert made.mark().text == "polywire open=1 started=3 lost=0 suspects=0 guarded=0 generation=3"
    again = after_crash(made)
    commit(again, again.cover())
    assert again.take(1, 0.0)[0].generation == 3


MANY = f"polywire open=0 started=0 lost=0 suspects=0 guarded=0 generation={'9' * 4000}"


def test_a_commit_that_somebody_else_made_says_nothing() -> None:
    for text in (None, "", "mine", "polywire", "polywire open=1 started=x lost=0 suspects=0 guarded=0", MANY):
        assert read(7, text) == Mark(7)
    mark = Mark(7, True, 9, 1, 8, 100)
    assert read(7, mark.text) == mark


# ---- retries -------------------------------------------------------------------------------------------------------


def retries(mark: Mark | None = None, *, due: tuple[float, ...], limit: int = 100) -> RetryLane:
    made = RetryLane(("orders.g.retry.5s", 0), 1, mark or Mark(0), limit, "orders")
    for offset, when in enumerate(due):
        envelope = Envelope(f"id-{offset}", "shop.v1.OrderPaid", b"x", attempt=2, lost=1)
        told = {ORIGIN: f"orders/3@{100 + offset}", DUE: repr(when)}
        made.arrive(Arrived(offset, envelope, told, "orders.g.retry.5s"), offset)
    return made


def test_retries_go_when_they_are_due_the_earliest_first() -> None:
    made = retries(due=(30.0, 10.0, 20.0))
    commit(made, made.cover())
    assert made.take(10, 9.9) == []
    assert made.next_due() == 10.0
    (record,) = made.take(10, 10.0)
    assert (record.at, record.topic, record.partition, record.offset) == (1, "orders", 3, 101)
    assert (record.attempt, record.lost, record.retried) == (3, 1, True)
    made.finish(1)
    assert made.watermark == 0
    assert offsets(made.take(10, 30.0)) == [2, 0]
    made.finish(2)
    made.finish(0)
    assert made.watermark == 3
    assert made.next_due() is None


def test_retries_of_a_dead_member_go_in_their_order_and_one_at_a_time() -> None:
    made = retries(Mark(0, True, 0, 1, 2, 50), due=(10.0, 5.0, 1.0))
    commit(made, made.cover())
    assert made.take(10, 9.0) == []
    assert made.cover() is None
    (record,) = made.take(10, 10.0)
    assert (record.at, record.lost, record.attempt) == (0, 2, 4)
    made.finish(0)
    commit(made, made.cover())
    assert offsets(made.take(10, 10.0)) == [1]


def test_a_retry_of_which_nobody_knows_the_origin_is_one_of_its_topic() -> None:
    made = RetryLane(("orders.g.retry.5s", 0), 1, Mark(0), 10, "orders")
    made.arrive(message(0), 0)
    (record,) = go(made)
    assert (record.topic, record.partition, record.offset, record.attempt) == ("orders", 0, 0, 1)
