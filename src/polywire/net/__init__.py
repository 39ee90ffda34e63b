"""Bytes and connections: the listener, HTTP/1.1 and HTTP/2, and the client's connections."""
