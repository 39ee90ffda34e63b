"""`polywire contract check`: what a new version of contracts breaks for those who speak the old one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from polywire.cli.committed import MAX_FILES, committed_contracts, exported_contracts
from polywire.cli.options import profile_option, system_option
from polywire.cli.protoc import compile_protos
from polywire.cli.targets import Found
from polywire.contract.breaking import (
    CATEGORIES,
    RULES,
    SIDES,
    Category,
    Contracts,
    Finding,
    Side,
    breaking_changes,
    contracts_of_files,
    contracts_of_services,
)
from polywire.errors import SetupError
from polywire.system.importing import add_to_path

_NAMES: dict[Side, str] = {"protobuf": "protobuf", "protojson": "ProtoJSON", "rest": "REST", "contract": "every wire"}
_NOT_COMPARED = (
    "statuses, headers, required fields, defaults, limits, codes of errors, values of enums and tags of unions in REST"
)
_BAD_INPUT = 2


@click.command(short_help="Name what a change of contracts breaks.")
@click.argument("targets", nargs=-1, metavar="[OLD NEW]")
@click.option("--committed", is_flag=True, help="OLD are the .proto files that are committed in git.")
@click.option("--ref", default="HEAD", metavar="REF", help="The commit, tag or branch of --committed.  [default: HEAD]")
@click.option("--protos", type=click.Path(path_type=Path), help="The directory of the committed files.")
@click.option("-I", "--include", multiple=True, type=click.Path(path_type=Path), help="Where imports are looked up.")
@click.option(
    "--category",
    type=click.Choice(CATEGORIES, case_sensitive=False),
    default="file",
    show_default=True,
    help="What has to stay on the protobuf side: generated code by file or by package, JSON and bytes, or bytes.",
)
@click.option("--side", "sides", multiple=True, type=click.Choice(SIDES), help="Look at this side only; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--rules", is_flag=True, help="Print every rule and stop.")
@system_option
@profile_option
@click.pass_context
def check(context: click.Context, /, targets: tuple[str, ...], rules: bool, as_json: bool, **options: Any) -> None:
    """Compare OLD with NEW and name every change that breaks who still speaks OLD. Status 1 if there is one.

    Each is a .proto file, a directory of them, MODULE, or MODULE:CONTRACT. With --committed, OLD are the files
    committed in git and NEW the contracts of the services of the system file, or the MODULEs given. For example

    \b
        polywire contract check protos.old protos
        polywire contract check protos/shop/v1/shop.proto shop.contracts
        polywire contract check --committed
        polywire contract check --committed --ref v1.4 --protos protos shop.contracts
    """
    if rules:
        click.echo(_rules(), nl=False)
        return
    category, sides = options["category"], options["sides"] or SIDES
    try:
        old, new = _both(targets, **options)
    except SetupError as error:
        click.echo(f"Error: {error}", err=True)
        context.exit(_BAD_INPUT)
    found = breaking_changes(old, new, category=category, sides=sides)
    compared = old.is_python and new.is_python
    click.echo(_json(found, category, sides) if as_json else _text(found, category, sides, whole=compared), nl=False)
    context.exit(1 if found else 0)


def _both(
    targets: Sequence[str],
    *,
    committed: bool,
    ref: str,
    protos: Path | None,
    include: tuple[Path, ...],
    file: str | None,
    profile: str | None,
    **_: Any,
) -> tuple[Contracts, Contracts]:
    add_to_path(Path.cwd())
    if committed:
        new, directory = exported_contracts(targets, file=file, profile=profile)
        return committed_contracts(new, directory, ref=ref, protos=protos, include=include), new
    if ref != "HEAD" or protos is not None:
        raise SetupError("--ref and --protos say which committed files are meant. Add --committed.")
    if len(targets) != 2:
        verb = "was" if len(targets) == 1 else "were"
        raise SetupError(
            f"Two versions are compared, OLD and NEW, but {len(targets)} of them {verb} given. "
            "Name both, or compare with what is in git: --committed."
        )
    return read(targets[0], include), read(targets[1], include)


def read(target: str, include: Sequence[Path]) -> Contracts:
    """The contracts of a .proto file, a directory of them, a module, or one contract of it. Raises SetupError."""
    path = Path(target)
    if path.is_dir():
        return _read_files(path, _protos_in(path), [path, *include])
    if path.suffix == ".proto" or "/" in target:
        compiled, names = compile_protos([path], include, done="compared")
        return contracts_of_files(compiled, names, single=True)
    found = Found("compared")
    found.add(target)
    return contracts_of_services(found.services, found.messages, found.enums)


def _protos_in(directory: Path) -> list[Path]:
    files = sorted(path for path in directory.rglob("*.proto") if path.is_file())
    if not files:
        raise SetupError(f"{directory} was not compared: there is no .proto file in it.")
    if len(files) > MAX_FILES:
        raise SetupError(
            f"{directory} was not compared: it has {len(files)} .proto files, and {MAX_FILES} can be compared. "
            "Name a directory further down."
        )
    return files


def _read_files(directory: Path, files: Sequence[Path], include: Sequence[Path]) -> Contracts:
    compiled, names = compile_protos(files, include, done="compared")
    return contracts_of_files(compiled, names)


def _text(found: Sequence[Finding], category: Category, sides: Sequence[Side], *, whole: bool) -> str:
    lines = []
    for finding in found:
        place = f"  ({finding.file}:{finding.line})" if finding.line else ""
        lines += [
            f"{finding.rule.name}  {finding.where}{place}",
            f"  {finding.change}",
            f"  Way out: {finding.way_out}",
            "",
        ]
    looked = ", ".join(_side(side, category) for side in sides)
    if found:
        counts = Counter(finding.rule.side for finding in found)
        each = ", ".join(f"{counts[side]} for {_side(side, category)}" for side in SIDES if counts[side])
        lines.append(f"{len(found)} breaking {'change' if len(found) == 1 else 'changes'}: {each}.")
    else:
        lines.append(f"No breaking change for {looked}.")
    if not whole and {"rest", "contract"} & set(sides):
        lines.append(f"Not compared, as .proto files do not say them: {_NOT_COMPARED}.")
    return "\n".join(lines) + "\n"


def _side(side: Side, category: Category) -> str:
    return f"protobuf (category {category})" if side == "protobuf" else _NAMES[side]


def _json(found: Sequence[Finding], category: Category, sides: Sequence[Side]) -> str:
    breaking = [
        {
            "side": finding.rule.side,
            "rule": finding.rule.name,
            "where": finding.where,
            "file": finding.file or None,
            "line": finding.line or None,
            "change": finding.change,
            "way_out": finding.way_out,
        }
        for finding in found
    ]
    return json.dumps({"category": category, "sides": list(sides), "breaking": breaking}, indent=2) + "\n"


def _rules() -> str:
    lines = []
    for side in SIDES:
        for rule in RULES.values():
            if rule.side == side:
                categories = ", ".join(category for category in CATEGORIES if category in rule.categories)
                lines.append(f"{rule.name}  [{_NAMES[side]}{': ' + categories if categories else ''}]  {rule.purpose}")
    return "\n".join(lines) + "\n"
