"""Tells whoever waits for a task how it ended."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from polywire.bus.core.envelope import Envelope
from polywire.bus.core.results import FORMATS, Outcome, Results, failure, given_up, result_key, success
from polywire.contract.task import Task
from polywire.errors import CallError

log = logging.getLogger("polywire.consumer")


class Answers(Protocol):
    """Told how a message ended before it is settled. An error that it raises counts as the handler's."""

    async def done(self, envelope: Envelope, value: Any) -> None:
        """The handler returned *value*."""

    async def given_up(self, envelope: Envelope, reason: str, error: BaseException | None) -> None:
        """It goes to the dead letters for *reason*; *error* is the handler's last one, where there is one."""


class StoredAnswers:
    """Puts the results of one task into the store that its sender named. *stores* by name."""

    def __init__(self, task: Task, stores: Mapping[str, Results]) -> None:
        self._task = task
        self._stores = stores

    async def done(self, envelope: Envelope, value: Any) -> None:
        store = self._store_of(envelope)
        if store is not None:
            task, form = self._task, FORMATS.get(envelope.content_type, "json")
            outcome = success(task.full_name, task.response, value, format=form, max_bytes=store.max_bytes)
            await self._put(store, envelope, outcome)

    async def given_up(self, envelope: Envelope, reason: str, error: BaseException | None) -> None:
        store = self._store_of(envelope)
        if store is not None:
            if isinstance(error, CallError):
                await self._put(store, envelope, failure(error))
            else:
                await self._put(store, envelope, given_up(self._task.full_name, envelope.id, reason))

    async def _put(self, store: Results, envelope: Envelope, outcome: Outcome) -> None:
        await store.put(result_key(self._task.full_name, envelope.id), outcome, ttl=self._task.result_ttl)

    def _store_of(self, envelope: Envelope) -> Results | None:
        """None where nobody waits, or where there is no such store here: asking again would not bring it."""
        if envelope.reply_to is None:
            return None
        store = self._stores.get(envelope.reply_to)
        if store is None:
            log.error(
                "the result of %s is not kept: it was to go to the store %r, and this process has %s (id %s)",
                envelope.type, envelope.reply_to, ", ".join(map(repr, sorted(self._stores))) or "none", envelope.id,
            )  # fmt: skip
        return store
