"""Handles: writes what it did into a file, a line each."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from polywire import App, current, subscribe
from tinybus.contracts import Job, JobAccepted, Work

app = App("works")
DONE = Path("done.txt")
SERVICE = int(os.environ.setdefault("TINYBUS_WORKS", str(os.getpid())))
"""The process of the service, which the processes that it starts inherit."""


def note(text: str) -> None:
    with DONE.open("a") as file:
        file.write(text + "\n")


@app.service
class Worker(Work):
    async def do(self, job: Job) -> None:
        message = current().message
        assert message is not None
        if job.name.startswith("slow"):
            note(f"begun {job.name}")
            await asyncio.sleep(0.5)
        if job.name.startswith("deadly") and message.attempt == 1:
            os.kill(os.getpid(), 9)
        note(f"task {job.name} {message.attempt}")

    async def crunch(self, job: Job) -> None:
        note(f"crunched {job.name} apart={os.getpid() != SERVICE}")


@app.service
class Listener:
    @subscribe(JobAccepted, group="works")
    async def hear(self, event: JobAccepted) -> None:
        note(f"event {event.name}")
