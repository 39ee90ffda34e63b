"""RabbitMQ, as Debian packages it: 3.10 in Debian 12, and 4.0 from a tree of Debian 13 beside it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from servers.base import Server, ServerError, answers, apt_install, cache, end, ports, spawn, wait_until_ready

SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Not the wrapper in /usr/sbin, which changes the user and the paths."""


class RabbitMQ(Server):
    """One node with an epmd of its own. `url` is that of the user guest, who may come from loopback only.

    *config* is added to its rabbitmq.conf. With *certificate* (a file with chain and key) and *authority* (a file) it
    listens for TLS too, at `tls_url`, and asks for client certificates without requiring them.
    """

    name = "rabbitmq"

    def __init__(self, *, config: str = "", certificate: Path | None = None, authority: Path | None = None) -> None:
        self.tls_url = ""
        self._config = config
        self._certificate = certificate
        self._authority = authority
        self._ports: dict[str, int] = {}
        self._epmd: subprocess.Popen[bytes] | None = None
        self._node: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str | None:
        return None if SCRIPT.exists() and shutil.which("epmd") else "the Debian package rabbitmq-server"

    @classmethod
    def install(cls) -> None:
        if cls.missing():
            apt_install("rabbitmq-server")

    def start(self, directory: Path) -> str:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._ports = ports(directory, "amqp", "amqps", "dist", "epmd")
        self._configure(directory)
        log = directory / "server.log"
        if self._epmd is None or self._epmd.poll() is not None:
            epmd = ["epmd", "-address", "127.0.0.1", "-port", str(self._ports["epmd"])]
            self._epmd = spawn(self._command(directory, epmd), log=log)
        environment = self._environment(self._inside(directory))
        self._node = spawn(self._command(directory, [str(SCRIPT)]), log=log, environment=environment)
        wait_until_ready(self, log)
        self.url = f"amqp://guest:guest@127.0.0.1:{self._ports['amqp']}/"
        if self._certificate:
            self.tls_url = f"amqps://guest:guest@localhost:{self._ports['amqps']}/"
        return self.url

    def stop(self) -> None:
        end(self._node)
        end(self._epmd)

    def kill(self) -> None:
        end(self._node, signal.SIGKILL)

    def ready(self) -> bool:
        # Connection.Start is a method frame (1) on channel 0.
        return answers(self._ports["amqp"], b"AMQP\0\0\x09\x01", lambda reply: reply.startswith(b"\x01\0\0"))

    @property
    def running(self) -> bool:
        return self._node is not None and self._node.poll() is None

    def _command(self, directory: Path, program: list[str]) -> list[str]:
        """How *program* is run with *directory*."""
        return program

    def _inside(self, directory: Path) -> Path:
        """What *directory* is called where the programs run."""
        return directory

    def _configure(self, directory: Path) -> None:
        lines = [f"listeners.tcp.1 = 127.0.0.1:{self._ports['amqp']}", "disk_free_limit.absolute = 50MB"]
        if self._certificate and self._authority:
            lines += [
                f"listeners.ssl.1 = 127.0.0.1:{self._ports['amqps']}",
                f"ssl_options.cacertfile = {self._authority}",
                f"ssl_options.certfile = {self._certificate}",
                f"ssl_options.keyfile = {self._certificate}",
                "ssl_options.verify = verify_peer",
            ]
            if "fail_if_no_peer_cert" not in self._config:
                lines.append("ssl_options.fail_if_no_peer_cert = false")
        (directory / "rabbitmq.conf").write_text("\n".join([*lines, self._config]) + "\n")
        (directory / "enabled_plugins").write_text("[].\n")
        (directory / "rabbitmq-env.conf").write_text("")

    def _environment(self, directory: Path) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": str(directory),
            "RABBITMQ_NODENAME": f"t{self._ports['amqp']}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._ports["amqp"]),
            "RABBITMQ_DIST_PORT": str(self._ports["dist"]),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
            "ERL_EPMD_PORT": str(self._ports["epmd"]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # Loopback only; and no spinning of idle schedulers, which would take the cores from the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} "
            "+sbwt none +sbwtdcpu none +sbwtdio none",
            # Makes the script exec the VM, so that a signal reaches it.
            "RUNNING_UNDER_SYSTEMD": "1",
        }


class RabbitMQ4(RabbitMQ):
    """RabbitMQ 4.0 of Debian 13, in a directory tree of its own that it sees as its root. Needs root itself."""

    name = "rabbitmq4"
    optional = True
    SUITE = "trixie"

    @classmethod
    def tree(cls) -> Path:
        return cache() / cls.SUITE

    @classmethod
    def missing(cls) -> str | None:
        if os.geteuid() != 0:
            return "root (it runs in a chroot), which"
        if not (cls.tree() / "complete").exists():
            return f"RabbitMQ in a tree of Debian's {cls.SUITE}"
        mount = ["unshare", "--mount", "mount", "-t", "proc", "proc", str(cls.tree() / "proc")]
        allowed = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        return None if allowed else "the right to mount something (it runs in a chroot), which"

    @classmethod
    def install(cls) -> None:
        if cls.missing() is None:
            return
        if shutil.which("debootstrap") is None:
            apt_install("debootstrap")
        tree = cls.tree()
        shutil.rmtree(tree, ignore_errors=True)
        tree.parent.mkdir(parents=True, exist_ok=True)
        command = ["debootstrap", "--variant=minbase", "--include=rabbitmq-server", cls.SUITE, str(tree)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            text = (done.stdout + done.stderr).strip()[-2000:]
            raise ServerError(f"{cls.name} was not installed: `{' '.join(command)}` failed:\n{text}")
        (tree / "etc/hosts").write_text("127.0.0.1 localhost\n")
        (tree / "srv/server").mkdir(parents=True)
        (tree / "complete").touch()

    def _command(self, directory: Path, program: list[str]) -> list[str]:
        # In a mount namespace of its own: nothing has to be unmounted, however it ends.
        tree = self.tree()
        script = (
            f"mount --bind {directory} {tree}/srv/server && mount --bind /dev {tree}/dev && "
            f'mount -t proc proc {tree}/proc && exec chroot {tree} "$@"'
        )
        return ["unshare", "--mount", "sh", "-c", script, "sh", *program]

    def _inside(self, directory: Path) -> Path:
        return Path("/srv/server")
