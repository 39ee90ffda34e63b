"""What every codec promises, and how it says that something is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from polywire.contract.message import Message
from polywire.contract.schema import schema_of
from polywire.errors import InvalidArgument


class Codec(Protocol):
    """Turns one type of message into bytes and back.

    `encode` refuses an object that is not what its type says, constraints included, with InvalidArgument; it never
    writes bytes that the other side could not read. `decode` refuses everything that is not a valid message with
    InvalidArgument (`field` set where it is known): with `Malformed`, a subclass, where the bytes could not even be
    parsed. Neither raises anything else, whatever it is given.
    """

    def encode(self, message: Any, /) -> bytes: ...
    def decode(self, data: bytes, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class GeneratedCodec:
    """A codec whose two functions were made for one type of message."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


class Malformed(InvalidArgument):
    """The bytes could not be parsed at all, as opposed to parsed and found to violate the contract.

    In REST that is status 400 instead of 422.
    """


class Violation(Exception):
    """A value that its type or its constraints do not allow, on its way out to where the whole path is known."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path = path
        self.what = what

    def within(self, outer: str) -> Violation:
        """The same, seen from the message whose field *outer* this is."""
        if not self.path:
            self.path = outer
        elif self.path.startswith("["):
            self.path = outer + self.path
        else:
            self.path = f"{outer}.{self.path}"
        return self

    def error(self) -> InvalidArgument:
        """What whoever sent it is told: `items[2].quantity: expected `int` >= 1`."""
        text = f"{self.path}: {self.what}" if self.path else self.what
        return InvalidArgument(text, field=self.path or None)

    def error_of(self, owner: str) -> InvalidArgument:
        """What whoever made the object is told: `Order.items[2].quantity: expected `int` >= 1`."""
        dotted = f"{owner}.{self.path}" if self.path else owner
        return InvalidArgument(f"{dotted}: {self.what}", field=self.path or None)


MISSING = "is missing"


def missing(path: str) -> NoReturn:
    raise Violation(path, MISSING)


def title_of(message: type[Message] | None) -> str:
    """How errors name a type: `shop.v1.Stock`."""
    return "google.protobuf.Empty" if message is None else schema_of(message).full_name


_AT = re.compile(r" - at `(key in )?\$(.*)`\Z", re.DOTALL)
_REQUIRED = re.compile(r"Object missing required field `([^`]*)`")


def violation_from_msgspec(text: str) -> Violation:
    """msgspec's sentence as one of ours: "Expected `int`, got `str` - at `$.quantity`"."""
    found = _AT.search(text)
    path = found[2].lstrip(".") if found else ""
    what = text[: found.start()] if found else text
    if found and found[1]:
        path += "[...]"
    absent = _REQUIRED.match(what)
    if absent:
        return Violation(absent[1], MISSING).within(path) if path else Violation(absent[1], MISSING)
    return Violation(path, what[:1].lower() + what[1:])
