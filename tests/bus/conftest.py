"""The servers that tests of the bus ask for by name."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest


@pytest.fixture
def rabbitmq_url(server_url: Callable[[str], str]) -> str:
    """Of the run's RabbitMQ, shared by all tests: use names of your own. Skips where it is not installed.

    POLYWIRE_TEST_RABBITMQ names another one: rabbitmq4.
    """
    return server_url(os.environ.get("POLYWIRE_TEST_RABBITMQ", "rabbitmq"))


@pytest.fixture
def kafka_url(server_url: Callable[[str], str]) -> str:
    """Of the run's Kafka, shared by all tests: use names of your own. Skips where it is not installed."""
    return server_url("kafka")
