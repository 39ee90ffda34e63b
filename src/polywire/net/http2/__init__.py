"""HTTP/2 (RFC 9113) without I/O: bytes in, calls out, and the other way round."""
