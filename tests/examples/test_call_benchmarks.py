"""The programs that say what a change costs a call."""

from __future__ import annotations

from benchmarks.calls.beside import verdict
from benchmarks.calls.bytecodes import IN_FLIGHT, Trace, calls

from polywire.channel import Channel
from polywire.net.loop import run
from polywire.services import Services


def test_the_bytecodes_of_a_call_are_the_same_in_each_run() -> None:
    found = []
    for _ in range(2):
        trace = Trace()
        run(calls(2 * IN_FLIGHT, trace))
        found.append([trace.bytecodes[function.__code__] for function in (Channel.unary, Services.unary)])
    assert found[0] == found[1]
    assert all(count > 2 * IN_FLIGHT * 50 for count in found[0])


def test_a_commit_is_compared_with_another_pair_by_pair() -> None:
    """A machine that is slower in some pairs as a whole changes nothing."""
    fast = {"per_second": 20_000.0, "client_us": 40.0, "server_us": 60.0}
    slower = {"per_second": 19_000.0, "client_us": 44.0, "server_us": 61.0}
    pairs = [(fast, slower)] * 3 + [({key: value / 2 for key, value in one.items()} for one in (fast, slower))]
    assert verdict(("a", "b"), [(there, here) for there, here in pairs]).splitlines()[2:] == [
        "| a | 20,000 | 100.0 |",
        "| b | 19,000 | 105.0 |",
        "| the second beside the first, pair by pair | 0.950 (half of them 0.950 to 0.950) | 1.050 |",
    ]
