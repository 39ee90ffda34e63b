"""curl on every REST route of the shop: statuses, headers, bodies, in both versions."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from shop.api_v1 import GatewayV1
from shop.api_v2 import GatewayV2
from shop_support import BAD_CARD, BARGAIN, GOOD_CARD, RunningShop, running_shop, until

from polywire.contract import service_of

Test = TypeVar("Test", bound=Callable[..., None])
"""Seconds within which what follows from a request is done."""
CHECKED: set[str] = set()
"""Verb and path of the routes that a test here has been to."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningShop]:
    with running_shop(tmp_path_factory.mktemp("shop"), "--in-process") as running:
        yield running
        assert running.stop() == 0


def route(text: str) -> Callable[[Test], Test]:
    """Marks the routes that a test goes to, so that none is forgotten."""
    CHECKED.add(text)
    return lambda test: test


def order_of(product_id: str = "SKU-123", quantity: int = 1, card: str = GOOD_CARD, user_id: str = "U-1") -> Any:
    return {"user_id": user_id, "items": [{"product_id": product_id, "quantity": quantity}], "card": card}


@route("GET /api/v1/products")
def test_products_come_in_pages_with_links_that_keep_the_filter(shop: RunningShop) -> None:
    answer = shop.curl("GET", "/api/v1/products?search=oak&limit=2&page=2")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    page = answer.body
    assert len(page["items"]) == 2
    assert all("Oak" in product["name"] for product in page["items"])
    assert (page["page"], page["limit"], page["total"], page["pages"]) == (2, 2, 113, 57)
    assert page["links"] == {
        "first": "/api/v1/products?search=oak&page=1&limit=2",
        "prev": "/api/v1/products?search=oak&page=1&limit=2",
        "next": "/api/v1/products?search=oak&page=3&limit=2",
        "last": "/api/v1/products?search=oak&page=57&limit=2",
    }
    assert answer.headers["link"] == ", ".join(f'<{link}>; rel="{name}"' for name, link in page["links"].items())
    following = shop.curl("GET", page["links"]["next"]).body
    assert following["page"] == 3
    assert following["items"][0]["product_id"] not in {product["product_id"] for product in page["items"]}


def test_the_last_page_has_no_next_and_the_first_no_previous_one(shop: RunningShop) -> None:
    last = shop.curl("GET", "/api/v1/products?category=Toys&max_price_cents=800&limit=100").body
    assert last["links"].keys() == {"first", "last"}
    assert last["total"] == len(last["items"]) > 0


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("page=0", "page", "page: expected `int` >= 1"),
        ("page=two", "page", "page: expected `int`, got 'two'"),
        ("limit=101", "limit", "limit: expected `int` <= 100"),
    ],
)
def test_a_wrong_page_is_refused_with_its_field(shop: RunningShop, query: str, field: str, message: str) -> None:
    answer = shop.curl("GET", f"/api/v1/products?{query}")
    assert answer.status == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.error == {"code": "invalid_argument", "message": message, "field": field}


@route("GET /api/v1/products/{product_id}")
def test_a_product_comes_with_its_stock(shop: RunningShop) -> None:
    answer = shop.curl("GET", "/api/v1/products/SKU-123")
    assert answer.status == 200
    assert answer.body["name"] == "Folding Slate Desk Lamp"
    assert answer.body["price_cents"] == 6099
    assert answer.body["in_stock"] is True
    missing = shop.curl("GET", "/api/v1/products/SKU-1")
    assert missing.status == 404
    assert missing.error == {"code": "not_found", "message": "There is no product 'SKU-1'.", "field": None}


def test_head_answers_as_get_without_a_body(shop: RunningShop) -> None:
    whole = shop.curl("GET", "/api/v1/products/SKU-500")
    head = shop.curl("HEAD", "/api/v1/products/SKU-500")
    assert (head.status, head.text) == (200, "")
    assert head.headers["content-length"] == whole.headers["content-length"]


@route("POST /api/v1/orders")
@route("GET /api/v1/orders/{order_id}")
@route("DELETE /api/v1/orders/{order_id}")
def test_an_order_is_created_found_and_cancelled(shop: RunningShop) -> None:
    created = shop.curl("POST", "/api/v1/orders", order_of(quantity=2))
    assert created.status == 201
    order = created.body
    assert created.headers["location"] == f"/api/v1/orders/{order['order_id']}"
    assert (order["state"], order["total_cents"]) == ("confirmed", 12198)
    found = shop.curl("GET", created.headers["location"])
    assert (found.status, found.body) == (200, order)
    deleted = shop.curl("DELETE", created.headers["location"])
    assert (deleted.status, deleted.text) == (204, "")
    assert shop.curl("GET", created.headers["location"]).body["state"] == "cancelled"
    assert shop.curl("DELETE", created.headers["location"]).status == 204
    assert shop.curl("DELETE", "/api/v1/orders/ord-none").error["message"] == "There is no order 'ord-none'."


def test_the_same_idempotency_key_is_answered_with_the_same_order(shop: RunningShop) -> None:
    first = shop.curl("POST", "/api/v1/orders", order_of(), idempotency_key='"again"')
    second = shop.curl("POST", "/api/v1/orders", order_of(), idempotency_key='"again"')
    assert first.status == second.status == 201
    assert first.body == second.body
    other = shop.curl("POST", "/api/v1/orders", order_of(quantity=3), idempotency_key='"again"')
    assert other.status == 422
    assert other.error["message"].startswith("The key 'U-1/again' was used for a different order.")


def test_a_declined_card_and_an_empty_shelf_are_told_apart(shop: RunningShop) -> None:
    declined = shop.curl("POST", "/api/v1/orders", order_of(card=BAD_CARD))
    assert declined.status == 402
    assert declined.error == {
        "code": "failed_precondition",
        "message": "The card ending in 0002 was declined.",
        "field": None,
        "reason": "CARD_DECLINED",
        "type": "shop.v1.CardDeclined",
        "details": {"card_ending": "0002"},
    }
    for _ in range(2):  # the second time out of the orders' own book
        sold_out = shop.curl("POST", "/api/v1/orders", order_of(BARGAIN, quantity=2), idempotency_key='"none-left"')
        assert sold_out.status == 409
        assert sold_out.error["message"] == "Product 'SKU-117' is out of stock: 2 wanted, 1 on hand."
        assert sold_out.error["reason"] == "OUT_OF_STOCK"
        assert sold_out.error["details"] == {"product_id": BARGAIN, "wanted": 2, "on_hand": 1}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (order_of(quantity=0), 422, "items[0].quantity"),
        (order_of(card="12"), 422, "card"),
        ({**order_of(), "items": []}, 422, "items"),
        ({"user_id": "U-1"}, 422, "items"),
        ({**order_of(), "user_id": 7}, 422, "user_id"),
        ("{", 400, None),
        ('{"x":' + "[" * 50_000, 400, None),
    ],
)
def test_an_order_that_is_not_one_is_refused(shop: RunningShop, body: Any, status: int, field: str | None) -> None:
    answer = shop.curl("POST", "/api/v1/orders", body)
    assert answer.status == status
    assert (answer.error["code"], answer.error["field"]) == ("invalid_argument", field)


def test_an_order_of_a_stranger_or_for_nothing_that_exists_is_not_found(shop: RunningShop) -> None:
    assert shop.curl("POST", "/api/v1/orders", order_of(user_id="U-0")).error["message"] == "There is no user 'U-0'."
    assert shop.curl("POST", "/api/v1/orders", order_of("SKU-1")).error["message"] == "There is no product 'SKU-1'."


@route("POST /api/v1/users")
@route("GET /api/v1/users/{user_id}")
@route("PUT /api/v1/users/{user_id}")
@route("PATCH /api/v1/users/{user_id}")
def test_a_user_is_created_read_replaced_and_changed(shop: RunningShop) -> None:
    created = shop.curl("POST", "/api/v1/users", {"name": "Joan", "email": "joan@example.com"})
    assert created.status == 201
    place = created.headers["location"]
    assert place == f"/api/v1/users/{created.body['user_id']}"
    assert shop.curl("GET", place).body == created.body
    replaced = shop.curl("PUT", place, {"name": "Joan C", "email": "joan@example.org", "city": "Delft"})
    assert (replaced.status, replaced.body["city"]) == (200, "Delft")
    changed = shop.curl("PATCH", place, {"city": "Graz"})
    assert changed.body == {**replaced.body, "city": "Graz"}
    assert shop.curl("GET", place).body == changed.body
    incomplete = shop.curl("PUT", place, {"name": "Joan"})
    assert (incomplete.status, incomplete.error["field"]) == (422, "email")


def test_an_email_that_somebody_has_is_a_conflict(shop: RunningShop) -> None:
    taken = shop.curl("GET", "/api/v1/users/U-2").body["email"]
    for answer in (
        shop.curl("POST", "/api/v1/users", {"name": "Impostor", "email": taken}),
        shop.curl("PATCH", "/api/v1/users/U-3", {"email": taken}),
    ):
        assert answer.status == 409
        assert answer.error == {
            "code": "already_exists", "message": f"Somebody has the email {taken!r} already.", "field": None
        }  # fmt: skip


@route("GET /api/v1/users/{user_id}/orders")
def test_the_orders_of_a_user_come_in_pages_the_latest_first(shop: RunningShop) -> None:
    placed = [shop.curl("POST", "/api/v1/orders", order_of(user_id="U-9")).body["order_id"] for _ in range(3)]
    page = shop.curl("GET", "/api/v1/users/U-9/orders?limit=2").body
    assert [order["order_id"] for order in page["items"]] == placed[:0:-1]
    assert page["total"] == 3
    rest = shop.curl("GET", page["links"]["next"]).body
    assert [order["order_id"] for order in rest["items"]] == placed[:1]
    assert shop.curl("GET", "/api/v1/users/U-0/orders").status == 404


@route("GET /api/v1/books")
def test_the_books_balance(shop: RunningShop) -> None:
    books = shop.curl("GET", "/api/v1/books")
    assert books.status == 200
    assert books.body["problems"] == []
    stock = books.body["stock"]
    assert stock["initial"] == stock["on_hand"] + stock["reserved"] + stock["sold"]


@route("GET /api/v1/products/{product_id}/recommendations")
def test_what_was_bought_together_is_recommended(shop: RunningShop) -> None:
    before = shop.curl("GET", "/api/v1/products/SKU-301/recommendations")
    assert (before.status, before.body) == (200, {"items": [], "fallback": False})
    items = [{"product_id": product_id, "quantity": 1} for product_id in ("SKU-301", "SKU-302")]
    assert shop.curl("POST", "/api/v1/orders", {**order_of(), "items": items}).status == 201
    until(lambda: shop.curl("GET", "/api/v1/products/SKU-301/recommendations").body["items"] != [])
    other = shop.curl("GET", "/api/v1/products/SKU-302").body
    assert shop.curl("GET", "/api/v1/products/SKU-301/recommendations").body["items"] == [
        {"product_id": "SKU-302", "name": other["name"], "price_cents": other["price_cents"], "orders": 1}
    ]
    missing = shop.curl("GET", "/api/v1/products/SKU-1/recommendations")
    assert (missing.status, missing.error["message"]) == (404, "There is no product 'SKU-1'.")


@route("POST /api/v1/products/{product_id}/thumbnail")
@route("GET /api/v1/products/{product_id}/thumbnail")
def test_a_thumbnail_is_asked_for_and_there_a_moment_later(shop: RunningShop) -> None:
    path = "/api/v1/products/SKU-400/thumbnail"
    missing = shop.curl("GET", f"{path}?width=32")
    assert missing.status == 404
    assert missing.error["message"] == "There is no picture of 'SKU-400' that is 32 pixels wide (yet)."
    asked = shop.curl("POST", path, {"width": 32})
    assert asked.status == 202
    assert (asked.body["product_id"], asked.body["width"]) == ("SKU-400", 32)
    until(lambda: shop.curl("GET", f"{path}?width=32").status == 200)
    made = shop.curl("GET", f"{path}?width=32").body
    assert base64.b64decode(made["png"]).startswith(b"\x89PNG\r\n\x1a\n")
    assert shop.curl("GET", f"{path}?width=33").status == 404
    assert shop.curl("POST", path, {"width": 1000}).error["field"] == "width"
    assert shop.curl("POST", "/api/v1/products/SKU-1/thumbnail", {}).status == 404


@route("GET /api/v1/analytics")
def test_the_statistics_have_views_and_revenue_by_day(shop: RunningShop) -> None:
    def activity() -> Any:
        answer = shop.curl("GET", "/api/v1/analytics")
        assert answer.status == 200
        return answer.body

    def views() -> int:
        return sum(top["views"] for top in activity()["top"] if top["product_id"] == "SKU-777")

    for _ in range(12):
        shop.curl("GET", "/api/v1/products/SKU-777")
    until(lambda: views() == 12)
    before = activity()
    order = shop.curl("POST", "/api/v1/orders", order_of()).body
    until(lambda: activity()["orders"] == before["orders"] + 1)
    after = activity()
    assert after["revenue_cents"] == before["revenue_cents"] + order["total_cents"]
    assert order["placed_at"].startswith(after["days"][0]["day"])
    assert after["orders"] == sum(day["orders"] for day in after["days"])


@route("GET /api/v1/reports")
def test_a_shop_that_opened_today_has_no_report_of_a_day_that_is_over(shop: RunningShop) -> None:
    answer = shop.curl("GET", "/api/v1/reports")
    assert (answer.status, answer.body) == (200, {"items": []})


@route("GET /api/v1/backoffice")
def test_the_back_office_packs_what_was_ordered(shop: RunningShop) -> None:
    def office() -> Any:
        answer = shop.curl("GET", "/api/v1/backoffice")
        assert answer.status == 200
        return answer.body

    def settled() -> bool:
        return bool(office()["parcels"]["packed"] == shop.curl("GET", "/api/v1/analytics").body["orders"])

    until(settled)
    before = office()
    order = shop.curl("POST", "/api/v1/orders", order_of(quantity=3)).body
    until(lambda: office()["parcels"]["units"] == before["parcels"]["units"] + 3)
    shop.curl("DELETE", f"/api/v1/orders/{order['order_id']}")
    until(lambda: office()["parcels"]["unpacked"] == before["parcels"]["unpacked"] + 1)
    assert office()["parcels"]["packed"] == before["parcels"]["packed"]
    assert office()["mails"] == {"sent": 0}  # there is no mail server, so letters wait


@route("GET /api/v2/products")
def test_the_second_version_goes_on_from_a_cursor_and_has_money_with_a_currency(shop: RunningShop) -> None:
    first = shop.curl("GET", "/api/v2/products?category=Garden&limit=2").body
    assert first["products"][0]["price"].keys() == {"amount", "currency"}
    second = shop.curl("GET", f"/api/v2/products?category=Garden&limit=2&cursor={first['next']}").body
    numbers = [int(p["product_id"].removeprefix("SKU-")) for p in first["products"] + second["products"]]
    assert numbers == sorted(set(numbers))


@route("GET /api/v2/products/{product_id}")
def test_both_versions_tell_of_the_same_product_side_by_side(shop: RunningShop) -> None:
    one = shop.curl("GET", "/api/v1/products/SKU-200").body
    two = shop.curl("GET", "/api/v2/products/SKU-200").body
    assert two["product"]["price"]["amount"] == f"{one['price_cents'] / 100:.2f}"
    assert two["units"] == one["units"]
    assert shop.curl("GET", "/api/v2/products/SKU-1").status == 404


@route("POST /api/v2/orders")
@route("GET /api/v2/orders/{order_id}")
@route("DELETE /api/v2/orders/{order_id}")
def test_an_order_of_the_second_version_names_its_customer_and_is_seen_by_the_first(shop: RunningShop) -> None:
    created = shop.curl("POST", "/api/v2/orders", order_of(quantity=2), idempotency_key='"v2"')
    assert created.status == 201
    order = created.body
    assert created.headers["location"] == f"/api/v2/orders/{order['order_id']}"
    assert order["customer"]["user_id"] == "U-1"
    assert order["total"] == {"amount": "121.98", "currency": "EUR"}
    assert shop.curl("GET", created.headers["location"]).body == order
    assert shop.curl("GET", f"/api/v1/orders/{order['order_id']}").body["total_cents"] == 12198
    cancelled = shop.curl("DELETE", created.headers["location"])
    assert (cancelled.status, cancelled.body["state"]) == (200, "cancelled")


def test_both_versions_refuse_with_the_same_error(shop: RunningShop) -> None:
    first, second = (shop.curl("POST", f"/api/{version}/orders", order_of(card=BAD_CARD)) for version in ("v1", "v2"))
    assert first.status == second.status == 402
    assert first.error == second.error


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/api/v1/products", "GET, HEAD, OPTIONS"),
        ("DELETE", "/api/v1/books", "GET, HEAD, OPTIONS"),
        ("PUT", "/api/v1/orders/ord-1", "DELETE, GET, HEAD, OPTIONS"),
        ("TRACE", "/api/v1/users/U-1", "GET, HEAD, OPTIONS, PATCH, PUT"),
    ],
)
def test_a_method_that_a_route_does_not_have_is_answered_with_those_it_has(
    shop: RunningShop, method: str, path: str, allow: str
) -> None:
    answer = shop.curl(method, path)
    assert answer.status == 405
    assert sorted(answer.headers["allow"].split(", ")) == sorted(allow.split(", "))


def test_a_path_that_does_not_exist_is_not_found(shop: RunningShop) -> None:
    for path in ("/", "/api/v3/products", "/api/v1/products/SKU-1/reviews"):
        assert shop.curl("GET", path).status == 404


def test_a_body_of_another_type_is_refused(shop: RunningShop) -> None:
    answer = shop.curl("POST", "/api/v1/orders", "<order/>", content_type="application/xml")
    assert answer.status == 415


def test_the_request_id_of_a_customer_comes_back(shop: RunningShop) -> None:
    assert shop.curl("GET", "/api/v1/products/SKU-123", x_request_id="abc-1").headers["x-request-id"] == "abc-1"


def test_no_route_was_forgotten() -> None:
    declared = {
        f"{route.verb} {service_of(contract).prefix}{route.path}"
        for contract in (GatewayV1, GatewayV2)
        for rpc in service_of(contract).rpcs.values()
        for route in rpc.routes
    }
    assert declared == CHECKED
