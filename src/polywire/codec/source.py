"""Writes Python functions for one message at a time; what is generated shows in tracebacks and debuggers."""

from __future__ import annotations

import keyword
import linecache
import re
import threading
from collections.abc import Callable
from typing import Any

from polywire.codec.base import Violation
from polywire.contract.message import Message
from polywire.contract.schema import Schema, closure_of, schema_of

functions_lock = threading.RLock()


class Source:
    """The text of a module under construction, and the objects that it names.

    Only names, numbers and literals made here go into the text; whatever comes from a declaration is bound as an object
    or written with `repr`.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.namespace: dict[str, Any] = {}
        self.links: list[tuple[str, type[Message], str]] = []
        self._lines: list[str] = []
        self._bound: dict[tuple[str, int], str] = {}
        self._depth = 0
        self._count = 0

    def line(self, text: str) -> None:
        self._lines.append("    " * self._depth + text)

    def indent(self) -> None:
        self._depth += 1

    def dedent(self) -> None:
        self._depth -= 1

    def block(self, header: str) -> _Block:
        """`with source.block("if x:"):` indents what is written inside."""
        self.line(header)
        return _Block(self)

    def fresh(self, base: str = "v") -> str:
        """A local name that nothing else has."""
        self._count += 1
        return f"{base}{self._count}"

    def bind(self, base: str, value: Any) -> str:
        """The global name of *value* in the generated module."""
        key = base, id(value)
        name = self._bound.get(key)
        if name is None:
            base = re.sub(r"\W", "_", base)
            # Locals and the generated functions begin with a small letter.
            free = base[:1].isupper() and base not in self.namespace
            name = base if free else f"{base}_{len(self.namespace)}"
            self._bound[key] = name
            self.namespace[name] = value
        return name

    def make(self, message: type[Message]) -> str:
        """The global name of what makes such a message."""
        key = "make", id(message)
        if key not in self._bound:
            self._bound[key] = self.bind(f"make_{message.__name__}", maker(message))
        return self._bound[key]

    def link(self, function: str, message: type[Message]) -> str:
        """The global name of *function* in the module of another message (or of this one)."""
        key = function, id(message)
        if key in self._bound:
            return self._bound[key]
        name = f"{function}_{re.sub(r'[^A-Za-z0-9_]', '_', message.__name__)}_{len(self.links)}"
        self._bound[key] = name
        self.links.append((name, message, function))
        return name

    def compile(self) -> None:
        text = "\n".join(self._lines) + "\n"
        filename = f"<polywire {self.title}>"
        code = compile(text, filename, "exec")
        exec(code, self.namespace)  # noqa: S102  # the text was written above, from declarations of this program
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
        self.namespace["__source__"] = text


def maker(message: type[Any]) -> Callable[..., Any]:
    """A callable that makes a message from all of its fields, faster than the class itself.

    Calling a class whose metaclass is written in Python goes through a dict until Python 3.12 (325 ns for four fields);
    replacing all fields of a blank message does not (80 ns).
    """
    if hasattr(message, "__post_init__"):
        return _careful_maker(message)
    blank = message(**dict.fromkeys(message.__struct_fields__))
    replace: Callable[..., Any] = blank.__replace__
    return replace


def _careful_maker(message: type[Any]) -> Callable[..., Any]:
    """For a class with a check of its own, whose ValueError is a violation, as it is for msgspec."""

    def make(**values: Any) -> Any:
        try:
            return message(**values)
        except (TypeError, ValueError) as error:
            raise Violation("", str(error)) from error

    return make


class _Block:
    def __init__(self, source: Source) -> None:
        self._source = source

    def __enter__(self) -> None:
        self._source.indent()

    def __exit__(self, *exception: object) -> None:
        self._source.dedent()


def attribute(owner: str, name: str) -> str:
    """Source text that reads an attribute, whatever its name."""
    return f"getattr({owner}, {name!r})" if keyword.iskeyword(name) else f"{owner}.{name}"


def functions_for(message: type[Message], kind: str, generate: Callable[[Schema, Source], None]) -> dict[str, Any]:
    """The generated module of *kind* for a message, made together with those of all messages inside of it."""
    cache = message.__polywire__.cache
    found: dict[str, Any] | None = cache.get(kind)
    if found is not None:
        return found
    with functions_lock:
        if kind not in cache:
            _generate(message, kind, generate)
        generated: dict[str, Any] = cache[kind]
        return generated


def _generate(message: type[Message], kind: str, generate: Callable[[Schema, Source], None]) -> None:
    new = [inner for inner in closure_of(message) if kind not in inner.__polywire__.cache]
    sources = {}
    for inner in new:
        schema = schema_of(inner)
        source = sources[inner] = Source(f"{kind} of {inner.__module__}.{inner.__qualname__}")
        generate(schema, source)
        source.compile()
    for inner, source in sources.items():
        for name, other, function in source.links:
            made = sources[other].namespace if other in sources else other.__polywire__.cache[kind]
            source.namespace[name] = made[function]
        inner.__polywire__.cache[kind] = source.namespace
