"""What the system file says of how many calls a service works on at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from polywire import App, Contract, Message, Server, Shedding, rpc
from polywire.errors import SystemFileError
from polywire.system.file import SystemFile, parse
from polywire.system.plan import plan
from polywire.system.process import processing

SHOP = """\
[system]
name = "shop"

[shedding]
limit = 500
pushback = 0.2

[services.orders]
app = "shop.orders:app"

[services.inventory]
app = "shop.inventory:app"

[services.inventory.shedding]
limit = 40
adaptive = false

[services.reports]
app = "shop.reports:app"
shedding = { enabled = false }
"""


def shop(text: str = SHOP, **environ: str) -> SystemFile:
    return parse(text, file="polywire.toml", environ=environ)


def test_what_is_said_for_all_holds_where_a_service_says_nothing_else() -> None:
    found = {name: entry.shedding for name, entry in shop().services.items()}
    assert found == {
        "orders": Shedding(limit=500, pushback=0.2),
        "inventory": Shedding(limit=40, adaptive=False, pushback=0.2),
        "reports": Shedding(enabled=False, limit=500, pushback=0.2),
    }


def test_where_nothing_is_said_it_is_on() -> None:
    entry = shop('[system]\nname = "shop"\n[services.orders]\napp = "shop.orders:app"\n').services["orders"]
    assert entry.shedding == Shedding()
    assert entry.shedding.enabled


def test_the_environment_and_profiles_change_it() -> None:
    text = SHOP + "\n[profiles.big.services.inventory.shedding]\nlimit = 4000\n"
    entry = parse(text, profile="big").services["inventory"]
    assert entry.shedding.limit == 4000
    entry = shop(POLYWIRE__SERVICES__ORDERS__SHEDDING__LIMIT="70").services["orders"]
    assert (entry.shedding.limit, entry.shedding.pushback) == (70, 0.2)


@pytest.mark.parametrize(
    ("said", "instead", "problem"),
    [
        ("limit = 500", "limit = 0", "polywire.toml:5: shedding.limit is 0. It has to be at least 1."),
        (
            "limit = 500",
            "limit = 5000",
            "polywire.toml:5: shedding.limit is 5000: an adaptive limit starts between minimum=4 and maximum=2000.",
        ),
        (
            "limit = 500",
            "limits = 500",
            "polywire.toml:5: shedding.limits is not a key of [shedding]. Did you mean 'limit'? [shedding] has: "
            "adaptive, background, enabled, limit, maximum, minimum, normal, pushback, slow_floor, streams, tolerance, "
            "window, window_calls.",
        ),
        (
            "limit = 40",
            'limit = "many"',
            "polywire.toml:15: services.inventory.shedding.limit is the text 'many'. It has to be a whole number.",
        ),
        (
            "adaptive = false",
            "background = 2",
            "polywire.toml:16: services.inventory.shedding.background is 2.0: a share is more than 0 and at most 1, "
            "0.5 for one half.",
        ),
        (
            "adaptive = false",
            "background = 0.95",
            "polywire.toml:16: services.inventory.shedding.background is 0.95: it is turned away first, so its share "
            "is not over normal=0.9.",
        ),
        (
            # What does not go with a value of all services is told where the service says it.
            "limit = 40\nadaptive = false",
            "minimum = 600",
            "polywire.toml:14: services.inventory.shedding.limit is 500: an adaptive limit starts between minimum=600 "
            "and maximum=2000.",
        ),
        (
            "{ enabled = false }",
            "false",
            "polywire.toml:20: services.reports.shedding is false. It has to be a table.",
        ),
    ],
)
def test_what_cannot_be_is_refused_where_it_stands(said: str, instead: str, problem: str) -> None:
    assert said in SHOP
    with pytest.raises(SystemFileError) as told:
        shop(SHOP.replace(said, instead, 1))
    assert str(told.value) == problem


def test_a_variable_at_fault_is_named() -> None:
    with pytest.raises(SystemFileError) as told:
        shop(POLYWIRE__SHEDDING__TOLERANCE="0.5")
    assert str(told.value) == (
        "POLYWIRE__SHEDDING__TOLERANCE: shedding.tolerance is 0.5: a factor is a number, 1 or more."
    )


class Word(Message, package="shed.v1"):
    text: str = ""


class Talk(Contract, package="shed.v1"):
    @rpc
    async def say(self, word: Word) -> Word:
        raise NotImplementedError


class TalkService(Talk):
    async def say(self, word: Word) -> Word:
        return word


async def test_a_service_of_a_system_is_run_with_what_its_file_says(tmp_path: Path) -> None:
    app = App("talk")
    app.service(TalkService)
    text = '[system]\nname = "s"\n[services.talk]\napp = "m:app"\nshedding = { limit = 17, streams = 5 }\n'
    system = parse(text, file=str(tmp_path / "polywire.toml"))
    made = plan(system, given={"talk": app})
    async with processing(made, ["talk"], access_log=lambda _: None) as process:
        limiter = process.servers["talk"].services.limiter
        assert limiter is not None
        assert (limiter.limit, limiter.policy.streams) == (17, 5)


async def test_a_server_takes_it_as_an_argument() -> None:
    assert Server([TalkService()]).services.limiter is not None
    assert Server([TalkService()], shedding=Shedding(enabled=False)).services.limiter is None
    served = Server([TalkService()], shedding=Shedding(limit=9)).services.limiter
    assert served is not None
    assert served.limit == 9


async def test_a_testing_system_turns_nobody_away_unless_it_is_told_to() -> None:
    from polywire import testing

    async def limits(**options: Shedding) -> AsyncIterator[bool]:
        app = App("talk")
        app.service(TalkService)
        async with testing.system(app, **options) as system:  # type: ignore[arg-type]  # one option by name
            client = system.client(Talk)
            assert (await client.say(Word(text="hi"))).text == "hi"
            wirings = system._callers.values()
            yield all(here.limiter is None for one in wirings for here in one.here.values())  # type: ignore[attr-defined]  # dispatchers of this process

    assert [off async for off in limits()] == [True]
    assert [off async for off in limits(shedding=Shedding(limit=7))] == [False]
