"""For users' tests as for our own: clocks, in-memory systems, and the suites that every wire passes."""

from polywire.testing.clock import ManualClock, settle

__all__ = ["ManualClock", "settle"]
