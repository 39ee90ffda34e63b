"""TLS, passwords and rights, on a Kafka that asks for them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from kafka_support import declared, event, of_topic, opened
from servers.kafka import Kafka
from servers.pytest_plugin import require_server

from polywire.bus.backend.kafka import KafkaLog
from polywire.errors import BackendLost, BackendUnreachable, MessageRefused

pytestmark = pytest.mark.slow

SOON = 30.0
Kind: Any = ResourceType
May: Any = AclOperation
USERS = {"alice": "alices-s3cret", "bob": "bobs-s3cret"}


class Secured:
    """A broker with users, and the file with the authority that its certificate is from."""

    def __init__(self, server: Kafka, ca: Path) -> None:
        self.server = server
        self.ca = ca

    def url(self, user: str, *options: str) -> str:
        return "?".join([self.server.secure_url(user), "&".join([f"ca_file={self.ca}", *options])])

    def allow(self, user: str, *rights: tuple[Any, str, Any]) -> None:
        admin = AdminClient({"bootstrap.servers": self.server.url.removeprefix("kafka://")})
        binding: Any = AclBinding
        prefixed, allow = ResourcePatternType.PREFIXED, AclPermissionType.ALLOW
        bindings = [binding(kind, name, prefixed, f"User:{user}", "*", may, allow) for kind, name, may in rights]
        for binding, future in admin.create_acls(bindings).items():
            future.result()
            self._wait_for(admin, binding)

    def _wait_for(self, admin: AdminClient, binding: AclBinding) -> None:
        """The controller has it; until the broker goes by it."""
        like: Any = AclBindingFilter
        kind, name, pattern, who = binding.restype, binding.name, binding.resource_pattern_type, binding.principal
        wanted = like(kind, name, pattern, who, None, binding.operation, binding.permission_type)
        give_up = time.monotonic() + SOON
        while not admin.describe_acls(wanted).result():
            assert time.monotonic() < give_up
            time.sleep(0.02)


def key_and_chain(certificate: trustme.LeafCert) -> bytes:
    """In PEM, with the key in PKCS#8: Java reads no other."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    found = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return found + b"".join(each.bytes() for each in certificate.cert_chain_pems)


@pytest.fixture(scope="module")
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    require_server(request, "kafka")
    directory = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    (directory / "broker.pem").write_bytes(key_and_chain(authority.issue_cert("localhost")))
    server = Kafka(certificate=directory / "broker.pem", users=USERS)
    server.start(directory / "server")
    yield Secured(server, directory / "ca.pem")
    server.kill()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
async def test_who_has_rights_sends_and_receives_over_tls(secured: Secured, mechanism: str) -> None:
    async with opened(secured.server.url) as open_:
        topic = await declared(open_, "billing")
    secured.allow(
        "alice",
        (Kind.TOPIC, topic, May.ALL),
        (Kind.GROUP, of_topic(topic), May.ALL),
    )
    async with opened(secured.url("alice", f"sasl={mechanism}")) as log:
        assert await log.append(topic, [event("1")]) == [None]
        consumer = await log.consumer([topic], of_topic(topic), limit=10)
        (record,) = await asyncio.wait_for(consumer.receive(10), SOON)
        assert record.envelope.body == b"1"
        await consumer.done([record])


async def test_a_wrong_password_is_refused_at_once_and_not_shown(
    secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = secured.url("alice").replace(USERS["alice"], "wr0ng")
    with pytest.raises(BackendUnreachable) as raised:
        await asyncio.wait_for(KafkaLog(url).start(), SOON)
    text = str(raised.value)
    assert text.startswith(f"Kafka at '{url.replace('wr0ng', '***')}' did not let us in: ")
    assert "Authentication failed: Invalid username or password" in text
    assert "wr0ng" not in text + caplog.text


async def test_a_certificate_of_an_unknown_authority_is_refused(secured: Secured, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    url = secured.url("alice").replace(str(secured.ca), str(tmp_path / "other.pem"))
    with pytest.raises(BackendUnreachable, match=r"did not let us in: .*certificate verify failed"):
        await asyncio.wait_for(KafkaLog(url).start(), SOON)


async def test_who_may_not_write_is_refused(secured: Secured) -> None:
    async with opened(secured.server.url) as open_:
        topic = await declared(open_, "billing")
    async with opened(secured.url("bob")) as log:
        sent = event()
        (error,) = await log.append(topic, [sent])
        assert type(error) is MessageRefused
        assert str(error) == (
            f"The message {sent.id!r} was not sent to the topic {topic!r}: this user may not write to the topic."
        )


async def test_who_may_see_a_topic_but_not_write_to_it_is_refused_by_the_broker(secured: Secured) -> None:
    async with opened(secured.server.url) as open_:
        topic = await declared(open_, "billing")
        secured.allow("bob", (Kind.TOPIC, topic, May.DESCRIBE))
        async with opened(secured.url("bob")) as log:
            sent = event()
            (error,) = await log.append(topic, [sent])
            assert type(error) is MessageRefused
            # Without the right to write anywhere not even the producer's own id is given out.
            assert str(error) == (
                f"The message {sent.id!r} was not sent to the topic {topic!r}: this user may not write to the cluster."
            )
            # It is for the moment: with the right to write elsewhere it is about the topic.
            other = await declared(open_)
            secured.allow("bob", (Kind.TOPIC, other, May.ALL))
            assert await log.append(other, [event()]) == [None]
            (error,) = await log.append(topic, [sent])
            assert type(error) is MessageRefused
            assert str(error) == (
                f"The message {sent.id!r} was not sent to the topic {topic!r}: this user may not write to the topic."
            )


async def test_who_may_not_join_a_group_hears_of_it(secured: Secured) -> None:
    async with opened(secured.server.url) as open_:
        topic = await declared(open_, "private")
    secured.allow("bob", (Kind.TOPIC, topic, May.ALL))
    async with opened(secured.url("bob", "group_protocol=classic")) as log:
        consumer = await log.consumer([topic], of_topic(topic, "private"), limit=10)
        with pytest.raises(BackendLost) as raised:
            await asyncio.wait_for(consumer.receive(10), SOON)
        assert "Group authorization failed" in str(raised.value)
        await consumer.close()
        with pytest.raises(BackendUnreachable, match="Group authorization failed"):
            await log.stats(topic, of_topic(topic, "private"))
