"""Apache Kafka without ZooKeeper (KRaft), one broker that is its own controller, from its published jars."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from servers.base import Server, ServerError, answers, apt_install, cache, end, ports, spawn, tail, wait_until_ready

VERSION = "4.3.1"
JARS = (
    f"org.apache.kafka:kafka_2.13:{VERSION}",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
    "org.apache.logging.log4j:log4j-core:2.25.4",
)
"""Kafka speaks slf4j 1.7, hence not log4j-slf4j2-impl."""

SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=3000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=200
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"""
"""One node has no replicas; and members that died are to be missed soon, as is a broker that was killed."""

LOGGING = """\
rootLogger.level=INFO
rootLogger.appenderRefs=stdout
rootLogger.appenderRef.stdout.ref=STDOUT
appenders=stdout
appender.stdout.type=Console
appender.stdout.name=STDOUT
appender.stdout.layout.type=PatternLayout
appender.stdout.layout.pattern=[%d] %p %m (%c)%n
"""


class Kafka(Server):
    """One broker. `url` needs no password.

    *config* is added to its server.properties. With *certificate* (a PEM file with key and chain) and *users* (name
    and password) it listens at `secure_url(user)` too: TLS, SASL by PLAIN and SCRAM-SHA-256. Who comes by `url` may
    do everything there, others only what ACLs allow.
    """

    name = "kafka"

    def __init__(
        self, *, config: str = "", certificate: Path | None = None, users: Mapping[str, str] | None = None
    ) -> None:
        self._config = config
        self._certificate = certificate
        self._users = dict(users or {})
        self._ports: dict[str, int] = {}
        self._broker: subprocess.Popen[bytes] | None = None
        self._directory = Path()

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("java") is None:
            return "the Debian package default-jre-headless"
        return None if _jars().is_dir() else f"Apache Kafka {VERSION} (44 MB of jars)"

    @classmethod
    def install(cls) -> None:
        wanted = {"java": "default-jre-headless", "mvn": "maven"}
        if absent := [package for command, package in wanted.items() if shutil.which(command) is None]:
            apt_install(*absent)
        if not _jars().is_dir():
            _fetch(_jars())

    def start(self, directory: Path) -> str:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._ports = ports(directory, "broker", "controller", "secure")
        self._configure(directory)
        log = directory / "server.log"
        if not (directory / "data" / "meta.properties").exists():
            self._format(directory)
        command = [*_java(directory), "kafka.Kafka", str(directory / "server.properties")]
        self._broker = spawn(command, log=log)
        wait_until_ready(self, log)
        self.url = f"kafka://127.0.0.1:{self._ports['broker']}"
        return self.url

    def start_again(self) -> str:
        """Where it was before."""
        return self.start(self._directory)

    def secure_url(self, user: str) -> str:
        return f"kafkas://{user}:{self._users[user]}@localhost:{self._ports['secure']}"

    def stop(self) -> None:
        end(self._broker)

    def kill(self) -> None:
        end(self._broker, signal.SIGKILL)

    def ready(self) -> bool:
        # ApiVersions (18), version 0, as request 1 of nobody; the answer begins with its length and that number.
        ask = bytes.fromhex("0000000a 0012 0000 00000001 ffff")
        return answers(self._ports["broker"], ask, lambda reply: reply[4:8] == b"\0\0\0\x01")

    @property
    def running(self) -> bool:
        return self._broker is not None and self._broker.poll() is None

    @property
    def pid(self) -> int:
        return self._broker.pid if self._broker else 0

    def _configure(self, directory: Path) -> None:
        controller = f"127.0.0.1:{self._ports['controller']}"
        open_ = f"PLAINTEXT://127.0.0.1:{self._ports['broker']}"
        secure = f",SECURE://127.0.0.1:{self._ports['secure']}" if self._certificate else ""
        # Clients check the name in the certificate against what the broker calls itself.
        advertised = secure.replace("127.0.0.1", "localhost")
        lines = [
            SETTINGS,
            f"controller.quorum.bootstrap.servers={controller}",
            f"listeners={open_}{secure},CONTROLLER://{controller}",
            f"advertised.listeners={open_}{advertised},CONTROLLER://{controller}",
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL",
            f"log.dirs={directory / 'data'}",
            *self._security(),
            self._config,
        ]
        (directory / "server.properties").write_text("\n".join(lines) + "\n")
        (directory / "log4j2.properties").write_text(LOGGING)

    def _security(self) -> list[str]:
        if self._certificate is None:
            return []
        known = " ".join(f'user_{name}="{password}"' for name, password in self._users.items())
        modules = "org.apache.kafka.common.security"
        return [
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={self._certificate}",
            "listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256",
            f"listener.name.secure.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required {known};",
            f"listener.name.secure.scram-sha-256.sasl.jaas.config={modules}.scram.ScramLoginModule required;",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:ANONYMOUS",
        ]

    def _format(self, directory: Path) -> None:
        identity = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
        scram = [
            option
            for name, password in self._users.items()
            for option in ("--add-scram", f"SCRAM-SHA-256=[name={name},password={password}]")
        ]
        tool = ["kafka.tools.StorageTool", "format", "--standalone", f"--cluster-id={identity}", *scram]
        done = spawn(
            [*_java(directory), *tool, "-c", str(directory / "server.properties")], log=directory / "format.log"
        ).wait()
        if done != 0:
            raise ServerError(
                f"kafka was not started: its storage could not be made.\n{tail(directory / 'format.log')}"
            )


def _jars() -> Path:
    return cache() / f"kafka-{VERSION}"


def _java(directory: Path) -> list[str]:
    java = shutil.which("java") or "java"
    logging = f"-Dlog4j2.configurationFile=file:{directory / 'log4j2.properties'}"
    return [java, "-Xmx512m", "-XX:+UseSerialGC", logging, "-cp", f"{_jars()}/*"]


def _fetch(directory: Path) -> None:
    """Kafka and all that it needs into *directory*, which is there completely or not at all."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as workplace:
        (Path(workplace) / "pom.xml").write_text(_pom())
        jars = Path(workplace) / "jars"
        command = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime"]
        done = subprocess.run(
            [*command, f"-DoutputDirectory={jars}"], cwd=workplace, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            text = (done.stdout + done.stderr).strip()[-2000:]
            raise ServerError(f"Apache Kafka {VERSION} was not installed: `{' '.join(command)}` failed:\n{text}")
        if not directory.is_dir():
            jars.rename(directory)


def _pom() -> str:
    wanted = ""
    for jar in JARS:
        group, artifact, version = jar.split(":")
        wanted += f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
        wanted += f"<version>{version}</version></dependency>"
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>polywire</groupId><artifactId>servers</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{wanted}</dependencies></project>"
    )
