"""`polywire contract`: contracts as `.proto` files, `.proto` files as contracts, and what changes break."""

from __future__ import annotations

from pathlib import Path

import click

from polywire.cli.contract_check import check
from polywire.cli.protoc import compile_protos
from polywire.cli.targets import Found
from polywire.contract.export import proto_files
from polywire.contract.protofile import python_module
from polywire.errors import SetupError
from polywire.system.importing import add_to_path


@click.group("contract")
def command() -> None:
    """Write contracts as .proto files, read .proto files as contracts, and check that they last."""


command.add_command(check)


@command.command()
@click.argument("targets", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), help="Directory to write into; without it, print.")
@click.option("--no-http", is_flag=True, help="Leave out the REST routes (google.api.http).")
@click.option("--with-imports", is_flag=True, help="Write google/api/*.proto too, for compilers without them.")
def export(targets: tuple[str, ...], out: Path | None, no_http: bool, with_imports: bool) -> None:
    """Write the .proto files of TARGETS: one per package, in the directory that the package says.

    A target is MODULE, for all contracts in it, or MODULE:CONTRACT, for example

    \b
        polywire contract export shop.contracts --out protos
        polywire contract export shop.contracts:Inventory
    """
    add_to_path(Path.cwd())
    found = Found()
    for target in targets:
        found.add(target)
    files = proto_files(found.services, found.messages, found.enums, http=not no_http, imports=with_imports)
    if out is None:
        click.echo(_joined(files), nl=False)
        return
    for name, text in files.items():
        _write(out / name, text)


@command.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-I", "--include", multiple=True, type=click.Path(path_type=Path), help="Where imports are looked up.")
@click.option("--out", type=click.Path(path_type=Path), help="Module to write; without it, print.")
def import_(files: tuple[Path, ...], include: tuple[Path, ...], out: Path | None) -> None:
    """Write a Python module with the messages, enums and contracts of FILES.

    What they use of other .proto files is in it too. For example

    \b
        polywire contract import protos/shop/v1/shop.proto --out src/shop/contracts.py
        polywire contract import -I protos shop/v1/shop.proto
    """
    compiled, names = compile_protos([_found(file, include) for file in files], include)
    text = python_module(compiled, names)
    if out is None:
        click.echo(text, nl=False)
    else:
        _write(out, text)


def _found(file: Path, include: tuple[Path, ...]) -> Path:
    """A file as given, or below one of the -I directories, as protoc takes it too."""
    places = [file, *(directory / file for directory in include)]
    return next((place for place in places if place.is_file()), file)


def _joined(files: dict[str, str]) -> str:
    if len(files) == 1:
        return next(iter(files.values()))
    return "\n".join(f"// {name}\n\n{text}" for name, text in files.items())


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{path} was not written: {error.strerror}.") from error
    click.echo(f"wrote {path}")
