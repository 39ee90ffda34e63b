"""Tokens: where they are read from, and that they can change while the service runs."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest

from polywire.context import Call
from polywire.errors import SetupError
from polywire.server import BearerTokens
from polywire.system.tokens import RECHECK, TokenSource, token_sources

TOO_MANY = "The token 'file:token' is more than 8 tokens of 4096 characters."


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


# Rotation: two valid tokens at a time.


def test_a_service_calls_with_the_first_of_its_tokens_and_is_known_by_each(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("new\nold\n")
    token = TokenSource("file:token", directory=tmp_path)

    assert (token(), token.accepted()) == ("new", ("new", "old"))
    known = BearerTokens({"orders": token.accepted})
    assert [caller(known, text) for text in ("new", "old", "new\nold", "other")] == ["orders", "orders", None, None]


def test_a_token_rotates_in_three_steps_of_which_none_refuses_a_caller(tmp_path: Path) -> None:
    """Caller and server look at the file at different moments, and each reads it up to `RECHECK` seconds late."""
    path = tmp_path / "token"
    path.write_text("old")
    time = Time()
    at_caller = TokenSource("file:token", directory=tmp_path, now=time)
    at_server = TokenSource("file:token", directory=tmp_path, now=time)
    server = BearerTokens({"orders": at_server.accepted})

    def check() -> None:
        assert caller(server, at_caller()) == "orders"

    for text in ("old\nnew", "new\nold", "new"):
        path.write_text(text)
        check()
        for first, second in ((at_caller, at_server), (at_server, at_caller)):
            time.now += RECHECK
            first.accepted()
            check()
            second.accepted()
            check()
    assert caller(server, "old") is None


def test_the_environment_can_have_two_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCK_TOKEN", "new old")
    assert TokenSource("env:STOCK_TOKEN").accepted() == ("new", "old")


def test_a_token_of_two_services_proves_neither() -> None:
    """They were different at the start, or the system would not have started."""
    known = BearerTokens({"orders": lambda: ["a", "both"], "stock": lambda: ["b", "both"]})
    assert [caller(known, text) for text in ("a", "b", "both")] == ["orders", "stock", None]


def test_two_services_with_one_token_among_several_are_refused(tmp_path: Path) -> None:
    for name, text in (("orders", "a both"), ("stock", "both b")):
        (tmp_path / name).write_text(text)
    with pytest.raises(SetupError, match=r"^services\.stock\.token and services\.orders\.token are the same"):
        token_sources({"orders": "file:orders", "stock": "file:stock"}, tmp_path)


def caller(known: BearerTokens, token: str) -> str | None:
    call = Call()
    call.credentials = f"Bearer {token}"
    return known.caller_of(call)


WRONG: dict[str, tuple[bytes, str]] = {
    "no text": (b"hunter\xff", "The token 'file:token' cannot be read: the file '{0}/token' is no text."),
    "no ASCII": (
        "huntér hunter".encode(),
        "The token 'file:token' cannot be sent: it has characters other than printable ASCII.",
    ),
    "a control character": (
        b"hun\x07ter hunter",
        "The token 'file:token' cannot be sent: it has characters other than printable ASCII.",
    ),
    "nothing": (b" \n", "The token 'file:token' is missing: the file '{0}/token' is empty."),
    "too many": (b"hunter " * 2 + b" ".join(b"t%d" % n for n in range(9)), TOO_MANY),
    "too long": (b"hunter" * 10_000, TOO_MANY),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_token_is_refused_without_being_shown(what: str, tmp_path: Path) -> None:
    content, message = WRONG[what]
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(SetupError) as caught:
        TokenSource("file:token", directory=tmp_path)()
    assert str(caught.value) == message.format(tmp_path)
    assert "hunter" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_token_later_on_leaves_the_last_ones_and_is_said_once(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content, message = WRONG[what]
    (tmp_path / "token").write_text("first")
    time = Time()
    token = TokenSource("file:token", directory=tmp_path, now=time)
    assert token() == "first"
    (tmp_path / "token").write_bytes(content)
    for _ in range(3):
        time.now += RECHECK
        assert token() == "first"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", message.format(tmp_path) + " Those read before stay in use.")
    ]
