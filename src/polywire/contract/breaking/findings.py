"""What a check of contracts finds: a rule that a change breaks, where, and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Side = Literal["protobuf", "protojson", "rest", "contract"]
Category = Literal["file", "package", "wire_json", "wire"]

SIDES: tuple[Side, ...] = get_args(Side)
"""Who would notice: protobuf on gRPC and Connect, readers of ProtoJSON, clients of REST; "contract" is all of them."""
CATEGORIES: tuple[Category, ...] = get_args(Category)
"""How much is to stay the same on the protobuf side, strictest first, as `buf breaking` has it: generated code file by
file, generated code of a package, what travels as protobuf and as ProtoJSON, what travels as protobuf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Something that has to stay as it is."""

    name: str
    side: Side
    purpose: str
    way_out: str
    """What to do instead."""
    categories: frozenset[Category] = frozenset()
    """Of the protobuf side; the rules of the others hold in every category."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One breaking change."""

    rule: Rule
    where: str
    """What changed: `shop.v1.Stock.quantity`, or a route, `GET /stock/{}`."""
    change: str
    """A sentence."""
    file: str = ""
    """Of NEW, or of OLD where NEW has none; empty for what stands in no .proto file."""
    line: int = 0
    """In *file*, counted from 1; 0 where that is not known."""

    instead: str = ""
    """The way out of this very change, where there is a better one than the rule's."""

    @property
    def way_out(self) -> str:
        return self.instead or self.rule.way_out

    @property
    def sort_key(self) -> tuple[object, ...]:
        return SIDES.index(self.rule.side), self.file, self.line, self.where, self.rule.name, self.change
