"""When certificates end, against the judgement of `cryptography`."""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from polywire.net.certificate import ends_of

UTC = datetime.UTC


def issued(end: datetime.datetime, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> bytes:
    leaf = trustme.CA(key_type=key_type).issue_cert("orders", common_name="orders", not_after=end)
    return leaf.cert_chain_pems[0].bytes()


@pytest.mark.parametrize("key_type", trustme.KeyType)
@pytest.mark.parametrize("year", [2049, 2050, 2026])
def test_the_end_is_what_the_certificate_says(year: int, key_type: trustme.KeyType) -> None:
    """In 2050 the form of the time changes (RFC 5280, section 4.1.2.5)."""
    end = datetime.datetime(year, 12, 31, 23, 59, 58, tzinfo=UTC)
    pem = issued(end, key_type)
    assert x509.load_pem_x509_certificate(pem).not_valid_after_utc == end
    assert ends_of(pem) == [end.timestamp()]


def test_each_certificate_of_a_file_has_its_end_in_order(tmp_path: Path) -> None:
    ends = [datetime.datetime(2030 + number, 1, 2, 3, 4, 5, tzinfo=UTC) for number in range(3)]
    between = b"Some words, and a key:\n" + trustme.CA().issue_cert("a").private_key_pem.bytes()
    pem = between.join(issued(end) for end in ends)
    assert ends_of(pem) == [end.timestamp() for end in ends]


def test_a_file_without_certificates_has_no_ends() -> None:
    assert ends_of(b"") == ends_of(b"rubbish") == []


@pytest.mark.parametrize("inner", [b"", b"!!!", b"AAAA", b"MIIB", b"MAA=", b"MAMwAQA="])
def test_what_is_no_certificate_is_refused(inner: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whichever way it is none
        ends_of(b"-----BEGIN CERTIFICATE-----\n" + inner + b"\n-----END CERTIFICATE-----\n")


PEM = issued(datetime.datetime(2031, 1, 1, tzinfo=UTC))


@given(st.integers(0, len(PEM) - 1), st.integers(0, 255))
def test_bytes_that_changed_are_refused_or_read_but_never_worse(place: int, byte: int) -> None:
    with contextlib.suppress(ValueError):
        assert all(isinstance(end, float) for end in ends_of(PEM[:place] + bytes([byte]) + PEM[place + 1 :]))
