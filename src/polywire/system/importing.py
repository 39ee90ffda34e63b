"""Imports apps by the path that the system file or the command line gives."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from polywire.errors import SetupError
from polywire.system.app import App
from polywire.system.reading import did_you_mean


def add_to_path(directory: Path) -> None:
    """Let imports start at *directory* too, and at its `src`, as they do for a program that stands there."""
    for place in (directory / "src", directory):
        if place.is_dir() and str(place) not in sys.path:
            sys.path.insert(0, str(place))


def load_app(path: str) -> App:
    """The App at `module:attribute`. Raises SetupError saying what there is instead."""
    found = load_object(path)
    if not isinstance(found, App):
        names = vars(sys.modules[path.partition(":")[0]])
        raise SetupError(
            f"{path!r} is no App but {_article(type(found).__name__)}. {_apps_in(names, path.partition(':')[2])}"
        )
    return found


def load_object(path: str) -> object:
    """Whatever is at `module:attribute`. Raises SetupError where nothing is."""
    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise SetupError(f"{path!r} names no app. Write it as 'module:attribute', for example 'shop.inventory:app'.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise SetupError(_not_found(path, module_name, error)) from error
    except SetupError:
        raise
    except Exception as error:
        raise SetupError(
            f"{path!r} cannot be imported: module {module_name!r} raised {type(error).__name__}: {error}"
        ) from error
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise SetupError(
                f"{path!r} cannot be imported: module {module_name!r} has no attribute {attribute!r}. "
                f"{_apps_in(vars(module), attribute)}"
            )
        found = getattr(found, part)
    return found


def _not_found(path: str, module: str, error: ModuleNotFoundError) -> str:
    missing = error.name or module
    if module == missing or module.startswith(f"{missing}."):
        return (
            f"{path!r} cannot be imported: there is no module {missing!r}. Imports start at the directory of the "
            f"system file, its 'src', and what is installed in {sys.prefix}."
        )
    return f"{path!r} cannot be imported: module {module!r} imports {missing!r}, which is not installed."


def _apps_in(names: dict[str, object], wanted: str) -> str:
    apps = sorted(name for name, value in names.items() if isinstance(value, App))
    return f"{did_you_mean(wanted, apps)}It has these apps: {_listed(apps)}."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _article(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"
