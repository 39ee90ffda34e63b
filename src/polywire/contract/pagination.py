"""Lists that are given out page by page: what a caller asks for, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from polywire.contract.fields import Field, Int32
from polywire.contract.message import Message

MAX_LIMIT = 100

P = TypeVar("P", bound="Page")


class PageQuery(Message):
    """Which page of a list. Derive a resource's query from it: `class ListProducts(PageQuery): category: str = ""`."""

    page: Annotated[Int32, Field(ge=1)] = 1
    limit: Annotated[Int32, Field(ge=1, le=MAX_LIMIT)] = 20
    """Items on a page."""

    @property
    def offset(self) -> int:
        """How many items come before this page, as in SQL's `LIMIT limit OFFSET offset`."""
        return (self.page - 1) * self.limit


class Page(Message):
    """One page of a list. Derive the answer of a resource from it: `class ProductPage(Page): items: list[Product]`."""

    total: int
    """Items on all pages together."""
    page: Int32
    limit: Int32
    pages: int
    """0 where the list is empty."""
    links: dict[str, str] = {}
    """`first`, `prev`, `next` and `last`: paths with a query, those that there are. Filled in by the REST wire, which
    knows where the page is; empty on the others. REST has them in the `Link` header too."""


def page_of(kind: type[P], items: Sequence[Any], *, total: int, query: PageQuery) -> P:
    """The answer to *query*: *items* are those of its page, *total* counts all.

    *kind* is the resource's own subclass of `Page`, with a field `items`. Whether *items* are right is checked when
    it is sent, as with every message.
    """
    fields: dict[str, Any] = {
        "items": list(items),
        "total": total,
        "page": query.page,
        "limit": query.limit,
        "pages": -(-total // query.limit),
    }
    return kind(**fields)


def links_of(page: Page, path: str, query: str) -> dict[str, str]:
    """The links of *page*, which was asked for at *path* with the query string *query* (both as they were sent)."""
    others = [pair for pair in query.split("&") if pair and pair.partition("=")[0] not in ("page", "limit")]
    last = max(page.pages, 1)
    numbers = {"first": 1}
    if page.page > 1:
        numbers["prev"] = min(page.page - 1, last)
    if page.page < page.pages:
        numbers["next"] = page.page + 1
    numbers["last"] = last
    links = {}
    for name, number in numbers.items():
        target = f"{path}?{'&'.join([*others, f'page={number}', f'limit={page.limit}'])}"
        links[name] = target.replace("<", "%3C").replace(">", "%3E")  # which would end it in a `Link` header
    return links


def link_header(links: Mapping[str, str]) -> str:
    """The same as a `Link` header (RFC 8288)."""
    return ", ".join(f'<{link}>; rel="{name}"' for name, link in links.items())
