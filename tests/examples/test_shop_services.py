"""The services of the shop, built by hand as any class, with fakes where something has to go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from shop.contracts import (
    CardDeclined,
    Charge,
    ChargeId,
    ChargeState,
    ChatMessage,
    Item,
    NewUser,
    OrderId,
    OrdersOf,
    OrderState,
    OutOfStock,
    Payment,
    ProductSearch,
    Reservation,
    ReservationId,
    Reserve,
    Stock,
    StockQuery,
    StockWatch,
    UserChange,
    UserList,
    UserQuery,
)
from shop.database import Database
from shop.inventory import InventoryService
from shop.payments import Line, PaymentService
from shop.users import SEEDED
from shop_support import BAD_CARD, BARGAIN, GOOD_CARD, HandMade, hand_made_shop, order

from polywire.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable

# Inventory


async def test_the_catalogue_has_at_least_a_thousand_products_and_is_the_same_in_every_shop() -> None:
    with hand_made_shop() as one, hand_made_shop() as other:
        first = await one.catalog.find_products(ProductSearch(limit=100))
        second = await other.catalog.find_products(ProductSearch(limit=100))
    assert first.total >= 1000
    assert first == second


async def test_products_are_found_by_words_category_and_price() -> None:
    with hand_made_shop() as shop:
        found = await shop.catalog.find_products(
            ProductSearch(search="OAK", category="Garden", max_price_cents=5000, limit=100)
        )
    assert 0 < len(found.products) == found.total
    for product in found.products:
        assert "Oak" in product.name
        assert product.category == "Garden"
        assert product.price_cents <= 5000


async def test_a_percent_sign_in_a_search_is_a_percent_sign() -> None:
    with hand_made_shop() as shop:
        assert (await shop.catalog.find_products(ProductSearch(search="%"))).total == 0


async def test_going_on_after_a_product_visits_each_product_once() -> None:
    seen: list[str] = []
    with hand_made_shop() as shop:
        while True:
            after = seen[-1] if seen else ""
            found = await shop.catalog.find_products(ProductSearch(category="Toys", after=after, limit=50))
            if not found.products:
                break
            seen += [product.product_id for product in found.products]
    assert len(seen) == len(set(seen)) == found.total


async def test_a_reservation_takes_all_items_or_none() -> None:
    with hand_made_shop() as shop:
        before = await shop.inventory.check_stock(StockQuery(product_id="SKU-123"))
        items = [Item(product_id="SKU-123", quantity=1), Item(product_id=BARGAIN, quantity=2)]
        with pytest.raises(OutOfStock) as refusal:
            await shop.inventory.reserve(Reserve(reservation_id="r", items=items))
        assert str(refusal.value) == "Product 'SKU-117' is out of stock: 2 wanted, 1 on hand."
        assert refusal.value == OutOfStock(product_id=BARGAIN, wanted=2, on_hand=1)
        assert await shop.inventory.check_stock(StockQuery(product_id="SKU-123")) == before


async def test_the_same_product_twice_in_a_reservation_is_added_up() -> None:
    with hand_made_shop() as shop:
        items = [Item(product_id=BARGAIN, quantity=1), Item(product_id=BARGAIN, quantity=1)]
        with pytest.raises(FailedPrecondition):
            await shop.inventory.reserve(Reserve(reservation_id="r", items=items))


async def test_reserving_again_finds_the_same_reservation() -> None:
    with hand_made_shop() as shop:
        request = Reserve(reservation_id="r", items=[Item(product_id=BARGAIN, quantity=1)])
        assert await shop.inventory.reserve(request) == await shop.inventory.reserve(request)
        count = await shop.inventory.count_stock()
        assert (count.reserved, count.sold) == (1, 0)


async def test_what_is_held_too_long_goes_back_on_the_shelf_and_cannot_be_committed() -> None:
    with hand_made_shop() as shop:
        request = Reserve(reservation_id="r", items=[Item(product_id=BARGAIN, quantity=1)], seconds=30)
        await shop.inventory.reserve(request)
        assert not (await shop.inventory.check_stock(StockQuery(product_id=BARGAIN))).in_stock
        await shop.clock.advance(30)
        assert (await shop.inventory.check_stock(StockQuery(product_id=BARGAIN))).in_stock
        with pytest.raises(FailedPrecondition) as refusal:
            await shop.inventory.commit(ReservationId(reservation_id="r"))
        assert str(refusal.value) == "Reservation 'r' is expired; reserve again."


async def test_goods_that_are_sold_do_not_expire_and_come_back_by_a_release() -> None:
    with hand_made_shop() as shop:
        await shop.inventory.reserve(Reserve(reservation_id="r", items=[Item(product_id=BARGAIN, quantity=1)]))
        committed = await shop.inventory.commit(ReservationId(reservation_id="r"))
        assert committed == await shop.inventory.commit(ReservationId(reservation_id="r"))
        await shop.clock.advance(3600)
        count = await shop.inventory.count_stock()
        assert (count.reserved, count.sold) == (0, 1)
        for _ in range(2):
            await shop.inventory.release(ReservationId(reservation_id="r"))
        count = await shop.inventory.count_stock()
        assert count.on_hand == count.initial


async def test_a_reservation_that_comes_after_its_release_is_refused() -> None:
    with hand_made_shop() as shop:
        await shop.inventory.release(ReservationId(reservation_id="late"))
        with pytest.raises(FailedPrecondition) as refusal:
            await shop.inventory.reserve(Reserve(reservation_id="late", items=[Item(product_id=BARGAIN, quantity=1)]))
        assert str(refusal.value) == "Reservation 'late' is released."


@asynccontextmanager
async def watching(shop: HandMade, product_id: str) -> AsyncIterator[AsyncIterator[Stock]]:
    stock = shop.inventory.watch(StockWatch(product_ids=[product_id]))
    assert isinstance(stock, AsyncGenerator)
    async with aclosing(stock):
        yield stock


async def test_a_watcher_is_told_the_stock_now_and_after_each_change() -> None:
    with hand_made_shop() as shop:
        async with watching(shop, BARGAIN) as stock:
            assert (await anext(stock)).quantity == 1
            await shop.inventory.reserve(Reserve(reservation_id="r", items=[Item(product_id=BARGAIN, quantity=1)]))
            assert (await anext(stock)).quantity == 0
            await shop.inventory.release(ReservationId(reservation_id="r"))
            assert (await anext(stock)).quantity == 1


async def test_a_slow_watcher_is_told_the_latest_and_not_every_step() -> None:
    with hand_made_shop() as shop:
        async with watching(shop, "SKU-123") as stock:
            before = (await anext(stock)).quantity
            for number in range(5):
                request = Reserve(reservation_id=f"r{number}", items=[Item(product_id="SKU-123", quantity=1)])
                await shop.inventory.reserve(request)
            assert (await anext(stock)).quantity == before - 5


# Payments


async def test_a_charge_is_made_once_however_often_it_is_asked_for() -> None:
    with hand_made_shop() as shop:
        charge = Charge(charge_id="c", amount_cents=500, card=GOOD_CARD)
        assert await shop.payments.charge(charge) == await shop.payments.charge(charge)
        balance = await shop.payments.get_balance()
        assert (balance.charges, balance.charged_cents) == (1, 500)


async def test_a_charge_id_cannot_be_used_for_another_amount() -> None:
    with hand_made_shop() as shop:
        await shop.payments.charge(Charge(charge_id="c", amount_cents=500, card=GOOD_CARD))
        with pytest.raises(InvalidArgument) as refusal:
            await shop.payments.charge(Charge(charge_id="c", amount_cents=501, card=GOOD_CARD))
        assert str(refusal.value) == "Charge 'c' was made before, with another card or amount. Use a new charge id."


async def test_a_bad_card_is_declined_again_and_again() -> None:
    with hand_made_shop() as shop:
        for _ in range(2):
            with pytest.raises(CardDeclined) as refusal:
                await shop.payments.charge(Charge(charge_id="c", amount_cents=500, card=BAD_CARD))
            assert str(refusal.value) == "The card ending in 0002 was declined."
            assert refusal.value == CardDeclined(card_ending="0002")
        assert (await shop.payments.get_balance()).declined == 1


async def test_a_refund_is_made_once_and_a_charge_that_comes_after_it_is_refused() -> None:
    with hand_made_shop() as shop:
        await shop.payments.charge(Charge(charge_id="c", amount_cents=500, card=GOOD_CARD))
        for _ in range(2):
            assert (await shop.payments.refund(ChargeId(charge_id="c"))).state is ChargeState.REFUNDED
        assert (await shop.payments.get_balance()).refunded_cents == 500
        assert (await shop.payments.refund(ChargeId(charge_id="late"))).state is ChargeState.VOID
        with pytest.raises(FailedPrecondition) as refusal:
            await shop.payments.charge(Charge(charge_id="late", amount_cents=500, card=GOOD_CARD))
        assert str(refusal.value) == "Charge 'late' is void and cannot be made any more."


# Users


async def people(*new: NewUser) -> AsyncIterator[NewUser]:
    for person in new:
        yield person


async def test_users_are_listed_beyond_the_size_of_a_batch() -> None:
    with hand_made_shop() as shop:
        everyone = [user async for user in shop.users.list_users(UserList())]
        in_cork = [user async for user in shop.users.list_users(UserList(city="Cork"))]
    assert len({user.user_id for user in everyone}) == SEEDED
    assert in_cork == [user for user in everyone if user.city == "Cork"]


async def test_users_are_created_together_or_not_at_all() -> None:
    with hand_made_shop() as shop:
        taken = (await shop.users.get_user(UserQuery(user_id="U-1"))).email
        fresh = NewUser(name="Grace", email="grace@example.com")
        with pytest.raises(AlreadyExists) as refusal:
            await shop.users.create_users(people(fresh, NewUser(name="Impostor", email=taken)))
        assert str(refusal.value) == f"Somebody has the email {taken!r} already."
        created = await shop.users.create_users(people(fresh))
        assert (await shop.users.get_user(UserQuery(user_id=created.user_ids[0]))).name == "Grace"


async def test_a_change_keeps_what_it_does_not_name() -> None:
    with hand_made_shop() as shop:
        before = await shop.users.get_user(UserQuery(user_id="U-1"))
        after = await shop.users.change_user(UserChange(user_id="U-1", city="Delft"))
        assert (after.name, after.email, after.city) == (before.name, before.email, "Delft")


async def test_nobody_is_found_under_an_id_that_is_none() -> None:
    with hand_made_shop() as shop:
        for user_id in ("U-99999", "1", "U-1; DROP TABLE users", "U-" + "9" * 40):
            with pytest.raises(NotFound) as refusal:
                await shop.users.get_user(UserQuery(user_id=user_id))
            assert str(refusal.value) == f"There is no user {user_id!r}."


async def test_the_support_agent_remembers_what_was_said() -> None:
    async def customer() -> AsyncIterator[ChatMessage]:
        yield ChatMessage(text="Hello!", user_id="U-1")
        yield ChatMessage(text="hi")
        yield ChatMessage(text="Where is it?")
        yield ChatMessage(text="ord-12ab, please")
        yield ChatMessage(text="I want a refund")
        yield ChatMessage(text="Thanks, bye")
        yield ChatMessage(text="Is anybody there?")

    with hand_made_shop() as shop:
        name = (await shop.users.get_user(UserQuery(user_id="U-1"))).name.split()[0]
        answers = [answer.text async for answer in shop.users.chat(customer())]
    assert answers == [
        f"Hello, {name}. How can I help?",
        f"Hello, {name}. How can I help?",
        "Which order is it about? Its number begins with 'ord-'.",
        "Order ord-12ab is on its way. Anything else?",
        "Cancel order ord-12ab in the shop, and the money is back at once.",
        f"Goodbye, {name}. You asked 3 questions today.",
    ]


# Orders


async def test_a_placed_order_moves_goods_and_money() -> None:
    with hand_made_shop() as shop:
        placed = await shop.orders.place(order(quantity=2))
        assert placed.state is OrderState.CONFIRMED
        assert placed.total_cents == 2 * placed.lines[0].price_cents
        books = await shop.v1.get_books()
        assert (books.stock.reserved, books.stock.sold) == (0, 2)
        assert books.money.charged_cents == books.orders.confirmed_cents == placed.total_cents
        assert books.problems == []


async def test_the_same_key_finds_the_same_order() -> None:
    with hand_made_shop() as shop:
        assert await shop.orders.place(order("a")) == await shop.orders.place(order("a"))
        assert (await shop.orders.list_orders(OrdersOf(user_id="U-1"))).total == 1
        with pytest.raises(InvalidArgument) as refusal:
            await shop.orders.place(order("a", quantity=5))
        assert str(refusal.value) == "The key 'a' was used for a different order. Use a new key for each order."


async def test_a_declined_card_leaves_everything_as_it_was_and_is_declined_again() -> None:
    with hand_made_shop() as shop:
        for _ in range(2):
            with pytest.raises(CardDeclined) as refusal:
                await shop.orders.place(order("a", card=BAD_CARD))
            assert refusal.value == CardDeclined(card_ending="0002")
        books = await shop.v1.get_books()
        assert books.stock.on_hand == books.stock.initial
        assert books.orders.by_state == {"declined": 1}
        assert books.problems == []


async def test_what_is_out_of_stock_is_not_charged() -> None:
    with hand_made_shop() as shop:
        for _ in range(2):
            with pytest.raises(OutOfStock) as refusal:
                await shop.orders.place(order("a", product_id=BARGAIN, quantity=2))
            assert refusal.value == OutOfStock(product_id=BARGAIN, wanted=2, on_hand=1)
        books = await shop.v1.get_books()
        assert (books.money.charges, books.orders.by_state) == (0, {"out_of_stock": 1})


async def test_a_cancelled_order_gives_back_goods_and_money_once() -> None:
    with hand_made_shop() as shop:
        placed = await shop.orders.place(order())
        for _ in range(2):
            cancelled = await shop.orders.cancel(OrderId(order_id=placed.order_id))
            assert cancelled.state is OrderState.CANCELLED
        books = await shop.v1.get_books()
        assert books.stock.on_hand == books.stock.initial
        assert books.money.charged_cents == books.money.refunded_cents == placed.total_cents
        assert books.problems == []


async def test_only_a_confirmed_order_can_be_cancelled() -> None:
    with hand_made_shop() as shop:
        with pytest.raises(FailedPrecondition):
            await shop.orders.place(order(card=BAD_CARD))
        declined = (await shop.orders.list_orders(OrdersOf(user_id="U-1"))).orders[0]
        with pytest.raises(FailedPrecondition) as refusal:
            await shop.orders.cancel(OrderId(order_id=declined.order_id))
        assert str(refusal.value) == f"Order {declined.order_id} is declined; only a confirmed one can be cancelled."


class LosesAnswers(PaymentService):
    """Charges, but the answer never arrives. Refunds wait until the line is up again."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, Line())
        self.down = True

    async def charge(self, request: Charge) -> Payment:
        await super().charge(request)
        raise Unavailable("the line is down", reached="maybe")

    async def refund(self, request: ChargeId) -> Payment:
        if self.down:
            raise Unavailable("the line is down", reached="no")
        return await super().refund(request)


async def test_a_charge_whose_answer_is_lost_is_given_back_once_payments_can_be_reached() -> None:
    with hand_made_shop() as shop:
        payments = LosesAnswers(shop.databases["payments"])
        shop.with_services(payments=payments)
        with pytest.raises(Unavailable) as trouble:
            await shop.orders.place(order("a"))
        placed = (await shop.orders.list_orders(OrdersOf(user_id="U-1"))).orders[0]
        assert str(trouble.value) == (
            f"Order {placed.order_id} was interrupted, and whatever was charged is given back. "
            "Place it again with a new key."
        )
        assert placed.state is OrderState.UNDOING
        await shop.undo.sweep()
        assert await shop.state_of(placed) is OrderState.UNDOING
        payments.down = False
        await shop.undo.sweep()
        assert await shop.state_of(placed) is OrderState.FAILED
        books = await shop.v1.get_books()
        assert books.money.charged_cents == books.money.refunded_cents > 0
        assert books.stock.on_hand == books.stock.initial
        assert books.problems == []


class Hangs(PaymentService):
    def __init__(self, database: Database) -> None:
        super().__init__(database, Line())
        self.asked = asyncio.Event()

    async def charge(self, request: Charge) -> Payment:
        self.asked.set()
        await asyncio.Event().wait()
        return await super().charge(request)


async def test_an_order_stopped_at_its_deadline_is_undone() -> None:
    with hand_made_shop() as shop:
        payments = Hangs(shop.databases["payments"])
        shop.with_services(payments=payments)
        placing = asyncio.create_task(shop.orders.place(order()))
        await payments.asked.wait()
        placing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await placing
        await shop.undo.sweep()
        books = await shop.v1.get_books()
        assert books.orders.by_state == {"failed": 1}
        assert books.stock.on_hand == books.stock.initial
        assert books.problems == []


async def test_an_order_left_behind_by_a_process_that_died_is_undone_by_the_next_one() -> None:
    with hand_made_shop() as shop:
        request = order()
        order_id = shop.ledger.begin(request)
        assert order_id is not None
        reservation = await shop.inventory.reserve(Reserve(reservation_id=order_id, items=request.items))
        total = shop.ledger.write_lines(order_id, reservation)
        await shop.payments.charge(Charge(charge_id=order_id, amount_cents=total, card=request.card))

        with pytest.raises(Unavailable) as trouble:
            await shop.orders.place(request)
        assert str(trouble.value) == f"Order {order_id} is pending. Ask again in a moment."
        await shop.undo.sweep()
        assert shop.ledger.get(order_id).state is OrderState.PENDING
        await shop.clock.advance(7)
        await shop.undo.sweep()
        assert shop.ledger.get(order_id).state is OrderState.FAILED
        assert shop.ledger.get(order_id).reason == "The order was interrupted."
        assert await shop.problems() == []


class ExpiresReservations(InventoryService):
    async def commit(self, request: ReservationId) -> Reservation:
        raise FailedPrecondition("Reservation is expired; reserve again.")


async def test_an_order_whose_reservation_expired_before_it_was_confirmed_is_given_back() -> None:
    with hand_made_shop() as shop:
        shop.with_services(inventory=ExpiresReservations(shop.databases["inventory"], shop.clock))
        with pytest.raises(Unavailable):
            await shop.orders.place(order())
        books = await shop.v1.get_books()
        assert books.orders.by_state == {"failed": 1}
        assert books.money.charged_cents == books.money.refunded_cents > 0
        assert books.problems == []


async def test_an_order_that_the_sweeper_gave_up_is_not_confirmed_afterwards() -> None:
    with hand_made_shop() as shop:

        class Slow(InventoryService):
            async def commit(self, request: ReservationId) -> Reservation:
                reservation = await super().commit(request)
                await shop.clock.advance(7)
                await shop.undo.sweep()
                return reservation

        shop.with_services(inventory=Slow(shop.databases["inventory"], shop.clock))
        with pytest.raises(Unavailable):
            await shop.orders.place(order())
        books = await shop.v1.get_books()
        assert books.orders.by_state == {"failed": 1}
        assert books.stock.on_hand == books.stock.initial
        assert books.problems == []


# The books


async def test_the_books_say_what_is_wrong_with_them() -> None:
    with hand_made_shop() as shop:
        await shop.orders.place(order())
        shop.databases["payments"].run("UPDATE charges SET amount_cents = amount_cents - 1")
        shop.databases["inventory"].run("UPDATE products SET on_hand = on_hand - 3 WHERE product_id = 'SKU-500'")
        problems = await shop.problems()
    assert len(problems) == 2
    assert problems[0].startswith("Stock: ")
    assert problems[1].startswith("121.97 EUR was charged and kept, but confirmed orders cost 121.98 EUR.")


def test_a_database_is_migrated_once_and_keeps_what_was_written(tmp_path: pytest.TempPathFactory) -> None:
    def one(database: Database) -> None:
        database.run("CREATE TABLE a (b INTEGER)")

    def two(database: Database) -> None:
        database.run("INSERT INTO a VALUES (1)")

    for migrations in ((one,), (one, two), (one, two)):
        database = Database(f"{tmp_path}/a.db", *migrations)
        count = database.value("SELECT count(*) FROM a")
        database.close()
    assert count == 1


def test_a_transaction_that_fails_leaves_nothing() -> None:
    database = Database(":memory:")
    database.run("CREATE TABLE a (b INTEGER)")

    def fails() -> None:
        with database.transaction():
            database.run("INSERT INTO a VALUES (1)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert database.value("SELECT count(*) FROM a") == 0
    database.close()
