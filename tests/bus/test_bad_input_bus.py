"""What must not be there, on every backend where it makes a difference: each ends in a clear error or a dead letter."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from consumer_support import Script, envelope, event, event_handler, handling
from kafka_support import put
from rabbitmq_support import plain_channel, properties

from polywire.bus.backend.memory import MemoryLog, MemoryQueue
from polywire.bus.backend.opening import open_events, open_tasks
from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.consumer import Handling, LogRunner, QueueRunner
from polywire.bus.core import DeadLetter, EventLog, GroupSpec, QueueSpec, TaskQueue, TopicSpec, new_id
from polywire.errors import BackendUnreachable, MessageRefused, PolywireError, SetupError

SOON = 60.0
GROUP = "warehouse"
QUEUES = ["memory", "sqlite", "rabbitmq"]
LOGS = ["memory", "sqlite", "kafka"]
RAW = b"\xff no envelope"

Find = Callable[[str], str]


@pytest.fixture
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Find:
    """The URL of a backend by its name."""

    def find(backend: str) -> str:
        if backend == "memory":
            return f"memory:{secrets.token_hex(8)}"
        if backend == "sqlite":
            return f"sqlite:{tmp_path / 'bus.db'}"
        url: str = request.getfixturevalue(f"{backend}_url")
        return url

    return find


async def until(condition: Callable[[], Any], what: str) -> None:
    """*condition* may be a coroutine function."""
    async with asyncio.timeout(SOON):
        while True:
            found = condition()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.05)
    raise AssertionError(f"{what} never came")


class Queue:
    """A queue of its own on a backend, and a runner over it."""

    def __init__(self, backend: TaskQueue, runner: QueueRunner) -> None:
        self.backend = backend
        self.runner = runner
        self.name = runner.name

    async def letter(self) -> DeadLetter:
        """The only dead letter, once there is one."""

        async def is_there() -> bool:
            return (await self.backend.stats(self.name)).dead == 1

        await until(is_there, "the dead letter")
        (letter,) = await self.backend.dead(self.name)
        return letter


@asynccontextmanager
async def queue_at(url: str, *handlings: Handling) -> AsyncIterator[Queue]:
    spec = QueueSpec(name=f"bad-{new_id()[-10:]}")
    backend = open_tasks(url)
    await backend.start()
    try:
        await backend.declare([spec])
        runner = QueueRunner(backend, spec.name, handlings or [handling(Script().handle)])
        await runner.start()
        try:
            yield Queue(backend, runner)
        finally:
            await runner.stop(0.0)
    finally:
        await backend.close()


class Topic:
    """A topic of its own on a backend, with one group and a runner for it."""

    def __init__(self, backend: EventLog, runner: LogRunner) -> None:
        self.backend = backend
        self.runner = runner
        self.name = runner.topics[0]

    async def letter(self) -> DeadLetter:
        found: list[DeadLetter] = []

        async def is_there() -> bool:
            found[:] = await self.backend.dead(self.name, GROUP)
            return bool(found)

        await until(is_there, "the dead letter")
        (letter,) = found
        return letter


@asynccontextmanager
async def topic_at(url: str, *handlings: Handling) -> AsyncIterator[Topic]:
    name = f"bad-{new_id()[-10:]}"
    backend: Any = open_events(url)
    await backend.start()
    try:
        await backend.declare([TopicSpec(name=name, partitions=1)], [GroupSpec(topic=name, group=GROUP)])
        runner = LogRunner(backend, [name], GROUP, handlings or [event_handler(Script().handle)])
        await runner.start()
        try:
            yield Topic(backend, runner)
        finally:
            await runner.stop(0.0)
    finally:
        await backend.close()


# ---- an unknown type -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", QUEUES)
async def test_a_task_that_nobody_knows_in_time_is_a_dead_letter(
    backend: str, url_of: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polywire.bus.consumer.queue_runner.UNKNOWN_DELAY", 0.2)
    async with queue_at(url_of(backend), handling(Script().handle, unknown_after=0.0)) as queue:
        sent = envelope(1, id=new_id(), type="shop.v1.Jobs/New")
        assert await queue.backend.send(queue.name, [sent]) == [None]
        letter = await queue.letter()
        assert (letter.envelope.id, letter.reason, letter.attempts) == (sent.id, "unknown_type", 0)
        assert letter.error == (f"No handler of the queue {queue.name!r} knew 'shop.v1.Jobs/New', version 1, for 0 s.")


@pytest.mark.parametrize("backend", LOGS)
async def test_an_event_of_a_type_that_the_group_does_not_declare_is_skipped_and_counted(
    backend: str, url_of: Find
) -> None:
    async with topic_at(url_of(backend)) as topic:
        sent = [event(1, id=new_id()), envelope(2, id=new_id(), type="shop.orders.Unknown"), event(3, id=new_id())]
        assert await topic.backend.append(topic.name, sent) == [None] * 3

        async def all_done() -> bool:
            return (await topic.backend.stats(topic.name, GROUP)).lag == 0

        await until(all_done, "the end of the lag")
        assert (topic.runner.counters.done, topic.runner.counters.skipped) == (2, 1)
        assert await topic.backend.dead(topic.name, GROUP) == []


# ---- undecodable bytes -----------------------------------------------------------------------------------------------

MALFORMED = "The body is no Job: Job: the JSON is malformed (Input data was truncated)."
NO_ENVELOPE = {
    "memory": "The message is no polywire envelope: Expected `array`, got `int`.",
    "sqlite": "The message is no polywire envelope: Expected `array`, got `int`.",
    "rabbitmq": "The message carries CloudEvents attributes, but no id.",
    "kafka": "The message carries CloudEvents attributes, but no id and type.",
}
"""By backend, for bytes that somebody else put there."""


@pytest.mark.parametrize("backend", QUEUES)
async def test_a_task_whose_body_cannot_be_decoded_is_a_dead_letter(backend: str, url_of: Find) -> None:
    async with queue_at(url_of(backend)) as queue:
        sent = envelope(1, id=new_id(), body=b"{")
        assert await queue.backend.send(queue.name, [sent]) == [None]
        letter = await queue.letter()
        assert (letter.envelope.id, letter.reason, letter.error) == (sent.id, "undecodable", MALFORMED)
        assert letter.envelope.body == b"{"


@pytest.mark.parametrize("backend", LOGS)
async def test_an_event_whose_body_cannot_be_decoded_is_a_dead_letter(backend: str, url_of: Find) -> None:
    async with topic_at(url_of(backend)) as topic:
        sent = event(1, id=new_id(), body=b"{")
        assert await topic.backend.append(topic.name, [sent]) == [None]
        letter = await topic.letter()
        assert (letter.envelope.id, letter.reason, letter.error) == (sent.id, "undecodable", MALFORMED)
        assert letter.envelope.body == b"{"


async def _put_into_queue(backend: TaskQueue, url: str, name: str) -> None:
    if isinstance(backend, MemoryQueue):
        backend.inject(name, RAW)
    elif isinstance(backend, SqliteQueue):
        from test_sqlite_suite import TestSqliteQueue

        await TestSqliteQueue().put_raw(backend, name, RAW)
    else:
        with plain_channel(url) as channel:
            channel.basic_publish("", name, RAW, properties(headers={"cloudEvents:type": "shop.v1.Jobs/Do"}))


async def _put_into_log(backend: EventLog, url: str, name: str) -> None:
    if isinstance(backend, MemoryLog):
        backend.inject(name, RAW)
    elif url.startswith("sqlite:"):
        from test_sqlite_suite import TestSqliteLog

        await TestSqliteLog().put_raw(backend, name, RAW)
    else:
        await put(url, name, RAW, headers={"ce_specversion": "1.0"})


@pytest.mark.parametrize("backend", QUEUES)
async def test_bytes_in_a_queue_that_are_no_message_are_a_dead_letter(backend: str, url_of: Find) -> None:
    url = url_of(backend)
    async with queue_at(url) as queue:
        await _put_into_queue(queue.backend, url, queue.name)
        letter = await queue.letter()
        assert (letter.reason, letter.error) == ("undecodable", NO_ENVELOPE[backend])
        assert letter.envelope.body == RAW


@pytest.mark.parametrize("backend", LOGS)
async def test_bytes_in_a_topic_that_are_no_message_are_a_dead_letter(backend: str, url_of: Find) -> None:
    url = url_of(backend)
    async with topic_at(url) as topic:
        await _put_into_log(topic.backend, url, topic.name)
        letter = await topic.letter()
        assert (letter.reason, letter.error) == ("undecodable", NO_ENVELOPE[backend])
        assert letter.envelope.body == RAW


# ---- over the limit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", QUEUES)
async def test_a_task_over_the_limit_is_refused_and_the_next_one_is_sent(backend: str, url_of: Find) -> None:
    script = Script()
    async with queue_at(url_of(backend), handling(script.handle)) as queue:
        limit = queue.backend.guarantees.max_message_bytes
        large = envelope(1, id=new_id(), body=bytes(limit + 1))
        refused, sent = await queue.backend.send(queue.name, [large, envelope(2, id=new_id())])
        who = f"Message {large.id!r} to {queue.name!r}" if backend == "rabbitmq" else f"The message {large.id!r}"
        to = "" if backend == "rabbitmq" else f" to the queue {queue.name!r}"
        assert isinstance(refused, MessageRefused)
        assert str(refused) == (
            f"{who} was not sent{to}: its body has {limit + 1} bytes, the limit is {limit}. "
            "Put the content where both sides reach it, and send its address."
        )
        assert sent is None
        await until(lambda: script.seen == [2], "the message that was sent")


@pytest.mark.parametrize("backend", LOGS)
async def test_an_event_over_the_limit_is_refused_and_the_next_one_is_appended(backend: str, url_of: Find) -> None:
    script = Script()
    async with topic_at(url_of(backend), event_handler(script.handle)) as topic:
        limit = topic.backend.guarantees.max_message_bytes
        large = event(1, id=new_id(), body=bytes(limit + 1))
        refused, sent = await topic.backend.append(topic.name, [large, event(2, id=new_id())])
        assert isinstance(refused, MessageRefused)
        assert str(refused) == (
            f"The message {large.id!r} was not sent to the topic {topic.name!r}: its body has {limit + 1} bytes, the "
            f"limit is {limit}. Put the content where both sides reach it, and send its address."
        )
        assert sent is None
        await until(lambda: script.seen == [2], "the event that was appended")


# ---- a wrong URL -----------------------------------------------------------------------------------------------------

TASKS = "Choose one of 'amqp:', 'amqps:', 'memory:', 'sqlite:'."
EVENTS = "Choose one of 'amqp:', 'amqps:', 'kafka:', 'kafkas:', 'memory:', 'sqlite:'."
AMQP = "Write it as 'amqp://user:password@host:5672/vhost'."
KAFKA = "Write it as 'kafka://user:password@host:9092,host2:9092'."
NAMES = "Use letters from A to z, digits, '.', '-' and '_', such as 'shop.mails'."


@pytest.mark.parametrize(
    ("open_", "url", "error"),
    [
        (open_tasks, "", f"tasks = '' was not opened: it begins with the name of no backend. {TASKS}"),
        (open_tasks, "bus.db", f"tasks = 'bus.db' was not opened: it begins with the name of no backend. {TASKS}"),
        (open_tasks, "http://u:pw@a", f"tasks = 'http:...' was not opened: 'http' is no backend. {TASKS}"),
        (open_tasks, "kafka://a", f"tasks = 'kafka:...' was not opened: 'kafka' carries no tasks. {TASKS}"),
        (open_events, "redis://u:pw@a", f"events = 'redis:...' was not opened: 'redis' is no backend. {EVENTS}"),
        (open_tasks, "memory:a b", f"'a b' is no name of a memory backend. {NAMES}"),
        (open_events, "memory:a?b=1", f"'a?b=1' is no name of a memory backend. {NAMES}"),
        (open_tasks, "sqlite:", "'sqlite:' was not opened: it names no file. Write 'sqlite:bus.db', or 'memory:'."),
        (open_events, "sqlite:", "'sqlite:' was not opened: it names no file. Write 'sqlite:bus.db', or 'memory:'."),
        (open_tasks, "amqp:", f"'amqp:' was not opened: it names no host. {AMQP}"),
        (open_tasks, "amqp://u:pw@h:99999/", f"'amqp://u:***@h:99999/' was not opened: it is no URL. {AMQP}"),
        (open_events, "amqp://u:pw@", f"'amqp://u:***@' was not opened: it names no host. {AMQP}"),
        (open_events, "kafka://", f"'kafka://' was not opened: it names no host. {KAFKA}"),
        (open_events, "kafka://u:pw@a:b", f"'kafka://u:***@a:b' was not opened: 'b' is no port. {KAFKA}"),
    ],
)
def test_a_wrong_url_is_refused_when_it_is_read(open_: Callable[[str], Any], url: str, error: str) -> None:
    with pytest.raises(SetupError) as raised:
        open_(url)
    assert str(raised.value) == error


# ---- a missing extra -------------------------------------------------------------------------------------------------

HIDDEN = """
import sys
from importlib.abc import MetaPathFinder

class Hide(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
import polywire.bus.backend.opening as opening
from polywire.errors import SetupError
try:
    getattr(opening, sys.argv[2])(sys.argv[3])
except SetupError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("package", "open_", "url", "extra"),
    [
        ("pika", "open_tasks", "amqp://u:pw@h/", "rabbitmq"),
        ("pika", "open_events", "amqps://u:pw@h/", "rabbitmq"),
        ("confluent_kafka", "open_events", "kafka://u:pw@h", "kafka"),
    ],
)
def test_a_missing_extra_is_named_with_what_installs_it(package: str, open_: str, url: str, extra: str) -> None:
    """In a process in which the package is not installed, as far as it can see."""
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, package, open_, url], capture_output=True, text=True, timeout=100, check=False
    )
    use, scheme = open_.removeprefix("open_"), url.partition(":")[0]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{use} = '{scheme}:...' was not opened: the package '{package}' is missing. "
        f"Install it with `pip install 'polywire[{extra}]'`.\n"
    )


@pytest.mark.parametrize("package", ["pika", "confluent_kafka"])
def test_the_embedded_bus_needs_no_extra(package: str, tmp_path: Path) -> None:
    for open_ in ("open_tasks", "open_events"):
        arguments = [sys.executable, "-c", HIDDEN, package, open_, f"sqlite:{tmp_path / 'bus.db'}"]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


# ---- nobody there ----------------------------------------------------------------------------------------------------


async def _refused(backend: Any) -> str:
    with pytest.raises(PolywireError) as raised:
        await backend.start()
    await backend.close()
    assert isinstance(raised.value, BackendUnreachable | SetupError)
    return str(raised.value)


async def test_an_unreachable_backend_is_named_at_the_start(tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "bus.db"
    missing = (
        f"The bus at {str(nowhere)!r} was not opened: there is no folder {str(nowhere.parent)!r}. "
        f"Create it with `mkdir -p {nowhere.parent}`."
    )
    assert await _refused(open_tasks(f"sqlite:{nowhere}")) == missing
    assert await _refused(open_events(f"sqlite:{nowhere}")) == missing
    away = "RabbitMQ at 'amqp://u:***@127.0.0.1:1/' was not reached: Connection refused."
    assert await _refused(open_tasks("amqp://u:pw@127.0.0.1:1/")) == away
    assert await _refused(open_events("amqp://u:pw@127.0.0.1:1/")) == away
    kafka = await _refused(open_events("kafka://u:pw@127.0.0.1:1?connect_timeout=0.5"))
    assert kafka.startswith("Kafka at 'kafka://u:***@127.0.0.1:1?connect_timeout=0.5' was not reached within 0.5 s: ")
    assert "pw" not in kafka


# ---- what a backend does not promise ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "spec", "error"),
    [
        ("memory", {"priorities": 11}, "it has 11 priorities, 'memory:' offers 1 to 10. Declare fewer."),
        (
            "sqlite",
            {"priorities": 257},
            "it asks for 257 priorities, and a sqlite bus has 1 to 256. Declare fewer.",
        ),
        (
            "rabbitmq",
            {"priorities": 11},
            "it has 11 priorities, and RabbitMQ queues have at most 10, because each is a queue of its own. "
            "Declare fewer.",
        ),
        (
            "rabbitmq",
            {"concurrency": 1},
            "RabbitMQ cannot keep concurrency= over all processes. Limit each worker, or use a backend with shared "
            "limits (sqlite).",
        ),
        (
            "rabbitmq",
            {"rate": 1.0},
            "RabbitMQ cannot keep rate= over all processes. Limit each worker, or use a backend with shared limits "
            "(sqlite).",
        ),
    ],
)
async def test_what_a_backend_cannot_keep_of_a_queue_is_refused_when_it_is_declared(
    backend: str, spec: dict[str, Any], error: str, url_of: Find
) -> None:
    queue = open_tasks(url_of(backend))
    await queue.start()
    try:
        with pytest.raises(SetupError) as raised:
            await queue.declare([QueueSpec(name="q", **spec)])
    finally:
        await queue.close()
    assert str(raised.value) == f"The queue 'q' was not declared: {error}"
