"""The shop with tokens: its services answer each other, and nobody else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shop.contracts import ChargeId, Payments
from shop_support import GOOD_CARD, RunningShop, running_shop

from polywire import connect
from polywire.errors import Unauthenticated

ORDER = {"user_id": "U-1", "items": [{"product_id": "SKU-123", "quantity": 2}], "card": GOOD_CARD}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningShop]:
    tokens = {"SHOP_GATEWAY_TOKEN": "g-secret", "SHOP_ORDERS_TOKEN": "o-secret"}
    with running_shop(tmp_path_factory.mktemp("shop"), "--profile", "guarded", **tokens) as running:
        yield running


def test_strangers_can_buy_at_the_gateway(shop: RunningShop) -> None:
    assert shop.curl("POST", "/api/v1/orders", ORDER).status == 201


async def test_strangers_cannot_ask_for_a_refund(shop: RunningShop) -> None:
    async with connect(Payments, shop.address_of("payments")) as till:
        with pytest.raises(Unauthenticated) as refusal:
            await till.refund(ChargeId(charge_id="ord-1"))
    assert str(refusal.value) == "shop.v1.Payments/Refund was refused: it needs credentials, and none came."


async def test_a_wrong_token_is_refused_and_the_right_one_is_taken(shop: RunningShop) -> None:
    async with connect(Payments, shop.address_of("payments"), token="wrong") as till:
        with pytest.raises(Unauthenticated) as refusal:
            await till.get_balance()
    assert str(refusal.value) == "shop.v1.Payments/GetBalance was refused: the credentials are not valid here."
    async with connect(Payments, shop.address_of("payments"), token="o-secret") as till:
        assert (await till.get_balance()).charges >= 0


def test_curl_without_a_token_is_unauthorized(shop: RunningShop) -> None:
    path = "/shop.v1.Inventory/CheckStock"
    inventory = RunningShop(
        shop.up, int(shop.address_of("inventory").rpartition(":")[2]), shop.log_file, shop.variables, shop.system
    )
    answer = inventory.curl("POST", path, {"productId": "SKU-123"})
    assert (answer.status, answer.body["code"]) == (401, "unauthenticated")
    answer = inventory.curl("POST", path, {"productId": "SKU-123"}, authorization="Bearer g-secret")
    assert (answer.status, answer.body["productId"]) == (200, "SKU-123")


def test_the_tokens_are_in_no_log(shop: RunningShop) -> None:
    shop.curl("GET", "/api/v1/products/SKU-123")
    assert "secret" not in shop.log
    assert GOOD_CARD not in shop.log
