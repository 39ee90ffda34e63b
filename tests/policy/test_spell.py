"""What happens at many calls is told once for each spell of it."""

from __future__ import annotations

from polywire.policy.spell import QUIET, Spell


def test_a_spell_lasts_until_it_was_quiet_for_a_while() -> None:
    one = Spell()
    told = [one.happened(now) for now in (100.0, 101.0, 101.0 + QUIET - 0.1, 111.0 + QUIET - 0.1)]
    assert told == [True, False, False, True]
    assert one.times == 1


def test_who_sees_it_end_is_told_how_often_it_happened_and_only_once() -> None:
    one = Spell()
    assert one.ended(100.0) == 0
    one.happened(100.0)
    one.happened(101.0)
    assert one.ended(101.0 + QUIET - 0.1) == 0
    assert [one.ended(101.0 + QUIET), one.ended(102.0 + QUIET)] == [2, 0]
    assert one.happened(103.0 + QUIET)
