"""How the services of a system prove to each other who they are, and what has to be minded about it while they run."""

from __future__ import annotations

import logging
import math
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from polywire.admission import Authenticator
from polywire.clock import SYSTEM_CLOCK, Clock, Timer
from polywire.context import Call
from polywire.net.certificate import ends_of
from polywire.net.tls import ClientTls, ServerTls
from polywire.server import BearerTokens, Certificates
from polywire.system.file import ServiceEntry, SystemFile
from polywire.system.tokens import TokenSource

log = logging.getLogger("polywire.system")

LOOK = 3600.0
"""Seconds between two looks at when certificates end and who may read keys."""
DAY = 86400.0
WARNING = 14 * DAY
"""Seconds before the end of a certificate from which on it is mentioned, once a day."""


def authenticator_of(system: SystemFile, name: str, tokens: Mapping[str, TokenSource]) -> Authenticator | None:
    """How service *name* tells its callers: by their tokens as soon as one has any, by certificates where it asks."""
    by_certificate = Certificates(system.services) if system.services[name].asks_for_certificates else None
    if not tokens:
        return by_certificate
    by_token = BearerTokens({service: source.accepted for service, source in tokens.items()})
    return by_token if by_certificate is None else _TokensOrCertificates(by_token, by_certificate)


class _TokensOrCertificates:
    """Credentials that are given have to be right, whatever the certificate; without any, the certificate counts."""

    def __init__(self, tokens: Authenticator, certificates: Authenticator) -> None:
        self._tokens = tokens
        self._certificates = certificates

    def caller_of(self, call: Call) -> str | None:
        return (self._certificates if call.credentials is None else self._tokens).caller_of(call)


def allowed_of(entry: ServiceEntry) -> tuple[str, ...] | None:
    """Who may call a service as its `allow` has it; the services of one app may always call each other."""
    return None if entry.allow is None else (*entry.allow, entry.name)


def server_tls(system: SystemFile, entry: ServiceEntry) -> ServerTls | None:
    """What service *entry* listens with."""
    if entry.tls is None or not entry.tls.listen or entry.tls.certificate is None:
        return None
    return ServerTls(
        certificate=system.directory / entry.tls.certificate,
        key=system.path(entry.tls.key),
        client_ca=system.path(entry.tls.ca) if entry.asks_for_certificates else None,
    )


def client_tls(system: SystemFile, caller: ServiceEntry | None, target: str) -> ClientTls | None:
    """TLS as the target's entry demands it; the caller shows its own certificate, if it has one."""
    served = system.services[target].tls
    if served is None or not served.listen:
        return None
    own = None if caller is None else caller.tls
    return ClientTls(
        ca=system.path(served.ca or (None if own is None else own.ca)),
        certificate=None if own is None else system.path(own.certificate),
        key=None if own is None else system.path(own.key),
        server_name=served.server_name,
    )


@dataclass(frozen=True, slots=True)
class _File:
    """A file that something of the system's trust is in."""

    what: str
    """`the certificate of service 'orders'`"""
    path: Path


class TrustWatch:
    """Says in the log which certificates of services end soon, once a day, and which secrets others may read, once.

    It looks at the start of its block, and every hour until the end.
    """

    def __init__(self, system: SystemFile, names: Iterable[str], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._certificates: list[_File] = []
        self._authorities: list[_File] = []
        self._secrets: list[_File] = []
        for name in names:
            self._add(system, system.services[name])
        self._said: dict[Path, float] = {}
        self._open: dict[Path, int] = {}
        self._timer: Timer | None = None

    def _add(self, system: SystemFile, entry: ServiceEntry) -> None:
        of = f"of service {entry.name!r}"
        if entry.tls is not None and entry.tls.certificate is not None:
            certificate = system.directory / entry.tls.certificate
            self._certificates.append(_File(f"the certificate {of}", certificate))
            self._secrets.append(_File(f"the key {of}", system.path(entry.tls.key) or certificate))
        if entry.tls is not None and entry.tls.ca is not None:
            self._authorities.append(_File(f"the CA {of}", system.directory / entry.tls.ca))
        if entry.token is not None and entry.token.startswith("file:"):
            self._secrets.append(_File(f"the token {of}", system.directory / entry.token.removeprefix("file:")))

    def __enter__(self) -> Self:
        if self._certificates or self._authorities or self._secrets:
            self._tick()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self.look()
        self._timer = self._clock.call_later(LOOK, self._tick)

    def look(self) -> None:
        """Look now. What cannot be read is the business of those who load it, and said by them."""
        for file in self._certificates:
            # The chain holds no longer than the first of its certificates,
            self._mind(file, min(_ends(file.path), default=math.inf))
        for file in self._authorities:
            # and calls are possible as long as one authority is left.
            self._mind(file, max(_ends(file.path), default=math.inf))
        for file in self._secrets:
            self._mind_mode(file)

    def _mind(self, file: _File, end: float) -> None:
        now = self._clock.time()
        if end - now > WARNING or now < self._said.get(file.path, -math.inf) + DAY:
            return
        self._said[file.path] = now
        day = time.strftime("%Y-%m-%d", time.gmtime(end))
        if end <= now:
            text = "%s in '%s' ended on %s, and is refused. Replace the file; it is read again without a restart."
            log.error(text, file.what, file.path, day)
        else:
            days = math.ceil((end - now) / DAY)
            left = "1 day" if days == 1 else f"{days} days"
            text = "%s in '%s' ends on %s, within %s. Replace the file; it is read again without a restart."
            log.warning(text, file.what, file.path, day, left)

    def _mind_mode(self, file: _File) -> None:
        try:
            mode = stat.S_IMODE(file.path.stat().st_mode)
        except OSError:
            return
        if mode & stat.S_IROTH and self._open.get(file.path) != mode:
            text = "%s in '%s' can be read by every user of this machine (mode %04o). Keep it to its owner: chmod 600."
            log.warning(text, file.what, file.path, mode)
        self._open[file.path] = mode


def _ends(path: Path) -> list[float]:
    try:
        return ends_of(path.read_bytes())
    except (OSError, ValueError):
        return []
