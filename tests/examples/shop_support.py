"""Shops for tests: built by hand on databases in memory, or run by `polywire up` and asked with curl."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shop.contracts import Item, Order, OrderState, PlaceOrder
from shop.database import Database
from shop.gateway import GatewayServiceV1, GatewayServiceV2
from shop.inventory import CatalogService, InventoryService
from shop.orders import Ledger, OrderService, Undo
from shop.payments import PaymentService
from shop.users import UserService

from polywire.testing import ManualClock
from shop import inventory, orders, payments, users

SHOP = Path(__file__).parents[2] / "examples" / "shop"
GOOD_CARD = "4242424242424242"
BAD_CARD = "4000000000000002"
BARGAIN = "SKU-117"
"""There is one of it."""


class HandMade:
    """The whole shop without polywire: objects that call each other."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.databases = {
            "inventory": Database(":memory:", inventory.create_tables, inventory.fill_shelves),
            "payments": Database(":memory:", payments.create_tables),
            "orders": Database(":memory:", orders.create_tables),
            "users": Database(":memory:", users.create_tables, users.invite_customers),
        }
        self.catalog = CatalogService(self.databases["inventory"])
        self.inventory = InventoryService(self.databases["inventory"], self.clock)
        self.payments = PaymentService(self.databases["payments"])
        self.ledger = Ledger(self.databases["orders"], self.clock)
        self.users = UserService(self.databases["users"])
        self.with_services()

    def with_services(
        self, *, inventory: InventoryService | None = None, payments: PaymentService | None = None
    ) -> None:
        """Let orders talk to something else."""
        self.inventory = inventory or self.inventory
        self.payments = payments or self.payments
        self.undo = Undo(self.ledger, self.inventory, self.payments)
        self.orders = OrderService(self.inventory, self.payments, self.ledger, self.undo)
        self.v1 = GatewayServiceV1(self.catalog, self.inventory, self.orders, self.payments, self.users)
        self.v2 = GatewayServiceV2(self.catalog, self.inventory, self.orders, self.users)

    async def problems(self) -> list[str]:
        return (await self.v1.get_books()).problems

    async def state_of(self, order: Order) -> OrderState:
        return self.ledger.get(order.order_id).state


@contextmanager
def hand_made_shop() -> Iterator[HandMade]:
    shop = HandMade()
    try:
        yield shop
    finally:
        for database in shop.databases.values():
            database.close()


def order(
    key: str = "k", *, product_id: str = "SKU-123", quantity: int = 2, card: str = GOOD_CARD, user_id: str = "U-1"
) -> PlaceOrder:
    return PlaceOrder(key=key, user_id=user_id, items=[Item(product_id=product_id, quantity=quantity)], card=card)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What curl got."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> Any:
        """Of a problem document: code, message and field."""
        return self.body["error"]


class RunningShop:
    """The shop as `polywire up` runs it."""

    def __init__(self, up: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.up = up
        self.port = port
        self.address = f"http://127.0.0.1:{port}"
        self.log_file = log

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def curl(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Header names are written with underscores."""
        command = ["curl", "--silent", "--show-error", "--include", "--max-time", "20", "--request", method]
        if method == "HEAD":
            command.append("--head")
        if body is not None:
            command += ["--data-binary", body if isinstance(body, str) else json.dumps(body)]
            headers.setdefault("content_type", "application/json")
        for name, value in headers.items():
            command += ["--header", f"{name.replace('_', '-')}: {value}"]
        done = subprocess.run([*command, self.address + path], capture_output=True, check=True)
        head, _, text = done.stdout.decode().partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        fields = (line.partition(":") for line in lines)
        return Answer(
            status=int(first.split()[1]), headers={name.lower(): value.strip() for name, _, value in fields}, text=text
        )

    def pid_of(self, service: str) -> int:
        """The process of one service: the one that has its database open."""
        for child in Path(f"/proc/{self.up.pid}/task/{self.up.pid}/children").read_text().split():
            opened = (os.readlink(file) for file in Path(f"/proc/{child}/fd").iterdir())
            if any(file.endswith(f"/{service}.db") for file in opened):
                return int(child)
        raise LookupError(f"No process of the service {service!r} runs.\n{self.log}")

    def stop(self) -> int:
        """As Ctrl-C. Returns the exit status."""
        self.up.send_signal(signal.SIGINT)
        return self.up.wait(30)


@contextmanager
def running_shop(data: Path, *arguments: str, **environ: str) -> Iterator[RunningShop]:
    """`polywire up` with these *arguments*, its gateway on a free port and its databases in *data*."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    variables = {
        **os.environ,
        "SHOP_DATA": str(data),
        "POLYWIRE__SERVICES__GATEWAY__LISTEN": f"127.0.0.1:{port}",
        **environ,
    }
    command = [str(Path(sys.executable).with_name("polywire")), "up", str(SHOP / "polywire.toml")]
    log = data / "shop.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, *arguments], env=variables, stdout=output, stderr=output, start_new_session=True
        ) as up,
    ):
        shop = RunningShop(up, port, log)
        try:
            _wait_until_it_answers(shop)
            yield shop
        finally:
            if up.poll() is None:
                try:
                    shop.stop()
                except subprocess.TimeoutExpired:
                    up.kill()
                    raise


def _wait_until_it_answers(shop: RunningShop) -> None:
    """As long as anything listens or may still do so; `up` says by ending that nothing will."""
    for _ in range(600):
        if shop.up.poll() is not None:
            raise RuntimeError(f"The shop ended with status {shop.up.returncode} before it was ready:\n{shop.log}")
        try:
            if shop.curl("GET", "/readyz").status == 200:
                return
        except subprocess.CalledProcessError:
            time.sleep(0.05)
    raise RuntimeError(f"The shop was not ready in time:\n{shop.log}")
