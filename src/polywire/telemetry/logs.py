"""What the services say with `logging`, in the same manner as their access lines."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from json.encoder import encode_basestring_ascii

from polywire.context import current_or_none
from polywire.telemetry import names
from polywire.telemetry.access_log import LogFormat, Write, plain, quoted, stamp

MAX_MESSAGE = 8 * 1024
"""Characters of a message, and of a traceback."""


class LogHandler(logging.Handler):
    """Writes records as one line each, with the request id and trace id of the call they were made in.

    In text, a traceback follows in lines of its own, indented so that none of them can pass for a record; in JSON it
    is a field.
    """

    def __init__(
        self, write: Write, *, format: LogFormat = "text", service: str = "", before: Callable[[], None] | None = None
    ) -> None:
        super().__init__()
        self._write = write
        self._before = before
        self._service = service
        self._line = self._json if format == "json" else self._text

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
            if self._before is not None:
                self._before()
            self._write(line)
        except Exception:  # noqa: BLE001 - a log line that cannot be formatted must not fail what it tells about
            self.handleError(record)

    def _text(self, record: logging.LogRecord) -> str:
        message = _one_line(record.getMessage())
        line = f"{stamp(int(record.created * 1000))} {record.levelname:<7} {message} ({plain(record.name)})"
        call = current_or_none()
        if call is not None:
            line += f" method={plain(call.method)} request={plain(call.request_id)}"
            if call.traceparent is not None:
                line += f" trace={plain(call.traceparent[3:35])}"
        raised = _traceback(record)
        if raised:
            line += "".join(f"\n    {_one_line(part)}" for part in raised.splitlines())
        return line + "\n"

    def _json(self, record: logging.LogRecord) -> str:
        message = encode_basestring_ascii(_cut(record.getMessage()))
        line = (
            f'{{"{names.TIMESTAMP}":"{stamp(int(record.created * 1000))}","{names.SEVERITY}":{quoted(record.levelname)}'
        )
        if self._service:
            line += f',"{names.SERVICE}":{quoted(self._service)}'
        line += f',"{names.MESSAGE}":{message},"{names.LOGGER}":{quoted(record.name)}'
        call = current_or_none()
        if call is not None:
            line += f',"{names.METHOD}":{quoted(call.method)},"{names.REQUEST_ID}":{quoted(call.request_id)}'
            if call.traceparent is not None:
                line += f',"{names.TRACE_ID}":{quoted(call.traceparent[3:35])}'
        raised = _traceback(record)
        if raised:
            line += f',"{names.EXCEPTION}":{encode_basestring_ascii(raised)}'
        return line + "}\n"


def configure(
    write: Write,
    *,
    format: LogFormat = "text",
    level: int | str = logging.INFO,
    service: str = "",
    before: Callable[[], None] | None = None,
) -> LogHandler:
    """Send all that the process logs to *write*, in place of the handlers the root logger has.

    *before* is called ahead of each line; the access log's `flush` there keeps the two in order.
    """
    handler = LogHandler(write, format=format, service=service, before=before)
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(level)
    return handler


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."


def _one_line(text: str) -> str:
    """Text as it is, except for what is not printable: that could forge a line or command the terminal."""
    text = _cut(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _traceback(record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append("".join(traceback.format_exception(*record.exc_info)))
    elif record.exc_text:
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(record.stack_info)
    text = "\n".join(parts)
    # The end of a long traceback says more than its beginning.
    return text if len(text) <= MAX_MESSAGE else "..." + text[-MAX_MESSAGE:]
