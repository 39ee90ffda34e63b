"""One structured line for every call that a service answered."""

from __future__ import annotations

from json.encoder import encode_basestring_ascii

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.context import Call
from polywire.telemetry import names
from polywire.telemetry.lines import (
    FLUSH_COUNT,
    FLUSH_DELAY,
    MAX_REMEMBERED,
    MAX_VALUE,
    Lines,
    LogFormat,
    Write,
    plain,
    quoted,
    stamp,
)

__all__ = ["FLUSH_COUNT", "FLUSH_DELAY", "MAX_VALUE", "AccessLog", "LogFormat", "Write", "plain", "quoted", "stamp"]

_Record = tuple[float, str, str, float, str, str, str | None, str, str | None, int]


class AccessLog(Lines[_Record]):
    """Writes a line per call, in batches, so that a call pays about a microsecond for it.

    Lines wait for at most 50 ms or 255 others; `close` writes what is left. Values that a peer chose are quoted and
    escaped, so that none can forge a line or reach the terminal raw. What travels in a call never gets here.
    """

    __slots__ = ("_ends", "_heads")

    def __init__(
        self, write: Write, *, format: LogFormat = "text", service: str = "", clock: Clock = SYSTEM_CLOCK
    ) -> None:
        super().__init__(write, format=format, service=service, clock=clock)
        self._heads: dict[tuple[str, str, str], str] = {}
        self._ends: dict[tuple[str, str | None], str] = {}

    def record(self, call: Call, code: str, duration: float) -> None:
        """Log one call that has ended. To be called from the event loop.

        *code* is the canonical name as `CallError.code` has it, `"ok"` for success; *duration* is in seconds.
        """
        traceparent = call.traceparent
        if traceparent is not None and not (
            len(traceparent) == 55 and traceparent[3:35].isalnum() and traceparent.isascii()
        ):
            traceparent = None
        waiting = self._waiting
        # Taken out now: the call itself must not be kept alive, nor change before its line is written.
        waiting.append(
            (
                self._now(), call.method, code, duration, call.request_id, call.peer, call.caller, call.wire,
                traceparent, call.attempt,
            )
        )  # fmt: skip
        if len(waiting) == 1:
            self._timer = self._clock.call_later(FLUSH_DELAY, self.flush)
        elif len(waiting) >= FLUSH_COUNT:
            self.flush()

    def _forget(self) -> None:
        for remembered in (self._heads, self._ends):
            if len(remembered) > MAX_REMEMBERED:
                remembered.clear()

    # The two below are the price of a line, so each is one loop: what repeats from call to call is escaped once and
    # remembered, the rest goes into one f-string.

    def _text(self, records: list[_Record]) -> list[str]:
        lines = []
        heads, ends = self._heads, self._ends
        tick, stamp = self._stamped, self._stamp
        for now, method, code, duration, request_id, peer, caller, wire, traceparent, attempt in records:
            key = (method, code, wire)
            head = heads.get(key) or self._text_head(key)
            who = (peer, caller)
            end = ends.get(who) or self._text_end(who)
            if not request_id.isalnum() or not request_id.isascii() or len(request_id) > MAX_VALUE:
                request_id = plain(request_id)
            more = f" trace={traceparent[3:35]}" if traceparent is not None else ""
            if attempt != 1:
                more += f" attempt={attempt}"
            if int(now * 1000) != tick:
                tick, stamp = self._new_stamp(now)
            lines.append(f"{stamp}{head}{duration * 1000:.2f} ms{end}{request_id}{more}\n")
        return lines

    def _json(self, records: list[_Record]) -> list[str]:
        lines = []
        heads, ends = self._heads, self._ends
        tick, stamp = self._stamped, self._stamp
        for now, method, code, duration, request_id, peer, caller, wire, traceparent, attempt in records:
            key = (method, code, wire)
            head = heads.get(key) or self._json_head(key)
            who = (peer, caller)
            end = ends.get(who) or self._json_end(who)
            more = f',"{names.TRACE_ID}":"{traceparent[3:35]}"' if traceparent is not None else ""
            if attempt != 1:
                more += f',"{names.ATTEMPT}":{attempt}'
            if int(now * 1000) != tick:
                tick, stamp = self._new_stamp(now)
            request = encode_basestring_ascii(request_id[:MAX_VALUE])
            lines.append(f"{stamp}{head}{duration:.6f}{end}{request}{more}}}\n")
        return lines

    def _text_head(self, key: tuple[str, str, str]) -> str:
        method, code, wire = key
        head = f"{severity(code):<7} {plain(method)} {code.upper()} "
        if wire:
            head += f"{plain(wire)} "
        self._heads[key] = head
        return head

    def _text_end(self, who: tuple[str, str | None]) -> str:
        peer, caller = who
        end = f" peer={plain(peer)}"
        if caller is not None:
            end += f" caller={plain(caller)}"
        end += " request="
        self._ends[who] = end
        return end

    def _json_head(self, key: tuple[str, str, str]) -> str:
        method, code, wire = key
        head = f',"{names.SEVERITY}":"{severity(code)}"'
        if self._service:
            head += f',"{names.SERVICE}":{quoted(self._service)}'
        head += f',"{names.METHOD}":{quoted(method)},"{names.STATUS}":{quoted(code.upper())}'
        if wire:
            head += f',"{names.WIRE}":{quoted(wire)}'
        head += f',"{names.DURATION}":'
        self._heads[key] = head
        return head

    def _json_end(self, who: tuple[str, str | None]) -> str:
        peer, caller = who
        end = f',"{names.PEER}":{quoted(peer)}'
        if caller is not None:
            end += f',"{names.CALLER}":{quoted(caller)}'
        end += f',"{names.REQUEST_ID}":'
        self._ends[who] = end
        return end


def severity(code: str) -> str:
    return "ERROR" if code in names.SERVER_FAULTS else "INFO"
