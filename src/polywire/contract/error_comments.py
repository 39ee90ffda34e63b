"""The last paragraph of a message's comment in a `.proto` file, which says that it is an error, and whose."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from polywire.errors import BY_CODE, REST_STATUSES, CallError

_PARAGRAPH = re.compile(r"Error ([A-Z_]+)(?: \(HTTP (\d{3})\))?(?: of ([A-Za-z0-9_., ]+))?\.\Z")


@dataclass(frozen=True, slots=True)
class ErrorComment:
    """`Error FAILED_PRECONDITION (HTTP 409) of Orders.Place, Orders.Cancel.`"""

    canonical: type[CallError]
    http_status: int | None
    raised_by: tuple[str, ...]
    """Rpcs: `Orders.Place`, or with the package, `shop.v1.Orders.Place`, where it is another than the message's."""


def error_comment(error: type[CallError], raised_by: Iterable[str], package: str) -> str:
    """The paragraph of an error in a file of *package*; *raised_by* has the full names of rpcs."""
    form = error.__form__
    status = "" if form is None or form.rest_status is None else f" (HTTP {form.rest_status})"
    names = ", ".join(_short(name, package) for name in raised_by)
    return f"Error {error.code.upper()}{status}{f' of {names}' if names else ''}."


def _short(name: str, package: str) -> str:
    short = name.removeprefix(f"{package}.") if package else name
    return short if short.count(".") == 1 else name


def read_error_comment(text: str) -> tuple[str, ErrorComment | None]:
    """A message's comment without the paragraph of an error, and what that says; None where there is none."""
    before, _, last = text.rpartition("\n\n")
    found = _PARAGRAPH.match(" ".join(last.split()))
    canonical = BY_CODE.get(found[1].lower()) if found else None
    if found is None or canonical is None:
        return text, None
    status = int(found[2]) if found[2] else None
    if status is not None and status not in REST_STATUSES.get(canonical.code, {canonical.http_status}):
        return text, None
    names = tuple(name.strip() for name in (found[3] or "").split(",") if name.strip())
    return before, ErrorComment(canonical, status, names)
