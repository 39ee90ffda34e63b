"""Properties of both runners under random failures and rebalances: order per key, nothing lost, bounded attempts."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass

from consumer_support import Job, bench, envelope, event, event_handler, handling, log_bench, turns
from hypothesis import given, settings
from hypothesis import strategies as st

from polywire.context import current
from polywire.contract.event import Batch
from polywire.contract.retry import Backoff
from polywire.errors import BatchFailed, Reject, RetryLater

ATTEMPTS = 3
BACKOFF = Backoff(attempts=ATTEMPTS, base=0.5, cap=2.0)


@dataclass
class Fate:
    """What the runs of one message do: fail so many times, by an error of this kind, after so many turns."""

    failures: int
    kind: str
    turns: int

    def error(self) -> BaseException:
        if self.kind == "later":
            return RetryLater("later", after=0.3)
        return Reject("never") if self.kind == "reject" else ValueError("broken")


fates = st.builds(Fate, st.integers(0, 4), st.sampled_from(["error", "error", "later", "reject"]), st.integers(0, 3))
messages = st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), fates), min_size=1, max_size=30)
moves = st.lists(
    st.tuples(st.floats(0.1, 3.0), st.sampled_from(["wait", "wait", "join", "leave", "pause"])), max_size=6
)


class World:
    """Handles messages by their fates, and remembers what happened."""

    def __init__(self, fates: list[Fate]) -> None:
        self.fates = fates
        self.runs: list[int] = []
        self.finished: list[int] = []
        self.attempts: dict[int, list[int]] = defaultdict(list)
        self.running: Counter[str] = Counter()
        self.overlaps = 0

    async def handle(self, job: Job) -> None:
        message = current().message
        assert message is not None
        n, fate = job.n, self.fates[job.n]
        key = message.key
        if key is not None:
            self.overlaps += self.running[key]
            self.running[key] += 1
        try:
            self.runs.append(n)
            self.attempts[n].append(message.attempt)
            for _ in range(fate.turns):
                await asyncio.sleep(0)
            if len(self.attempts[n]) <= fate.failures:
                raise fate.error()
            self.finished.append(n)
        finally:
            if key is not None:
                self.running[key] -= 1

    def dies(self, n: int) -> bool:
        fate = self.fates[n]
        return fate.failures >= (1 if fate.kind == "reject" else ATTEMPTS)

    def check(self, keys: list[str | None], dead: list[str]) -> None:
        count = len(keys)
        assert sorted(dead) == sorted(f"m{n}" for n in range(count) if self.dies(n))
        assert sorted(set(self.finished)) == [n for n in range(count) if not self.dies(n)]
        assert self.overlaps == 0
        for key in {key for key in keys if key is not None}:
            of_key = [n for n in self.runs if keys[n] == key]
            assert of_key == sorted(of_key), key  # each is over before the next one begins, retries included
        for found in self.attempts.values():
            assert len(found) <= ATTEMPTS
            assert found == list(range(1, len(found) + 1))


@settings(max_examples=60)
@given(messages, st.integers(1, 6), st.integers(1, 3))
def test_of_a_log_every_event_ends_done_or_dead_in_the_order_of_its_key(
    sent: list[tuple[str | None, Fate]], concurrency: int, partitions: int
) -> None:
    async def run() -> None:
        world = World([fate for _, fate in sent])
        async with log_bench(partitions) as b:
            runner = await b.run(event_handler(world.handle, backoff=BACKOFF), concurrency=concurrency)
            await b.append(*(event(n, key=key) for n, (key, _) in enumerate(sent)))
            for _ in range(60 * len(sent)):
                await turns(3)
                if runner.counters.done + runner.counters.dead == len(sent):
                    break
                await b.clock.advance(1.0)
            await b.caught_up()
            world.check([key for key, _ in sent], [letter.envelope.id for letter in await b.dead()])
            assert (runner.held, runner.in_flight, len(runner._lanes)) == (0, 0, 0)

    asyncio.run(run())


@settings(max_examples=40)
@given(messages, moves)
def test_of_a_log_nothing_is_lost_and_no_order_broken_while_members_come_and_go(
    sent: list[tuple[str | None, Fate]], moves: list[tuple[float, str]]
) -> None:
    async def run() -> None:
        world = World([fate for _, fate in sent])
        async with log_bench(3) as b:

            async def join() -> None:
                await b.run(event_handler(world.handle, backoff=BACKOFF), concurrency=4)

            await join()
            await b.append(*(event(n, key=key) for n, (key, _) in enumerate(sent)))
            for seconds, move in moves:
                await b.clock.advance(seconds)
                if move == "join":
                    await join()
                elif move == "leave" and len(b.runners) > 1:
                    stopping = asyncio.ensure_future(b.runners.pop(0).stop(1.0))
                    await b.clock.advance(1.0)
                    await stopping
                elif move == "pause":
                    b.runners[0].pause()
                    await b.clock.advance(0.5)
                    b.runners[0].resume()
            everything = {f"m{n}" for n in range(len(sent))}
            ended: set[str] = set()
            for _ in range(60 * len(sent)):
                # What was done behind a gap is read again by the next member: some end twice, none never.
                ended = {f"m{n}" for n in world.finished} | {letter.envelope.id for letter in await b.dead()}
                if not await b.lag() and ended == everything:
                    break
                await b.clock.advance(1.0)
            assert ended == everything
            assert not await b.lag()
            assert world.overlaps == 0
            for key in "abc":
                first = list(dict.fromkeys(n for n in world.runs if sent[n][0] == key))
                assert first == sorted(first)

    asyncio.run(run())


@settings(max_examples=60)
@given(messages, st.integers(1, 6), st.booleans())
def test_of_a_queue_every_message_ends_done_or_dead_in_the_order_of_its_key(
    sent: list[tuple[str | None, Fate]], concurrency: int, keyed: bool
) -> None:
    async def run() -> None:
        keys = [key if keyed else None for key, _ in sent]
        world = World([fate for _, fate in sent])
        async with bench(keyed=keyed) as b:
            runner = await b.run(handling(world.handle, backoff=BACKOFF), concurrency=concurrency)
            await b.send(*(envelope(n, key=key) for n, key in enumerate(keys)))
            for _ in range(60 * len(sent)):
                await turns(3)
                if not await b.left():
                    break
                await b.clock.advance(1.0)
            world.check(keys, [letter.envelope.id for letter in await b.dead()])
            counters = runner.counters
            assert counters.done + counters.dead == len(sent)
            assert counters.started == len(world.runs) == counters.done + counters.dead + counters.retried
            assert (runner.held, runner.in_flight) == (0, 0)

    asyncio.run(run())


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 4)), min_size=1, max_size=20),
    st.integers(1, 5),
    st.booleans(),
)
def test_of_batches_every_event_ends_done_or_dead_and_a_key_never_overtakes_itself(
    sent: list[tuple[str | None, int]], size: int, tells: bool
) -> None:
    """*tells*: the handler names the message that failed, at which it stopped; otherwise it raises."""

    async def run() -> None:
        failed: Counter[int] = Counter()
        done: list[int] = []

        async def handle(jobs: list[Job]) -> None:
            assert len(jobs) <= size
            for place, job in enumerate(jobs):
                if failed[job.n] < sent[job.n][1]:
                    failed[job.n] += 1
                    if tells:
                        raise BatchFailed({n: ValueError("x") for n in range(place, len(jobs))})
                    raise ValueError("x")
                if job.n not in done:
                    done.append(job.n)

        async with log_bench(1) as b:
            handler = event_handler(handle, backoff=BACKOFF, batch=Batch(size, wait=0.1))
            runner = await b.run(handler, concurrency=3)
            await b.append(*(event(n, key=key) for n, (key, _) in enumerate(sent)))
            for _ in range(100 * len(sent)):
                await turns(3)
                if runner.counters.done + runner.counters.dead == len(sent):
                    break
                await b.clock.advance(1.0)
            await b.caught_up()
            dead = {int(letter.envelope.id[1:]) for letter in await b.dead()}
            assert set(done) | dead == set(range(len(sent)))
            assert dead <= {n for n, (_, failures) in enumerate(sent) if failures}
            for key in "ab":
                of_key = [n for n in done if sent[n][0] == key]
                assert of_key == sorted(of_key)

    asyncio.run(run())
