"""Calls over plain HTTP: REST routes and the Connect protocol, server and client."""

from polywire.wire.http.application import HttpApplication, Plain

__all__ = ["HttpApplication", "Plain"]
