"""Two changes of a contract in Python for each rule beside protobuf's: one that breaks it, and one that does not."""

from __future__ import annotations

from dataclasses import dataclass

SHOP = """\
from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated

from polywire.contract import Contract, Field, Int32, Message, enum_form, get, patch, post, put, rpc, task
from polywire.errors import Aborted, FailedPrecondition, NotFound


class State(enum.Enum):
    OPEN = "open"
    SHUT = "shut"


class Card(Message, tag="card"):
    number: str


class Cash(Message, tag="cash"):
    amount: int = 0


class Address(Message):
    street: str
    city: str = ""


class Find(Message):
    shop_id: Annotated[str, Field(number=1)]
    limit: Annotated[Int32, Field(number=2, ge=1, le=100)] = 20
    tags: Annotated[list[str], Field(number=3)] = []
    state: Annotated[State | None, Field(number=4)] = None
    tenant: Annotated[str, Field(number=5)] = ""
    near: Annotated[Address | None, Field(number=6)] = None


class Shop(Message, reserved=("former",)):
    shop_id: Annotated[str, Field(number=1)]
    name: Annotated[str, Field(number=2, max_length=40)]
    visits: Annotated[int, Field(number=3)] = 0
    floor: Annotated[Int32 | None, Field(number=4)] = None
    state: Annotated[State | None, Field(number=5)] = None
    note: Annotated[str, Field(number=6)] = ""
    opened: Annotated[datetime | None, Field(number=7)] = None
    version: Annotated[str, Field(number=8)] = ""


class Order(Message):
    order_id: Annotated[str, Field(number=1)] = ""
    item: Annotated[str, Field(number=2, max_length=40)] = "tea"
    count: Annotated[Int32, Field(number=3, ge=1, le=10)] = 1
    payment: Annotated[Card | Cash | None, Field(numbers=(4, 5))] = None
    to: Annotated[Address | None, Field(number=6)] = None
    remark: Annotated[str | None, Field(number=7)] = None
    state: Annotated[State, Field(number=8)] = State.OPEN
    gift: Annotated[bool, Field(number=9)] = False


class Closed(FailedPrecondition):
    until: str = ""


class Unsent(NotFound):
    pass


class Gone(NotFound, http_status=410):
    where: Annotated[str, Field(max_length=9)] = ""


class Reminder(Message):
    reminder_id: str
    text: Annotated[str, Field(max_length=60)] = "soon"


class Sent(Message):
    times: int


class Shops(Contract, package="town.v1", raises=(Unsent,)):
    @rpc(get("/shops/{shop_id}", headers={"tenant": "X-Tenant"}, response_headers={"version": "ETag"}), idempotent=True)
    async def find(self, request: Find) -> Shop:
        raise NotImplementedError

    @rpc(post("/orders", status=201, location="/orders/{order_id}"), put("/orders/{order_id}"), idempotent=True)
    async def order(self, request: Order) -> Order:
        raise NotImplementedError

    @rpc(patch("/orders/{order_id}/to", body="to"))
    async def send(self, request: Order) -> Order:
        raise NotImplementedError

    @rpc(post("/orders/{order_id}/close", body=None), raises=(Closed, Gone))
    async def close(self, request: Order) -> None:
        raise NotImplementedError

    @rpc(get("/shops/{shop_id}/feed"))
    def feed(self, request: Find) -> AsyncIterator[Shop]:
        raise NotImplementedError

    @task(queue="reminders")
    async def remind(self, reminder: Reminder) -> Sent:
        raise NotImplementedError

    @task
    async def sweep(self) -> None:
        raise NotImplementedError
"""


Edit = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """A change to SHOP, and what it breaks beside protobuf: `RULE where`, sorted."""

    name: str
    edits: tuple[Edit, ...]
    breaks: tuple[str, ...] = ()
    base: tuple[Edit, ...] = ()
    """Edits that hold before the change."""

    @property
    def old(self) -> str:
        return edited(SHOP, self.base)

    @property
    def new(self) -> str:
        return edited(self.old, self.edits)


def edited(text: str, edits: tuple[Edit, ...]) -> str:
    for was, now in edits:
        assert text.count(was) == 1, f"{was!r} stands {text.count(was)} times"
        text = text.replace(was, now)
    return text


_VISITS = "visits: Annotated[int, Field(number=3)] = 0"
_NAME = "name: Annotated[str, Field(number=2, max_length=40)]"
_ITEM = 'item: Annotated[str, Field(number=2, max_length=40)] = "tea"'
_COUNT = "count: Annotated[Int32, Field(number=3, ge=1, le=10)] = 1"
_GIFT = "    gift: Annotated[bool, Field(number=9)] = False\n"
_NOTE = '    note: Annotated[str, Field(number=6)] = ""\n'
_FIND = 'get("/shops/{shop_id}", headers={"tenant": "X-Tenant"}, response_headers={"version": "ETag"})'
_LIMIT = "limit: Annotated[Int32, Field(number=2, ge=1, le=100)] = 20"

PAIRS: dict[str, tuple[tuple[Case, ...], tuple[Case, ...]]] = {
    "PROTOJSON_FIELD_NO_DELETE": (
        (
            Case(
                "renamed",
                ((_VISITS, "visitors: Annotated[int, Field(number=3)] = 0"),),
                (
                    "PROTOJSON_FIELD_NO_DELETE town.v1.Shop.visitors",
                    "REST_RESPONSE_FIELD_NO_DELETE town.v1.Shop.visits",
                ),
            ),
            Case(
                "removed",
                ((_NOTE, ""),),
                ("PROTOJSON_FIELD_NO_DELETE town.v1.Shop.note", "REST_RESPONSE_FIELD_NO_DELETE town.v1.Shop.note"),
            ),
        ),
        (
            Case("renamed in Python alone", ((_VISITS, 'seen: Annotated[int, Field(number=3, name="visits")] = 0'),)),
            Case("removed and reserved", ((_NOTE, ""), ('reserved=("former",)', 'reserved=("former", "note", 6)'))),
            Case(
                "renamed and called in ProtoJSON as before",
                ((_VISITS, 'visitors: Annotated[int, Field(number=3, json_name="visits")] = 0'),),
                ("REST_RESPONSE_FIELD_NO_DELETE town.v1.Shop.visits",),
            ),
        ),
    ),
    "PROTOJSON_FIELD_SAME_FORM": (
        (
            Case(
                "a number becomes text, being wider",
                (("floor: Annotated[Int32 | None", "floor: Annotated[int | None"),),
                ("PROTOJSON_FIELD_SAME_FORM town.v1.Shop.floor", "REST_RESPONSE_FIELD_SAME_TYPE town.v1.Shop.floor"),
            ),
        ),
        (
            Case(
                "a number of the same width",
                ((_VISITS, _VISITS.replace("int,", "SInt64,")), ("Int32, M", "Int32, SInt64, M")),
            ),
        ),
    ),
    "PROTOJSON_FIELD_SAME_PRESENCE": (
        (
            Case(
                "zero becomes None",
                ((_VISITS, "visits: Annotated[int | None, Field(number=3)] = None"),),
                (
                    "PROTOJSON_FIELD_SAME_PRESENCE town.v1.Shop.visits",
                    "REST_RESPONSE_FIELD_NULLABLE town.v1.Shop.visits",
                ),
            ),
            Case(
                "zero gets another default",
                ((_VISITS, _VISITS.replace("= 0", "= 1")),),
                ("PROTOJSON_FIELD_SAME_PRESENCE town.v1.Shop.visits",),
            ),
        ),
        (Case("zero is said to be the default", ((_NAME, f'{_NAME} = ""'),)),),
    ),
    "PROTOJSON_FIELD_SAME_ONEOF": (
        (
            Case(
                "a message joins a union",
                (
                    (
                        "payment: Annotated[Card | Cash | None, Field(numbers=(4, 5))]",
                        "payment: Annotated[Card | Cash | Home | None, "
                        "Field(numbers=(4, 5, 6), names=('card', 'cash', 'to'))]",
                    ),
                    ("    to: Annotated[Address | None, Field(number=6)] = None\n", ""),
                    (
                        "class Find(",
                        'class Home(Message, tag="home"):\n    street: str\n    city: str = ""\n\n\nclass Find(',
                    ),
                    (", patch, post", ", post"),
                    ('    @rpc(patch("/orders/{order_id}/to", body="to"))\n', "    @rpc\n"),
                ),
                (
                    "PROTOJSON_FIELD_SAME_ONEOF town.v1.Order.card",
                    "PROTOJSON_FIELD_SAME_ONEOF town.v1.Order.cash",
                    "PROTOJSON_FIELD_SAME_ONEOF town.v1.Order.to",
                    "REST_QUERY_PARAMETER_NO_DELETE POST /orders/{order_id}/close",
                    "REST_QUERY_PARAMETER_NO_DELETE POST /orders/{order_id}/close",
                    "REST_REQUEST_FIELD_NO_DELETE town.v1.Order.to",
                    "REST_RESPONSE_FIELD_NO_DELETE town.v1.Order.to",
                    "REST_ROUTE_NO_DELETE PATCH /orders/{order_id}/to",
                ),
            ),
        ),
        (
            Case(
                "a union gets a new member",
                (
                    (
                        "payment: Annotated[Card | Cash | None, Field(numbers=(4, 5))]",
                        "payment: Annotated[Card | Cash | Bank | None, Field(numbers=(4, 5, 14))]",
                    ),
                    ("class Find(", 'class Bank(Message, tag="bank"):\n    iban: str\n\n\nclass Find('),
                ),
            ),
        ),
    ),
    "PROTOJSON_ENUM_VALUE_NO_DELETE": (
        (
            Case(
                "a member is renamed",
                (('    SHUT = "shut"', '    CLOSED = "shut"'),),
                ("PROTOJSON_ENUM_VALUE_NO_DELETE town.v1.State.STATE_SHUT",),
            ),
        ),
        (
            Case("a member is added", (('    SHUT = "shut"', '    SHUT = "shut"\n    MOVED = "moved"'),)),
            Case(
                "a member is renamed in Python alone",
                (
                    ('    SHUT = "shut"', '    CLOSED = "shut"'),
                    ("class State(", '@enum_form(names={"CLOSED": "STATE_SHUT"})\nclass State('),
                ),
            ),
        ),
    ),
    "REST_ROUTE_NO_DELETE": (
        (
            Case(
                "another path",
                (('get("/shops/{shop_id}/feed")', 'get("/shops/{shop_id}/news")'),),
                ("REST_ROUTE_NO_DELETE GET /shops/{shop_id}/feed",),
            ),
            Case(
                "another verb",
                (('put("/orders/{order_id}")', 'patch("/orders/{order_id}")'),),
                ("REST_ROUTE_NO_DELETE PUT /orders/{order_id}",),
            ),
            Case(
                "a prefix",
                (('package="town.v1"', 'package="town.v1", prefix="/api"'),),
                (
                    "REST_ROUTE_NO_DELETE GET /shops/{shop_id}",
                    "REST_ROUTE_NO_DELETE GET /shops/{shop_id}/feed",
                    "REST_ROUTE_NO_DELETE PATCH /orders/{order_id}/to",
                    "REST_ROUTE_NO_DELETE POST /orders",
                    "REST_ROUTE_NO_DELETE POST /orders/{order_id}/close",
                    "REST_ROUTE_NO_DELETE PUT /orders/{order_id}",
                ),
            ),
        ),
        (
            Case(
                "one more route",
                (('get("/shops/{shop_id}/feed")', 'get("/shops/{shop_id}/feed"), get("/feeds/{shop_id}")'),),
            ),
            Case(
                "a wider path",
                (('get("/feeds/{shop_id}")', 'get("/feeds/{shop_id=**}")'),),
                base=(('get("/shops/{shop_id}/feed")', 'get("/feeds/{shop_id}")'),),
            ),
            Case("another method answers", (("async def send(", "async def forward("),)),
        ),
    ),
    "REST_ROUTE_SAME_STREAMING": (
        (
            Case(
                "one answer instead of a stream",
                (
                    (
                        "    def feed(self, request: Find) -> AsyncIterator[Shop]:",
                        "    async def feed(self, request: Find) -> Shop:",
                    ),
                ),
                ("REST_ROUTE_SAME_STREAMING GET /shops/{shop_id}/feed",),
            ),
        ),
        (
            Case(
                "another timeout",
                (('@rpc(get("/shops/{shop_id}/feed"))', '@rpc(get("/shops/{shop_id}/feed"), timeout=5)'),),
            ),
        ),
    ),
    "REST_PATH_PARAMETER_SAME_TYPE": (
        (
            Case(
                "text becomes a number",
                (
                    (
                        "class Find(Message):\n    shop_id: Annotated[str",
                        "class Find(Message):\n    shop_id: Annotated[int",
                    ),
                ),
                (
                    "PROTOJSON_FIELD_SAME_FORM town.v1.Find.shop_id",
                    "REST_PATH_PARAMETER_SAME_TYPE GET /shops/{shop_id}",
                    "REST_PATH_PARAMETER_SAME_TYPE GET /shops/{shop_id}/feed",
                ),
            ),
        ),
        (
            Case(
                "a number becomes text",
                (
                    (
                        "class Find(Message):\n    shop_id: Annotated[int",
                        "class Find(Message):\n    shop_id: Annotated[str",
                    ),
                ),
                ("PROTOJSON_FIELD_SAME_FORM town.v1.Find.shop_id",),
                base=(
                    (
                        "class Find(Message):\n    shop_id: Annotated[str",
                        "class Find(Message):\n    shop_id: Annotated[int",
                    ),
                ),
            ),
            Case(
                "the field has another name",
                (
                    ("class Find(Message):\n    shop_id", "class Find(Message):\n    shop"),
                    ('get("/shops/{shop_id}", headers', 'get("/shops/{shop}", headers'),
                    ('get("/shops/{shop_id}/feed")', 'get("/shops/{shop}/feed")'),
                ),
                ("PROTOJSON_FIELD_NO_DELETE town.v1.Find.shop",),
            ),
        ),
    ),
    "REST_QUERY_PARAMETER_NO_DELETE": (
        (
            Case(
                "from the query into the body",
                (('post("/orders/{order_id}/close", body=None)', 'post("/orders/{order_id}/close", body="to")'),),
                (
                    "REST_BODY_SAME_FIELD POST /orders/{order_id}/close",
                    "REST_QUERY_PARAMETER_NO_DELETE POST /orders/{order_id}/close",
                    "REST_QUERY_PARAMETER_NO_DELETE POST /orders/{order_id}/close",
                ),
            ),
            Case(
                "from the query into a header",
                ((_FIND, _FIND.replace('"X-Tenant"', '"X-Tenant", "limit": "X-Limit"')),),
                ("REST_QUERY_PARAMETER_NO_DELETE GET /shops/{shop_id}",),
            ),
        ),
        (Case("one more parameter", ((_LIMIT, f"{_LIMIT}\n    offset: Annotated[int, Field(number=12)] = 0"),)),),
    ),
    "REST_QUERY_PARAMETER_SAME_TYPE": (
        (
            Case(
                "a list becomes a single value",
                (("tags: Annotated[list[str], Field(number=3)] = []", 'tags: Annotated[str, Field(number=3)] = ""'),),
                (
                    "CONTRACT_FIELD_SAME_DEFAULT town.v1.Find.tags",
                    "PROTOJSON_FIELD_SAME_FORM town.v1.Find.tags",
                    "REST_QUERY_PARAMETER_SAME_TYPE GET /shops/{shop_id}",
                    "REST_QUERY_PARAMETER_SAME_TYPE GET /shops/{shop_id}/feed",
                ),
            ),
        ),
        (
            Case(
                "a wider number",
                ((_LIMIT, "limit: Annotated[int, Field(number=2, ge=1, le=100)] = 20"),),
                ("PROTOJSON_FIELD_SAME_FORM town.v1.Find.limit",),
            ),
        ),
    ),
    "REST_HEADER_NO_DELETE": (
        (
            Case(
                "from a header into the query",
                ((_FIND, _FIND.replace('headers={"tenant": "X-Tenant"}, ', "")),),
                ("REST_HEADER_NO_DELETE GET /shops/{shop_id}",),
            ),
        ),
        (Case("another spelling of the same header", ((_FIND, _FIND.replace("X-Tenant", "x-tenant")),)),),
    ),
    "REST_BODY_SAME_FIELD": (
        (
            Case(
                "the message instead of a field",
                ((', body="to"', ""),),
                (
                    "REST_BODY_SAME_FIELD PATCH /orders/{order_id}/to",
                    *["REST_QUERY_PARAMETER_NO_DELETE PATCH /orders/{order_id}/to"] * 6,
                ),
            ),
        ),
        (
            Case(
                "what was meant is written out", (('put("/orders/{order_id}")', 'put("/orders/{order_id}", body="*")'),)
            ),
        ),
    ),
    "REST_REQUEST_FIELD_NO_DELETE": (
        (
            Case(
                "removed",
                ((_GIFT, ""),),
                (
                    "PROTOJSON_FIELD_NO_DELETE town.v1.Order.gift",
                    "REST_QUERY_PARAMETER_NO_DELETE PATCH /orders/{order_id}/to",
                    "REST_QUERY_PARAMETER_NO_DELETE POST /orders/{order_id}/close",
                    "REST_REQUEST_FIELD_NO_DELETE town.v1.Order.gift",
                    "REST_RESPONSE_FIELD_NO_DELETE town.v1.Order.gift",
                ),
            ),
        ),
        (
            Case(
                "removed and reserved",
                ((_GIFT, ""), ("class Order(Message)", 'class Order(Message, reserved=(9, "gift"))')),
                (
                    "REST_QUERY_PARAMETER_NO_DELETE PATCH /orders/{order_id}/to",
                    "REST_QUERY_PARAMETER_NO_DELETE POST /orders/{order_id}/close",
                ),
            ),
        ),
    ),
    "REST_REQUEST_FIELD_SAME_TYPE": (
        (
            Case(
                "text becomes a number",
                (("    city: str = ", "    city: int = 0  # "),),
                (
                    "CONTRACT_FIELD_SAME_DEFAULT town.v1.Address.city",
                    "PROTOJSON_FIELD_SAME_FORM town.v1.Address.city",
                    "REST_QUERY_PARAMETER_SAME_TYPE GET /shops/{shop_id}",
                    "REST_QUERY_PARAMETER_SAME_TYPE GET /shops/{shop_id}/feed",
                    "REST_QUERY_PARAMETER_SAME_TYPE POST /orders/{order_id}/close",
                    "REST_REQUEST_FIELD_SAME_TYPE town.v1.Address.city",
                    "REST_RESPONSE_FIELD_SAME_TYPE town.v1.Address.city",
                ),
            ),
        ),
        (
            Case(
                "a request may hold more",
                (("amount: int = 0", "amount: float = 0.0"),),
                (
                    "CONTRACT_FIELD_SAME_DEFAULT town.v1.Cash.amount",
                    "PROTOJSON_FIELD_SAME_FORM town.v1.Cash.amount",
                    "REST_RESPONSE_FIELD_SAME_TYPE town.v1.Cash.amount",
                ),
            ),
        ),
    ),
    "REST_REQUEST_FIELD_REQUIRED": (
        (
            Case(
                "a new field without a default",
                ((_GIFT, _GIFT + "    size: Annotated[str, Field(number=12)]\n"),),
                ("REST_REQUEST_FIELD_REQUIRED town.v1.Order.size",),
            ),
            Case(
                "a new parameter without a default",
                ((_LIMIT, f"{_LIMIT}\n    town: Annotated[str, Field(number=12)]"),),
                ("REST_REQUEST_FIELD_REQUIRED town.v1.Find.town",),
            ),
            Case(
                "a default is taken away",
                ((_GIFT, _GIFT.replace(" = False", "")),),
                ("REST_REQUEST_FIELD_REQUIRED town.v1.Order.gift",),
            ),
        ),
        (
            Case(
                "a new field with a default", ((_GIFT, _GIFT + '    size: Annotated[str, Field(number=12)] = "M"\n'),)
            ),
            Case("a new field of an answer", ((_NOTE, _NOTE + "    size: Annotated[str, Field(number=12)]\n"),)),
        ),
    ),
    "REST_REQUEST_FIELD_NULLABLE": (
        (
            Case(
                "None is no longer taken",
                (
                    (
                        "remark: Annotated[str | None, Field(number=7)] = None",
                        'remark: Annotated[str, Field(number=7)] = ""',
                    ),
                ),
                (
                    "CONTRACT_FIELD_SAME_DEFAULT town.v1.Order.remark",
                    "PROTOJSON_FIELD_SAME_PRESENCE town.v1.Order.remark",
                    "REST_REQUEST_FIELD_NULLABLE town.v1.Order.remark",
                ),
            ),
        ),
        (
            Case(
                "None is no longer answered",
                (
                    (
                        "floor: Annotated[Int32 | None, Field(number=4)] = None",
                        "floor: Annotated[Int32, Field(number=4)] = 0",
                    ),
                ),
                ("PROTOJSON_FIELD_SAME_PRESENCE town.v1.Shop.floor",),
            ),
        ),
    ),
    "REST_RESPONSE_FIELD_NO_DELETE": (
        (
            Case(
                "removed where clients need it, though reserved",
                ((f"    {_NAME}\n", ""), ('reserved=("former",)', 'reserved=("former", "name", 2)')),
                ("REST_RESPONSE_FIELD_NO_DELETE town.v1.Shop.name",),
            ),
            Case(
                "removed from an error",
                (('    until: str = ""', "    pass"),),
                (
                    "PROTOJSON_FIELD_NO_DELETE town.v1.Closed.until",
                    "REST_RESPONSE_FIELD_NO_DELETE town.v1.Closed.until",
                ),
            ),
        ),
        (
            Case(
                "removed and reserved where clients have a default",
                ((_NOTE, ""), ('reserved=("former",)', 'reserved=("former", "note", 6)')),
            ),
        ),
    ),
    "REST_RESPONSE_FIELD_SAME_TYPE": (
        (
            Case(
                "a field of an error",
                (('    until: str = ""', "    until: Int32 = 0"),),
                (
                    "PROTOJSON_FIELD_SAME_FORM town.v1.Closed.until",
                    "REST_RESPONSE_FIELD_SAME_TYPE town.v1.Closed.until",
                ),
            ),
            Case(
                "an answer may hold more",
                (("floor: Annotated[Int32 | None", "floor: Annotated[float | None"),),
                ("PROTOJSON_FIELD_SAME_FORM town.v1.Shop.floor", "REST_RESPONSE_FIELD_SAME_TYPE town.v1.Shop.floor"),
            ),
            Case(
                "a union instead of text",
                ((_NOTE, "    note: Annotated[Card | Cash | None, Field(numbers=(16, 17))] = None\n"),),
                (
                    "PROTOJSON_FIELD_NO_DELETE town.v1.Shop.note",
                    "REST_RESPONSE_FIELD_NULLABLE town.v1.Shop.note",
                    "REST_RESPONSE_FIELD_SAME_TYPE town.v1.Shop.note",
                ),
            ),
        ),
        (
            Case(
                "a time where there was text",
                (("opened: Annotated[str | None", "opened: Annotated[datetime | None"),),
                ("PROTOJSON_FIELD_SAME_FORM town.v1.Shop.opened",),
                base=(("opened: Annotated[datetime | None", "opened: Annotated[str | None"),),
            ),
        ),
    ),
    "REST_RESPONSE_FIELD_NULLABLE": (
        (
            Case(
                "an answer may have None",
                ((_NOTE, "    note: Annotated[str | None, Field(number=6)] = None\n"),),
                ("PROTOJSON_FIELD_SAME_PRESENCE town.v1.Shop.note", "REST_RESPONSE_FIELD_NULLABLE town.v1.Shop.note"),
            ),
        ),
        (
            Case(
                "a request may have None",
                (
                    (
                        'tenant: Annotated[str, Field(number=5)] = ""',
                        "tenant: Annotated[str | None, Field(number=5)] = None",
                    ),
                ),
                (
                    "CONTRACT_FIELD_SAME_DEFAULT town.v1.Find.tenant",
                    "PROTOJSON_FIELD_SAME_PRESENCE town.v1.Find.tenant",
                ),
            ),
        ),
    ),
    "REST_RESPONSE_SAME_BODY": (
        (
            Case(
                "nothing is answered any more",
                (("async def send(self, request: Order) -> Order:", "async def send(self, request: Order) -> None:"),),
                ("REST_RESPONSE_SAME_BODY PATCH /orders/{order_id}/to", "REST_STATUS_SAME PATCH /orders/{order_id}/to"),
            ),
        ),
        (Case("one more field is answered", ((_NOTE, _NOTE + '    hours: Annotated[str, Field(number=12)] = ""\n'),)),),
    ),
    "REST_STATUS_SAME": (
        (Case("another success", (("status=201, ", ""),), ("REST_STATUS_SAME POST /orders",)),),
        (Case("the status is written out", (('put("/orders/{order_id}")', 'put("/orders/{order_id}", status=200)'),)),),
    ),
    "REST_RESPONSE_HEADER_NO_DELETE": (
        (
            Case(
                "no Location",
                ((', location="/orders/{order_id}"', ""),),
                ("REST_RESPONSE_HEADER_NO_DELETE POST /orders",),
            ),
            Case(
                "no ETag",
                ((', response_headers={"version": "ETag"}', ""),),
                ("REST_RESPONSE_HEADER_NO_DELETE GET /shops/{shop_id}",),
            ),
        ),
        (Case("one more header", (('{"version": "ETag"}', '{"version": "ETag", "name": "X-Name"}'),)),),
    ),
    "REST_ENUM_VALUE_NO_DELETE": (
        (
            Case(
                "another value for a member",
                (('    SHUT = "shut"', '    SHUT = "closed"'),),
                ("REST_ENUM_VALUE_NO_DELETE town.v1.State.SHUT",),
            ),
        ),
        (Case("a member is added", (('    SHUT = "shut"', '    SHUT = "shut"\n    MOVED = "moved"'),)),),
    ),
    "REST_ONEOF_SAME_TAGS": (
        (
            Case(
                "another tag",
                (
                    ('class Cash(Message, tag="cash")', 'class Cash(Message, tag="coins")'),
                    ("Field(numbers=(4, 5))", 'Field(numbers=(4, 5), names=("card", "cash"))'),
                ),
                ("REST_ONEOF_SAME_TAGS town.v1.Order.payment",),
            ),
            Case(
                "another name of the tag",
                (
                    ('class Cash(Message, tag="cash")', 'class Cash(Message, tag="cash", tag_field="kind")'),
                    ('class Card(Message, tag="card")', 'class Card(Message, tag="card", tag_field="kind")'),
                ),
                ("REST_ONEOF_SAME_TAGS town.v1.Order.payment",),
            ),
        ),
        (
            Case(
                "another class of the same tag",
                (
                    ('class Cash(Message, tag="cash")', 'class Coins(Message, tag="cash", name="Cash")'),
                    ("[Card | Cash |", "[Card | Coins |"),
                ),
            ),
        ),
    ),
    "REST_ERROR_SAME_STATUS": (
        (Case("no status of its own", ((", http_status=410", ""),), ("REST_ERROR_SAME_STATUS town.v1.Gone",)),),
        (
            Case(
                "the status is written out",
                (("class Closed(FailedPrecondition)", "class Closed(FailedPrecondition, http_status=400)"),),
            ),
        ),
    ),
    "CONTRACT_ERROR_NO_DELETE": (
        (
            Case(
                "no longer raised",
                (("raises=(Closed, Gone)", "raises=(Gone,)"),),
                ("CONTRACT_ERROR_NO_DELETE town.v1.Shops/Close",),
            ),
        ),
        (Case("raised by one more", (('body="to")', 'body="to"), raises=(Closed,)'),)),),
    ),
    "CONTRACT_ERROR_SAME_CODE": (
        (
            Case(
                "another code",
                (("class Closed(FailedPrecondition)", "class Closed(Aborted)"),),
                ("CONTRACT_ERROR_SAME_CODE town.v1.Closed", "REST_ERROR_SAME_STATUS town.v1.Closed"),
            ),
        ),
        (
            Case("a field more", (('    until: str = ""', '    until: str = ""\n    why: str = ""'),)),
            Case(
                "a looser limit of a field",
                (("Field(max_length=9)", "Field(max_length=90)"),),
                ("CONTRACT_RESPONSE_LIMITS town.v1.Gone.where",),
            ),
        ),
    ),
    "CONTRACT_TASK_NO_DELETE": (
        (
            Case(
                "a task is gone",
                (("    @task\n    async def sweep(self) -> None:\n        raise NotImplementedError\n", ""),),
                ("CONTRACT_TASK_NO_DELETE town.v1.Shops/Sweep",),
            ),
            Case("renamed", (("def sweep(", "def clean("),), ("CONTRACT_TASK_NO_DELETE town.v1.Shops/Sweep",)),
        ),
        (
            Case(
                "renamed in Python alone",
                (("@task\n    async def sweep(", '@task(name="Sweep")\n    async def clean('),),
            ),
        ),
    ),
    "CONTRACT_TASK_SAME_QUEUE": (
        (
            Case(
                "another queue",
                (('queue="reminders"', 'queue="mails"'),),
                ("CONTRACT_TASK_SAME_QUEUE town.v1.Shops/Remind",),
            ),
            Case(
                "no longer that of the contract",
                (("@task\n", '@task(queue="sweeping")\n'),),
                ("CONTRACT_TASK_SAME_QUEUE town.v1.Shops/Sweep",),
            ),
        ),
        (Case("the queue is written out", (("@task\n", '@task(queue="town.v1.Shops")\n'),)),),
    ),
    "CONTRACT_TASK_SAME_BODY": (
        (
            Case(
                "it carries a message now",
                (("def sweep(self)", "def sweep(self, reminder: Reminder)"),),
                ("CONTRACT_TASK_SAME_BODY town.v1.Shops/Sweep",),
            ),
            Case(
                "its result is gone",
                (("-> Sent:", "-> None:"),),
                ("CONTRACT_TASK_SAME_BODY town.v1.Shops/Remind",),
            ),
            Case(
                "a field of another type",
                (("    reminder_id: str", "    reminder_id: int"),),
                ("CONTRACT_TASK_SAME_BODY town.v1.Reminder.reminder_id",),
            ),
            Case(
                "a field without a default",
                (("    reminder_id: str", "    reminder_id: str\n    to: str"),),
                ("CONTRACT_TASK_SAME_BODY town.v1.Reminder.to",),
            ),
            Case(
                "a field of the result is gone",
                (("    times: int", "    often: int"),),
                ("CONTRACT_TASK_SAME_BODY town.v1.Sent.times",),
            ),
        ),
        (
            Case("a field with a default", (("    reminder_id: str", '    reminder_id: str\n    to: str = ""'),)),
            Case(
                "a tighter limit of what waits",
                (("Field(max_length=60)", "Field(max_length=6)"),),
                ("CONTRACT_REQUEST_LIMITS town.v1.Reminder.text",),
            ),
            Case(
                "another message of the same form", (("class Sent(", "class Delivered("), ("-> Sent:", "-> Delivered:"))
            ),
            Case(
                "an error that its result may be is not listed",
                ((", raises=(Unsent,)):", "):"),),
                tuple(
                    f"CONTRACT_ERROR_NO_DELETE town.v1.Shops/{method}"
                    for method in ("Close", "Feed", "Find", "Order", "Remind", "Send", "Sweep")
                ),
            ),
        ),
    ),
    "CONTRACT_FIELD_REQUIRED": (
        (
            Case(
                "a message has to be there",
                (("to: Annotated[Address | None, Field(number=6)] = None", "to: Annotated[Address, Field(number=6)]"),),
                (
                    "CONTRACT_FIELD_REQUIRED town.v1.Order.to",
                    "REST_REQUEST_FIELD_NULLABLE town.v1.Order.to",
                    "REST_REQUEST_FIELD_REQUIRED town.v1.Order.to",
                ),
            ),
        ),
        (
            Case(
                "a message has to be there in an answer",
                (
                    ("class Shop(", "class Place(Message):\n    lane: str\n\n\nclass Shop("),
                    (_NOTE, _NOTE + "    place: Annotated[Place, Field(number=12)]\n"),
                ),
            ),
        ),
    ),
    "CONTRACT_REQUEST_LIMITS": (
        (
            Case(
                "a lower maximum",
                ((_COUNT, _COUNT.replace("le=10", "le=5")),),
                ("CONTRACT_REQUEST_LIMITS town.v1.Order.count",),
            ),
            Case(
                "a new pattern",
                (
                    (
                        "shop_id: Annotated[str, Field(number=1)]\n    limit",
                        'shop_id: Annotated[str, Field(number=1, pattern="^[a-z]+$")]\n    limit',
                    ),
                ),
                ("CONTRACT_REQUEST_LIMITS town.v1.Find.shop_id",),
            ),
            Case(
                "shorter lists",
                (("Field(number=3)] = []", "Field(number=3, max_length=3)] = []"),),
                ("CONTRACT_REQUEST_LIMITS town.v1.Find.tags",),
            ),
        ),
        (
            Case("a higher maximum", ((_LIMIT, _LIMIT.replace("le=100", "le=200")),)),
            Case("the same bound in other words", ((_LIMIT, _LIMIT.replace("le=100", "le=100, lt=101")),)),
            Case("no limit any more", ((_LIMIT, _LIMIT.replace("ge=1, le=100", "ge=0")),)),
        ),
    ),
    "CONTRACT_RESPONSE_LIMITS": (
        (
            Case(
                "an answer may be longer",
                ((_NAME, _NAME.replace("40", "80")),),
                ("CONTRACT_RESPONSE_LIMITS town.v1.Shop.name",),
            ),
        ),
        (Case("an answer is shorter", ((_NAME, _NAME.replace("40", "20")),)),),
    ),
    "CONTRACT_FIELD_SAME_DEFAULT": (
        (
            Case(
                "another default",
                ((_LIMIT, _LIMIT.replace("= 20", "= 50")),),
                ("CONTRACT_FIELD_SAME_DEFAULT town.v1.Find.limit",),
            ),
        ),
        (
            Case(
                "another default of an answer",
                ((_VISITS.replace("= 0", "= 1"), _VISITS.replace("= 0", "= 2")),),
                base=((_VISITS, _VISITS.replace("= 0", "= 1")),),
            ),
            Case(
                "a default where there was none",
                (
                    (
                        "class Find(Message):\n    shop_id: Annotated[str, Field(number=1)]",
                        'class Find(Message):\n    shop_id: Annotated[str, Field(number=1)] = ""',
                    ),
                ),
            ),
        ),
    ),
}
"""By rule: changes that break it (perhaps others too), and changes that do not break it."""
