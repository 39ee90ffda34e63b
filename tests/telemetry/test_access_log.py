"""A line per call: what it says, when it is written, and that no peer can forge one."""

from __future__ import annotations

import json

import pytest

from polywire.context import Call
from polywire.telemetry.access_log import FLUSH_COUNT, MAX_VALUE, AccessLog, LogFormat
from polywire.testing.clock import ManualClock

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def call(method: str = "shop.v1.Inventory/CheckStock", **changes: object) -> Call:
    made = Call(method, request_id="abc-1", peer="127.0.0.1:5", wire="grpc")
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def written(*calls: tuple[Call, str, float], format: LogFormat = "text", service: str = "") -> str:
    lines: list[str] = []
    log = AccessLog(lines.append, format=format, service=service, clock=ManualClock())
    for one, code, duration in calls:
        log.record(one, code, duration)
    log.close()
    return "".join(lines)


def test_a_line_of_text_says_what_happened_in_which_time_for_whom() -> None:
    assert written((call(caller="orders"), "ok", 0.00042)) == (
        "2023-11-14T22:13:20.000Z INFO    shop.v1.Inventory/CheckStock OK grpc 0.42 ms "
        "peer=127.0.0.1:5 caller=orders request=abc-1\n"
    )


def test_a_line_of_text_names_the_trace_and_the_attempt_where_there_is_something_to_say() -> None:
    assert written((call(traceparent=TRACE, attempt=2), "unavailable", 1.5)) == (
        "2023-11-14T22:13:20.000Z ERROR   shop.v1.Inventory/CheckStock UNAVAILABLE grpc 1500.00 ms "
        "peer=127.0.0.1:5 request=abc-1 trace=0af7651916cd43dd8448eb211c80319c attempt=2\n"
    )


def test_a_line_of_json_has_the_names_of_the_conventions() -> None:
    line = written(
        (call(caller="orders", traceparent=TRACE, attempt=2), "not_found", 0.25), format="json", service="stock"
    )

    assert line.endswith("}\n")
    assert json.loads(line) == {
        "timestamp": "2023-11-14T22:13:20.000Z",
        "severity": "INFO",
        "service.name": "stock",
        "rpc.method": "shop.v1.Inventory/CheckStock",
        "rpc.status_code": "NOT_FOUND",
        "polywire.wire": "grpc",
        "duration": 0.25,
        "network.peer.address": "127.0.0.1:5",
        "polywire.caller": "orders",
        "request_id": "abc-1",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "polywire.attempt": 2,
    }


NASTY = 'a\nb\r\x1b[31m\u2028\x85"\\ request=forged'


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("where", ["method", "request_id", "peer", "caller", "wire", "traceparent"])
def test_no_value_can_forge_a_line_or_reach_the_terminal_raw(format: LogFormat, where: str) -> None:
    line = written((call(**{where: NASTY}), "ok", 0.1), format=format)

    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert line.rstrip("\n").isprintable()
    assert line.count(" request=") - line.count("\\ request=forged") <= 1
    if format == "json":
        json.loads(line)


@pytest.mark.parametrize("format", ["text", "json"])
def test_long_values_are_cut(format: LogFormat) -> None:
    line = written((call("m" * 20_000, request_id="é" * 20_000, peer="p" * 20_000), "ok", 0.1), format=format)

    assert len(line) < 8 * MAX_VALUE + 500


async def test_lines_wait_for_company_but_not_for_long() -> None:
    clock = ManualClock()
    written: list[str] = []
    log = AccessLog(written.append, clock=clock)

    log.record(call(), "ok", 0.1)
    log.record(call(), "ok", 0.1)
    await clock.advance(0.04)
    assert written == []
    await clock.advance(0.02)
    assert [text.count("\n") for text in written] == [2]

    for _ in range(FLUSH_COUNT + 1):
        log.record(call(), "ok", 0.1)
    assert [text.count("\n") for text in written] == [2, FLUSH_COUNT]
    log.close()
    assert [text.count("\n") for text in written] == [2, FLUSH_COUNT, 1]
    log.close()
    assert len(written) == 3
    assert clock.sleeping == 0


async def test_the_time_on_a_line_is_that_of_the_call_and_not_of_the_writing() -> None:
    clock = ManualClock()
    written: list[str] = []
    log = AccessLog(written.append, clock=clock)

    log.record(call(), "ok", 0.1)
    await clock.advance(0.02)
    log.record(call(), "ok", 0.1)
    log.flush()

    assert [line[:24] for line in written[0].splitlines()] == [
        "2023-11-14T22:13:20.000Z",
        "2023-11-14T22:13:20.020Z",
    ]


def test_a_call_that_changes_afterwards_keeps_its_line() -> None:
    written: list[str] = []
    log = AccessLog(written.append, clock=ManualClock())
    one = call()

    log.record(one, "ok", 0.1)
    one.method = "another"
    log.flush()

    assert "CheckStock" in written[0]
