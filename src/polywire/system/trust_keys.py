"""The keys of the system file that say who is who: tokens, certificates, and who may call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polywire.system.reading import Settings, Table, did_you_mean

if TYPE_CHECKING:
    from polywire.system.file import ServiceEntry

SERVICE = "{service}"
"""Stands for the name of a service in what `system.tls` says for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a service proves who it is, in files of PEM form, and who signs for the others."""

    certificate: str | None = None
    """None for a service that runs elsewhere and keeps its own."""
    key: str | None = None
    """None where it is in the file of the certificate."""
    ca: str | None = None
    """Who signs the certificates of the system. Giving it makes callers show one of their own (mTLS), except where the
    service is public."""
    server_name: str | None = None
    """What its callers look for in its certificate; None is the host of its address."""
    listen: bool = True
    """False for a service that is reached without TLS; its certificate proves it to those that it calls."""


def read_tls(table: Table, service: str, shared: Tls, *, runs_here: bool) -> Tls:
    """`[services.NAME.tls]` over *shared*, the `system.tls` of all."""
    certificate, key = table.text("certificate"), table.text("key")
    ca, server_name, listen = table.text("ca"), table.text("server_name"), table.boolean("listen")
    table.done()
    if certificate is None:
        certificate, key = _of(shared.certificate, service), key or _of(shared.key, service)
    if certificate is None and runs_here:
        raise table.settings.error(table.path, f"{table.name('certificate')} is missing. Name the file in PEM form.")
    return Tls(
        certificate=certificate,
        key=key,
        ca=ca or _of(shared.ca, service),
        server_name=server_name or _of(shared.server_name, service),
        listen=shared.listen if listen is None else listen,
    )


def read_shared_tls(table: Table) -> Tls | None:
    """`[system.tls]`, with its `{service}` still in it."""
    certificate, key, ca = table.text("certificate"), table.text("key"), table.text("ca")
    server_name, listen = table.text("server_name"), table.boolean("listen")
    table.done()
    if not table.values:
        return None
    return Tls(certificate=certificate, key=key, ca=ca, server_name=server_name, listen=listen is not False)


def _of(shared: str | None, service: str) -> str | None:
    return None if shared is None else shared.replace(SERVICE, service)


def read_token(table: Table) -> str | None:
    """Where a service's token is, `env:NAME` or `file:PATH`."""
    token = table.text("token")
    if token is not None and not (token.startswith(("env:", "file:")) and token.partition(":")[2]):
        # Whatever it is, it may be the secret itself: it is not shown.
        raise table.error(
            "token", "does not say where the token is. Write 'env:NAME' or 'file:PATH'; secrets stay out of this file."
        )
    return token


def check_allowed(settings: Settings, services: Mapping[str, ServiceEntry]) -> None:
    """Refuse an `allow` that names nobody, or whom nothing could prove."""
    for entry in services.values():
        path = ("services", entry.name, "allow")
        for caller in entry.allow or ():
            if caller not in services:
                raise settings.error(
                    path,
                    f"services.{entry.name}.allow names {caller!r}, which is no service. "
                    f"{did_you_mean(caller, services)}There are: {', '.join(services)}.",
                )
        if entry.allow and entry.public:
            raise settings.error(
                path,
                f"services.{entry.name}.allow says who may call, but the service is public and asks nobody who they "
                "are. Leave one of them out.",
            )
        for caller in entry.allow or ():
            if not _can_prove(services[caller], entry):
                raise settings.error(
                    path,
                    f"services.{entry.name}.allow names {caller!r}, which has no way to prove that it calls. Give it a "
                    f"token, services.{caller}.token; or certificates to all, `[system] tls` with a `ca`.",
                )


def _can_prove(caller: ServiceEntry, target: ServiceEntry) -> bool:
    if caller.token is not None or caller.name == target.name:
        return True
    return target.asks_for_certificates and caller.tls is not None and caller.tls.certificate is not None
