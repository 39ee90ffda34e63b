"""Lists that are given out page by page: what a caller asks for, and what it gets."""

from __future__ import annotations

from collections.abc import Sequence
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


class PageLinks(Message):
    """Where the pages around this one are, as paths with a query. On REST they are in the `Link` header too."""

    first: str
    prev: str | None = None
    next: str | None = None
    last: str


class Page(Message):
    """One page of a list. Derive the answer of a resource from it: `class ProductPage(Page): items: list[Product]`."""

    total: int
    """Items on all pages together."""
    page: Int32
    limit: Int32
    pages: int
    """0 where the list is empty."""
    links: PageLinks | None = None
    """Filled in by the REST wire, which knows the path; None on the others."""


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


def links_of(page: Page, path: str, query: str) -> PageLinks:
    """The links of *page*, which was asked for at *path* with the query string *query* (both as they were sent)."""
    others = [pair for pair in query.split("&") if pair and pair.partition("=")[0] not in ("page", "limit")]

    def link(number: int) -> str:
        target = f"{path}?{'&'.join([*others, f'page={number}', f'limit={page.limit}'])}"
        return target.replace("<", "%3C").replace(">", "%3E")  # which would end it in a `Link` header

    last = max(page.pages, 1)
    return PageLinks(
        first=link(1),
        prev=link(min(page.page - 1, last)) if page.page > 1 else None,
        next=link(page.page + 1) if page.page < page.pages else None,
        last=link(last),
    )


def link_header(links: PageLinks) -> str:
    """The same as a `Link` header (RFC 8288)."""
    named = (("first", links.first), ("prev", links.prev), ("next", links.next), ("last", links.last))
    return ", ".join(f'<{link}>; rel="{name}"' for name, link in named if link is not None)
