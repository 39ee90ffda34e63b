"""Each rule of the policies has a test that fails without it: planted one at a time, bugs must be found."""

from __future__ import annotations

import pytest
from tests.faults.planting_support import Bug, find

from polywire.errors import Unavailable

BREAKER = "polywire.policy.breaker:CircuitBreaker"
BULKHEAD = "polywire.policy.bulkhead:Compartment"
OUTLIER = "polywire.policy.outlier:Outliers"
LIMITER = "polywire.policy.shedding:Limiter"

BUGS = {
    # The breaker.
    "half open lets all through": Bug(
        f"{BREAKER}._admit_trial",
        "if len(self._trials) + self._results.calls >= self.policy.trials:",
        "if False:",
        "tests.policy.test_breaker:test_of_200_concurrent_calls_exactly_the_trials_pass",
        (3,),
    ),
    "half open lets as many through as there is room under way": Bug(
        f"{BREAKER}._admit_trial",
        "len(self._trials) + self._results.calls >=",
        "len(self._trials) >=",
        "tests.policy.test_breaker:test_a_permit_that_is_handed_back_twice_counts_once",
    ),
    "a permit is leaked on cancellation": Bug(
        f"{BREAKER}.release",
        "self._trials.discard(permit)",
        "pass",
        "tests.policy.test_breaker:test_a_cancelled_trial_leaves_room_for_the_next_trial",
    ),
    "a permit is leaked by an error that says nothing": Bug(
        f"{BREAKER}.failed",
        "self.release(permit)",
        "pass",
        "tests.policy.test_breaker:test_an_error_that_says_nothing_as_the_last_trial_does_not_leave_it_half_open",
    ),
    "a stale result counts as a trial": Bug(
        f"{BREAKER}._trial_ended",
        "if permit not in self._trials:",
        "if False:",
        "tests.policy.test_breaker:test_results_of_an_older_state_do_not_count",
        ("ok",),
    ),
    "a stale failure counts once it is closed": Bug(
        f"{BREAKER}.failed",
        "if permit == self.shared else",
        "if self.shared else",
        "tests.policy.test_breaker:test_results_of_an_older_state_do_not_count",
        ("failed",),
    ),
    "a call that is not answered in time counts as a failure": Bug(
        "polywire.policy.evidence:evidence_of_target",
        "isinstance(error, DeadlineExceeded)",
        "False",
        "tests.policy.test_breaker:test_calls_that_are_not_answered_in_time_count_as_slow_ones",
    ),
    "what a target says of others is held against it": Bug(
        "polywire.policy.evidence:evidence_of_target",
        "error.retry_after == DO_NOT_RETRY",
        "False",
        "tests.policy.test_breaker:test_what_a_target_says_of_others_that_it_needs_is_not_held_against_it",
        (Unavailable,),
    ),
    "cancellation is a failure": Bug(
        "polywire.policy.evidence:evidence",
        "return Evidence.NONE",
        "return Evidence.SICK",
        "tests.policy.test_breaker:test_cancellations_never_open_it",
    ),
    "being shed is a failure": Bug(
        "polywire.policy.evidence:evidence",
        "Unavailable | DeadlineExceeded |",
        "Unavailable | ResourceExhausted |",
        "tests.policy.test_breaker:test_what_the_target_sheds_does_not_open_it",
    ),
    "few calls open it": Bug(
        f"{BREAKER}._count",
        "if tally.calls >= self.policy.minimum_calls:",
        "if True:",
        "tests.policy.test_breaker:test_failures_that_left_the_window_are_forgotten",
    ),
    "failures are never forgotten": Bug(
        "polywire.policy.window:TimeWindow.tally",
        "if at >= oldest:",
        "if True:",
        "tests.policy.test_breaker:test_failures_that_left_the_window_are_forgotten",
    ),
    "calls that left a window of calls still count": Bug(
        "polywire.policy.window:CountWindow._put",
        "self._failures -= old & 1",
        "pass",
        "tests.policy.test_breaker:test_a_window_of_calls_looks_at_the_last_ones_only",
    ),
    "a window of calls cannot be taken back": Bug(
        "polywire.contract.policies:Breaker._replaces",
        'frozenset({"window_calls"}) if',
        "frozenset() if",
        "tests.policy.test_policy_declared:"
        "test_a_nearer_level_may_say_something_else_in_place_of_what_is_said_further_away",
    ),
    "the time open does not grow": Bug(
        f"{BREAKER}._open",
        "** min(self._times, 64)",
        "** 0",
        "tests.policy.test_breaker:test_each_failed_trial_lets_it_stay_open_longer_up_to_the_cap",
    ),
    "jitter is lost at the cap": Bug(
        f"{BREAKER}._open",
        "min(policy.max_open_time, longest) * (1.0 - policy.jitter * self._dice())",
        "min(policy.max_open_time, longest * (1.0 + policy.jitter * self._dice()))",
        "tests.policy.test_breaker:test_jitter_is_not_lost_at_the_cap",
    ),
    "trials that never end keep it half open": Bug(
        f"{BREAKER}._admit_trial",
        "elif self._trials and now >= self._until:",
        "elif False:",
        "tests.policy.test_breaker:test_trials_that_never_end_do_not_keep_it_half_open_for_ever",
    ),
    "who seldom calls is kept out": Bug(
        f"{BREAKER}._admit_trial",
        "elif self._trials and now >= self._until:",
        "elif now >= self._until:",
        "tests.policy.test_breaker:test_it_closes_for_a_caller_that_seldom_calls",
    ),
    "a trial that begins late is taken for one that does not end": Bug(
        f"{BREAKER}._admit_trial",
        "if not self._trials:",
        "if not self._results.calls:",
        "tests.policy.test_breaker:test_a_trial_that_begins_late_has_its_time_and_what_the_others_said_is_kept",
    ),
    "what a breaker refuses is tried again": Bug(
        f"{BREAKER}.refusal",
        "retry_after=DO_NOT_RETRY",
        "retry_after=None",
        "tests.policy.test_breaker:test_while_open_it_refuses_and_says_why_and_for_how_long",
    ),
    # Retries.
    "a call that is not idempotent is tried again": Bug(
        "polywire.policy.retry:is_retryable",
        "return repeatable or error.reached",
        "return True or error.reached",
        "tests.policy.test_retry:test_only_a_repeatable_call_is_retried_when_it_may_have_arrived",
    ),
    "the budget of retries is ignored": Bug(
        "polywire.policy.retry:RetryBudget.take",
        "return False",
        "return True",
        "tests.policy.test_retry:test_without_calls_a_budget_allows_its_minimum_and_no_more",
    ),
    # The bulkhead.
    "a place is lost with the waiter that just got it": Bug(
        f"{BULKHEAD}.give_up",
        "elif place is Place.ADMITTED:",
        "elif False:",
        "tests.policy.test_bulkhead:test_a_waiter_cancelled_when_it_has_just_got_its_place_hands_it_on",
    ),
    "a cancelled waiter stays in the queue": Bug(
        f"{BULKHEAD}.give_up",
        "del self._waiters[waiter]",
        "pass",
        "tests.policy.test_bulkhead:test_a_cancelled_waiter_leaks_nothing",
    ),
    "a waiter whose time is up gets the place": Bug(
        f"{BULKHEAD}._hand_over",
        "if waiter.deadline is not None and",
        "if False and",
        "tests.policy.test_bulkhead:test_a_call_whose_deadline_came_too_near_while_it_waited_is_not_started",
    ),
    "a call waits though it would be too late": Bug(
        f"{BULKHEAD}.line_up",
        "if deadline is not None and",
        "if False and",
        "tests.policy.test_bulkhead:test_a_call_that_would_miss_its_deadline_in_the_queue_does_not_wait_for_that",
    ),
    "the queue has no end": Bug(
        f"{BULKHEAD}.line_up",
        "if len(self._waiters) >= policy.queue and not",
        "if False and not",
        "tests.policy.test_bulkhead:test_without_a_queue_nobody_waits",
    ),
    "a free place is not handed on": Bug(
        f"{BULKHEAD}.leave",
        "self._hand_over(now)",
        "self.running -= 1",
        "tests.policy.test_bulkhead:test_never_more_than_the_limit_run_and_all_get_their_turn",
    ),
    "a deadline is not kept while waiting": Bug(
        "polywire.policy.bulkhead:entered",
        "alarms.add(deadline, waiter)",
        "0",
        "tests.policy.test_bulkhead:test_a_waiter_is_told_at_its_deadline_and_not_when_a_place_is_free",
    ),
    # Hedging.
    "what is not idempotent is hedged": Bug(
        "polywire.policy.hedge:Hedging.__init__",
        "idempotent and policy.enabled",
        "policy.enabled",
        "tests.policy.test_hedge:test_a_method_that_is_not_idempotent_is_never_sent_twice",
    ),
    "copies cost no budget": Bug(
        "polywire.policy.hedge:Race.copy",
        "not self._hedging.budget.take(now)",
        "False",
        "tests.policy.test_hedge:test_copies_are_paid_from_the_budget_of_the_retries",
    ),
    "pushback does not stop copies": Bug(
        "polywire.policy.hedge:Race.failed",
        "if error.retry_after is not None:",
        "if False:",
        "tests.policy.test_hedge:test_pushback_stops_the_copies_of_this_call_and_of_others",
    ),
    "the loser goes on": Bug(
        "polywire.policy.hedge:_Copies.end",
        "task.cancel()",
        "pass",
        "tests.policy.test_hedge:test_the_first_answer_counts_and_the_loser_is_cancelled_and_awaited",
    ),
    "the loser is not awaited": Bug(
        "polywire.policy.hedge:_Copies.end",
        "await asyncio.wait(self._running)",
        "return",
        "tests.policy.test_hedge:test_a_loser_that_fails_while_it_is_cancelled_is_not_reported",
    ),
    "copies have no end": Bug(
        "polywire.policy.hedge:Race._plan",
        "delay is None or not self._left",
        "delay is None",
        "tests.policy.test_hedge:test_no_more_copies_are_sent_than_declared",
    ),
    "only the first spell is ever told": Bug(
        "polywire.policy.spell:Spell.happened",
        "self.times = 0",
        "pass",
        "tests.policy.test_spell:test_a_spell_lasts_until_it_was_quiet_for_a_while",
    ),
    # Fallback.
    "an answer is shared by those who get it": Bug(
        "polywire.policy.fallback:LastGood.find",
        "return self._copied(answer)",
        "return answer",
        "tests.policy.test_fallback:test_a_caller_that_changes_its_answer_does_not_change_what_others_get",
    ),
    "an old answer is a good one": Bug(
        "polywire.policy.fallback:LastGood.find",
        "if now - at > self._age:",
        "if False:",
        "tests.policy.test_fallback:test_the_last_good_answer_comes_first_while_it_is_young_enough",
    ),
    "cancellation is answered for": Bug(
        "polywire.policy.fallback:Fallbacks.instead",
        "not isinstance(error, policy.on)",
        "False",
        "tests.policy.test_fallback:test_cancellation_is_never_answered_for",
    ),
    "answers are kept without end": Bug(
        "polywire.policy.fallback:LastGood.remember",
        "if len(self._answers) > self._size:",
        "if False:",
        "tests.policy.test_fallback:test_its_memory_is_bounded",
    ),
    # Balance.
    "an endpoint is overrun by a hot key": Bug(
        "polywire.policy.balance_hash:ByKey.pick",
        "owner.in_flight < most and",
        "",
        "tests.policy.test_balance_kinds:test_while_nobody_is_overrun_a_hot_key_stays_where_it_belongs",
    ),
    "each process has keys of its own": Bug(
        "polywire.policy.balance_hash:place",
        'int.from_bytes(blake2b(name, digest_size=8).digest(), "big")',
        "hash(name)",
        "tests.policy.test_balance_kinds:test_a_key_stays_with_its_endpoint_in_every_process_and_order",
    ),
    "a key cannot be taken back": Bug(
        "polywire.contract.policies:Balance._replaces",
        'frozenset({"key"}) if',
        "frozenset() if",
        "tests.policy.test_policy_declared:"
        "test_a_nearer_level_may_say_something_else_in_place_of_what_is_said_further_away",
    ),
    "the heaviest endpoint gets its calls in a row": Bug(
        "polywire.policy.balance_rotation:Weighted.pick",
        "credit[best.address] -= total",
        "credit[best.address] -= 1.0",
        "tests.policy.test_balance_kinds:test_weights_are_interleaved_as_nginx_does",
    ),
    # Ejection.
    "one that comes back gets everything at once": Bug(
        f"{OUTLIER}._in_rotation",
        "return not health.trial and now",
        "return now",
        "tests.policy.test_outlier:test_one_that_comes_back_is_tried_with_a_single_call",
    ),
    "a cancelled trial keeps it out": Bug(
        f"{OUTLIER}._trial_failed",
        "health.trial = False",
        "pass",
        "tests.policy.test_outlier:test_a_cancelled_trial_leaves_room_for_the_next_one",
    ),
    "a stale answer brings it back": Bug(
        f"{OUTLIER}.succeeded",
        "if health is None or began < health.since:",
        "if health is None:",
        "tests.policy.test_outlier:test_results_of_attempts_from_before_it_was_left_out_do_not_count_as_its_trial",
    ),
    "trouble that all share leaves some out": Bug(
        f"{OUTLIER}._failed",
        "and self._fails_alone(health):",
        ":",
        "tests.policy.test_outlier:test_trouble_that_all_share_leaves_nobody_out",
        (10,),
    ),
    "an answer from before the trouble is one during it": Bug(
        f"{OUTLIER}.succeeded",
        "health.good_since = began",
        "health.good_since = now",
        "tests.policy.test_outlier:test_trouble_that_all_share_leaves_nobody_out",
        (10,),
    ),
    "who is never called looks as bad as who fails": Bug(
        f"{OUTLIER}._fails_alone",
        "return bool(others) and all(",
        "return False and all(",
        "tests.policy.test_outlier:test_one_that_gets_all_calls_is_left_out_though_nobody_knows_of_the_others",
    ),
    "all are left out": Bug(
        f"{OUTLIER}._eject",
        "if self._out + 1 > self.policy.max_ejected * len(self.health):",
        "if False:",
        "tests.policy.test_outlier:test_never_more_than_the_allowed_share_is_left_out",
        (4, 2),
    ),
    "there is no panic": Bug(
        f"{OUTLIER}.rotation",
        "if not left or usable < self.policy.panic * len(endpoints):",
        "if not left:",
        "tests.policy.test_outlier:test_where_too_few_are_left_those_left_out_are_used_again",
    ),
    "an endpoint is forgotten before the others have as many calls": Bug(
        f"{OUTLIER}._has_told",
        "others >= least or health.calls >= STALE * least",
        "True",
        "tests.policy.test_outlier:test_two_that_are_called_in_turn_and_seldom_are_compared",
    ),
    "an endpoint is remembered until the others have as many calls": Bug(
        f"{OUTLIER}._has_told",
        "health.calls >= STALE * least",
        "False",
        "tests.policy.test_outlier:test_what_an_endpoint_did_long_ago_is_forgotten_though_the_others_are_never_called",
    ),
    "the time out does not grow": Bug(
        f"{OUTLIER}._keep_out",
        "self.policy.base_time * health.times",
        "self.policy.base_time",
        "tests.policy.test_outlier:test_each_time_it_is_left_out_for_longer_up_to_the_most",
    ),
    "one that is still slow comes back": Bug(
        f"{OUTLIER}._trial_answered",
        "if self._is_slow(seconds, share, self._usual):",
        "if False:",
        "tests.policy.test_outlier:test_one_that_is_still_slow_does_not_come_back",
    ),
    # Shedding.
    "all are of the highest priority": Bug(
        f"{LIMITER}.admit",
        "self._rooms[priority]",
        "self._rooms[2]",
        "tests.policy.test_shedding:test_critical_calls_are_the_last_to_be_turned_away_and_background_the_first",
    ),
    "a place is leaked by a call that says nothing": Bug(
        f"{LIMITER}.left",
        "self.in_flight -= 1",
        "pass",
        "tests.policy.test_shedding:test_callers_that_give_up_early_do_not_move_the_limit",
    ),
    "the limit has no floor": Bug(
        f"{LIMITER}._set_limit",
        "max(float(policy.minimum), limit)",
        "limit",
        "tests.policy.test_shedding:test_it_comes_down_to_its_minimum_and_no_lower",
    ),
    "few calls say too much": Bug(
        f"{LIMITER}._adapt",
        "max(NEAR, 2.0 * self._peak)",
        "2.0 * self._peak",
        "tests.policy.test_shedding:test_a_few_calls_that_become_slow_do_not_make_it_turn_away_the_next_ones",
        (1,),
    ),
    "a slow dependency is load": Bug(
        f"{LIMITER}._walk_on",
        "if self._in_vain >= SURE:",
        "if False:",
        "tests.policy.test_shedding:test_a_dependency_that_became_slow_is_not_taken_for_load",
        (1,),
    ),
    "calls that came under a higher limit are measured": Bug(
        f"{LIMITER}._window_ends",
        "if self._limit < before or self._walking > walking:",
        "if False:",
        "tests.policy.test_shedding:test_calls_that_came_under_a_higher_limit_are_not_measured_for_a_lower_one",
    ),
    "the time without load follows the overload": Bug(
        f"{LIMITER}._window_ends",
        "if not self.usual or took < self.usual:",
        "if True:",
        "tests.policy.test_shedding:test_an_overload_that_lasts_does_not_raise_the_limit_without_end",
    ),
    "callers that give up early make calls look quick": Bug(
        f"{LIMITER}.cut_short",
        "if seconds > self.usual:",
        "if True:",
        "tests.policy.test_shedding:test_callers_that_give_up_early_do_not_move_the_limit",
    ),
    "calls that are cut short are taken at their word": Bug(
        f"{LIMITER}._is_cut",
        "return True",
        "return False",
        "tests.policy.test_shedding:test_a_limit_that_is_far_too_high_comes_down_though_nearly_all_calls_miss_their_deadline",
        (100, 0.02),
    ),
    "a window in which nobody came is looked at": Bug(
        f"{LIMITER}._window_may_end",
        " and self._tried:",
        ":",
        "tests.policy.test_shedding:test_on_an_event_loop_it_keeps_its_goodput_too",
        (2.0, 0),
    ),
    "only long steps bring the limit down": Bug(
        f"{LIMITER}._adapt",
        "if not self._eased(now, took):",
        "if True:",
        "tests.policy.test_shedding:test_once_it_has_found_its_level_it_stays_near_it",
        (0,),
    ),
    "a limit that came down too far stays there": Bug(
        f"{LIMITER}._walk_ended_well",
        "if took < math.inf:",
        "if False:",
        "tests.policy.test_shedding:test_nor_is_it_right_after_an_overload",
        (2,),
    ),
    "whatever is slow after an overload is load": Bug(
        f"{LIMITER}._eased",
        "took > EDGE * edge or ",
        "",
        "tests.policy.test_shedding:test_nor_is_it_right_after_an_overload",
        (1,),
    ),
    "who is held back all at once is not seen": Bug(
        f"{LIMITER}._adapt",
        "self._refused >= HELD_BACK * self._tried",
        "False",
        "tests.policy.test_shedding:test_on_an_event_loop_it_finds_its_level_in_a_few_seconds",
        (1,),
    ),
    "who is held back in bursts is not seen": Bug(
        f"{LIMITER}._is_brushed",
        "self._brushed >= BRUSHED",
        "False",
        "tests.policy.test_shedding:test_bursts_of_calls_that_have_become_slow_are_not_turned_away_for_good",
    ),
    "callers who cancel are as good as deadlines": Bug(
        f"{LIMITER}.given_up",
        "self._cut += GIVEN_UP",
        "self._cut += 1",
        "tests.policy.test_shedding:test_nor_do_they_where_a_dependency_has_become_slow",
        (0.4,),
    ),
    "callers who cancel never tell anything": Bug(
        f"{LIMITER}.given_up",
        "if seconds > PATIENT",
        "if False and seconds > PATIENT",
        "tests.policy.test_shedding:test_callers_that_all_leave_at_a_deadline_that_they_keep_to_themselves_show_overload",
        (1,),
    ),
    "quick calls that take longer than others are slow": Bug(
        f"{LIMITER}._slow_from",
        "max(self.policy.slow_floor, self.policy.tolerance * self.usual)",
        "self.policy.tolerance * self.usual",
        "tests.policy.test_shedding:test_quick_calls_are_never_taken_for_slow_ones",
    ),
    "a stream that is over stays": Bug(
        f"{LIMITER}.stream_ended",
        "self.streams -= 1",
        "pass",
        "tests.policy.test_shedding:test_streams_are_counted_apart_once_they_have_opened",
    ),
    "a loop that was idle counts as busy": Bug(
        "polywire.policy.shedding:Backlog.turn",
        "used - self._used",
        "math.inf",
        "tests.policy.test_shedding:test_calls_count_from_when_the_loop_was_busy_with_others",
    ),
    "a step is judged by the quick calls of a busy loop": Bug(
        f"{LIMITER}._has_helped",
        "self._turnover <= FASTER * turnover",
        "False",
        "tests.policy.test_shedding:test_on_an_event_loop_that_is_far_behind_it_comes_down_fast",
        (8.0, 0),
    ),
    "a long way is gone in small steps": Bug(
        f"{LIMITER}._step_down",
        "took > FAR *",
        "took > math.inf *",
        "tests.policy.test_shedding:test_on_an_event_loop_that_is_far_behind_it_comes_down_fast",
        (8.0, 0),
    ),
    "one experiment follows the other": Bug(
        f"{LIMITER}._set_out",
        "self._probe_later(now)",
        "pass",
        "tests.policy.test_shedding:test_it_does_not_stay_at_its_minimum_by_looking_whether_less_would_do",
        (3,),
    ),
    "those turned away come back together": Bug(
        f"{LIMITER}.refusal",
        "(0.5 + self._dice())",
        "1.0",
        "tests.policy.test_shedding:test_pushback_grows_with_the_share_that_is_turned_away_and_is_spread_by_chance",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
@pytest.mark.filterwarnings("ignore")
def test_a_planted_bug_is_found(name: str) -> None:
    find(BUGS[name])
