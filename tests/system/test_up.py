"""`polywire up` with real processes: ready, called, crashed and restarted, drained, and refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest
from tiny.contracts import Inventory, Orders, Pause, Query
from up_support import SOON, TINY, Running, polywire, said, tiny

from polywire.channel import CallDefaults
from polywire.connecting import connect
from polywire.errors import Unavailable
from polywire.policy.retry import Retry


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def pid_of(running: Running) -> int:
    """The process of inventory, as orders hears of it."""
    async with connect(Orders, f"grpc://{await running.address('orders')}") as orders:
        return (await orders.place(Query(product_id="a"))).pid


async def test_a_system_starts_says_where_it_is_and_its_services_call_each_other(tmp_path: Path) -> None:
    async with polywire("up", directory=tiny(tmp_path)) as running:
        await running.until(r"^tiny is ready after \d+\.\d\d s\. Ctrl-C stops it\.$")
        assert (await running.until("SERVICE"))[0] == "SERVICE"
        orders = await running.address("orders")
        inventory = await running.address("inventory")
        async with connect(Orders, f"grpc://{orders}") as client:
            stock = await client.place(Query(product_id="a"))
        assert (stock.product_id, stock.quantity) == ("a", 7)
        assert stock.pid not in (0, running.process.pid)
        await running.until(
            r"^inventory \| \S+Z INFO    tiny\.v1\.Inventory/CheckStock OK grpc \d+\.\d\d ms "
            r"peer=127\.0\.0\.1:\d+ request=\S+$"
        )
        assert json.loads((tmp_path / ".polywire" / "up.json").read_text()) == {
            "orders": {"address": orders, "pid": running.process.pid},
            "inventory": {"address": inventory, "pid": running.process.pid},
        }
        running.interrupt()
        assert await running.ends() == 0
        assert gone(stock.pid)
        assert not (tmp_path / ".polywire" / "up.json").exists()


@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
async def test_interrupted_it_finishes_the_call_under_way_and_the_calls_that_this_one_makes(
    tmp_path: Path, fresh: tuple[str, ...]
) -> None:
    async with polywire("up", *fresh, directory=tiny(tmp_path)) as running:
        async with connect(Orders, f"grpc://{await running.address('orders')}") as orders:
            call = asyncio.ensure_future(orders.slowly(Pause(seconds=0.5)))
            await running.until("has begun")
            running.interrupt()
            await running.until("stopping: calls under way are finished first")
            async with asyncio.timeout(SOON):
                assert (await call).product_id == "slow"
        assert await running.ends() == 0
    stopped = [line.split(" ")[0] for line in running.said if "has stopped" in line]
    assert stopped == ["orders", "inventory"]


async def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    async with (
        polywire("up", directory=tiny(tmp_path)) as running,
        connect(Orders, f"grpc://{await running.address('orders')}") as orders,
    ):
        call = asyncio.ensure_future(orders.slowly(Pause(seconds=60)))
        await running.until("has begun")
        running.interrupt()
        await running.until("stopping")
        running.interrupt()
        assert await running.ends() == 128 + signal.SIGINT
        with pytest.raises(Unavailable):
            await call


async def test_a_service_that_dies_is_started_again_at_its_address_and_the_reason_is_said(tmp_path: Path) -> None:
    async with polywire("up", directory=tiny(tmp_path)) as running:
        address = await running.address("inventory")
        async with connect(Inventory, f"grpc://{address}") as inventory:
            first = await inventory.check_stock(Query(product_id="a"))
            with pytest.raises(Unavailable):
                await inventory.crash()
            await running.until(
                r"polywire  \| \S+Z ERROR   inventory: its process ended with exit status 3\. "
                r"Its last line was: going down$"
            )
            await running.until(r"inventory is started again in 0\.25 s\.$")
            await running.until(rf"inventory runs again, at {address}\.$")
            again = await inventory.check_stock(Query(product_id="a"))
        assert gone(first.pid)
        assert again.pid != first.pid
        running.interrupt()
        assert await running.ends() == 0
        assert gone(again.pid)


async def test_a_service_that_is_killed_is_named_with_the_signal(tmp_path: Path) -> None:
    async with polywire("up", directory=tiny(tmp_path)) as running:
        os.kill(await pid_of(running), signal.SIGKILL)
        await running.until(r"inventory: its process was killed by SIGKILL\.")
        await running.until("inventory runs again")


@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
async def test_services_go_when_the_process_that_started_them_is_killed(tmp_path: Path, fresh: tuple[str, ...]) -> None:
    async with polywire("up", *fresh, directory=tiny(tmp_path)) as running:
        await pid_of(running)
        running.process.kill()
        # The services hold the pipe that we read, so its end says that they are gone.
        await running.ends()


async def test_only_the_services_asked_for_are_started_and_find_those_of_another_up(tmp_path: Path) -> None:
    directory = tiny(tmp_path)
    async with polywire("up", "--only", "inventory", directory=directory) as first:
        await first.until("tiny is ready")
        async with polywire("up", "--only", "orders", directory=directory) as second:
            async with connect(Orders, f"grpc://{await second.address('orders')}") as orders:
                assert (await orders.place(Query(product_id="a"))).quantity == 7
            assert not any(line.startswith("inventory") for line in second.said)
            second.interrupt()
            assert await second.ends() == 0
        assert list(json.loads((directory / ".polywire" / "up.json").read_text())) == ["inventory"]


async def test_a_service_is_ready_while_the_one_it_calls_is_down(tmp_path: Path) -> None:
    async with (
        polywire("up", "--only", "orders", directory=tiny(tmp_path)) as running,
        connect(Orders, f"grpc://{await running.address('orders')}") as orders,
    ):
        with pytest.raises(Unavailable):
            await orders.place(Query(product_id="a"))


async def test_in_one_process_calls_are_local_and_logs_look_the_same(tmp_path: Path) -> None:
    async with polywire("up", "--in-process", directory=tiny(tmp_path)) as running:
        assert await pid_of(running) == running.process.pid
        await running.until(r"^inventory \| \S+Z INFO    tiny\.v1\.Inventory/CheckStock OK local ")
        await running.until(r"^orders    \| \S+Z INFO    tiny\.v1\.Orders/Place OK grpc ")
        running.interrupt()
        assert await running.ends() == 0


async def test_logs_can_be_json_with_a_line_for_everything(tmp_path: Path) -> None:
    async with polywire("up", "--log", "json", directory=tiny(tmp_path)) as running:
        line = json.loads((await running.until("tiny is ready"))[0] and running.said[-1])
        assert line["service.name"] == "polywire"
        address = line["message"].partition("orders at ")[2].partition(",")[0]
        async with connect(Orders, f"grpc://{address}") as orders:
            await orders.slowly(Pause(seconds=0))
        await running.until("Orders/Slowly")
        running.interrupt()
        assert await running.ends() == 0
    lines = [json.loads(text) for text in running.said]
    assert [line["service.name"] for line in lines if line.get("message") == "has begun"] == ["orders"]
    call = next(line for line in lines if line.get("rpc.method") == "tiny.v1.Orders/Slowly")
    assert {name: call[name] for name in ("severity", "service.name", "rpc.status_code", "polywire.wire")} == {
        "severity": "INFO", "service.name": "orders", "rpc.status_code": "OK", "polywire.wire": "grpc",
    }  # fmt: skip


async def test_a_command_can_be_run_once_all_is_ready(tmp_path: Path) -> None:
    status, text = await said("up", "--once-ready", "echo it is ready; exit 5", directory=tiny(tmp_path))

    assert status == 5
    assert "it is ready" in text


def ending(text: str) -> str:
    """What a command said last: its error."""
    return text[text.index("Error: ") :]


async def test_a_port_in_use_is_named_and_the_others_are_stopped(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        text = TINY.replace('"tiny.orders:app"\n', f'"tiny.orders:app"\nlisten = "{address}"\n')

        status, output = await said("up", directory=tiny(tmp_path, text))

    assert status == 1
    assert ending(output) == (
        f"Error: Service 'orders' did not start: cannot listen on {address}: the port is in use by another process. "
        "Stop it, or set `listen` of the service to another address."
    )


FAILING = """

@app.resource
async def database() -> str:
    raise OSError("unable to open database file")
"""


@pytest.mark.parametrize("options", [(), ("--fresh",)])
async def test_a_service_that_fails_to_start_ends_the_whole_with_its_reason(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    directory = tiny(tmp_path)
    with (directory / "tiny" / "inventory.py").open("a") as code:
        code.write(FAILING)

    status, output = await said("up", *options, directory=directory)

    assert status == 1
    assert ending(output) == (
        "Error: Service 'inventory' did not start: app 'inventory' did not start: its resource 'database' raised "
        "OSError: unable to open database file"
    )


async def test_in_one_process_a_service_that_fails_to_start_ends_the_whole_too(tmp_path: Path) -> None:
    directory = tiny(tmp_path)
    with (directory / "tiny" / "inventory.py").open("a") as code:
        code.write(FAILING)

    status, output = await said("up", "--in-process", directory=directory)

    assert (status, output) == (
        1,
        "Error: app 'inventory' did not start: its resource 'database' raised OSError: unable to open database file",
    )


async def test_a_service_that_is_not_ready_in_time_is_given_up(tmp_path: Path) -> None:
    directory = tiny(tmp_path, TINY + "timeouts = { start = 0.3 }\n")
    with (directory / "tiny" / "inventory.py").open("a") as code:
        code.write(
            "\n\n@app.resource\nasync def database() -> str:\n    import asyncio\n\n    await asyncio.sleep(60)\n"
        )

    status, output = await said("up", directory=directory)

    assert status == 1
    assert ending(output) == (
        "Error: Service 'inventory' did not start: it was not ready within 0.3 s. "
        "Raise services.inventory.timeouts.start if it needs longer."
    )


REFUSALS = {
    "the local wire across processes": (
        TINY + '\n[wires]\nrpc = "local"\n',
        "Error: polywire.toml:11: service 'orders' calls tiny.v1.Inventory, but tiny.v1.Inventory cannot be called "
        "over 'local': service 'inventory' runs in another process. Choose grpc, connect or http, or run the whole "
        "system in one process with `polywire up --in-process`.",
    ),
    "a wire for a contract that nobody has": (
        TINY + '\n[wires]\nrpc = { default = "grpc", "tiny.v1.Inventry" = "http" }\n',
        'Error: polywire.toml:11: wires.rpc."tiny.v1.Inventry" names a contract that no service implements. '
        "Did you mean 'tiny.v1.Inventory'? They implement: tiny.v1.Orders, tiny.v1.Inventory.",
    ),
    "a missing service": (
        TINY.partition("[services.inventory]")[0],
        "Error: polywire.toml:4: services.orders needs a client of tiny.v1.Inventory, but no service implements it. "
        "They implement: tiny.v1.Orders. Add the service, or `address` and `serves` of one that runs elsewhere.",
    ),
    "an app that is not there": (
        TINY.replace("tiny.inventory:app", "tiny.inventory:ap"),
        "Error: polywire.toml:8: services.inventory.app = 'tiny.inventory:ap' cannot be imported: module "
        "'tiny.inventory' has no attribute 'ap'. Did you mean 'app'? It has these apps: app.",
    ),
    "one contract twice": (
        TINY + '\n[services.again]\napp = "tiny.inventory:app"\n',
        "Error: polywire.toml:10: services.again implements tiny.v1.Inventory, which services.inventory implements "
        "already. Calls could not tell where to go; remove one of them.",
    ),
    "a wrong key": (
        TINY + 'lisen = "127.0.0.1:1"\n',
        "Error: polywire.toml:9: services.inventory.lisen is not a key of a service. Did you mean 'listen'? "
        "A service has: address, allow, app, calls, instances, limits, listen, public, serves, shedding, timeouts, "
        "tls, token.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_system_that_cannot_be_is_refused_before_anything_starts(tmp_path: Path, name: str) -> None:
    text, message = REFUSALS[name]

    assert await said("up", directory=tiny(tmp_path, text)) == (1, message)


async def test_only_names_services_that_there_are(tmp_path: Path) -> None:
    assert await said("up", "--only", "orders,inventry", directory=tiny(tmp_path)) == (
        1,
        "Error: polywire.toml has no service 'inventry'. Did you mean 'inventory'? It has: orders, inventory.",
    )


async def test_tokens_prove_who_calls_and_strangers_are_refused(tmp_path: Path) -> None:
    text = TINY.replace('orders:app"\n', 'orders:app"\ntoken = "env:ORDERS_TOKEN"\n')
    async with polywire("up", directory=tiny(tmp_path, text), env={"ORDERS_TOKEN": "s3cret"}) as running:
        address = await running.address("orders")
        async with connect(Orders, f"grpc://{address}", token="s3cret") as orders:
            await orders.place(Query(product_id="a"))
        await running.until(
            r"^inventory \| \S+ INFO    tiny\.v1\.Inventory/CheckStock OK grpc \S+ ms peer=\S+ caller=orders "
        )
        status, output = await said("call", "tiny.v1.Orders/place", "product_id=a", directory=tmp_path)
        assert (status, output.splitlines()[0]) == (
            1,
            "Error: unauthenticated: tiny.v1.Orders/Place was refused: it needs credentials, and none came.",
        )
    assert "s3cret" not in "\n".join(running.said)


async def test_one_service_serves_alone_and_drains_at_sigterm(tmp_path: Path) -> None:
    directory = tiny(tmp_path)
    async with polywire("serve", "tiny.inventory:app", directory=directory) as inventory:
        address = (await inventory.until(r"inventory listens on (\S+)"))[1]
        target = f"tiny.v1.Inventory=grpc://{address}"
        async with polywire("serve", "tiny.orders:app", "--target", target, directory=directory) as running:
            place = (await running.until(r"orders listens on (\S+)"))[1]
            async with connect(Orders, f"http://{place}") as orders:
                call = asyncio.ensure_future(orders.slowly(Pause(seconds=0.3)))
                await running.until("has begun")
                running.process.terminate()
                assert (await call).product_id == "slow"
            assert await running.ends() == 0


async def test_a_service_that_the_file_places_elsewhere_is_called_here_when_it_runs_here(tmp_path: Path) -> None:
    text = TINY + 'address = "inventory.example:8000"\n'
    async with polywire("up", directory=tiny(tmp_path, text)) as running:
        await pid_of(running)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_under_load_an_interrupt_loses_no_call(tmp_path: Path, scheme: str) -> None:
    once = CallDefaults(retry=Retry(attempts=1))
    seen: Counter[str] = Counter()
    async with (
        polywire("up", directory=tiny(tmp_path)) as running,
        connect(Orders, f"{scheme}://{await running.address('orders')}", defaults=once) as orders,
    ):

        async def call_until_turned_away() -> None:
            while True:
                try:
                    await orders.place(Query(product_id="a"))
                    seen["answered"] += 1
                except Unavailable as error:
                    seen[f"reached: {error.reached}"] += 1
                    return

        callers = [asyncio.ensure_future(call_until_turned_away()) for _ in range(32)]
        while seen["answered"] < 500:
            await running.until("Orders/Place OK")
        running.interrupt()
        assert await running.ends() == 0
        async with asyncio.timeout(SOON):
            await asyncio.gather(*callers)
    assert seen["answered"] >= 500
    assert seen["reached: no"] == 32
