"""What an error says beside its code and message: google.rpc's standard details."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from polywire.contract.fields import Field
from polywire.contract.message import Message


class ErrorInfo(Message, package="google.rpc"):
    """Why it failed, for a program: a *reason* such as `OUT_OF_STOCK` within a *domain* such as `shop.example`."""

    reason: Annotated[str, Field(number=1)] = ""
    domain: Annotated[str, Field(number=2)] = ""
    metadata: Annotated[dict[str, str], Field(number=3)] = {}


class RetryInfo(Message, package="google.rpc"):
    """How long to wait before trying again. `retry_after=` of an error says the same and is the easier way."""

    retry_delay: Annotated[timedelta | None, Field(number=1)] = None


class DebugInfo(Message, package="google.rpc"):
    """What a developer of the service wants to see. Do not send it to strangers."""

    stack_entries: Annotated[list[str], Field(number=1)] = []
    detail: Annotated[str, Field(number=2)] = ""


class QuotaViolation(Message, package="google.rpc", name="QuotaFailure.Violation"):
    """One quota that is used up."""

    subject: Annotated[str, Field(number=1)] = ""
    description: Annotated[str, Field(number=2)] = ""
    api_service: Annotated[str, Field(number=3)] = ""
    quota_metric: Annotated[str, Field(number=4)] = ""
    quota_id: Annotated[str, Field(number=5)] = ""
    quota_dimensions: Annotated[dict[str, str], Field(number=6)] = {}
    quota_value: Annotated[int, Field(number=7)] = 0
    future_quota_value: Annotated[int | None, Field(number=8)] = None


class QuotaFailure(Message, package="google.rpc"):
    """Which quotas are used up."""

    violations: Annotated[list[QuotaViolation], Field(number=1)] = []


class PreconditionViolation(Message, package="google.rpc", name="PreconditionFailure.Violation"):
    """One thing that has to be otherwise first."""

    type: Annotated[str, Field(number=1)] = ""
    subject: Annotated[str, Field(number=2)] = ""
    description: Annotated[str, Field(number=3)] = ""


class PreconditionFailure(Message, package="google.rpc"):
    """What has to be otherwise before this can work."""

    violations: Annotated[list[PreconditionViolation], Field(number=1)] = []


class LocalizedMessage(Message, package="google.rpc"):
    """A text for a person, in the language of *locale* (`en-US`)."""

    locale: Annotated[str, Field(number=1)] = ""
    message: Annotated[str, Field(number=2)] = ""


class FieldViolation(Message, package="google.rpc", name="BadRequest.FieldViolation"):
    """One field of the request that is wrong."""

    field: Annotated[str, Field(number=1)] = ""
    description: Annotated[str, Field(number=2)] = ""
    reason: Annotated[str, Field(number=3)] = ""
    localized_message: Annotated[LocalizedMessage | None, Field(number=4)] = None


class BadRequest(Message, package="google.rpc"):
    """Which fields are wrong. `InvalidArgument(field=...)` adds one by itself."""

    field_violations: Annotated[list[FieldViolation], Field(number=1)] = []


class RequestInfo(Message, package="google.rpc"):
    """What to quote when asking for help."""

    request_id: Annotated[str, Field(number=1)] = ""
    serving_data: Annotated[str, Field(number=2)] = ""


class ResourceInfo(Message, package="google.rpc"):
    """Which resource it was about."""

    resource_type: Annotated[str, Field(number=1)] = ""
    resource_name: Annotated[str, Field(number=2)] = ""
    owner: Annotated[str, Field(number=3)] = ""
    description: Annotated[str, Field(number=4)] = ""


class Link(Message, package="google.rpc", name="Help.Link"):
    description: Annotated[str, Field(number=1)] = ""
    url: Annotated[str, Field(number=2)] = ""


class Help(Message, package="google.rpc"):
    """Where to read on."""

    links: Annotated[list[Link], Field(number=1)] = []


@dataclass(frozen=True, slots=True)
class UnknownDetail:
    """A detail of a type that this program does not have, kept as it came and sent on as it is."""

    type_url: str
    value: bytes


STANDARD: tuple[type[Message], ...] = (
    ErrorInfo,
    RetryInfo,
    DebugInfo,
    QuotaFailure,
    PreconditionFailure,
    BadRequest,
    RequestInfo,
    ResourceInfo,
    Help,
    LocalizedMessage,
)
