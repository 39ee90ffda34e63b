"""Tests of faults that are switched while a system runs, as functions that need nothing: for bugs that are planted."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import test_faults
import test_faults_wires


def several_switch_at_once() -> None:
    # One of two that read at once has to write first; now and then nobody gets in between.
    for _ in range(5):
        with tempfile.TemporaryDirectory() as directory:
            test_faults.test_those_who_switch_at_once_undo_nothing_of_each_other(Path(directory))


def the_file_is_of_another_user() -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        test_faults.test_the_file_of_another_user_is_not_read(Path(directory), patch)


async def a_process_starts_later() -> None:
    with tempfile.TemporaryDirectory() as directory:
        await test_faults.test_a_process_that_starts_later_does_not_take_up_what_was_switched_on_before(Path(directory))


async def a_fault_comes_and_goes() -> None:
    await test_faults_wires.test_nothing_is_around_a_wire_while_no_fault_is_on_its_edge("local")
