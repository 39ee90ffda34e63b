"""Changes to `.proto` files, prepared for a judge: one file and what is replaced in it, or two whole sets of files."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

Files = dict[str, str]

SHOP = """\
syntax = "proto3";
package shop.v1;
import "google/protobuf/empty.proto";
import "google/protobuf/timestamp.proto";
option go_package = "example.com/shop/v1;shopv1";
option java_package = "com.example.shop";

service Inventory {
  rpc Check(Query) returns (Stock);
  rpc Watch(Query) returns (stream Stock);
  rpc Load(stream Stock) returns (google.protobuf.Empty);
  rpc Find(Query) returns (Stock) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service Orders {
  rpc Place(Order) returns (Order);
}
message Query {
  string product_id = 1;
}
message Stock {
  reserved 90 to 99, 120;
  reserved "former", "earlier";
  string product_id = 1;
  int64 quantity = 2;
  optional int32 shelf = 3;
  repeated string tags = 4;
  map<string, int64> places = 5;
  State state = 6;
  google.protobuf.Timestamp seen = 7;
  bytes picture = 8;
  double weight = 9;
  oneof origin {
    string farm = 10;
    string factory = 11;
  }
  sint32 shift = 12;
  fixed32 code = 13;
  bool fresh = 14;
  Size size = 15;
  int64 serial = 16;
  fixed64 mark = 17;
  float ratio = 18;
  uint32 rank = 19;
}
message Order {
  message Item {
    string product_id = 1;
    enum Kind {
      KIND_UNSPECIFIED = 0;
      KIND_GIFT = 1;
    }
    Kind kind = 2;
  }
  string order_id = 1;
  repeated Item items = 2;
  Item first = 3;
}
message Size {
  int32 width = 1;
}
message Extent {
  int32 width = 1;
}
enum State {
  STATE_UNSPECIFIED = 0;
  STATE_FRESH = 1;
  STATE_STALE = 2;
  STATE_GONE = 3;
  reserved 20 to 29, 40;
  reserved "STATE_FORMER";
}
enum Condition {
  CONDITION_UNSPECIFIED = 0;
}
"""

LEGACY = """\
syntax = "proto2";
package legacy;
message Card {
  extensions 100 to 199;
  required string number = 1;
  optional int32 limit = 2 [default = 5];
  optional string owner = 3 [default = "nobody"];
  optional Color color = 4 [default = BLUE];
  repeated int32 marks = 5;
  optional int64 serial = 6 [jstype = JS_STRING];
  optional string note = 7 [ctype = CORD];
  optional group Detail = 8 {
    optional string text = 1;
  }
  optional bool valid = 9 [default = true];
  optional double rate = 10 [default = 1.5];
}
extend Card {
  optional string motto = 100;
  optional int32 rank = 101;
}
message Holder {
  extend Card {
    optional string holder = 102;
  }
}
enum Color {
  RED = 0;
  BLUE = 1;
}
"""

ALIASES = """\
syntax = "proto3";
package paint.v1;
enum Color {
  option allow_alias = true;
  COLOR_UNSPECIFIED = 0;
  COLOR_RED = 1;
  COLOR_CRIMSON = 1;
  COLOR_BLUE = 2;
  COLOR_AZURE = 2;
}
"""

LIBRARY = """\
syntax = "proto3";
package library.v1;
message Book {
  string title = 1;
}
enum Shelf {
  SHELF_UNSPECIFIED = 0;
}
service Desk {
  rpc Lend(Book) returns (Book);
}
"""

_NAMES = {"shop/v1/shop.proto": SHOP, "legacy.proto": LEGACY, "paint/v1/paint.proto": ALIASES}


@dataclass(frozen=True)
class Change:
    """One prepared change."""

    name: str
    old: Files
    new: Files = field(repr=False)
    edits: tuple[tuple[str, str], ...] = ()
    """What is replaced in SHOP, where it is one of that file."""


def _edit(name: str, *replaced: tuple[str, str], file: str = "shop/v1/shop.proto") -> Change:
    text = _NAMES[file]
    for was, now in replaced:
        assert text.count(was) == 1, f"{name}: {was!r} stands {text.count(was)} times in {file}"
        text = text.replace(was, now)
    return Change(name, {file: _NAMES[file]}, {file: text}, replaced if _NAMES[file] == SHOP else ())


def _legacy(name: str, *replaced: tuple[str, str]) -> Change:
    return _edit(name, *replaced, file="legacy.proto")


def _paint(name: str, *replaced: tuple[str, str]) -> Change:
    return _edit(name, *replaced, file="paint/v1/paint.proto")


def _typed(name: str, now: str, was: str = "  int64 quantity = 2;") -> Change:
    return _edit(name, (was, now))


def _piece(ctype: str) -> str:
    return f'syntax = "proto2";\nmessage A {{\n  optional string text = 1 [ctype = {ctype}];\n}}\n'


_BOOK = "library/v1/library.proto"
_ORDERS = "service Orders {\n  rpc Place(Order) returns (Order);\n}\n"
_ITEM = SHOP[SHOP.index("  message Item") : SHOP.index("  string order_id")]
_OTHER_LANGUAGES = "".join(
    f"option {option} = {value};\n"
    for option, value in {
        **dict.fromkeys(("java_multiple_files", "cc_generic_services", "java_generic_services"), "true"),
        "py_generic_services": "true",
        **dict.fromkeys(("java_outer_classname", "csharp_namespace", "objc_class_prefix", "php_class_prefix"), '"S"'),
        **dict.fromkeys(("php_namespace", "php_metadata_namespace", "ruby_package", "swift_prefix"), '"S"'),
    }.items()
)

CHANGES: tuple[Change, ...] = (
    # What must pass.
    _edit("nothing"),
    _edit("a comment", ("message Query {", "// Asks.\nmessage Query {")),
    _edit("a field is added", ("  uint32 rank = 19;", "  uint32 rank = 19;\n  string note = 21;")),
    _edit("an optional field is added", ("  uint32 rank = 19;", "  uint32 rank = 19;\n  optional int64 top = 21;")),
    _edit("a member of a oneof is added", ("string factory = 11;", "string factory = 11;\n    string sea = 21;")),
    _edit("a oneof is added", ("  uint32 rank = 19;", "  uint32 rank = 19;\n  oneof way { string by = 21; }")),
    _edit("a method is added", ("rpc Place(Order)", "rpc Cancel(Order) returns (Order);\n  rpc Place(Order)")),
    _edit(
        "a service is added", ("message Query {", "service More { rpc Go(Query) returns (Query); }\nmessage Query {")
    ),
    _edit("a message is added", ("message Query {", "message More {}\nmessage Query {")),
    _edit("a value is added", ("STATE_GONE = 3;", "STATE_GONE = 3;\n  STATE_LOST = 4;")),
    _edit("an enum is added", ("enum Condition", "enum Mood { MOOD_UNSPECIFIED = 0; }\nenum Condition")),
    _edit("more is reserved", ("reserved 90 to 99, 120;", "reserved 80 to 99, 120, 130;")),
    _edit("ranges are joined", ("reserved 90 to 99, 120;", "reserved 90 to 95, 96 to 120;")),
    _edit(
        "fields change places",
        ("  string product_id = 1;\n  int64 quantity = 2;\n", "  int64 quantity = 2;\n  string product_id = 1;\n"),
    ),
    _edit("a field is deprecated", ("int64 quantity = 2;", "int64 quantity = 2 [deprecated = true];")),
    _edit(
        "the derived name in JSON is written out",
        ("  int64 quantity = 2;", '  int64 quantity = 2 [json_name = "quantity"];'),
    ),
    # Fields.
    _edit("a field is removed", ("  int64 quantity = 2;\n", "")),
    _edit("a field is removed and its number reserved", ("  int64 quantity = 2;\n", "  reserved 2;\n")),
    _edit("a field is removed and its name reserved", ("  int64 quantity = 2;\n", '  reserved "quantity";\n')),
    _edit(
        "a field is removed and all reserved", ("  int64 quantity = 2;\n", '  reserved 2;\n  reserved "quantity";\n')
    ),
    _edit("a field is renamed", ("  int64 quantity = 2;", "  int64 amount = 2;")),
    _edit(
        "a field is renamed and keeps its name in JSON",
        ("  int64 quantity = 2;", '  int64 amount = 2 [json_name = "quantity"];'),
    ),
    _edit("a field gets a name in JSON", ("  int64 quantity = 2;", '  int64 quantity = 2 [json_name = "units"];')),
    _edit("a field gets another number", ("  int64 quantity = 2;", "  int64 quantity = 22;")),
    _edit(
        "two fields swap numbers",
        ("int32 shelf = 3;", "int32 shelf = 2;"),
        ("  int64 quantity = 2;", "  int64 quantity = 3;"),
    ),
    _edit(
        "a name is taken by another field",
        ("  int64 quantity = 2;", "  int64 old_quantity = 2;\n  string quantity = 21;"),
    ),
    _typed("int64 to int32", "  int32 quantity = 2;"),
    _typed("int64 to uint64", "  uint64 quantity = 2;"),
    _typed("int64 to sint64", "  sint64 quantity = 2;"),
    _typed("int64 to bool", "  bool quantity = 2;"),
    _typed("int64 to string", "  string quantity = 2;"),
    _typed("int64 to double", "  double quantity = 2;"),
    _typed("int64 to an enum", "  State quantity = 2;"),
    _typed("int64 to fixed64", "  fixed64 quantity = 2;"),
    _typed("bytes to string", "  string picture = 8;", "  bytes picture = 8;"),
    _edit("string to bytes", ("message Query {\n  string product_id", "message Query {\n  bytes product_id")),
    _typed("fixed32 to sfixed32", "  sfixed32 code = 13;", "  fixed32 code = 13;"),
    _typed("fixed32 to uint32", "  uint32 code = 13;", "  fixed32 code = 13;"),
    _typed("fixed64 to sfixed64", "  sfixed64 mark = 17;", "  fixed64 mark = 17;"),
    _typed("sint32 to sint64", "  sint64 shift = 12;", "  sint32 shift = 12;"),
    _typed("sint32 to int32", "  int32 shift = 12;", "  sint32 shift = 12;"),
    _typed("uint32 to int32", "  int32 rank = 19;", "  uint32 rank = 19;"),
    _typed("float to double", "  double ratio = 18;", "  float ratio = 18;"),
    _typed("bool to int32", "  int32 fresh = 14;", "  bool fresh = 14;"),
    _typed("an enum to int32", "  int32 state = 6;", "  State state = 6;"),
    _typed("an enum to another", "  Condition state = 6;", "  State state = 6;"),
    _typed("a message to another of the same form", "  Extent size = 15;", "  Size size = 15;"),
    _typed("a message to bytes", "  bytes size = 15;", "  Size size = 15;"),
    _typed("a timestamp to text", "  string seen = 7;", "  google.protobuf.Timestamp seen = 7;"),
    _edit(
        "an enum moves to one of the same name",
        (
            "  Kind kind = 2;\n  }",
            "  }\n  message Other {\n    enum Kind { KIND_UNSPECIFIED = 0; KIND_GIFT = 1; KIND_LOAN = 2; }\n  }",
        ),
        ("string product_id = 1;\n    enum", "string product_id = 1;\n    Other.Kind kind = 2;\n    enum"),
    ),
    _edit(
        "an enum moves to a smaller one of the same name",
        ("  Kind kind = 2;\n  }", "  }\n  message Other {\n    enum Kind { KIND_UNSPECIFIED = 0; }\n  }"),
        ("string product_id = 1;\n    enum", "string product_id = 1;\n    Other.Kind kind = 2;\n    enum"),
    ),
    # Cardinality.
    _typed("single to repeated", "  repeated int64 quantity = 2;"),
    _typed("single to optional", "  optional int64 quantity = 2;"),
    _typed("optional to single", "  int32 shelf = 3;", "  optional int32 shelf = 3;"),
    _typed("repeated to single", "  string tags = 4;", "  repeated string tags = 4;"),
    _typed("a message to a list of it", "  repeated Size size = 15;", "  Size size = 15;"),
    _typed(
        "a map to a list of its entries",
        "  message PlacesEntry { string key = 1; int64 value = 2; }\n  repeated PlacesEntry places = 5;",
        "  map<string, int64> places = 5;",
    ),
    _typed("a map of other values", "  map<string, string> places = 5;", "  map<string, int64> places = 5;"),
    _typed("a map of other keys", "  map<int32, int64> places = 5;", "  map<string, int64> places = 5;"),
    _edit("a map is removed", ("  map<string, int64> places = 5;\n", "")),
    _typed("a map is renamed", "  map<string, int64> spots = 5;", "  map<string, int64> places = 5;"),
    # Oneofs.
    _edit("a member of a oneof is removed", ("    string factory = 11;\n", "")),
    _edit(
        "a field moves into a oneof",
        ("  int64 quantity = 2;\n", ""),
        ("string factory = 11;", "string factory = 11;\n    int64 quantity = 2;"),
    ),
    _edit("a member moves out of its oneof", ("    string factory = 11;\n  }", "  }\n  string factory = 11;")),
    _edit("a oneof is renamed", ("oneof origin", "oneof source")),
    _edit(
        "a oneof is dissolved",
        (
            "  oneof origin {\n    string farm = 10;\n    string factory = 11;\n  }",
            "  string farm = 10;\n  string factory = 11;",
        ),
    ),
    _edit(
        "an optional field moves into a oneof",
        ("  optional int32 shelf = 3;\n", ""),
        ("string factory = 11;", "string factory = 11;\n    int32 shelf = 3;"),
    ),
    # Enums.
    _edit("a value is removed", ("  STATE_GONE = 3;\n", "")),
    _edit("a value is removed and its number reserved", ("  STATE_GONE = 3;\n", "  reserved 3;\n")),
    _edit("a value is removed and its name reserved", ("  STATE_GONE = 3;\n", '  reserved "STATE_GONE";\n')),
    _edit("a value is removed and all reserved", ("  STATE_GONE = 3;\n", '  reserved 3;\n  reserved "STATE_GONE";\n')),
    _edit("a value is renamed", ("STATE_GONE = 3;", "STATE_LOST = 3;")),
    _edit("a value gets another number", ("STATE_GONE = 3;", "STATE_GONE = 33;")),
    _edit("two values swap names", ("STATE_FRESH = 1;", "STATE_STALE = 1;"), ("STATE_STALE = 2;", "STATE_FRESH = 2;")),
    _edit("an enum is removed", ("enum Condition {\n  CONDITION_UNSPECIFIED = 0;\n}\n", "")),
    _edit("an enum no longer reserves a number", ("reserved 20 to 29, 40;", "reserved 20 to 29;")),
    _edit("an enum reserves a shorter range", ("reserved 20 to 29, 40;", "reserved 20 to 25, 40;")),
    _edit("an enum no longer reserves a name", ('  reserved "STATE_FORMER";\n', "")),
    _paint("an alias is added", ("COLOR_AZURE = 2;", "COLOR_AZURE = 2;\n  COLOR_NAVY = 2;")),
    _paint("an alias is removed", ("  COLOR_AZURE = 2;\n", "")),
    _paint("an alias is renamed", ("COLOR_AZURE = 2;", "COLOR_NAVY = 2;")),
    _paint(
        "a value with aliases is removed", ("  COLOR_BLUE = 2;\n  COLOR_AZURE = 2;\n", '  reserved "COLOR_BLUE";\n')
    ),
    # Messages.
    _edit("a message is removed", ("message Extent {\n  int32 width = 1;\n}\n", "")),
    _edit("a message is renamed", ("message Extent {", "message Range {")),
    _edit(
        "a nested enum is removed",
        ("    enum Kind {\n      KIND_UNSPECIFIED = 0;\n      KIND_GIFT = 1;\n    }\n    Kind kind = 2;\n", ""),
    ),
    _edit(
        "a nested message moves out",
        (
            _ITEM,
            "",
        ),
        ("message Order {", "message Item {\n  string product_id = 1;\n}\nmessage Order {"),
    ),
    _edit("a message no longer reserves a number", ("reserved 90 to 99, 120;", "reserved 90 to 99;")),
    _edit("a message reserves a shorter range", ("reserved 90 to 99, 120;", "reserved 90 to 95, 97 to 99, 120;")),
    _edit("a message no longer reserves its names", ('  reserved "former", "earlier";\n', "")),
    _edit("a reserved number is taken", ("reserved 90 to 99, 120;", "reserved 90 to 98, 120;\n  string back = 99;")),
    _edit(
        "the descriptor accessor is given up",
        ("message Size {", "message Size {\n  option no_standard_descriptor_accessor = true;"),
    ),
    # Services.
    _edit("a method is removed", ("  rpc Check(Query) returns (Stock);\n", "")),
    _edit("a method is renamed", ("rpc Check(", "rpc Look(")),
    _edit("a service is removed", (_ORDERS, "")),
    _edit("a service is renamed", ("service Orders", "service Sales")),
    _edit("a request changes its type", ("rpc Check(Query)", "rpc Check(Size)")),
    _edit("a response changes its type", ("rpc Check(Query) returns (Stock)", "rpc Check(Query) returns (Size)")),
    _edit(
        "a response becomes a stream", ("rpc Check(Query) returns (Stock)", "rpc Check(Query) returns (stream Stock)")
    ),
    _edit("a response is no stream any more", ("returns (stream Stock)", "returns (Stock)")),
    _edit("a request becomes a stream", ("rpc Check(Query)", "rpc Check(stream Query)")),
    _edit("a request is no stream any more", ("rpc Load(stream Stock)", "rpc Load(Stock)")),
    _edit("a method is no longer idempotent", (" { option idempotency_level = NO_SIDE_EFFECTS; }", ";")),
    _edit(
        "a method becomes idempotent",
        (
            "rpc Check(Query) returns (Stock);",
            "rpc Check(Query) returns (Stock) { option idempotency_level = IDEMPOTENT; }",
        ),
    ),
    # Files.
    _edit("the package changes", ("package shop.v1;", "package shop.v2;")),
    _edit("the package of Go changes", ("shop/v1;shopv1", "shop/v2;shopv2")),
    _edit("the package of Java is removed", ('option java_package = "com.example.shop";\n', "")),
    _edit(
        "options of other languages are set",
        (
            "option java_package",
            f"{_OTHER_LANGUAGES}option java_package",
        ),
    ),
    _edit("it is optimized for size", ("option java_package", "option optimize_for = CODE_SIZE;\noption java_package")),
    _edit("arenas are switched off", ("option java_package", "option cc_enable_arenas = false;\noption java_package")),
    Change("a file is removed", {"shop/v1/shop.proto": SHOP, _BOOK: LIBRARY}, {"shop/v1/shop.proto": SHOP}),
    Change("a file is renamed", {_BOOK: LIBRARY}, {"library/v1/books.proto": LIBRARY}),
    Change("a file is added", {_BOOK: LIBRARY}, {_BOOK: LIBRARY, "shop/v1/shop.proto": SHOP}),
    Change(
        "everything moves to a second file of the package",
        {_BOOK: LIBRARY},
        {_BOOK: 'syntax = "proto3";\npackage library.v1;\n', "library/v1/books.proto": LIBRARY},
    ),
    Change(
        "the syntax changes to proto2",
        {_BOOK: LIBRARY},
        {_BOOK: LIBRARY.replace("proto3", "proto2").replace("  string title", "  optional string title")},
    ),
    Change(
        "the syntax changes to proto3",
        {_BOOK: LIBRARY.replace("proto3", "proto2").replace("  string title", "  optional string title")},
        {_BOOK: LIBRARY},
    ),
    # proto2.
    Change("a piece of text becomes text", {"a.proto": _piece("STRING_PIECE")}, {"a.proto": _piece("STRING")}),
    Change("a text becomes a piece of it", {"a.proto": _piece("STRING")}, {"a.proto": _piece("STRING_PIECE")}),
    _legacy(
        "a required field is added",
        ("repeated int32 marks = 5;", "repeated int32 marks = 5;\n  required string more = 11;"),
    ),
    _legacy("a required field is removed", ("  required string number = 1;\n", "")),
    _legacy("a required field becomes optional", ("required string number", "optional string number")),
    _legacy("a default changes", ("[default = 5]", "[default = 6]")),
    _legacy("a default is removed", (' [default = "nobody"]', "")),
    _legacy("a default of an enum changes", (" [default = BLUE]", " [default = RED]")),
    _legacy("a default of a truth value changes", ("[default = true]", "[default = false]")),
    _legacy("a default is written otherwise", ("[default = 1.5]", "[default = 15e-1]")),
    _legacy("a type changes and its default stays", ("optional int32 limit", "optional int64 limit")),
    _legacy("jstype changes", ("jstype = JS_STRING", "jstype = JS_NUMBER")),
    _legacy("ctype changes", ("ctype = CORD", "ctype = STRING")),
    _legacy("texts are checked in Java", ("package legacy;", "package legacy;\noption java_string_check_utf8 = true;")),
    _legacy("a range of extensions is removed", ("extensions 100 to 199;", "extensions 100 to 102;")),
    _legacy("an extension is removed", ("  optional string motto = 100;\n", "")),
    _legacy("an extension is renamed", ("optional string motto", "optional string slogan")),
    _legacy("an extension changes its type", ("optional int32 rank = 101", "optional string rank = 101")),
    _legacy("a nested extension is removed", ("  extend Card {\n    optional string holder = 102;\n  }\n", "")),
    _legacy("a group is removed", ("  optional group Detail = 8 {\n    optional string text = 1;\n  }\n", "")),
)
"""Every one is shown to `buf breaking`; what it says of each stands in evolution_verdicts.json."""


def together(count: int, seed: int) -> list[Change]:
    """Several of the changes to SHOP at once, *count* times, as far as they do not get into each other's way."""
    chance = random.Random(seed)
    edits = [change for change in CHANGES if change.edits]
    made = []
    for _ in range(count):
        text, names = SHOP, []
        for change in chance.sample(edits, chance.randint(2, 6)):
            if all(text.count(was) == 1 for was, _ in change.edits):
                names.append(change.name)
                for was, now in change.edits:
                    text = text.replace(was, now)
        made.append(Change(", ".join(names), {"shop/v1/shop.proto": SHOP}, {"shop/v1/shop.proto": text}))
    return made
