"""Reads tables of settings key by key, and refuses what it does not know in a sentence that says where it stands."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from polywire.errors import SystemFileError
from polywire.system.positions import Path

T = TypeVar("T")
N = TypeVar("N", int, float)

_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a table",
}
_TEXTS = "It has to be text, or an array of texts that is not empty."


class FromEnvironment(str):
    """A value that came from an environment variable: still text, and read as the type that its key has."""

    __slots__ = ("variable",)
    variable: str


class Settings:
    """Every value, and where each was said: in the file, in a profile, or in the environment."""

    def __init__(self, values: dict[str, Any], lines: Mapping[Path, int], file: str) -> None:
        self.values = values
        self.file = file
        self.origins: dict[Path, str] = {path: f"{file}:{line}" for path, line in lines.items()}

    def where(self, path: Path) -> str:
        """`polywire.toml:12`, of the key itself or of the nearest table around it."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path[:-1]
        return self.file

    def error(self, path: Path, problem: str) -> SystemFileError:
        return SystemFileError(f"{self.where(path)}: {problem}")

    def forget(self, path: Path) -> None:
        """What was said at *path* and below holds no longer."""
        for other in [other for other in self.origins if other[: len(path)] == path]:
            del self.origins[other]

    def lay_over(self, changes: dict[str, Any], source: Path) -> None:
        """Put *changes* over the values, table by table; *source* is where the file has them."""
        self._merge(self.values, changes, (), source)

    def _merge(self, values: dict[str, Any], changes: dict[str, Any], path: Path, source: Path) -> None:
        for key, change in changes.items():
            here, there = (*path, key), (*source, key)
            if isinstance(change, dict) and isinstance(values.get(key), dict):
                self._merge(values[key], change, here, there)
                continue
            values[key] = change
            self.forget(here)
            moved = {other: place for other, place in self.origins.items() if other[: len(there)] == there}
            self.origins.update({here + other[len(there) :]: place for other, place in moved.items()})


class Table:
    """One table while it is read. Each getter takes a key out; `done` refuses what is left."""

    def __init__(self, settings: Settings, path: Path, values: dict[str, Any], kind: str) -> None:
        self.settings = settings
        self.path = path
        self.values = values
        self.kind = kind
        """What it is in words, `a service`."""
        self._known: list[str] = []

    def _take(self, key: str) -> Any:
        self._known.append(key)
        return self.values.get(key)

    def mention(self, key: str) -> None:
        """Know *key* without reading it."""
        self._known.append(key)

    def name(self, key: str) -> str:
        return dotted((*self.path, key))

    def error(self, key: str, problem: str) -> SystemFileError:
        """An error at *key*: its place, its name, *problem*."""
        return self.settings.error((*self.path, key), f"{self.name(key)} {problem}")

    def text(self, key: str, *, choices: Iterable[str] = ()) -> str | None:
        value = self._typed(key, str)
        allowed = list(choices)
        if value is not None and allowed and value not in allowed:
            raise self.error(key, f"is {str(value)!r}, {not_a_choice(value, allowed)}")
        return None if value is None else str(value)

    def boolean(self, key: str) -> bool | None:
        return self._typed(key, bool)

    def integer(self, key: str, *, least: int = 1) -> int | None:
        return self._at_least(key, self._typed(key, int), least)

    def number(self, key: str, *, least: float = 0.0) -> float | None:
        return self._at_least(key, self._typed(key, float), least)

    def texts(self, key: str, *, or_none: bool = False) -> tuple[str, ...] | None:
        """A text, or an array of them; from the environment, with commas in between, and empty there where there may
        be none."""
        value = self._take(key)
        if value is None:
            return None
        if isinstance(value, FromEnvironment) and not value.lstrip().startswith("["):
            parts = tuple(part.strip() for part in value.split(",") if part.strip())
            if parts or or_none:
                return parts
            raise self.error(key, f"is {shown(value)}. {_TEXTS}")
        if isinstance(value, FromEnvironment):
            value = self._from_toml(key, value, "an array of texts")
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
            raise self.error(key, f"is {shown(value)}. {_TEXTS}")
        return tuple(items)

    def table(self, key: str, kind: str) -> Table:
        """A table inside this one; an absent one reads as empty."""
        value = self._typed(key, dict)
        return Table(self.settings, (*self.path, key), {} if value is None else value, kind)

    def raw(self, key: str) -> Any:
        """The value as it is; from the environment, TOML where it looks like a table and text otherwise."""
        value = self._take(key)
        if isinstance(value, FromEnvironment) and value.lstrip().startswith("{"):
            return self._from_toml(key, value, "a table")
        return value

    def done(self) -> None:
        """Refuse keys that nobody asked for."""
        for key in self.values:
            if key not in self._known:
                known = sorted(self._known)
                raise self.error(
                    key,
                    f"is not a key of {self.kind}. {did_you_mean(key, known)}"
                    f"{self.kind[:1].upper() + self.kind[1:]} has: {', '.join(known)}.",
                )

    def _typed(self, key: str, wanted: type[T]) -> T | None:
        value = self._take(key)
        if value is None:
            return None
        if isinstance(value, FromEnvironment):
            value = self._parse(key, value, wanted)
        if wanted is float and type(value) is int:
            return cast(T, float(value))
        # bool is a subclass of int, and true is no number here.
        if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
            raise self.error(key, f"is {shown(value)}. It has to be {_WORDS[wanted]}.")
        return value

    def _parse(self, key: str, value: FromEnvironment, wanted: type[Any]) -> Any:
        if wanted is str:
            return value
        if wanted is dict:
            return self._from_toml(key, value, "a table")
        if wanted is bool:
            lowered = value.strip().lower()
            if lowered in ("1", "true", "yes", "on"):
                return True
            if lowered in ("0", "false", "no", "off"):
                return False
        else:
            try:
                return wanted(value.strip())
            except ValueError:
                pass
        raise self.error(key, f"is {shown(value)}. It has to be {_WORDS[wanted]}.")

    def _from_toml(self, key: str, value: str, what: str) -> Any:
        try:
            return tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise self.error(
                key, f"is {shown(value)}. It has to be {what}, written as TOML: {reason(error)}."
            ) from error

    def _at_least(self, key: str, value: N | None, least: float) -> N | None:
        if value is not None and not value >= least:
            raise self.error(key, f"is {value:g}. It has to be at least {least:g}.")
        return value


def reason(error: tomllib.TOMLDecodeError) -> str:
    """What is wrong with a document, as a part of a sentence and without its own idea of the place."""
    text = str(error).partition(" (at ")[0]
    return text[:1].lower() + text[1:]


def dotted(path: Path) -> str:
    return ".".join(f'"{part}"' if isinstance(part, str) and "." in part else str(part) for part in path)


def shown(value: object) -> str:
    """A value as an error names it: short, and with its type where that is the point."""
    if isinstance(value, str):
        text = str(value)
        return f"the text {text if len(text) <= 60 else text[:57] + '...'!r}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    return "an array" if isinstance(value, list) else repr(value)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`Did you mean 'listen'? `, or nothing."""
    near = difflib.get_close_matches(str(word), list(choices), n=1)
    return f"Did you mean {near[0]!r}? " if near else ""


def not_a_choice(value: str, choices: list[str]) -> str:
    return f"which is none of the choices. {did_you_mean(value, choices)}Choose one of: {', '.join(choices)}."
