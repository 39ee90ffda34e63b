"""RabbitMQ passes the public suite of fan-outs, and what is particular to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from rabbitmq_support import a_name, an_envelope, delete_all, plain_channel, properties, received, within

from polywire.bus.backend import rabbitmq_topology as topology
from polywire.bus.backend.rabbitmq_fanout import RabbitFanout, fits
from polywire.bus.core import Ack, Binding, Fanout, QueueSpec, Settlement
from polywire.errors import MessageRefused, NobodyListens, SetupError
from polywire.testing.fanouts import FanoutSuite


class TestRabbitFanout(FanoutSuite):
    patience = 20.0
    server = ""

    @pytest.fixture(autouse=True)
    def _server(self, rabbitmq_url: str) -> None:
        self.server = rabbitmq_url

    def url(self) -> str:
        return self.server

    async def clean_up(self, backend: Fanout, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        assert isinstance(backend, RabbitFanout)
        await delete_topics(backend, topics, bindings)


class TestRabbitFanoutOn4(TestRabbitFanout):
    @pytest.fixture(autouse=True)
    def _server(self, server_url: Callable[[str], str]) -> None:
        self.server = server_url("rabbitmq4")


async def delete_topics(fanout: RabbitFanout, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
    specs = [QueueSpec(name=binding.queue, keyed=binding.keyed) for binding in bindings]
    queues = [each.name for spec in specs for each in topology.of_queue(spec) if isinstance(each, topology.Queue)]
    await delete_all(fanout._client, queues, [*topics, *(f"{binding.queue}.filter" for binding in bindings)])


async def test_types_and_a_pattern_together_are_both_asked_for(rabbitmq_url: str) -> None:
    topic = a_name()
    fanout = RabbitFanout(rabbitmq_url)
    await fanout.start()
    binding = Binding(topic=topic, group="g", types=("shop.v1.Paid", "bank.v1.Paid"), pattern="shop.#")
    await fanout.declare([topic], [binding])
    paid, other = an_envelope(type="shop.v1.Paid"), an_envelope(type="bank.v1.Paid")
    none, nobody = await fanout.publish(topic, [paid, other])
    assert none is None
    assert isinstance(nobody, NobodyListens)
    assert str(nobody) == f"Event {other.id!r} to {topic!r} was not kept: no group is bound that wants 'bank.v1.Paid'."
    wrong = Binding(topic=topic, group="h", types=("bank.v1.Paid",), pattern="shop.#")
    with pytest.raises(SetupError) as raised:
        await fanout.declare([topic], [wrong])
    assert str(raised.value) == (
        f"The group 'h' of {topic!r} was not declared: no type it names fits its pattern 'shop.#'."
    )
    await delete_topics(fanout, [topic], [binding])
    await fanout.close()


async def test_a_keyed_group_with_headers_spreads_its_keys_over_all_lanes(rabbitmq_url: str) -> None:
    topic = a_name()
    fanout = RabbitFanout(rabbitmq_url)
    await fanout.start()
    binding = Binding(topic=topic, group="g", keyed=True, headers={"tenant": "a", "x-own": "1"})
    await fanout.declare([topic], [binding])
    wanted = [an_envelope(key=f"k{n}", headers={"tenant": "a", "x-own": "1"}) for n in range(40)]
    assert await fanout.publish(topic, wanted) == [None] * 40
    [nobody] = await fanout.publish(topic, [an_envelope(key="k", headers={"tenant": "b", "x-own": "1"})])
    assert isinstance(nobody, NobodyListens)
    consumer = await fanout.queues.consumer(binding.queue, limit=100)
    found = await received(consumer, 40)
    assert {each.envelope.id for each in found} == {each.id for each in wanted}
    assert {each.envelope.headers["x-own"] for each in found if each.envelope.headers} == {"1"}
    assert len({each.position for each in found}) == 8
    await consumer.settle([Settlement(each, Ack()) for each in found])
    await consumer.close()
    await delete_topics(fanout, [topic], [binding])
    await fanout.close()


async def test_a_foreign_publisher_reaches_the_groups_too(rabbitmq_url: str) -> None:
    topic = a_name()
    fanout = RabbitFanout(rabbitmq_url)
    await fanout.start()
    binding = Binding(topic=topic, group="g", types=("shop.v1.Paid",))
    await fanout.declare([topic], [binding])
    with plain_channel(rabbitmq_url) as channel:
        channel.basic_publish(topic, "shop.v1.Paid", b"{}", properties(type="shop.v1.Paid", message_id="m"))
    consumer = await fanout.queues.consumer(binding.queue, limit=1)
    [delivery] = await received(consumer, 1)
    assert (delivery.envelope.id, delivery.envelope.type) == ("m", "shop.v1.Paid")
    await consumer.close()
    await delete_topics(fanout, [topic], [binding])
    await fanout.close()


async def test_a_topic_that_was_deleted_since_costs_an_unknown_and_is_refused_then(rabbitmq_url: str) -> None:
    topic = a_name()
    shown = rabbitmq_url.replace("guest:guest", "guest:***")
    fanout = RabbitFanout(rabbitmq_url)
    await fanout.start()
    await fanout.declare([topic], [])
    with plain_channel(rabbitmq_url) as channel:
        channel.exchange_delete(topic)
    first, second = an_envelope(), an_envelope()
    [error] = await within(fanout.publish(topic, [first]))
    assert str(error) == (
        f"Message {first.id!r} to 'shop.v1.Mail/Send' was not confirmed: the connection broke (NOT_FOUND - no exchange "
        f"{topic!r} in vhost '/'). Perhaps it was sent; send it again with the same id."
    )
    [error] = await within(fanout.publish(topic, [second]))
    assert isinstance(error, MessageRefused)
    assert str(error) == (
        f"Event {second.id!r} to {topic!r} was not sent. There is no topic {topic!r} at '{shown}'. Declare it first: "
        f"`polywire bus apply`."
    )
    await fanout.close()


@pytest.mark.parametrize("name", ["amq.topic", "polywire.due"])
async def test_names_of_the_broker_and_of_ours_are_refused(rabbitmq_url: str, name: str) -> None:
    fanout = RabbitFanout(rabbitmq_url)
    await fanout.start()
    with pytest.raises(
        SetupError, match=rf"^The topic '{name}' was not declared: .*not begin with 'amq\.' or 'polywire\.'"
    ):
        await fanout.declare([name], [])
    await fanout.close()


@pytest.mark.parametrize(
    ("pattern", "kind", "expected"),
    [
        ("#", "", True),
        ("#", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.#", "a", True),
        ("a.#.z", "a.b.c.z", True),
        ("a.#.z", "a.b.c", False),
        ("*.b", "a.b", True),
        ("a.b", "a.b", True),
        ("a", "ab", False),
    ],
)
def test_a_pattern_fits_as_the_broker_decides(pattern: str, kind: str, expected: bool) -> None:
    assert fits(pattern, kind) is expected
