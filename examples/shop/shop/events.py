"""What happens in the shop, told to whoever cares. A group that comes later starts with what was kept."""

from __future__ import annotations

from datetime import datetime

from polywire import Event
from shop.contracts import OrderLine, OrderState


class OrderEvent(Event, topic="shop.orders", key="order_id", package="shop.v1"):
    """What one order's events share. Each group gets them in their order, one after the other."""

    order_id: str


class OrderCreated(OrderEvent):
    """Somebody wants to buy. Every created order is either confirmed or cancelled in the end, or first the one and
    then the other."""

    user_id: str
    placed_at: datetime


class OrderPaid(OrderEvent):
    amount_cents: int


class OrderConfirmed(OrderEvent):
    """The goods are sold. It has all that a group needs, so that none has to ask back."""

    user_id: str
    placed_at: datetime
    lines: list[OrderLine]
    total_cents: int


class OrderCancelled(OrderEvent):
    """Money and goods are back where they were. It may be told twice."""

    outcome: OrderState
    reason: str


class PageView(Event, topic="shop.activity", package="shop.v1"):
    """Somebody looked at a product."""

    view_id: str
    product_id: str
    at: datetime
