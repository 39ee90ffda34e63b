"""Every policy around calls of every wire, unary and streaming, with real servers behind."""

from __future__ import annotations

from typing import ClassVar

import pytest
from tests.conformance.instances_support import WireName
from tests.conformance.policies_support import KINDS, PolicySuite


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestLocalPolicies(PolicySuite):
    wire: ClassVar[WireName] = "local"


class TestGrpcPolicies(PolicySuite):
    wire: ClassVar[WireName] = "grpc"


class TestHttpPolicies(PolicySuite):
    wire: ClassVar[WireName] = "http"
