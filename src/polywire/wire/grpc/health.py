"""grpc.health.v1: whether services should get requests, for load balancers, Kubernetes and Consul."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from typing import Annotated

from polywire.contract import Contract, Field, Message, enum_form, rpc
from polywire.errors import NotFound, Unavailable


@enum_form(
    name="HealthCheckResponse.ServingStatus",
    package="grpc.health.v1",
    names={name: name for name in ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")},
)
class ServingStatus(enum.Enum):
    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3
    """Told to those who watch, never to those who check."""


class HealthCheckRequest(Message, package="grpc.health.v1"):
    service: Annotated[str, Field(number=1)] = ""
    """The full name of a service; empty for the server as a whole."""


class HealthCheckResponse(Message, package="grpc.health.v1"):
    status: Annotated[ServingStatus, Field(number=1)]


class HealthListRequest(Message, package="grpc.health.v1"):
    """Asks for all services."""


class HealthListResponse(Message, package="grpc.health.v1"):
    statuses: Annotated[dict[str, HealthCheckResponse], Field(number=1)]


class Health(Contract, package="grpc.health.v1"):
    """Whether services should get requests."""

    @rpc(idempotent=True)
    async def check(self, request: HealthCheckRequest) -> HealthCheckResponse:
        """The status now; NOT_FOUND for a service that is not here."""
        raise NotImplementedError

    @rpc(idempotent=True)
    def watch(self, request: HealthCheckRequest) -> AsyncIterator[HealthCheckResponse]:
        """The status now, and again whenever it changes."""
        raise NotImplementedError

    @rpc(idempotent=True)
    async def list(self, request: HealthListRequest) -> HealthListResponse:
        """The status of every service."""
        raise NotImplementedError


class HealthService(Health):
    """Answers what it was told by `set`; a service that it was told nothing of is unknown."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._watchers: set[asyncio.Event] = set()
        self._closed = False

    def set(self, service_name: str, serving: bool) -> None:
        """Say whether a service, or with an empty name the whole server, should get requests."""
        if self._serving.get(service_name) is not serving:
            self._serving[service_name] = serving
            self._wake()

    def close(self) -> None:
        """End those who watch, after they were told the last change. Otherwise they would keep a draining server up."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    def _status(self, service_name: str) -> ServingStatus:
        serving = self._serving.get(service_name)
        if serving is None:
            return ServingStatus.SERVICE_UNKNOWN
        return ServingStatus.SERVING if serving else ServingStatus.NOT_SERVING

    async def check(self, request: HealthCheckRequest) -> HealthCheckResponse:
        status = self._status(request.service)
        if status is ServingStatus.SERVICE_UNKNOWN:
            raise NotFound(f"The health of {request.service[:200]!r} is unknown: there is no such service here.")
        return HealthCheckResponse(status=status)

    async def watch(self, request: HealthCheckRequest) -> AsyncIterator[HealthCheckResponse]:
        changed = asyncio.Event()
        self._watchers.add(changed)
        told: ServingStatus | None = None
        try:
            while True:
                changed.clear()
                status = self._status(request.service)
                if status is not told:
                    told = status
                    yield HealthCheckResponse(status=status)
                elif self._closed:
                    raise Unavailable("The health is watched no longer: the service is shutting down.")
                else:
                    await changed.wait()
        finally:
            self._watchers.discard(changed)

    async def list(self, request: HealthListRequest) -> HealthListResponse:
        return HealthListResponse(
            statuses={name: HealthCheckResponse(status=self._status(name)) for name in self._serving}
        )
