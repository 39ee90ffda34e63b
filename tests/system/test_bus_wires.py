"""`tasks`, `events` and `schedule` of the system file's `[wires]`."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from polywire.bus.core import TopicSpec
from polywire.bus.core.urls import masked
from polywire.cli.system import command
from polywire.errors import SystemFileError
from polywire.system.bus_wires import BackendUrls
from polywire.system.file import Wires, parse

SHOP = """\
[system]
name = "shop"

[services.orders]
app = "shop.orders:app"

[wires]
"""


def wires(more: str, **environ: str) -> Wires:
    return parse(SHOP + textwrap.dedent(more), environ=environ).wires


def refusal(more: str) -> str:
    with pytest.raises(SystemFileError) as caught:
        wires(more)
    return str(caught.value)


def test_without_a_word_nothing_travels() -> None:
    assert wires("") == Wires()
    assert wires("").tasks.of("shop.v1.Mail") is None


def test_one_url_is_for_all_and_a_table_is_by_contract_or_topic() -> None:
    found = wires("""\
        tasks = { default = "amqp://rabbit/", "shop.v1.Images" = "sqlite:images.db" }
        events = "kafka://kafka:9092"
        schedule = "sqlite:schedule.db"
    """)

    assert found.tasks.of("shop.v1.Mail") == "amqp://rabbit/"
    assert found.tasks.of("shop.v1.Images") == "sqlite:images.db"
    assert found.tasks.urls == ("amqp://rabbit/", "sqlite:images.db")
    assert found.events.of("shop.orders") == "kafka://kafka:9092"
    assert found.schedule == "sqlite:schedule.db"


def test_the_environment_says_it_too() -> None:
    found = wires(
        'tasks = "sqlite:bus.db"',
        POLYWIRE__WIRES__TASKS="amqp://shop:secret@rabbit/",
        POLYWIRE__WIRES__EVENTS='{ default = "sqlite:a.db", "shop.orders" = "kafka://k:9092" }',
    )

    assert found.tasks == BackendUrls(default="amqp://shop:secret@rabbit/")
    assert found.events == BackendUrls(default="sqlite:a.db", by_name={"shop.orders": "kafka://k:9092"})


def test_files_are_looked_for_beside_the_system_file() -> None:
    found = wires('tasks = { default = "sqlite:.polywire/bus.db", a = "sqlite:/var/bus.db", b = "amqp://r/" }').tasks

    assert found.beside(Path("/srv/shop")) == BackendUrls(
        default="sqlite:/srv/shop/.polywire/bus.db", by_name={"a": "sqlite:/var/bus.db", "b": "amqp://r/"}
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            'tasks = "kafka://kafka:9092"',
            "wires.tasks is a 'kafka' URL, which carries no tasks. Choose one of: amqp:, amqps:, memory:, sqlite:.",
        ),
        (
            'tasks = "amqpp://me:secret@rabbit/"',
            "wires.tasks is a 'amqpp' URL, which is no backend. Did you mean 'amqp'? "
            "Choose one of: amqp:, amqps:, memory:, sqlite:.",
        ),
        (
            'events = { "shop.orders" = "redis://cache" }',
            "wires.events.\"shop.orders\" is a 'redis' URL, which is no backend. "
            "Choose one of: amqp:, amqps:, kafka:, kafkas:, memory:, sqlite:.",
        ),
        (
            "events = 3",
            "wires.events is 3. It has to be the URL of a backend, for example 'sqlite:bus.db'.",
        ),
        (
            'schedule = "amqp://rabbit/"',
            "wires.schedule is a 'amqp' URL. Schedules are kept in 'sqlite:PATH'.",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_line_and_choices(line: str, problem: str) -> None:
    assert refusal(line) == f"polywire.toml:8: {problem}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://shop:s3cret@rabbit:5672/vhost", "amqp://shop:***@rabbit:5672/vhost"),
        ("amqp://shop@rabbit/", "amqp://shop@rabbit/"),
        ("amqp://shop:a@b@rabbit/", "amqp://shop:***@rabbit/"),
        (
            "kafka://a:9092,b:9092?sasl_password=x&group_protocol=consumer",
            "kafka://a:9092,b:9092?sasl_password=***&group_protocol=consumer",
        ),
        ("sqlite:/var/lib/bus.db", "sqlite:/var/lib/bus.db"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_system_show_hides_passwords(tmp_path: Path) -> None:
    file = tmp_path / "polywire.toml"
    file.write_text(SHOP + 'tasks = "amqp://shop:s3cret@rabbit/"\n')

    shown = CliRunner().invoke(command, ["show", str(file)])

    assert "amqp://shop:***@rabbit/" in shown.output
    assert "s3cret" not in shown.output


def test_of_a_topic_more_can_be_said_than_its_name() -> None:
    system = parse(
        SHOP
        + textwrap.dedent("""\
        events = "sqlite:bus.db"

        [topics."shop.orders"]
        partitions = 12
        retention = 3600

        [topics.audit]
        keep_forever = true
        retention_bytes = 1000000
        """)
    )

    assert system.topics == {
        "shop.orders": TopicSpec(name="shop.orders", partitions=12, retention=3600.0),
        "audit": TopicSpec(name="audit", retention=None, retention_bytes=1_000_000),
    }


def test_a_topic_is_kept_for_a_time_or_for_ever() -> None:
    assert refusal("[topics.audit]\nkeep_forever = true\nretention = 60\n") == (
        "polywire.toml:10: topics.audit.retention is 60, but topics.audit.keep_forever is true. Say one of them."
    )
