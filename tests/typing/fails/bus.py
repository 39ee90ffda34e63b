"""Lines about tasks and events that the type checkers refuse.

Neither looks at the keywords of an event's class, whose metaclass has its own `__new__`; they are checked when the
class is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from polywire import (
    Batch,
    Bus,
    Contract,
    Cron,
    Event,
    Every,
    Message,
    Receipt,
    Retry,
    RetryLater,
    Where,
    enqueue,
    enqueue_all,
    receipt,
    rpc,
    subscribe,
    task,
)


class Resize(Message):
    picture: str


class Thumb(Message):
    data: bytes


class OrderPlaced(Event, topic="shop.orders", key="order_id"):
    order_id: str


class PageView(Event, topic="shop.views"):
    page: str


class Images(Contract, package="shop.v1"):
    @task
    async def resize(self, request: Resize) -> Thumb:
        raise NotImplementedError

    @task
    async def report(self) -> None: ...

    @rpc
    async def look(self, request: Resize) -> Thumb:
        raise NotImplementedError


class Options(Contract, package="shop.v1"):
    @task(timeout="1s")  # error: seconds are a number
    async def slow(self) -> None: ...

    @task(retry=5)  # error: a policy
    async def retried(self) -> None: ...

    @task(retries=5)  # error: no such option
    async def unknown(self) -> None: ...

    @task(runs_in="moon")  # error: no such place
    async def far(self) -> None: ...

    @task(schedule="0 3 * * *")  # error: a schedule is a Cron or an Every
    async def nightly(self) -> None: ...


Retry(5)  # error: fields have names
Retry(attempts="5")  # error: a number
Retry(retry_on=OSError)  # error: a tuple
Cron("0 3 * * *")  # error: the zone is missing
Cron("0 3 * * *", zone="UTC", missed="never")  # error: no such choice
Every("60")  # error: a number
RetryLater(after="5s")  # error: a number


OrderPlaced()  # error: a field is missing
OrderPlaced(order_id=5)  # error: wrong type
OrderPlaced(order_id="1", total=1)  # error: no such field


class Warehouse:
    @subscribe(OrderPlaced, group="warehouse")  # error: the method takes another event
    async def pack(self, event: PageView) -> None: ...

    @subscribe(OrderPlaced)  # error: a group is missing
    async def groupless(self, event: OrderPlaced) -> None: ...

    @subscribe(Resize, group="a")  # error: no event
    async def resize(self, event: Resize) -> None: ...

    @subscribe(PageView, group="a", batch=Batch(5))  # error: a batch is a sequence
    async def single(self, event: PageView) -> None: ...

    @subscribe(PageView, group="a")  # error: a sequence is a batch
    async def many(self, events: Sequence[PageView]) -> None: ...

    @subscribe(PageView, group="a", batch=5)  # error: a Batch
    async def five(self, events: Sequence[PageView]) -> None: ...

    @subscribe(PageView, group="a", where="shop.*")  # error: a Where
    async def where(self, event: PageView) -> None: ...

    @subscribe(PageView, group="a", on_dead="stop")  # error: no such choice
    async def stop(self, event: PageView) -> None: ...

    @subscribe(PageView, group="a", retries=5)  # error: no such option
    async def retried(self, event: PageView) -> None: ...


Where(5)  # error: a pattern is text


async def use(images: Images, bus: Bus, event: OrderPlaced) -> None:
    await enqueue(images.resize, PageView(page="/"))  # error: it takes a Resize
    await enqueue(images.resize)  # error: it takes a message
    await enqueue(images.report, Resize(picture="a"))  # error: it takes none
    await enqueue(images.resize, Resize(picture="a"), delay="1h")  # error: seconds are a number
    await enqueue(images.resize, Resize(picture="a"), retries=5)  # error: no such option
    wrong: Receipt[Resize] = await enqueue(images.resize, Resize(picture="a"))  # error: it is a receipt of a Thumb
    text: str = await receipt(images.resize, "1").result()  # error: it is a Thumb
    await enqueue(images.missing, Resize(picture="a"))  # error: no such method
    await enqueue_all(images.resize, Resize(picture="a"))  # error: a sequence
    await enqueue_all(images.resize, [PageView(page="/")])  # error: of Resize
    await bus.publish(Resize(picture="a"))  # error: no event
    await bus.publish(event, priority=5)  # error: no such option
    await bus.publish(event, headers={"a": 5})  # error: headers are text
    await bus.publish_all(event)  # error: a sequence
    receipt(images.resize, 5)  # error: an id is text
    print(wrong, text)
