"""Each rule that keeps calls safe has a test that fails without it: planted one at a time, bugs must be found."""

from __future__ import annotations

import importlib

import pytest
from tests.faults.planting_support import Bug, find

SERVER = "polywire.net.http2.server:Http2Server"
CLIENT = "polywire.net.http2.client:Http2Client"
ENGINE = "polywire.net.http2.engine:Http2Connection"
UPKEEP = "polywire.net.http2.upkeep:Upkeep"
STREAM = "polywire.net.http2.stream:Http2Stream"
HTTP1 = "polywire.net.http1.server:Http1ServerProtocol"
CHANNEL = "polywire.channel:Channel"
POOL = "polywire.net.pool:Pool"
SERVICES = "polywire.services:Services"

FLOOD = "tests.net.test_http2_floods:test_a_flood_is_cut_off_while_another_connection_is_served"
HTTP2_SERVER = "tests.net.test_http2_server"
HTTP2_CLIENT = "tests.net.test_http2_client"
LISTENER = "tests.net.test_listener"
BROKEN_OFF = "tests.faults.broken_off_support"
BAD_INPUT = "tests.faults.test_bad_input"
TRUST = "tests.faults.test_trust"
ADMISSION = "tests.unit.test_admission"
SHEDDING = "tests.wire.test_shedding_wires"
LOCAL = "tests.conformance.test_local_wire:TestLocalWire"
GRPC = "tests.conformance.test_network_wires:TestGrpcWire"
REST = "tests.conformance.test_network_wires:TestHttpWire"

BOTH_LENGTHS = (
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    400,
    "The message has both Content-Length and Transfer-Encoding.",
)

BUGS = {
    "resets of streams are not counted": Bug(
        f"{SERVER}._peer_gave_up", "self._resets.spend(1,", "dict(one=1,", FLOOD, ("rapid reset",)
    ),
    "refused streams are not counted": Bug(
        f"{SERVER}._admit", "self._resets.spend()", "pass", FLOOD, ("refused streams",)
    ),
    "faulty streams are not counted": Bug(
        f"{UPKEEP}._stream_fault", "self._faults.spend()", "pass", FLOOD, ("made you reset",)
    ),
    "header lists that are too large are not counted": Bug(
        f"{SERVER}._too_large", "self._faults.spend()", "pass", FLOOD, ("header lists too large",)
    ),
    "frames that carry nothing are not counted": Bug(
        f"{UPKEEP}._spend", "self._nuisance.spend(tokens,", "dict(tokens=tokens,", FLOOD, ("pings",)
    ),
    "CONTINUATION frames are not counted": Bug(
        f"{ENGINE}._continuation",
        "self._block_frames > MAX_CONTINUATIONS",
        "False",
        FLOOD,
        ("empty continuations",),
    ),
    "the size of a header block is not bounded": Bug(
        f"{ENGINE}._continuation",
        "len(block) > self._max_block or self._block_frames > MAX_CONTINUATIONS",
        "False",
        FLOOD,
        ("large continuations",),
    ),
    "more fields than the limit are accepted, where all of them are indices": Bug(
        "polywire.net.hpack:Decoder._new_lead",
        "if len(run) > self._max_count:",
        "if False:",
        "tests.net.test_hpack:test_too_many_fields_are_too_large_and_what_they_taught_is_kept",
    ),
    "a size update of the table is accepted after a field": Bug(
        "polywire.net.hpack:Decoder._rest",
        "if not leading:",
        "if False:",
        "tests.net.test_hpack:test_what_rfc_7541_refuses_is_refused",
        ("a size update after a literal",),
    ),
    "a size update of the table is accepted after an indexed field": Bug(
        "polywire.net.hpack:Decoder._rest",
        "leading = pos == 0",
        "leading = True",
        "tests.net.test_hpack:test_what_rfc_7541_refuses_is_refused",
        ("a size update after a field",),
    ),
    "trailers are accepted before the headers": Bug(
        f"{CLIENT}._header_list",
        "if stream.headers_done:",
        "if stream.headers_done or ended:",
        f"{HTTP2_CLIENT}:test_a_malformed_response_fails_its_call_alone",
        ("no status",),
    ),
    "pseudo-headers are accepted in trailers": Bug(
        "polywire.net.http2.messages:_check_special",
        'raise malformed(f"the pseudo-header {_text(name)} comes after an ordinary one, or in trailers")',
        "return",
        f"{HTTP2_SERVER}:test_trailers_without_an_end_or_with_pseudo_headers_are_malformed",
    ),
    "trailers need not end the stream": Bug(
        f"{ENGINE}._trailers",
        "if not ended:",
        "if False:",
        f"{HTTP2_SERVER}:test_trailers_without_an_end_or_with_pseudo_headers_are_malformed",
    ),
    "a body may be longer than its content-length": Bug(
        f"{ENGINE}._data",
        "if stream.expected >= 0:",
        "if False:",
        f"{HTTP2_SERVER}:test_a_body_that_is_not_as_long_as_announced_is_refused",
        ("longer", False),
    ),
    "more data than a stream's window is taken": Bug(
        f"{ENGINE}._data",
        "if size > stream.room:",
        "if False:",
        f"{HTTP2_SERVER}:test_more_data_than_the_streams_window_resets_the_stream",
    ),
    "more data than the connection's window is taken": Bug(
        f"{ENGINE}._data",
        "if self.room < 0:",
        "if False:",
        f"{HTTP2_SERVER}:test_more_data_than_the_connections_window_ends_the_connection",
    ),
    "credit is given back as data arrives": Bug(
        f"{ENGINE}._data",
        "stream.held += size",
        "stream.held += size; stream.consumed(size)",
        f"{HTTP2_SERVER}:test_what_the_application_does_not_consume_is_not_given_back",
    ),
    "credit is given back for messages that nobody took": Bug(
        "polywire.wire.incoming:Incoming._give_back",
        "size = min(size, self._owed)",
        "size = self._withheld",
        "tests.wire.test_framing_incoming:test_credit_is_given_back_only_for_what_was_taken",
    ),
    "credit for a message is given back before it is read, over gRPC": Bug(
        "polywire.wire.incoming:Incoming.received",
        "if self._queue:",
        "self._stream.consumed(size)\n    if self._queue:",
        f"{GRPC}.test_a_reader_that_does_not_read_holds_the_handler_back",
    ),
    "credit for a message is given back before it is read": Bug(
        "polywire.wire.incoming:Incoming.received",
        "if self._queue:",
        "self._stream.consumed(size)\n    if self._queue:",
        "tests.wire.test_framing_incoming:test_credit_is_given_back_only_for_what_was_taken",
    ),
    "nobody waits for the headers with a limit, over HTTP/1.1": Bug(
        f"{HTTP1}.tick",
        "if elapsed >= self._limits.header_timeout:",
        "if False:",
        "tests.net.test_http1_refusals:test_headers_that_trickle_in_are_cut_off",
        ([b"G"],),
    ),
    "every byte of the headers gives new time, over HTTP/1.1": Bug(
        f"{HTTP1}._hold",
        "if self._phase == _IDLE:",
        "if True:",
        "tests.net.test_http1_refusals:test_headers_that_trickle_in_are_cut_off",
        ([b"GET / HTTP/1.1\r\n", b"Host: a\r\n", b"x: y\r\n"],),
    ),
    "nobody waits for the body with a limit, over HTTP/1.1": Bug(
        f"{HTTP1}.tick",
        "elif self._body is not None and not self._reading_paused and elapsed >= self._limits.body_timeout:",
        "elif False:",
        "tests.net.test_http1_refusals:test_a_body_that_makes_progress_is_waited_for_and_one_that_does_not_is_cut_off",
    ),
    "nobody waits for a header block with a limit, over HTTP/2": Bug(
        f"{UPKEEP}._block_is_late",
        "return now - self.unfinished_since >= self.limits.header_timeout",
        "return False",
        "tests.net.test_http2_floods:test_a_header_block_that_takes_too_long_ends_the_connection",
    ),
    "nobody waits for SETTINGS with a limit": Bug(
        f"{UPKEEP}.tick",
        "if not self.settings_acknowledged and",
        "if False and",
        "tests.net.test_http2_floods:test_a_peer_that_says_nothing_is_not_waited_for",
    ),
    "the acknowledgement of our SETTINGS may never come": Bug(
        f"{UPKEEP}.tick",
        "if not self.settings_acknowledged and",
        "if not self.peer_settings_seen and",
        "tests.net.test_http2_floods:test_a_peer_that_does_not_acknowledge_our_settings_is_not_waited_for",
    ),
    "more headers are sent than the peer takes": Bug(
        "polywire.net.hpack:Encoder._check_size",
        "if size > self._max_list:",
        "if False:",
        f"{HTTP2_CLIENT}:test_headers_over_what_the_server_takes_are_not_sent",
        (400,),
    ),
    "Content-Length together with Transfer-Encoding is accepted": Bug(
        "polywire.net.http1.heads:_chunked",
        "if lengths:",
        "if False:",
        "tests.net.test_http1_refusals:test_a_bad_request_is_refused",
        BOTH_LENGTHS,
    ),
    "two Content-Lengths are accepted": Bug(
        "polywire.net.http1.heads:_length",
        "if len(lengths) > 1:",
        "if False:",
        "tests.net.test_http1_refusals:test_a_bad_request_is_refused",
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
            400,
            "The message has more than one Content-Length.",
        ),
    ),
    "a bomb is inflated before its size is looked at": Bug(
        "polywire.wire.compression:decompress",
        "stream.decompress(data, limit + 1)",
        "stream.decompress(data)",
        "tests.wire.test_framing_compression:test_a_bomb_is_refused_at_the_limit",
    ),
    "what comes out of compression is cut off at the limit instead of refused": Bug(
        "polywire.wire.compression:decompress",
        "stream.decompress(data, limit + 1)",
        "stream.decompress(data)[:limit]",
        f"{BAD_INPUT}:test_a_body_that_is_oversized_once_decompressed",
    ),
    "the size of a message is not bounded": Bug(
        "polywire.wire.framing:Frames._cut",
        "if size > self.limit:",
        "if False:",
        "tests.wire.test_framing:test_a_frame_over_the_limit_is_refused_before_its_bytes_are_stored",
    ),
    "the size of a body is not bounded, over HTTP": Bug(
        "polywire.wire.http.body:Gathering.data_received",
        "if self._size > self.limit:",
        "if False:",
        f"{BAD_INPUT}:test_an_oversized_body",
    ),
    "the size of an answer is not bounded, over REST": Bug(
        "polywire.wire.http.outbound:Reply.data_received",
        "if self._size > self._limit:",
        "if False:",
        "tests.wire.test_rest_client:test_an_answer_over_the_limit_is_refused",
    ),
    "the caller's deadline is not that of the calls made for it": Bug(
        f"{CHANNEL}._part_of",
        "if parent.deadline is not None and",
        "if False and",
        f"{GRPC}.test_the_deadline_is_known_to_the_handler_and_to_those_it_calls",
    ),
    "a child may end after its parent": Bug(
        f"{CHANNEL}._part_of",
        "deadline is None or parent.deadline < deadline",
        "deadline is None",
        "tests.unit.test_channel:test_a_call_never_outlives_the_call_that_it_is_part_of",
    ),
    "a child is called though its parent's time is up": Bug(
        f"{CHANNEL}._part_of",
        "if deadline is not None and deadline <= now:",
        "if False:",
        "tests.unit.test_channel:test_a_call_never_outlives_the_call_that_it_is_part_of",
    ),
    "the deadline is not sent, over gRPC": Bug(
        "polywire.wire.grpc.request:RequestHeaders._not_prepared",
        "if ticks:",
        "if False:",
        f"{GRPC}.test_the_deadline_is_known_to_the_handler_and_to_those_it_calls",
    ),
    "the deadline is not sent, over REST": Bug(
        "polywire.wire.http.rest_client:RestWire.unary",
        "if outgoing.timeout is not None:",
        "if False:",
        f"{REST}.test_the_deadline_is_known_to_the_handler_and_to_those_it_calls",
    ),
    "work is begun after its deadline": Bug(
        f"{SERVICES}.unary",
        "if deadline <= started:",
        "if False:",
        f"{BAD_INPUT}:test_an_expired_deadline",
    ),
    "a stream is begun after its deadline": Bug(
        f"{SERVICES}._run",
        "if call.deadline <= started:",
        "if False:",
        "tests.faults.test_call_rules:test_a_stream_whose_deadline_has_passed_is_not_begun",
    ),
    "a lost call is said not to have arrived": Bug(
        "polywire.wire.seam:unavailable",
        '"maybe" if error.reached else "no"',
        '"no"',
        f"{GRPC}.test_a_lost_connection_is_unavailable_and_maybe_reached",
    ),
    "a lost HTTP/2 connection says that nothing arrived": Bug(
        f"{CLIENT}._was_sent",
        "sid <= self._taken_up_to",
        "False",
        f"{HTTP2_CLIENT}:test_a_lost_connection_says_what_was_handed_over",
    ),
    "a handler may say that it was not reached": Bug(
        f"{SERVICES}._failure",
        'error.reached = "maybe"',
        "pass",
        "tests.unit.test_services:test_a_handler_cannot_say_that_it_was_not_reached",
    ),
    "every call is repeated": Bug(
        "polywire.policy.retry:is_retryable",
        "return repeatable or error.reached",
        "return True or error.reached",
        f"{LOCAL}.test_a_call_that_may_have_arrived_is_not_tried_again_unless_it_is_safe",
    ),
    "pushback is not heard": Bug(
        "polywire.policy.retry:is_retryable",
        "error.retry_after is not None and error.retry_after < 0",
        "False",
        f"{LOCAL}.test_pushback_forbids_another_attempt",
    ),
    "callers above retry as well": Bug(
        f"{CHANNEL}._may_retry",
        "error.retry_after = DO_NOT_RETRY\n        return False\n    now",
        "return False\n    now",
        "tests.unit.test_channel:test_two_retries_are_three_attempts_and_the_last_error_forbids_more",
    ),
    "the budget of retries is not kept": Bug(
        "polywire.policy.retry:RetryBudget.take",
        "return False",
        "return True",
        "tests.unit.test_channel:test_retries_stay_within_the_budget_of_the_channel",
    ),
    "a retry is begun after the deadline": Bug(
        f"{CHANNEL}._may_retry",
        "if deadline is not None and now + delay >= deadline:",
        "if False:",
        "tests.unit.test_channel:test_a_retry_that_would_come_after_the_deadline_is_not_made",
    ),
    "cancelling a call is not sent, over gRPC": Bug(
        "polywire.wire.grpc.answer:Answer.abandon",
        "self.stream.reset(CANCEL)",
        "pass",
        f"{GRPC}.test_a_cancelled_call_cancels_its_handler",
    ),
    "cancelling a call is not sent, over Connect and REST": Bug(
        "polywire.wire.http.outbound:Reply.abandon",
        "self.stream.reset(CANCEL)",
        "pass",
        f"{REST}.test_a_cancelled_call_cancels_its_handler",
    ),
    "letting go of a stream is not sent, over gRPC": Bug(
        "polywire.wire.grpc.answer:StreamedAnswers.give_up",
        "self.stream.reset(CANCEL)",
        "pass",
        f"{GRPC}.test_letting_go_of_a_stream_ends_its_handler",
    ),
    "a deadline does not end the handler": Bug(
        "polywire.context:Call.expire",
        'self.end("deadline")',
        "pass",
        f"{BAD_INPUT}:test_a_deadline_that_expires_on_the_way",
    ),
    "every known token proves the first service": Bug(
        "polywire.server:BearerTokens.caller_of",
        "found.add(service)",
        "found.add(next(iter(self._tokens)))",
        "tests.unit.test_services:test_a_token_names_its_service_and_may_change_while_running",
    ),
    "every token is right": Bug(
        "polywire.server:BearerTokens.caller_of",
        "compare_digest(presented, expected)",
        "True",
        f"{BAD_INPUT}:test_a_wrong_token",
        ("another token",),
    ),
    "an empty token is right": Bug(
        "polywire.server:BearerTokens.caller_of",
        "and expected:",
        "and True:",
        f"{BAD_INPUT}:test_no_token_at_all_is_not_that_of_a_service_that_has_none_yet",
    ),
    "a principal is believed without proof": Bug(
        f"{SERVICES}.unary",
        "if call.principal is not None and call.caller is None:",
        "if False:",
        "tests.unit.test_services:test_a_principal_is_believed_only_from_a_caller_that_proved_who_it_is",
    ),
    "a principal is believed without proof, of a stream": Bug(
        f"{SERVICES}._run",
        "if call.principal is not None and call.caller is None:",
        "if False:",
        "tests.faults.test_call_rules:test_the_principal_of_a_stream_is_believed_only_with_proof",
        ("grpc",),
    ),
    "a principal is told to strangers": Bug(
        f"{CHANNEL}._part_of",
        "if parent.principal is not None and self._inside:",
        "if parent.principal is not None:",
        f"{TRUST}:test_a_principal_is_not_told_to_what_is_outside_of_the_system",
        ("connect",),
    ),
    "everybody may call": Bug(
        "polywire.admission:admission",
        "if not allowed(call):",
        "if False:",
        f"{TRUST}:test_who_may_call_is_the_same_for_every_kind_of_method",
        ("grpc",),
    ),
    "a principal nobody proved is shown to rules": Bug(
        "polywire.admission:admission",
        "call.principal = None",
        "pass",
        f"{ADMISSION}:test_a_function_decides_by_the_call",
    ),
    "one rule that allows is enough": Bug(
        "polywire.admission:admission",
        "for allowed in checks:",
        "for allowed in checks[:1]:",
        f"{ADMISSION}:test_a_method_narrows_what_its_class_allows",
    ),
    "an answer that is not True lets in": Bug(
        "polywire.admission:Allowed.__call__",
        "self.rule(call) is True",
        "bool(self.rule(call))",
        f"{ADMISSION}:test_anything_but_true_is_a_refusal",
    ),
    "a subclass is not guarded": Bug(
        "polywire.admission:rules_of",
        "cls.__mro__",
        "(cls,)",
        f"{ADMISSION}:test_a_subclass_that_overrides_a_method_is_guarded_as_before",
    ),
    "the request is read before it is known who calls": Bug(
        f"{SERVICES}.unary",
        "if handler.admit is not None or",
        "if decode(body) and handler.admit is not None or",
        f"{ADMISSION}:test_a_class_is_called_by_those_it_names_alone",
    ),
    "a token of two services proves one": Bug(
        "polywire.server:BearerTokens.caller_of",
        "if len(found) == 1",
        "if found",
        "tests.system.test_tokens:test_a_token_of_two_services_proves_neither",
    ),
    "a call that is cancelled keeps its place": Bug(
        f"{SERVICES}._leave",
        "limiter.given_up(now, now - arrived)",
        "pass",
        f"{SHEDDING}:test_a_cancelled_call_gives_its_place_back",
        ("grpc", "hold"),
    ),
    "a caller whose request waited to be read is taken for one who changed its mind": Bug(
        "polywire.services:_out_of_time",
        "(call.deadline - started)",
        "(call.deadline - arrived)",
        f"{SHEDDING}:test_a_caller_who_cancels_just_before_the_deadline_stops_at_it",
        (1.5, 0.75, 0.75, "cut short"),
    ),
    "a caller who had gone when the call was read tells nothing": Bug(
        f"{SERVICES}._leave",
        "arrived < call.deadline and _out_of_time(call, arrived, started, now)",
        "arrived < call.deadline <= now",
        f"{SHEDDING}:test_a_caller_who_had_gone_when_the_call_was_read_stopped_at_its_deadline_if_that_was_near",
        (1.4, ("cut short", 1.4)),
    ),
    "what waited to be read is asked for while many are under way": Bug(
        f"{SERVICES}.take_place",
        "if backlog.turned:",
        "if backlog.turned and limiter.in_flight > 4:",
        f"{SHEDDING}:test_the_first_call_after_a_busy_turn_has_waited_for_it_though_no_other_is_under_way",
    ),
    "a stream that is cancelled keeps its place": Bug(
        f"{SERVICES}._leave",
        "self._opened(handler, call)",
        "pass",
        f"{SHEDDING}:test_a_cancelled_call_gives_its_place_back",
        ("http", "listen"),
    ),
    "a call that is cancelled before its task began keeps its place": Bug(
        f"{SERVICES}.cancel",
        "call._arrived is not None:",
        "False:",
        f"{SHEDDING}:test_a_call_that_is_taken_back_in_the_same_breath_gives_its_place_back",
        ("Hold",),
    ),
    "a call that may not be made keeps its place": Bug(
        f"{SERVICES}._leave",
        "if late else limiter.left()",
        "if late else None",
        f"{SHEDDING}:test_a_request_that_cannot_be_read_gives_its_place_back",
    ),
    "callers can push to the front": Bug(
        f"{SERVICES}.take_place",
        "if call.priority < priority:",
        "if call.priority > priority:",
        f"{SHEDDING}:test_the_lower_class_is_turned_away_first",
        ("connect",),
    ),
    "who listens for hours keeps the place of a call": Bug(
        f"{SERVICES}.stream",
        "if call._opening:",
        "if False:",
        f"{SHEDDING}:test_a_stream_that_has_opened_leaves_its_place_to_others",
        ("grpc",),
    ),
    "health waits for a place": Bug(
        f"{SERVICES}._add",
        "if not internal:",
        "handler.limiter = self.limiter\n            if not internal:",
        f"{SHEDDING}:test_health_answers_while_there_is_no_place",
        ("grpc",),
    ),
    "a handler is called again because another service did not begin": Bug(
        f"{SERVICES}._nested",
        "error.retry_after = DO_NOT_RETRY",
        "pass",
        f"{SHEDDING}:test_a_handler_that_was_turned_away_elsewhere_is_not_called_again_for_that",
        ("connect",),
    ),
    "draining ends an HTTP/2 connection at once": Bug(
        f"{SERVER}.drain",
        "self._drain_began = self.now()",
        "self._drain_began = self.now(); self._drain_acknowledged()",
        f"{HTTP2_SERVER}:test_a_drain_lets_requests_on_their_way_in_and_then_ends",
    ),
    "draining cuts the exchanges of HTTP/1.1 off": Bug(
        f"{HTTP1}.drain",
        "self._draining = True",
        "self._draining = True; self._close()",
        "tests.net.test_http1_server:test_draining_finishes_what_is_under_way",
    ),
    "draining cuts everything off": Bug(
        "polywire.net.listener:Listener.drain",
        "self._draining = True",
        "return self.close()",
        f"{LISTENER}:test_draining_finishes_what_is_under_way_and_refuses_new_connections",
    ),
    "a call that comes while a service stops is run": Bug(
        f"{SERVICES}._admit",
        "if self._closed:",
        "if False:",
        "tests.unit.test_services:test_finishing_waits_for_what_runs_and_then_refuses",
    ),
    "more streams at once than allowed are taken": Bug(
        f"{SERVER}._admit",
        "if len(self.streams) >= self.limits.max_concurrent_streams:",
        "if False:",
        f"{HTTP2_SERVER}:test_more_streams_than_allowed_are_refused",
    ),
    "more connections than allowed are taken": Bug(
        "polywire.net.listener:Listener.admit",
        ">= self._limits.max_connections",
        ">= 1 << 30",
        f"{LISTENER}:test_connections_beyond_the_limit_are_closed_at_once",
    ),
    "a dead peer is waited for": Bug(
        f"{UPKEEP}._keep_alive",
        "if now - self._ping_sent_at >= self.limits.keepalive_timeout:",
        "if False:",
        f"{HTTP2_CLIENT}:test_a_silent_peer_is_asked_and_then_given_up",
    ),
    "what a server refused is said to have arrived": Bug(
        f"{ENGINE}._rst_stream",
        "reached = code != ErrorCode.REFUSED_STREAM",
        "reached = True",
        f"{HTTP2_CLIENT}:test_refused_streams_were_not_reached_and_others_may_have_been",
    ),
    "what a server took before its GOAWAY is said not to have arrived": Bug(
        f"{CLIENT}._goaway_received",
        "if stream.id > last",
        "if stream.id >= last",
        f"{HTTP2_CLIENT}:test_a_goaway_fails_what_the_server_did_not_take_and_lets_the_rest_end",
    ),
    "what is told to have reached nobody is written all the same": Bug(
        f"{CLIENT}.die",
        "self.out.clear()",
        "pass",
        f"{HTTP2_CLIENT}:test_what_was_not_written_when_we_end_the_connection_never_is",
    ),
    "a retry that reached nobody hides an attempt before it": Bug(
        f"{CHANNEL}._again",
        "if reached and isinstance(error, Unavailable):",
        "if False:",
        "tests.unit.test_channel:test_what_an_earlier_attempt_may_have_reached_was_perhaps_reached",
    ),
    "a connection that is lost before it is used is kept": Bug(
        f"{POOL}._connected",
        "if connection.closed:",
        "if False:",
        "tests.net.test_pool:test_a_connection_that_is_lost_before_the_pool_hears_of_it_is_a_failure_to_connect",
        ("2",),
    ),
    "connections that have not agreed on TLS are forgotten": Bug(
        "polywire.net.listener:Listener.close",
        "for connection in self._arriving.values():",
        "for connection in ():",
        f"{BROKEN_OFF}:handshakes_end_with_the_listener",
    ),
    "a peer that takes no leave is waited for by the client": Bug(
        f"{POOL}.wait_closed", "connection.abort()", "pass", f"{BROKEN_OFF}:goodbyes_are_not_waited_for"
    ),
    "a peer that takes no leave is waited for by the server": Bug(
        "polywire.net.listener:Listener.wait_closed",
        "transport.abort()",
        "pass",
        f"{BROKEN_OFF}:goodbyes_are_not_waited_for",
    ),
    "lines that were dropped are not counted": Bug(
        "polywire.system.output:LineOutput._say",
        'self._dropped += text.count("\\n")',
        "pass",
        "tests.system.test_output:test_what_nobody_reads_is_dropped_in_whole_lines_and_counted",
        (7,),
    ),
    "half a line is left behind": Bug(
        "polywire.system.output:LineOutput._put",
        "if left and begun:",
        "if False:",
        "tests.system.test_output:test_what_nobody_reads_is_dropped_in_whole_lines_and_counted",
        (255,),
    ),
    "an exception's text is told": Bug(
        "polywire.services:_internal",
        '"internal error, request id {call.request_id}"',
        "\"{call.request_id} {__import__('sys').exc_info()[1]}\"",
        f"{LOCAL}.test_an_exception_of_the_handler_is_internal_and_keeps_its_secret",
    ),
}


# Imported before any test runs, so that nothing is parsed in the middle of one.
for one in BUGS.values():
    importlib.import_module(one.found_by.partition(":")[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
@pytest.mark.filterwarnings("ignore")
def test_a_planted_bug_is_found(name: str) -> None:
    find(BUGS[name])
