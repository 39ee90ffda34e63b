"""TLS at the server and at the client: from file names in the settings to an `ssl.SSLContext`."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from polywire.errors import SetupError

_ALPN = ["h2", "http/1.1"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """A server's certificate, and whose certificates it accepts from clients. Files are in PEM form."""

    certificate: str | Path
    """The certificate, followed by the intermediate ones."""
    key: str | Path | None = None
    """The private key, without a pass phrase; None if it is in the certificate's file."""
    client_ca: str | Path | None = None
    """Who signs the clients' certificates. Giving it makes a certificate compulsory (mTLS)."""

    def context(self) -> ssl.SSLContext:
        """Build a context. Raises SetupError naming the file at fault."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
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

    def context(self, version: str = "2") -> ssl.SSLContext:
        """Build a context that offers HTTP *version*, `"2"` or `"1.1"`. Raises SetupError naming the file at fault."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
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
