"""REST keeps the rules of a call that every wire keeps."""

from __future__ import annotations

from http_support import rest, rest_over_http2, serving

from polywire.testing.wires import WireSuite


class TestRestWire(WireSuite):
    serving = serving(rest)


class TestRestWireOverHttp2(WireSuite):
    serving = serving(rest_over_http2)
