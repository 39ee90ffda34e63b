"""The door: what browsers and apps call over REST, answered by asking the services behind it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from decimal import Decimal

from polywire import App, Bus, Clock, Fallback, calling, enqueue
from polywire.contract.pagination import page_of
from shop import api_v2, backoffice
from shop.api_v1 import (
    BackOffice,
    Books,
    Companion,
    CompanionList,
    GatewayV1,
    NewOrder,
    NewThumb,
    OrderPage,
    ProductDetail,
    ProductPage,
    ThumbAsked,
    UserReplacement,
)
from shop.api_v2 import GatewayV2
from shop.backoffice import (
    Activity,
    Analytics,
    Companions,
    Images,
    Mail,
    NightlyReports,
    Recommendations,
    Resize,
    Thumb,
    Warehouse,
)
from shop.catalogue import goods
from shop.contracts import (
    Balance,
    Catalog,
    Inventory,
    Item,
    NewUser,
    Order,
    OrderId,
    Orders,
    OrdersOf,
    OrderState,
    Payments,
    PlaceOrder,
    Product,
    ProductQuery,
    ProductSearch,
    StockCount,
    StockQuery,
    Tally,
    User,
    UserChange,
    UserQuery,
    Users,
)
from shop.money import euros
from shop.views import PageViews

app = App("gateway")

MOST_OF = sorted(goods(), key=lambda product: (-product.units, product.number))[:3]
ADVICE = Fallback(
    last_good=600.0,
    value=Companions(companions=[backoffice.Companion(product_id=product.product_id, orders=0) for product in MOST_OF]),
)
"""What a page recommends where those who know cannot be asked: what they said of the product last, or something."""
ADVICE_WITHIN = 0.8
"""Seconds: a page is not held up for longer by what it can do without."""


@app.resource
async def page_views(bus: Bus, clock: Clock) -> AsyncIterator[PageViews]:
    views = PageViews(bus, clock)
    telling = asyncio.create_task(views.keep_telling())
    try:
        yield views
    finally:
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling
        await views.tell()


@app.service
class GatewayServiceV1(GatewayV1):
    def __init__(
        self,
        catalog: Catalog,
        inventory: Inventory,
        orders: Orders,
        payments: Payments,
        users: Users,
        recommendations: Recommendations,
        images: Images,
        analytics: Analytics,
        mail: Mail,
        warehouse: Warehouse,
        page_views: PageViews,
    ) -> None:
        self._catalog = catalog
        self._inventory = inventory
        self._orders = orders
        self._payments = payments
        self._users = users
        self._recommendations = recommendations
        self._images = images
        self._analytics = analytics
        self._mail = mail
        self._warehouse = warehouse
        self._page_views = page_views

    async def list_products(self, search: ProductSearch) -> ProductPage:
        found = await self._catalog.find_products(search)
        return page_of(ProductPage, found.products, total=found.total, query=search)

    async def get_product(self, query: ProductQuery) -> ProductDetail:
        product, stock = await asyncio.gather(
            self._catalog.get_product(query),
            self._inventory.check_stock(StockQuery(product_id=query.product_id)),
        )
        self._page_views.seen(product.product_id)
        return ProductDetail(
            product_id=product.product_id,
            name=product.name,
            category=product.category,
            description=product.description,
            price_cents=product.price_cents,
            in_stock=stock.in_stock,
            units=stock.quantity,
        )

    async def list_recommendations(self, query: ProductQuery) -> CompanionList:
        _, (found, fallback) = await asyncio.gather(self._catalog.get_product(query), self._advice(query))
        products = await asyncio.gather(
            *(self._catalog.get_product(ProductQuery(product_id=one.product_id)) for one in found.companions)
        )
        return CompanionList(
            items=[
                Companion(
                    product_id=product.product_id,
                    name=product.name,
                    price_cents=product.price_cents,
                    orders=one.orders,
                )
                for product, one in zip(products, found.companions, strict=True)
            ],
            fallback=fallback,
        )

    async def _advice(self, query: ProductQuery) -> tuple[Companions, bool]:
        """What goes with a product, and whether that is only what there was to fall back on."""
        with calling(ADVICE, timeout=ADVICE_WITHIN) as asked:
            found = await self._recommendations.recommend(query)
        return found, asked.fallback

    async def order_thumbnail(self, request: NewThumb) -> ThumbAsked:
        await self._catalog.get_product(ProductQuery(product_id=request.product_id))
        asked = await enqueue(self._images.resize, Resize(product_id=request.product_id, width=request.width))
        return ThumbAsked(product_id=request.product_id, width=request.width, task_id=asked.id)

    async def get_thumbnail(self, query: NewThumb) -> Thumb:
        return await self._images.find_thumb(Resize(product_id=query.product_id, width=query.width))

    async def place_order(self, order: NewOrder) -> Order:
        customer = await self._users.get_user(UserQuery(user_id=order.user_id))  # NotFound before anything is reserved
        return await place(self._orders, order.idempotency_key, customer, order.items, order.card)

    async def get_order(self, query: OrderId) -> Order:
        return await self._orders.get_order(query)

    async def cancel_order(self, order: OrderId) -> None:
        await self._orders.cancel(order)

    async def create_user(self, user: NewUser) -> User:
        created = await self._users.create_users(_one(user))
        return User(user_id=created.user_ids[0], name=user.name, email=user.email, city=user.city)

    async def get_user(self, query: UserQuery) -> User:
        return await self._users.get_user(query)

    async def replace_user(self, user: UserReplacement) -> User:
        return await self._users.change_user(
            UserChange(user_id=user.user_id, name=user.name, email=user.email, city=user.city)
        )

    async def change_user(self, change: UserChange) -> User:
        return await self._users.change_user(change)

    async def list_orders(self, query: OrdersOf) -> OrderPage:
        await self._users.get_user(UserQuery(user_id=query.user_id))
        found = await self._orders.list_orders(query)
        return page_of(OrderPage, found.orders, total=found.total, query=query)

    async def get_books(self) -> Books:
        stock, tally, balance = await asyncio.gather(
            self._inventory.count_stock(), self._orders.tally(), self._payments.get_balance()
        )
        unfinished = sum(tally.by_state.get(state, 0) for state in (OrderState.PENDING, OrderState.UNDOING))
        return Books(
            stock=stock,
            orders=tally,
            money=balance,
            unfinished=unfinished,
            problems=audit(stock, tally, balance, unfinished),
        )

    async def get_analytics(self) -> Activity:
        return await self._analytics.get_activity()

    async def list_reports(self) -> NightlyReports:
        return await self._analytics.list_reports()

    async def get_backoffice(self) -> BackOffice:
        mails, parcels, pictures, baskets = await asyncio.gather(
            self._mail.count_mails(),
            self._warehouse.count_parcels(),
            self._images.count_pictures(),
            self._recommendations.count_baskets(),
        )
        return BackOffice(mails=mails, parcels=parcels, pictures=pictures, baskets=baskets)


@app.service
class GatewayServiceV2(GatewayV2):
    def __init__(
        self, catalog: Catalog, inventory: Inventory, orders: Orders, users: Users, page_views: PageViews
    ) -> None:
        self._catalog = catalog
        self._inventory = inventory
        self._orders = orders
        self._users = users
        self._page_views = page_views

    async def list_products(self, search: api_v2.ProductSearch) -> api_v2.ProductList:
        found = await self._catalog.find_products(
            ProductSearch(search=search.search, category=search.category, after=search.cursor, limit=search.limit)
        )
        full = len(found.products) == search.limit  # then there may be more; at worst the next page is empty
        return api_v2.ProductList(
            products=[_product_v2(product) for product in found.products],
            next=found.products[-1].product_id if full else None,
        )

    async def get_product(self, query: api_v2.ProductQuery) -> api_v2.ProductInStock:
        product, stock = await asyncio.gather(
            self._catalog.get_product(ProductQuery(product_id=query.product_id)),
            self._inventory.check_stock(StockQuery(product_id=query.product_id)),
        )
        self._page_views.seen(product.product_id)
        return api_v2.ProductInStock(product=_product_v2(product), units=stock.quantity)

    async def place_order(self, order: api_v2.NewOrder) -> api_v2.Order:
        customer = await self._users.get_user(UserQuery(user_id=order.user_id))
        items = [Item(product_id=item.product_id, quantity=item.quantity) for item in order.items]
        placed = await place(self._orders, order.idempotency_key, customer, items, order.card)
        return _order_v2(placed, customer)

    async def get_order(self, query: api_v2.OrderId) -> api_v2.Order:
        return await self._with_customer(await self._orders.get_order(OrderId(order_id=query.order_id)))

    async def cancel_order(self, order: api_v2.OrderId) -> api_v2.Order:
        return await self._with_customer(await self._orders.cancel(OrderId(order_id=order.order_id)))

    async def _with_customer(self, order: Order) -> api_v2.Order:
        return _order_v2(order, await self._users.get_user(UserQuery(user_id=order.user_id)))


async def place(orders: Orders, key: str | None, customer: User, items: list[Item], card: str) -> Order:
    """Place an order under the customer's key, or one made up here: with it, asking again cannot order twice, so the
    call is safe to retry although it is not declared idempotent."""
    key = (key or str(uuid.uuid4())).strip('"')
    with calling(idempotency_key=key):
        return await orders.place(
            PlaceOrder(
                key=f"{customer.user_id}/{key}",
                user_id=customer.user_id,
                items=items,
                card=card,
                email=customer.email,
            )
        )


def audit(stock: StockCount, tally: Tally, balance: Balance, unfinished: int) -> list[str]:
    """What does not add up between warehouse, orders and till, in sentences."""
    problems = []
    if stock.initial != stock.on_hand + stock.reserved + stock.sold:
        problems.append(
            f"Stock: {stock.initial} units came in, but {stock.on_hand} are on hand, {stock.reserved} reserved and "
            f"{stock.sold} sold."
        )
    if unfinished == 0 and stock.reserved:
        problems.append(f"Stock: {stock.reserved} units are reserved, but no order is under way.")
    if stock.sold != tally.confirmed_units:
        problems.append(f"{stock.sold} units are sold, but confirmed orders are for {tally.confirmed_units}.")
    kept = balance.charged_cents - balance.refunded_cents
    if kept != tally.confirmed_cents:
        problems.append(
            f"{euros(kept)} was charged and kept, but confirmed orders cost {euros(tally.confirmed_cents)}."
        )
    confirmed = tally.by_state.get(OrderState.CONFIRMED, 0)
    if balance.charges - balance.refunds != confirmed:
        problems.append(f"{balance.charges - balance.refunds} charges were kept, for {confirmed} confirmed orders.")
    return problems


async def _one(user: NewUser) -> AsyncIterator[NewUser]:
    yield user


def _money(cents: int) -> api_v2.Money:
    return api_v2.Money(amount=Decimal(cents).scaleb(-2))


def _product_v2(product: Product) -> api_v2.Product:
    return api_v2.Product(
        product_id=product.product_id,
        name=product.name,
        category=product.category,
        description=product.description,
        price=_money(product.price_cents),
    )


def _order_v2(order: Order, customer: User) -> api_v2.Order:
    return api_v2.Order(
        order_id=order.order_id,
        state=order.state,
        customer=api_v2.Customer(user_id=customer.user_id, name=customer.name, city=customer.city),
        lines=[
            api_v2.Line(
                product_id=line.product_id,
                name=line.name,
                quantity=line.quantity,
                price=_money(line.price_cents),
            )
            for line in order.lines
        ],
        total=_money(order.total_cents),
        placed_at=order.placed_at,
        reason=order.reason or None,
    )
