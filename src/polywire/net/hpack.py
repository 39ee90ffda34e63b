"""Header compression of HTTP/2 (RFC 7541): a strict decoder that recognises what it saw before, and a cheap encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from jh2._hazmat import Decoder as NativeDecoder  # type: ignore[import-untyped]  # it has no stubs

from polywire.net.stream import HeadersTooLarge

if TYPE_CHECKING:
    from polywire.net.stream import Field, Head, Headers

DEFAULT_TABLE_SIZE = 4096
"""Of the dynamic table where nobody said otherwise (RFC 9113 section 6.5.2)."""

_STATIC = (
    b":authority= :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https "
    b":status=200 :status=204 :status=206 :status=304 :status=400 :status=404 :status=500 accept-charset= "
    b"accept-encoding=gzip,_deflate accept-language= accept-ranges= accept= access-control-allow-origin= "
    b"age= allow= authorization= cache-control= content-disposition= content-encoding= content-language= "
    b"content-length= content-location= content-range= content-type= cookie= date= etag= expect= expires= "
    b"from= host= if-match= if-modified-since= if-none-match= if-range= if-unmodified-since= "
    b"last-modified= link= location= max-forwards= proxy-authenticate= proxy-authorization= range= "
    b"referer= refresh= retry-after= server= set-cookie= strict-transport-security= transfer-encoding= "
    b"user-agent= vary= via= www-authenticate= "
)
"""RFC 7541 appendix A; an underscore stands for the one space in it."""


def _static_fields() -> list[Field]:
    pairs = [entry.partition(b"=") for entry in _STATIC.split()]
    return [(name, value.replace(b"_", b" ")) for name, _, value in pairs]


STATIC_TABLE: tuple[Field, ...] = tuple(_static_fields())
FIRST_DYNAMIC = len(STATIC_TABLE) + 1
ENTRY_OVERHEAD = 32
"""Octets that each field counts beyond its name and value, in tables and in lists (RFC 7541 section 4.1)."""

_STATIC_FIELDS = {field: index for index, field in enumerate(STATIC_TABLE, 1)}
_STATIC_NAMES = {name: index for index, (name, _) in reversed(list(enumerate(STATIC_TABLE, 1)))}

_INDEXED_RUN = re.compile(rb"[\x81-\xfe]*").match
_MAX_CACHED = 512
_MAX_VARINT_SHIFT = 28
"""Four continuation octets hold every length and index that could be meant; more is an overflow or an attack."""

_HUFFMAN_BITS = bytes(
    int(digit, 36)
    for digit in (
        "dnsssssssoussussssssssusssssssss6aacd68baa8b8666555666666678f6ca"
        "d67777777777777777777777878djde6f56565666577666567655677777fbeds"
        "kmkkmmmnmnnnnnonoomnonnnnlmnmnnomlkmmnnlnmmolmnnllmlnmnnkmmmnmmn"
        "qqkjmnmpqqqrrqopjlqrrqrollqqsrrrkoklmllnmmppooqnqrqqrrrrrsrrrrrq"
    )
)
"""How many bits each octet has in the code of RFC 7541 appendix B, one digit each."""


_native_decode = NativeDecoder(1 << 24).decode
"""Asked for single strings alone, as literals without indexing; these leave nothing behind, so all may share it."""


class HpackError(Exception):
    """The block is not HPACK. The two tables no longer agree, so the connection must end with COMPRESSION_ERROR."""


class HeaderListTooLarge(Exception):
    """The list is beyond the limit. It was not kept, but the table took part: the connection goes on."""


class Lead:
    """The leading run of indexed fields of a block; the same object whenever the same fields lead again.

    *head*, *length* and *trailers* belong to whoever judges the fields: what was worked out once need not be again.
    """

    __slots__ = ("fields", "head", "length", "size", "trailers")

    def __init__(self, fields: tuple[Field, ...], size: int) -> None:
        self.fields = fields
        self.size = size
        self.head: Head | None = None
        self.length = -1
        self.trailers: tuple[Field, ...] | None = None


class Decoder:
    """Turns header blocks into fields, keeping the dynamic table of one connection.

    A run of indexed fields at the start of a block changes nothing in the table. So it is looked up as bytes while
    the table stays as it is, and comes back as the same `Lead`.
    """

    __slots__ = (
        "_allowed",
        "_capacity",
        "_fields",
        "_interned",
        "_leads",
        "_max_bytes",
        "_max_count",
        "_must_shrink",
        "_used",
    )

    def __init__(self, max_list_bytes: int, max_list_count: int, table_size: int = DEFAULT_TABLE_SIZE) -> None:
        self._max_bytes = max_list_bytes
        self._max_count = max_list_count
        self._allowed = table_size
        self._capacity = table_size
        self._used = 0
        self._must_shrink = False
        # Static and dynamic entries in one list, so that an index is looked up once. Entry 0 only fills the place.
        self._fields: list[Field] = [(b"", b""), *STATIC_TABLE]
        self._leads: dict[bytes, Lead] = {}
        self._interned: dict[tuple[Field, ...], Lead] = {}

    def set_table_size(self, size: int) -> None:
        """Announced to the peer and acknowledged: from now on its table may be at most *size*."""
        if size < self._capacity:
            self._must_shrink = True
        self._allowed = size

    def decode(self, block: bytes) -> tuple[Lead, tuple[Field, ...]]:
        """The leading indexed fields and all that follow.

        Raises HpackError, after which the decoder is of no use, or HeaderListTooLarge.
        """
        if self._must_shrink and not (block and 0x20 <= block[0] < 0x40):
            raise HpackError("the peer did not shrink its table after it was told to")
        # A block that is all indices and was seen before: answers and trailers, call after call.
        lead = self._leads.get(block)
        if lead is not None:
            return lead, ()
        end: int = _INDEXED_RUN(block).end()  # type: ignore[union-attr]  # it matches the empty run too
        run = block[:end]
        lead = self._leads.get(run)
        if lead is None:
            lead = self._new_lead(run)
            if lead.size > self._max_bytes and end == len(block):
                raise HeaderListTooLarge
        if end == len(block):
            return lead, ()
        return lead, self._rest(block, end, self._max_bytes - lead.size, self._max_count - len(lead.fields))

    def _new_lead(self, run: bytes) -> Lead:
        table = self._fields
        if run and max(run) & 0x7F >= len(table):
            raise HpackError(f"index {max(run) & 0x7F} is beyond the table")
        # An indexed field costs the peer one octet and us a whole entry, so an endless run is not materialised.
        # Nothing in it changes the table: it can be left out. Its size makes `_rest` keep nothing of what follows.
        if len(run) > self._max_count:
            return Lead((), self._max_bytes + 1)
        fields = tuple([table[octet & 0x7F] for octet in run])
        lead = self._interned.get(fields)
        if lead is None:
            lead = Lead(fields, sum([len(name) + len(value) + ENTRY_OVERHEAD for name, value in fields]))
            if lead.size > self._max_bytes:
                return lead
            _bounded_put(self._interned, fields, lead)
        _bounded_put(self._leads, run, lead)
        return lead

    def _rest(self, block: bytes, pos: int, room: int, count: int) -> tuple[Field, ...]:
        """Fields from *pos* on, at most *room* bytes and *count* of them, and whatever they do to the table.

        One long loop: it runs for every call with metadata of its own, and each function call in it costs as much
        as the field.
        """
        fields: list[Field] = []
        end = len(block)
        leading = pos == 0
        try:
            while pos < end:
                first = block[pos]
                if first < 0x20:  # literal without indexing, or never indexed
                    index = first & 0x0F
                    if index == 0:
                        length = block[pos + 1]
                        if length < 0x7F:
                            start = pos + 2
                            pos = start + length
                            name = block[start:pos]
                        else:
                            name, pos = self._string(block, pos + 1)
                    else:
                        index, pos = _integer(block, pos, 0x0F)
                        name = self._fields[index][0]
                elif first >= 0x80:
                    index, pos = _integer(block, pos, 0x7F)
                    if index == 0:
                        raise HpackError("index 0 is not a field")
                    field = self._fields[index]
                    name, value = field
                    room -= len(name) + len(value) + ENTRY_OVERHEAD
                    if room >= 0:
                        fields.append(field)
                    leading = False
                    continue
                elif first >= 0x40:  # literal with incremental indexing
                    index, pos = _integer(block, pos, 0x3F)
                    if index:
                        name = self._fields[index][0]
                    else:
                        name, pos = self._string(block, pos)
                else:
                    if not leading:
                        raise HpackError("the table's size changes after a field")
                    size, pos = _integer(block, pos, 0x1F)
                    self._resize(size)
                    continue
                length = block[pos]
                if length < 0x7F:
                    start = pos + 1
                    pos = start + length
                    value = block[start:pos]
                else:
                    value, pos = self._string(block, pos)
                field = (name, value)
                if first >= 0x40:
                    if pos > end:
                        break
                    self._insert(field)
                room -= len(name) + len(value) + ENTRY_OVERHEAD
                if room >= 0:
                    fields.append(field)
                leading = False
        except IndexError:
            # Of the block, which ended inside a field, or of the table. Which of the two changes nothing.
            raise HpackError("the block ends inside a field, or an index is beyond the table") from None
        if pos > end:
            raise HpackError("the block ends inside a field")
        if room < 0 or len(fields) > count:
            raise HeaderListTooLarge
        return tuple(fields)

    def _string(self, block: bytes, pos: int) -> tuple[bytes, int]:
        encoded = block[pos] & 0x80
        length, pos = _integer(block, pos, 0x7F)
        end = pos + length
        if end > len(block):
            raise HpackError("the block ends inside a string")
        return (self._plain(block[pos:end]) if encoded else block[pos:end]), end

    def _plain(self, encoded: bytes) -> bytes:
        """Undo the Huffman code. The native decoder takes any padding, so the octets' code lengths are added up."""
        literal = b"\x00\x01-" + encode_integer(len(encoded), 0x7F, 0x80) + encoded
        try:
            value = cast("bytes", _native_decode(literal, True)[0][1])
        except Exception as error:
            raise HpackError("a string is not in the Huffman code") from error
        padding = 8 * len(encoded) - sum(value.translate(_HUFFMAN_BITS))
        if not 0 <= padding < 8:
            raise HpackError("a string in the Huffman code contains its end mark, or more than 7 bits of padding")
        mask = (1 << padding) - 1
        if padding and encoded[-1] & mask != mask:
            raise HpackError("the padding of a string in the Huffman code is not all ones")
        return value

    def _insert(self, field: Field) -> None:
        size = len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
        self._evict(self._capacity - size)
        if size <= self._capacity:
            self._fields.insert(FIRST_DYNAMIC, field)
            self._used += size
        self._leads.clear()

    def _resize(self, size: int) -> None:
        if size > self._allowed:
            raise HpackError(f"the table's new size of {size} is beyond the {self._allowed} that were allowed")
        self._must_shrink = False
        self._capacity = size
        self._evict(size)
        self._leads.clear()

    def _evict(self, room: int) -> None:
        fields = self._fields
        while self._used > room and len(fields) > FIRST_DYNAMIC:
            name, value = fields.pop()
            self._used -= len(name) + len(value) + ENTRY_OVERHEAD


class Encoder:
    """Turns fields into header blocks for one connection.

    What comes as a `Headers` object is taught to the peer's table and is a run of one-octet indices from then on;
    whatever is in a tail travels as it is. Entries are never evicted: once the table is full no more are added, so
    an encoding stays right until the peer changes the size of its table.

    `authorization` in a `Headers` object is indexed. RFC 7541 section 7.1.3 warns of an attacker who puts guesses
    beside a secret and watches lengths: only whole values can be guessed, tokens are too long for that, and nobody
    but our own process writes on this connection. Cookies may be short and are never indexed.
    """

    __slots__ = (
        "_capacity",
        "_max_list",
        "_names",
        "_order",
        "_ready",
        "_seen",
        "_surely_fits",
        "_update",
        "_used",
    )

    def __init__(self) -> None:
        self._max_list = self._surely_fits = 1 << 32
        self._capacity = DEFAULT_TABLE_SIZE
        self._used = 0
        self._update = b""
        self._order: dict[Field, int] = {}
        self._ready: dict[Headers, bytes] = {}
        self._seen: dict[Headers, None] = {}
        self._names: dict[bytes, bytes] = {}

    def set_table_size(self, size: int) -> None:
        """The peer's SETTINGS_HEADER_TABLE_SIZE. Nothing changes where it is not below what we use."""
        if size >= self._capacity:
            return
        # Emptying it first names the smallest size in between too, which RFC 7541 section 4.2 asks for.
        self._capacity = size
        self._update = b"\x20" + encode_integer(size, 0x1F, 0x20)
        self._used = 0
        self._order.clear()
        self._ready.clear()
        self._seen.clear()

    def set_max_list_size(self, size: int) -> None:
        """The peer's SETTINGS_MAX_HEADER_LIST_SIZE."""
        self._max_list = size
        # An octet of a block stands for at most 64 of a list: an index for the longest static entry. Only the fields in
        # the dynamic table are longer, and all of them together fill at most the table.
        self._surely_fits = (size - DEFAULT_TABLE_SIZE) // 64
        self._ready.clear()

    def _check_size(self, headers: Headers, tail: Sequence[Field]) -> None:
        size = sum([len(name) + len(value) + ENTRY_OVERHEAD for name, value in (*headers.fields, *tail)])
        if size > self._max_list:
            raise HeadersTooLarge(
                f"the headers are {size} bytes, as HTTP/2 counts them, and the other side takes {self._max_list}",
                reached=False,
            )

    def encode(self, headers: Headers, tail: Sequence[Field] = ()) -> bytes:
        """The block; it has to be sent. Raises HeadersTooLarge, which changes nothing."""
        block = self._ready.get(headers)
        if block is None:
            # Before anything is taught: what is taught has to arrive.
            self._check_size(headers, tail)
            block = self._first_blocks(headers)
        if not tail:
            return block
        names = self._names
        parts = [block]
        for name, value in tail:
            length = len(value)
            parts += (
                names.get(name) or self._literal_name(name),
                _OCTETS[length] if length < 0x7F else encode_integer(length, 0x7F, 0),
                value,
            )
        block = b"".join(parts)
        if len(block) > self._surely_fits:
            self._check_size(headers, tail)
        return block

    def _first_blocks(self, headers: Headers) -> bytes:
        """Encode *headers* the first times, teaching the peer, until nothing is left to teach.

        A path is taught only once the same object comes again: a wire that makes headers for one call only
        (`/orders/17`) would fill the table with what never comes back.
        """
        again = headers in self._seen
        parts = [self._update]
        self._update = b""
        settled = True
        for field in headers.fields:
            index = _STATIC_FIELDS.get(field) or self._index(field)
            if index:
                parts.append(encode_integer(index, 0x7F, 0x80))
            elif self._teachable(field) and (again or field[0] != b":path"):
                parts.append(_literal(field, 0x40, 0x3F))
                self._teach(field)
                settled = False
            else:
                parts.append(self._literal_name(field[0]) + encode_integer(len(field[1]), 0x7F, 0) + field[1])
        block = b"".join(parts)
        if not again:
            if len(self._seen) >= _MAX_CACHED:
                self._seen.clear()
            self._seen[headers] = None
        elif settled and len(self._ready) < _MAX_CACHED:
            del self._seen[headers]
            self._ready[headers] = block
        return block

    def _index(self, field: Field) -> int:
        position = self._order.get(field)
        return 0 if position is None else FIRST_DYNAMIC - 1 + len(self._order) - position

    def _teachable(self, field: Field) -> bool:
        name, value = field
        size = len(name) + len(value) + ENTRY_OVERHEAD
        return name not in _NEVER_INDEXED_IN_HEADERS and self._used + size <= self._capacity

    def _teach(self, field: Field) -> None:
        self._used += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
        self._order[field] = len(self._order)
        self._ready.clear()

    def _literal_name(self, name: bytes) -> bytes:
        first = 0x10 if name in _NEVER_INDEXED else 0
        index = _STATIC_NAMES.get(name)
        prefix = (
            encode_integer(index, 0x0F, first) if index else _OCTETS[first] + encode_integer(len(name), 0x7F, 0) + name
        )
        _bounded_put(self._names, name, prefix)
        return prefix


_NEVER_INDEXED_IN_HEADERS = frozenset({b"cookie", b"set-cookie"})
_NEVER_INDEXED = _NEVER_INDEXED_IN_HEADERS | {b"authorization", b"proxy-authorization"}
_OCTETS = tuple(bytes((octet,)) for octet in range(256))


def _literal(field: Field, first: int, limit: int) -> bytes:
    name, value = field
    index = _STATIC_NAMES.get(name, 0)
    spelled = b"" if index else encode_integer(len(name), 0x7F, 0) + name
    return encode_integer(index, limit, first) + spelled + encode_integer(len(value), 0x7F, 0) + value


def encode_integer(number: int, limit: int, first: int) -> bytes:
    """RFC 7541 section 5.1: *limit* is the largest prefix (2^N - 1), *first* the bits above it."""
    if number < limit:
        return _OCTETS[first | number]
    octets = bytearray((first | limit,))
    number -= limit
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def _integer(block: bytes, pos: int, limit: int) -> tuple[int, int]:
    number = block[pos] & limit
    pos += 1
    if number < limit:
        return number, pos
    shift = 0
    while True:
        octet = block[pos]
        pos += 1
        number += (octet & 0x7F) << shift
        if octet < 0x80:
            return number, pos
        shift += 7
        if shift >= _MAX_VARINT_SHIFT:
            raise HpackError("an integer is too large")


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def _bounded_put(cache: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    if len(cache) >= _MAX_CACHED:
        cache.clear()
    cache[key] = value
