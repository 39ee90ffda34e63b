"""What `logging` writes beside the access lines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from polywire.context import Call, _current
from polywire.telemetry import logs

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, which gets its handlers and level back."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
def under_way() -> Iterator[Call]:
    call = Call("shop.v1.Inventory/CheckStock", request_id="abc-1")
    call.traceparent = TRACE
    token = _current.set(call)
    yield call
    _current.reset(token)


def test_a_line_names_the_call_under_way(root: logging.Logger, under_way: Call) -> None:
    lines: list[str] = []
    logs.configure(lines.append)

    logging.getLogger("shop.stock").warning("only %d left", 3)

    assert lines[0][24:] == (
        " WARNING only 3 left (shop.stock) method=shop.v1.Inventory/CheckStock request=abc-1 "
        "trace=0af7651916cd43dd8448eb211c80319c\n"
    )


def test_json_has_the_same_as_fields_and_the_traceback_as_one(root: logging.Logger, under_way: Call) -> None:
    lines: list[str] = []
    logs.configure(lines.append, format="json", service="stock")

    try:
        raise ValueError("disk\nis full")
    except ValueError:
        logging.getLogger("shop.stock").exception("not saved")

    assert len(lines[0].splitlines()) == 1
    line = json.loads(lines[0])
    assert line.pop("timestamp").endswith("Z")
    assert line.pop("exception.stacktrace").endswith("ValueError: disk\nis full\n")
    assert line == {
        "severity": "ERROR",
        "service.name": "stock",
        "message": "not saved",
        "logger": "shop.stock",
        "rpc.method": "shop.v1.Inventory/CheckStock",
        "request_id": "abc-1",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }


def test_a_message_cannot_forge_a_line_and_a_traceback_is_indented(root: logging.Logger) -> None:
    lines: list[str] = []
    logs.configure(lines.append)

    try:
        raise ValueError("x\n2023-11-14T22:13:20.000Z INFO    forged")
    except ValueError:
        logging.getLogger("a").exception("one\ntwo \x1b[31m")

    first, *rest = lines[0].splitlines()
    assert first[24:] == " ERROR   one\\ntwo \\x1b[31m (a)"
    assert all(line.startswith("    ") for line in rest)


def test_lines_that_wait_elsewhere_are_written_before(root: logging.Logger) -> None:
    lines: list[str] = []
    logs.configure(lines.append, before=lambda: lines.append("access\n"))

    logging.getLogger("a").info("after")

    assert [line.split(" ")[-2:] for line in lines] == [["access\n"], ["after", "(a)\n"]]


def test_what_was_configured_before_is_replaced_and_debug_is_left_out(root: logging.Logger) -> None:
    first: list[str] = []
    second: list[str] = []
    logs.configure(first.append)
    logs.configure(second.append)

    logging.getLogger("a").debug("no")
    logging.getLogger("a").info("yes")

    assert (first, len(second)) == ([], 1)
