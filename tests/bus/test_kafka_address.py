"""Kafka's URLs, and what is said where one does not lead anywhere: without a server."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException

from polywire.bus.backend.kafka import KafkaLog
from polywire.bus.backend.kafka_address import Log, parse
from polywire.bus.backend.kafka_cluster import Cluster
from polywire.bus.backend.opening import open_events, open_tasks
from polywire.errors import BackendUnreachable, SetupError

FORM = "Write it as 'kafka://user:password@host:9092,host2:9092'."
SECRET = "s3cret"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "PASSWORD", "CA_FILE", "SASL", "LINGER"):
        monkeypatch.delenv(f"POLYWIRE_KAFKA_{name}", raising=False)


def test_hosts_without_a_port_have_kafkas() -> None:
    assert parse("kafka://a,b:1,[::1],[::1]:2").settings["bootstrap.servers"] == "a:9092,b:1,[::1]:9092,[::1]:2"
    assert parse("kafka://a").settings["security.protocol"] == "PLAINTEXT"
    assert parse("kafkas://a/").settings["security.protocol"] == "SSL"


def test_user_and_password_are_for_sasl_and_the_password_is_never_shown() -> None:
    address = parse(f"kafkas://us%40er:{SECRET}%2F@a?sasl=SCRAM-SHA-512")
    assert address.settings["security.protocol"] == "SASL_SSL"
    assert address.settings["sasl.mechanism"] == "SCRAM-SHA-512"
    assert (address.settings["sasl.username"], address.settings["sasl.password"]) == ("us@er", f"{SECRET}/")
    assert SECRET not in f"{address} {address!r}"
    assert str(address) == "kafkas://us%40er:***@a?sasl=SCRAM-SHA-512"
    assert address.without_secrets(f"wrong: {SECRET}/!") == "wrong: ***!"


def test_a_transaction_that_cannot_be_ended_is_told_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    class Unreachable:
        def abort_transaction(self, timeout: float) -> None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"nobody answered {SECRET}"))

    cluster = Cluster(parse(f"kafka://user:{SECRET}@127.0.0.1:1"))
    cluster._abort(cast("Any", Unreachable()), "mails")
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == [
        "A transaction of the group 'mails' at 'kafka://user:***@127.0.0.1:1' was not ended, and ends by its time, in "
        "10 s: Kafka says 'nobody answered ***'."
    ]


def test_what_the_url_does_not_name_is_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text("a certificate")
    (tmp_path / "password").write_text(f"{SECRET}\n")
    monkeypatch.setenv("POLYWIRE_KAFKA_USER", "user")
    monkeypatch.setenv("POLYWIRE_KAFKA_PASSWORD", "from the environment")
    monkeypatch.setenv("POLYWIRE_KAFKA_SASL", "SCRAM-SHA-256")
    monkeypatch.setenv("POLYWIRE_KAFKA_LINGER", "0.5")
    monkeypatch.setenv("POLYWIRE_KAFKA_CA_FILE", str(tmp_path / "ca.pem"))
    address = parse("kafkas://a?linger=0.25")
    assert address.settings["sasl.password"] == "from the environment"
    assert address.settings["sasl.mechanism"] == "SCRAM-SHA-256"
    assert address.settings["ssl.ca.location"] == str(tmp_path / "ca.pem")
    assert address.linger == 0.25
    assert parse(f"kafkas://a?password_file={tmp_path}/password").settings["sasl.password"] == SECRET
    assert parse(f"kafkas://user:{SECRET}@a").settings["sasl.password"] == SECRET
    # A CA file in the environment is for those that use TLS.
    assert "ssl.ca.location" not in parse("kafka://a").settings


def test_librdkafkas_own_settings_go_along() -> None:
    settings = parse("kafka://a?client.rack=eu-1&socket.timeout.ms=5000&client_id=orders").settings
    assert (settings["client.rack"], settings["socket.timeout.ms"], settings["client.id"]) == ("eu-1", "5000", "orders")


@pytest.mark.parametrize(
    ("url", "shown", "reason"),
    [
        ("kafka://", None, "it names no host"),
        ("kafka:a:9092", None, "it names no host"),
        ("kafka://a,", None, "it names no host"),
        ("kafka://a/topic", None, "'a/topic' is no host and port"),
        ("kafka://a:b", None, "'b' is no port"),
        ("kafka://a:70000", None, "'70000' is no port"),
        ("kafka://a?linger", None, "what follows the '?' is no list of options"),
        ("kafka://a?linger=x", None, "linger='x' is no number from 0 to 10"),
        ("kafka://a?linger=nan", None, "linger='nan' is no number from 0 to 10"),
        ("kafka://a?delivery_timeout=0", None, "delivery_timeout='0' is no number from 0.1 to 86400"),
        ("kafka://a?group_protocol=new", None, "group_protocol='new' is not one of auto, classic, consumer"),
        (f"kafka://u:{SECRET}@a?sasl=GSSAPI", "kafka://u:***@a?sasl=GSSAPI",
         "sasl='GSSAPI' is not one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
        ("kafka://a?sasl=PLAIN", None, "sasl='PLAIN' needs a user"),
        ("kafka://a?ca_file=/x", None, "ca_file is for TLS. Begin it with 'kafkas://'"),
        ("kafkas://a?ca_file=/no/such", None, "ca_file='/no/such' was not read: No such file or directory"),
        ("kafka://u@a?password_file=/no/such", "kafka://u@a?password_file=***",
         "its password was not read from '/no/such': No such file or directory"),
        ("kafka://a?acks=1", None,
         "'acks' is no option of it. Choose from: ca_file, cert_file, client_id, commit_interval, compression, "
         "connect_timeout, delivery_timeout, group_protocol, key_file, linger, max_message_bytes, password_file, "
         "rebalance_timeout, replication, sasl, session_timeout, or librdkafka's with a dot"),
        ("kafka://a?enable.idempotence=false", None,
         "'enable.idempotence' is not for you to set: polywire's guarantees rest on it"),
    ],
)  # fmt: skip
def test_a_url_that_makes_no_sense_is_refused(url: str, shown: str | None, reason: str) -> None:
    with pytest.raises(SetupError) as raised:
        open_events(url)
    assert str(raised.value) == f"{shown or url!r} was not opened: {reason}. {FORM}"


async def test_a_setting_that_librdkafka_does_not_take_is_refused_at_start() -> None:
    for setting, reason in (
        ("no.such", 'No such configuration property: "no.such"'),
        ("socket.timeout.ms=x", 'Invalid value for configuration property "socket.timeout.ms"'),
    ):
        url = f"kafka://u:{SECRET}@a?{setting if '=' in setting else setting + '=1'}"
        log = KafkaLog(url)
        with pytest.raises(SetupError) as raised:
            await log.start()
        shown = url.replace(SECRET, "***")
        assert str(raised.value) == f"{shown!r} was not opened: librdkafka says {reason!r}. {FORM}"
        assert not log.connected


async def test_a_cluster_that_is_not_there_is_unreachable(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    log = KafkaLog(f"kafka://user:{SECRET}@127.0.0.1:1?connect_timeout=0.5")
    with pytest.raises(BackendUnreachable) as raised:
        await log.start()
    text = str(raised.value)
    assert text.startswith("Kafka at 'kafka://user:***@127.0.0.1:1?connect_timeout=0.5' was not reached within 0.5 s: ")
    assert "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused" in text
    assert SECRET not in text + caplog.text
    assert not log.connected


async def test_a_host_that_does_not_exist_is_named() -> None:
    log = KafkaLog("kafka://no-such-host.invalid?connect_timeout=2")
    with pytest.raises(BackendUnreachable, match=r"Failed to resolve 'no-such-host\.invalid:9092'"):
        await log.start()


def test_a_password_does_not_get_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "polywire.bus.kafka")
    log = Log(parse(f"kafka://user:{SECRET}@a"))
    log.log(logging.ERROR, "%s [%s] sasl.password=%s 100%%", "FAIL", "rdkafka#producer-1", SECRET)
    log.log(logging.INFO, f"plain {SECRET} 100%")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "FAIL [rdkafka#producer-1] sasl.password=*** 100%"),
        ("INFO", "plain *** 100%"),
    ]


def test_kafka_carries_no_tasks() -> None:
    with pytest.raises(SetupError) as raised:
        open_tasks("kafka://a")
    assert str(raised.value).startswith("tasks = 'kafka:...' was not opened: 'kafka' carries no tasks. Choose one of ")


def test_a_missing_client_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith(("confluent_kafka", "polywire.bus.backend.kafka")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(SetupError) as raised:
        open_events("kafka://a")
    assert str(raised.value) == (
        "events = 'kafka:...' was not opened: the package 'confluent_kafka' is missing. "
        "Install it with `pip install 'polywire[kafka]'`."
    )
