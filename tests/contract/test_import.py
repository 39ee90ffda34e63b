"""`.proto` files as Python modules: what is written, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from proto_support import compiled_texts, module_of, write

from polywire.cli.protoc import compile_protos, root_of
from polywire.contract import Message, schema_of, service_of
from polywire.contract.protofile import python_module
from polywire.errors import ContractError

SHOP = """\
// The stock of a shop.
syntax = "proto3";

package shop.v1;

import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/timestamp.proto";

// What is in stock.
//
// And what is not.
service Inventory {
  // Units on hand now.
  rpc CheckStock(StockQuery) returns (Stock) {
    option idempotency_level = NO_SIDE_EFFECTS;
    option (google.api.http) = {
      get: "/inventory/{product_id}"
      additional_bindings {
        post: "/inventory:check"
        body: "*"
      }
    };
  }
  rpc Watch(StockQuery) returns (stream Stock);
  rpc ListURLs(google.protobuf.Empty) returns (Stock);
}

message StockQuery {
  // The number on the box,
  // as "printed".
  string product_id = 1;
  optional int32 at_least = 3;
  reserved 2, 10 to 12;
  reserved "colour";
}

message Stock {
  enum State {
    STATE_UNSPECIFIED = 0;
    // On the shelf.
    STATE_IN = 1;
    OUT = 2;
  }
  message Place {
    string from = 1;
  }
  State state = 1;
  repeated Place places = 2;
  map<string, Place> by_name = 3;
  google.protobuf.Timestamp counted = 4;
  // Who says so.
  oneof source {
    Place place = 5;
    // A person.
    string person = 6;
  }
}
"""

WRITTEN = '''\
# ruff: noqa: RUF012
"""What shop.proto declares."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated

from polywire.contract import Contract, Field, Int32, Message, enum_form, get, post, rpc


@enum_form(package="shop.v1", name="Stock.State", names={"OUT": "OUT"})
class StockState(enum.IntEnum):
    UNSPECIFIED = 0
    # On the shelf.
    IN = 1
    OUT = 2


class StockQuery(Message, package="shop.v1", reserved=(2, range(10, 13), "colour")):
    product_id: Annotated[
        str,
        Field(number=1, description='The number on the box, as "printed".'),
    ] = ""
    at_least: Annotated[Int32 | None, Field(number=3)] = None


class StockPerson(Message, transparent=True, tag="person"):
    """A person."""

    value: str


class Stock(Message, package="shop.v1"):
    state: Annotated[StockState, Field(number=1)] = StockState.UNSPECIFIED
    places: Annotated[list[StockPlace], Field(number=2)] = []
    by_name: Annotated[dict[str, StockPlace], Field(number=3)] = {}
    counted: Annotated[datetime | None, Field(number=4)] = None
    source: Annotated[
        StockPlace | StockPerson | None,
        Field(numbers=(5, 6), names=("place", "person"), description="Who says so."),
    ] = None


class StockPlace(Message, package="shop.v1", name="Stock.Place", tag="stock_place"):
    from_: Annotated[str, Field(number=1, name="from")] = ""


class Inventory(Contract, package="shop.v1"):
    """What is in stock.

    And what is not.
    """

    @rpc(get("/inventory/{product_id}"), post("/inventory:check"), idempotent=True)
    async def check_stock(self, request: StockQuery) -> Stock:
        """Units on hand now."""
        raise NotImplementedError

    @rpc
    def watch(self, request: StockQuery) -> AsyncIterator[Stock]:
        raise NotImplementedError

    @rpc(name="ListURLs")
    async def list_urls(self) -> Stock:
        raise NotImplementedError
'''


def test_a_file_becomes_a_module() -> None:
    assert imported({"shop.proto": SHOP}) == WRITTEN


def imported(files: dict[str, str]) -> str:
    """All of these files as one module."""
    return python_module(compiled_texts(files), list(files))


def proto3(text: str) -> str:
    return f'syntax = "proto3";\npackage t.v1;\n{text}'


def test_several_files_become_one_module_with_what_they_use_of_others(tmp_path: Path) -> None:
    files = {
        "a.proto": 'syntax = "proto3"; package a; import "c.proto"; message A { c.Used used = 1; Same same = 2; } '
        "message Same {}",
        "b.proto": 'syntax = "proto3"; package b; import "a.proto"; message B { a.A a = 1; Same same = 2; } '
        "message Same {}",
        "c.proto": 'syntax = "proto3"; package c; message Used { Kind kind = 1; } message Unused {} '
        "enum Kind { K = 0; }",
    }
    text = python_module(compiled_texts(files), ["a.proto", "b.proto"])
    module = module_of(text, tmp_path)
    names = {
        name: schema_of(value).full_name for name, value in vars(module).items() if isinstance(value, type(Message))
    }
    names.pop("Message")
    assert names == {"A": "a.A", "B": "b.B", "BSame": "b.Same", "Same": "a.Same", "Used": "c.Used"}
    assert text.startswith('"""What a.proto, b.proto declares."""\n')


def test_the_order_of_the_files_decides_nothing_but_names() -> None:
    files = {"a.proto": proto3("message A {}"), "b.proto": proto3("message B {}")}
    made = compiled_texts(files)
    assert python_module(made, ["b.proto"]) == python_module(made, ["b.proto"])
    assert "class A" not in python_module(made, ["b.proto"])


@pytest.mark.parametrize(
    ("declared", "written"),
    [
        ("enum E { E_UNSPECIFIED = 0; E_A = 1; }", ["UNSPECIFIED = 0", "A = 1"]),
        ("enum E { E_1 = 0; E__ = 1; _F_ = 2; }", ["E_1 = 0", "E = 1", "F = 2"]),
        ("enum HTTPCode { HTTP_CODE_OK = 0; HTTPCODE_NO = -1; }", ["OK = 0", "HTTPCODE_NO = -1"]),
        ("enum E { E_class = 0; lambda = 1; }", ["class_ = 0", "lambda_ = 1"]),
    ],
)
def test_values_of_enums_lose_the_prefix_that_style_gives_them(
    declared: str, written: list[str], tmp_path: Path
) -> None:
    text = imported({"t.proto": proto3(f"message M {{}} {declared}")})
    assert [line.strip() for line in text.splitlines() if line.startswith("    ") and line[-1].isdigit()] == written
    assert module_of(text, tmp_path)


def test_names_on_the_wire_stay_what_they_were(tmp_path: Path) -> None:
    files = {
        "t.proto": proto3(
            "message Req {} service S { rpc GetURL(Req) returns (Req); rpc get_url(Req) returns (Req); "
            "rpc Import(Req) returns (Req); rpc X(Req) returns (Req); rpc HTTP2Check(Req) returns (Req); }"
        )
    }
    service = service_of(module_of(imported(files), tmp_path).S)
    assert {attribute: rpc.path for attribute, rpc in service.rpcs.items()} == {
        "get_url": "/t.v1.S/GetURL",
        "get_url_": "/t.v1.S/get_url",
        "import_": "/t.v1.S/Import",
        "x": "/t.v1.S/X",
        "http2_check": "/t.v1.S/HTTP2Check",
    }


def test_a_crud_service_keeps_its_decorators_apart_from_its_methods(tmp_path: Path) -> None:
    routes = "".join(
        f'rpc {name}(Req) returns (Req) {{ option (google.api.http) = {{ {name.lower()}: "/{name}/{{id}}" }}; }}'
        for name in ("Get", "Put", "Delete", "Post", "Patch")
    )
    text = proto3(f'import "google/api/annotations.proto"; message Req {{ string id = 1; }} service S {{ {routes} }}')
    service = service_of(module_of(imported({"t.proto": text}), tmp_path).S)
    assert [(rpc.attribute, rpc.name, rpc.routes[0].verb) for rpc in service.rpcs.values()] == [
        ("get_", "Get", "GET"),
        ("put_", "Put", "PUT"),
        ("delete_", "Delete", "DELETE"),
        ("post_", "Post", "POST"),
        ("patch_", "Patch", "PATCH"),
    ]


def test_bindings_that_contracts_cannot_express_are_left_out_and_named() -> None:
    text = imported(
        {
            "t.proto": proto3(
                'import "google/api/annotations.proto"; message Req { string id = 1; } service S {\n'
                "rpc A(Req) returns (Req) { option (google.api.http) = { custom { kind: 'HEAD' path: '/a' } "
                "additional_bindings { get: '/b' response_body: 'id' } additional_bindings { get: '/c' body: '*' } "
                "additional_bindings { post: '/d?x' } additional_bindings { post: '/e' } }; }\n"
                "rpc B(stream Req) returns (Req) { option (google.api.http) = { get: '/f' }; } }"
            )
        }
    )
    assert text.partition("class S")[2] == (
        '(Contract, package="t.v1"):\n'
        "    # Left out: HEAD /a, as contracts have no such verb.\n"
        "    # Left out: GET /b, as it answers with the field 'id' alone.\n"
        "    # Left out: GET /c, as a GET has no body.\n"
        "    # Left out: POST /d?x, as its path has no form here.\n"
        '    @rpc(post("/e", body=None))\n'
        "    async def a(self, request: Req) -> Req:\n"
        "        raise NotImplementedError\n"
        "\n"
        "    # Left out: GET /f, as a GET cannot carry a stream.\n"
        "    @rpc\n"
        "    async def b(self, requests: AsyncIterator[Req]) -> Req:\n"
        "        raise NotImplementedError\n"
    )


def test_comments_of_every_style_are_read() -> None:
    text = imported(
        {
            "t.proto": proto3(
                "/* A block. */ message A {}\n"
                "/** A documented\n * block.\n *\n *     code\n */\nmessage B {}\n"
                "message C { string x = 1; // behind\n }\n"
                '// Ends in a "quote"\nmessage D {}\n'
                "// With \\ and a very, very long line that goes on and on and on and on and on and on and on and on.\n"
                "message E {}\n"
            )
        }
    )
    classes = text.partition("\n\n\nclass A")[2]
    assert classes == (
        '(Message, package="t.v1"):\n    """A block."""\n\n\n'
        'class B(Message, package="t.v1"):\n    """A documented\n    block.\n\n        code\n    """\n\n\n'
        'class C(Message, package="t.v1"):\n    x: Annotated[str, Field(number=1, description="behind")] = ""\n\n\n'
        'class D(Message, package="t.v1"):\n    """Ends in a "quote\\""""\n\n\n'
        'class E(Message, package="t.v1"):\n    """With \\\\ and a very, very long line that goes on and on and on and '
        'on and on and on and on and on."""\n'
    )


# What is refused


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ('syntax = "proto2"; message M { required string x = 1; }', "proto2"),
        ("message M { optional group G = 1 { optional int32 a = 1; } }", "proto2"),
        ('edition = "2023"; message M { string x = 1; }', "edition 2023 of protobuf"),
    ],
)
def test_other_syntaxes_are_refused(text: str, spoken: str) -> None:
    with pytest.raises(ContractError) as refused:
        imported({"old.proto": text})
    assert str(refused.value) == (
        f"old.proto is written in {spoken}, but only proto3 can be imported: what an absent field means differs. "
        'Rewrite it with syntax = "proto3" if you can; required fields, groups and extensions have to go.'
    )


def test_a_type_from_a_file_of_another_syntax_is_refused_where_it_is_used() -> None:
    files = {
        "old.proto": 'syntax = "proto2"; package old; message Old {} message Unused {}',
        "new.proto": 'syntax = "proto3"; import "old.proto"; message New { old.Old old = 1; }',
    }
    with pytest.raises(ContractError, match=r"^old\.proto is written in proto2, "):
        python_module(compiled_texts(files), ["new.proto"])


def test_a_file_of_another_syntax_may_be_imported_for_its_options() -> None:
    text = (
        'syntax = "proto3"; import "google/protobuf/descriptor.proto"; '
        "extend google.protobuf.FieldOptions { bool secret = 50000; } message M { string x = 1 [(secret) = true]; }"
    )
    assert 'x: Annotated[str, Field(number=1)] = ""' in imported({"t.proto": text})


# Where imports are looked up


def test_imports_start_where_the_package_says(tmp_path: Path) -> None:
    files = {
        "protos/shop/v1/stock.proto": 'syntax = "proto3"; package shop.v1; import "shop/v1/more.proto"; '
        "message Stock { More more = 1; }",
        "protos/shop/v1/more.proto": 'syntax = "proto3"; package shop.v1; message More {}',
        "flat/thing.proto": 'syntax = "proto3"; package shop.v1; message Thing {}',
    }
    write(tmp_path, files)
    stock = tmp_path / "protos/shop/v1/stock.proto"
    assert root_of(stock) == tmp_path / "protos"
    assert root_of(tmp_path / "flat/thing.proto") == tmp_path / "flat"
    compiled, names = compile_protos([stock], [])
    assert names == ["shop/v1/stock.proto"]
    assert [file.name for file in compiled.file] == ["shop/v1/more.proto", "shop/v1/stock.proto"]
