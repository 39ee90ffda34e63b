"""Declaring tasks: what is read from a contract, and what is refused with which sentence."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import pytest
from sending_support import Confirmation, Images, Mail, Resize, Thumb

from polywire.contract import (
    Contract,
    Cron,
    Every,
    Field,
    Int32,
    Message,
    Retry,
    Rpc,
    Task,
    assign_packages,
    rpc,
    schema_of,
    service_of,
    task,
)
from polywire.contract.keys import key_reader, key_text
from polywire.errors import ContractError


class Colour(enum.Enum):
    RED = "red"


class Keys(Message):
    text: str
    number: Int32
    bounded: Annotated[int, Field(ge=0)]
    unique: UUID
    colour: Colour
    maybe: str | None = None
    share: float = 0.0
    flag: bool = False
    many: list[str] = []


class Empty(Message):
    note: str = ""


class Nightly(Contract, package="shop.v1", name="Night"):
    @task(schedule=Cron("0 3 * * *", zone="Europe/Berlin"), name="MakeReport", queue="night", rate=2.0, concurrency=1)
    async def report(self) -> None:
        """Count the day."""

    @task(schedule=Every(60.0), queue="sweeps", at_most_once=True, runs_in="process", unknown_after=5)
    async def sweep(self, empty: Empty) -> None: ...


def only(contract: type[Contract]) -> Task:
    (found,) = service_of(contract).tasks.values()
    return found


def refusal(declare: Any) -> str:
    with pytest.raises(ContractError) as refused:
        service_of(declare())
    return str(refused.value)


def test_a_task_is_read_with_its_names_its_types_and_its_queue() -> None:
    found = only(Mail)
    assert found.full_name == "shop.v1.Mail/SendConfirmation"
    assert (found.attribute, found.name, found.service) == ("send_confirmation", "SendConfirmation", "shop.v1.Mail")
    assert (found.request, found.response) == (Confirmation, None)
    assert found.queue == "shop.v1.Mail"
    assert (found.retry, found.timeout, found.key) == (Retry(attempts=5), 30, "order_id")
    assert found.doc == "Tell the customer."


def test_tasks_and_rpcs_of_a_contract_are_kept_apart() -> None:
    service = service_of(Images)
    assert list(service.tasks) == ["resize", "sweep"]
    assert list(service.rpcs) == ["look"]
    assert isinstance(service.rpcs["look"], Rpc)
    assert (service.tasks["resize"].request, service.tasks["resize"].response) == (Resize, Thumb)
    assert service.tasks["sweep"].request is None


def test_every_option_arrives() -> None:
    report, sweep = service_of(Nightly).tasks.values()
    assert report.full_name == "shop.v1.Night/MakeReport"
    assert (report.queue, report.rate, report.concurrency) == ("night", 2.0, 1)
    assert report.schedule == Cron("0 3 * * *", zone="Europe/Berlin", missed="once")
    assert (sweep.schedule, sweep.at_most_once, sweep.runs_in) == (Every(60.0), True, "process")
    assert (sweep.unknown_after, sweep.priority, sweep.priorities) == (5, 0, 1)


def test_messages_of_tasks_get_the_package_of_their_contract() -> None:
    assign_packages([service_of(Images)])
    assert schema_of(Thumb).full_name == "shop.v1.Thumb"


def test_a_key_is_checked_when_the_class_is_made() -> None:
    with pytest.raises(ContractError) as refused:

        class Wrong(Contract):
            @task(key="colour")
            async def mail(self, mail: Confirmation) -> None: ...

    assert str(refused.value).endswith(
        "Wrong.mail: key='colour' is no field of Confirmation. Its fields are: order_id, text."
    )


def test_a_key_needs_a_message() -> None:
    with pytest.raises(ContractError, match=r"Wrong.mail: key='colour' names a field, but it takes no message\.$"):

        class Wrong(Contract):
            @task(key="colour")
            async def mail(self) -> None: ...


@pytest.mark.parametrize("field", ["text", "number", "bounded", "unique", "colour", "maybe"])
def test_what_can_be_written_as_text_can_be_a_key(field: str) -> None:
    class Fine(Contract):
        @task(key=field)
        async def do(self, keys: Keys) -> None: ...

    assert only(Fine).key == field


@pytest.mark.parametrize(("field", "kind"), [("share", "float"), ("flag", "bool"), ("many", "list")])
def test_what_orders_nothing_is_no_key(field: str, kind: str) -> None:
    with pytest.raises(ContractError) as refused:

        class Wrong(Contract):
            @task(key=field)
            async def do(self, keys: Keys) -> None: ...

    assert f"key={field!r} is annotated " in str(refused.value)
    assert kind in str(refused.value)
    assert str(refused.value).endswith("but a key is a str, an int, a UUID or an Enum.")


def test_equal_keys_have_one_text_in_every_process() -> None:
    unique = UUID(int=7)
    keys = Keys(text="a", number=5, bounded=1, unique=unique, colour=Colour.RED)
    assert [key_reader(name)(keys) for name in ("text", "number", "unique", "colour", "maybe")] == [
        "a", "5", "00000000-0000-0000-0000-000000000007", "red", None,
    ]  # fmt: skip
    with pytest.raises(TypeError, match="a key is a str, an int, a UUID or an Enum, not a bool"):
        key_text(True)


def test_tasks_of_one_queue_have_to_agree_on_the_queue() -> None:
    class Torn(Contract, package="shop.v1"):
        @task(priorities=3)
        async def one(self) -> None: ...

        @task
        async def two(self) -> None: ...

    assert refusal(lambda: Torn) == (
        "shop.v1.Torn/One and shop.v1.Torn/Two share the queue 'shop.v1.Torn', but differ in priorities=, "
        "which belongs to the queue. Give both the same, or one of them a queue=."
    )


@pytest.mark.parametrize("options", [{"key": "order_id"}, {"rate": 1.0}, {"concurrency": 1}])
def test_each_property_of_a_queue_is_compared(options: dict[str, Any]) -> None:
    class Torn(Contract, package="shop.v1"):
        @task
        async def one(self, mail: Confirmation) -> None: ...

        @task(**options)
        async def two(self, mail: Confirmation) -> None: ...

    assert f"differ in {next(iter(options))}=" in refusal(lambda: Torn)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"timeout": 0}, "@task(timeout=0): it is a positive number."),
        ({"rate": -1.0}, "@task(rate=-1.0): it is a positive number."),
        ({"result_ttl": float("inf")}, "@task(result_ttl=inf): it is a positive number."),
        ({"concurrency": 0}, "@task(concurrency=0): at least 1 handler has to run."),
        ({"priorities": 11}, "@task(priorities=11): a queue has 1 to 10 levels."),
        (
            {"priority": 1},
            "@task(priority=1): the levels of its queue are 0 to 0. Give it more with priorities=.",
        ),
        ({"runs_in": "moon"}, "@task(runs_in='moon'): choose 'loop', 'thread' or 'process'."),
        ({"retry": 5}, "@task(retry=5): give a policy, retry=Retry(attempts=5)."),
        (
            {"schedule": "0 3 * * *"},
            "@task(schedule='0 3 * * *'): give a schedule, Cron('0 3 * * *', zone='Europe/Berlin') or Every(60.0).",
        ),
        (
            {"queue": "a b"},
            "@task(queue='a b'): letters, digits, '.', '-' and '_', at most 150 of them, beginning with a letter, a "
            "digit or '_'.",
        ),
        (
            {"at_most_once": True, "once": True},
            "@task(at_most_once=True, once=True): what is acknowledged before it is handled needs no inbox. "
            "Choose one of them.",
        ),
        (
            {"at_most_once": True, "retry": Retry(attempts=2)},
            "@task(at_most_once=True, retry=Retry(attempts=2)): what is acknowledged before it is handled has one "
            "attempt.",
        ),
    ],
)
def test_an_option_that_means_nothing_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ContractError) as refused:
        task(**options)
    assert str(refused.value) == sentence


def test_a_schedule_needs_a_task_that_can_be_run_with_nothing_to_say() -> None:
    class Wrong(Contract):
        @task(schedule=Every(60.0))
        async def mail(self, mail: Confirmation) -> None: ...

    assert refusal(lambda: Wrong) == (
        f"{Wrong.__qualname__}.mail is scheduled, but a schedule has nothing to say: let it take no argument, or a "
        "message whose fields all have defaults."
    )


def test_nobody_can_wait_for_the_result_of_what_may_be_lost() -> None:
    class Wrong(Contract):
        @task(at_most_once=True)
        async def resize(self, request: Resize) -> Thumb:
            raise NotImplementedError

    assert refusal(lambda: Wrong) == (
        f"{Wrong.__qualname__}.resize is at_most_once and has a result, for which somebody would wait in vain. "
        "Let it return None."
    )


def test_a_task_has_no_streams() -> None:
    class Wrong(Contract):
        @task
        def watch(self, request: Resize) -> AsyncIterator[Thumb]:
            raise NotImplementedError

    assert refusal(lambda: Wrong).endswith(
        "Wrong.watch has a stream, which a task cannot have: it takes and returns one message or none."
    )


def test_a_task_is_declared_async() -> None:
    class Wrong(Contract):
        @task
        def resize(self, request: Resize) -> None: ...

    assert refusal(lambda: Wrong).endswith("Wrong.resize has to be declared `async def`: sending a task is awaited.")


def test_a_method_is_an_rpc_or_a_task() -> None:
    class Wrong(Contract):
        @rpc
        @task
        async def resize(self, request: Resize) -> None: ...

    assert refusal(lambda: Wrong).endswith("Wrong.resize is both @rpc and @task. Choose one of them.")


def test_two_methods_cannot_have_one_name_on_the_wire() -> None:
    class Wrong(Contract, package="shop.v1"):
        @rpc
        async def resize(self, request: Resize) -> None: ...

        @task(name="Resize")
        async def shrink(self, request: Resize) -> None: ...

    assert refusal(lambda: Wrong) == (
        "shop.v1.Wrong has two methods called 'Resize' on the wire: resize and shrink. Give one of them a name of its "
        "own, name=..."
    )


def test_a_handler_may_be_a_plain_function() -> None:
    class Service(Images):
        def resize(self, request: Resize) -> Thumb:  # type: ignore[override]  # runs in a thread
            return Thumb(data=b"")

    assert service_of(Images).tasks["resize"].runs_in == "loop"
    assert Service().resize(Resize(picture="a")) == Thumb(data=b"")
