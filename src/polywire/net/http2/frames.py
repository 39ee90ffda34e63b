"""The numbers of RFC 9113: frame types, flags, settings, error codes, and how a frame is laid out."""

from __future__ import annotations

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA = 0x0
HEADERS = 0x1
PRIORITY = 0x2
RST_STREAM = 0x3
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8
CONTINUATION = 0x9

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITISED = 0x20

HEADER_TABLE_SIZE = 0x1
ENABLE_PUSH = 0x2
MAX_CONCURRENT_STREAMS = 0x3
INITIAL_WINDOW_SIZE = 0x4
MAX_FRAME_SIZE = 0x5
MAX_HEADER_LIST_SIZE = 0x6

DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_SIZE = 16_384
LARGEST_FRAME_SIZE = (1 << 24) - 1
LARGEST_WINDOW = (1 << 31) - 1
LARGEST_STREAM = (1 << 31) - 1

FRAME_HEADER_SIZE = 9
pack_header = struct.Struct(">IBI").pack
"""`pack_header(length << 8 | type, flags, stream)`, but for the length's topmost octet, which must be zero."""
unpack_header = struct.Struct(">IBI").unpack_from
pack_u32 = struct.Struct(">I").pack
unpack_u32 = struct.Struct(">I").unpack_from
pack_setting = struct.Struct(">HI").pack
iter_settings = struct.Struct(">HI").iter_unpack


class ErrorCode(IntEnum):
    """RFC 9113 section 7. Peers may send others; those are kept as plain numbers."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def code_name(code: int) -> str:
    """`CANCEL`, or `error 0x1f` for a code nobody defined."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"error {code:#x}"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return pack_header(len(payload) << 8 | kind, flags, stream) + payload


class ConnectionFault(Exception):
    """The peer broke a rule that no part of the connection survives: GOAWAY with *code*, then the end."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class StreamFault(Exception):
    """The peer broke a rule on one stream: RST_STREAM with *code*, and the others go on."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
