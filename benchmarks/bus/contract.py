"""What the stacks send: a task and an event of about 600 bytes, with an envelope of twelve headers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from polywire.bus.consumer import Handling, event_handling, task_handling
from polywire.bus.core import QueueSpec, TopicSpec
from polywire.bus.sending import queues_of
from polywire.context import Call
from polywire.contract import Contract, Event, Message, service_of, subscribe, task
from polywire.contract.event import Subscription, subscriptions_of

Shape = Literal["plain", "hot", "low", "delayed"]
"""Of a backlog: waiting as everything else, all under one key, of low priority, or delayed by a day."""

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
REQUEST_ID = "0192a3b4-c5d6-7e8f-9a0b-1c2d3e4f5a6b"
CAUSATION_ID = "0192a3b4-c5d6-7e8f-9a0b-1c2d3e4f5a6c"
OWN = {"tenant": "a", "locale": "de-DE", "channel": "web"}
"""Headers of the sender's own."""
HEADERS = {
    "ce-specversion": "1.0",
    "ce-id": "0192a3b4-c5d6-7e8f-9a0b-1c2d3e4f5a6d",
    "ce-source": "orders",
    "ce-type": "bench.v1.Mail/Send",
    "ce-time": "2026-01-02T03:04:05.678901Z",
    "ce-partitionkey": "customer-17",
    "ce-traceparent": TRACEPARENT,
    "ce-requestid": REQUEST_ID,
    "ce-causationid": CAUSATION_ID,
    **OWN,
}
"""What polywire makes by itself, for stacks that make nothing."""


class Line(Message):
    sku: str
    title: str
    quantity: int
    cents: int


class Confirmation(Message):
    """What a task takes."""

    order_id: str
    customer: str
    lines: list[Line]
    note: str
    sent: float = 0.0
    """Seconds since the epoch."""


LINES = [Line(sku=f"SKU-{n:05d}", title=f"Coffee beans, dark roast, bag {n}", quantity=n, cents=1299) for n in range(3)]
NOTE = "x" * 250
PAYLOAD: dict[str, Any] = {
    "order_id": "0192a3b4-order",
    "customer": "customer-17",
    "lines": [{"sku": line.sku, "title": line.title, "quantity": line.quantity, "cents": line.cents} for line in LINES],
    "note": NOTE,
    "sent": 0.0,
}
"""The same for stacks that have no classes."""
BODY = json.dumps(PAYLOAD, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class _Cause:
    """The message that ours are sent from."""

    id: str = CAUSATION_ID


def call_under_way() -> Call:
    """As the handler of another message has it, so that what is sent carries request, cause and trace."""
    call = Call("bench.v1.Orders/Placed", None, REQUEST_ID)
    call.traceparent, call.tracestate = TRACEPARENT, "vendor=value"
    call.message = _Cause()  # type: ignore[assignment]  # nothing else of it is asked for
    return call


Handled = Callable[[float], None]
"""Told of each message when it was sent."""


def mail_contract(queue: str, shape: Shape) -> type[Any]:
    """A contract with one task, `send`, which waits in *queue*."""

    class Mail(Contract, package="bench.v1"):
        @task(queue=queue, key="customer" if shape == "hot" else None, priorities=3 if shape == "low" else 1)
        async def send(self, mail: Confirmation) -> None:
            raise NotImplementedError

    return Mail


def mail_handling(contract: type[Any], handled: Handled, pause: float) -> Handling:
    class MailService(contract):  # type: ignore[misc]  # made at run time
        async def send(self, mail: Confirmation) -> None:
            if pause:
                await asyncio.sleep(pause)
            handled(mail.sent)

    return task_handling(service_of(contract).tasks["send"], MailService().send)


def mail_queue(contract: type[Any]) -> QueueSpec:
    return queues_of([contract])[0]


def order_event(topic: str) -> type[Any]:
    class OrderPaid(Event, topic=topic, key="customer", package="bench.v1"):
        order_id: str
        customer: str
        lines: list[Line]
        note: str
        sent: float = 0.0

    return OrderPaid


def topic_spec(topic: str) -> TopicSpec:
    return TopicSpec(name=topic, partitions=4)


GROUP = "bench"


def order_subscription(event: type[Any], handled: Handled) -> tuple[Subscription, Handling]:
    class Warehouse:
        async def pack(self, order: Event) -> None:
            handled(order.sent)  # type: ignore[attr-defined]  # it has one here

        pack.__annotations__["order"] = event
        pack = subscribe(event, group=GROUP)(pack)

    warehouse = Warehouse()
    (subscription,) = subscriptions_of(Warehouse)
    return subscription, event_handling(subscription, warehouse.pack)
