"""`polywire fault`: trouble between two services of a running system, switched on and off."""

from __future__ import annotations

import click

from polywire.cli.options import profile_option, system_option
from polywire.errors import SetupError
from polywire.policy.faults import ANY, DROPPED, ERRORS, Fault
from polywire.system.addresses import noted
from polywire.system.fault_keys import check_calls, check_services
from polywire.system.faults import FaultFile
from polywire.system.file import SystemFile, load
from polywire.system.plan import plan


@click.group(short_help="Switch faults on and off in a running system.")
def command() -> None:
    """Delay, break or cut off the calls of one service to another, while `polywire up` runs the system.

    Calls that begin within a second, and after that, meet them. A service that is started again has only those of the
    system file, `[[faults]]`.
    """


@command.command(name="list", short_help="Print the faults that are switched on.")
@system_option
@profile_option
def list_faults(file: str | None, profile: str | None) -> None:
    """Print the faults of the system file, and those that were switched on since."""
    system = load(file, profile=profile)
    rows = [("-", fault.edge, fault.effects) for fault in system.faults]
    rows += [(one.id, one.fault.edge, one.fault.effects) for one in FaultFile(system.directory).read()]
    if not rows:
        click.echo("No fault is switched on.")
        return
    rows = [("ID", "CALLS", "FAULT"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for row in rows:
        click.echo(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}")


@command.command(short_help="Switch a fault on.")
@click.argument("caller")
@click.argument("target")
@click.argument("method", required=False)
@click.option("--delay", type=float, metavar="SECONDS", help="Send each call so much later.")
@click.option("--error", type=click.Choice(ERRORS), metavar="CODE", help="Fail each call with this code.")
@click.option("--drop", type=click.Choice(DROPPED), help="Lose each request, or each answer.")
@click.option("--partition", is_flag=True, help="Let the target be out of reach.")
@click.option("--bandwidth", type=float, metavar="BYTES", help="Let so many bytes pass per second.")
@click.option("--share", type=float, default=1.0, metavar="SHARE", help="Of the calls: 0.1 for one in ten.")
@click.option("--endpoint", metavar="ADDRESS", help="Only at this address of the target.")
@system_option
@profile_option
def add(
    caller: str,
    target: str,
    method: str | None,
    delay: float | None,
    error: str | None,
    drop: str | None,
    partition: bool,
    bandwidth: float | None,
    share: float,
    endpoint: str | None,
    file: str | None,
    profile: str | None,
) -> None:
    """Switch a fault on for the calls of CALLER to TARGET, or to one METHOD of it. CALLER may be '*'.

    \b
        polywire fault add orders inventory --delay 0.3
        polywire fault add '*' payments --partition
        polywire fault add orders inventory shop.v1.Inventory/check_stock --error unavailable --share 0.1
    """
    system = load(file, profile=profile)
    fault = Fault(
        caller=caller,
        target=target,
        method=method,
        endpoint=endpoint,
        delay=delay,
        error=error,
        drop=drop,
        partition=partition,
        bandwidth=bandwidth,
        share=share,
    )
    _check(system, fault)
    added = FaultFile(system.directory).add(fault)
    click.echo(f"{added.id}  {fault.edge}: {fault.effects}")


@command.command(short_help="Switch faults off.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@system_option
@profile_option
def clear(ids: tuple[str, ...], file: str | None, profile: str | None) -> None:
    """Switch the faults with these IDs off, or all that were switched on since the start."""
    gone = FaultFile(load(file, profile=profile).directory).clear(ids)
    for one in gone:
        click.echo(f"{one.id}  {one.fault.edge}: {one.fault.effects} is off")
    if not gone:
        click.echo("No fault was switched on.")


def _check(system: SystemFile, fault: Fault) -> None:
    check_services(fault, system.services)
    made = plan(system)
    called = {name: made.needs(name) for name in made.apps}
    if fault.caller == ANY and not any(fault.target in needed for needed in called.values()):
        raise SetupError(f"The fault was not switched on: no service calls {fault.target!r}.")
    check_calls(fault, called, made.owners, made.contracts)
    if not noted(system.directory):
        raise SetupError(
            f"The fault was not switched on: no `polywire up` runs {system.file}. Start it, or write the fault into "
            "the file: `[[faults]]`."
        )
