"""Addresses of backends, as errors and listings may show them."""

from __future__ import annotations

import re

_USERINFO = re.compile(r"(?<=//)([^/?#]*)@")
_SECRET = re.compile(r"(?i)([?&][^=&]*(?:password|secret|token|key)[^=&]*=)[^&#]*")


def masked(url: str) -> str:
    """*url* without its password: what stands between the user and the `@`, and parameters that sound like secrets."""
    shown = _USERINFO.sub(lambda found: found[1].partition(":")[0] + (":***@" if ":" in found[1] else "@"), url)
    return _SECRET.sub(r"\1***", shown)


def scheme_of(url: str) -> str:
    return url.partition(":")[0].lower()
