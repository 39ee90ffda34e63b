"""Apps: what is found by type, opened in which order, closed again, and refused."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest

from polywire.clock import Clock
from polywire.contract import Contract, Message, rpc
from polywire.errors import NotFound, SetupError, Unavailable
from polywire.system.app import App, Key
from polywire.testing.clock import ManualClock
from polywire.testing.system import system

LOG: list[str] = []


class Query(Message):
    product_id: str


class Stock(Message):
    product_id: str
    quantity: int


class Inventory(Contract, package="shop.v1"):
    @rpc(idempotent=True)
    async def check_stock(self, query: Query) -> Stock:
        raise NotImplementedError


class Pricing(Contract, package="shop.v1"):
    @rpc
    async def price(self, query: Query) -> Stock:
        raise NotImplementedError


class Orders(Contract, package="shop.v1"):
    @rpc
    async def place(self, query: Query) -> Stock:
        raise NotImplementedError


class Ledger:
    def __init__(self, name: str = "ledger") -> None:
        self.name = name


class FastLedger(Ledger): ...


class Settings: ...


inventory_app = App("inventory")


@inventory_app.service
class StockService(Inventory, Pricing):
    async def check_stock(self, query: Query) -> Stock:
        if query.product_id == "none":
            raise NotFound("no product 'none'")
        return Stock(product_id=query.product_id, quantity=7)

    async def price(self, query: Query) -> Stock:
        return Stock(product_id=query.product_id, quantity=99)


def orders_app() -> App:
    app = App("orders")

    @app.service
    class OrderService(Orders):
        def __init__(self, inventory: Inventory, ledger: Ledger) -> None:
            self.inventory = inventory
            self.ledger = ledger

        async def place(self, query: Query) -> Stock:
            return await self.inventory.check_stock(query)

    @app.resource
    async def ledger() -> AsyncIterator[Ledger]:
        yield Ledger()

    return app


class FakeInventory(Inventory):
    async def check_stock(self, query: Query) -> Stock:
        return Stock(product_id="fake", quantity=0)


async def test_services_of_several_apps_call_each_other_by_contract() -> None:
    async with system(orders_app(), inventory_app) as shop:
        assert await shop.client(Orders).place(Query(product_id="a")) == Stock(product_id="a", quantity=7)


async def test_a_service_may_implement_several_contracts() -> None:
    async with system(inventory_app) as shop:
        assert (await shop.client(Pricing).price(Query(product_id="a"))).quantity == 99
        assert (await shop.client(Inventory).check_stock(Query(product_id="a"))).quantity == 7
        assert isinstance(shop.service(StockService), StockService)


async def test_a_fake_takes_the_place_of_a_contract_that_nobody_here_implements() -> None:
    async with system(orders_app(), replace={Inventory: FakeInventory()}) as shop:
        assert (await shop.client(Orders).place(Query(product_id="a"))).product_id == "fake"


async def test_a_fake_takes_the_place_of_a_service_of_an_app() -> None:
    async with system(orders_app(), inventory_app, replace={Inventory: FakeInventory()}) as shop:
        assert (await shop.client(Orders).place(Query(product_id="a"))).product_id == "fake"


async def test_errors_cross_from_service_to_service_as_they_were_raised() -> None:
    async with system(orders_app(), inventory_app) as shop:
        with pytest.raises(NotFound, match="no product 'none'"):
            await shop.client(Orders).place(Query(product_id="none"))


async def test_a_value_takes_the_place_of_a_resource_and_its_function_is_not_called() -> None:
    app = orders_app()
    mine = Ledger("mine")

    async with system(app, inventory_app, replace={Ledger: mine}) as shop:
        assert shop.service(app._services[0]).ledger is mine


async def test_resources_open_after_what_they_need_and_close_in_reverse() -> None:
    LOG.clear()
    app = App("a")

    @app.resource
    async def ledger(settings: Settings, audit: Annotated[Ledger, "audit"]) -> AsyncIterator[Ledger]:
        LOG.append("open ledger")
        yield Ledger(f"ledger beside {audit.name}")
        LOG.append("close ledger")

    @app.resource
    def audit(settings: Settings) -> Iterator[Annotated[Ledger, "audit"]]:
        LOG.append("open audit")
        yield Ledger("audit")
        LOG.append("close audit")

    @app.resource
    async def settings() -> Settings:
        LOG.append("settings")
        return Settings()

    @app.resource
    async def migrate(ledger: Ledger) -> AsyncIterator[None]:
        LOG.append(f"migrate {ledger.name}")
        yield
        LOG.append("farewell")

    @app.resource
    @contextlib.asynccontextmanager
    async def number() -> AsyncIterator[int]:
        LOG.append("open number")
        yield 5
        LOG.append("close number")

    @app.resource
    def text() -> contextlib.AbstractContextManager[str]:
        return contextlib.nullcontext("text")

    @app.service
    class Service(Inventory):
        def __init__(
            self, first: Annotated[Ledger, "audit"], second: Ledger, number: int, text: str, flag: bool = True
        ) -> None:
            LOG.append(f"service {first.name}, {second.name}, {number}, {text}, {flag}")

    async with system(app):
        LOG.append("runs")

    assert LOG == [
        "settings",
        "open audit",
        "open ledger",
        "migrate ledger beside audit",
        "open number",
        "service audit, ledger beside audit, 5, text, True",
        "runs",
        "close number",
        "farewell",
        "close ledger",
        "close audit",
    ]


async def test_a_service_may_ask_for_a_base_class_an_optional_and_the_clock() -> None:
    app = App("a")

    @app.resource
    def ledger() -> FastLedger:
        return FastLedger("fast")

    @app.service
    class Service(Inventory):
        def __init__(self, ledger: Ledger, settings: Settings | None, clock: Clock) -> None:
            self.given = (ledger.name, settings, clock)

    clock = ManualClock()
    async with system(app, clock=clock) as running:
        assert running.service(Service).given == ("fast", None, clock)


async def test_what_was_opened_is_closed_where_a_later_resource_fails() -> None:
    LOG.clear()
    app = App("a")

    @app.resource
    async def ledger() -> AsyncIterator[Ledger]:
        try:
            yield Ledger()
        finally:
            LOG.append("closed")

    @app.resource
    async def settings(ledger: Ledger) -> Settings:
        raise OSError("disk is full")

    with pytest.raises(SetupError) as caught:
        async with system(app):
            raise AssertionError("not reached")

    assert str(caught.value) == "app 'a' did not start: its resource 'settings' raised OSError: disk is full"
    assert LOG == ["closed"]


async def test_a_constructor_that_fails_is_named() -> None:
    app = App("a")

    @app.service
    class Service(Inventory):
        def __init__(self) -> None:
            raise ValueError("no licence")

    with pytest.raises(SetupError) as caught:
        async with system(app):
            raise AssertionError("not reached")

    assert str(caught.value) == "app 'a' did not start: its service " + Service.__qualname__ + (
        " raised ValueError: no licence"
    )


async def test_calling_a_service_of_this_process_before_it_runs_is_unavailable_and_reached_nobody() -> None:
    seen: list[Unavailable] = []
    orders = App("orders")

    @orders.resource
    async def greeting(inventory: Inventory) -> Settings:
        try:
            await inventory.check_stock(Query(product_id="a"))
        except Unavailable as error:
            seen.append(error)
        return Settings()

    @orders.service
    class Service(Inventory): ...

    async with system(orders):
        pass

    assert [error.reached for error in seen] == ["no"]
    assert str(seen[0]) == ("No endpoint was found: service 'orders' of this process has not started yet.")


async def refusal(*apps: App, replace: dict[Any, object] | None = None) -> str:
    with pytest.raises(SetupError) as caught:
        async with system(*apps, replace=replace):
            raise AssertionError("not reached")
    return str(caught.value)


class Lonely(Orders):
    def __init__(self, ledger: Ledger) -> None: ...


class Unannotated(Orders):
    def __init__(self, ledger) -> None: ...  # type: ignore[no-untyped-def]  # that is what is tested


class AsksForAnImplementation(Orders):
    def __init__(self, stock: StockService) -> None: ...


async def test_a_missing_resource_is_refused_with_what_there_is_and_what_to_write() -> None:
    app = App("orders")
    app.service(Lonely)

    @app.resource
    def settings() -> Settings:
        return Settings()

    assert await refusal(app) == (
        f"{__name__}:Lonely needs a 'ledger: Ledger', but app 'orders' has no resource of that type. "
        "It has: settings -> Settings. Add `@app.resource async def ledger() -> AsyncIterator[Ledger]`."
    )


async def test_asking_for_an_implementation_instead_of_its_contract_is_explained() -> None:
    app = App("orders")
    app.service(AsksForAnImplementation)

    assert await refusal(app) == (
        f"{__name__}:AsksForAnImplementation needs a 'stock: StockService', but app 'orders' has no resource of that "
        "type. It has: none. To call a service, ask for its contract: 'stock: Inventory'."
    )


async def test_a_parameter_without_a_type_is_refused() -> None:
    app = App("orders")
    app.service(Unannotated)

    assert await refusal(app) == (
        f"{__name__}:Unannotated does not say of what type its parameter 'ledger' is, and what it needs is found by "
        "type. Annotate it, for example `ledger: Ledger`."
    )


async def test_a_resource_without_a_return_type_is_refused() -> None:
    app = App("orders")

    def ledger():  # type: ignore[no-untyped-def]  # that is what is tested
        return Ledger()

    app.resource(ledger)

    place = f"{__file__}:{ledger.__code__.co_firstlineno}"
    assert await refusal(app) == (
        f"resource 'ledger' ({place}) does not say what it provides, and resources are found by their return type. "
        "Annotate it, for example `-> AsyncIterator[Ledger]`."
    )


async def test_resources_that_need_each_other_are_refused() -> None:
    app = App("a")

    @app.resource
    def ledger(settings: Settings) -> Ledger:
        return Ledger()

    @app.resource
    def settings(ledger: Ledger) -> Settings:
        return Settings()

    assert await refusal(app) == (
        "The resources of app 'a' need each other in a circle: 'ledger' -> 'settings' -> 'ledger'. "
        "Merge two of them, or let one take what it needs later."
    )


async def test_two_resources_of_one_type_are_refused_until_they_are_named() -> None:
    app = App("a")

    @app.resource
    def ledger() -> Ledger:
        return Ledger()

    @app.resource
    def audit() -> Ledger:
        return Ledger()

    assert await refusal(app) == (
        "app 'a' has two resources of type Ledger: 'ledger' and 'audit'. Tell them apart: "
        "`-> AsyncIterator[Annotated[Ledger, 'audit']]`, and the same where it is asked for."
    )


async def test_a_contract_implemented_twice_in_one_app_is_refused() -> None:
    app = App("a")
    app.service(StockService)
    app.service(FakeInventory)

    assert await refusal(app) == (
        "app 'a' implements shop.v1.Inventory twice: by StockService and by FakeInventory. "
        "Remove @app.service from one of them."
    )


async def test_a_contract_implemented_by_two_apps_is_refused() -> None:
    other = App("other")
    other.service(FakeInventory)

    assert await refusal(inventory_app, other) == (
        "shop.v1.Inventory is implemented twice: by service 'inventory' and by service 'other'. "
        "Calls could not tell where to go; remove one of them from the system."
    )


async def test_a_contract_that_nobody_implements_is_refused_at_start() -> None:
    assert await refusal(orders_app()) == (
        "Nobody implements shop.v1.Inventory, and a client of it is needed. The system has: shop.v1.Orders."
    )


async def test_a_fake_that_does_not_implement_what_it_replaces_is_refused() -> None:
    assert await refusal(orders_app(), replace={Inventory: Ledger()}) == (
        "replace={Inventory: Ledger(...)}: the fake does not implement the contract. "
        "Derive it, `class Ledger(Inventory): ...`."
    )


def test_a_class_without_a_contract_is_no_service() -> None:
    with pytest.raises(SetupError) as caught:
        App("a").service(Ledger)

    assert str(caught.value) == (
        "@app.service was put on 'Ledger', which implements no contract and subscribes to no event. "
        "Derive the class from a contract, `class StockService(Inventory): ...`, or put @subscribe(...) on a method."
    )


def test_keys_read_as_they_are_written() -> None:
    assert [str(Key(Ledger)), str(Key(Ledger, "audit")), str(Key(list[int]))] == [
        "Ledger",
        "Annotated[Ledger, 'audit']",
        "list[int]",
    ]
