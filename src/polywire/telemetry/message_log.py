"""One structured line for every run of a message's handler."""

from __future__ import annotations

from json.encoder import encode_basestring_ascii

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.telemetry import names
from polywire.telemetry.lines import MAX_REMEMBERED, MAX_VALUE, Lines, LogFormat, Write, plain, quoted, trace_id

_Record = tuple[float, str, str, float, str, str | None, str, str, str | None, int]


class MessageLog(Lines[_Record]):
    """Writes a line per message, as the access log does per call. What is in a message never gets here."""

    __slots__ = ("_heads",)

    def __init__(
        self, write: Write, *, format: LogFormat = "text", service: str = "", clock: Clock = SYSTEM_CLOCK
    ) -> None:
        super().__init__(write, format=format, service=service, clock=clock)
        self._heads: dict[tuple[str, str, str, str | None], str] = {}

    def record(
        self,
        type: str,
        outcome: str,
        duration: float,
        destination: str,
        group: str | None,
        id: str,
        request_id: str,
        traceparent: str | None,
        attempt: int,
    ) -> None:
        """Log one run that has ended. To be called from the event loop.

        *outcome* as `names.OUTCOME` says; *duration* in seconds; *destination* is the queue or the topic.
        """
        waiting = self._waiting
        waiting.append((self._now(), type, outcome, duration, destination, group, id, request_id, traceparent, attempt))
        self._added()

    def _forget(self) -> None:
        if len(self._heads) > MAX_REMEMBERED:
            self._heads.clear()

    def _text(self, records: list[_Record]) -> list[str]:
        lines = []
        heads = self._heads
        tick, stamp = self._stamped, self._stamp
        for now, kind, outcome, duration, destination, group, message_id, request_id, traceparent, attempt in records:
            key = (kind, outcome, destination, group)
            head = heads.get(key) or self._text_head(key)
            more = f" request={plain(request_id)}" if request_id else ""
            trace = trace_id(traceparent)
            if trace is not None:
                more += f" trace={trace}"
            if attempt != 1:
                more += f" attempt={attempt}"
            if int(now * 1000) != tick:
                tick, stamp = self._new_stamp(now)
            lines.append(f"{stamp}{head}{duration * 1000:.2f} ms id={plain(message_id)}{more}\n")
        return lines

    def _json(self, records: list[_Record]) -> list[str]:
        lines = []
        heads = self._heads
        tick, stamp = self._stamped, self._stamp
        for now, kind, outcome, duration, destination, group, message_id, request_id, traceparent, attempt in records:
            key = (kind, outcome, destination, group)
            head = heads.get(key) or self._json_head(key)
            more = f',"{names.REQUEST_ID}":{encode_basestring_ascii(request_id[:MAX_VALUE])}' if request_id else ""
            trace = trace_id(traceparent)
            if trace is not None:
                more += f',"{names.TRACE_ID}":"{trace}"'
            if attempt != 1:
                more += f',"{names.ATTEMPT}":{attempt}'
            if int(now * 1000) != tick:
                tick, stamp = self._new_stamp(now)
            lines.append(f'{stamp}{head}{duration:.6f},"{names.MESSAGE_ID}":{quoted(message_id)}{more}}}\n')
        return lines

    def _text_head(self, key: tuple[str, str, str, str | None]) -> str:
        kind, outcome, destination, group = key
        head = f"{_severity(outcome):<7} {plain(kind)} {outcome.upper()} {plain(destination)} "
        if group is not None:
            head += f"group={plain(group)} "
        self._heads[key] = head
        return head

    def _json_head(self, key: tuple[str, str, str, str | None]) -> str:
        kind, outcome, destination, group = key
        head = f',"{names.SEVERITY}":"{_severity(outcome)}"'
        if self._service:
            head += f',"{names.SERVICE}":{quoted(self._service)}'
        head += f',"{names.MESSAGE_TYPE}":{quoted(kind)},"{names.OUTCOME}":{quoted(outcome)}'
        head += f',"{names.DESTINATION}":{quoted(destination)}'
        if group is not None:
            head += f',"{names.GROUP}":{quoted(group)}'
        head += f',"{names.DURATION}":'
        self._heads[key] = head
        return head


def _severity(outcome: str) -> str:
    if outcome in names.GOOD_OUTCOMES:
        return "INFO"
    return "WARNING" if outcome == "retry" else "ERROR"
