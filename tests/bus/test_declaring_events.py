"""Declaring events and subscribing to them: names on the wire, keys, groups, and what is refused."""

from __future__ import annotations

import types
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sending_support import Confirmation, OrderPlaced, PageView

from polywire.bus.core import Binding, GroupSpec, Guarantees, QueueSpec, TopicSpec
from polywire.bus.sending import queues_of, topics_of, unkept
from polywire.codec import codec_for
from polywire.contract import (
    Batch,
    Contract,
    Event,
    Message,
    Retry,
    Subscription,
    Where,
    event_of,
    schema_of,
    subscribe,
    subscriptions_of,
    task,
)
from polywire.errors import ContractError


class ShopEvent(Event, package="shop.v1"):
    note: str = ""


class OrderEvent(ShopEvent, topic="shop.orders", key="order_id"):
    order_id: str


class OrderPaid(OrderEvent, version=3):
    """The money is there."""

    by: str


class OrderLost(OrderEvent, name="Lost", topic="shop.losses"):
    pass


def refused(declare: Any) -> str:
    with pytest.raises(ContractError) as error:
        declare()
    return str(error.value)


# ---- events ------------------------------------------------------------------------------------------------------


def test_an_event_is_called_by_package_and_name_wherever_its_class_stands() -> None:
    class OrderPaid(Event, topic="shop.orders", package="shop.v1"):
        pass

    assert event_of(OrderPaid).type == "shop.v1.OrderPaid"
    assert schema_of(OrderPaid).full_name == "shop.v1.OrderPaid"


def test_the_topic_stands_for_a_package_so_that_every_process_finds_the_same_type() -> None:
    assert event_of(PageView).type == "shop.views.PageView"
    assert PageView.__polywire__.package == "shop.views"


def test_a_topic_that_is_no_package_asks_for_one() -> None:
    def declare() -> None:
        class Seen(Event, topic="shop-views"):
            pass

    assert refused(declare).endswith(
        "Seen has no package, and its topic 'shop-views' cannot stand for one in its name on the wire. "
        "Give it one, package='shop.v1'."
    )


def test_topic_key_and_package_are_inherited_and_version_and_name_are_not() -> None:
    paid, lost = event_of(OrderPaid), event_of(OrderLost)
    assert (paid.type, paid.topic, paid.key, paid.version) == ("shop.v1.OrderPaid", "shop.orders", "order_id", 3)
    assert (lost.type, lost.topic, lost.key, lost.version) == ("shop.v1.Lost", "shop.losses", "order_id", 1)
    assert (paid.doc, lost.doc) == ("The money is there.", "")


def test_an_event_is_a_message() -> None:
    paid = OrderPaid(order_id="1", by="card", note="n")
    codec = codec_for(OrderPaid, "json")
    assert codec.encode(paid) == b'{"note":"n","order_id":"1","by":"card"}'
    assert codec.decode(codec.encode(paid)) == paid
    assert isinstance(paid, Message)


def test_a_base_without_a_topic_cannot_be_published() -> None:
    assert refused(lambda: event_of(ShopEvent)) == (
        "ShopEvent has no topic, so it cannot be published or subscribed to. "
        "Give it one, class ShopEvent(Event, topic='...')."
    )


def test_a_key_is_checked_when_the_class_is_made() -> None:
    def declare() -> None:
        class Wrong(Event, topic="a", key="order"):
            order_id: str

    assert refused(declare).endswith("Wrong: key='order' is no field of " + (
        "test_a_key_is_checked_when_the_class_is_made.<locals>.declare.<locals>.Wrong. Its fields are: order_id."
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        (
            {"topic": "a b"},
            "Wrong(topic='a b'): letters, digits, '.', '-' and '_', at most 150 of them, beginning with a letter, a "
            "digit or '_'.",
        ),
        ({"topic": "a", "version": 0}, "Wrong: version=0 is no version. They count from 1."),
        ({"topic": "a", "version": True}, "Wrong: version=True is no version. They count from 1."),
        ({"topic": "a", "colour": 5}, "Wrong cannot be a Message: "),
    ],
)
def test_a_keyword_that_means_nothing_is_refused(keywords: dict[str, Any], sentence: str) -> None:
    def declare() -> None:
        types.new_class("Wrong", (Event,), keywords)

    assert refused(declare).startswith(sentence)


def test_a_message_takes_no_topic() -> None:
    def declare() -> None:
        types.new_class("Wrong", (Message,), {"topic": "a"})

    assert refused(declare).startswith("Wrong cannot be a Message: ")


def test_local_classes_are_found_in_the_annotations_of_an_event() -> None:
    class Inside(Message):
        text: str

    class Outside(Event, topic="a"):
        inside: Inside

    assert codec_for(Outside, "json").decode(b'{"inside":{"text":"x"}}') == Outside(inside=Inside(text="x"))


# ---- subscriptions -----------------------------------------------------------------------------------------------


class Warehouse:
    @subscribe(OrderPlaced, group="warehouse", retry=Retry(attempts=2), timeout=5, on_dead="park_key", once=True)
    async def pack(self, event: OrderPlaced) -> None: ...

    @subscribe(PageView, group="analytics", batch=Batch(500, wait=0.5), start="latest", concurrency=2)
    async def count(self, views: Sequence[PageView]) -> None: ...

    @subscribe(OrderPaid, OrderPlaced, group="audit", where=Where(headers={"Tenant": "a"}), runs_in="thread")
    def audit(self, event: OrderPaid | OrderPlaced) -> None: ...

    async def helper(self) -> None: ...


class BiggerWarehouse(Warehouse):
    async def pack(self, event: OrderPlaced) -> None: ...

    @subscribe(OrderPaid, group="bigger")
    async def paid(self, event: Event) -> None: ...


def by_method(cls: type) -> dict[str, Subscription]:
    return {found.attribute: found for found in subscriptions_of(cls)}


def test_subscriptions_are_read_in_the_order_of_declaration() -> None:
    pack, count, audit = subscriptions_of(Warehouse)
    assert (pack.name, pack.group, pack.topic) == ("Warehouse.pack", "warehouse", "shop.orders")
    assert (pack.retry, pack.timeout, pack.on_dead, pack.once) == (Retry(attempts=2), 5, "park_key", True)
    assert pack.events == (event_of(OrderPlaced),)
    assert (count.batch, count.start, count.concurrency) == (Batch(500, wait=0.5), "latest", 2)
    assert [event.type for event in audit.events] == ["shop.v1.OrderPaid", "shop.v1.OrderPlaced"]
    assert (audit.where, audit.runs_in) == (Where(headers={"tenant": "a"}), "thread")


def test_a_service_without_subscriptions_has_none() -> None:
    assert subscriptions_of(object) == ()


def test_an_overriding_method_stays_subscribed_with_the_new_body() -> None:
    found = by_method(BiggerWarehouse)
    assert list(found) == ["pack", "count", "audit", "paid"]
    assert found["pack"].service is BiggerWarehouse


def test_one_method_may_be_in_two_groups() -> None:
    class Twice:
        @subscribe(PageView, group="a")
        @subscribe(PageView, group="b")
        async def see(self, event: PageView) -> None: ...

    assert sorted(found.group for found in subscriptions_of(Twice)) == ["a", "b"]


def test_an_event_goes_to_one_method_of_a_group() -> None:
    class Torn:
        @subscribe(PageView, group="a")
        async def one(self, event: PageView) -> None: ...

        @subscribe(PageView, group="a")
        async def two(self, event: PageView) -> None: ...

    assert refused(lambda: subscriptions_of(Torn)) == (
        "Torn.one and Torn.two both handle shop.views.PageView for the group 'a', but an event goes to one handler of "
        "a group. Give one of them a group of its own."
    )


def single(wanted: str) -> str:
    return f"its argument 'event' has to be annotated {wanted}, which it subscribes to."


class WrongType:
    @subscribe(PageView, group="a")  # type: ignore[arg-type]  # what this is about
    async def see(self, event: OrderPlaced) -> None: ...


class NoType:
    @subscribe(PageView, group="a")
    async def see(self, event) -> None: ...  # type: ignore[no-untyped-def]  # what this is about


class NoSequence:
    @subscribe(PageView, group="a", batch=Batch(5))  # type: ignore[arg-type]  # what this is about
    async def see(self, event: PageView) -> None: ...


class NoBatch:
    @subscribe(PageView, group="a")  # type: ignore[arg-type]  # what this is about
    async def see(self, event: Sequence[PageView]) -> None: ...


class HalfUnion:
    @subscribe(OrderPlaced, OrderPaid, group="a")
    async def see(self, event: OrderPlaced) -> None: ...


class Generator:
    @subscribe(PageView, group="a")
    async def see(self, event: PageView) -> AsyncIterator[None]:
        yield


class PlainGenerator:
    @subscribe(PageView, group="a")
    def see(self, event: PageView) -> Iterator[None]:
        yield


class TwoArguments:
    @subscribe(PageView, group="a")  # type: ignore[arg-type]  # what this is about
    async def see(self, event: PageView, more: str) -> None: ...


@pytest.mark.parametrize(
    ("service", "ending"),
    [
        (WrongType, single("PageView")),
        (NoType, single("PageView")),
        (NoSequence, single("Sequence[PageView]")),
        (NoBatch, single("PageView")),
        (HalfUnion, single("OrderPlaced | OrderPaid")),
    ],
)
def test_a_method_takes_what_it_subscribes_to(service: type, ending: str) -> None:
    assert refused(lambda: subscriptions_of(service)) == f"{service.__name__}.see: {ending}"


def test_a_method_takes_the_event_alone_and_returns_nothing() -> None:
    assert refused(lambda: subscriptions_of(TwoArguments)) == (
        "TwoArguments.see takes 2 arguments; a subscribed method takes the event alone."
    )
    for service in (Generator, PlainGenerator):
        assert refused(lambda service=service: subscriptions_of(service)) == (
            f"{service.__name__}.see is a generator; a subscribed method returns nothing."
        )


@pytest.mark.parametrize(
    ("events", "options", "sentence"),
    [
        ((), {}, "@subscribe() names no event. Give the class, @subscribe(OrderPlaced, group='warehouse')."),
        (
            (Confirmation,),
            {},
            f"@subscribe({Confirmation!r}): that is no event. Derive it: class ...(Event, topic='...').",
        ),
        (
            (OrderPlaced, PageView),
            {},
            "@subscribe: its events have different topics (OrderPlaced is in 'shop.orders', PageView is in "
            "'shop.views'). Use a method for each topic.",
        ),
        ((PageView,), {"timeout": 0}, "@subscribe(timeout=0): a timeout is a positive number of seconds."),
        ((PageView,), {"concurrency": 0}, "@subscribe(concurrency=0): at least 1 handler has to run."),
        ((PageView,), {"start": "now"}, "@subscribe(start='now'): choose one of 'earliest', 'latest'."),
        (
            (PageView,),
            {"on_dead": "park_key"},
            "@subscribe(on_dead='park_key'): PageView has no key that could be parked. Give it one, key='...'.",
        ),
        (
            (PageView,),
            {"at_most_once": True, "once": True},
            "@subscribe(at_most_once=True, once=True): what is acknowledged before it is handled needs no inbox. "
            "Choose one of them.",
        ),
        (
            (PageView,),
            {"group": "a/b"},
            "@subscribe(group='a/b'): letters, digits, '.', '-' and '_', at most 150 of them, beginning with a letter, "
            "a digit or '_'.",
        ),
    ],
)
def test_an_option_that_means_nothing_is_refused(
    events: tuple[Any, ...], options: dict[str, Any], sentence: str
) -> None:
    assert refused(lambda: subscribe(*events, **{"group": "a", **options})) == sentence


def test_a_batch_has_limits() -> None:
    assert refused(lambda: Batch(0)) == "Batch(0): a batch has 1 to 10000 events."
    assert refused(lambda: Batch(5, wait=61)) == "Batch(wait=61): it is collected for 0 to 60 s."


def test_a_pattern_has_words_and_headers_are_text() -> None:
    assert refused(lambda: Where("shop..orders")) == (
        "Where('shop..orders') is no pattern. Write words with dots between them; '*' stands for one word and '#' for "
        "any number, as in 'shop.v1.*'."
    )
    assert refused(lambda: Where(headers={"a": 5})) == (  # type: ignore[dict-item]  # wrong on purpose
        "Where(headers={'a': 5}): names and values of headers are text."
    )


@pytest.mark.parametrize(
    ("pattern", "type", "fits"),
    [
        ("shop.v1.OrderPaid", "shop.v1.OrderPaid", True),
        ("shop.v1.*", "shop.v1.OrderPaid", True),
        ("shop.*", "shop.v1.OrderPaid", False),
        ("shop.#", "shop.v1.OrderPaid", True),
        ("shop.v1.OrderPaid.#", "shop.v1.OrderPaid", True),
        ("#.OrderPaid", "shop.v1.OrderPaid", True),
        ("#.v1.#", "shop.v1.OrderPaid", True),
        ("*.v2.*", "shop.v1.OrderPaid", False),
        ("#", "x", True),
        ("*.#.*", "x", False),
    ],
)
def test_a_pattern_fits_as_topics_of_amqp_do(pattern: str, type: str, fits: bool) -> None:
    assert Where(pattern).fits(type, None) is fits


words = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=6)


@given(pattern=words, subject=st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=6))
def test_a_pattern_fits_exactly_what_its_definition_says(pattern: list[str], subject: list[str]) -> None:
    def model(pattern: list[str], subject: list[str]) -> bool:
        if not pattern:
            return not subject
        if pattern[0] == "#":
            return any(model(pattern[1:], subject[i:]) for i in range(len(subject) + 1))
        return bool(subject) and pattern[0] in ("*", subject[0]) and model(pattern[1:], subject[1:])

    assert Where(".".join(pattern)).fits(".".join(subject), None) is model(pattern, subject)


def test_every_header_has_to_be_there() -> None:
    where = Where("shop.#", headers={"tenant": "a", "kind": "b"})
    assert where.fits("shop.x", {"tenant": "a", "kind": "b", "more": "c"})
    assert not where.fits("shop.x", {"tenant": "a"})
    assert not where.fits("shop.x", None)
    assert not where.fits("bank.x", {"tenant": "a", "kind": "b"})


# ---- what services need ------------------------------------------------------------------------------------------


def test_the_queues_of_contracts_are_listed_once() -> None:
    class Mails(Contract, package="need.v1"):
        @task(key="order_id")
        async def confirm(self, mail: Confirmation) -> None: ...

        @task(queue="need.slow", concurrency=2, rate=0.5, priorities=3)
        async def slow(self) -> None: ...

    class Others(Contract, package="need.v1"):
        @task(queue="need.slow", concurrency=2, rate=0.5, priorities=3)
        async def slow(self) -> None: ...

    assert queues_of([Mails, Others]) == (
        QueueSpec(name="need.slow", concurrency=2, rate=0.5, priorities=3),
        QueueSpec(name="need.v1.Mails", keyed=True),
    )


def test_two_contracts_that_share_a_queue_have_to_agree() -> None:
    class One(Contract, package="torn.v1"):
        @task(queue="torn", rate=1.0)
        async def do(self) -> None: ...

    class Two(Contract, package="torn.v1"):
        @task(queue="torn", rate=2.0)
        async def do(self) -> None: ...

    assert refused(lambda: queues_of([One, Two])) == (
        "torn.v1.One/Do and torn.v1.Two/Do share the queue 'torn', but differ in rate=, which belongs to the queue. "
        "Give both the same, or one of them a queue=."
    )


def test_topics_and_groups_of_what_is_published_and_subscribed_to() -> None:
    known = {"shop.orders": TopicSpec(name="shop.orders", partitions=3)}
    found = topics_of([OrderLost], subscriptions_of(Warehouse), known=known)
    assert found.topics == (
        TopicSpec(name="shop.losses"),
        TopicSpec(name="shop.orders", partitions=3),
        TopicSpec(name="shop.views"),
    )
    assert found.groups == (
        GroupSpec(topic="shop.orders", group="audit"),
        GroupSpec(topic="shop.orders", group="warehouse"),
        GroupSpec(topic="shop.views", group="analytics", start="latest"),
    )
    assert found.bindings == (
        Binding(
            topic="shop.orders",
            group="audit",
            types=("shop.v1.OrderPaid", "shop.v1.OrderPlaced"),
            headers={"tenant": "a"},
            keyed=True,
        ),
        Binding(topic="shop.orders", group="warehouse", types=("shop.v1.OrderPlaced",), keyed=True),
        Binding(topic="shop.views", group="analytics", types=("shop.views.PageView",)),
    )


def test_a_group_whose_methods_want_different_things_gets_all_of_it() -> None:
    class Both:
        @subscribe(OrderPlaced, group="g", where=Where("shop.v1.*"))
        async def one(self, event: OrderPlaced) -> None: ...

        @subscribe(OrderPaid, group="g", where=Where(headers={"a": "b"}))
        async def two(self, event: OrderPaid) -> None: ...

    (binding,) = topics_of([], subscriptions_of(Both)).bindings
    assert binding.types == ("shop.v1.OrderPaid", "shop.v1.OrderPlaced")
    assert (binding.pattern, binding.headers) == (None, {})


def test_a_group_has_one_beginning() -> None:
    class Torn:
        @subscribe(OrderPlaced, group="g", start="latest")
        async def one(self, event: OrderPlaced) -> None: ...

        @subscribe(OrderPaid, group="g")
        async def two(self, event: OrderPaid) -> None: ...

    assert refused(lambda: topics_of([], subscriptions_of(Torn))) == (
        "Torn.one starts the group 'g' of topic 'shop.orders' at 'latest', Torn.two at 'earliest'. "
        "A group has one beginning: give both the same start=."
    )


def test_two_classes_cannot_have_one_name_on_the_wire() -> None:
    class OrderPlaced(Event, topic="elsewhere", package="shop.v1"):
        pass

    text = refused(lambda: topics_of([OrderPlaced], subscriptions_of(Warehouse)))
    assert text.endswith(
        "OrderPlaced are both called 'shop.v1.OrderPlaced' on the wire. Give one of them a name of its own, name='...'."
    )


def test_what_a_backend_does_not_keep_of_a_queue_is_told() -> None:
    poor = Guarantees(backend="poor", durable=False, shared=False, max_message_bytes=1, key_order=False)
    spec = QueueSpec(name="a", keyed=True, priorities=3, concurrency=2, rate=0.5)
    assert unkept(spec, poor) == [
        "'poor' keeps no order by key",
        "'poor' has 1 level of priority, not 3",
        "'poor' cannot hold concurrency=2 over all processes",
        "'poor' cannot hold rate=0.5 over all processes",
    ]
    assert unkept(QueueSpec(name="a"), poor) == []
