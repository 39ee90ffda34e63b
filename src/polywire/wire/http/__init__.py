"""Calls over plain HTTP: REST routes and the Connect protocol, server and client."""

from polywire.wire.http.application import HttpApplication, Plain
from polywire.wire.http.connect_client import ConnectWire
from polywire.wire.http.rest_client import RestWire

__all__ = ["ConnectWire", "HttpApplication", "Plain", "RestWire"]
