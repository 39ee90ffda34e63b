"""What they promise each other."""

from __future__ import annotations

from polywire import Contract, Event, Message, Retry, rpc, task


class Job(Message, package="tinybus.v1"):
    name: str


class Nothing(Message, package="tinybus.v1"):
    pid: int


class JobAccepted(Event, topic="tinybus.jobs", key="name"):
    name: str


class Desk(Contract, package="tinybus.v1"):
    @rpc
    async def accept(self, job: Job) -> Nothing:
        """Send the job as a task, and tell it as an event."""
        raise NotImplementedError

    @rpc
    async def crunch(self, job: Job) -> Nothing:
        """Send the job as one that keeps a core busy."""
        raise NotImplementedError


class Work(Contract, package="tinybus.v1"):
    @task(retry=Retry(attempts=20, base=0.01, cap=0.05))
    async def do(self, job: Job) -> None:
        raise NotImplementedError

    @task(runs_in="process", timeout=20)
    async def crunch(self, job: Job) -> None:
        raise NotImplementedError
