"""Tokens: where they are read from, and that they can change while the service runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polywire.errors import SetupError
from polywire.system.tokens import RECHECK, TokenSource, token_sources


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_file_that_changes_is_read_again_after_a_while(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    time = Time()
    token = TokenSource("file:token", directory=tmp_path, now=time)

    assert token() == "first"
    path.write_text("second\n")
    os.utime(path, ns=(1, 1))
    assert token() == "first"
    time.now += RECHECK
    assert token() == "second"


def test_a_file_that_is_gone_for_a_moment_leaves_the_last_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    time = Time()
    token = TokenSource(f"file:{path}", now=time)
    token()

    path.unlink()
    time.now += RECHECK
    assert token() == "first"
    path.write_text("")
    time.now += RECHECK
    assert token() == "first"


def test_a_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCK_TOKEN", " secret\n")

    assert TokenSource("env:STOCK_TOKEN")() == "secret"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("env:NO_TOKEN", "The token 'env:NO_TOKEN' is missing: NO_TOKEN is not in the environment."),
        (
            "file:/nowhere/token",
            "The token 'file:/nowhere/token' cannot be read: [Errno 2] No such file or directory: '/nowhere/token'.",
        ),
        ("file:/dev/null", "The token 'file:/dev/null' is missing: the file '/dev/null' is empty."),
    ],
)
def test_a_missing_token_is_refused(place: str, message: str) -> None:
    with pytest.raises(SetupError) as caught:
        TokenSource(place)()

    assert str(caught.value) == message


def test_two_services_with_one_token_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")

    with pytest.raises(SetupError) as caught:
        token_sources({"orders": "env:TOKEN", "stock": "env:TOKEN"}, tmp_path)

    assert str(caught.value) == (
        "services.stock.token and services.orders.token are the same, so that neither service can be told from the "
        "other. Give each a token of its own."
    )
