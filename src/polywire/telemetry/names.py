"""Every name that appears in logs, in one place.

Names of OpenTelemetry's semantic conventions (1.44) where they have one, `polywire.` before those that are our own.
"""

from __future__ import annotations

TIMESTAMP = "timestamp"
"""RFC 3339, UTC."""
SEVERITY = "severity"
MESSAGE = "message"
LOGGER = "logger"
EXCEPTION = "exception.stacktrace"
SERVICE = "service.name"
METHOD = "rpc.method"
"""Fully qualified, `shop.v1.Inventory/CheckStock`."""
STATUS = "rpc.status_code"
"""The canonical code in capitals, `OK`, `NOT_FOUND`."""
DURATION = "duration"
"""Seconds."""
WIRE = "polywire.wire"
"""`local`, `grpc`, `connect` or `rest`."""
PEER = "network.peer.address"
CALLER = "polywire.caller"
"""The service proven by its credentials."""
ATTEMPT = "polywire.attempt"
DESTINATION = "messaging.destination.name"
"""The queue or the topic."""
GROUP = "messaging.consumer.group.name"
MESSAGE_ID = "messaging.message.id"
MESSAGE_TYPE = "polywire.message.type"
"""Of a task or an event, `shop.v1.Mail/SendConfirmation`, `shop.orders.OrderPaid`."""
OUTCOME = "polywire.outcome"
"""What became of a message: `done`, `duplicate`, `retry`, `released`, or the reason for which it was given up."""
REQUEST_ID = "request_id"
TRACE_ID = "trace_id"

SERVER_FAULTS = frozenset({"unknown", "deadline_exceeded", "unimplemented", "internal", "unavailable", "data_loss"})
"""The codes that count as a fault of the server; the rest are answers that the caller has to live with."""
GOOD_OUTCOMES = frozenset({"done", "duplicate", "released"})
"""Of a message; the rest are failures, of which `retry` may still end well."""
