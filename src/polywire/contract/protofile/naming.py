"""Python names for what a `.proto` file names: readable, free of collisions, and the same each time."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from polywire.contract.schema import snake, upper_snake

IN_ANNOTATIONS = frozenset(
    {
        *("Annotated", "Field", "bool", "bytes", "datetime", "dict", "float", "int", "list", "str", "timedelta"),
        *("Fixed32", "Fixed64", "Float32", "Int32", "SFixed32", "SFixed64", "SInt32", "SInt64", "UInt32", "UInt64"),
    }
)
"""What the annotations of fields are made of."""
IMPORTED = IN_ANNOTATIONS | frozenset(
    {
        *("AsyncIterator", "Contract", "Message", "NotImplementedError", "annotations", "delete", "enum", "enum_form"),
        *("get", "patch", "post", "put", "range", "rpc"),
    }
)
"""What the module imports, or may import after the next change of the file."""
_PLURAL = re.compile(r"([A-Z]{2,})s(?![a-z])")
_NO_ENUM_MEMBERS = frozenset({"mro", "name", "value"})
_NO_FIELDS = frozenset({"self", "cls"})


class ClassNames:
    """The names at the top of one module. Ask for those of the outermost things first."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {*IMPORTED, *taken}

    def take(self, package: str, path: Sequence[str]) -> str:
        """`OrderItem` for `Order.Item`; with underscores or the package in it where that is taken."""
        parts = [path[0], *(_capitalized(part) for part in path[1:])]
        joined = "".join(parts)
        prefix = "".join(_capitalized(part) for part in package.replace("_", ".").split("."))
        candidates = [joined, "_".join(parts), f"{prefix}{_capitalized(joined)}"]
        return self._first(candidates, joined)

    def take_member(self, owner: str, oneof: str, member: str) -> str:
        """`PaymentIban` for the scalar `iban` in a oneof of `Payment`."""
        long, short = (f"{owner}{_camel(name)}" for name in (f"{oneof}_{member}", member))
        return self._first([short, long], long)

    def _first(self, candidates: Sequence[str], fallback: str) -> str:
        for candidate in candidates:
            if candidate not in self._taken and _is_free(candidate):
                break
        else:
            candidate = f"{fallback}_"
            while candidate in self._taken:
                candidate += "_"
        self._taken.add(candidate)
        return candidate

    def __contains__(self, name: str) -> bool:
        return name in self._taken


def _is_free(name: str) -> bool:
    return not keyword.iskeyword(name) and not name.startswith("__")


def _camel(name: str) -> str:
    return "".join(_capitalized(part) for part in name.split("_"))


def _capitalized(part: str) -> str:
    return part[:1].upper() + part[1:]


def field_names(names: Sequence[str], classes: ClassNames, taken: Collection[str] = ()) -> dict[str, str]:
    """Attributes for the fields of a message: their own names where Python and the type checkers can live with them.

    *taken*: what its class has already. A field of an error cannot begin with an underscore either.
    """

    def derive(name: str) -> str:
        return f"x{name}" if taken and name.startswith("_") else name

    forbidden = {*IN_ANNOTATIONS, *_NO_FIELDS, *taken}
    return _distinct(names, derive, lambda name: name in forbidden or name in classes)


def method_names(names: Sequence[str], classes: ClassNames, verbs: Iterable[str]) -> dict[str, str]:
    """Attributes for the rpcs of a service; *verbs* are those that the decorators of its routes need."""
    needed = {"AsyncIterator", "rpc", *verbs}
    return _distinct(names, _spoken, lambda name: name in needed or (name in classes and name not in IMPORTED))


def _spoken(name: str) -> str:
    """`list_urls` for `ListURLs`."""
    return snake(_PLURAL.sub(lambda match: f"{match[1].capitalize()}s", name))


def member_names(enum: str, names: Sequence[str]) -> dict[str, str]:
    """Names for the values of an enum, without the prefix that protobuf's style gives them."""
    prefix = f"{upper_snake(enum)}_"
    short = {name: name.removeprefix(prefix) for name in names}
    counts = Counter([*names, *(stripped for name, stripped in short.items() if stripped != name)])

    def derive(name: str) -> str:
        stripped = short[name]
        candidate = stripped if stripped.strip("_").isidentifier() and counts[stripped] == 1 else name
        candidate = candidate.strip("_") or "x"  # Enum keeps names in underscores for itself
        return candidate if candidate.isidentifier() else f"x{candidate}"

    return _distinct(names, derive, lambda name: name in _NO_ENUM_MEMBERS)


def _distinct(names: Sequence[str], derive: Callable[[str], str], forbidden: Callable[[str], bool]) -> dict[str, str]:
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        candidate = derive(name)
        if candidate.startswith("__"):  # Python would mangle it
            candidate = f"{candidate.strip('_') or 'x'}_"
        while keyword.iskeyword(candidate) or forbidden(candidate) or candidate in taken:
            candidate += "_"
        taken.add(candidate)
        found[name] = candidate
    return found
