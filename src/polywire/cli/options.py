"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

SYSTEM_HELP = "The system file.  [default: polywire.toml, or POLYWIRE_SYSTEM]"


def system_option(function: F) -> F:
    return click.option("--system", "-s", "file", metavar="FILE", help=SYSTEM_HELP)(function)


def profile_option(function: F) -> F:
    return click.option("--profile", "-p", metavar="NAME", help="Lay a profile over it.  [default: POLYWIRE_PROFILE]")(
        function
    )


def log_option(function: F) -> F:
    return click.option(
        "--log", "log_format", type=click.Choice(["text", "json"]), default="text", help="The form of log lines."
    )(function)
