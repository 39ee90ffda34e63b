"""`polywire bus`: queues, topics, groups and dead letters of a system."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from polywire.bus.core import DeadFilter, DeadLetter, Envelope, GroupStats, QueueStats, Seek
from polywire.bus.core.envelope import timestamp
from polywire.bus.sending.options import Options
from polywire.cli.options import profile_option, system_option
from polywire.cli.request import from_arguments
from polywire.errors import PolywireError, SetupError
from polywire.system.file import load
from polywire.system.operating import PAGE, Operator, operating
from polywire.system.plan import plan
from polywire.system.reading import did_you_mean

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

MAX_SHOWN = 2_000
"""Characters of a body that `show` prints, unless asked for all."""
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@click.group(short_help="Look at the bus, and change what is on it.")
def command() -> None:
    """Look at queues, topics and groups, and change what is on them.

    A queue is named as it is, a group of a topic TOPIC/GROUP.
    """


def _running(file: str | None, profile: str | None, work: Callable[[Operator], Coroutine[Any, Any, T]]) -> T:
    made = plan(load(file, profile=profile))

    async def run() -> T:
        async with operating(made) as operator:
            return await work(operator)

    return asyncio.run(run())


def _system(function: F) -> F:
    return system_option(profile_option(function))


# ---- looking -------------------------------------------------------------------------------------------------------


@command.command(short_help="Depth, lag, dead letters and age of everything.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@_system
def status(as_json: bool, file: str | None, profile: str | None) -> None:
    """Print every queue and group: what is ready, delayed, in flight and dead, or behind, and how old the oldest is."""

    async def work(operator: Operator) -> list[dict[str, Any]]:
        rows = []
        for place in operator.places():
            try:
                rows.append(_row(place.name, await place.stats(), len(await place.dead(DeadFilter(), PAGE))))
            except SetupError:
                raise
            except PolywireError as error:
                rows.append({"name": place.name, "problem": str(error)})
        return rows

    rows = _running(file, profile, work)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
    else:
        click.echo(_table(rows), nl=False)


def _row(name: str, stats: QueueStats | GroupStats, dead: int) -> dict[str, Any]:
    if isinstance(stats, GroupStats):
        return {
            "name": name,
            "ready": stats.lag,
            "delayed": None,
            "in_flight": None,
            "dead": dead,
            "oldest": stats.oldest,
            "members": stats.members,
        }
    return {
        "name": name,
        "ready": stats.ready,
        "delayed": stats.delayed,
        "in_flight": stats.in_flight,
        "dead": dead if stats.dead is None else stats.dead,
        "oldest": stats.oldest,
        "members": None,
    }


_COLUMNS = ("name", "ready", "delayed", "in_flight", "dead", "oldest", "members")


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [tuple(column.replace("_", " ").upper() for column in _COLUMNS)]
    for row in rows:
        if "problem" in row:
            lines.append((row["name"], row["problem"], *[""] * (len(_COLUMNS) - 2)))
        else:
            lines.append(tuple(_cell(column, row[column]) for column in _COLUMNS))
    widths = [max(len(line[i]) for line in lines if line[-1] or i < 1) for i in range(len(_COLUMNS))]
    return "".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} s" if column == "oldest" else str(value)


@command.command(short_help="Print the next messages of a queue or group.")
@click.argument("place")
@click.option("-n", "count", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many.")
@_system
def peek(place: str, count: int, file: str | None, profile: str | None) -> None:
    """Print the next messages of PLACE without disturbing them, a JSON object per line."""

    async def work(operator: Operator) -> list[Envelope]:
        return await operator.place(place).peek(count)

    for envelope in _running(file, profile, work):
        click.echo(json.dumps(_shown(envelope, MAX_SHOWN)))


def _shown(envelope: Envelope, limit: int | None) -> dict[str, Any]:
    """What a person wants to see; empty things are left out."""
    body = envelope.body.decode("utf-8", "replace")
    shown = {
        "id": envelope.id,
        "type": envelope.type,
        "time": timestamp(envelope.time),
        "key": envelope.key,
        "source": envelope.source,
        "attempt": envelope.attempt or None,
        "redrives": envelope.redrive_count or None,
        "not_before": None if envelope.not_before is None else timestamp(envelope.not_before),
        "headers": envelope.headers,
        "content_type": envelope.content_type,
        "body": body if limit is None or len(body) <= limit else body[:limit] + "...",
    }
    return {name: value for name, value in shown.items() if value not in (None, "")}


# ---- dead letters --------------------------------------------------------------------------------------------------


@command.group(short_help="Dead letters: list, show, retry, drop.")
def dead() -> None:
    """Look at messages that were given up, send them again, or delete them."""


def _filters(function: F) -> F:
    for option in (
        click.option("--until", metavar="TIME", help="Died before: 2026-11-21T10:00, or 2h ago as 2h."),
        click.option("--since", metavar="TIME", help="Died at or after."),
        click.option("--error", metavar="TEXT", help="With this in the error."),
        click.option("--reason", metavar="REASON", help="attempts, rejected, undecodable, expired, worker_lost, ..."),
        click.option("--type", "type_", metavar="TYPE", help="Of this type."),
        click.option("--id", "id_", metavar="ID", help="The one with this id."),
    ):
        function = option(function)
    return function


def _filter(
    id_: str | None, type_: str | None, reason: str | None, error: str | None, since: str | None, until: str | None
) -> DeadFilter:
    return DeadFilter(
        id=id_,
        type=type_,
        reason=reason,
        error=error,
        since=None if since is None else moment(since),
        until=None if until is None else moment(until),
    )


def moment(text: str) -> float:
    """`2026-11-21T10:00` (UTC where no zone is given), or how long ago: `90s`, `30m`, `2h`, `7d`; in seconds since the
    epoch. Raises SetupError for anything else."""
    number, unit = text[:-1], text[-1:]
    if unit in UNITS and number.isascii() and number.isdecimal() and len(number) < 8:
        return (datetime.now(UTC) - timedelta(**{UNITS[unit]: int(number)})).timestamp()
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise SetupError(f"{text!r} is no time. Write 2026-11-21T10:00, or how long ago: 90s, 30m, 2h, 7d.") from None
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


@dead.command("list", short_help="One line per dead letter.")
@click.argument("place")
@_filters
@click.option("-n", "count", type=click.IntRange(1, 100_000), default=PAGE, show_default=True, help="How many at most.")
@_system
def list_(place: str, count: int, file: str | None, profile: str | None, **which: str | None) -> None:
    """Print the dead letters of PLACE, oldest first."""

    async def work(operator: Operator) -> list[DeadLetter]:
        return await operator.place(place).dead(_filter(**which), count)

    letters = _running(file, profile, work)
    for letter in letters:
        click.echo(
            f"{timestamp(letter.died)}  {letter.envelope.id}  {letter.envelope.type}  {letter.reason} after "
            f"{letter.attempts}  {_one_line(letter.error)}".rstrip()
        )
    more = ", and perhaps more: -n shows them" if len(letters) == count else ""
    click.echo(f"{len(letters)} dead letters of {place}{more}.", err=True)


def _one_line(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= 160 else line[:157] + "..."


@dead.command(short_help="All of one dead letter.")
@click.argument("place")
@click.argument("id_", metavar="ID")
@_system
def show(place: str, id_: str, file: str | None, profile: str | None) -> None:
    """Print one dead letter of PLACE as JSON, its body included."""

    async def work(operator: Operator) -> list[DeadLetter]:
        return await operator.place(place).dead(DeadFilter(id=id_), 1)

    letters = _running(file, profile, work)
    if not letters:
        raise SetupError(
            f"{place} has no dead letter with the id {id_!r}. `polywire bus dead list {place}` lists them."
        )
    letter = letters[0]
    about = {
        "reason": letter.reason,
        "error": letter.error,
        "attempts": letter.attempts,
        "died": timestamp(letter.died),
        "position": letter.position,
    }
    click.echo(json.dumps(about | _shown(letter.envelope, None), indent=2))


def _changing(function: F) -> F:
    for option in (
        click.option("--dry-run", is_flag=True, help="Only say what would be done."),
        click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most N per second."),
        click.option("--all", "everything", is_flag=True, help="All of them, where no filter is given."),
    ):
        function = option(function)
    return _filters(function)


@dead.command(short_help="Send dead letters to their queue again.")
@click.argument("place")
@_changing
@_system
def retry(
    place: str, everything: bool, rate: float | None, dry_run: bool, file: str | None, profile: str | None, **which: Any
) -> None:
    """Send the dead letters of PLACE again: same id, attempts counted afresh. A letter leaves the dead ones only once
    it is back in its queue."""
    _change("retried", place, everything, rate, dry_run, file, profile, which)


@dead.command(short_help="Delete dead letters.")
@click.argument("place")
@_changing
@_system
def drop(
    place: str, everything: bool, rate: float | None, dry_run: bool, file: str | None, profile: str | None, **which: Any
) -> None:
    """Delete the dead letters of PLACE for good."""
    _change("dropped", place, everything, rate, dry_run, file, profile, which)


def _change(
    verb: str,
    place: str,
    everything: bool,
    rate: float | None,
    dry_run: bool,
    file: str | None,
    profile: str | None,
    which: dict[str, Any],
) -> None:
    if not everything and not any(which.values()):
        raise SetupError(
            f"Nothing was {verb}: say which dead letters of {place}, by --id, --type, --reason, --error, --since or "
            "--until, or --all."
        )
    chosen = _filter(**which)

    async def work(operator: Operator) -> int:
        found = operator.place(place)
        if dry_run:
            return len(await found.dead(chosen, 100_000))
        change = found.revive if verb == "retried" else found.drop
        # What dies again meanwhile is not taken up again: only what was dead at the beginning.
        until = min(chosen.until or float("inf"), datetime.now(UTC).timestamp())
        bounded = DeadFilter(
            id=chosen.id, type=chosen.type, reason=chosen.reason, error=chosen.error, since=chosen.since, until=until
        )
        count = 0
        step = PAGE if rate is None else max(1, min(PAGE, int(rate)))
        while letters := await found.dead(bounded, step):
            changed = await change(letters)
            count += changed
            if not changed:
                break
            if rate is not None:
                await asyncio.sleep(len(letters) / rate)
        return count

    count = _running(file, profile, work)
    click.echo(f"{count} dead letters of {place} {'would be ' if dry_run else ''}{verb}.")


# ---- changing ------------------------------------------------------------------------------------------------------


@command.command(short_help="Let a group read events again, or skip some.")
@click.argument("place", metavar="TOPIC/GROUP")
@click.option("--from", "start", required=True, metavar="WHERE", help="earliest, latest, a time, or 0=17,1=4: offsets.")
@_system
def replay(place: str, start: str, file: str | None, profile: str | None) -> None:
    """Let TOPIC/GROUP go on from somewhere else. Its members have to be stopped where the backend cannot tell them.

    Behind an inbox, what is read again has its effects once more.
    """
    to = seek_of(start)

    async def work(operator: Operator) -> None:
        await operator.replay(place, to)

    _running(file, profile, work)
    click.echo(f"{place} goes on from {start}.")


def seek_of(text: str) -> Seek:
    """`earliest`, `latest`, `0=17,1=4`, or a time as `moment` reads it."""
    if text in ("earliest", "latest"):
        return Seek(earliest=text == "earliest", latest=text == "latest")
    pairs = [part.partition("=") for part in text.split(",")]
    if all(equals and number.isdecimal() and offset.isdecimal() for number, equals, offset in pairs):
        return Seek(offsets={int(number): int(offset) for number, _, offset in pairs})
    return Seek(time=moment(text))


@command.command("plan", short_help="What `apply` would create.")
@_system
def plan_(file: str | None, profile: str | None) -> None:
    """Print what is missing or different, a line each; the exit status is 1 where there is something."""
    lines = _running(file, profile, lambda operator: operator.plan())
    for line in lines:
        click.echo(line)
    if lines:
        raise SystemExit(1)
    click.echo("All queues, topics and groups are as declared.")


@command.command(short_help="Create queues, topics and groups that are missing.")
@_system
def apply(file: str | None, profile: str | None) -> None:
    """Create what is missing. What exists and is different is named, and nothing is changed."""

    async def work(operator: Operator) -> list[str]:
        missing = await operator.plan()
        await operator.apply()
        return missing

    for line in _running(file, profile, work):
        click.echo(line.replace("would create", "created", 1))
    click.echo("All queues, topics and groups are as declared.")


_FIELDS = "The message: product_id=SKU-123, address.city=Rome, items:=[...]."


@command.command(short_help="Publish an event.")
@click.argument("event", metavar="EVENT")
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--id", "id_", metavar="ID", help="Instead of a new one.")
@click.option("--delay", type=float, metavar="SECONDS", help="Handled no earlier.")
@_system
def publish(
    event: str, fields: tuple[str, ...], id_: str | None, delay: float | None, file: str | None, profile: str | None
) -> None:
    """Publish EVENT, named by its type on the wire (shop.v1.OrderPaid), with these fields."""

    async def work(operator: Operator) -> str:
        cls = _one_of(operator.events, event, "event")
        message = from_arguments(cls, fields)
        return await operator.sender.publish(message, Options(id=id_, delay=delay))  # type: ignore[arg-type]  # made from a schema at run time

    click.echo(_running(file, profile, work))


@command.command(short_help="Send a task.")
@click.argument("task", metavar="CONTRACT/TASK")
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--id", "id_", metavar="ID", help="Instead of a new one.")
@click.option("--delay", type=float, metavar="SECONDS", help="Handled no earlier.")
@click.option("--priority", type=int, metavar="N", help="Instead of the declared one.")
@_system
def enqueue(
    task: str,
    fields: tuple[str, ...],
    id_: str | None,
    delay: float | None,
    priority: int | None,
    file: str | None,
    profile: str | None,
) -> None:
    """Send CONTRACT/TASK, shop.v1.Mail/send_confirmation, with these fields."""

    async def work(operator: Operator) -> str:
        found = _one_of(operator.tasks, task, "task")
        message = from_arguments(found.request, fields)
        return await operator.sender.send(found, message, Options(id=id_, delay=delay, priority=priority))

    click.echo(_running(file, profile, work))


def _one_of(known: Any, name: str, what: str) -> Any:
    if name not in known:
        raise SetupError(
            f"There is no {what} {name!r}. {did_you_mean(name, known)}There are: {', '.join(known) or 'none'}."
        )
    return known[name]
