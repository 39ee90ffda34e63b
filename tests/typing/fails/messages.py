"""Lines about messages that the type checkers refuse.

mypy does not look at the keywords of a class whose metaclass has its own `__new__`.
"""

from __future__ import annotations

from polywire import Message


class Card(Message, tag="card"):
    number: str


class Cash(Message, tag="cash"):
    pass


class Stock(Message, package="shop.v1"):
    product_id: str
    quantity: int = 0
    payment: Card | Cash | None = None
    tags: list[str] = []


Stock()  # error: a field is missing
Stock(product_id=5)  # error: wrong type
Stock(product_id="a", colour="red")  # error: no such field
Stock("a")  # error: fields have names
Stock(product_id="a", quantity="1")  # error: wrong type
Stock(product_id="a", quantity=None)  # error: never None
Stock(product_id="a", payment="cash")  # error: no member of the union
Stock(product_id="a", tags=[1])  # error: wrong elements

stock = Stock(product_id="a")
stock.quantity = "many"  # error: wrong type
print(stock.colour)  # error: no such field
text: str = stock.quantity  # error: it is an int
number: str = stock.payment.number  # error: it may be cash, or None


class Wrong(Message, package=5):  # pyright error: a package is text
    pass


class Unknown(Message, transparent="yes"):  # pyright error: a bool
    value: str
