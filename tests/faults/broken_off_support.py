"""Tests of ends over TLS, with certificates of their own, as planted bugs are looked for without fixtures."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

test_tls = importlib.import_module("tests.net.test_tls")


async def handshakes_end_with_the_listener() -> None:
    with tempfile.TemporaryDirectory() as place:
        authority = test_tls.Authority(Path(place))
        await test_tls.test_connections_that_never_agree_on_tls_end_with_the_listener(authority, b"", "close")


async def goodbyes_are_not_waited_for() -> None:
    with tempfile.TemporaryDirectory() as place:
        authority = test_tls.Authority(Path(place))
        await test_tls.test_connections_whose_peers_take_no_leave_are_broken_off_by_both_sides("2", authority)
