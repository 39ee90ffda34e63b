"""Sends."""

from __future__ import annotations

import os

from polywire import App, Bus
from tinybus.contracts import Desk, Job, JobAccepted, Nothing, Work

app = App("desk")


@app.service
class DeskService(Desk):
    def __init__(self, work: Work, bus: Bus) -> None:
        self.work = work
        self.bus = bus

    async def accept(self, job: Job) -> Nothing:
        await self.work.do(job)
        await self.bus.publish(JobAccepted(name=job.name))
        return Nothing(pid=os.getpid())

    async def crunch(self, job: Job) -> Nothing:
        await self.work.crunch(job)
        return Nothing(pid=os.getpid())
