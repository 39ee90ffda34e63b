"""Work that is done later, and facts that others may react to, on a bus that is a file.

Prints:
    sent
    thumbnail of cat.png, 80 pixels wide
    packed o-1
"""

import asyncio
import tempfile

from polywire import App, Contract, Event, Message, Retry, enqueue, open_bus, serve, subscribe, task


class Resize(Message):
    image: str
    width: int


class Thumbnail(Message):
    text: str


class OrderPaid(Event, topic="shop.orders", key="order_id"):
    order_id: str


class Images(Contract, package="shop.v1"):
    @task(retry=Retry(attempts=5), timeout=30)
    async def resize(self, request: Resize) -> Thumbnail:
        """Done by whoever implements this contract, once one of them has time."""
        raise NotImplementedError


app = App("worker")
packed = asyncio.Event()


@app.service
class ImageWorker(Images):
    async def resize(self, request: Resize) -> Thumbnail:
        return Thumbnail(text=f"thumbnail of {request.image}, {request.width} pixels wide")


@app.service
class Warehouse:
    @subscribe(OrderPaid, group="warehouse")
    async def pack(self, event: OrderPaid) -> None:
        print(f"packed {event.order_id}")
        packed.set()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bus_file, results = (
            f"sqlite:{folder}/bus.db",
            f"sqlite:{folder}/schedule.db",
        )  # amqp:// and kafka:// work as well
        async with (
            serve(app, tasks=bus_file, events=bus_file, schedule=results),
            open_bus(Images, tasks=bus_file, events=bus_file, schedule=results) as bus,
        ):
            receipt = await enqueue(bus.client(Images).resize, Resize(image="cat.png", width=80))
            print("sent")  # it is on the disk now, and will be done, whatever happens to this process
            print((await receipt.result(timeout=30)).text)
            await bus.publish(OrderPaid(order_id="o-1"))
            await packed.wait()


asyncio.run(main())
