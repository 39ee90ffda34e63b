"""Where something listens, or can be reached: an address as people write it, taken apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from polywire.errors import SetupError

Scheme = Literal["", "grpc", "grpcs", "http", "https"]

_FORMS = (
    "Write host:port, [::1]:port, unix:/path or dns:///host:port, "
    "with grpc://, grpcs://, http:// or https:// before it if need be."
)
_SCHEMES: dict[str, Scheme] = {"grpc": "grpc", "grpcs": "grpcs", "http": "http", "https": "https"}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(?!/)(.*)", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One place to listen at or to connect to; `str` gives the form that people write."""

    host: str = ""
    port: int = 0
    path: str = ""
    """Of a Unix socket; empty for TCP."""
    scheme: Scheme = ""
    """What was written before it; empty if nothing was."""
    resolve: bool = False
    """`dns:///`: the name stands for all the addresses it resolves to, looked up again and again."""

    @property
    def secure(self) -> bool:
        """TLS was asked for by the scheme."""
        return self.scheme in ("grpcs", "https")

    @property
    def authority(self) -> str:
        """What goes into `host` and `:authority`."""
        if self.path:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"dns:///{self.authority}" if self.resolve else self.authority


def parse_address(text: str) -> Address:
    """Take one address apart. Raises SetupError saying what is wrong with it, and which forms there are."""
    rest = text.strip()
    scheme: Scheme = ""
    found = _SCHEME.fullmatch(rest)
    if found is not None and found[1].lower() != "dns":
        if found[1].lower() not in _SCHEMES:
            raise _wrong(text, f"the scheme {found[1]!r} is not known")
        scheme = _SCHEMES[found[1].lower()]
        rest = found[2]
    if rest.startswith("unix:"):
        return _unix(text, rest.removeprefix("unix:"), scheme)
    resolve = rest.startswith("dns:")
    if resolve:
        if not rest.startswith("dns:///"):
            raise _wrong(text, "it names a DNS server, which is not supported; use three slashes")
        rest = rest.removeprefix("dns:///")
    if scheme in ("http", "https", "grpc", "grpcs"):
        rest = rest.removesuffix("/")
        if scheme in ("http", "https") and not _has_port(rest):
            rest += ":443" if scheme == "https" else ":80"
    host, port = _host_port(text, rest)
    return Address(host=host, port=port, scheme=scheme, resolve=resolve)


def parse_addresses(text: str | Sequence[str]) -> tuple[Address, ...]:
    """Take a list of addresses apart: a sequence, or one text with commas. Raises SetupError, for an empty one too."""
    parts = text.split(",") if isinstance(text, str) else list(text)
    if not parts or parts == [""]:
        raise SetupError(f"There is no address. {_FORMS}")
    return tuple(parse_address(part) for part in parts)


def _unix(text: str, path: str, scheme: Scheme) -> Address:
    path = "/" + path.lstrip("/") if path.startswith("//") else path
    if not path:
        raise _wrong(text, "the path of the socket is missing")
    if len(path.encode()) > 100:
        raise _wrong(text, "the path is too long for a Unix socket; keep it under 100 bytes")
    return Address(path=path, scheme=scheme)


def _has_port(rest: str) -> bool:
    return ":" in rest.rpartition("]")[2]


def _host_port(text: str, rest: str) -> tuple[str, int]:
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        raise _wrong(text, "the port is missing")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if _IPV6.fullmatch(host) is None or ":" not in host:
            raise _wrong(text, f"{host!r} is not an IPv6 address")
    elif ":" in host:
        raise _wrong(text, "an IPv6 address needs brackets around it")
    elif not host:
        raise _wrong(text, "the host is missing; 127.0.0.1 is this machine alone, 0.0.0.0 every interface")
    elif _HOST.fullmatch(host) is None:
        raise _wrong(text, f"{host!r} is not a host name")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise _wrong(text, f"{port!r} is not a port, a number from 0 to 65535")
    return host, int(port)


def _wrong(text: str, reason: str) -> SetupError:
    return SetupError(f"{text!r} is not an address: {reason}. {_FORMS}")
