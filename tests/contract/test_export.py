"""Contracts as `.proto` files: what they say, and what protoc and buf make of it."""

from __future__ import annotations

import enum
import functools
import importlib
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from message_strategies import messages
from proto_support import GOOGLEAPIS, classes_of, compiled, compiled_texts, file_in, without_comments, write

from polywire.codec import codec_for
from polywire.contract import (
    Contract,
    Field,
    Fixed32,
    Fixed64,
    Float32,
    Int32,
    Message,
    Service,
    SFixed32,
    SFixed64,
    SInt32,
    SInt64,
    UInt32,
    UInt64,
    delete,
    enum_form,
    get,
    patch,
    post,
    put,
    rpc,
    service_of,
)
from polywire.contract.export import descriptor_set, file_descriptors, proto_files
from polywire.contract.export_http import ANNOTATIONS, FILES, HTTP
from polywire.contract.export_text import proto_text
from polywire.contract.wellknown import FieldMask, Int64Value, Struct, Value
from polywire.errors import ContractError

BUF = Path(sys.executable).parent / "buf"


class Size(enum.Enum):
    """How big it is."""

    SMALL = "small"
    LARGE = "large"


class Grade(enum.IntEnum):
    UNKNOWN = 0
    GOOD = 2
    FINE = 2
    BAD = -1


@enum_form(name="Parcel.State", names={"LOST": "GONE"})
class ParcelState(enum.Enum):
    SENT = 1
    LOST = 2


class Card(Message, tag="card"):
    number: str


class Cash(Message, tag="cash"):
    pass


class Iban(Message, tag="iban", transparent=True):
    """An account."""

    value: str


class Label(Message, name="Parcel.Label"):
    text: str = ""


class Parcel(Message, reserved=(3, range(20, 30), "weight")):
    """What is sent.

    It may take a while.
    """

    parcel_id: str
    state: Annotated[ParcelState, Field(number=7, description="Where it is.")]
    sent: datetime
    label: Label | None = None
    took: timedelta | None = None
    price: Decimal = Decimal(0)
    trace: UUID | None = None
    payment: Card | Cash | Iban | None = None
    parts: list[Parcel] = []
    by_name: dict[str, Parcel] = {}
    urgent: bool = True
    number: Annotated[str, Field(name="productNumber", max_length=40)] = ""


class Everything(Message):
    a: int
    b: Int32
    c: UInt32
    d: UInt64
    e: SInt32
    f: SInt64
    g: Fixed32
    h: Fixed64
    i: SFixed32
    j: SFixed64
    k: float
    l: Float32  # noqa: E741 - a name that exists
    m: bool
    n: str
    o: bytes
    p: Size
    q: Grade = Grade.GOOD
    r: int = 5
    s: Int32 | None = None
    t: list[Int32] = []
    u: dict[UInt64, Grade] = {}
    v: dict[int, Struct] = {}
    w: Value | None = None
    x: FieldMask | None = None
    y: Int64Value | None = None


class Found(Message):
    parcels: list[Parcel]


class Post(Contract, package="parcels.v1", prefix="/api/v1"):
    """Sends parcels."""

    @rpc(get("/parcels/{parcel_id}"), get("/by-number/{number}"), idempotent=True)
    async def get_parcel(self, parcel: Parcel) -> Parcel:
        """One of them."""
        raise NotImplementedError

    @rpc(post("/parcels", status=201), put("/parcels/{parcel_id}", body="label"), patch("/parcels:all", body=None))
    async def send(self, parcel: Parcel) -> None:
        raise NotImplementedError

    @rpc(delete("/parcels/{label.text=**}"), idempotent=True, name="DROP")
    async def drop(self, parcel: Parcel) -> None:
        raise NotImplementedError

    @rpc(idempotent=True)
    async def found(self) -> Found:
        """A method and a message of one name."""
        raise NotImplementedError

    @rpc
    def watch(self, everything: Everything) -> AsyncIterator[Parcel]:
        raise NotImplementedError

    @rpc
    async def collect(self, parcels: AsyncIterator[Parcel]) -> Everything:
        raise NotImplementedError

    @rpc
    def both(self, parcels: AsyncIterator[Parcel]) -> AsyncIterator[Parcel]:
        raise NotImplementedError


POST = service_of(Post)

EXPORTED = """\
syntax = "proto3";

package parcels.v1;

import "google/api/annotations.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/field_mask.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";

// Sends parcels.
service Post {
  // One of them.
  rpc GetParcel(Parcel) returns (Parcel) {
    option idempotency_level = NO_SIDE_EFFECTS;
    option (google.api.http) = {
      get: "/api/v1/parcels/{parcel_id}"
      additional_bindings: {get: "/api/v1/by-number/{productNumber}"}
    };
  }

  rpc Send(Parcel) returns (google.protobuf.Empty) {
    option (google.api.http) = {
      post: "/api/v1/parcels"
      body: "*"
      additional_bindings: {
        put: "/api/v1/parcels/{parcel_id}"
        body: "label"
      }
      additional_bindings: {patch: "/api/v1/parcels:all"}
    };
  }

  rpc DROP(Parcel) returns (google.protobuf.Empty) {
    option idempotency_level = IDEMPOTENT;
    option (google.api.http) = {delete: "/api/v1/parcels/{label.text=**}"};
  }

  // A method and a message of one name.
  rpc Found(google.protobuf.Empty) returns (parcels.v1.Found) {
    option idempotency_level = IDEMPOTENT;
  }

  rpc Watch(Everything) returns (stream Parcel);

  rpc Collect(stream Parcel) returns (Everything);

  rpc Both(stream Parcel) returns (stream Parcel);
}

// What is sent.
//
// It may take a while.
message Parcel {
  message Label {
    string text = 1;
  }

  enum State {
    STATE_UNSPECIFIED = 0;
    STATE_SENT = 1;
    GONE = 2;
  }

  reserved 3, 20 to 29;
  reserved "weight";
  string parcel_id = 1;
  // Where it is.
  State state = 7;
  google.protobuf.Timestamp sent = 8;
  Label label = 9;
  google.protobuf.Duration took = 10;
  // A decimal number, as text.
  string price = 11;
  // A UUID, as text.
  optional string trace = 12;
  oneof payment {
    Card card = 13;
    Cash cash = 14;
    // An account.
    string iban = 15;
  }
  repeated Parcel parts = 16;
  map<string, Parcel> by_name = 17;
  optional bool urgent = 18;
  string productNumber = 19;
}

message Card {
  string number = 1;
}

message Cash {}

message Found {
  repeated Parcel parcels = 1;
}

message Everything {
  int64 a = 1;
  int32 b = 2;
  uint32 c = 3;
  uint64 d = 4;
  sint32 e = 5;
  sint64 f = 6;
  fixed32 g = 7;
  fixed64 h = 8;
  sfixed32 i = 9;
  sfixed64 j = 10;
  double k = 11;
  float l = 12;
  bool m = 13;
  string n = 14;
  bytes o = 15;
  Size p = 16;
  optional Grade q = 17;
  optional int64 r = 18;
  optional int32 s = 19;
  repeated int32 t = 20;
  map<uint64, Grade> u = 21;
  map<int64, google.protobuf.Struct> v = 22;
  google.protobuf.Value w = 23;
  google.protobuf.FieldMask x = 24;
  google.protobuf.Int64Value y = 25;
}

// How big it is.
enum Size {
  SIZE_UNSPECIFIED = 0;
  SIZE_SMALL = 1;
  SIZE_LARGE = 2;
}

enum Grade {
  option allow_alias = true;
  GRADE_UNKNOWN = 0;
  GRADE_GOOD = 2;
  GRADE_FINE = 2;
  GRADE_BAD = -1;
}
"""


def test_a_contract_reads_well_as_a_proto_file() -> None:
    assert proto_files([POST]) == {"parcels/v1/parcels.proto": EXPORTED}


def test_protoc_makes_of_the_text_what_the_descriptors_say() -> None:
    (described,) = file_descriptors([POST])
    made = compiled_texts(proto_files([POST]))
    assert without_comments(file_in(made, "parcels/v1/parcels.proto")) == without_comments(described)


def test_protoc_finds_the_comments_where_the_descriptors_have_them() -> None:
    (described,) = file_descriptors([POST])
    found = file_in(compiled_texts(proto_files([POST])), "parcels/v1/parcels.proto").source_code_info
    theirs = {tuple(place.path): place.leading_comments for place in found.location if place.leading_comments}
    ours = {tuple(place.path): place.leading_comments for place in described.source_code_info.location}
    assert ours == theirs


@functools.cache
def generated() -> Callable[[str], Any]:
    return classes_of(compiled_texts(proto_files([POST])))


@pytest.mark.parametrize("message", [Parcel, Everything])
@settings(max_examples=60, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_generated_classes_read_and_write_the_same_messages(message: type[Message], data: st.DataObject) -> None:
    theirs = generated()(f"parcels.v1.{message.__name__}")
    codec = codec_for(message, "proto")
    drawn = data.draw(messages(message))
    parsed = theirs.FromString(codec.encode(drawn))
    assert codec.decode(parsed.SerializeToString()) == drawn
    assert theirs.FromString(codec.encode(codec.decode(parsed.SerializeToString()))) == parsed


BUF_YAML = """\
version: v2
lint:
  use: [BASIC, FILE_LOWER_SNAKE_CASE, PACKAGE_VERSION_SUFFIX]
"""


class Orderly(Message):
    order_id: str
    size: Size


class Desk(Contract, package="orders.desk.v2"):
    @rpc(get("/orders/{order_id}"), post("/orders"), idempotent=True)
    async def look(self, order: Orderly) -> Orderly:
        """Look it up."""
        raise NotImplementedError


def test_buf_builds_and_formats_and_lints_what_is_written(tmp_path: Path) -> None:
    write(tmp_path, proto_files([service_of(Desk)], imports=True))
    (tmp_path / "buf.yaml").write_text(BUF_YAML)
    for command in (["build"], ["format", "--diff", "--exit-code", "--path", "orders"], ["lint", "--path", "orders"]):
        done = subprocess.run([BUF, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_buf_builds_the_largest_contract_too(tmp_path: Path) -> None:
    write(tmp_path, proto_files([POST], imports=True))
    (tmp_path / "buf.yaml").write_text(BUF_YAML)
    done = subprocess.run([BUF, "build", "-o", "set.binpb"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    made = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "set.binpb").read_bytes())
    (described,) = file_descriptors([POST])
    theirs = without_comments(file_in(made, described.name))
    for field in descriptor_pb2.FileDescriptorProto.DESCRIPTOR.fields:
        if field.name not in ("syntax",):  # buf's own fields of a file would be unknown ones
            assert getattr(theirs, field.name) == getattr(without_comments(described), field.name), field.name


def test_buf_lints_the_same_names_that_it_would_choose_for_enums(tmp_path: Path) -> None:
    write(tmp_path, proto_files([service_of(Desk)], imports=True))
    (tmp_path / "buf.yaml").write_text(
        "version: v2\nlint:\n  use: [ENUM_VALUE_PREFIX, ENUM_ZERO_VALUE_SUFFIX, PACKAGE_DIRECTORY_MATCH]\n"
    )
    done = subprocess.run([BUF, "lint"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_our_files_of_googleapis_say_what_theirs_say() -> None:
    theirs = compiled(GOOGLEAPIS, [ANNOTATIONS])
    for name in (HTTP, ANNOTATIONS):
        assert without_comments(file_in(theirs, name)) == without_comments(FILES[name])


def test_the_option_is_the_one_that_googleapis_reads() -> None:
    theirs: Any = importlib.import_module("google.api.annotations_pb2")
    (described,) = file_descriptors([POST])
    method = next(method for method in described.service[0].method if method.name == "Send")
    rule = descriptor_pb2.MethodOptions.FromString(method.options.SerializeToString()).Extensions[theirs.http]
    assert (rule.post, rule.body) == ("/api/v1/parcels", "*")
    assert [binding.body for binding in rule.additional_bindings] == ["label", ""]


def test_without_http_nothing_of_googleapis_is_needed() -> None:
    (text,) = proto_files([POST], http=False, imports=True).values()
    assert "google/api" not in text
    assert "/api/v1" not in text
    assert "option idempotency_level = NO_SIDE_EFFECTS;" in text


def test_the_imported_files_come_along_only_where_they_are_used() -> None:
    assert list(proto_files([POST], imports=True)) == ["parcels/v1/parcels.proto", HTTP, ANNOTATIONS]
    assert proto_files([POST], imports=True)[HTTP] == proto_text(FILES[HTTP])


def test_a_descriptor_set_is_complete_and_in_order() -> None:
    files = descriptor_set([POST])
    assert list(files)[-1] == "parcels/v1/parcels.proto"
    pool = descriptor_pool.DescriptorPool()
    for data in files.values():
        pool.AddSerializedFile(data)  # raises where an import is missing
    assert sorted(pool.FindServiceByName("parcels.v1.Post").methods_by_name) == [
        *("Both", "Collect", "DROP", "Found", "GetParcel", "Send", "Watch")
    ]
    assert b"It may take a while" not in files["parcels/v1/parcels.proto"]


def test_an_export_is_the_same_each_time() -> None:
    assert list(proto_files([POST]).items()) == list(proto_files([POST]).items())
    assert descriptor_set([POST]) == descriptor_set([POST])


# Files and packages


class Shared(Message, package="money.v1"):
    units: int


class Priced(Message):
    price: Shared
    google: str = ""


class Prices(Contract, package="prices.v1"):
    @rpc
    async def price(self, priced: Priced) -> Priced:
        raise NotImplementedError


class Bare(Message, package=""):
    text: str


class Plain(Contract):
    @rpc
    async def say(self, bare: Bare) -> Bare:
        raise NotImplementedError


def test_each_package_is_a_file_that_comes_after_what_it_imports() -> None:
    files = proto_files([service_of(Prices), service_of(Plain)])
    assert list(files) == ["contracts.proto", "money/v1/money.proto", "prices/v1/prices.proto"]
    assert files["prices/v1/prices.proto"] == (
        'syntax = "proto3";\n\npackage prices.v1;\n\nimport "money/v1/money.proto";\n\n'
        "service Prices {\n  rpc Price(Priced) returns (Priced);\n}\n\n"
        "message Priced {\n  money.v1.Shared price = 1;\n  string google = 2;\n}\n"
    )
    assert files["contracts.proto"] == (
        'syntax = "proto3";\n\nservice Plain {\n  rpc Say(Bare) returns (Bare);\n}\n\n'
        "message Bare {\n  string text = 1;\n}\n"
    )
    assert compiled_texts(files)


class Google(Message, name="google.protobuf", package="odd.google.api.v1"):
    at: datetime


class Odd(Message, package="odd.google.api.v1"):
    google: Google
    at: datetime


class OddContract(Contract, package="odd.google.api.v1", name="Service"):
    @rpc(get("/odd"))
    async def odd(self, odd: Odd) -> Odd:
        raise NotImplementedError


def test_names_that_hide_others_are_written_in_full() -> None:
    files = proto_files([service_of(OddContract)])
    (name,) = files
    assert "option (.google.api.http) =" in files[name]
    assert ".google.protobuf.Timestamp at = 2;" in files[name]
    (described,) = file_descriptors([service_of(OddContract)])
    assert without_comments(file_in(compiled_texts(files), name)) == without_comments(described)


def test_long_comments_are_filled_and_lists_stay_lists() -> None:
    class Wordy(Message, package="wordy.v1"):
        """A first line that is so long that it has to be broken somewhere, which happens at a space, and filled
        with the next line.

        - a list that is so long that it would have to be broken too, but it is a list, so nobody touches it here
        - its second point
        """

    class Words(Contract, package="wordy.v1"):
        @rpc
        async def say(self, wordy: Wordy) -> None:
            raise NotImplementedError

    Words.say.__annotations__["wordy"] = Wordy  # it is local
    (text,) = proto_files([service_of(Words)]).values()
    assert text.partition("\nmessage")[0].rpartition("}\n\n")[2] == (
        "// A first line that is so long that it has to be broken somewhere, which happens at a space, and\n"
        "// filled with the next line.\n"
        "//\n"
        "// - a list that is so long that it would have to be broken too, but it is a list, so nobody touches it here\n"
        "// - its second point"
    )


# What cannot be exported


def service(package: str, *used: type[Message], name: str = "Service") -> Service:
    """A contract whose methods take these messages."""
    numbers = itertools.count()

    def method(message: type[Message]) -> Any:
        async def call(self: Any, request: Any) -> None:
            raise NotImplementedError

        call.__annotations__ = {"request": message, "return": None}
        return rpc(name=f"Call{next(numbers)}")(call)

    methods = {f"call_{index}": method(message) for index, message in enumerate(used)}
    namespace = {"__module__": __name__, **methods}
    return service_of(type(name, (Contract,), namespace, package=package))


def test_two_messages_of_one_name_are_refused() -> None:
    class First(Message, package="twice.v1", name="Same"):
        pass

    class Second(Message, package="twice.v1", name="Same"):
        pass

    with pytest.raises(ContractError) as refused:
        proto_files([service("twice.v1", First, Second)])
    where = f"{__name__}.test_two_messages_of_one_name_are_refused.<locals>"
    assert str(refused.value) == (
        f"The message {where}.First and the message {where}.Second are both called 'twice.v1.Same' on the wire. "
        "Give one of them another name=."
    )


def test_a_contract_called_like_its_message_is_refused() -> None:
    class Charge(Message, package="same.v1"):
        pass

    with pytest.raises(ContractError) as refused:
        proto_files([service("same.v1", Charge, name="Charge")])
    assert str(refused.value) == (
        f"The message {__name__}.test_a_contract_called_like_its_message_is_refused.<locals>.Charge and the contract "
        f"{__name__}.Charge are both called 'same.v1.Charge' on the wire. Give one of them another name=."
    )


class Egg(Message, package="egg.v1"):
    hen: Hen | None = None


class Hen(Message, package="hen.v1"):
    eggs: list[Egg] = []


def test_packages_that_need_each_other_are_refused() -> None:
    with pytest.raises(ContractError) as refused:
        proto_files([service("farm.v1", Egg)])
    assert str(refused.value) == (
        "The packages egg.v1 and hen.v1 use messages of each other, but files must not import each other in a circle. "
        "Move what they share into a package of its own, with package=."
    )


class Mode(enum.Enum):
    FAST = 1


class HereMode(Message, package="here.v1"):
    mode: Mode


class ThereMode(Message, package="there.v1"):
    mode: Mode


def test_an_enum_that_two_packages_use_has_to_say_where_it_belongs() -> None:
    with pytest.raises(ContractError) as refused:
        proto_files([service("here.v1", HereMode, ThereMode)])
    assert str(refused.value) == (
        "Mode has no package of its own and is used by HereMode and by ThereMode, which are in different packages "
        "(here.v1, there.v1). Say which it belongs to: @enum_form(package='here.v1')."
    )


def test_a_message_without_a_number_left_is_refused() -> None:
    class Full(Message, package="full.v1"):
        last: Annotated[int, Field(number=2**29 - 1)]
        more: int

    with pytest.raises(ContractError) as refused:
        proto_files([service("full.v1", Full)])
    where = "test_a_message_without_a_number_left_is_refused.<locals>.Full"
    assert str(refused.value) == f"{where}.more: number=536870912 is no field number. They go from 1 to 536870911."
