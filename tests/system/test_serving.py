"""`serve`, TLS between services, and what an app by itself may call."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import trustme
from tiny.contracts import Inventory, Orders, Pause, Query
from tiny.inventory import app as inventory_app
from tiny.orders import app as orders_app
from up_support import TINY, polywire, said, tiny

from polywire.connecting import connect
from polywire.errors import NotFound, SetupError, Unavailable
from polywire.net.tls import ClientTls
from polywire.system.serving import serve


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_an_app_is_served_and_calls_what_its_targets_say(scheme: str) -> None:
    async with (
        serve(inventory_app) as inventory,
        serve(orders_app, "127.0.0.1:0", targets={Inventory: f"{scheme}://{inventory}"}) as address,
        connect(Orders, f"{scheme}://{address}") as orders,
    ):
        assert (await orders.place(Query(product_id="a"))).quantity == 7
        with pytest.raises(NotFound, match="no product 'none'"):
            await orders.place(Query(product_id="none"))


async def test_an_app_is_served_on_a_socket_file(tmp_path: Path) -> None:
    async with (
        serve(inventory_app, f"unix:{tmp_path}/stock.sock") as address,
        connect(Inventory, address) as inventory,
    ):
        assert address == f"unix:{tmp_path}/stock.sock"
        assert (await inventory.check_stock(Query(product_id="a"))).quantity == 7
    assert not (tmp_path / "stock.sock").exists()


async def test_the_end_of_the_block_waits_for_calls_under_way() -> None:
    async with serve(inventory_app) as inventory:
        async with serve(orders_app, targets={Inventory: inventory}) as address:
            orders = connect(Orders, address)
            client = await orders.__aenter__()
            call = asyncio.ensure_future(client.slowly(Pause(seconds=0.2)))
            await asyncio.sleep(0.05)
        assert (await call).product_id == "slow"
        with pytest.raises(Unavailable):
            await client.place(Query(product_id="a"))
        await orders.__aexit__(None, None, None)


async def test_a_target_that_is_missing_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(SetupError) as caught:
        async with serve(orders_app):
            raise AssertionError("not reached")

    assert str(caught.value) == (
        "app 'orders' calls tiny.v1.Inventory, and does not implement it. Say where it is: "
        '`targets={Inventory: "grpc://host:port"}`, or on the command line '
        "`--target tiny.v1.Inventory=grpc://host:port`."
    )


def certificates(directory: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    for name in ("orders", "inventory"):
        leaf = authority.issue_cert("127.0.0.1", common_name=name)
        leaf.private_key_and_cert_chain_pem.write_to_path(directory / f"{name}.pem")


@pytest.mark.parametrize("options", [(), ("--in-process",)])
async def test_services_prove_themselves_to_each_other_with_certificates(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    text = TINY.replace('orders:app"\n', 'orders:app"\ntls = { certificate = "orders.pem" }\n').replace(
        'inventory:app"\n', 'inventory:app"\ntls = { certificate = "inventory.pem", ca = "ca.pem" }\n'
    )
    certificates(tiny(tmp_path, text))

    async with polywire("up", *options, directory=tmp_path) as running:
        orders = (await running.until(r"^orders +https://(\S+)"))[1]
        inventory = (await running.until(r"^inventory +https://(\S+)"))[1]
        trusting = ClientTls(ca=tmp_path / "ca.pem")
        async with connect(Orders, f"grpcs://{orders}", tls=trusting) as client:
            assert (await client.place(Query(product_id="a"))).quantity == 7
        # Without a certificate of its own nobody gets into inventory.
        async with connect(Inventory, f"grpcs://{inventory}", tls=trusting) as stranger:
            with pytest.raises(Unavailable):
                await stranger.check_stock(Query(product_id="a"))


async def test_a_certificate_that_is_missing_is_named(tmp_path: Path) -> None:
    tiny(tmp_path, TINY + 'tls = { certificate = "nowhere.pem" }\n')

    status, output = await said("up", directory=tmp_path)

    assert status == 1
    assert output.splitlines()[-1] == (
        f"Error: Service 'inventory' did not start: The certificate '{tmp_path}/nowhere.pem' cannot be read: "
        "no such file or directory."
    )
