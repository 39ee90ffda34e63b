"""Faults of a system: what its file may say, how they are switched while it runs, and how long they hold."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from up_support import HERE, TINY, polywire, said, tiny

from polywire import App, Contract, Message, calling, rpc, testing
from polywire.channel import CallDefaults, Endpoints
from polywire.connecting import connect
from polywire.contract import Retry
from polywire.discovery import StaticResolver
from polywire.errors import CallError, DeadlineExceeded, SetupError, SystemFileError, Unavailable
from polywire.policy.faults import MAX_FAULTS, Fault, WrongFault
from polywire.system.faults import FaultFile, Faults, FaultWatch, _trusted
from polywire.system.file import load, parse
from polywire.system.plan import plan
from polywire.testing import ManualClock
from polywire.wire.faulty import FaultyWire

LONG = 60.0

FAULTY = (
    TINY
    + """
[[faults]]
caller = "orders"
target = "inventory"
method = "tiny.v1.Inventory/check_stock"
error = "resource_exhausted"

[[faults]]
target = "inventory"
delay = 0.5
share = 0.1
"""
)


# ---- the system file ----


def test_the_system_file_says_which_faults_hold_from_the_start() -> None:
    system = parse(FAULTY)
    assert system.faults == (
        Fault(caller="orders", target="inventory", method="tiny.v1.Inventory/check_stock", error="resource_exhausted"),
        Fault(target="inventory", delay=0.5, share=0.1),
    )
    assert parse(TINY).faults == ()


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        (
            'caller = "orders"',
            'caller = "order"',
            "polywire.toml:11: faults.0.caller is 'order', which is no service. Did you mean 'orders'? "
            "There are: orders, inventory.",
        ),
        (
            'target = "inventory"\ndelay',
            'target = "stock"\ndelay',
            "polywire.toml:17: faults.1.target is 'stock', which is no service. There are: orders, inventory.",
        ),
        (
            'target = "inventory"\ndelay',
            "delay",
            "polywire.toml:16: faults.1.target is missing. Name the service that is called.",
        ),
        ("delay = 0.5", "delay = 0", "polywire.toml:18: faults.1.delay is 0. It has to be more than 0."),
        (
            "delay = 0.5\n",
            "",
            "polywire.toml:16: faults.1.kind is missing. Give delay, error, drop, partition or bandwidth.",
        ),
        (
            "share = 0.1",
            "share = 10",
            "polywire.toml:19: faults.1.share is 10. It has to be more than 0 and at most 1.",
        ),
        (
            "delay = 0.5",
            'delay = "long"',
            "polywire.toml:18: faults.1.delay is the text 'long'. It has to be a number.",
        ),
        (
            "delay = 0.5",
            "latency = 0.5",
            "polywire.toml:18: faults.1.latency is not a key of a fault. A fault has: bandwidth, caller, delay, drop, "
            "endpoint, error, method, partition, share, target.",
        ),
        (
            "delay = 0.5",
            'delay = 0.5\nendpoint = "nowhere"',
            "polywire.toml:19: faults.1.endpoint is no place: 'nowhere' is not an address: the port is missing. Write "
            "host:port, [::1]:port, unix:/path or dns:///host:port, with grpc://, grpcs://, http:// or https:// before "
            "it if need be.",
        ),
    ],
)
def test_a_fault_that_cannot_be_is_refused_where_it_stands(right: str, wrong: str, problem: str) -> None:
    assert FAULTY.count(right) == 1
    with pytest.raises(SystemFileError) as told:
        parse(FAULTY.replace(right, wrong))
    assert str(told.value) == problem


def test_faults_are_an_array_of_tables() -> None:
    with pytest.raises(SystemFileError) as told:
        parse(TINY.replace("[system]", 'faults = "all"\n[system]'))
    assert str(told.value) == (
        "polywire.toml:1: faults is the text 'all'. It has to be an array of tables: write each as [[faults]]."
    )


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        (
            "check_stock",
            "check_stocks",
            "faults.0.method is 'tiny.v1.Inventory/check_stocks', but tiny.v1.Inventory has no method 'check_stocks'. "
            "Did you mean 'check_stock'? It has: check_stock, crash, watch, add_up, echo.",
        ),
        (
            "tiny.v1.Inventory/check_stock",
            "tiny.v1.Orders/place",
            "faults.0.method is 'tiny.v1.Orders/place', but service 'inventory' does not implement 'tiny.v1.Orders'. "
            "Did you mean 'tiny.v1.Inventory'? It implements: tiny.v1.Inventory. Write it as contract/method.",
        ),
        (
            'caller = "orders"\ntarget = "inventory"\nmethod = "tiny.v1.Inventory/check_stock"',
            'caller = "inventory"\ntarget = "orders"',
            "faults.0.target is 'orders', which service 'inventory' does not call. It calls: none.",
        ),
    ],
)
def test_a_fault_on_calls_that_nobody_makes_is_refused(right: str, wrong: str, problem: str, tmp_path: Path) -> None:
    tiny(tmp_path, FAULTY.replace(right, wrong))
    with pytest.raises(SystemFileError) as told:
        plan(load(tmp_path / "polywire.toml"))
    assert str(told.value).partition(": ")[2] == problem
    assert str(told.value).startswith(f"{tmp_path}/polywire.toml:")


# ---- the file that is watched ----


def wires(faults: Faults, target: str = "inventory") -> Endpoints:
    endpoints = Endpoints(StaticResolver([]), lambda address: pytest.fail("nobody calls"))
    faults.mind(target, endpoints)
    return endpoints


def watched(directory: Path, clock: ManualClock) -> tuple[FaultWatch, Faults, list[str]]:
    faults = Faults("orders")
    told: list[str] = []
    return FaultWatch(directory, [faults], clock=clock, said=told.append), faults, told


def holding(faults: Faults) -> tuple[Fault, ...]:
    return faults._switched


async def test_what_is_switched_on_holds_after_the_next_look(tmp_path: Path) -> None:
    clock = ManualClock(epoch=1_000.0)
    file = FaultFile(tmp_path)
    watch, faults, told = watched(tmp_path, clock)
    with watch:
        one = file.add(Fault(caller="orders", target="inventory", delay=0.5))
        two = file.add(Fault(target="inventory", partition=True))
        assert [one.id, two.id] == ["1", "2"]
        assert holding(faults) == ()
        await clock.advance(0.3)
        assert holding(faults) == (one.fault, two.fault)
        assert file.clear(["1"]) == [one]
        await clock.advance(0.3)
        assert holding(faults) == (two.fault,)
        assert file.clear() == [two]
        await clock.advance(0.3)
        assert holding(faults) == ()
        assert told == []


async def test_a_process_that_starts_later_does_not_take_up_what_was_switched_on_before(tmp_path: Path) -> None:
    file = FaultFile(tmp_path)
    old = file.add(Fault(target="inventory", delay=0.5))
    clock = ManualClock(epoch=old.at + 10.0)
    watch, faults, _ = watched(tmp_path, clock)
    with watch:
        assert holding(faults) == ()
        text = json.loads(file.path.read_text())
        text.append({"id": "7", "at": clock.time() + 1.0, "target": "inventory", "error": "internal"})
        file.path.write_text(json.dumps(text))
        await clock.advance(0.3)
        assert holding(faults) == (Fault(target="inventory", error="internal"),)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "it is not as `polywire fault` writes it: JSONDecodeError."),
        ("{}", "it is not a list of at most 100 faults."),
        ('[{"id": "1", "at": 2e9, "target": 7, "delay": 1}]', "it is not as `polywire fault` writes it: TypeError."),
        ('[{"id": "1", "at": 2e9, "run": "rm"}]', "it is not as `polywire fault` writes it: KeyError."),
        ('[{"id": "x", "at": 2e9, "target": "i", "delay": 1}]', "it is not as `polywire fault` writes it: ValueError."),
        ("[" * 100_000, "it is not as `polywire fault` writes it: RecursionError."),
        ("[" + " " * 300_000 + "]", "it has more than 262144 bytes."),
    ],
)
async def test_a_file_that_is_not_as_it_should_be_changes_nothing(content: str, problem: str, tmp_path: Path) -> None:
    clock = ManualClock()
    file = FaultFile(tmp_path)
    watch, faults, told = watched(tmp_path, clock)
    with watch:
        kept = file.add(Fault(target="inventory", delay=0.5)).fault
        await clock.advance(0.3)
        file.path.write_text(content)
        await clock.advance(1.0)
        assert holding(faults) == (kept,)
        assert told == [f"The faults in {file.path} were not switched on: {problem}"]


async def test_a_fault_in_the_file_that_cannot_be_changes_nothing(tmp_path: Path) -> None:
    clock = ManualClock()
    file = FaultFile(tmp_path)
    watch, faults, told = watched(tmp_path, clock)
    with watch:
        file.path.parent.mkdir()
        file.path.write_text('[{"id": "1", "at": 2e9, "target": "inventory"}]')
        await clock.advance(1.0)
        assert holding(faults) == ()
        assert told == [
            "The fault was not switched on: its kind is missing. Give delay, error, drop, partition or bandwidth."
        ]


def test_the_file_of_another_user_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FaultFile(tmp_path)
    file.add(Fault(target="inventory", delay=0.5))
    owner = file.path.stat().st_uid
    stranger = owner + 12345
    for us, is_read in ((owner, True), (stranger, owner == 0)):
        monkeypatch.setattr(os, "geteuid", lambda us=us: us)
        assert _trusted(owner) is is_read
        assert _trusted(0) is True
        assert _trusted(us + 1) is False
    if owner == 0:
        shutil.chown(file.path, user=stranger)  # root's word is everybody's
    monkeypatch.setattr(os, "geteuid", lambda: stranger + 1)
    with pytest.raises(SetupError) as told:
        file.read()
    assert str(told.value) == f"The faults in {file.path} were not switched on: the file is another user's."


def test_there_are_not_too_many(tmp_path: Path) -> None:
    file = FaultFile(tmp_path)
    for _ in range(MAX_FAULTS):
        file.add(Fault(target="inventory", delay=0.5))
    with pytest.raises(SetupError) as told:
        file.add(Fault(target="inventory", delay=0.5))
    assert str(told.value) == (
        "The fault was not switched on: there are 100 already. Clear some, `polywire fault clear`."
    )
    with pytest.raises(SetupError, match=r"^There is no fault '101'\. There are: 1, 2, 3, "):
        file.clear(["101"])
    assert file.path.stat().st_mode & 0o077 == 0
    file.forget()
    assert file.read() == []


def test_those_who_switch_at_once_undo_nothing_of_each_other(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def switch(_: int) -> None:
        together.wait()
        for _ in range(5):
            FaultFile(tmp_path).add(Fault(target="inventory", error="unavailable"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(switch, range(8)))
    assert [one.id for one in FaultFile(tmp_path).read()] == [str(number) for number in range(1, 41)]


def test_faults_of_the_file_stay_while_others_are_switched() -> None:
    fixed = Fault(target="inventory", delay=0.5)
    faults = Faults("orders", [fixed])
    endpoints = wires(faults)
    assert endpoints._change.__self__.faults == (fixed,)  # type: ignore[attr-defined]  # the edge behind it
    faults.switch([Fault(target="inventory", partition=True)])
    faults.switch([])
    assert endpoints._change.__self__.faults == (fixed,)  # type: ignore[attr-defined]  # the edge behind it


# ---- across processes ----


def config(directory: Path) -> Any:
    import importlib
    import sys

    sys.path.insert(0, str(HERE))
    try:
        return importlib.import_module("tiny.contracts")
    finally:
        sys.path.remove(str(HERE))


async def outcome(address: str, contracts: Any, timeout: float = LONG) -> str:
    """What a customer of orders gets."""
    once = CallDefaults(retry=Retry(attempts=1))
    async with connect(contracts.Orders, f"grpc://{address}", defaults=once) as orders:
        try:
            with calling(timeout=timeout):
                stock = await orders.place(contracts.Query(product_id="oak"))
        except CallError as error:
            return error.code
        return f"{stock.quantity} from {stock.pid}"


async def until_outcome(address: str, contracts: Any, *expected: str) -> str:
    async with asyncio.timeout(LONG):
        while True:
            found = await outcome(address, contracts)
            if any(one in found for one in expected):
                return found
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--in-process",)], ids=["processes", "in process"])
async def test_faults_are_switched_while_a_system_runs(how: tuple[str, ...], tmp_path: Path) -> None:
    directory = tiny(tmp_path)
    contracts = config(directory)
    async with polywire("up", *how, directory=directory) as running:
        address = await running.address("orders")
        assert "7 from" in await outcome(address, contracts)
        assert await said("fault", "list", directory=directory) == (0, "No fault is switched on.")
        added = await said("fault", "add", "orders", "inventory", "--error", "not_found", directory=directory)
        assert added == (0, "1  orders -> inventory: error not_found")
        await until_outcome(address, contracts, "not_found")
        added = await said(
            "fault", "add", "*", "inventory", "tiny.v1.Inventory/watch", "--delay", "1", "--share", "0.5",
            directory=directory,
        )  # fmt: skip
        assert added[0] == 0
        status, listed = await said("fault", "list", directory=directory)
        assert (status, listed.splitlines()) == (
            0,
            [
                "ID  CALLS                                   FAULT",
                "1   orders -> inventory                     error not_found",
                "2   * -> inventory tiny.v1.Inventory/watch  delay 1 s, to 50 % of the calls",
            ],
        )
        assert await said("fault", "clear", "1", directory=directory) == (
            0, "1  orders -> inventory: error not_found is off",
        )  # fmt: skip
        await until_outcome(address, contracts, "7 from")
        running.interrupt()
        assert await running.ends() == 0
    assert not FaultFile(directory).path.exists()


@pytest.mark.slow
async def test_a_process_that_is_started_again_has_only_the_faults_of_the_file(tmp_path: Path) -> None:
    fixed = '\n[[faults]]\ntarget = "inventory"\nerror = "aborted"\nshare = 1e-9\n'
    directory = tiny(tmp_path, TINY + fixed)
    contracts = config(directory)
    async with polywire("up", "--log", "text", directory=directory) as running:
        address = await running.address("orders")
        await said("fault", "add", "orders", "inventory", "--partition", directory=directory)
        await until_outcome(address, contracts, "unavailable")
        status, listed = await said("fault", "list", directory=directory)
        assert status == 0
        assert [line.split()[0] for line in listed.splitlines()] == ["ID", "-", "1"]
        pid = _pid_of(address)
        os.kill(pid, signal.SIGKILL)
        await running.until("orders runs again")
        await until_outcome(address, contracts, "7 from")
        running.interrupt()
        assert await running.ends() == 0


@pytest.mark.slow
async def test_a_fault_of_the_file_holds_from_the_start_and_again_after_a_restart(tmp_path: Path) -> None:
    directory = tiny(tmp_path, TINY + '\n[[faults]]\ncaller = "orders"\ntarget = "inventory"\nerror = "aborted"\n')
    contracts = config(directory)
    async with polywire("up", directory=directory) as running:
        address = await running.address("orders")
        assert await outcome(address, contracts) == "aborted"
        os.kill(_pid_of(address), signal.SIGKILL)
        await running.until("orders runs again")
        await until_outcome(address, contracts, "aborted")
        running.interrupt()
        assert await running.ends() == 0


def _pid_of(address: str) -> int:
    """Who listens at *address*."""
    port = f"{int(address.rpartition(':')[2]):04X}"
    inodes = {
        fields[9]
        for fields in (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[1].endswith(f":{port}") and fields[3] == "0A"
    }
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for descriptor in _descriptors(entry):
                if any(descriptor == f"socket:[{inode}]" for inode in inodes):
                    return int(entry.name)
    raise AssertionError(f"nobody listens at {address}")


def _descriptors(process: Path) -> list[str]:
    found = []
    try:
        for descriptor in (process / "fd").iterdir():
            found.append(os.readlink(descriptor))
    except OSError:
        return found
    return found


@pytest.mark.slow
async def test_what_cannot_be_switched_on_is_said_and_nothing_is(tmp_path: Path) -> None:
    directory = tiny(tmp_path)
    add = ("fault", "add")
    for arguments, problem in [
        (("order", "inventory", "--partition"), "its caller is 'order', which is no service. Did you mean 'orders'? "
         "There are: orders, inventory."),
        (("inventory", "orders", "--partition"), "its target is 'orders', which service 'inventory' does not call. "
         "It calls: none."),
        (("*", "orders", "--partition"), "no service calls 'orders'."),
        (("orders", "inventory"), "its kind is missing. Give delay, error, drop, partition or bandwidth."),
        (("orders", "inventory", "--delay", "1"), "no `polywire up` runs polywire.toml. Start it, or write the fault "
         "into the file: `[[faults]]`."),
    ]:  # fmt: skip
        status, told = await said(*add, *arguments, directory=directory)
        assert (status, told) == (1, f"Error: The fault was not switched on: {problem}")
    assert await said("fault", "clear", directory=directory) == (0, "No fault was switched on.")
    assert not FaultFile(directory).path.exists()


# ---- from tests ----


class Word(Message, package="faulty.v1"):
    text: str = ""


class Back(Contract, package="faulty.v1"):
    @rpc(idempotent=True)
    async def say(self, word: Word) -> Word:
        raise NotImplementedError


class Front(Contract, package="faulty.v1"):
    @rpc
    async def ask(self, word: Word) -> Word:
        raise NotImplementedError


back, front = App("back"), App("front")


@back.service
class BackService(Back):
    async def say(self, word: Word) -> Word:
        return word


@front.service
class FrontService(Front):
    def __init__(self, back: Back) -> None:
        self.back = back

    async def ask(self, word: Word) -> Word:
        return await self.back.say(word)


async def test_a_test_switches_faults_of_its_system() -> None:
    once = CallDefaults(retry=Retry(attempts=1))
    async with testing.system(front, back, defaults=once) as system:
        client = system.client(Front)
        assert (await client.ask(Word(text="a"))).text == "a"
        with system.fault("front", Back, partition=True) as fault:
            assert fault == Fault(caller="front", target="back", partition=True)
            with pytest.raises(Unavailable):
                await client.ask(Word())
            assert (await system.client(Back).say(Word(text="from elsewhere"))).text == "from elsewhere"
        assert (await client.ask(Word(text="b"))).text == "b"
        with system.fault("*", "back", error="internal"), pytest.raises(CallError):
            await system.client(Back, caller="another").say(Word())
        assert (await system.client(Back, caller="another").say(Word(text="c"))).text == "c"


@pytest.mark.parametrize("asked_for", ["before", "inside"])
async def test_a_client_that_calls_by_the_name_of_an_app_hides_it_from_no_fault(asked_for: str) -> None:
    once = CallDefaults(retry=Retry(attempts=1))
    async with testing.system(front, back, defaults=once) as system:
        if asked_for == "before":
            system.client(Back, caller="front")
        with system.fault("front", Back, partition=True):
            for call in (system.client(Front).ask, system.client(Back, caller="front").say):
                with pytest.raises(Unavailable):
                    await call(Word())
        for call in (system.client(Front).ask, system.client(Back, caller="front").say):
            assert (await call(Word(text="again"))).text == "again"


async def test_a_delay_of_a_testing_system_passes_on_its_own_clock() -> None:
    clock = ManualClock()
    async with testing.system(front, back, clock=clock) as system:
        client = system.client(Front)
        with system.fault("front", "back", delay=3.0):
            asked = asyncio.create_task(client.ask(Word(text="a")))
            await clock.advance(2.9)
            assert not asked.done()
            await clock.advance(0.2)
            assert (await asked).text == "a"
            with calling(timeout=2.0):
                asked = asyncio.create_task(client.ask(Word(text="b")))
            await clock.advance(2.5)
            with pytest.raises(DeadlineExceeded):
                await asked


async def test_an_edge_that_a_testing_system_does_not_have_is_refused() -> None:
    async with testing.system(front, back) as system:
        with pytest.raises(WrongFault) as told, system.fault("front", "bakc", delay=1.0):
            pass
        assert str(told.value) == (
            "The fault was not switched on: its target is 'bakc', which is no service. Did you mean 'back'? "
            "There are: back, front, test."
        )
        with pytest.raises(WrongFault) as told, system.fault("front", "back", "faulty.v1.Front/ask", delay=1.0):
            pass
        assert str(told.value) == (
            "The fault was not switched on: its method is 'faulty.v1.Front/ask', but service 'back' does not implement "
            "'faulty.v1.Front'. Did you mean 'faulty.v1.Back'? It implements: faulty.v1.Back. "
            "Write it as contract/method."
        )
        assert not any(isinstance(one, FaultyWire) for one in _wires_of(system))


def _wires_of(system: testing.System) -> list[Any]:
    wirings = system._wirings.values()
    return [wire for one in wirings for channel in one._channels.values() for wire in channel.endpoints.current]
