"""Shops for tests: built by hand on databases in memory, or run by `polywire up` and asked with curl."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos import paths
from demo import free_port
from shop.analytics import AnalyticsService, RecommendationService
from shop.backoffice import Confirmation, Mail, MailCount
from shop.contracts import Item, Order, OrderState, PlaceOrder
from shop.database import Database
from shop.gateway import GatewayServiceV1, GatewayServiceV2
from shop.images import ImageService
from shop.inventory import CatalogService, InventoryService
from shop.orders import Ledger, News, OrderService, Undo
from shop.payments import Line, PaymentService
from shop.users import UserService
from shop.views import PageViews
from shop.warehouse import WarehouseService

from polywire import Bus, Event
from polywire.bus.sending import Sender
from polywire.testing import ManualClock
from shop import analytics, images, inventory, orders, payments, users, warehouse

SHOP = Path(__file__).parents[2] / "examples" / "shop"
POLYWIRE = Path(sys.executable).with_name("polywire")
GOOD_CARD = "4242424242424242"
BAD_CARD = "4000000000000002"
SOON = 60.0
BARGAIN = "SKU-117"
"""There is one of it."""


class Listening(Bus):
    """A bus that leads nowhere, and remembers what it was told; or that cannot be reached."""

    def __init__(self) -> None:
        super().__init__(Sender("test"))
        self.told: list[Event] = []
        self.trouble: Exception | None = None

    async def publish(
        self,
        event: Event,
        *,
        id: str | None = None,
        delay: float | None = None,
        key: str | None = None,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        require_subscriber: bool | None = None,
    ) -> str:
        if self.trouble is not None:
            raise self.trouble
        self.told.append(event)
        return id or "id"

    async def publish_all(
        self,
        events: Sequence[Event],
        *,
        ids: Sequence[str] | None = None,
        delay: float | None = None,
        key: str | None = None,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        require_subscriber: bool | None = None,
    ) -> list[str]:
        return [await self.publish(event) for event in events]


class LetterBox(Mail):
    """Keeps what was to be sent."""

    def __init__(self) -> None:
        self.letters: list[Confirmation] = []
        self.trouble: Exception | None = None

    async def send_confirmation(self, mail: Confirmation) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.letters.append(mail)

    async def count_mails(self) -> MailCount:
        return MailCount(sent=len(self.letters))


class HandMade:
    """The whole shop without polywire: objects that call each other."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.databases = {
            "inventory": Database(":memory:", inventory.create_tables, inventory.fill_shelves),
            "payments": Database(":memory:", payments.create_tables),
            "orders": Database(":memory:", orders.create_tables),
            "users": Database(":memory:", users.create_tables, users.invite_customers),
            "images": Database(":memory:", images.create_tables),
            "warehouse": Database(":memory:", warehouse.create_tables),
            "analytics": Database(":memory:", analytics.create_activity, analytics.create_reports),
            "recommendations": Database(":memory:", analytics.create_baskets),
        }
        self.bus = Listening()
        self.mail = LetterBox()
        self.views = PageViews(self.bus, self.clock)
        self.images = ImageService(self.databases["images"])
        self.warehouse = WarehouseService(self.databases["warehouse"])
        self.analytics = AnalyticsService(self.databases["analytics"], self.clock)
        self.recommendations = RecommendationService(self.databases["recommendations"])
        self.catalog = CatalogService(self.databases["inventory"])
        self.inventory = InventoryService(self.databases["inventory"], self.clock)
        self.line = Line(clock=self.clock)
        self.payments = PaymentService(self.databases["payments"], self.line)
        self.ledger = Ledger(self.databases["orders"], self.clock)
        self.users = UserService(self.databases["users"])
        self.with_services()

    def with_services(
        self, *, inventory: InventoryService | None = None, payments: PaymentService | None = None
    ) -> None:
        """Let orders talk to something else."""
        self.inventory = inventory or self.inventory
        self.payments = payments or self.payments
        news = News(self.bus, self.mail)
        self.undo = Undo(self.ledger, self.inventory, self.payments, news)
        self.orders = OrderService(self.inventory, self.payments, self.ledger, self.undo, news)
        self.v1 = GatewayServiceV1(
            catalog=self.catalog,
            inventory=self.inventory,
            orders=self.orders,
            payments=self.payments,
            users=self.users,
            recommendations=self.recommendations,
            images=self.images,
            analytics=self.analytics,
            mail=self.mail,
            warehouse=self.warehouse,
            page_views=self.views,
        )
        self.v2 = GatewayServiceV2(self.catalog, self.inventory, self.orders, self.users, self.views)

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

    def __init__(
        self,
        up: subprocess.Popen[bytes],
        port: int,
        log: Path,
        variables: dict[str, str],
        system: Path,
    ) -> None:
        self.up = up
        self.system = system
        self.variables = variables
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

    def address_of(self, service: str) -> str:
        found = re.search(rf"{service} listens on (\S+)", self.log)
        assert found is not None, self.log
        return found[1]

    def polywire(self, *arguments: str) -> str:
        """What a command of polywire says about this shop."""
        command = [str(POLYWIRE), *arguments, "--system", str(self.system)]
        return subprocess.run(command, env=self.variables, capture_output=True, check=True, text=True).stdout

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


ROOMY = {"POLYWIRE__SHEDDING__LIMIT": "1000", "POLYWIRE__SHEDDING__ADAPTIVE": "false"}
"""For shops that are killed with a crowd in them: a whole shop on two cores has too many calls at times, and would turn
some away, which is another matter."""


@contextmanager
def running_shop(data: Path, *arguments: str, **environ: str) -> Iterator[RunningShop]:
    """`polywire up` with these *arguments*, its gateway on a free port and its databases in *data*.

    Commands find it by the directory of its system file, which shops of other tests run from as well, unless there is
    a copy in *data*.
    """
    system = next(file for file in (data / "polywire.toml", SHOP / "polywire.toml") if file.exists())
    port = free_port()
    variables = {
        **os.environ,
        **paths(),
        "SHOP_DATA": str(data),
        "SHOP_SMTP": "127.0.0.1:9",  # where nobody listens
        "POLYWIRE__WIRES__TASKS": f"sqlite:{data / 'bus.db'}",
        "POLYWIRE__WIRES__EVENTS": f"sqlite:{data / 'bus.db'}",
        "POLYWIRE__WIRES__SCHEDULE": f"sqlite:{data / 'schedule.db'}",
        "POLYWIRE__SERVICES__GATEWAY__LISTEN": f"127.0.0.1:{port}",
        **environ,
    }
    command = [str(POLYWIRE), "up", str(system)]
    log = data / "shop.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, *arguments], env=variables, stdout=output, stderr=output, start_new_session=True
        ) as up,
    ):
        shop = RunningShop(up, port, log, variables, system)
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


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
