"""The orders as a FastAPI service declares them. (No postponed annotations: FastAPI reads them.)"""

from datetime import datetime
from enum import Enum

import msgspec
from benchmarks.calls.contract import ORDER
from fastapi import FastAPI
from pydantic import BaseModel


class State(Enum):
    PLACED = "placed"
    PAID = "paid"
    SHIPPED = "shipped"


class AddressModel(BaseModel):
    street: str
    city: str
    zip: str
    country: str


class ItemModel(BaseModel):
    sku: str
    name: str
    count: int
    cents: int


class OrderModel(BaseModel):
    id: str
    customer: str
    state: State
    placed: datetime
    address: AddressModel
    items: list[ItemModel]
    total: int
    note: str = ""


app = FastAPI()
_order = OrderModel.model_validate_json(msgspec.json.encode(ORDER))


@app.get("/orders/{order_id}")
async def get(order_id: str) -> OrderModel:
    return _order


@app.post("/orders")
async def post(order: OrderModel) -> OrderModel:
    return order
