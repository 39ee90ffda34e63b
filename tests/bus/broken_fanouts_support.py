"""Fan-outs with one bug each, and the test of the suite that is there for it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import msgspec

from polywire.bus.backend.memory import MemoryFanout
from polywire.bus.core import (
    Binding,
    Envelope,
    new_id,
)
from polywire.errors import (
    NobodyListens,
)
from polywire.testing.fanouts import FanoutSuite


class ServesTheFirstGroupOnly(MemoryFanout):
    async def _publish(self, topic: str, envelope: Envelope) -> Exception | None:
        groups = self._space.bindings.get(topic, {})
        self._space.bindings[topic] = dict(list(groups.items())[:1])
        try:
            return await super()._publish(topic, envelope)
        finally:
            self._space.bindings[topic] = groups


class IgnoresConditions(MemoryFanout):
    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        await super().declare(topics, [replace(b, types=(), pattern=None, headers={}) for b in bindings])


class IsContentWithOneHeader(MemoryFanout):
    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        await super().declare(topics, [replace(b, headers=dict(list(b.headers.items())[:1])) for b in bindings])


class TakesAStarForAHash(MemoryFanout):
    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        await super().declare(topics, [replace(b, pattern=b.pattern and b.pattern.replace("*", "#")) for b in bindings])


class ConfirmsWhatNobodyGets(MemoryFanout):
    async def _publish(self, topic: str, envelope: Envelope) -> Exception | None:
        error = await super()._publish(topic, envelope)
        return None if isinstance(error, NobodyListens) else error


class PublishesTwice(MemoryFanout):
    async def _publish(self, topic: str, envelope: Envelope) -> Exception | None:
        await super()._publish(topic, msgspec.structs.replace(envelope, id=new_id()))
        return await super()._publish(topic, envelope)


class KeepsEventsForLateGroups(MemoryFanout):
    async def _publish(self, topic: str, envelope: Envelope) -> Exception | None:
        self._kept = [*getattr(self, "_kept", []), envelope]
        return await super()._publish(topic, envelope)

    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        await super().declare(topics, bindings)
        for binding in bindings:
            await self.queues.send(binding.queue, getattr(self, "_kept", []))


class IgnoresKeys(MemoryFanout):
    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        await super().declare(topics, [replace(b, keyed=False) for b in bindings])


class RebindsSilently(MemoryFanout):
    def _differences(self, bindings: Sequence[Binding]) -> list[str]:
        return []


class BrokenFanoutSuite(FanoutSuite):
    drives_clock = True
    patience = 120.0
    quiet = 1.0
    kind: ClassVar[type[MemoryFanout]] = MemoryFanout

    def url(self) -> str:
        return f"memory:{secrets.token_hex(8)}"

    async def open_backend(self, url: str) -> MemoryFanout:
        backend = self.kind(url, clock=self.clock)
        await backend.start()
        return backend


PLANTED_IN_FANOUTS: list[tuple[type[MemoryFanout], str]] = [
    (ServesTheFirstGroupOnly, "test_every_group_gets_every_event_once"),
    (IgnoresConditions, "test_a_group_of_some_types_gets_only_those"),
    (IgnoresConditions, "test_a_pattern_takes_a_word_by_a_star_and_any_number_by_a_hash"),
    (IsContentWithOneHeader, "test_a_group_that_asks_for_headers_gets_what_has_all_of_them"),
    (TakesAStarForAHash, "test_a_pattern_takes_a_word_by_a_star_and_any_number_by_a_hash"),
    (ConfirmsWhatNobodyGets, "test_an_event_that_no_group_wants_is_not_kept_and_its_sender_hears_of_it"),
    (PublishesTwice, "test_every_group_gets_every_event_once"),
    (KeepsEventsForLateGroups, "test_a_group_gets_what_was_published_after_its_binding_only"),
    (IgnoresKeys, "test_a_keyed_group_handles_the_events_of_a_key_one_after_the_other"),
    (RebindsSilently, "test_a_difference_to_what_exists_is_named"),
]
