"""Where each key of a TOML file stands, which `tomllib` does not tell."""

from __future__ import annotations

import tomllib

Path = tuple[str | int, ...]

_BLANK = " \t"


def positions(text: str) -> dict[Path, int]:
    """The line (from 1) of every key and array element of a document that `tomllib` has accepted.

    A table has the line of its header, or of the first key that implies it.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.found


class _Scanner:
    """Walks over a valid document; what it skips it need not understand."""

    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._line = 1
        self.found: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        while True:
            self._skip_space()
            if self._at >= len(self._text):
                return
            if self._text.startswith("[[", self._at):
                table = self._array_header()
            elif self._peek() == "[":
                self._at += 1
                table = self._resolve(self._key())
                self._remember(table)
                self._at += 1
            else:
                self._pair(table)

    def _array_header(self) -> Path:
        self._at += 2
        path = self._resolve(self._key())
        self._at += 2
        index = self._arrays[path] = self._arrays.get(path, -1) + 1
        self._remember((*path, index))
        return (*path, index)

    def _resolve(self, key: Path) -> Path:
        """A header inside an array of tables means its latest element."""
        path: Path = ()
        for position, part in enumerate(key):
            path = (*path, part)
            if path in self._arrays and position < len(key) - 1:
                path = (*path, self._arrays[path])
        return path

    def _remember(self, path: Path) -> None:
        for length in range(1, len(path) + 1):
            self.found.setdefault(path[:length], self._line)

    def _pair(self, table: Path) -> None:
        path = (*table, *self._key())
        self._remember(path)
        self._at += 1  # =
        self._value(path)

    def _key(self) -> Path:
        """A dotted key; stops at what follows it."""
        parts: list[str] = []
        while True:
            self._skip_blank()
            if self._peek() in "\"'":
                start = self._at
                self._string()
                parts.append(tomllib.loads(f"k = {self._text[start : self._at]}")["k"])
            else:
                start = self._at
                while self._peek() not in " \t.=]":
                    self._at += 1
                parts.append(self._text[start : self._at])
            self._skip_blank()
            if self._peek() != ".":
                return tuple(parts)
            self._at += 1

    def _value(self, path: Path) -> None:
        self._skip_blank()
        first = self._peek()
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            # Numbers, booleans and dates; a date may have a space before its time, which then reads as a bare word.
            while self._peek() not in ",]}#\n":
                self._at += 1

    def _array(self, path: Path) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip_space(also=",")
            if self._peek() == "]":
                self._at += 1
                return
            self._remember((*path, index))
            self._value((*path, index))
            index += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while True:
            self._skip_space(also=",")
            if self._peek() == "}":
                self._at += 1
                return
            self._pair(path)

    def _string(self) -> None:
        quote = self._peek()
        if self._text.startswith(quote * 3, self._at):
            self._long_string(quote)
            return
        self._at += 1
        while self._peek() != quote:
            self._at += 2 if quote == '"' and self._peek() == "\\" else 1
        self._at += 1

    def _long_string(self, quote: str) -> None:
        start = self._at
        self._at += 3
        while not self._text.startswith(quote * 3, self._at):
            self._at += 2 if quote == '"' and self._peek() == "\\" else 1
        self._at += 3
        # Up to two quotes may stand right before the closing three.
        while self._at < len(self._text) and self._peek() == quote:
            self._at += 1
        self._line += self._text.count("\n", start, self._at)

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else "\n"

    def _skip_blank(self) -> None:
        while self._at < len(self._text) and self._text[self._at] in _BLANK:
            self._at += 1

    def _skip_space(self, also: str = "") -> None:
        """Over blanks, line ends and comments."""
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif character == "\n":
                self._line += 1
                self._at += 1
            elif character in _BLANK or character in also:
                self._at += 1
            else:
                return
