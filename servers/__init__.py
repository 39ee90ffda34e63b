"""Real servers for tests and demos: on loopback only, with data of their own, gone when nobody needs them.

`python -m servers install|start|stop|status NAME...` for people, `servers.pytest_plugin` for tests. A new server is a
class like `servers.base.Server` in a file of its own, and a line here.
"""

from __future__ import annotations

from importlib import import_module

from servers.base import Server

SERVERS = {
    "rabbitmq": ("servers.rabbitmq", "RabbitMQ"),
    "rabbitmq4": ("servers.rabbitmq", "RabbitMQ4"),
    "kafka": ("servers.kafka", "Kafka"),
}
"""Name -> module and class."""


def find(name: str) -> type[Server]:
    """The class of the server called *name*. Raises KeyError with the choices in its text."""
    if name not in SERVERS:
        raise KeyError(f"{name!r} is no server of this project. Choose from: {', '.join(SERVERS)}.")
    module, kind = SERVERS[name]
    found: type[Server] = getattr(import_module(module), kind)
    return found
