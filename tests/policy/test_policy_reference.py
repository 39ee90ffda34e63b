"""The one table of defaults says what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from polywire.policy.levels import BUDGET_MINIMUM, BUDGET_SHARE, DEFAULT_TIMEOUT, DEFAULTS, ORDER, label
from polywire.policy.retry import FOR_CALLS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "policies.md"


def rows() -> Iterator[str]:
    """The table, as it has to be."""
    yield row("deadline", "timeout", DEFAULT_TIMEOUT)
    yield row("", "attempt_timeout", None)
    yield row("retry", "retries", FOR_CALLS.attempts - 1)
    yield row("", "retry_base", FOR_CALLS.base)
    yield row("", "retry_cap", FOR_CALLS.cap)
    yield row("", "budget_share", BUDGET_SHARE)
    yield row("", "budget_minimum", BUDGET_MINIMUM)
    for kind in ORDER:
        if kind in DEFAULTS:
            name = label(kind)
            for one in fields(DEFAULTS[kind]):
                if one.name not in ("given", "enabled", "weights"):
                    yield row(name, one.name, getattr(DEFAULTS[kind], one.name))
                    name = ""


def row(policy: str, name: str, value: Any) -> str:
    shown = "none" if value is None else f"{value:g}" if isinstance(value, int | float) else value
    return f"| {policy} | `{name}` | {shown} |".replace("|  |", "| |")


def test_the_table_of_defaults_is_what_holds_where_nobody_says_anything() -> None:
    text = PAGE.read_text().partition("| policy | value | default |\n| --- | --- | --- |\n")[2]
    table = re.match(r"(\|.*\n)+", text)
    assert table is not None
    assert table[0].splitlines() == list(rows())
