"""Connect keeps the rules of a call that every wire keeps, in both encodings and over both versions of HTTP."""

from __future__ import annotations

from http_support import connect, connect_json_compressed, connect_over_http1, serving

from polywire.testing.wires import WireSuite


class TestConnectWire(WireSuite):
    serving = serving(connect)


class TestConnectWireInCompressedJson(WireSuite):
    serving = serving(connect_json_compressed)


class TestConnectWireOverHttp1(WireSuite):
    bidirectional = False
    serving = serving(connect_over_http1)
