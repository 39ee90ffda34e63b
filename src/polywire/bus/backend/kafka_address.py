"""Where a Kafka cluster is and how it is used, from its URL and the environment to librdkafka's settings."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from polywire.bus.core.urls import masked
from polywire.errors import SetupError

LOGGER = logging.getLogger("polywire.bus.kafka")

DEFAULT_PORT = 9092
CONNECT_TIMEOUT = 10.0
DELIVERY_TIMEOUT = 30.0
"""Seconds for which librdkafka goes on trying to deliver; a sender that names no time limit waits as long."""
COMMIT_INTERVAL = 0.5
REBALANCE_TIMEOUT = 300.0
"""Seconds after which the group goes on without a member that does not give its partitions up."""
SESSION_TIMEOUT = 45.0
"""Seconds after which a member that is not heard of is dead, of the classic protocol; else the broker decides."""
MAX_MESSAGE_BYTES = 1_000_000
ENVELOPE_BYTES = 48_576
"""Room for key and headers beside the body; together they are what brokers take unless told otherwise (1 MiB)."""
COPY_BYTES = 32_768
"""Room for what a retry or a dead letter has in addition."""

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
PROTOCOLS = ("auto", "classic", "consumer")
COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")
OPTIONS = (
    "ca_file",
    "cert_file",
    "client_id",
    "commit_interval",
    "compression",
    "connect_timeout",
    "delivery_timeout",
    "group_protocol",
    "key_file",
    "linger",
    "max_message_bytes",
    "password_file",
    "rebalance_timeout",
    "replication",
    "sasl",
    "session_timeout",
)
_ENVIRONMENT = "POLYWIRE_KAFKA_"
"""Before an option's name in upper case, where the URL does not name it: POLYWIRE_KAFKA_CA_FILE; and ..._USER,
..._PASSWORD."""
_OURS = (
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "delivery.timeout.ms",
    "enable.",
    "group.",
    "isolation.level",
    "max.in.flight",
    "message.timeout.ms",
    "partition.assignment.strategy",
    "partitioner",
    "plugin.",
    "request.required.acks",
    "sasl.",
    "security.",
    "ssl.",
    "transactional.id",
)
"""Beginnings of librdkafka's settings that the guarantees rest on, or that have an option of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A cluster as its URL names it. Its text has no password."""

    shown: str
    settings: dict[str, Any] = field(repr=False)
    """librdkafka's, for clients of every kind."""
    secrets: tuple[str, ...] = field(repr=False, default=())
    group_protocol: str = "auto"
    compression: str = "none"
    linger: float = 0.002
    """Seconds for which messages are gathered into one request."""
    replication: int = -1
    """Of topics that are declared; -1 is the broker's default."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    connect_timeout: float = CONNECT_TIMEOUT
    delivery_timeout: float = DELIVERY_TIMEOUT
    commit_interval: float = COMMIT_INTERVAL
    rebalance_timeout: float = REBALANCE_TIMEOUT
    session_timeout: float = SESSION_TIMEOUT

    def __str__(self) -> str:
        return self.shown

    def without_secrets(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


class Log:
    """What librdkafka has to say, for Python's logging. It takes the place of a `logging.Logger`."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def log(self, level: int, text: str, *values: object) -> None:
        # Nothing in there needs anybody at once: what does is an error of a call, or of a message.
        LOGGER.log(min(level, logging.WARNING), "%s", self._address.without_secrets(text % values if values else text))


def parse(url: str) -> Address:
    """From `kafka://user:password@host:9092,host2:9092?group_protocol=consumer` or `kafkas:`. Raises SetupError."""
    shown = masked(url)
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    user_info, _, hosts = rest.rstrip("/").rpartition("@")
    user, _, password = user_info.partition(":")
    user = unquote(user) or os.environ.get(_ENVIRONMENT + "USER", "")
    tls = scheme.lower() == "kafkas"
    options, settings = _options(shown, query)
    _add_environment(options, tls=tls, user=user)
    settings["bootstrap.servers"] = _servers(shown, hosts)
    settings["client.id"] = options.get("client_id", "polywire")
    # Without these, a broker that was away for a while is asked again only after 10 s.
    settings.setdefault("reconnect.backoff.max.ms", 2000)
    settings.setdefault("log.connection.close", False)
    secrets = _security(shown, tls, user, unquote(password), options, settings)
    return Address(
        shown=shown,
        settings=settings,
        secrets=secrets,
        group_protocol=_choice(shown, options, "group_protocol", PROTOCOLS, "auto"),
        compression=_choice(shown, options, "compression", COMPRESSIONS, "none"),
        linger=_number(shown, options, "linger", 0.002, (0, 10)),
        replication=int(_number(shown, options, "replication", -1, (-1, 100))),
        max_message_bytes=int(_number(shown, options, "max_message_bytes", MAX_MESSAGE_BYTES, (1000, 64_000_000))),
        connect_timeout=_number(shown, options, "connect_timeout", CONNECT_TIMEOUT, (0.1, 600)),
        delivery_timeout=_number(shown, options, "delivery_timeout", DELIVERY_TIMEOUT, (0.1, 86_400)),
        commit_interval=_number(shown, options, "commit_interval", COMMIT_INTERVAL, (0.01, 60)),
        rebalance_timeout=_number(shown, options, "rebalance_timeout", REBALANCE_TIMEOUT, (1, 86_400)),
        session_timeout=_number(shown, options, "session_timeout", SESSION_TIMEOUT, (1, 3600)),
    )


def wrong(shown: str, reason: str) -> SetupError:
    return SetupError(f"{shown!r} was not opened: {reason}. Write it as 'kafka://user:password@host:9092,host2:9092'.")


def _servers(shown: str, hosts: str) -> str:
    """With a port each."""
    found: list[str] = []
    for host in hosts.split(","):
        name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if not colon:
            name, port = host, str(DEFAULT_PORT)
        if not name or "/" in name:
            raise wrong(shown, "it names no host" if not host else f"{host!r} is no host and port")
        if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
            raise wrong(shown, f"{port!r} is no port")
        found.append(f"{name}:{port}")
    return ",".join(found)


def _options(shown: str, query: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Ours, and librdkafka's own: those have a dot in their names."""
    try:
        given = dict(parse_qsl(query, strict_parsing=bool(query), keep_blank_values=True))
    except ValueError:
        raise wrong(shown, "what follows the '?' is no list of options") from None
    settings: dict[str, Any] = {}
    for name in [name for name in given if "." in name]:
        if name.startswith(_OURS):
            raise wrong(shown, f"{name!r} is not for you to set: polywire's guarantees rest on it")
        settings[name] = given.pop(name)
    if unknown := [name for name in given if name not in OPTIONS]:
        choices = ", ".join(OPTIONS)
        raise wrong(shown, f"{unknown[0]!r} is no option of it. Choose from: {choices}, or librdkafka's with a dot")
    return given, settings


def _add_environment(options: dict[str, str], *, tls: bool, user: str) -> None:
    """What the URL does not name, but for what it has no use for: the environment may be meant for other clusters."""
    useless = set() if tls else {"ca_file", "cert_file", "key_file"}
    if not user:
        useless |= {"sasl", "password_file"}
    for name in OPTIONS:
        if name not in options and name not in useless and (value := os.environ.get(_ENVIRONMENT + name.upper())):
            options[name] = value


def _security(
    shown: str, tls: bool, user: str, password: str, options: dict[str, str], settings: dict[str, Any]
) -> tuple[str, ...]:
    """Sets what TLS and SASL need; returns what must not be shown."""
    settings["security.protocol"] = ("SASL_" if user else "") + ("SSL" if tls else "PLAINTEXT")
    for option, setting in (
        ("ca_file", "ssl.ca.location"),
        ("cert_file", "ssl.certificate.location"),
        ("key_file", "ssl.key.location"),
    ):
        if option in options:
            if not tls:
                raise wrong(shown, f"{option} is for TLS. Begin it with 'kafkas://'")
            settings[setting] = _readable(shown, option, options[option])
    if not user:
        if "sasl" in options:
            raise wrong(shown, f"sasl={options['sasl']!r} needs a user")
        return ()
    settings["sasl.mechanism"] = _choice(shown, options, "sasl", MECHANISMS, "PLAIN")
    settings["sasl.username"] = user
    settings["sasl.password"] = password or _password(shown, options)
    return (settings["sasl.password"],) if settings["sasl.password"] else ()


def _password(shown: str, options: dict[str, str]) -> str:
    if path := options.get("password_file"):
        try:
            with open(path) as file:
                return file.read().strip()
        except OSError as error:
            raise wrong(shown, f"its password was not read from {path!r}: {error.strerror}") from None
    return os.environ.get(_ENVIRONMENT + "PASSWORD", "")


def _readable(shown: str, option: str, path: str) -> str:
    try:
        with open(path, "rb"):
            return path
    except OSError as error:
        raise wrong(shown, f"{option}={path!r} was not read: {error.strerror}") from None


def _choice(shown: str, options: dict[str, str], name: str, choices: tuple[str, ...], default: str) -> str:
    value = options.get(name, default)
    if value not in choices:
        raise wrong(shown, f"{name}={value!r} is not one of {', '.join(choices)}")
    return value


def _number(shown: str, options: dict[str, str], name: str, default: float, between: tuple[float, float]) -> float:
    text = options.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    least, most = between
    if not least <= number <= most:
        raise wrong(shown, f"{name}={text!r} is no number from {least:g} to {most:g}")
    return number
