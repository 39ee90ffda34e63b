"""What follows from orders, compared with what the customers did: letters, parcels, pictures, statistics, advice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from customers import Report
from shop.api_v1 import BackOffice, GatewayV1, NewThumb
from shop.backoffice import Activity
from shop.money import euros

from polywire import DeadlineExceeded, NotFound, Unavailable

QUIET = 0.3
"""Seconds without any change, after which nothing more is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aftermath:
    """How far the work that follows has come."""

    office: BackOffice
    activity: Activity
    letters: Counter[str]
    """By subject, as the mail server got them."""
    no_pictures: int
    """Pictures that were asked for and are not there."""


async def look(shop: GatewayV1, subjects: Counter[str], report: Report) -> Aftermath:
    office, activity, *pictures = await asyncio.gather(
        shop.get_backoffice(),
        shop.get_analytics(),
        *(_has_picture(shop, product_id) for product_id in report.pictures),
    )
    assert isinstance(office, BackOffice)
    assert isinstance(activity, Activity)
    return Aftermath(
        office=office, activity=activity, letters=Counter(subjects), no_pictures=sum(not there for there in pictures)
    )


async def _has_picture(shop: GatewayV1, product_id: str) -> bool:
    try:
        return bool((await shop.get_thumbnail(NewThumb(product_id=product_id))).png)
    except NotFound:
        return False


async def quiet(
    see: Callable[[], Awaitable[Aftermath]], done: Callable[[Aftermath], bool], within: float = 20.0
) -> Aftermath:
    """What *see* sees once it is *done* and no longer changes, or as it is after *within* seconds.

    Raises CallError where a service does not answer by then.
    """
    deadline = time.monotonic() + within
    before: Aftermath | None = None
    while True:
        late = time.monotonic() > deadline
        try:
            seen = await see()
        except (Unavailable, DeadlineExceeded):
            if late:
                raise
        else:
            if late or (seen == before and done(seen)):
                return seen
            before = seen
        await asyncio.sleep(QUIET)


def what_differs(before: Aftermath, after: Aftermath, report: Report) -> list[str]:
    """What does not add up between the back office and the customers, in sentences."""
    placed, stay = len(report.order_ids), len(report.order_ids) - report.cancelled
    parcels, parcels_before = after.office.parcels, before.office.parcels
    baskets, baskets_before = after.office.baskets, before.office.baskets
    grown = {
        "letters sent": (placed, after.office.mails.sent - before.office.mails.sent),
        "parcels packed": (stay, parcels.packed - parcels_before.packed),
        "parcels unpacked": (report.cancelled, parcels.unpacked - parcels_before.unpacked),
        "units in parcels": (report.units, parcels.units - parcels_before.units),
        "products looked at": (report.viewed, after.activity.views - before.activity.views),
        "orders in the statistics": (stay, after.activity.orders - before.activity.orders),
        "orders to learn from": (placed, baskets.orders - baskets_before.orders),
        "pairs of products bought together": (report.pairs, baskets.pairs - baskets_before.pairs),
    }
    problems = [
        f"There should be {wanted} {what}, and there are {there}."
        for what, (wanted, there) in grown.items()
        if wanted != there
    ]
    problems += _letter_problems(after.letters, report)
    earned = after.activity.revenue_cents - before.activity.revenue_cents
    if earned != report.spent_cents:
        problems.append(f"Customers spent {euros(report.spent_cents)}, the statistics have {euros(earned)}.")
    if after.no_pictures:
        problems.append(f"{after.no_pictures} of {len(report.pictures)} pictures that were asked for were not made.")
    return problems


def _letter_problems(letters: Counter[str], report: Report) -> list[str]:
    came = [letters[f"Your order {order_id}"] for order_id in report.order_ids]
    problems = []
    if missing := came.count(0):
        problems.append(f"{missing} of {len(came)} customers got no letter about their order.")
    if twice := sum(number > 1 for number in came):
        problems.append(f"{twice} of {len(came)} customers got more than one letter about their order.")
    return problems


def told(after: Aftermath, report: Report) -> str:
    """The lines of the summary."""
    office, activity = after.office, after.activity
    top = ", ".join(f"{one.product_id} ({one.views:,})" for one in activity.top[:3]) or "none"
    return f"""\
letters     {office.mails.sent:,} sent, {sum(after.letters.values()):,} in the postbox
parcels     {office.parcels.packed:,} packed with {office.parcels.units:,} units, {office.parcels.unpacked:,} unpacked
statistics  {activity.orders:,} orders, {euros(activity.revenue_cents)}; {activity.views:,} views, most of {top}
advice      {office.baskets.pairs:,} pairs of products in {office.baskets.orders:,} orders
pictures    {office.pictures.made:,} made, {len(report.pictures):,} asked for today
"""
