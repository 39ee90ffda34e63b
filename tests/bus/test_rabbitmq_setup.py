"""Addresses of RabbitMQ: what is wrong with them is said at start, and never with the password."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trustme
from rabbitmq_support import a_name, an_envelope, cut_connections, opened, received, until
from servers.base import ports
from servers.pytest_plugin import require_server
from servers.rabbitmq import RabbitMQ

from polywire.bus.backend.opening import open_tasks
from polywire.bus.backend.rabbitmq import RabbitQueue
from polywire.bus.backend.rabbitmq_connection import parse, version_of
from polywire.bus.core import Ack, QueueSpec, Settlement
from polywire.errors import BackendUnreachable, SetupError

SECRET = "hunter2"


async def refused(url: str) -> str:
    """What is said when it is started."""
    with pytest.raises(BackendUnreachable) as raised:
        await RabbitQueue(url).start()
    assert SECRET not in f"{raised.value!r} {raised.value.__cause__!r} {raised.value.__context__!r}"
    return str(raised.value)


async def test_a_wrong_password_is_named_and_not_told(rabbitmq_url: str) -> None:
    url = rabbitmq_url.replace("guest:guest", f"guest:{SECRET}")
    shown = rabbitmq_url.replace("guest:guest", "guest:***")
    assert await refused(url) == f"RabbitMQ at '{shown}' was not reached: it refused the user or the password."


async def test_a_missing_virtual_host_is_named(rabbitmq_url: str) -> None:
    shown = rabbitmq_url.replace("guest:guest", "guest:***")
    assert await refused(rabbitmq_url + "shop") == (
        f"RabbitMQ at '{shown}shop' was not reached: it refused access to the virtual host."
    )


async def test_a_broker_that_does_not_answer_is_unreachable(tmp_path: Path) -> None:
    port = ports(tmp_path, "nobody")["nobody"]
    assert await refused(f"amqp://user:{SECRET}@127.0.0.1:{port}/") == (
        f"RabbitMQ at 'amqp://user:***@127.0.0.1:{port}/' was not reached: Connection refused."
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"amqp://user:{SECRET}@", "it names no host"),
        (f"amqp://user:{SECRET}@h:port/", "it is no URL"),
        (f"amqp://user:{SECRET}@h/?colour=red", "'colour' is no option of it. Choose from: ca_file, cert_file, "),
        (f"amqp://user:{SECRET}@h/?heartbeat=often", "heartbeat='often' is no number of seconds from 1 to 3600"),
        (f"amqps://user:{SECRET}@h/?ca_file=/no/such", "ca_file='/no/such' was not read: No such file or directory"),
        (f"amqps://user:{SECRET}@h/?cert_file=/no/such", "cert_file='/no/such' was not read: No such file or"),
        ("amqp://user@h/?password_file=/no/such", "its password was not read from '/no/such': No such file or"),
    ],
)
def test_a_wrong_url_is_refused_at_once(url: str, reason: str) -> None:
    with pytest.raises(SetupError) as raised:
        open_tasks(url)
    message = str(raised.value)
    assert f" was not opened: {reason}" in message
    assert message.endswith("Write it as 'amqp://user:password@host:5672/vhost'.")
    assert SECRET not in message


def test_an_address_has_everything_from_its_url_and_shows_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = parse("amqp://us%40er:p%2Fw@host:1234/my%2Fhost?heartbeat=7&connect_timeout=3")
    seen = found.parameters
    assert (seen.host, seen.port, seen.virtual_host, seen.heartbeat) == ("host", 1234, "my/host", 7)
    assert seen.credentials == pika_credentials("us@er", "p/w")
    assert "p/w" not in repr(found)
    assert "p%2Fw" not in repr(found)
    (tmp_path / "secret").write_text("from the file\n")
    assert parse(f"amqp://u@h/?password_file={tmp_path}/secret").parameters.credentials == pika_credentials(
        "u", "from the file"
    )
    monkeypatch.setenv("POLYWIRE_AMQP_PASSWORD", "from the environment")
    monkeypatch.setenv("POLYWIRE_AMQP_HEARTBEAT", "9")
    seen = parse("amqps://u@h").parameters
    assert (seen.port, seen.virtual_host, seen.heartbeat) == (5671, "/", 9)
    assert seen.credentials == pika_credentials("u", "from the environment")


def pika_credentials(user: str, password: str) -> object:
    import pika

    return pika.PlainCredentials(user, password)


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("pika", "polywire.bus.backend.rabbitmq"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pika", None)
    with pytest.raises(SetupError) as raised:
        open_tasks("amqp://h/")
    assert str(raised.value) == (
        "tasks = 'amqp:...' was not opened: the package 'pika' is missing. Install it with `pip install "
        "'polywire[rabbitmq]'`."
    )


def test_versions_are_compared_as_numbers() -> None:
    assert version_of("3.10.8") == (3, 10, 8)
    assert version_of("4.0.5+1.gabc") == (4, 0, 5)
    assert version_of("4.3.0-rc.1") == (4, 3, 0)
    assert version_of("") == ()
    assert version_of("3.9.27") < (3, 10) < version_of("3.10.0")


async def test_a_broker_that_is_too_old_is_refused_by_name(rabbitmq_url: str) -> None:
    async with opened(rabbitmq_url) as queue:
        queue._client.version = (3, 9, 27)
        with pytest.raises(SetupError) as raised:
            await queue.declare([QueueSpec(name="q")])
        assert str(raised.value) == (
            f"RabbitMQ at '{queue._client.address}' is 3.9.27, which cannot delay messages without losing any. Upgrade "
            f"it to 3.10 or later."
        )


@pytest.mark.slow
async def test_tls_is_spoken_with_a_client_certificate_and_an_unknown_authority_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    require_server(request, "rabbitmq")
    authority = trustme.CA()
    for name, certificate in (
        ("server", authority.issue_cert("localhost")),
        ("client", authority.issue_cert("client@test")),
    ):
        certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = RabbitMQ(
        certificate=tmp_path / "server.pem",
        authority=tmp_path / "ca.pem",
        config="ssl_options.fail_if_no_peer_cert = true",
    )
    server.start(tmp_path / "server")
    try:
        url = f"{server.tls_url}?ca_file={tmp_path}/ca.pem&cert_file={tmp_path}/client.pem"
        name = a_name()
        async with opened(url, QueueSpec(name=name)) as queue:
            assert await queue.send(name, [an_envelope("secret")]) == [None]
            consumer = await queue.consumer(name, limit=1)
            [delivery] = await received(consumer, 1)
            await consumer.settle([Settlement(delivery, Ack())])
            await consumer.close()
        message = await refused(server.tls_url)
        assert "was not reached: TLS failed: " in message
        no_certificate = await refused(f"{server.tls_url}?ca_file={tmp_path}/ca.pem")
        assert "was not reached: " in no_certificate
    finally:
        server.kill()
        server.stop()


async def test_a_lost_connection_is_noticed_and_made_again(rabbitmq_url: str) -> None:
    async with opened(rabbitmq_url) as queue:
        first = queue._client.publisher.link.connection
        await cut_connections(queue)

        async def another() -> bool:
            return queue.connected and queue._client.publisher.link.connection is not first

        await until(another, "another connection")
