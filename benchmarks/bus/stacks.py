"""The stacks that are compared: for each, how to send a message and how to handle what was sent.

`send(place)` is an async context manager around a `Sending`; `receive(place, handled, pause)` is one inside of which
messages are handled: after *pause* seconds of waiting, *handled* is told when each was sent. A stack whose worker is
not asyncio's blocks in there, until its process is ended. Every import of a stack's own libraries is inside its
functions, so that no stack pays for another's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.bus.contract import (
    BODY,
    GROUP,
    HEADERS,
    LINES,
    NOTE,
    OWN,
    PAYLOAD,
    Confirmation,
    Handled,
    Shape,
    call_under_way,
    mail_contract,
    mail_handling,
    mail_queue,
    order_event,
    order_subscription,
    topic_spec,
)

SENDERS = 100
KAFKA_SENDERS = 500
"""librdkafka waits for company: how much there is decides what a message costs."""
PREFETCH = 200
"""Messages that a raw or foreign consumer holds at a time."""
WAITING_THREADS = 32
"""Of stacks that handle in threads, for tasks that wait; polywire runs as many coroutines."""


@dataclass(frozen=True, slots=True)
class Place:
    """A queue or topic: the URL of its backend, its name, and what waits in it beside the messages that count."""

    url: str
    name: str
    shape: Shape = "plain"


@dataclass(frozen=True, slots=True)
class Sending:
    one: Callable[[], Awaitable[Any]]
    """Send one message; back once it is confirmed."""
    senders: int = SENDERS
    """How many coroutines call it at a time."""
    finish: Callable[[], Any] = lambda: None
    """What is left of confirming."""


@dataclass(frozen=True, slots=True)
class Stack:
    kind: Literal["tasks", "events"]
    server: Literal["memory", "sqlite", "rabbitmq", "kafka"]
    send: Callable[[Place], AbstractAsyncContextManager[Sending]]
    receive: Callable[[Place, Handled, float], AbstractAsyncContextManager[None]]
    raw: bool = False
    """The client library alone: nothing is decoded, so nobody knows when it was sent."""


# ---- polywire --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(backend: Any) -> AsyncIterator[Any]:
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


@asynccontextmanager
async def send_task(place: Place) -> AsyncIterator[Sending]:
    from polywire.bus.backend.opening import open_tasks

    async with opened(open_tasks(place.url)) as queue, tasks_to(queue, place) as sending:
        yield sending


@asynccontextmanager
async def tasks_to(queue: Any, place: Place) -> AsyncIterator[Sending]:
    """By the client of a contract, from the handler of another message."""
    from polywire.bus.sending import BusWires, Sender, enqueue
    from polywire.client import client_for
    from polywire.context import _current

    contract = mail_contract(place.name, place.shape)
    await queue.declare([mail_queue(contract)])
    sender = Sender("orders", tasks=BusWires(default=queue))
    mail = client_for(contract, None, sender)
    _current.set(call_under_way())
    priority = 2 if place.shape == "low" else None
    keys = iter(range(1 << 62))

    async def one() -> None:
        customer = f"customer-{next(keys) % 1000}"
        message = Confirmation(order_id="0192a3b4-order", customer=customer, lines=LINES, note=NOTE, sent=time.time())
        await enqueue(mail.send, message, headers=OWN, priority=priority)

    yield Sending(one)
    sender.close()


@asynccontextmanager
async def handle_tasks(place: Place, handled: Handled, pause: float) -> AsyncIterator[None]:
    from polywire.bus.backend.opening import open_tasks

    async with opened(open_tasks(place.url)) as queue, tasks_of(queue, place, handled, pause):
        yield


@asynccontextmanager
async def tasks_of(queue: Any, place: Place, handled: Handled, pause: float) -> AsyncIterator[None]:
    from polywire.bus.consumer import QueueRunner

    contract = mail_contract(place.name, place.shape)
    spec = mail_queue(contract)
    await queue.declare([spec])
    runner = QueueRunner(queue, spec.name, [mail_handling(contract, handled, pause)], keyed=spec.keyed)
    await runner.start()
    try:
        yield
    finally:
        await runner.stop(1.0)


@asynccontextmanager
async def publish(place: Place) -> AsyncIterator[Sending]:
    from polywire.bus.backend.opening import open_events
    from polywire.bus.sending import Bus, BusWires, Sender
    from polywire.context import _current

    made = order_event(place.name)
    async with opened(open_events(place.url)) as events:
        await declare_events(events, made)
        sender = Sender("orders", events=BusWires(default=events))
        bus = Bus(sender)
        _current.set(call_under_way())
        keys = iter(range(1 << 62))

        async def one() -> None:
            customer = f"customer-{next(keys) % 1000}"
            event = made(order_id="0192a3b4-order", customer=customer, lines=LINES, note=NOTE, sent=time.time())
            await bus.publish(event, headers=OWN)

        yield Sending(one, KAFKA_SENDERS if place.url.startswith("kafka") else SENDERS)
        sender.close()


@asynccontextmanager
async def handle_events(place: Place, handled: Handled, pause: float) -> AsyncIterator[None]:
    from polywire.bus.backend.opening import open_events
    from polywire.bus.consumer import LogRunner, QueueRunner

    made = order_event(place.name)
    _, handling = order_subscription(made, handled)
    runner: Any
    async with opened(open_events(place.url)) as events:
        await declare_events(events, made)
        if hasattr(events, "queues"):
            runner = QueueRunner(events.queues, f"{place.name}.{GROUP}", [handling], group=GROUP, keyed=True)
        else:
            runner = LogRunner(events, [place.name], GROUP, [handling])
        await runner.start()
        try:
            yield
        finally:
            await runner.stop(1.0)


async def declare_events(events: Any, made: type[Any]) -> None:
    from polywire.bus.sending import topics_of
    from polywire.contract import event_of

    topic = event_of(made).topic
    subscription, _ = order_subscription(made, lambda sent: None)
    needed = topics_of([made], [subscription], known={topic: topic_spec(topic)})
    if hasattr(events, "queues"):
        await events.declare([spec.name for spec in needed.topics], needed.bindings)
    else:
        await events.declare(needed.topics, needed.groups)


# ---- apsw ------------------------------------------------------------------------------------------------------------

BATCH = 100


@asynccontextmanager
async def raw_apsw_send(place: Place) -> AsyncIterator[Sending]:
    """A row each, one durable commit per hundred."""
    from polywire.bus.core import Envelope, pack

    db = _raw_apsw(place)
    rows: list[tuple[bytes]] = []

    async def one() -> None:
        rows.append((pack(Envelope("0192a3b4-c5d6-7e8f-9a0b-1c2d3e4f5a6d", "bench", BODY, headers=HEADERS)),))
        if len(rows) >= BATCH:
            finish()

    def finish() -> None:
        with db:
            db.executemany("insert into raw (envelope) values (?)", rows)
        rows.clear()

    yield Sending(one, 1, finish)
    db.close()


@asynccontextmanager
async def raw_apsw_receive(place: Place, handled: Handled, pause: float) -> AsyncIterator[None]:
    """Take a hundred, unpack them, delete them."""
    from polywire.bus.core import unpack

    db = _raw_apsw(place)
    while True:
        rows = db.execute("select n, envelope from raw order by n limit ?", (BATCH,)).fetchall()
        for _, envelope in rows:
            unpack(envelope)
            handled(0.0)
        with db:
            db.executemany("delete from raw where n = ?", [(n,) for n, _ in rows])
    yield


def _raw_apsw(place: Place) -> Any:
    import apsw

    db = apsw.Connection(place.url.removeprefix("sqlite:") + ".raw")
    db.set_busy_timeout(5000)
    db.pragma("journal_mode", "wal")
    db.pragma("synchronous", "full")
    db.execute("create table if not exists raw (n integer primary key, envelope blob)")
    return db


# ---- huey ------------------------------------------------------------------------------------------------------------


def _huey(place: Place) -> Any:
    from huey import SqliteHuey

    return SqliteHuey(filename=place.url.removeprefix("sqlite:") + ".huey", fsync=True, results=False)


@asynccontextmanager
async def huey_send(place: Place) -> AsyncIterator[Sending]:
    huey = _huey(place)

    @huey.task(name="mail")
    def mail(**payload: Any) -> None: ...

    async def one() -> None:
        mail(**{**PAYLOAD, "sent": time.time()}, headers=HEADERS)

    yield Sending(one, 1)


@asynccontextmanager
async def huey_receive(place: Place, handled: Handled, pause: float) -> AsyncIterator[None]:
    """It deletes a task before it runs it: one that dies with its worker is lost."""
    from huey.consumer import Consumer

    huey = _huey(place)

    @huey.task(name="mail")
    def mail(**payload: Any) -> None:
        if pause:
            time.sleep(pause)
        handled(payload["sent"])

    consumer = Consumer(huey, workers=WAITING_THREADS if pause else 1, periodic=False, initial_delay=0.001)
    consumer.run()
    yield


# ---- RabbitMQ: pika, Celery, FastStream ------------------------------------------------------------------------------

QUORUM = {"x-queue-type": "quorum"}


@asynccontextmanager
async def _pika_channel(place: Place) -> AsyncIterator[Any]:
    from pika import URLParameters
    from pika.adapters.asyncio_connection import AsyncioConnection

    loop = asyncio.get_running_loop()
    ready: asyncio.Future[Any] = loop.create_future()
    connection = AsyncioConnection(
        URLParameters(place.url),
        lambda opened: opened.channel(on_open_callback=ready.set_result),
        lambda _, error: ready.set_exception(error),
        custom_ioloop=loop,
    )
    channel = await ready
    declared: asyncio.Future[Any] = loop.create_future()
    channel.queue_declare(place.name, durable=True, arguments=QUORUM, callback=declared.set_result)
    await declared
    yield channel
    connection.close()


@asynccontextmanager
async def raw_pika_send(place: Place) -> AsyncIterator[Sending]:
    from pika import BasicProperties

    async with _pika_channel(place) as channel:
        loop = asyncio.get_running_loop()
        waiting: dict[int, asyncio.Future[None]] = {}
        first, last = 1, 0

        def confirmed(frame: Any) -> None:
            nonlocal first
            tag = frame.method.delivery_tag
            if not frame.method.multiple:
                waiting.pop(tag).set_result(None)
                return
            while first <= tag:
                future = waiting.pop(first, None)
                if future is not None:
                    future.set_result(None)
                first += 1

        channel.confirm_delivery(confirmed)

        async def one() -> None:
            nonlocal last
            last += 1
            future = waiting[last] = loop.create_future()
            properties = BasicProperties("application/json", headers=HEADERS, delivery_mode=2)
            channel.basic_publish("", place.name, BODY, properties, mandatory=True)
            await future

        yield Sending(one)


@asynccontextmanager
async def raw_pika_receive(place: Place, handled: Handled, pause: float) -> AsyncIterator[None]:
    async with _pika_channel(place) as channel:

        def deliver(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            handled(0.0)
            channel.basic_ack(method.delivery_tag)

        channel.basic_qos(prefetch_count=PREFETCH)
        channel.basic_consume(place.name, deliver)
        yield


def _celery(place: Place) -> Any:
    from celery import Celery

    app = Celery("bench", broker=place.url)
    app.conf.update(
        broker_transport_options={"confirm_publish": True},
        task_default_queue=place.name,
        task_default_exchange=place.name,
        task_default_routing_key=place.name,
        task_default_queue_type="quorum",
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=PREFETCH // WAITING_THREADS,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
    )
    return app


@asynccontextmanager
async def celery_send(place: Place) -> AsyncIterator[Sending]:
    """One after the other, as its client is synchronous: threads would cost more."""
    app = _celery(place)

    @app.task(name="mail")
    def mail(**payload: Any) -> None: ...

    async def one() -> None:
        mail.apply_async(kwargs={**PAYLOAD, "sent": time.time()}, headers=HEADERS)

    yield Sending(one, 1)
    app.close()


@asynccontextmanager
async def celery_receive(place: Place, handled: Handled, pause: float) -> AsyncIterator[None]:
    app = _celery(place)

    @app.task(name="mail")
    def mail(**payload: Any) -> None:
        if pause:
            time.sleep(pause)
        handled(payload["sent"])

    worker = app.Worker(
        pool="threads",
        concurrency=WAITING_THREADS if pause else 2,
        prefetch_multiplier=PREFETCH // (WAITING_THREADS if pause else 2),
        loglevel="ERROR",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    yield


def _faststream_model() -> type[Any]:
    """What FastStream validates by itself."""
    from pydantic import create_model

    line = create_model("Line", sku=(str, ...), title=(str, ...), quantity=(int, ...), cents=(int, ...))
    fields: Any = {"order_id": (str, ...), "customer": (str, ...), "note": (str, ...), "sent": (float, ...)}
    return create_model("Mail", lines=(list[line], ...), **fields)  # type: ignore[valid-type]  # a type made at run time


def _rabbit_broker(place: Place) -> Any:
    from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

    broker = RabbitBroker(place.url, logger=None, default_channel=Channel(prefetch_count=PREFETCH))
    return broker, RabbitQueue(place.name, queue_type=QueueType.QUORUM, durable=True)


@asynccontextmanager
async def faststream_rabbit_send(place: Place) -> AsyncIterator[Sending]:
    broker, queue = _rabbit_broker(place)
    model = _faststream_model()
    async with broker:
        await broker.start()
        await broker.declare_queue(queue)

        async def one() -> None:
            message = model(**{**PAYLOAD, "sent": time.time()})
            await broker.publish(message, queue, headers=HEADERS, persist=True)

        yield Sending(one)


@asynccontextmanager
async def faststream_rabbit_receive(place: Place, handled: Handled, pause: float) -> AsyncIterator[None]:
    broker, queue = _rabbit_broker(place)
    broker.subscriber(queue)(_faststream_handler(handled, pause))
    async with broker:
        await broker.start()
        yield


def _faststream_handler(handled: Handled, pause: float) -> Any:
    async def handle(mail: Any) -> None:
        if pause:
            await asyncio.sleep(pause)
        handled(mail.sent)

    handle.__annotations__["mail"] = _faststream_model()
    return handle


# ---- Kafka: confluent-kafka, FastStream ------------------------------------------------------------------------------


def _create_topic(place: Place) -> str:
    """The bootstrap servers; the topic is there then."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    servers = place.url.removeprefix("kafka://").strip("/")
    admin = AdminClient({"bootstrap.servers": servers})
    for future in admin.create_topics([NewTopic(place.name, 4, 1)]).values():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                raise
    return servers


@asynccontextmanager
async def raw_confluent_send(place: Place) -> AsyncIterator[Sending]:
    """With a callback each and without waiting: what librdkafka takes by itself."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": _create_topic(place), "enable.idempotence": True, "linger.ms": 2})
    headers = {name: value.encode() for name, value in HEADERS.items()}
    numbers = iter(range(1 << 62))
    failed: list[Any] = []

    def report(error: Any, message: Any) -> None:
        if error is not None:
            failed.append(error)

    async def one() -> None:
        number = next(numbers)
        while True:
            try:
                key = f"customer-{number % 1000}"
                producer.produce(place.name, BODY, key, headers=headers, on_delivery=report)
                break
            except BufferError:
                producer.poll(0.01)
        if number % 500 == 0:
            producer.poll(0)

    def finish() -> None:
        producer.flush()
        assert not failed, failed

    yield Sending(one, 1, finish)


@asynccontextmanager
async def raw_confluent_receive(place: Place, handled: Handled, pause: float) -> AsyncIterator[None]:
    from confluent_kafka import Consumer

    settings = {"bootstrap.servers": _create_topic(place), "group.id": GROUP, "enable.auto.commit": False}
    consumer = Consumer({**settings, "auto.offset.reset": "earliest"})
    consumer.subscribe([place.name])
    while True:
        messages = consumer.consume(500, 0.1)
        for message in messages:
            message.value()
            message.headers()
            handled(0.0)
        if messages:
            consumer.commit(asynchronous=True)
    yield


@asynccontextmanager
async def faststream_kafka_send(place: Place) -> AsyncIterator[Sending]:
    from faststream.confluent import KafkaBroker

    broker = KafkaBroker(_create_topic(place), acks="all", enable_idempotence=True, logger=None)
    model = _faststream_model()
    async with broker:
        await broker.start()
        numbers = iter(range(1 << 62))

        async def one() -> None:
            message = model(**{**PAYLOAD, "sent": time.time()})
            await broker.publish(message, place.name, key=f"customer-{next(numbers) % 1000}", headers=HEADERS)

        yield Sending(one, KAFKA_SENDERS)


@asynccontextmanager
async def faststream_kafka_receive(place: Place, handled: Handled, pause: float) -> AsyncIterator[None]:
    """Committed after each handler, as whoever may lose nothing has to."""
    from faststream import AckPolicy
    from faststream.confluent import KafkaBroker

    broker = KafkaBroker(_create_topic(place), logger=None)
    subscriber = broker.subscriber(place.name, group_id=GROUP, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK)
    subscriber(_faststream_handler(handled, pause))
    async with broker:
        await broker.start()
        yield


STACKS: dict[str, Stack] = {
    "polywire, sqlite": Stack("tasks", "sqlite", send_task, handle_tasks),
    "apsw alone": Stack("tasks", "sqlite", raw_apsw_send, raw_apsw_receive, raw=True),
    "huey, sqlite": Stack("tasks", "sqlite", huey_send, huey_receive),
    "polywire, RabbitMQ": Stack("tasks", "rabbitmq", send_task, handle_tasks),
    "pika alone": Stack("tasks", "rabbitmq", raw_pika_send, raw_pika_receive, raw=True),
    "FastStream, RabbitMQ": Stack("tasks", "rabbitmq", faststream_rabbit_send, faststream_rabbit_receive),
    "Celery, RabbitMQ": Stack("tasks", "rabbitmq", celery_send, celery_receive),
    "polywire, sqlite log": Stack("events", "sqlite", publish, handle_events),
    "polywire, RabbitMQ fan-out": Stack("events", "rabbitmq", publish, handle_events),
    "polywire, Kafka": Stack("events", "kafka", publish, handle_events),
    "confluent-kafka alone": Stack("events", "kafka", raw_confluent_send, raw_confluent_receive, raw=True),
    "FastStream, Kafka": Stack("events", "kafka", faststream_kafka_send, faststream_kafka_receive),
}
