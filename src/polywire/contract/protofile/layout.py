"""Python text laid out as ruff's formatter would, at its usual line length."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

WIDTH = 88
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def literal(text: str) -> str:
    """A string literal in the quotes that need fewer escapes, preferring double ones."""
    quote = "'" if text.count('"') > text.count("'") else '"'
    written = []
    for character in text:
        if character == quote:
            written.append(f"\\{quote}")
        elif character in _ESCAPES:
            written.append(_ESCAPES[character])
        elif not character.isprintable():
            written.append(character.encode("unicode_escape").decode("ascii"))
        else:
            written.append(character)
    return f"{quote}{''.join(written)}{quote}"


class Group:
    """Something in brackets: on one line where that fits, else one part a line, each with a comma after it."""

    def __init__(self, head: str, parts: Sequence[str | Group], tail: str) -> None:
        self.head = head
        self.parts = parts
        self.tail = tail

    def __str__(self) -> str:
        return f"{self.head}{', '.join(map(str, self.parts))}{self.tail}"

    def lines(self, indent: int = 0, before: str = "", after: str = "") -> list[str]:
        """The lines of *before*, the group and *after*, indented by so many spaces."""
        margin = " " * indent
        flat = f"{margin}{before}{self}{after}"
        if len(flat) <= WIDTH or not self.parts:
            return [flat]
        written = [f"{margin}{before}{self.head}"]
        for part in self.parts:
            if isinstance(part, Group):
                written += part.lines(indent + 4, after=",")
            else:
                written.append(f"{margin}    {part},")
        written.append(f"{margin}{self.tail}{after}")
        return written


def tuple_of(head: str, items: Sequence[str]) -> Group:
    """`numbers=(1, 2)`, with the comma that makes one item a tuple."""
    return Group(f"{head}(", items, ")") if len(items) != 1 else Group(f"{head}({items[0]},)", [], "")


class Union(Group):
    """`A | B | C`, one member a line where they do not fit on one."""

    def __init__(self, members: Sequence[str]) -> None:
        super().__init__("", members, "")

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))

    def lines(self, indent: int = 0, before: str = "", after: str = "") -> list[str]:
        margin = " " * indent
        flat = f"{margin}{before}{self}{after}"
        if len(flat) <= WIDTH:
            return [flat]
        written = [f"{margin}{before}{self.parts[0]}", *(f"{margin}| {part}" for part in self.parts[1:])]
        written[-1] += after
        return written


def docstring(text: str, indent: int) -> list[str]:
    """A docstring, escaped where it has to be; no lines where there is nothing to say."""
    if not text:
        return []
    margin = " " * indent
    lines = inspect.cleandoc(text).replace("\\", "\\\\").replace('"""', '\\"\\"\\"').splitlines()
    if lines[-1].endswith('"'):
        lines[-1] = f'{lines[-1][:-1]}\\"'
    if len(lines) == 1:
        return [f'{margin}"""{lines[0]}"""']
    return [f'{margin}"""{lines[0]}', *(f"{margin}{line}".rstrip() for line in lines[1:]), f'{margin}"""']
