"""What a commit says beside its offset, so that starts that were never settled can be told after a crash.

Kafka keeps one offset per partition and group, and a text beside it. The text says that a member is at it (`open`), and
up to where it had handed records out when it committed. A partition that comes to its next member while it is still
open was left by a crash, and records are counted as lost at this granularity:

* The first batch of a member is handed out only after a commit that says so. Later ones are not held up: they are in
  the next commit, at most `commit_interval` later.
* After a crash, the first record that had been handed out and was not done is lost once more, and those behind it are
  lost once: they are the suspects. They are handed out one at a time, each after a commit that says so.
* Behind them, for as far as the dead member may have got since its last commit, records are handed out in batches, each
  after a commit that says so. A record that kills its worker before any commit could tell is therefore among the
  suspects after the second crash, and known for certain after the third. No other record is lost more than once, but
  where it runs longer than a second just before one that kills its worker at once.

It also says which generation the group is in, where it was replayed. `seek` writes the next one together with the new
offsets, and every later commit repeats it. The generation of the group is the highest that any partition of the topic
has, so that those which were never committed, or are new, need none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(
    r"polywire open=([01]) started=(\d+) lost=(\d+) suspects=(\d+) guarded=(\d+)(?: generation=(\d{1,9}))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Mark:
    """One commit of one partition. All but *open*, *lost* and *generation* are offsets."""

    offset: int
    """The first record that is not done."""
    open: bool = False
    started: int = 0
    """Before it everything had been handed out."""
    lost: int = 0
    """Of the record at `offset`: starts that were never settled, without the one that may be under way."""
    suspects: int = 0
    """Records before it were lost at least once."""
    guarded: int = 0
    """Records before it are handed out only after a commit that says so."""
    generation: int = 0
    """Of the group, where it was replayed."""

    @property
    def text(self) -> str:
        said = (
            f"polywire open={self.open:d} started={self.started} lost={self.lost} "
            f"suspects={self.suspects} guarded={self.guarded}"
        )
        return f"{said} generation={self.generation}" if self.generation else said


def read(offset: int, text: str | None) -> Mark:
    """What was committed, by whomever: a foreign text says nothing."""
    found = _FORM.fullmatch(text or "")
    if found is None:
        return Mark(offset)
    open_, started, lost, suspects, guarded, generation = (int(group) for group in found.groups("0"))
    return Mark(offset, bool(open_), started, lost, suspects, guarded, generation)


def inherited(mark: Mark, reach: int) -> Mark:
    """What the next member of the group begins with. *reach*: how many records may have been handed out after the last
    commit of the one before."""
    if not mark.open:
        return mark
    lost, suspects = mark.lost, mark.suspects
    if mark.started > mark.offset:
        lost, suspects = lost + 1, max(suspects, mark.started)
    guarded = max(mark.guarded, suspects, mark.offset + reach)
    return Mark(mark.offset, True, mark.offset, lost, suspects, guarded, mark.generation)
