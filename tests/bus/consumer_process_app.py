"""What the worker processes of the tests import by name."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from polywire.bus.consumer.handling import Handling
from polywire.bus.consumer.worker import Loaded
from polywire.bus.core.inbox import under_way
from polywire.context import current
from polywire.contract import Message
from polywire.contract.retry import Backoff
from polywire.errors import Reject

TYPE = "shop.v1.Images/Resize"
ASYNC = "shop.v1.Images/Copy"


class Resize(Message):
    do: str
    note: str = ""


class Images:
    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def resize(self, job: Resize) -> None:
        message = current().message
        assert message is not None
        if job.do == "note":
            self.write(job.note, f"{os.getpid()} {message.id} {message.attempt} {current().request_id}")
        elif job.do == "generation":
            (way,) = under_way()
            self.write(f"{job.note}-{way.generation}", "")
        elif job.do == "spin":
            self.write(job.note, str(os.getpid()))
            while True:
                sum(range(1000))
        elif job.do == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif job.do == "exit":
            sys.exit(3)
        elif job.do == "fail":
            raise ValueError("broken image")
        elif job.do == "reject":
            raise Reject("no image")
        elif job.do == "extend":
            message.extend(60.0)
            self.write(job.note, str(os.getpid()))
            while not (self.directory / "go").exists():
                time.sleep(0.01)

    async def copy(self, job: Resize) -> None:
        self.resize(job)


def handlings(directory: str) -> list[Handling]:
    images = Images(directory)
    backoff = Backoff(attempts=2, base=0.0, cap=0.0)
    return [
        Handling(types={TYPE: Resize}, function=images.resize, name="Images.resize", runs_in="process", timeout=5.0,
                 backoff=backoff),
        Handling(types={ASYNC: Resize}, function=images.copy, name="Images.copy", runs_in="process", timeout=5.0,
                 backoff=backoff),
    ]  # fmt: skip


@asynccontextmanager
async def load(directory: str) -> AsyncIterator[Loaded]:
    yield Loaded(destination="shop.v1.Images", handlings=handlings(directory))
    Images(directory).write(f"closed-{os.getpid()}", "")


def broken() -> None:
    raise RuntimeError("no database")
