"""Messages: typed, validated values that travel."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, kw_only=True):
    """A value that travels. (Being completed.)"""
