"""What services write, where whoever reads it is slow, pauses, or goes away."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny.contracts import Inventory, Query
from up_support import SOON, environ, tiny

from polywire import connect
from polywire.system.output import LineOutput

DROPPED = r"(\d+) lines of this output were dropped here: whoever reads it did not read for too long\."


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        yield reading, writing
    finally:
        for descriptor in (reading, writing):
            try:
                os.close(descriptor)
            except OSError:
                continue  # the test closed it


def drained(descriptor: int) -> str:
    """All that is in a pipe."""
    found = b""
    while True:
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            data = b""
        if not data:
            return found.decode()
        found += data


def line(number: int) -> str:
    """Of an odd length, so that no number of them fills a pipe to the last byte."""
    return f"line {number:07} {'x' * 84}\n"


def counted(text: str) -> tuple[list[int], int]:
    """The numbers of the lines in *text*, all of them whole, and how many are said to have been dropped."""
    assert text.endswith("\n")
    numbers, dropped = [], 0
    for each in text.splitlines():
        if found := re.fullmatch(rf"\S+Z WARNING {DROPPED}", each):
            dropped += int(found[1])
        else:
            numbers.append(int(each.split()[1]))
            assert each + "\n" == line(numbers[-1])
    return numbers, dropped


@pytest.mark.parametrize("batch", [1, 7, 255])
def test_what_nobody_reads_is_dropped_in_whole_lines_and_counted(batch: int) -> None:
    with pipe() as (reading, writing):
        write = LineOutput(writing, patience=0.01)
        heard, total = "", 0
        for _ in range(3):
            for _ in range(4_000 // batch):
                write("".join(line(number) for number in range(total, total + batch)))
                total += batch
            heard += drained(reading)
        # The reader is back: what was begun is ended, then it is said what is missing, then things go on.
        write(line(total))
        heard += drained(reading)
    numbers, dropped = counted(heard)
    assert dropped > 0
    assert len(numbers) + dropped == total + 1
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == total


def test_a_slow_reader_gets_every_line() -> None:
    with pipe() as (reading, writing):
        os.set_blocking(reading, True)
        heard: list[bytes] = []

        def read() -> None:
            while data := os.read(reading, 1000):
                heard.append(data)

        reader = threading.Thread(target=read)
        reader.start()
        write = LineOutput(writing, patience=60.0)
        for number in range(0, 10_000, 100):
            write("".join(line(each) for each in range(number, number + 100)))
        os.close(writing)
        reader.join()
    assert counted(b"".join(heard).decode()) == (list(range(10_000)), 0)


def test_in_json_the_notice_is_a_record_too() -> None:
    with pipe() as (reading, writing):
        write = LineOutput(writing, format="json", service="orders", patience=0.0)
        for _ in range(2_000):
            write(json.dumps({"message": "x" * 100}) + "\n")
        heard = drained(reading)
        write(json.dumps({"message": "again"}) + "\n")
        records = [json.loads(each) for each in (heard + drained(reading)).splitlines()]
    assert records[-1] == {"message": "again"}
    notice = records[-2]
    assert (notice["severity"], notice["service.name"]) == ("WARNING", "orders")
    found = re.fullmatch(DROPPED, notice["message"])
    assert found is not None
    assert len(records) - 2 + int(found[1]) == 2_000


def test_a_reader_that_has_gone_is_nobody_to_wait_for() -> None:
    with pipe() as (reading, writing):
        write = LineOutput(writing, patience=0.0)
        os.close(reading)
        for number in range(3_000):
            write(line(number))


async def test_services_answer_while_nobody_reads_what_they_say(tmp_path: Path) -> None:
    """As when a terminal is paused. (Their pipes were full then, and all calls waited for the reader.)"""
    with pipe() as (reading, writing):
        up = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "polywire.cli",
            "up",
            cwd=tiny(tmp_path),
            env=environ(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=writing,
        )
        os.close(writing)
        heard = ""
        try:
            async with asyncio.timeout(SOON):
                while (found := re.search(r"^inventory +http://(\S+)", heard, re.MULTILINE)) is None:
                    await asyncio.sleep(0.05)
                    heard += drained(reading)
                async with connect(Inventory, found[1]) as inventory:
                    for _ in range(200):
                        await asyncio.gather(*[inventory.check_stock(Query(product_id="a")) for _ in range(50)])
            heard += drained(reading)
            up.terminate()
            async with asyncio.timeout(SOON):
                while up.returncode is None:
                    heard += drained(reading)
                    await asyncio.sleep(0.05)
        finally:
            if up.returncode is None:
                up.kill()
            await up.wait()
        heard += drained(reading)
    assert up.returncode == 0
    dropped = sum(int(number) for number in re.findall(DROPPED, heard))
    assert dropped > 0
    assert heard.count("Inventory/CheckStock OK") < 10_000
