"""`polywire contract`: contracts as `.proto` files, and `.proto` files as contracts."""

from __future__ import annotations

import enum
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from polywire.cli.protoc import compile_protos
from polywire.contract import Contract, Message, Service, service_of
from polywire.contract.export import proto_files
from polywire.contract.fields import form_of
from polywire.contract.protofile import python_module
from polywire.errors import SetupError
from polywire.system.importing import add_to_path


@click.group("contract")
def command() -> None:
    """Write contracts as .proto files, and read .proto files as contracts."""


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


@dataclass
class Found:
    """What the targets of an export name."""

    services: list[Service]
    messages: list[type[Message]]
    enums: list[type[enum.Enum]]

    def __init__(self) -> None:
        self.services, self.messages, self.enums = [], [], []

    def add(self, target: str) -> None:
        """Raises SetupError where there is no such module or contract."""
        name, colon, attribute = target.partition(":")
        module = _import(target, name)
        declared = _contracts_in(module)
        if not colon:
            if not declared:
                raise SetupError(f"{target!r} has no contract. It has: {_contents(module)}.")
            self._add_services(list(declared.values()))
            self.messages += [message for message in _classes_in(module, Message) if _has_package(message)]
            self.enums += [cls for cls in _classes_in(module, enum.Enum) if form_of(cls).package is not None]
        elif attribute in declared:
            self._add_services([declared[attribute]])
        else:
            raise SetupError(
                f"{name!r} has no contract named {attribute!r}. Its contracts: {', '.join(declared) or 'none'}."
            )

    def _add_services(self, contracts: list[type[Contract]]) -> None:
        for found in contracts:
            service = service_of(found)
            if service not in self.services:
                self.services.append(service)


def _import(target: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except SetupError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise SetupError(
                f"{target!r} was not exported: there is no module {error.name!r} in {Path.cwd()}, its 'src', or "
                "among what is installed."
            ) from error
        raise SetupError(f"{target!r} was not exported: {name!r} imports {error.name!r}, which is missing.") from error
    except Exception as error:
        raise SetupError(
            f"{target!r} was not exported: importing {name!r} raised {type(error).__name__}: {error}."
        ) from error


def _contracts_in(module: ModuleType) -> dict[str, type[Contract]]:
    """The contracts that a module declares, or that a package gathers from its modules, in order."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Contract)
        and value.__dict__.get("__declared__") is not None
        and _belongs(value, module)
    }


def _classes_in(module: ModuleType, base: type[Any]) -> list[Any]:
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value is not base and _belongs(value, module)
    ]


def _belongs(cls: type, module: ModuleType) -> bool:
    return cls.__module__ == module.__name__ or cls.__module__.startswith(f"{module.__name__}.")


def _has_package(message: type[Message]) -> bool:
    declaration = message.__polywire__
    return declaration.package is not None and "assigned by" not in declaration.cache


def _contents(module: ModuleType) -> str:
    names = [name for name in vars(module) if not name.startswith("_")]
    return ", ".join(sorted(names)) or "nothing"
