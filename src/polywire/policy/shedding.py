"""How many calls a service works on at once, and which are turned away beyond that."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable

from polywire.contract.policies import Shedding
from polywire.contract.priority import Priority
from polywire.errors import ResourceExhausted

SAMPLES = 128
"""The last so many calls of a window are looked at."""
LEARNING = 0.2
"""How far what calls take without load follows a window in which they took less."""
HELD_BACK = 0.3
"""Where this share of the calls is turned away, it is the limit that holds them back."""
BRUSHED = 20
"""After so many windows in which slow calls were turned away, however few, it is tried out whether the limit helps."""
NEAR = 25
"""Where calls became slow that the limit does not hold back, it comes no lower than this: few calls say too little."""
STEP = 0.7
"""The limit comes down to this share of itself at once."""
BLIND_STEP = 0.35
"""The same where even quick calls are cut short by their deadlines, so that no step can be judged, or where it is
a long way."""
HELPED = 0.92
"""That helped where calls take at most this share of what they took before,"""
FASTER = 0.8
"""or, where the loop is what they wait for, where as many as are under way at once end in this share of the time."""
UNREAD = 0.25
"""They wait for the loop where they waited to be read for this share of what they take."""
FAR = 4.0
"""Where they do, and take so many times what would be slow, the limit comes down by `BLIND_STEP`."""
SURE = 2
"""Windows in a row that must show that it did not."""
KNOWN = 4.0
"""Seconds for which it is known, after a step that helped, that calls at the edge of slow wait for each other."""
EDGE = 1.5
"""They are at the edge while they take at most so many times what is slow."""
STUCK = 5
"""Windows at the minimum after which what calls take there is what they take."""
PATIENT = 2.0
"""Who cancels sooner than after so many times what calls take without load does not do so for want of patience."""
GIVEN_UP = 0.125
"""What a caller who cancels counts for beside a deadline. Nobody says why they do: it tells where four of five do."""
PROBE = 30.0
"""Seconds after which a limit that holds calls back is looked at by a step down, about."""
PROBE_SOON = 2.0
"""The same after a step that did not help: that may have been a mistake."""


SHORT = 0.001
"""Seconds: what waited no longer to be read did not wait."""


class Backlog:
    """How long calls may have waited to be read at all: a loop that is busy with handlers reads nothing meanwhile.

    What came in that time is read in one turn of the loop, and looks as if it had come just then. It came since the
    turn before, though, of which the loop was busy for as long as its thread has used the processor since.

    Set *turned* whenever a call is begun: what is read after that is read in another turn. *cpu* is the time that the
    thread has used the processor, in seconds.
    """

    __slots__ = ("_cpu", "_read_at", "_used", "seconds", "turned")

    def __init__(self, cpu: Callable[[], float]) -> None:
        self.seconds = 0.0
        self.turned = True
        self._cpu = cpu
        self._read_at = math.inf
        """When the last turn was that took longer, and how much of the processor had been used then."""
        self._used = 0.0

    def turn(self, now: float) -> float:
        """The first call of a turn is read."""
        self.turned = False
        if 0.0 <= now - self._read_at < SHORT:
            self.seconds = 0.0
            return 0.0
        used = self._cpu()
        self.seconds = max(0.0, min(used - self._used, now - self._read_at))
        self._used = used
        self._read_at = now
        return self.seconds


class Limiter:
    """The state machine behind a `Shedding`: admits calls up to a limit, and finds the limit by how long they take.

    It belongs to the gradient limits ("Performance Under Load", Netflix 2018; `Gradient2Limit` of
    Netflix/concurrency-limits; Envoy's adaptive concurrency): the limit grows while calls take hardly longer than
    without load, and comes down where they take longer. What differs is how the time without load is known. An average
    over a long time follows an overload that lasts, and then the limit grows without end
    (Netflix/concurrency-limits#134). The shortest time ever seen makes a dependency that became slow look like load,
    and then the limit shrinks to nothing. Here that time goes down with what is seen, and up only by an experiment:
    what calls take because others are before them becomes less in proportion when there are fewer. So the limit walks
    down in steps for as long as each step helps. A step that does not help is taken back: what calls take then is what
    they take, whether that is work or the wait for somebody else. The same is done now and then while the limit holds
    calls back, so that no wrong finding stays. For a while after a walk that helped, what it has shown is used: the
    limit then follows what calls take in small moves, as steps that are long enough to judge cost goodput.

    A window is judged by its quick calls, those at the tenth percentile: a queue that stands makes every call wait
    (the insight of CoDel: Nichols and Jacobson, "Controlling Queue Delay", 2012), and a dependency that some methods
    wait for does not.

    Where calls wait for a busy event loop, which reads many at once and works them off in one go, a step is judged by
    how many end in a second instead: `read` is told how long they waited to be read.

    Each call that `admit` took ends by one of `answered`, `cut_short`, `given_up` and `left`. All times are on one
    monotonic scale in seconds. *seconds* count from when the call arrived, so that waiting for the loop is part of
    them. A stream tells nothing of that: how long it lasts is up to whoever listens.
    """

    # What every call touches. Among so many attributes the others would make it slower.
    __slots__ = (
        "__dict__",
        "_began",
        "_ended",
        "_low",
        "_peak",
        "_rooms",
        "_samples",
        "_tried",
        "_until",
        "in_flight",
        "policy",
    )

    def __init__(self, policy: Shedding, *, dice: Callable[[], float] = random.random) -> None:
        self.policy = policy
        self.in_flight = 0
        self.shed = 0
        """How many calls were turned away in all."""
        self.usual = 0.0
        """Seconds that quick calls take without load, 0 while that is not known."""
        self._dice = dice
        self._limit = 0.0
        self.streams = 0
        """How many streams are open."""
        self._rooms = (0, 0, 0)
        self._set_limit(policy.limit)
        self._stream_rooms = _shared_out(policy, policy.streams)
        self._walk: tuple[float, float, float] | None = None
        """While the limit comes down: what it was before the last step, what calls took then, and their turnover."""
        self._turnover = math.inf
        """Seconds in which as many calls ended as were under way at once at most, by the last window: what a call takes
        on average where the limit keeps it at that (J. Little, "A Proof for the Queuing Formula L = λW", 1961)."""
        self._unread = self._unread_before = 0.0
        """Seconds that calls waited to be read, at most, in this window and in the one before."""
        self._walking = False
        self._walked_from = 0.0
        self._probing = False
        self._probe_at = math.inf
        self._probe_after = PROBE
        self._cut_after = 0.0
        """While the limit comes down: seconds after which calls were cut short, 0 where they were not."""
        self._leave_be_until = -math.inf
        self._leave_be_for = PROBE
        """After a walk to the minimum in vain: until when, and for how long, calls that are cut short mean nothing."""
        self._in_vain = 0
        self._sure_of = 0.0
        """The limit at which the last walk ended well,"""
        self._sure_until = -math.inf
        """and until when that is used."""
        self._at_minimum = 0
        self._brushed = 0
        """Windows since calls became slow in which some were turned away."""
        self._began = -math.inf
        """When the window did; while it has not, infinity, and what is counted says nothing."""
        self._until = -math.inf
        """When it may end, or may begin."""
        self._drain_to = math.inf
        """After the limit came down: the calls under way as of which it holds,"""
        self._drain_by = math.inf
        """and when it is taken to hold, though calls of a higher priority keep their number up."""
        self._held_since = -math.inf
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._ended = 0
        self._cut = 0.0
        self._cut_seconds = 0.0
        self._tried = 0
        self._refused = 0
        self._peak = 0
        self._low = 1 << 30

    @property
    def limit(self) -> int:
        return self._rooms[Priority.CRITICAL]

    def admit(self, priority: int) -> bool:
        """Take a call in, or not. Health checks are not asked for."""
        self._tried += 1
        in_flight = self.in_flight
        if in_flight >= self._rooms[priority]:
            self.shed += 1
            self._refused += 1
            return False
        self.in_flight = in_flight = in_flight + 1
        if in_flight > self._peak:
            self._peak = in_flight
        return True

    def admit_stream(self, priority: int) -> bool:
        """Take a stream in, or not. It has a place as a call has, until `left` says that it has opened, and counts as a
        stream until `stream_ended`."""
        if self.streams >= self._stream_rooms[priority]:
            self.shed += 1
            return False
        if not self.admit(priority):
            return False
        self.streams += 1
        return True

    def stream_ended(self) -> None:
        """A stream that was taken in is over."""
        self.streams -= 1

    def read(self, waited: float) -> None:
        """Calls are read that *waited* for it, in seconds."""
        if waited > self._unread:
            self._unread = waited

    def answered(self, now: float, seconds: float) -> None:
        """A call ended by itself after *seconds*, with an answer or an error of its own."""
        in_flight = self.in_flight
        self.in_flight = in_flight - 1
        if in_flight < self._low:
            self._low = in_flight
        self._ended += 1
        self._samples.append(seconds)
        if now >= self._until:
            self._window_may_end(now, seconds)

    def cut_short(self, now: float, seconds: float) -> None:
        """A call was ended after *seconds* by its deadline: it would have taken longer than that."""
        if seconds > self.usual:
            self._cut += 1
            self._cut_seconds += seconds
            self.answered(now, seconds)
        else:
            self.left()

    def given_up(self, now: float, seconds: float) -> None:
        """A call was cancelled after *seconds* by its caller, who may have had any reason: it took no shorter."""
        if seconds > PATIENT * max(self.usual, self.policy.slow_floor):
            self._cut += GIVEN_UP
            self._cut_seconds += GIVEN_UP * seconds
            self.answered(now, seconds)
        else:
            self.left()

    def left(self) -> None:
        """A call ended in a way that says nothing of how long calls take."""
        self.in_flight -= 1

    def refusal(self, method: str) -> ResourceExhausted:
        """What the caller of *method* is told that was not admitted; when to come again is drawn by chance."""
        share = self._refused / self._tried if self._tried else 0.0
        again = self.policy.pushback * (1.0 + 9.0 * share) * (0.5 + self._dice())
        return ResourceExhausted(
            f"{method} was not started: the service has as many calls under way as it can answer in time. "
            f"Try again in {again:.2g} s.",
            retry_after=again,
        )

    # ---- windows ----

    def _window_may_end(self, now: float, seconds: float) -> None:
        if now < self._began:
            self._wait_until_it_holds(now, seconds)
        elif self._ended >= self.policy.window_calls and self._tried:
            # A window in which nobody came would not tell whether anybody is held back: a busy loop works off what it
            # took in before it takes in more.
            self._window_ends(now)

    def _wait_until_it_holds(self, now: float, seconds: float) -> None:
        """Begin the window once a call has ended that came when no more calls than now were before it."""
        if self._held_since == math.inf and (self.in_flight <= self._drain_to or now >= self._drain_by):
            self._held_since = now
        if now - seconds >= self._held_since:
            self._new_window(now)

    def _new_window(self, now: float) -> None:
        self._unread_before, self._unread = self._unread, 0.0
        self._began = now
        self._until = now + self.policy.window
        self._samples.clear()
        self._ended = self._tried = self._refused = 0
        self._cut = self._cut_seconds = 0.0
        self._peak = self._low = self.in_flight

    def _window_ends(self, now: float) -> None:
        took = sorted(self._samples)[len(self._samples) // 10]
        if not self.usual or took < self.usual:
            self.usual += (LEARNING if self.usual else 1.0) * (took - self.usual)
        before, walking = self._limit, self._walking
        self._turnover = self._peak * (now - self._began) / self._ended
        if self.policy.adaptive:
            self._adapt(now, took)
        if self._limit < before or self._walking > walking:
            self._began = self._held_since = math.inf
            self._until = -math.inf
            self._drain_to = self._peak * (self._limit / before if self._refused else 1.0)
            self._drain_by = now + 1.0 + 4.0 * took
        else:
            self._new_window(now)

    # ---- the limit ----

    def _adapt(self, now: float, took: float) -> None:
        """Move the limit after a window in which quick calls took *took* seconds."""
        pinned = self._refused > 0 and (self._low >= STEP * self._peak - 1 or self._refused >= HELD_BACK * self._tried)
        slow = took > self._slow_from()
        # As calls that come in bursts: at each of them the limit is in the way, and between them it is not.
        pinned = self._is_brushed(slow=slow) or pinned
        if self._is_cut(took):
            self._adapt_to_cut(now, took, pinned=pinned)
        elif self._walking:
            self._walk_on(now, took, pinned=pinned, slow=slow)
        elif slow and not pinned:
            # The limit is not what holds calls back, and too far away to tell what would: bring it near.
            self._set_limit(min(self._limit, max(NEAR, 2.0 * self._peak)))
        elif slow or (pinned and now >= self._probe_at and took > self.policy.slow_floor):
            if not self._eased(now, took):
                self._set_out(now, probing=now >= self._probe_at)
        elif self._refused or self._peak >= self._limit / 2:
            self._grow(took)
            if not pinned or self._probe_at == math.inf:
                self._probe_later(now)

    def _is_brushed(self, *, slow: bool) -> bool:
        """Whether the limit has turned calls away in many windows since they became slow, if few in each of them."""
        if not slow:
            self._brushed = 0
        elif self._refused:
            self._brushed += 1
        return self._brushed >= BRUSHED

    def _is_cut(self, took: float) -> bool:
        """Whether even quick calls came near to being cut short: nobody knows how long they would have taken."""
        if self._cut > self._ended / 10:
            self._cut_after = self._cut_seconds / self._cut
        elif not self._walking:
            self._cut_after = 0.0
        if self._cut_after and took > max(self._cut_after / 2, self.policy.slow_floor):
            return True
        self._leave_be_for = PROBE
        return False

    def _adapt_to_cut(self, now: float, took: float, *, pinned: bool) -> None:
        """Come down where calls are cut short; if that is of no use even at the minimum, stay away for a while."""
        if now < self._leave_be_until:
            return
        if not self._walking and pinned:
            self._set_out(now, probing=True)
        elif not self._walking:
            self._set_limit(min(self._limit, max(NEAR, STEP * self._peak)))
        elif self._limit > self.policy.minimum:
            self._step_down(math.inf)
        else:
            self._leave_be_until = now + self._leave_be_for
            self._leave_be_for *= 2
            self._set_limit(self._walked_from)
            self._stop()

    def _grow(self, took: float) -> None:
        """By a fifth while calls take hardly longer than without load, by little near the edge."""
        self._at_minimum = 0
        near = took > self.usual * (1.0 + self.policy.tolerance) / 2
        self._set_limit(self._limit + (math.sqrt(self._limit) / 4 if near else max(1.0, self._limit / 5)))

    def _set_out(self, now: float, *, probing: bool) -> None:
        """Begin to walk down. The first step is judged by calls that all came while the limit was what it is now."""
        self._walking = True
        self._probing = probing
        self._walked_from = self._limit
        if probing:
            self._probe_later(now)

    def _walk_on(self, now: float, took: float, *, pinned: bool, slow: bool) -> None:
        """Judge the last step, and take the next one or stop."""
        if not pinned:
            self._stop()
        elif self._walk is None:
            self._step_down(took)
        elif not self._has_helped(took, *self._walk[1:]):
            self._in_vain += 1
            if self._in_vain >= SURE:
                self._take_back(now, took, self._walk[0])
        else:
            # What became less was a queue.
            self.usual = min(self.usual, took)
            if slow or (self._probing and took > self.policy.slow_floor):
                self._step_down(took)
            else:
                self._walk_ended_well(now, *self._walk[:2])

    def _walk_ended_well(self, now: float, limit: float, took: float) -> None:
        """The last step, from *limit*, at which calls took *took*, was enough, and may have been more than that."""
        self._sure_of = self._limit
        self._sure_until = now + KNOWN
        if took < math.inf:
            edge = self._slow_from()
            self._set_limit(max(self._limit, limit * edge / max(took, edge)))
        self._stop()

    def _eased(self, now: float, took: float) -> bool:
        """Bring the limit down a little where the last walk has shown that this helps, to what it has shown at most.

        Returns whether it could; where nothing is known, or calls are too slow for that, a walk has to find out.
        """
        edge = self._slow_from()
        # By the root of what would be right for a queue alone: quick calls differ from window to window by chance.
        limit = self._limit * math.sqrt(edge / took)
        if now >= min(self._sure_until, self._probe_at) or took > EDGE * edge or limit < self._sure_of:
            return False
        self._set_limit(limit)
        return True

    def _slow_from(self) -> float:
        """Seconds; calls that take longer are slow."""
        return max(self.policy.slow_floor, self.policy.tolerance * self.usual)

    def _has_helped(self, took: float, before: float, turnover: float) -> bool:
        """Whether the last step has, as of which calls took *before*, and had that *turnover*.

        Which calls are the quick ones is up to chance where a busy loop works them off in one go. How many it works off
        in a second is not; where the loop is not what they wait for, it is the other way round.
        """
        return took <= HELPED * before or (self._waits_for_loop(took) and self._turnover <= FASTER * turnover)

    def _waits_for_loop(self, took: float) -> bool:
        return max(self._unread, self._unread_before) > UNREAD * took

    def _step_down(self, took: float) -> None:
        """Take one step, unless the limit is at its minimum. *took*: infinity where that cannot be said."""
        self._in_vain = 0
        if self._limit > self.policy.minimum:
            self._walk = (self._limit, took, self._turnover)
            far = took > FAR * self._slow_from()
            blind = took == math.inf or (far and self._waits_for_loop(took))
            self._set_limit(self._limit * (BLIND_STEP if blind else STEP))
            return
        self._stop()
        self._at_minimum += 1
        if self._at_minimum >= STUCK:
            self._at_minimum = 0
            self.usual = took

    def _take_back(self, now: float, took: float, limit: float) -> None:
        """The last step, from *limit*, did not help: calls take what they take."""
        if took > self.usual * self.policy.tolerance:
            self._probe_after = PROBE_SOON
        self.usual = took
        self._set_limit(limit)
        self._stop()
        self._probe_later(now)
        self._probe_after = min(PROBE, 2 * self._probe_after)

    def _probe_later(self, now: float) -> None:
        self._probe_at = now + self._probe_after * (0.75 + self._dice() / 2)

    def _stop(self) -> None:
        self._walk = None
        self._walking = self._probing = False
        self._in_vain = 0

    def _set_limit(self, limit: float) -> None:
        policy = self.policy
        if policy.adaptive:
            limit = min(float(policy.maximum), max(float(policy.minimum), limit))
        self._limit = limit
        self._rooms = _shared_out(policy, limit)


def _shared_out(policy: Shedding, limit: float) -> tuple[int, int, int]:
    """How many of *limit* places calls of each priority may fill."""
    return max(1, int(limit * policy.background)), max(1, int(limit * policy.normal)), int(limit)
