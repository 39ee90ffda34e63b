"""TLS at the server and at the client: from file names in the settings to an `ssl.SSLContext` that follows them."""

from __future__ import annotations

import hashlib
import logging
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import SetupError

log = logging.getLogger("polywire.tls")

RECHECK = 1.0
"""Seconds between two looks at the files of a context: how long one that was replaced may still be used."""

_ALPN = ["h2", "http/1.1"]


class LiveContext(ssl.SSLContext):
    """Gives each new connection what its files hold by then, without a restart.

    The files are looked at when a connection begins, at most every `RECHECK` seconds, and compared by content, for a
    time of change says nothing of files that are copied with it. New ones are used as a whole or not at all: where they
    do not fit together, those loaded before stay in use, and the log says why, once. Connections that are open stay as
    they are.
    """

    _latest: ssl.SSLContext
    """The context itself as long as its files are those of the start."""

    def follow(self, build: Callable[[], ssl.SSLContext], files: Iterable[str | Path | None], clock: Clock) -> None:
        """Make a new context by *build* whenever *files* have changed. *build* raises SetupError for those that are
        wrong."""
        self._latest = self
        self._build = build
        self._files = [str(file) for file in files if file is not None]
        self._clock = clock
        self._seen = self._contents()
        self._due = clock.monotonic() + RECHECK

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """What asyncio and uvloop call for each connection, on either side."""
        if self._clock.monotonic() >= self._due:
            self.look()
        if self._latest is self:
            return super().wrap_bio(*arguments, **options)
        return self._latest.wrap_bio(*arguments, **options)

    def look(self) -> None:
        """Look at the files now."""
        self._due = self._clock.monotonic() + RECHECK
        contents = self._contents()
        if contents == self._seen:
            return
        self._seen = contents
        try:
            self._latest = self._build()
        except SetupError as error:
            log.error("%s What was loaded before stays in use until the files are right.", error)
        else:
            log.info("new connections use what is in %s now", ", ".join(self._files))

    def _contents(self) -> list[bytes | None]:
        return [_digest(file) for file in self._files]


def _digest(file: str) -> bytes | None:
    try:
        return hashlib.sha256(Path(file).read_bytes()).digest()
    except OSError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """A server's certificate, and whose certificates it accepts from clients. Files are in PEM form."""

    certificate: str | Path
    """The certificate, followed by the intermediate ones."""
    key: str | Path | None = None
    """The private key, without a pass phrase; None if it is in the certificate's file."""
    client_ca: str | Path | None = None
    """Who signs the clients' certificates. Giving it makes a certificate compulsory (mTLS)."""

    def context(self, *, clock: Clock = SYSTEM_CLOCK) -> LiveContext:
        """Build a context that follows its files. Raises SetupError naming the file at fault."""
        live = LiveContext(ssl.PROTOCOL_TLS_SERVER)
        live.follow(self._built, (self.certificate, self.key, self.client_ca), clock)
        self._fill(live)
        return live

    def _built(self) -> ssl.SSLContext:
        return self._fill(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def _fill(self, context: ssl.SSLContext) -> ssl.SSLContext:
        _secure(context)
        context.set_alpn_protocols(_ALPN)
        _load_certificate(context, self.certificate, self.key)
        if self.client_ca is not None:
            _load_ca(context, self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """Which servers a client trusts, and the certificate it shows them. Files are in PEM form."""

    ca: str | Path | None = None
    """Who signs the servers' certificates; None for the machine's own authorities."""
    certificate: str | Path | None = None
    """The client's certificate, for servers that want one (mTLS)."""
    key: str | Path | None = None
    server_name: str | None = None
    """The name to find in the server's certificate, where it is not the host of the address."""

    def context(self, version: str = "2", *, clock: Clock = SYSTEM_CLOCK) -> LiveContext:
        """Build a context that follows its files and offers HTTP *version*, `"2"` or `"1.1"`.

        Raises SetupError naming the file at fault.
        """
        live = LiveContext(ssl.PROTOCOL_TLS_CLIENT)
        build = partial(self._built, version)
        live.follow(build, (self.ca, self.certificate, self.key), clock)
        self._fill(live, version)
        return live

    def _built(self, version: str) -> ssl.SSLContext:
        return self._fill(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), version)

    def _fill(self, context: ssl.SSLContext, version: str) -> ssl.SSLContext:
        _secure(context)
        context.set_alpn_protocols(["h2"] if version == "2" else ["http/1.1"])
        if self.ca is None:
            context.load_default_certs()
        else:
            _load_ca(context, self.ca)
        if self.certificate is not None:
            _load_certificate(context, self.certificate, self.key)
        return context


def _secure(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # RFC 9113 section 9.2: no compression, no renegotiation.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def _load_certificate(context: ssl.SSLContext, certificate: str | Path, key: str | Path | None) -> None:
    _read("certificate", certificate)
    if key is not None:
        _read("key", key)
    kept = f"key {str(key)!r}" if key is not None else f"key in {str(certificate)!r}"

    def refuse_pass_phrase() -> str:
        raise SetupError(f"The {kept} has a pass phrase. Store it without one, readable by the service alone.")

    def load() -> None:
        context.load_cert_chain(certificate, key, password=refuse_pass_phrase)

    _load(load, f"The certificate {str(certificate)!r} with the {kept} cannot be used")


def _load_ca(context: ssl.SSLContext, ca: str | Path) -> None:
    _read("CA file", ca)
    _load(lambda: context.load_verify_locations(ca), f"The CA file {str(ca)!r} cannot be used")


def _read(what: str, path: str | Path) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SetupError(f"The {what} {str(path)!r} cannot be read: {reason}.") from error


def _load(load: Callable[[], None], failure: str) -> None:
    try:
        load()
    except ssl.SSLError as error:
        reason = error.reason.replace("_", " ").lower() if error.reason else "it is not in PEM form"
        raise SetupError(f"{failure}: {reason}.") from error
    except OSError as error:  # gone since it was read
        raise SetupError(f"{failure}: {(error.strerror or str(error)).lower()}.") from error
