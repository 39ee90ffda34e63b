"""What services write, where whoever reads it is slow, pauses, or goes away."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import sys
import threading
import tty
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


def test_a_terminal_that_is_not_read_holds_nobody_up() -> None:
    """It counts as writable while there is room for a part of a line, and would then wait for the rest of the room."""
    reading, writing = pty.openpty()
    try:
        tty.setraw(writing)
        os.set_blocking(reading, False)
        write = LineOutput(writing, patience=0.01)
        assert os.get_blocking(writing), "whoever shares it is not to notice anything"
        for number in range(0, 3_000, 100):
            write("".join(line(each) for each in range(number, number + 100)))
        heard = drained(reading)
        write(line(3_000))
        heard += drained(reading)
    finally:
        os.close(reading)
        os.close(writing)
    numbers, dropped = counted(heard)
    assert dropped > 0
    assert len(numbers) + dropped == 3_001
    assert numbers[-1] == 3_000


def test_lines_of_several_threads_stay_whole() -> None:
    with pipe() as (reading, writing):
        write = LineOutput(writing, patience=0.2)
        together = threading.Barrier(4)

        def say(first: int) -> None:
            together.wait()
            for number in range(first, first + 2_000, 100):
                write("".join(line(each) for each in range(number, number + 100)))

        with ThreadPoolExecutor(4) as pool:
            saying = [pool.submit(say, first) for first in range(0, 8_000, 2_000)]
            heard = ""
            while not all(one.done() for one in saying):
                heard += drained(reading)
        write(line(8_000))
        heard += drained(reading)
    numbers, dropped = counted(heard)
    assert len(numbers) + dropped == 8_001
    assert len(set(numbers)) == len(numbers)


def test_what_is_said_by_a_finalizer_in_the_middle_of_a_line_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pipe() as (reading, writing):
        write = LineOutput(writing)
        really = os.write

        def collecting(descriptor: int, data: bytes) -> int:
            monkeypatch.setattr(os, "write", really)
            count = really(descriptor, data[:50])
            write(line(2))
            return count

        monkeypatch.setattr(os, "write", collecting)
        write(line(1))
        assert drained(reading) == line(1) + line(2)


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
