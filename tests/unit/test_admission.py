"""`@allow`: who may call, checked once it is known who calls and before anything of the request is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from polywire import (
    App,
    Call,
    Contract,
    Internal,
    Message,
    PermissionDenied,
    SetupError,
    Unauthenticated,
    allow,
    rpc,
    task,
)
from polywire.contract import Event, subscribe
from polywire.server import Certificates
from polywire.services import Services


class Word(Message, package="admission.v1"):
    word: str = ""


class Till(Contract, package="admission.v1"):
    @rpc
    async def charge(self, word: Word) -> Word:
        raise NotImplementedError

    @rpc
    async def refund(self, word: Word) -> Word:
        raise NotImplementedError

    @rpc
    def watch(self, word: Word) -> AsyncIterator[Word]:
        raise NotImplementedError


class PlainTill(Till):
    async def charge(self, word: Word) -> Word:
        return word

    async def refund(self, word: Word) -> Word:
        return word

    async def watch(self, word: Word) -> AsyncIterator[Word]:
        yield word


@allow("orders", "gateway")
class GuardedTill(PlainTill):
    @allow("gateway")
    async def refund(self, word: Word) -> Word:
        return word


CERTIFIED = Certificates()


async def answer(services: Services, method: str, caller: str | None = "orders", **facts: Any) -> str:
    """What becomes of a call by *caller*: `ok`, or the whole error."""
    call = Call(f"admission.v1.Till/{method}")
    if caller is not None:
        call.peer_certificate = {"subject": ((("commonName", caller),),)}
    for name, value in facts.items():
        setattr(call, name, value)
    handler = services.handlers[f"/admission.v1.Till/{method}"]
    decoded: list[Any] = []

    def decode(body: Any) -> Any:
        decoded.append(body)
        return body

    try:
        await services.unary(handler, call, decode, Word(), lambda value: value)
    except (PermissionDenied, Unauthenticated, Internal) as error:
        assert decoded == [], "the request was read"
        return f"{error.code}: {error.message}"
    return "ok"


def refused(method: str) -> str:
    return f"permission_denied: admission.v1.Till/{method} was refused: this caller may not call it."


async def test_a_class_is_called_by_those_it_names_alone() -> None:
    services = Services([GuardedTill()], authenticator=CERTIFIED)
    assert await answer(services, "Charge", "orders") == "ok"
    assert await answer(services, "Charge", "gateway") == "ok"
    assert await answer(services, "Charge", "reports") == refused("Charge")
    # Both spellings of a path are the same method.
    assert await answer(services, "charge", "reports") == refused("charge")


async def test_a_method_narrows_what_its_class_allows() -> None:
    services = Services([GuardedTill()], authenticator=CERTIFIED)
    assert await answer(services, "Refund", "gateway") == "ok"
    assert await answer(services, "Refund", "orders") == refused("Refund")


async def test_a_method_cannot_widen_what_its_class_allows() -> None:
    @allow("orders")
    class Wide(PlainTill):
        @allow("orders", "reports")
        async def charge(self, word: Word) -> Word:
            return word

    services = Services([Wide()], authenticator=CERTIFIED)
    assert await answer(services, "Charge", "orders") == "ok"
    assert await answer(services, "Charge", "reports") == refused("Charge")


async def test_a_subclass_that_overrides_a_method_is_guarded_as_before() -> None:
    class Later(GuardedTill):
        async def refund(self, word: Word) -> Word:
            return word

    services = Services([Later()], authenticator=CERTIFIED)
    assert await answer(services, "Refund", "gateway") == "ok"
    assert await answer(services, "Refund", "orders") == refused("Refund")
    assert await answer(services, "Charge", "reports") == refused("Charge")


async def test_what_the_server_says_and_what_the_code_says_have_to_agree() -> None:
    services = Services([GuardedTill()], authenticator=CERTIFIED, allow=["orders", "reports"])
    assert await answer(services, "Charge", "orders") == "ok"
    assert await answer(services, "Charge", "gateway") == refused("Charge")
    assert await answer(services, "Charge", "reports") == refused("Charge")
    one = Services([PlainTill()], authenticator=CERTIFIED, allow="orders")
    assert [await answer(one, "Charge", name) for name in ("orders", "o")] == ["ok", refused("Charge")]
    nobody = Services([PlainTill()], authenticator=CERTIFIED, allow=[])
    assert await answer(nobody, "Charge", "orders") == refused("Charge")


async def test_a_caller_that_is_not_known_is_unauthenticated_whatever_is_allowed() -> None:
    services = Services([GuardedTill()], authenticator=CERTIFIED)
    assert await answer(services, "Charge", None) == (
        "unauthenticated: admission.v1.Till/Charge was refused: it needs credentials, and none came."
    )
    assert await answer(services, "Charge", None, credentials="Bearer guess") == (
        "unauthenticated: admission.v1.Till/Charge was refused: the credentials are not valid here."
    )
    assert await answer(services, "Charge", "") == (
        "unauthenticated: admission.v1.Till/Charge was refused: it needs credentials, and none came."
    )


async def test_a_function_decides_by_the_call() -> None:
    seen: list[tuple[str | None, str | None]] = []

    def acts_for_ann(call: Call) -> bool:
        seen.append((call.caller, call.principal))
        return call.principal == "ann"

    class Till(PlainTill):
        @allow(acts_for_ann)
        async def charge(self, word: Word) -> Word:
            return word

    services = Services([Till()], authenticator=CERTIFIED)
    assert await answer(services, "Charge", "orders", principal="ann") == "ok"
    assert await answer(services, "Charge", "orders", principal="bob") == refused("Charge")
    assert await answer(services, "Refund", "orders") == "ok"
    # Nobody here proves who calls, so nobody acts for anybody.
    for options in ({}, {"authenticator": CERTIFIED, "public": True}):
        open_to_all = Services([Till()], **options)  # type: ignore[arg-type]  # keywords of one type or another
        assert await answer(open_to_all, "Charge", "orders", principal="ann") == refused("Charge")
    assert seen == [("orders", "ann"), ("orders", "bob"), (None, None), (None, None)]


async def test_anything_but_true_is_a_refusal() -> None:
    for verdict in (None, 1, "yes", object(), []):

        class Till(PlainTill):
            @allow(lambda call, verdict=verdict: verdict)  # type: ignore[misc]  # default binds
            async def charge(self, word: Word) -> Word:
                return word

        assert await answer(Services([Till()], authenticator=CERTIFIED), "Charge") == refused("Charge")


async def test_a_function_that_fails_lets_nobody_in_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Till(PlainTill):
        @allow(lambda call: 1 / 0 > 0)
        async def charge(self, word: Word) -> Word:
            return word

    services = Services([Till()], authenticator=CERTIFIED)
    assert await answer(services, "Charge", request_id="r-1") == "internal: internal error, request id r-1"
    assert caplog.records[0].getMessage() == (
        "admission.v1.Till/Charge failed with an exception that is no error of its contract (request id r-1)"
    )


async def test_an_authenticator_that_fails_lets_nobody_in_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def caller_of(self, call: Call) -> str | None:
            raise RuntimeError("the token is s3cret")

    services = Services([PlainTill()], authenticator=Broken())
    assert await answer(services, "Charge", request_id="r-1") == "internal: internal error, request id r-1"
    assert len(caplog.records) == 1


def test_what_guards_nothing_costs_nothing() -> None:
    """No method is looked at that nobody guards: where there is neither an authenticator nor an `@allow`, nor any that
    is internal."""
    assert {handler.admit for handler in Services([PlainTill()]).handlers.values()} == {None}
    guarded = Services([PlainTill()], internal=[], authenticator=CERTIFIED)
    assert None not in {handler.admit for handler in guarded.handlers.values()}
    health = Services([], internal=[PlainTill()], authenticator=CERTIFIED, allow=["orders"])
    assert {handler.admit for handler in health.handlers.values()} == {None}


# What could never be asked is refused at the start.


@pytest.mark.parametrize("options", [{}, {"authenticator": CERTIFIED, "public": True}])
def test_names_where_nothing_proves_who_calls_are_refused(options: dict[str, Any]) -> None:
    message = (
        "admission.v1.Till/Charge is not for everybody to call, but nothing here proves who calls. Serve {} with an "
        "authenticator (in a system file: `token` of its callers, or `tls` with a `ca`) and not as public."
    )
    with pytest.raises(SetupError) as caught:
        Services([GuardedTill()], **options)
    assert str(caught.value) == message.format("GuardedTill")
    with pytest.raises(SetupError) as caught:
        Services([PlainTill()], allow=["orders"], **options)
    assert str(caught.value) == message.format("PlainTill")


async def _later(_call: Call) -> bool:
    return True


NONSENSE: dict[str, tuple[Callable[[], object], str]] = {
    "nobody": (
        lambda: allow(),
        '@allow() would let nobody in. Name the callers, `@allow("orders")`, or give a function.',
    ),
    "a list": (
        lambda: allow(["orders"]),  # type: ignore[arg-type]  # that is the point
        "@allow(['orders']) mixes things. Give names of callers, or one function.",
    ),
    "an empty name": (lambda: allow(""), "@allow('') mixes things. Give names of callers, or one function."),
    "a name and a function": (
        lambda: allow("orders", bool),
        "@allow('orders', <class 'bool'>) mixes things. Give names of callers, or one function.",
    ),
    "a coroutine": (
        lambda: allow(_later),  # type: ignore[arg-type]  # that is the point
        "@allow was given an `async` function, which could not be waited for. Give a plain one.",
    ),
    "an object": (
        lambda: allow("orders")(GuardedTill().charge),
        "@allow was put on {}. It belongs on a service's class, or on a method of it.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused(name: str) -> None:
    make, message = NONSENSE[name]
    with pytest.raises(SetupError) as caught:
        make()
    start, _, end = message.partition("{}")
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)


class Sent(Event, topic="admission.sent"):
    word: str = ""


def test_what_comes_from_queues_and_topics_cannot_be_guarded() -> None:
    class Mail(Contract, package="admission.v1"):
        @task
        async def send(self, word: Word) -> None:
            raise NotImplementedError

        @rpc
        async def count(self, word: Word) -> Word:
            raise NotImplementedError

    class MailService(Mail):
        @allow("orders")
        async def send(self, word: Word) -> None:
            raise AssertionError

    class Listening(PlainTill):
        @allow("orders")
        @subscribe(Sent, group="admission")
        async def sent(self, event: Sent) -> None:
            raise AssertionError

    class Alone:
        @allow("orders")
        @subscribe(Sent, group="admission")
        async def sent(self, event: Sent) -> None:
            raise AssertionError

    app = App("post")
    app.service(Alone)
    here = "test_what_comes_from_queues_and_topics_cannot_be_guarded.<locals>."
    start: Callable[[], object]
    for start, method in (
        (lambda: Services([MailService()], authenticator=CERTIFIED), "MailService.send"),
        (lambda: Services([Listening()], authenticator=CERTIFIED), "Listening.sent"),
        (app.read, "Alone.sent"),
    ):
        with pytest.raises(SetupError) as caught:
            start()
        assert str(caught.value) == (
            f"@allow guards {here}{method}, which is no rpc of a contract. Tasks and events come from queues and "
            "topics, where nobody proves who put them: guard those; @allow is for rpcs."
        )

    @allow("orders")
    class Both(Mail):
        async def send(self, word: Word) -> None:
            raise AssertionError

    # A class is guarded as far as it is called.
    assert Services([Both()], authenticator=CERTIFIED).handlers["/admission.v1.Mail/Count"].admit is not None
