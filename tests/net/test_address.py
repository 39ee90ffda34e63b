"""Addresses are written in several forms, and what is wrong with one is said together with the forms there are."""

from __future__ import annotations

import pytest

from polywire.errors import SetupError
from polywire.net.address import Address, parse_address, parse_addresses

FORMS = (
    " Write host:port, [::1]:port, unix:/path or dns:///host:port, "
    "with grpc://, grpcs://, http:// or https:// before it if need be."
)


@pytest.mark.parametrize(
    ("text", "address", "written"),
    [
        ("127.0.0.1:8001", Address(host="127.0.0.1", port=8001), "127.0.0.1:8001"),
        (" localhost:0 ", Address(host="localhost"), "localhost:0"),
        ("[::1]:8001", Address(host="::1", port=8001), "[::1]:8001"),
        ("unix:/run/a b.sock", Address(path="/run/a b.sock"), "unix:/run/a b.sock"),
        ("unix:///run/a.sock", Address(path="/run/a.sock"), "unix:/run/a.sock"),
        ("unix:relative.sock", Address(path="relative.sock"), "unix:relative.sock"),
        ("dns:///orders:80", Address(host="orders", port=80, resolve=True), "dns:///orders:80"),
        ("grpc://a:1", Address(host="a", port=1, scheme="grpc"), "a:1"),
        ("grpcs://a:1/", Address(host="a", port=1, scheme="grpcs"), "a:1"),
        ("http://a", Address(host="a", port=80, scheme="http"), "a:80"),
        ("HTTPS://a/", Address(host="a", port=443, scheme="https"), "a:443"),
        ("https://[::1]", Address(host="::1", port=443, scheme="https"), "[::1]:443"),
        ("grpc://unix:/s", Address(path="/s", scheme="grpc"), "unix:/s"),
        ("grpc://dns:///a:1", Address(host="a", port=1, scheme="grpc", resolve=True), "dns:///a:1"),
    ],
)
def test_every_form_is_understood(text: str, address: Address, written: str) -> None:
    assert parse_address(text) == address
    assert str(address) == written


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the port is missing"),
        ("localhost", "the port is missing"),
        ("[::1]", "the port is missing"),
        ("grpc://a", "the port is missing"),
        (":80", "the host is missing; 127.0.0.1 is this machine alone, 0.0.0.0 every interface"),
        ("::1:80", "an IPv6 address needs brackets around it"),
        ("[a]:80", "'a' is not an IPv6 address"),
        ("a b:80", "'a b' is not a host name"),
        ("a/b:80", "'a/b' is not a host name"),
        ("a:b", "'b' is not a port, a number from 0 to 65535"),
        ("a:65536", "'65536' is not a port, a number from 0 to 65535"),
        ("a:-1", "'-1' is not a port, a number from 0 to 65535"),
        ("a:²", "'²' is not a port, a number from 0 to 65535"),
        ("a:80/path", "'80/path' is not a port, a number from 0 to 65535"),
        ("unix:", "the path of the socket is missing"),
        ("unix:/" + "x" * 200, "the path is too long for a Unix socket; keep it under 100 bytes"),
        ("dns://8.8.8.8/a:80", "it names a DNS server, which is not supported; use three slashes"),
        ("dns:a:80", "it names a DNS server, which is not supported; use three slashes"),
        ("ftp://a:80", "the scheme 'ftp' is not known"),
    ],
)
def test_what_is_wrong_is_said(text: str, reason: str) -> None:
    with pytest.raises(SetupError) as raised:
        parse_address(text)
    assert str(raised.value) == f"{text!r} is not an address: {reason}.{FORMS}"


def test_lists_are_taken_apart() -> None:
    both = (Address(host="a", port=1), Address(path="/s"))
    assert parse_addresses("a:1, unix:/s") == both
    assert parse_addresses(["a:1", "unix:/s"]) == both
    nothings: list[str | list[str]] = ["", []]
    for nothing in nothings:
        with pytest.raises(SetupError) as raised:
            parse_addresses(nothing)
        assert str(raised.value) == f"There is no address.{FORMS}"
