"""What puts the policies into the path of a call has tests that fail where it does so wrongly."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator

import pytest
from tests.faults.planting_support import Bug, find

from polywire.errors import Unavailable

CHANNEL = "polywire.channel:Channel"
PRIORITY = "polywire.channel:_with_priority"
RULES = "polywire.call_rules:CallRules"
BOOK = "polywire.call_rules:RuleBook"
UNDERWAY = "polywire.call_rules:Underway"
LOCAL = "tests.conformance.test_policies_on_wires:TestLocalPolicies"
SYSTEM_FILE_FIRST = "tests.policy.test_policy_declared:test_on_one_level_the_system_file_is_nearer_than_the_contract"
SWITCHED = "tests.faults.switched_support"
CANCELLED_TRIAL = f"{LOCAL}.test_a_cancelled_trial_leaves_its_permit_to_the_next_call"
CANCELLED_PLACE = f"{LOCAL}.test_a_cancelled_call_gives_its_place_to_the_next_one"
EXACTLY = f"{LOCAL}.test_half_open_exactly_so_many_calls_come_through_and_then_it_closes"
OWN_ITERATOR = f"{LOCAL}.test_what_the_requests_own_iterator_raises_is_counted_nowhere"
IMPATIENCE = 5.0
"""Seconds after which a test that waits for what a bug keeps from happening counts as failed."""
IS_CANCELLED = 'type(error).__name__ == "CancelledError"'

BUGS = {
    "half open lets all through": Bug(
        f"{CHANNEL}._attempt", "breaker.admit(began)", "breaker.admit(began) or 1", EXACTLY, ("unary",)
    ),
    "a first attempt goes past a breaker that is not closed": Bug(
        f"{CHANNEL}.unary", "if not permit or rules.hedging", "if rules.hedging", EXACTLY, ("unary",)
    ),
    "a first attempt that fails keeps its place": Bug(
        f"{CHANNEL}.unary",
        "rules.failed(permit, compared, began, self.now(), error)",
        "pass",
        CANCELLED_PLACE,
        ("unary",),
    ),
    "a first attempt that is answered keeps its place": Bug(
        f"{CHANNEL}.unary",
        "places.leave(ended, ended - began)",
        "pass",
        f"{LOCAL}.test_no_more_calls_than_the_limit_are_under_way_and_those_over_the_queue_are_refused",
        ("unary",),
    ),
    "the answer to a first attempt does not count for the breaker": Bug(
        f"{CHANNEL}.unary",
        "breaker.succeeded(permit, ended, ended - began)",
        "pass",
        f"{LOCAL}.test_good_calls_count_against_those_that_failed",
    ),
    "the answer to a first attempt does not bring its endpoint back": Bug(
        f"{CHANNEL}.unary",
        "rules.answered(compared, began, ended)",
        "pass",
        f"{LOCAL}.test_one_that_is_well_again_comes_back_with_a_single_call",
    ),
    "half open lets all streams through": Bug(
        f"{CHANNEL}._open_once", "rules.breaker.admit(began)", "(rules.breaker.admit(began) or 1)", EXACTLY, ("stream",)
    ),
    "a permit leaks with a cancelled call": Bug(
        f"{RULES}.failed",
        "self.breaker.failed(",
        f"{IS_CANCELLED} or self.breaker.failed(",
        CANCELLED_TRIAL,
        ("unary",),
    ),
    "a permit leaks with a cancelled stream": Bug(
        f"{UNDERWAY}.given_up", "self.rules.breaker.release(permit)", "pass", CANCELLED_TRIAL, ("stream",)
    ),
    "a permit leaks with a call that is cancelled in the queue": Bug(
        f"{CHANNEL}._placed",
        "rules.breaker.release(permit)",
        "pass",
        f"{LOCAL}.test_a_trial_that_is_cancelled_while_it_waits_for_a_place_leaves_its_permit",
    ),
    "a place leaks with a cancelled call": Bug(
        f"{RULES}.failed", "self.places.leave(", f"{IS_CANCELLED} or self.places.leave(", CANCELLED_PLACE, ("unary",)
    ),
    "a place leaks with a cancelled stream": Bug(
        f"{UNDERWAY}.given_up", "self.ended(None)", "pass", CANCELLED_PLACE, ("collect",)
    ),
    "a place leaks with a stream that is let go": Bug(
        "polywire.client:ResponseStream.__del__",
        "self._underway.given_up()",
        "pass",
        f"{LOCAL}.test_a_stream_that_is_let_go_gives_its_place_back",
    ),
    "a quiet stream keeps a breaker from closing": Bug(
        f"{UNDERWAY}.opened",
        "if breaker.state is State.HALF_OPEN:",
        "if False:",
        f"{LOCAL}.test_a_stream_that_says_nothing_and_stands_is_well",
    ),
    "a quiet stream keeps an instance out": Bug(
        f"{UNDERWAY}.opened",
        "comparison.outliers.tries(self.wire, self.began)",
        "False",
        f"{LOCAL}.test_a_stream_that_says_nothing_and_stands_brings_its_instance_back",
    ),
    "cancellation is failure": Bug(
        f"{RULES}.failed",
        "self.breaker.failed(permit, error,",
        'self.breaker.failed(permit, error if isinstance(error, Exception) else Unavailable("", reached="no"),',
        f"{LOCAL}.test_cancelled_calls_never_open_a_breaker",
        ("unary",),
    ),
    "an error of the requests' own iterator is held against the target": Bug(
        f"{CHANNEL}._collect", "error is not requests.error", "True", OWN_ITERATOR, (Unavailable("mine", reached="no"),)
    ),
    "a fallback answers for an error of the requests' own iterator": Bug(
        f"{CHANNEL}.collect", "error is sent.error", "False", OWN_ITERATOR, (Unavailable("mine", reached="no"),)
    ),
    "an error of the requests' own iterator is lost in a conversation": Bug(
        "polywire.client:ResponseStream._requests_failed",
        "requests.error is not None",
        "False",
        OWN_ITERATOR,
        (ValueError("mine"),),
    ),
    "what is asked of a call is asked of those that its fallback makes": Bug(
        f"{CHANNEL}._instead",
        "_calling.set(None)",
        "_calling.set(_calling.get())",
        f"{LOCAL}.test_nothing_that_was_asked_of_a_call_holds_for_those_that_its_fallback_makes",
        ("unary",),
    ),
    "retries that are used up near the deadline are multiplied": Bug(
        f"{CHANNEL}._may_retry",
        "if outgoing.attempt >= retry.attempts:",
        "if outgoing.attempt >= retry.attempts and outgoing.call_deadline - self.now() > 1:",
        "tests.unit.test_channel:test_retries_that_are_used_up_near_the_deadline_are_not_multiplied_either",
    ),
    "who waits for an endpoint is cancelled with the look-up": Bug(
        "polywire.channel:Endpoints.find",
        "if not resolving.cancelled():",
        "if True:",
        "tests.unit.test_channel"
        ":test_calls_that_wait_for_an_endpoint_when_the_channel_is_closed_are_unavailable_and_not_cancelled",
    ),
    "wires that are being drained are left open": Bug(
        "polywire.channel:Endpoints.close",
        "*self._leaving.values(), ",
        "",
        "tests.unit.test_channel:test_wires_that_are_still_being_drained_are_closed_with_the_channel",
    ),
    "a stale result is counted": Bug(
        f"{RULES}.failed",
        "self.breaker.failed(permit,",
        "self.breaker.failed(self.breaker.shared or permit,",
        f"{LOCAL}.test_a_failure_from_before_it_opened_does_not_count_once_it_has_closed",
    ),
    "what is not idempotent is retried": Bug(
        f"{CHANNEL}._may_retry",
        "repeatable = rpc.idempotent or",
        "repeatable = True or",
        f"{LOCAL}.test_what_is_not_idempotent_and_may_have_arrived_is_sent_once",
    ),
    "what is not idempotent is hedged": Bug(
        f"{BOOK}._hedging",
        "may_be_sent_twice = rpc.idempotent",
        "may_be_sent_twice = True",
        f"{LOCAL}.test_what_is_not_idempotent_is_neither_retried_nor_hedged",
    ),
    "copies have a budget of their own": Bug(
        f"{BOOK}._hedging",
        "budget=self._budget",
        "budget=RetryBudget()",
        f"{LOCAL}.test_copies_stay_within_the_budget_of_retries",
    ),
    "retries have no budget": Bug(
        f"{CHANNEL}._may_retry",
        "not self.budget.take(now)",
        "False",
        "tests.unit.test_channel:test_retries_stay_within_the_budget_of_the_channel",
    ),
    "the deadline is forgotten in the queue": Bug(
        f"{CHANNEL}._turn",
        "self._start_attempt(outgoing, outgoing.call_deadline)",
        "self._start_attempt(outgoing, None)",
        f"{LOCAL}.test_the_time_in_the_queue_is_taken_off_what_the_target_is_given",
    ),
    "the target is told of time that the queue took": Bug(
        f"{CHANNEL}._turn",
        "self._start_attempt(outgoing, outgoing.call_deadline)",
        "pass",
        "tests.conformance.test_policies_on_wires:TestGrpcPolicies"
        ".test_the_time_in_the_queue_is_taken_off_what_the_target_is_given",
    ),
    "who watches keeps others from sending": Bug(
        "polywire.policy.levels:resolve",
        "if saying:",
        "if saying and saying[-1][1].given:",
        f"{LOCAL}.test_what_a_method_declares_without_values_is_its_own",
    ),
    "a key said of all methods breaks those without it": Bug(
        "polywire.policy.levels:resolve",
        "found = _keyed(rpc, found, sources)",
        "pass",
        f"{LOCAL}.test_a_key_said_of_all_methods_means_those_whose_requests_have_it",
    ),
    "what is said of all methods makes up that something was done": Bug(
        "polywire.policy.levels:_saying",
        "if kind is Fallback and not rpc.idempotent:",
        "if False:",
        f"{LOCAL}.test_what_is_said_of_all_methods_answers_only_for_those_that_are_idempotent",
    ),
    "what a contract says of all goes before the system file": Bug(
        "polywire.policy.levels:Levels.of",
        """Level(name="service", said=CallDefaults(policies=rpc.of_contract)),
        Level(name="service", said=self.service, place=self.service_place),""",
        """Level(name="service", said=self.service, place=self.service_place),
        Level(name="service", said=CallDefaults(policies=rpc.of_contract)),""",
        SYSTEM_FILE_FIRST,
    ),
    "what a contract says of a method goes before the system file": Bug(
        "polywire.policy.levels:Levels.of",
        """Level(name="method", said=method),
        Level(name="method", said=self.methods.get(name, NOTHING_SAID), place=self.method_places.get(name)),""",
        """Level(name="method", said=self.methods.get(name, NOTHING_SAID), place=self.method_places.get(name)),
        Level(name="method", said=method),""",
        SYSTEM_FILE_FIRST,
    ),
    "those who switch faults undo what others did": Bug(
        "polywire.system.faults:FaultFile._alone.__wrapped__",
        "fcntl.flock(place, fcntl.LOCK_EX)",
        "pass",
        f"{SWITCHED}:several_switch_at_once",
    ),
    "faults are taken from anybody": Bug(
        "polywire.system.faults:_trusted",
        "owner in (0, os.geteuid())",
        "True",
        f"{SWITCHED}:the_file_is_of_another_user",
    ),
    "whose file it is nobody asks": Bug(
        "polywire.system.faults:FaultFile._text",
        "not _trusted(status.st_uid)",
        "False",
        f"{SWITCHED}:the_file_is_of_another_user",
    ),
    "faults of an earlier run hold again": Bug(
        "polywire.system.faults:FaultWatch.look",
        "if one.at >= self._began",
        "",
        f"{SWITCHED}:a_process_starts_later",
    ),
    "a wire of faults stays when they are gone": Bug(
        "polywire.system.faults:Faults.switch",
        "edge.around if edge.faults else edge.without",
        "edge.around",
        f"{SWITCHED}:a_fault_comes_and_goes",
    ),
    "an attempt may last longer than its call": Bug(
        f"{CHANNEL}._start_attempt",
        "(deadline is None or now + limit < deadline)",
        "True",
        f"{LOCAL}.test_an_attempt_ends_no_later_than_its_call",
    ),
    "a child may end after its parent": Bug(
        f"{CHANNEL}._part_of",
        "deadline is None or parent.deadline < deadline",
        "deadline is None",
        "tests.unit.test_channel:test_a_call_never_outlives_the_call_that_it_is_part_of",
    ),
    "what waited in the queue goes past an open breaker": Bug(
        f"{CHANNEL}._turn",
        "not breaker.holds(permit)",
        "False",
        f"{LOCAL}.test_calls_that_wait_for_a_place_do_not_go_past_a_breaker_that_opens_meanwhile",
        ("unary",),
    ),
    "who is refused after its wait keeps its place": Bug(
        f"{CHANNEL}._turn",
        "places.leave(self.now(), places.typical)",
        "pass",
        f"{LOCAL}.test_calls_that_wait_for_a_place_do_not_go_past_a_breaker_that_opens_meanwhile",
        ("unary",),
    ),
    "a priority rises on its way": Bug(
        PRIORITY,
        "min(priority, PRIORITIES[asked.priority])",
        "PRIORITIES[asked.priority]",
        "tests.wire.test_shedding_wires:test_what_a_call_may_claim_travels_and_never_rises_on_its_way",
        ("grpc",),
    ),
    "a priority does not travel on": Bug(
        PRIORITY,
        "NO_PRIORITY if parent is None else parent.priority",
        "NO_PRIORITY",
        "tests.wire.test_shedding_wires:test_what_a_call_may_claim_travels_and_never_rises_on_its_way",
        ("http",),
    ),
    "the queue does not know the deadline": Bug(
        f"{CHANNEL}._placed",
        "deadline=outgoing.call_deadline,",
        "deadline=None,",
        f"{LOCAL}.test_a_call_that_would_miss_its_deadline_in_the_queue_does_not_reach_the_target",
    ),
    "one that comes back gets everything at once": Bug(
        f"{RULES}.pick",
        "comparison.outliers.begin(chosen, now)",
        "pass",
        f"{LOCAL}.test_one_that_is_well_again_comes_back_with_a_single_call",
    ),
    "slow methods make an endpoint look slow": Bug(
        "polywire.call_rules:Comparison.answered",
        "self.outliers.succeeded(wire, began, now, rules.typical.add(now - began))",
        "self.outliers.succeeded(wire, began, now)",
        f"{LOCAL}.test_a_mix_of_slow_and_quick_methods_leaves_nobody_out",
    ),
    "each call that asks for something is compared with itself": Bug(
        f"{BOOK}._made",
        'self._shared(("typical", rpc), Typical)',
        "Typical()",
        f"{LOCAL}.test_a_slow_instance_is_left_out_though_each_call_asks_for_something_else",
    ),
    "a user is given the answer of another": Bug(
        "polywire.call_rules:StandIn._key",
        "None if call is None else call.principal",
        "None",
        f"{LOCAL}.test_the_last_good_answer_of_one_user_is_not_given_to_another",
    ),
    "calls with other metadata are given the same answer": Bug(
        "polywire.call_rules:StandIn._key",
        "tuple(outgoing.metadata)",
        "None",
        f"{LOCAL}.test_the_last_good_answer_to_the_same_question_is_given_again",
    ),
    "a retry goes to an endpoint that a copy went to": Bug(
        f"{CHANNEL}._again",
        "tried.extend(outgoing.copied_to)",
        "pass",
        "tests.unit.test_channel:test_a_retry_goes_to_none_of_the_instances_that_copies_went_to",
    ),
    "a slow look-up makes an endpoint look slow": Bug(
        f"{CHANNEL}.unary",
        "began = self.now()  #",
        "self.now()  #",
        "tests.unit.test_channel:test_the_time_of_the_first_look_up_is_not_held_against_the_endpoint",
        ("safe",),
    ),
    "the target is told of time that the look-up took": Bug(
        f"{CHANNEL}._find",
        "self._start_attempt(outgoing, outgoing.call_deadline)",
        "pass",
        "tests.unit.test_channel:test_the_time_of_the_first_look_up_is_not_held_against_the_endpoint",
        ("watch",),
    ),
    "a fallback fails by a request that breaks its contract": Bug(
        "polywire.call_rules:StandIn.instead",
        "suppress(InvalidArgument)",
        "suppress()",
        f"{LOCAL}.test_a_request_that_breaks_its_contract_is_told_of_as_without_a_fallback",
    ),
    "a retry goes to the endpoint that failed": Bug(
        f"{CHANNEL}._again",
        "tried.append(outgoing.wire)",
        "pass",
        f"{LOCAL}.test_a_retry_goes_to_another_instance_also_where_its_key_belongs_to_the_one_that_failed",
    ),
}

for one in BUGS.values():
    importlib.import_module(one.found_by.partition(":")[0])


@pytest.fixture
def no_rest() -> Iterator[None]:
    """What a failed test leaves open is tidied up here, where nobody minds, and not in the middle of another test."""
    yield
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_rest")
def test_a_planted_bug_is_found(name: str) -> None:
    find(BUGS[name], IMPATIENCE)
