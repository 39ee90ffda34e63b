"""How long the way of a call is, in bytecodes of each function: `python -m benchmarks.calls.bytecodes [CALLS]`.

On a machine where times differ by a tenth from run to run this says exactly what a change adds. A bytecode of the call
path takes some 10 to 15 ns with what it calls; those of the codecs, which do little each, about 4. Counting makes calls
some fifty times as slow, so what is done by the clock (a time stamp for log lines, a new slot of alarms) shows that
much too large.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from contextlib import AsyncExitStack
from tempfile import TemporaryFile
from types import CodeType, FrameType
from typing import Any

from benchmarks.calls.contract import Orders
from benchmarks.calls.stacks import QUERY, OrderService

from polywire.connecting import connect
from polywire.net.loop import run
from polywire.server import Server
from polywire.telemetry.access_log import AccessLog

IN_FLIGHT = 32
WARM = 200


class Trace:
    """Counts what the Python functions of this thread execute."""

    def __init__(self) -> None:
        self.bytecodes: Counter[CodeType] = Counter()

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            self.bytecodes[frame.f_code] += 1
        return self._step


async def calls(count: int, trace: Trace) -> None:
    """Client and server in one process, *count* calls traced."""
    with TemporaryFile("w") as file:
        log = AccessLog(file.write, format="json", service="orders")
        await traced(count, trace, log)
        log.close()


async def traced(count: int, trace: Trace, log: AccessLog) -> None:
    async with AsyncExitStack() as stack:
        server = Server([OrderService()], access_log=log)
        address = await server.start("127.0.0.1:0")
        stack.push_async_callback(server.close)
        orders = await stack.enter_async_context(connect(Orders, address, wire="grpc"))

        async def caller(times: int) -> None:
            for _ in range(times):
                await orders.get(QUERY)

        await caller(WARM)
        sys.settrace(trace)
        await asyncio.gather(*(caller(count // IN_FLIGHT) for _ in range(IN_FLIGHT)))
        sys.settrace(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calls", type=int, nargs="?", default=3200, help="how many are counted (3200)")
    count = parser.parse_args().calls
    trace = Trace()
    run(calls(count, trace))
    print(f"{sum(trace.bytecodes.values()) / count:10.1f}  a call, both sides")
    for code, times in trace.bytecodes.most_common(80):
        where = code.co_filename.rpartition("/src/")[2]
        print(f"{times / count:10.1f}  {where}:{code.co_firstlineno} {code.co_qualname}")


if __name__ == "__main__":
    main()
