"""Sending tasks and events: what a service asks for, and what is behind it."""

from polywire.bus.sending.enqueue import enqueue, enqueue_all, receipt
from polywire.bus.sending.publishing import Bus
from polywire.bus.sending.receipts import Receipt
from polywire.bus.sending.sender import Sender, Sent
from polywire.bus.sending.specs import Topology, queues_of, topics_of, unkept
from polywire.bus.sending.wires import BusWires

__all__ = [
    "Bus",
    "BusWires",
    "Receipt",
    "Sender",
    "Sent",
    "Topology",
    "enqueue",
    "enqueue_all",
    "queues_of",
    "receipt",
    "topics_of",
    "unkept",
]
