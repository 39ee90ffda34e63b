"""What the system file says of who is who, and what is minded about it while services run."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

import pytest
from trust_support import Authority, write

from polywire.errors import SystemFileError
from polywire.net.tls import ClientTls, ServerTls
from polywire.system.file import SystemFile, Tls, parse
from polywire.system.trust import LOOK, TrustWatch, allowed_of, authenticator_of, client_tls, server_tls
from polywire.testing import ManualClock

SHOP = """\
[system]
name = "shop"
tls = { certificate = "tls/{service}.pem", key = "tls/{service}.key", ca = "tls/ca.pem", server_name = "{service}" }

[services.gateway]
app = "shop.gateway:app"
public = true
tls = { listen = false }

[services.orders]
app = "shop.orders:app"

[services.payments]
app = "shop.payments:app"
allow = ["orders", "gateway"]
tls = { certificate = "own.pem", ca = "own-ca.pem" }

[services.bank]
address = "bank.example:443"
serves = ["bank.v1.Bank"]
tls = { ca = "bank.pem", server_name = "bank.example" }
"""
GUIDE = Path(__file__).resolve().parents[2] / "docs/guides/identity.md"


def shop(text: str = SHOP, **environ: str) -> SystemFile:
    return parse(text, file="/shop/polywire.toml", environ=environ)


def test_one_tls_stands_for_all_services_and_each_can_differ() -> None:
    tls = {name: entry.tls for name, entry in shop().services.items()}
    assert tls == {
        "gateway": Tls(
            certificate="tls/gateway.pem", key="tls/gateway.key", ca="tls/ca.pem", server_name="gateway", listen=False
        ),
        "orders": Tls(certificate="tls/orders.pem", key="tls/orders.key", ca="tls/ca.pem", server_name="orders"),
        # A certificate of its own does not go with the key of another.
        "payments": Tls(certificate="own.pem", key=None, ca="own-ca.pem", server_name="payments"),
        "bank": Tls(certificate="tls/bank.pem", key="tls/bank.key", ca="bank.pem", server_name="bank.example"),
    }


def test_the_system_file_of_the_guide_is_one() -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    system = shop(text)
    assert system.services["payments"].allow == ("orders", "support")
    assert [entry.name for entry in system.services.values() if entry.asks_for_certificates] == [
        "orders", "payments", "support",
    ]  # fmt: skip


def test_servers_listen_and_ask_for_certificates_as_the_file_says() -> None:
    system = shop(
        SHOP.replace("[services.bank]", '[services.door]\napp = "shop.door:app"\npublic = true\n\n[services.bank]')
    )
    at = {name: server_tls(system, entry) for name, entry in system.services.items() if entry.app}
    directory = Path("/shop")
    assert at == {
        "gateway": None,
        "orders": ServerTls(
            certificate=directory / "tls/orders.pem",
            key=directory / "tls/orders.key",
            client_ca=directory / "tls/ca.pem",
        ),
        "payments": ServerTls(certificate=directory / "own.pem", client_ca=directory / "own-ca.pem"),
        # Everybody may come to what is public, without a certificate.
        "door": ServerTls(certificate=directory / "tls/door.pem", key=directory / "tls/door.key"),
    }
    assert {name: entry.secure for name, entry in system.services.items()} == {
        "gateway": False, "orders": True, "payments": True, "door": True, "bank": True,
    }  # fmt: skip


def test_clients_trust_the_target_and_show_themselves() -> None:
    system, directory = shop(), Path("/shop")
    gateway = system.services["gateway"]
    assert client_tls(system, gateway, "orders") == ClientTls(
        ca=directory / "tls/ca.pem",
        certificate=directory / "tls/gateway.pem",
        key=directory / "tls/gateway.key",
        server_name="orders",
    )
    assert client_tls(system, system.services["orders"], "gateway") is None
    assert client_tls(system, None, "payments") == ClientTls(ca=directory / "own-ca.pem", server_name="payments")
    found = client_tls(system, gateway, "bank")
    assert found is not None
    assert (found.ca, found.server_name) == (directory / "bank.pem", "bank.example")


def test_the_environment_sets_keys_of_all_and_of_one() -> None:
    system = shop(
        POLYWIRE__SYSTEM__TLS__CA="/etc/ca.pem",
        POLYWIRE__SYSTEM__TLS__CERTIFICATE="/etc/{service}.pem",
        POLYWIRE__SERVICES__PAYMENTS__TLS__KEY="/etc/payments.key",
        POLYWIRE__SERVICES__PAYMENTS__ALLOW="orders, bank",
        POLYWIRE__SERVICES__ORDERS__TLS__LISTEN="no",
        POLYWIRE__SERVICES__BANK__TOKEN="env:BANK",
    )
    assert system.services["orders"].tls == Tls(
        certificate="/etc/orders.pem", key="tls/orders.key", ca="/etc/ca.pem", server_name="orders", listen=False
    )
    assert system.services["payments"].tls == Tls(
        certificate="own.pem", key="/etc/payments.key", ca="own-ca.pem", server_name="payments"
    )
    assert system.services["payments"].allow == ("orders", "bank")


def test_a_service_may_always_call_itself() -> None:
    system = shop()
    assert allowed_of(system.services["payments"]) == ("orders", "gateway", "payments")
    assert allowed_of(system.services["orders"]) is None


def test_a_service_that_listens_without_tls_asks_nobody_by_certificate() -> None:
    system = shop(SHOP.replace('allow = ["orders", "gateway"]\n', ""))
    assert authenticator_of(system, "gateway", {}) is None
    assert authenticator_of(system, "payments", {}) is not None


REFUSALS = {
    "an allow of nobody's name": (
        SHOP.replace('["orders", "gateway"]', '["orders", "gatewy"]'),
        "/shop/polywire.toml:15: services.payments.allow names 'gatewy', which is no service. Did you mean 'gateway'? "
        "There are: gateway, orders, payments, bank.",
    ),
    "an allow of a public service": (
        SHOP.replace("public = true\n", 'public = true\nallow = "orders"\n'),
        "/shop/polywire.toml:8: services.gateway.allow says who may call, but the service is public and asks nobody "
        "who they are. Leave one of them out.",
    ),
    "an allow of a service that can prove nothing": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\n[services.b]\napp = "b:app"\nallow = ["a"]\n',
        "/shop/polywire.toml:7: services.b.allow names 'a', which has no way to prove that it calls. Give it a token, "
        "services.a.token; or certificates to all, `[system] tls` with a `ca`.",
    ),
    "an allow of a certificate that is not asked for": (
        SHOP.replace('ca = "own-ca.pem"', 'ca = "own-ca.pem", listen = false'),
        "/shop/polywire.toml:15: services.payments.allow names 'orders', which has no way to prove that it calls. "
        "Give it a token, services.orders.token; or certificates to all, `[system] tls` with a `ca`.",
    ),
    "an empty allow": (
        SHOP.replace('["orders", "gateway"]', "[]"),
        "/shop/polywire.toml:15: services.payments.allow is an array. It has to be text, or an array of texts that is "
        "not empty.",
    ),
    "no certificate": (
        SHOP.replace('certificate = "tls/{service}.pem", ', ""),
        "/shop/polywire.toml:8: services.gateway.tls.certificate is missing. Name the file in PEM form.",
    ),
    "an empty tls": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\ntls = {}\n',
        "/shop/polywire.toml:5: services.a.tls.certificate is missing. Name the file in PEM form.",
    ),
    "an unknown key of all": (
        SHOP.replace("ca = \"tls/ca.pem\"", 'authority = "tls/ca.pem"'),
        "/shop/polywire.toml:3: system.tls.authority is not a key of [system.tls]. [system.tls] has: ca, certificate, "
        "key, listen, server_name.",
    ),
    "an unknown key of one": (
        SHOP.replace("listen = false", "listens = false"),
        "/shop/polywire.toml:8: services.gateway.tls.listens is not a key of [tls]. Did you mean 'listen'? [tls] has: "
        "ca, certificate, key, listen, server_name.",
    ),
    "a tls that is no table": (
        SHOP.replace("{ listen = false }", "false"),
        "/shop/polywire.toml:8: services.gateway.tls is false. It has to be a table.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_is_refused_with_its_line(name: str) -> None:
    text, message = REFUSALS[name]
    with pytest.raises(SystemFileError) as caught:
        shop(text)
    assert str(caught.value) == message


def test_tokens_prove_callers_too() -> None:
    text = '[system]\nname = "shop"\n[services.a]\napp = "a:app"\ntoken = "env:A"\n'
    assert shop(text + '[services.b]\napp = "b:app"\nallow = "a"\n').services["b"].allow == ("a",)


# What is minded while services run


WATCHED = """\
[system]
name = "shop"

[services.orders]
app = "shop.orders:app"
token = "file:token"
tls = { certificate = "orders.pem", ca = "ca.pem" }
"""
DAY = 86400.0


class Watched:
    """A service with a certificate that ends in some days, and a clock that stands still."""

    def __init__(self, place: Path, *, days: float) -> None:
        self.place = place
        self.authority = Authority(place)
        self.authority.trusted()
        write(place / "token", b"s3cret")
        self.clock = ManualClock(epoch=time.time())
        self.certificate = self.authority.issue("orders.pem", "orders", days=days, at=self.clock.time())
        system = parse(WATCHED, file=str(place / "polywire.toml"))
        self.watch = TrustWatch(system, ["orders"], clock=self.clock)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def day(watched: Watched, days: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(watched.clock.time() + days * DAY))


async def test_a_certificate_that_ends_soon_is_mentioned_once_a_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path, days=15.5)
    end = day(watched, 15.5)
    path = f"the certificate of service 'orders' in '{tmp_path}/orders.pem'"
    with watched.watch:
        await watched.clock.advance(1.4 * DAY)
        assert lines(caplog) == []
        await watched.clock.advance(0.2 * DAY)
        assert lines(caplog) == [
            ("WARNING", f"{path} ends on {end}, within 14 days. Replace the file; it is read again without a restart.")
        ]
        await watched.clock.advance(13 * DAY)
        assert len(caplog.records) == 14
        assert lines(caplog)[-1] == (
            "WARNING", f"{path} ends on {end}, within 1 day. Replace the file; it is read again without a restart."
        )  # fmt: skip
        await watched.clock.advance(DAY)
        assert lines(caplog)[-1] == (
            "ERROR", f"{path} ended on {end}, and is refused. Replace the file; it is read again without a restart."
        )  # fmt: skip
        said = len(caplog.records)
        watched.authority.issue("orders.pem", "orders", days=400)
        await watched.clock.advance(30 * DAY)
        assert len(caplog.records) == said
    assert watched.clock.sleeping == 0


async def test_an_authority_is_mentioned_once_all_of_the_file_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path, days=30)
    short = watched.authority.issue("short.pem", "ca", days=5, at=watched.clock.time()).read_bytes()
    write(tmp_path / "ca.pem", watched.authority.root.cert_pem.bytes() + short)
    watched.watch.look()
    assert lines(caplog) == []
    write(tmp_path / "ca.pem", short[short.index(b"-----BEGIN CERTIFICATE") :])
    watched.watch.look()
    assert lines(caplog) == [
        (
            "WARNING",
            f"the CA of service 'orders' in '{tmp_path}/ca.pem' ends on {day(watched, 5)}, within 5 days. "
            "Replace the file; it is read again without a restart.",
        )
    ]


async def test_secrets_that_others_may_read_are_mentioned_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path, days=30)
    watched.watch.look()
    (tmp_path / "token").chmod(0o640)  # as a group's
    watched.watch.look()
    assert lines(caplog) == []
    (tmp_path / "token").chmod(0o644)
    watched.certificate.chmod(0o604)
    for _ in range(2):
        watched.watch.look()
    assert lines(caplog) == [
        (
            "WARNING",
            f"the {what} of service 'orders' in '{tmp_path}/{file}' can be read by every user of this machine "
            f"(mode {mode}). Keep it to its owner: chmod 600.",
        )
        for what, file, mode in (("key", "orders.pem", "0604"), ("token", "token", "0644"))
    ]


async def test_files_that_are_gone_or_broken_are_left_to_those_who_load_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    watched = Watched(tmp_path, days=1)
    watched.certificate.unlink()
    write(tmp_path / "ca.pem", b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    (tmp_path / "token").unlink()
    with watched.watch:
        await watched.clock.advance(2 * LOOK)
    assert lines(caplog) == []


async def test_a_system_without_files_has_no_timer() -> None:
    clock = ManualClock()
    system = parse('[system]\nname = "shop"\n[services.a]\napp = "a:app"\n')
    with TrustWatch(system, ["a"], clock=clock):
        assert clock.sleeping == 0
