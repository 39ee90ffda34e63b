"""In one process, gone with it: for tests, and for work that may be lost."""

from polywire.bus.backend.memory.fanout import MemoryFanout
from polywire.bus.backend.memory.log import MemoryLog, MemoryLogConsumer
from polywire.bus.backend.memory.queue import MemoryConsumer, MemoryQueue

__all__ = ["MemoryConsumer", "MemoryFanout", "MemoryLog", "MemoryLogConsumer", "MemoryQueue"]
