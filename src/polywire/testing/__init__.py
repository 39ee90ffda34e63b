"""For users' tests as for our own: clocks, in-memory systems, and the suites that every wire passes."""

from polywire.testing.clock import ManualClock, settle
from polywire.testing.system import System, system

__all__ = ["ManualClock", "System", "settle", "system"]
