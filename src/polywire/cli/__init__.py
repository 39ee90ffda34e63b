"""The command line. Each command lives in a file of its own and is imported when it is used."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence

import click

from polywire.errors import PolywireError

_COMMANDS = {
    "up": "polywire.cli.up",
    "serve": "polywire.cli.serve",
    "call": "polywire.cli.call",
    "methods": "polywire.cli.methods",
    "explain": "polywire.cli.explain",
    "system": "polywire.cli.system",
    "contract": "polywire.cli.contract",
    "bus": "polywire.cli.bus",
    "fault": "polywire.cli.fault",
    "db": "polywire.cli.db",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, module in _COMMANDS.items() if importlib.util.find_spec(module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name]).command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="polywire", prog_name="polywire")
def cli() -> None:
    """Services that talk to each other by typed contracts, over any wire."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; what went wrong on purpose becomes a sentence on standard error and status 1."""
    try:
        status = cli.main(
            args=None if arguments is None else list(arguments), prog_name="polywire", standalone_mode=False
        )
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("Aborted.", err=True)
        sys.exit(1)
    except PolywireError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)
