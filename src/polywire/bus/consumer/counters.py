"""What a consumer did so far, in plain numbers that a collector reads."""

from __future__ import annotations


class Counters:
    """Of one queue or group in one process. Messages, if nothing else is said."""

    __slots__ = (
        "buried",
        "done",
        "dropped",
        "duplicates",
        "lost",
        "overdue",
        "received",
        "released",
        "reopened",
        "retried",
        "seconds",
        "skipped",
        "started",
    )

    def __init__(self) -> None:
        self.received = 0
        self.started = 0
        """Handler starts."""
        self.done = 0
        """Handled and acknowledged, duplicates included."""
        self.duplicates = 0
        """Acknowledged because the inbox had them."""
        self.retried = 0
        self.buried: dict[str, int] = {}
        """By reason."""
        self.released = 0
        self.lost = 0
        """Were somebody else's before they could be settled."""
        self.skipped = 0
        """Events of a type, or with headers, that the group does not want."""
        self.dropped = 0
        """At-most-once messages whose handler failed: nobody tries again."""
        self.overdue = 0
        """Handlers in threads that ran beyond their time limit."""
        self.reopened = 0
        """How often the connection to the backend was lost."""
        self.seconds = 0.0
        """The sum of the durations of all handler runs."""

    def bury(self, reason: str) -> None:
        self.buried[reason] = self.buried.get(reason, 0) + 1

    @property
    def dead(self) -> int:
        return sum(self.buried.values())
