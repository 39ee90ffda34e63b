"""Newline-delimited JSON in a body: one document per line."""

from __future__ import annotations

from polywire.wire.framing import Frame, Frames
from polywire.wire.http.problem import BodyTooLarge


class Lines(Frames):
    """As `Frames`, for lines: empty ones are left out, and one of more than *limit* bytes sets *fault*."""

    __slots__ = ("_line",)

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._line = bytearray()

    @property
    def buffered(self) -> int:
        return len(self._line)

    def feed(self, data: bytes) -> list[Frame]:
        found: list[Frame] = []
        *complete, rest = data.split(b"\n")
        for piece in complete:
            self._keep(piece)
            line = bytes(self._line).strip(b" \t\r")
            self._line.clear()
            if line and self.fault is None:
                found.append((0, line))
        self._keep(rest)
        return found

    def _keep(self, piece: bytes) -> None:
        if self.fault is not None:
            return
        if len(self._line) + len(piece) > self.limit:
            self._line.clear()
            self.fault = BodyTooLarge(
                f"A line of more than {self.limit} bytes was not read. Split it, or raise `max_message_bytes` of the "
                "service."
            )
        else:
            self._line += piece
