"""Mutated frames, by the ten thousand at each run and by the million when asked for."""

from __future__ import annotations

import pytest
from fuzz_http2 import Fuzz


def quietly(frames: int, seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    fuzz = Fuzz(seed)
    fuzz.run(frames)
    assert fuzz.frames >= frames
    assert capfd.readouterr() == ("", "")


def test_twenty_thousand_mutated_frames_raise_nothing_and_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    quietly(20_000, 7, capfd)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_mutated_frames_raise_nothing_and_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    quietly(1_000_000, 1, capfd)
