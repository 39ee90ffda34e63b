"""Errors of a contract: how they are declared, made and compared, and what a `.proto` file says of them."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proto_support import compiled_texts, module_of

from polywire.codec import codec_for
from polywire.codec.failures import MAX_DETAIL_BYTES, as_declared, fields_as_message, own_details
from polywire.codec.status import error_from, unpack_details
from polywire.contract import Contract, Field, Message, assign_packages, rpc, schema_of, service_of
from polywire.contract.export import proto_files
from polywire.contract.failures import detail_of, name_of, reason_of
from polywire.contract.protofile import python_module
from polywire.errors import (
    BY_CODE,
    BY_NUMBER,
    REST_STATUSES,
    CallError,
    ContractError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)


class Slot(Message):
    number: int


class Occupied(FailedPrecondition, message="Slot {slot} is taken until {until!r}.", http_status=409):
    """Somebody else is there."""

    all: ClassVar[int] = 3
    slot: int
    until: str = "dawn"
    others: list[Slot] = []


class Rented(Occupied):
    tenant: Annotated[str, Field(sensitive=True)]


class Closed(Unavailable):
    """The lot is
    closed.

    It opens at dawn.
    """


class TooLong(InvalidArgument, name="Oversized", package="lot.v7"):
    most: Annotated[float, Field(number=4)]


class Ticket(Message):
    plate: str


class Lot(Contract, package="lot.v1", raises=(Closed,)):
    """Where cars stand."""

    @rpc(raises=(Occupied, Rented, TooLong))
    async def park(self, ticket: Ticket) -> Ticket:
        """Find a slot."""
        raise NotImplementedError

    @rpc
    async def leave(self, ticket: Ticket) -> None:
        raise NotImplementedError


# Making one


def test_fields_are_given_by_name_and_defaults_are_fresh_each_time() -> None:
    error = Occupied(slot=4)
    error.others.append(Slot(number=1))
    assert (error.slot, error.until, error.others) == (4, "dawn", [Slot(number=1)])
    assert Occupied(slot=4).others == []


def test_a_subclass_has_the_fields_of_the_class_above_it_and_of_several() -> None:
    class Wheeled(FailedPrecondition):
        wheels: int

    class Both(Wheeled, Occupied):
        slot: int = 9

    assert repr(Rented(slot=1, tenant="me")) == "Rented(\"Slot 1 is taken until 'dawn'.\", slot=1, until='dawn', " + (
        "others=[], tenant=***)"
    )
    both = Both(wheels=3)
    assert (both.slot, both.wheels, both.until) == (9, 3, "dawn")


def test_its_message_is_the_one_given_or_its_template_or_its_docstring_or_its_code() -> None:
    class Silent(NotFound): ...

    assert str(Occupied("No.", slot=1)) == "No."
    assert str(Occupied(slot=1, until="9")) == "Slot 1 is taken until '9'."
    assert str(Closed()) == "The lot is closed."
    assert (Silent().message, str(Silent())) == ("", "not_found")


def test_a_value_that_the_template_cannot_show_does_not_hide_the_error() -> None:
    class Late(FailedPrecondition, message="{minutes:d} minutes late"):
        minutes: int

    assert Late(minutes=None).message == "{minutes:d} minutes late"  # type: ignore[arg-type]  # that is the mistake


def test_what_every_error_takes_it_takes_too() -> None:
    closed = Closed("Go away.", reached="no", retry_after=2.0)
    assert (closed.reached, closed.retry_after) == ("no", 2.0)
    assert TooLong(most=1.5, field="plate").field == "plate"


def test_a_missing_field_and_one_too_many_are_refused() -> None:
    make: Any = Occupied
    with pytest.raises(TypeError) as missing:
        make("text")
    assert str(missing.value) == "Occupied was not made: its field 'slot' is missing."
    with pytest.raises(TypeError) as extra:
        make(slot=1, slots=2)
    assert str(extra.value) == "Occupied was not made: 'slots' is no field. It has slot, until and others."
    with pytest.raises(TypeError):
        make("text", 1)


def test_errors_are_equal_by_class_message_and_fields() -> None:
    assert Occupied(slot=1) == Occupied(slot=1, retry_after=1.0)
    assert Occupied(slot=1) != Occupied(slot=2)
    assert Occupied(slot=1) != Occupied("No.", slot=1)
    assert Occupied(slot=1) != Rented("Slot 1 is taken until 'dawn'.", slot=1, tenant="")
    assert len({Occupied(slot=1), Occupied(slot=1)}) == 1
    assert NotFound("a") != NotFound("a")


def test_an_error_can_be_copied_and_handed_to_another_process() -> None:
    error = Occupied(slot=1, others=[Slot(number=2)], retry_after=3.0)
    for made in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 - our own
        assert made == error
        assert (made.retry_after, made.args) == (3.0, error.args)
    assert copy.copy(InvalidArgument("x", field="y")).field == "y"


def test_a_value_that_is_sensitive_is_in_no_repr() -> None:
    class Ajar(FailedPrecondition):
        pins: list[Annotated[str, Field(sensitive=True)]]
        door: int

    assert repr(Ajar(pins=["1234"], door=2)) == "Ajar('', pins=***, door=2)"


def test_nothing_is_shown_where_annotations_cannot_be_read() -> None:
    made: Any = types.new_class(
        "Odd", (NotFound,), exec_body=lambda body: body.update(__annotations__={"pin": "Nowhere"}, __module__="nowhere")
    )
    assert repr(made(pin="1234")) == "Odd('', pin=***)"


# Declaring one


def declare(base: type[CallError] = FailedPrecondition, body: dict[str, Any] | None = None, **keywords: Any) -> Any:
    return types.new_class("Wrong", (base,), keywords, lambda names: names.update(body or {}))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: declare(body={"__annotations__": {"code": str}}),
            "Wrong.code cannot be a field: every error has 'code' of its own. "
            "Call it something else; Annotated[..., Field(name=...)] gives it that name on the wire.",
        ),
        (
            lambda: declare(body={"__annotations__": {"_a": str}}),
            "Wrong._a cannot be a field: it begins with '_'. "
            "Call it something else; Annotated[..., Field(name=...)] gives it that name on the wire.",
        ),
        (
            lambda: declare(message="{a} and {b.c}", body={"__annotations__": {"a": str}}),
            "Wrong: message='{a} and {b.c}' names 'b.c', which is no field. It has a.",
        ),
        (
            lambda: declare(message="{a"),
            "Wrong: message='{a' is no template: expected '}' before end of string. Write braces that mean themselves "
            "twice.",
        ),
        (
            lambda: declare(http_status=429),
            "Wrong: http_status=429 does not go with failed_precondition, as who does not read the body would take it "
            "for something else. Take 400, 402, 409, 412, 422, 423 or 428, or derive it from another canonical error.",
        ),
        (
            lambda: declare(Unavailable, http_status=500),
            "Wrong: http_status=500 does not go with unavailable, as who does not read the body would take it for "
            "something else. Take 503, or derive it from another canonical error.",
        ),
        (
            lambda: declare(body={"__annotations__": {"a": str}, "__init__": lambda self: None}),
            "Wrong has fields and an __init__ of its own, so that a caller's side could not make one. "
            "Leave the __init__ out: there is one that takes the fields as keywords.",
        ),
        (
            lambda: detail_of(declare(body={"__annotations__": {"a": object}})),
            "Wrong.a is annotated `object`, which cannot travel. Use one of: str, bool, int, float, bytes, datetime, "
            "timedelta, Decimal, UUID, an Enum, a Message, a union of tagged messages, list[...], dict[...] and "
            "`... | None`.",
        ),
        (
            lambda: detail_of(declare(body={"__annotations__": {"a": "Nowhere"}})),
            "Wrong.a is annotated 'Nowhere', but 'Nowhere' is not defined where the class stands. "
            "Import it outside of `if TYPE_CHECKING`, at the top of the module.",
        ),
        (
            lambda: detail_of(
                declare(message="{pin}", body={"__annotations__": {"pin": Annotated[str, Field(sensitive=True)]}})
            ),
            "Wrong: message='{pin}' shows 'pin', which is sensitive, to every caller and in every log. "
            "Leave it out of the message.",
        ),
        (
            lambda: detail_of(NotFound),
            "NotFound is canonical: every method may raise it, and it has no fields. Derive an error of the contract "
            "from it, `class OutOfStock(NotFound): product_id: str`.",
        ),
    ],
)
def test_a_class_that_could_not_work_is_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ContractError) as refusal:
        make()
    assert str(refusal.value) == text


def test_each_code_allows_its_canonical_status() -> None:
    assert [code for code, statuses in REST_STATUSES.items() if BY_CODE[code].http_status not in statuses] == []


class Homeless(NotFound):
    where: str


class FirstHome(Contract, package="lot.v2", raises=(Homeless,)):
    @rpc
    async def look(self) -> None:
        raise NotImplementedError


class SecondHome(Contract, package="lot.v3"):
    @rpc(raises=(Homeless,))
    async def look(self) -> None:
        raise NotImplementedError


def test_an_error_of_two_packages_has_to_say_which() -> None:
    service_of(FirstHome)
    with pytest.raises(ContractError) as refusal:
        service_of(SecondHome)
    assert str(refusal.value) == (
        "Homeless has no package of its own and is used by lot.v2.FirstHome/Look and by lot.v3.SecondHome/Look, which "
        "are in different packages. Say which it belongs to: class Homeless(NotFound, package='lot.v2')."
    )


def test_what_a_contract_cannot_raise_is_refused() -> None:
    def listing(raises: Any) -> Any:
        return types.new_class("Wrong", (Contract,), {"package": "lot.v4", "raises": raises})

    class Own(NotFound):
        def __init__(self) -> None:
            super().__init__("mine")

    class Twin(NotFound, name="Occupied", package="lot.v1"): ...

    class Doubled(Contract, package="lot.v1", raises=(Occupied, Twin)):
        @rpc
        async def park(self) -> None:
            raise NotImplementedError

    with pytest.raises(ContractError) as one:
        listing(Occupied)
    assert str(one.value) == "Wrong: raises=Occupied is one error. Write raises=(Occupied,)."
    with pytest.raises(ContractError) as other:
        listing((ValueError,))
    assert str(other.value) == (
        "Wrong: raises= lists <class 'ValueError'>, which is no error of a call. "
        "Derive it from a canonical one, such as FailedPrecondition."
    )
    with pytest.raises(ContractError) as canonical:
        listing((NotFound,))
    assert str(canonical.value).startswith("NotFound is canonical: every method may raise it")
    with pytest.raises(ContractError) as own:
        listing((Own,))
    assert str(own.value) == (
        f"Wrong: raises= lists {Own.__qualname__}, which has an __init__ of its own, so that a caller's side could not "
        "make one. Annotate its fields instead."
    )
    with pytest.raises(ContractError) as doubled:
        service_of(Doubled)
    assert str(doubled.value) == (
        f"lot.v1.Doubled/Park raises Occupied and {Twin.__qualname__}, which are both called 'lot.v1.Occupied' on the "
        "wire. Give one of them another name=."
    )
    with pytest.raises(ContractError) as implementing:
        types.new_class("LotService", (Lot,), {"raises": (Occupied,)})
    assert str(implementing.value) == (
        "LotService implements a contract and gives raises=, but what callers may get belongs to the contract. "
        "Move it there."
    )


# As details


def test_its_detail_is_a_message_of_the_contract_s_package() -> None:
    lot = service_of(Lot)
    assign_packages([lot])
    assert list(lot.rpcs["park"].raises) == ["lot.v1.Closed", "lot.v1.Occupied", "lot.v1.Rented", "lot.v7.Oversized"]
    assert lot.rpcs["leave"].raises == {"lot.v1.Closed": Closed}
    assert [field.name for field in schema_of(detail_of(Rented)).fields] == ["slot", "until", "others", "tenant"]
    assert schema_of(detail_of(TooLong)).fields[0].number == 4
    assert schema_of(Slot).full_name == "lot.v1.Slot"
    assert (name_of(TooLong), reason_of(TooLong), reason_of(Closed)) == ("lot.v7.Oversized", "OVERSIZED", "CLOSED")


def test_it_travels_as_itself_and_as_what_it_is_derived_from() -> None:
    service_of(Lot)
    own, above = own_details(Rented(slot=5, tenant="me"))
    assert own[0] == "type.googleapis.com/lot.v1.Rented"
    assert above == ("type.googleapis.com/lot.v1.Occupied", b"\x08\x05\x12\x04dawn")
    assert codec_for(detail_of(Rented), "proto").decode(own[1]) == fields_as_message(Rented(slot=5, tenant="me"))
    assert own_details(NotFound("x")) == []


def test_an_error_without_fields_that_nobody_lists_has_no_detail() -> None:
    class Unlisted(NotFound): ...

    assert own_details(Unlisted()) == []


def test_fields_that_cannot_be_sent_are_logged_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    make: Any = Occupied
    assert own_details(make(slot="five")) == []
    assert own_details(Occupied(slot=1, until="x" * MAX_DETAIL_BYTES)) == []
    unknown: Any = declare(body={"__annotations__": {"a": object}})
    assert own_details(unknown(a=1)) == []
    first, second, third = caplog.messages
    assert first == "the fields of Occupied were not sent: Occupied.slot: expected `int`, got `str`"
    assert second == "the fields of Occupied were not sent: they have 4101 bytes, and 4096 is the most"
    assert third.startswith("the fields of Wrong were not sent: Wrong.a is annotated `object`, which cannot travel.")


@given(st.binary(max_size=60), st.sampled_from(["lot.v1.Occupied", "lot.v1.Rented", "lot.v7.Oversized", "a.B"]))
def test_whatever_a_peer_sends_the_error_is_its_canonical_one_at_worst(value: bytes, name: str) -> None:
    park = service_of(Lot).rpcs["park"]
    for number, canonical in BY_NUMBER.items():
        told = error_from(number, "theirs", unpack_details([(f"type.googleapis.com/{name}", value)]))
        error = as_declared(told, park)
        assert isinstance(error, canonical)
        assert error.message == "theirs"
        if type(error) is not canonical:
            assert type(error).number == number
            assert fields_as_message(error) == codec_for(detail_of(type(error)), "proto").decode(value)


# As a `.proto` file

LOT = """\
syntax = "proto3";

package lot.v1;

import "google/protobuf/empty.proto";

// Where cars stand.
service Lot {
  // Find a slot.
  rpc Park(Ticket) returns (Ticket);

  rpc Leave(Ticket) returns (google.protobuf.Empty);
}

message Ticket {
  string plate = 1;
}

// The lot is
// closed.
//
// It opens at dawn.
//
// Error UNAVAILABLE of Lot.Park, Lot.Leave.
message Closed {}

// Somebody else is there.
//
// Error FAILED_PRECONDITION (HTTP 409) of Lot.Park.
message Occupied {
  int64 slot = 1;
  optional string until = 2;
  repeated Slot others = 3;
}

message Slot {
  int64 number = 1;
}

// Error FAILED_PRECONDITION (HTTP 409) of Lot.Park.
message Rented {
  int64 slot = 1;
  optional string until = 2;
  repeated Slot others = 3;
  string tenant = 4;
}
"""
OVERSIZED = """\
syntax = "proto3";

package lot.v7;

// Error INVALID_ARGUMENT of lot.v1.Lot.Park.
message Oversized {
  double most = 4;
}
"""


def test_the_proto_file_says_which_rpcs_raise_an_error() -> None:
    assert proto_files([service_of(Lot)]) == {"lot/v1/lot.proto": LOT, "lot/v7/lot.proto": OVERSIZED}


def test_an_imported_proto_file_has_the_errors_again(tmp_path: Path) -> None:
    files = proto_files([service_of(Lot)])
    text = python_module(compiled_texts(files), list(files))
    assert 'class Occupied(FailedPrecondition, package="lot.v1", http_status=409):' in text
    assert "    @rpc(raises=(Closed, Occupied, Rented, Oversized))\n    async def park(" in text
    module: Any = module_of(text, tmp_path)
    assert proto_files([service_of(module.Lot)]) == files
    occupied = module.Occupied(slot=2)
    assert isinstance(occupied, FailedPrecondition)
    assert occupied.message == "Somebody else is there."


def test_a_field_that_no_error_can_have_keeps_its_name_on_the_wire(tmp_path: Path) -> None:
    source = {
        "a.proto": 'syntax = "proto3";\npackage odd.v1;\n'
        "service S { rpc Do(A) returns (A); }\nmessage A {}\n"
        "// Error NOT_FOUND of S.Do.\nmessage Gone { string code = 1; string _method = 2; string fields = 3; }\n"
    }
    text = python_module(compiled_texts(source), ["a.proto"])
    assert 'code_: Annotated[str, Field(number=1, name="code")] = ""' in text
    assert 'x_method: Annotated[str, Field(number=2, name="_method")] = ""' in text
    assert module_of(text, tmp_path).Gone(code_="x").fields == ""


@pytest.mark.parametrize(
    ("comment", "more"),
    [
        ("Error FAILED_PRECONDITION", ""),
        ("Error NOT_A_CODE of S.Do.", ""),
        ("Error UNAVAILABLE (HTTP 500) of S.Do.", ""),
        ("The Error NOT_FOUND of S.Do.", ""),
        ("Error NOT_FOUND of S.Do.", "message Holder { Gone gone = 1; }"),
    ],
)
def test_a_message_that_is_no_error_stays_a_message(comment: str, more: str) -> None:
    source = {
        "a.proto": 'syntax = "proto3";\npackage odd.v2;\n'
        "service S { rpc Do(A) returns (A); }\nmessage A {}\n"
        f"// {comment}\nmessage Gone {{ string code = 1; }}\n{more}\n"
    }
    text = python_module(compiled_texts(source), ["a.proto"])
    assert 'class Gone(Message, package="odd.v2"):\n    """' + comment in text
    assert "raises" not in text
