"""Classes and values at the edge of what a message may be."""

from __future__ import annotations

import enum
import linecache
from typing import Annotated, Any

import pytest

from polywire.codec import Format, Malformed, codec_for, copy
from polywire.contract import Field, Message
from polywire.errors import InvalidArgument

FORMATS: tuple[Format, ...] = ("proto", "json", "protojson")


class Word(str, enum.Enum):  # noqa: UP042  # the older spelling, whose format() differs from its text
    LONG = "long"


@pytest.mark.parametrize("name", FORMATS)
def test_text_of_a_subclass_is_written_as_the_text_it_is(name: Format) -> None:
    class Said(Message):
        word: str
        more: list[str] = []

    codec = codec_for(Said, name)
    assert codec.decode(codec.encode(Said(word=Word.LONG, more=[Word.LONG]))) == Said(word="long", more=["long"])


@pytest.mark.parametrize("name", FORMATS)
def test_an_enum_of_text_or_integers_comes_back_as_its_member(name: Format) -> None:
    class Number(enum.IntEnum):
        ONE = 1

    class Holds(Message):
        word: Word
        number: Number
        words: dict[str, Word] = {}

    codec = codec_for(Holds, name)
    got = codec.decode(codec.encode(Holds(word=Word.LONG, number=Number.ONE, words={"a": Word.LONG})))
    assert got.word is Word.LONG
    assert got.number is Number.ONE
    assert got.words["a"] is Word.LONG


def test_a_member_of_another_enum_is_refused_although_its_value_is_the_same() -> None:
    class Other(enum.Enum):
        LONG = "long"

    class Holds(Message):
        word: Word

    wrong: Any = Other.LONG
    for name in FORMATS:
        with pytest.raises(InvalidArgument) as refused:
            codec_for(Holds, name).encode(Holds(word=wrong))
        assert refused.value.message == "Holds.word: expected `Word`, got `Other`"


@pytest.mark.parametrize("name", FORMATS)
def test_fields_may_be_called_like_keywords_and_like_methods_of_the_runtime(name: Format) -> None:
    class Named(Message):
        from_: Annotated[str, Field(name="from")]
        HasField: str
        items: list[str] = []
        m: int = 0
        s: int = 0
        v1: int = 0
        Violation: int | None = None

    message = Named(from_="a", HasField="b", items=["c"], m=1, s=2, v1=3, Violation=4)
    codec = codec_for(Named, name)
    assert codec.decode(codec.encode(message)) == message


@pytest.mark.parametrize("name", FORMATS)
def test_classes_may_be_called_like_what_generated_code_uses(name: Format) -> None:
    class UNSET(Message):
        a: int

    class Shadow(Message):
        a: int

    class Violation(Message):
        one: UNSET
        two: list[Shadow]
        three: dict[str, UNSET]

    message = Violation(one=UNSET(a=1), two=[Shadow(a=2)], three={"a": UNSET(a=3)})
    codec = codec_for(Violation, name)
    assert codec.decode(codec.encode(message)) == message


@pytest.mark.parametrize("name", FORMATS)
def test_two_classes_of_one_name_do_not_meet(name: Format) -> None:
    def declare(kind: type[Any]) -> type[Any]:
        class Same(Message, package="edges.v1"):
            value: kind  # type: ignore[valid-type]  # a type made at run time

        return Same

    one, other = declare(int), declare(str)
    assert codec_for(one, name).decode(codec_for(one, name).encode(one(value=5))).value == 5
    assert codec_for(other, name).decode(codec_for(other, name).encode(other(value="5"))).value == "5"


@pytest.mark.parametrize("name", FORMATS)
def test_frozen_messages_and_those_with_a_check_of_their_own_work(name: Format) -> None:
    class Frozen(Message, frozen=True):
        a: int

    class Careful(Message):
        a: int

        def __post_init__(self) -> None:
            if self.a > 5:
                raise ValueError("too much")

    for message in (Frozen(a=1), Careful(a=1)):
        codec = codec_for(type(message), name)
        assert codec.decode(codec.encode(message)) == message


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_class_checks_when_made_is_checked_when_decoded(name: Format) -> None:
    class Loose(Message):
        a: int

    class Careful(Message):
        a: int

        def __post_init__(self) -> None:
            if self.a > 5:
                raise ValueError("too much")

    with pytest.raises(InvalidArgument) as refused:
        codec_for(Careful, name).decode(codec_for(Loose, name).encode(Loose(a=6)))
    assert refused.value.message == "too much"


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_an_empty_message(name: Format) -> None:
    codec = codec_for(None, name)
    assert codec.encode(None) == (b"" if name == "proto" else b"{}")
    assert codec.decode(codec.encode(None)) is None
    assert codec.decode(b"") is None
    assert codec.decode(b"\x08\x05" if name == "proto" else b'{"newer":1}') is None
    with pytest.raises(Malformed):
        codec.decode(b"\xff")
    with pytest.raises(InvalidArgument) as refused:
        codec.encode("something")
    assert refused.value.message == "nothing was to be sent, not an instance of str."


def test_a_message_without_fields_and_a_nested_one_travel() -> None:
    class Bare(Message):
        pass

    class Around(Message):
        bare: Bare
        more: list[Bare] = []

    assert copy(Bare()) == Bare()
    assert copy(Around(bare=Bare(), more=[Bare(), Bare()])) == Around(bare=Bare(), more=[Bare(), Bare()])


def test_generated_code_can_be_looked_at() -> None:
    class Seen(Message):
        a: int

    codec_for(Seen, "proto")
    files = [file for file in linecache.cache if file.startswith("<polywire protobuf reader") and "Seen" in file]
    assert linecache.getline(files[0], 1) == "def read(m):\n"


def test_an_alias_of_an_enum_is_read_as_its_elder() -> None:
    class Aliased(enum.IntEnum):
        ONE = 1
        UNO = 1

    class Holds(Message):
        value: Aliased

    codec = codec_for(Holds, "protojson")
    assert codec.encode(Holds(value=Aliased.UNO)) == b'{"value":"ALIASED_ONE"}'
    assert codec.decode(b'{"value":"ALIASED_UNO"}').value is Aliased.ONE
    assert copy(Holds(value=Aliased.UNO)).value is Aliased.ONE
