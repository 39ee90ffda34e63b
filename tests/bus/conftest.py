"""The servers that tests of the bus ask for by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def rabbitmq_url(server_url: Callable[[str], str]) -> str:
    """Of the run's RabbitMQ, shared by all tests: use names of your own. Skips where it is not installed."""
    return server_url("rabbitmq")


@pytest.fixture
def kafka_url(server_url: Callable[[str], str]) -> str:
    """Of the run's Kafka, shared by all tests: use names of your own. Skips where it is not installed."""
    return server_url("kafka")
