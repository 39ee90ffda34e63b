"""How the shop writes amounts for people."""

from __future__ import annotations

from decimal import Decimal


def euros(cents: int) -> str:
    return f"{Decimal(cents) / 100:,.2f} EUR"
