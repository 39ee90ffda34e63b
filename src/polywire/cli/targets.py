"""Contracts as the command line names them: `module`, for all in it, or `module:Contract`."""

from __future__ import annotations

import enum
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from polywire.contract import Contract, Message, Service, service_of
from polywire.contract.fields import form_of
from polywire.errors import SetupError


@dataclass
class Found:
    """What targets name. *done* is what is done with it, for errors: `exported`."""

    services: list[Service]
    messages: list[type[Message]]
    enums: list[type[enum.Enum]]

    def __init__(self, done: str = "exported") -> None:
        self.services, self.messages, self.enums = [], [], []
        self._done = done

    def add(self, target: str) -> None:
        """Raises SetupError where there is no such module or contract."""
        name, colon, attribute = target.partition(":")
        module = _import(target, name, self._done)
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


def _import(target: str, name: str, done: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except SetupError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise SetupError(
                f"{target!r} was not {done}: there is no module {error.name!r} in {Path.cwd()}, its 'src', or "
                "among what is installed."
            ) from error
        raise SetupError(f"{target!r} was not {done}: {name!r} imports {error.name!r}, which is missing.") from error
    except Exception as error:
        raise SetupError(
            f"{target!r} was not {done}: importing {name!r} raised {type(error).__name__}: {error}."
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
