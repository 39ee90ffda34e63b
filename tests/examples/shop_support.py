"""Shops for tests: their services built by hand, on databases in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shop.contracts import Item, Order, OrderState, PlaceOrder
from shop.database import Database
from shop.gateway import GatewayServiceV1, GatewayServiceV2
from shop.inventory import CatalogService, InventoryService
from shop.orders import Ledger, OrderService, Undo
from shop.payments import PaymentService
from shop.users import UserService

from polywire.testing import ManualClock
from shop import inventory, orders, payments, users

GOOD_CARD = "4242424242424242"
BAD_CARD = "4000000000000002"
BARGAIN = "SKU-117"
"""There is one of it."""


class HandMade:
    """The whole shop without polywire: objects that call each other."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.databases = {
            "inventory": Database(":memory:", inventory.create_tables, inventory.fill_shelves),
            "payments": Database(":memory:", payments.create_tables),
            "orders": Database(":memory:", orders.create_tables),
            "users": Database(":memory:", users.create_tables, users.invite_customers),
        }
        self.catalog = CatalogService(self.databases["inventory"])
        self.inventory = InventoryService(self.databases["inventory"], self.clock)
        self.payments = PaymentService(self.databases["payments"])
        self.ledger = Ledger(self.databases["orders"], self.clock)
        self.users = UserService(self.databases["users"])
        self.with_services()

    def with_services(
        self, *, inventory: InventoryService | None = None, payments: PaymentService | None = None
    ) -> None:
        """Let orders talk to something else."""
        self.inventory = inventory or self.inventory
        self.payments = payments or self.payments
        self.undo = Undo(self.ledger, self.inventory, self.payments)
        self.orders = OrderService(self.inventory, self.payments, self.ledger, self.undo)
        self.v1 = GatewayServiceV1(self.catalog, self.inventory, self.orders, self.payments, self.users)
        self.v2 = GatewayServiceV2(self.catalog, self.inventory, self.orders, self.users)

    async def problems(self) -> list[str]:
        return (await self.v1.get_books()).problems

    async def state_of(self, order: Order) -> OrderState:
        return self.ledger.get(order.order_id).state


@contextmanager
def hand_made_shop() -> Iterator[HandMade]:
    shop = HandMade()
    try:
        yield shop
    finally:
        for database in shop.databases.values():
            database.close()


def order(
    key: str = "k", *, product_id: str = "SKU-123", quantity: int = 2, card: str = GOOD_CARD, user_id: str = "U-1"
) -> PlaceOrder:
    return PlaceOrder(key=key, user_id=user_id, items=[Item(product_id=product_id, quantity=quantity)], card=card)
