"""Declaring messages: fields, names, unions, and what is refused with which sentence."""

from __future__ import annotations

import enum
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

import pytest

from polywire.contract import Field, Int32, Message, enum_form, enum_schema_of, is_recognized, schema_of
from polywire.contract.fields import unrecognized
from polywire.contract.message import message_named
from polywire.contract.schema import Form, Presence
from polywire.errors import ContractError


class State(enum.Enum):
    PLACED = "placed"
    PAID = "paid"


class Level(enum.IntEnum):
    LOW = 0
    HIGH = 7


class Card(Message, tag="card"):
    number: Annotated[str, Field(sensitive=True)]
    holder: str = ""


class Cash(Message, tag="cash"):
    pass


class Order(Message, package="test.messages.v1"):
    """What a customer wants."""

    order_id: str
    quantity: Annotated[Int32, Field(ge=1)]
    total: Decimal = Decimal(0)
    state: State = State.PLACED
    level: Level = Level.LOW
    tags: list[str] = []
    payment: Card | Cash
    limit: int = 20
    note: str | None = None
    placed: datetime
    parent: Order | None = None


def refusal(declare: Any) -> str:
    """What is said about a declaration, made and resolved."""
    with pytest.raises(ContractError) as refused:
        schema_of(declare())
    return str(refused.value)


def test_a_message_is_made_with_keywords_and_compared_by_value() -> None:
    assert Card(number="4111", holder="Ada") == Card(holder="Ada", number="4111")
    with pytest.raises(TypeError, match="Extra positional arguments provided"):
        Card("4111")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def test_repr_hides_sensitive_fields() -> None:
    assert repr(Card(number="4111", holder="Ada")) == "Card(number=***, holder='Ada')"
    assert Card(number="4111").__rich_repr__() == [("number", "***"), ("holder", "")]


def test_a_schema_has_numbers_names_kinds_and_presence() -> None:
    schema = schema_of(Order)
    assert schema.full_name == "test.messages.v1.Order"
    assert schema.doc == "What a customer wants."
    assert [(field.attribute, field.json_name, field.number) for field in schema.fields] == [
        ("order_id", "orderId", 1),
        ("quantity", "quantity", 2),
        ("total", "total", 3),
        ("state", "state", 4),
        ("level", "level", 5),
        ("tags", "tags", 6),
        ("payment", "payment", 0),
        ("limit", "limit", 9),
        ("note", "note", 10),
        ("placed", "placed", 11),
        ("parent", "parent", 12),
    ]
    assert [(member.name, member.number) for member in schema.field("payment").members] == [("card", 7), ("cash", 8)]
    assert {field.attribute: field.presence for field in schema.fields} == {
        "order_id": Presence.IMPLICIT,
        "quantity": Presence.IMPLICIT,
        "total": Presence.IMPLICIT,
        "state": Presence.EXPLICIT,  # its default is not the zero value
        "level": Presence.IMPLICIT,
        "tags": Presence.IMPLICIT,
        "payment": Presence.REQUIRED,
        "limit": Presence.EXPLICIT,
        "note": Presence.EXPLICIT,
        "placed": Presence.REQUIRED,
        "parent": Presence.EXPLICIT,
    }
    assert schema.field("payment").form is Form.ONEOF
    assert schema.field("quantity").holds.kind == "int32"
    assert schema.field("parent").holds.python is Order


def test_numbers_go_on_from_the_last_one_and_leave_out_what_is_taken_or_reserved() -> None:
    class Sparse(Message, reserved=(2, range(5, 7), "old")):
        a: int
        b: int
        c: Annotated[int, Field(number=10)]
        d: int
        e: Annotated[int, Field(number=4)]
        f: int

    assert [field.number for field in schema_of(Sparse).fields] == [1, 3, 10, 11, 4, 7]


def test_a_message_inherits_the_fields_and_the_package_of_another() -> None:
    class Base(Message, package="test.v1"):
        a: int

    class Derived(Base):
        b: Annotated[str, Field(max_length=3)] = ""

    assert schema_of(Base).full_name == "test.v1.Base"
    schema = schema_of(Derived)
    assert schema.full_name == "test.v1.Derived"
    assert [(field.name, field.number) for field in schema.fields] == [("a", 1), ("b", 2)]


def test_messages_of_a_function_find_each_other_by_name() -> None:
    class Inner(Message):
        a: int

    class Outer(Message):
        inner: Inner
        others: list[Outer] = []

    assert schema_of(Outer).field("inner").holds.python is Inner


def test_a_message_is_found_by_its_full_name() -> None:
    class Nested(Message, package="test.found.v1", name="Outer.Nested"):
        pass

    assert message_named("test.found.v1.Outer.Nested") is Nested
    assert message_named("test.found.v1.Nested") is None


def test_enum_numbers_count_from_one_for_text_and_are_the_values_of_integers() -> None:
    assert [(member.name, member.number) for member in enum_schema_of(State).members] == [
        ("STATE_PLACED", 1),
        ("STATE_PAID", 2),
    ]
    assert enum_schema_of(State).zero_name == "STATE_UNSPECIFIED"
    assert [(member.name, member.number) for member in enum_schema_of(Level).members] == [
        ("LEVEL_LOW", 0),
        ("LEVEL_HIGH", 7),
    ]
    assert enum_schema_of(Level).zero_name == "LEVEL_LOW"


def test_an_enum_form_gives_the_names_of_the_wire() -> None:
    @enum_form(name="Outer.Colour", package="foreign.v1", names={"RED": "rouge"})
    class Color(enum.Enum):
        RED = "red"
        BLUE = "blue"

    schema = enum_schema_of(Color)
    assert (schema.name, schema.package) == ("Outer.Colour", "foreign.v1")
    assert [member.name for member in schema.members] == ["rouge", "COLOUR_BLUE"]


def test_an_enum_form_for_a_member_that_is_not_there_is_refused() -> None:
    with pytest.raises(ContractError) as refused:
        enum_form(names={"GREEN": "x"})(State)
    assert str(refused.value) == (
        "enum_form(names=...) names 'GREEN', which State does not have. Its members: PLACED, PAID."
    )


def test_a_stand_in_for_an_unknown_value_is_of_the_enum_but_none_of_its_members() -> None:
    stand_in = unrecognized(State, number=9)
    assert isinstance(stand_in, State)
    assert not is_recognized(stand_in)
    assert is_recognized(State.PAID)
    assert stand_in not in list(State)
    assert (stand_in.name, stand_in.value) == ("UNRECOGNIZED_9", "UNRECOGNIZED_9")
    assert unrecognized(Level, number=9) == 9
    assert unrecognized(State, number=0).name == "UNSPECIFIED"


class Wrong:
    """Declarations that are refused, one per function."""

    @staticmethod
    def unsupported() -> Any:
        class M(Message):
            value: complex

        return M

    @staticmethod
    def anything() -> Any:
        class M(Message):
            value: Any

        return M

    @staticmethod
    def twice() -> Any:
        class M(Message):
            a: Annotated[int, Field(number=3)]
            b: Annotated[int, Field(number=3)]

        return M

    @staticmethod
    def too_small() -> Any:
        class M(Message):
            a: Annotated[int, Field(number=0)]

        return M

    @staticmethod
    def kept_by_protobuf() -> Any:
        class M(Message):
            a: Annotated[int, Field(number=19_500)]

        return M

    @staticmethod
    def reserved() -> Any:
        class M(Message, reserved=(3,)):
            a: Annotated[int, Field(number=3)]

        return M

    @staticmethod
    def reserved_name() -> Any:
        class M(Message, reserved=("a",)):
            a: int

        return M

    @staticmethod
    def scalars_in_a_union() -> Any:
        class M(Message):
            a: int | str

        return M

    @staticmethod
    def colliding_members() -> Any:
        class M(Message):
            a: Card | Cash
            b: Card | Cash

        return M

    @staticmethod
    def nullable_list() -> Any:
        class M(Message):
            a: list[int] | None = None

        return M

    @staticmethod
    def list_of_lists() -> Any:
        class M(Message):
            a: list[list[int]]

        return M

    @staticmethod
    def default_beside_none() -> Any:
        class M(Message):
            a: int | None = 5

        return M

    @staticmethod
    def misplaced_limit() -> Any:
        class M(Message):
            a: Annotated[bool, Field(ge=1)]

        return M

    @staticmethod
    def bad_pattern() -> Any:
        class M(Message):
            a: Annotated[str, Field(pattern="(")]

        return M

    @staticmethod
    def bad_keys() -> Any:
        class M(Message):
            a: dict[float, int]

        return M

    @staticmethod
    def unresolved() -> Any:
        class M(Message):
            a: Missing  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]

        return M

    @staticmethod
    def bad_name() -> Any:
        class M(Message):
            a: Annotated[int, Field(name="no-name")]

        return M

    @staticmethod
    def number_of_a_union() -> Any:
        class M(Message):
            a: Annotated[Card | Cash, Field(number=3)]

        return M

    @staticmethod
    def wide_transparent() -> Any:
        class M(Message, transparent=True):
            a: int
            b: int

        return M

    @staticmethod
    def mixed_enum() -> Any:
        class Mixed(enum.Enum):
            A = 1
            B = "b"

        class M(Message):
            a: Mixed

        return M


SENTENCES = {
    "unsupported": (
        ".M.value is annotated `complex`, which cannot travel. Use one of: str, bool, int, float, bytes, datetime, "
        "timedelta, Decimal, UUID, an Enum, a Message, a union of tagged messages, list[...], dict[...] and "
        "`... | None`."
    ),
    "anything": (
        ".M.value is annotated `Any`, which cannot travel. Use one of: str, bool, int, float, bytes, datetime, "
        "timedelta, Decimal, UUID, an Enum, a Message, a union of tagged messages, list[...], dict[...] and "
        "`... | None`."
    ),
    "twice": ".M.b has number 3, as has a. Give one of them another with Field(number=...).",
    "too_small": ".M.a: number=0 is no field number. They go from 1 to 536870911.",
    "kept_by_protobuf": ".M.a: number=19500 is one of 19000 to 19999, which protobuf keeps for itself.",
    "reserved": ".M.a: number=3 is reserved, as an older field had it. Take one that is free.",
    "reserved_name": ".M.a: the name 'a' is reserved, as an older field had it.",
    "scalars_in_a_union": (
        ".M.a is a union with `int`, which cannot be told from the others. "
        "A union is made of messages with a tag each: class Card(Message, tag='card')."
    ),
    "colliding_members": (
        ".M.b has the name 'card' on the wire, which collides with a. "
        "Give one of them Field(name=...), or a union Field(names=(...))."
    ),
    "nullable_list": (
        ".M.a may be None, but protobuf cannot tell a missing list or map from an empty one. "
        "Leave `| None` out, or put the list into a message of its own."
    ),
    "list_of_lists": (
        ".M.a is a list of lists or maps, which protobuf cannot say. Put the inner one into a message of its own."
    ),
    "default_beside_none": (
        ".M.a may be None but has another default, and protobuf could not tell the two apart. "
        "Make None the default, or leave None out of the type."
    ),
    "misplaced_limit": ".M.a: Field(ge=...) does not go with a field of type bool.",
    "bad_pattern": (".M.a: pattern='(' is no regular expression: missing ), unterminated subpattern at position 0."),
    "bad_keys": ".M.a has keys of type `float`; keys of a map are str or int (any width).",
    "unresolved": (
        ".M.a is annotated 'Missing', but 'Missing' is not defined where the class stands. "
        "Import it outside of `if TYPE_CHECKING`, at the top of the module."
    ),
    "bad_name": (
        "M.a: name='no-name' is no field name on the wire: letters, digits and underscores, not beginning with a digit."
    ),
    "number_of_a_union": ".M.a is a union, whose members have a number each: write Field(numbers=(...)).",
    "wide_transparent": (
        ".M is transparent, so it has to have exactly one field that is neither a list nor a map, without a default "
        "and never None."
    ),
    "mixed_enum": (
        ".Mixed has values that are neither all text nor all integers, so JSON could not tell them. "
        "Give it str or int values."
    ),
}


@pytest.mark.parametrize("declaration", SENTENCES)
def test_a_declaration_that_could_not_travel_is_refused(declaration: str) -> None:
    said = refusal(getattr(Wrong, declaration))
    assert said.removeprefix(f"Wrong.{declaration}.<locals>") == SENTENCES[declaration]


def test_class_keywords_that_are_no_names_are_refused() -> None:
    with pytest.raises(ContractError) as refused:

        class M(Message, package="no package"):
            pass

    assert str(refused.value) == "M: package='no package' is no package name. Write it like 'shop.v1'."
    with pytest.raises(ContractError) as refused:

        class N(Message, name="no-name"):
            pass

    assert str(refused.value) == "N: name='no-name' is no message name. Write it like 'Stock'."
