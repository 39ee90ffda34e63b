"""Header compression: what RFC 7541 refuses, what the `hpack` library understands, and what is remembered."""

from __future__ import annotations

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import given, settings
from hypothesis import strategies as st

from polywire.net.hpack import STATIC_TABLE, Decoder, Encoder, HeaderListTooLarge, HpackError
from polywire.net.stream import Field, Headers


def decoder(max_bytes: int = 16_384, max_count: int = 100) -> Decoder:
    return Decoder(max_bytes, max_count)


def decode(block: bytes, by: Decoder | None = None) -> list[Field]:
    lead, rest = (by or decoder()).decode(block)
    return [*lead.fields, *rest]


def huffman(text: bytes) -> bytes:
    return bytes(HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text))


LITERAL = b"\x00\x01a"
INSERTS = b"\x40\x01a\x01b"

BEYOND = "the block ends inside a field, or an index is beyond the table"

REFUSALS = {
    "index 0": (b"\x80", "index 0 is not a field"),
    "index 0 after a field": (b"\x82\x80", "index 0 is not a field"),
    "index 0 written at length is beyond the prefix": (b"\xff\x80\x00", BEYOND),
    "an index one beyond the static table": (b"\xbe", "index 62 is beyond the table"),
    "an index one beyond the dynamic table": (INSERTS + b"\xbf", BEYOND),
    "an index far beyond": (b"\xff\xff\x7f", BEYOND),
    "a name beyond the table": (b"\x7e\x01b", BEYOND),
    "an integer without end": (b"\xff\xff\xff\xff\xff\xff\xff\x01", "an integer is too large"),
    "a length without end": (b"\x00\x7f\xff\xff\xff\xff\xff\x01a", "an integer is too large"),
    "a lone 0x40": (b"\x40", BEYOND),
    "an integer cut off": (b"\xff\x80", BEYOND),
    "a name cut off": (b"\x00\x05abc", BEYOND),
    "a value cut off": (LITERAL + b"\x05abc", "the block ends inside a field"),
    "a value cut off in an insertion": (b"\x40\x01a\x05abc", "the block ends inside a field"),
    "a long value cut off": (LITERAL + b"\x7f\x80\x01abc", "the block ends inside a string"),
    "a value missing": (LITERAL, BEYOND),
    "a size update after a field": (b"\x82\x20", "the table's size changes after a field"),
    "a size update after a literal": (LITERAL + b"\x01b\x20", "the table's size changes after a field"),
    "a size update too large": (b"\x3f\xe2\x1f", "the table's new size of 4097 is beyond the 4096 that were allowed"),
    "the end mark in a string": (LITERAL + b"\x84\xff\xff\xff\xff", "a string is not in the Huffman code"),
    "a whole octet of padding": (LITERAL + b"\x82" + huffman(b"0")[:1] + b"\xff", None),
    "padding of zeros": (LITERAL + b"\x81\x18", "the padding of a string in the Huffman code is not all ones"),
    "padding alone": (LITERAL + b"\x81\xff", None),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_rfc_7541_refuses_is_refused(name: str) -> None:
    block, words = REFUSALS[name]
    with pytest.raises(HpackError) as refused:
        decode(block)
    assert words is None or str(refused.value) == words


def test_a_table_that_was_not_shrunk_after_its_limit_was_lowered_is_refused() -> None:
    lowered = decoder()
    lowered.set_table_size(100)
    with pytest.raises(HpackError) as refused:
        decode(b"\x82", lowered)
    assert str(refused.value) == "the peer did not shrink its table after it was told to"


def test_a_shrunk_table_is_accepted_and_has_forgotten() -> None:
    lowered = decoder()
    assert decode(INSERTS + b"\xbe", lowered) == [(b"a", b"b"), (b"a", b"b")]
    lowered.set_table_size(0)
    assert decode(b"\x20\x82", lowered) == [(b":method", b"GET")]
    with pytest.raises(HpackError):
        decode(b"\xbe", lowered)


def test_a_field_larger_than_the_table_empties_it_and_is_no_error() -> None:
    table = decoder(max_bytes=100_000)
    decode(INSERTS, table)
    large = b"v" * 5000
    assert decode(hpack_literal(b"a", large, 0x40), table) == [(b"a", large)]
    with pytest.raises(HpackError):
        decode(b"\xbe", table)


def hpack_literal(name: bytes, value: bytes, first: int) -> bytes:
    integer = hpack.hpack.encode_integer
    return bytes((first,)) + bytes(integer(len(name), 7)) + name + bytes(integer(len(value), 7)) + value


def test_the_static_table_is_that_of_the_rfc() -> None:
    assert list(STATIC_TABLE) == [(bytes(name), bytes(value)) for name, value in HeaderTable.STATIC_TABLE]


@given(st.binary(max_size=300))
def test_every_huffman_string_that_a_judge_writes_is_read(text: bytes) -> None:
    encoded = huffman(text)
    block = LITERAL + bytes(hpack.hpack.encode_integer(len(encoded), 7))
    block = LITERAL + bytes((block[3] | 0x80,)) + block[4:] + encoded
    assert decode(block) == [(b"a", text)]


names = st.sampled_from(
    [b":path", b"content-type", b"x-a", b"cookie", b"authorization", b"x" * 130, b"accept-encoding"]
)
values = st.one_of(st.sampled_from([b"", b"a", b"gzip, deflate", b"v" * 300]), st.binary(max_size=40))
lists = st.lists(st.tuples(names, values), max_size=8)


@given(st.lists(st.tuples(lists, st.booleans(), st.sampled_from([None, 0, 100, 1000, 4096])), max_size=12))
def test_blocks_of_the_hpack_library_are_read_whatever_it_does_to_the_table(
    blocks: list[tuple[list[Field], bool, int | None]],
) -> None:
    theirs, ours = hpack.Encoder(), decoder(1 << 20, 1000)
    for fields, compress, size in blocks:
        if size is not None:
            theirs.header_table_size = size
        assert decode(theirs.encode(fields, huffman=compress), ours) == fields


@given(st.lists(lists, min_size=1, max_size=5), st.data())
def test_the_hpack_library_reads_our_blocks_through_every_change_of_the_table(
    shared: list[list[Field]], data: st.DataObject
) -> None:
    ours, theirs = Encoder(), hpack.Decoder()
    objects = [Headers(fields) for fields in shared]
    for _ in range(12):
        if data.draw(st.booleans()):
            size = data.draw(st.sampled_from([0, 100, 500, 4096, 65_536]))
            ours.set_table_size(size)
            theirs.max_allowed_table_size = size
        headers, tail = data.draw(st.sampled_from(objects)), data.draw(lists)
        assert [tuple(field) for field in theirs.decode(ours.encode(headers, tail), raw=True)] == [
            *headers.fields,
            *tail,
        ]


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_fields_or_refused(block: bytes) -> None:
    try:
        ours = decode(block)
    except (HpackError, HeaderListTooLarge):
        return
    assert ours == [tuple(field) for field in hpack.Decoder().decode(block, raw=True)]


CALL = Headers(
    (
        (b":method", b"POST"),
        (b":path", b"/a.B/C"),
        (b"content-type", b"application/grpc"),
        (b"authorization", b"Bearer t"),
    )
)


def test_headers_sent_again_are_one_octet_for_each_field_and_one_object_at_the_reader() -> None:
    ours, theirs = Encoder(), decoder()
    for _ in range(3):
        theirs.decode(ours.encode(CALL))
    block = ours.encode(CALL)
    assert len(block) == len(CALL.fields)
    first, _ = theirs.decode(block)
    second, rest = theirs.decode(ours.encode(CALL, ((b"grpc-timeout", b"1S"),)))
    assert first is second
    assert rest == ((b"grpc-timeout", b"1S"),)


def test_the_same_leading_fields_are_the_same_object_though_their_indices_moved() -> None:
    theirs, ours = hpack.Encoder(), decoder()
    ours.decode(theirs.encode(list(CALL.fields)))
    first, _ = ours.decode(theirs.encode(list(CALL.fields)))
    ours.decode(theirs.encode([(b"x-new", b"1")]))
    second, _ = ours.decode(theirs.encode(list(CALL.fields)))
    assert first is second


def test_the_same_octets_mean_other_fields_once_the_table_has_changed() -> None:
    ours = decoder()
    decode(INSERTS, ours)
    assert decode(b"\xbe", ours) == [(b"a", b"b")]
    decode(b"\x40\x01c\x01d", ours)
    assert decode(b"\xbe", ours) == [(b"c", b"d")]
    assert decode(b"\xbf", ours) == [(b"a", b"b")]
    decode(b"\x20\x3f\xe1\x1f" + b"\x40\x01e\x01f", ours)
    assert decode(b"\xbe", ours) == [(b"e", b"f")]


def test_a_path_is_taught_only_when_its_headers_come_again() -> None:
    ours = Encoder()
    for number in range(200):
        ours.encode(Headers(((b":method", b"GET"), (b":path", b"/orders/%d" % number))))
    ours.encode(CALL)
    ours.encode(CALL)
    block = ours.encode(CALL)
    assert len(block) == len(CALL.fields)


def test_a_full_table_is_left_alone() -> None:
    ours, theirs = Encoder(), hpack.Decoder()
    many = [Headers(((b"x-number", b"%04d" % number * 20),)) for number in range(100)]
    for headers in many * 3:
        assert [tuple(field) for field in theirs.decode(ours.encode(headers), raw=True)] == list(headers.fields)


@pytest.mark.parametrize("name", [b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"])
def test_secrets_in_a_tail_are_never_indexed(name: bytes) -> None:
    block = Encoder().encode(Headers(()), ((name, b"secret"),))
    assert block[0] & 0xF0 == 0x10


def test_cookies_are_never_taught() -> None:
    ours = Encoder()
    headers = Headers(((b"cookie", b"a=b"),))
    assert [ours.encode(headers)[0] & 0xF0 for _ in range(4)] == [0x10] * 4


def test_a_bomb_of_indices_is_not_materialised_and_the_table_stays_right() -> None:
    bombed = decoder(16_384, 10_000)
    with pytest.raises(HeaderListTooLarge):
        bombed.decode(hpack_literal(b"a", b"v" * 4000, 0x40) + b"\xbe" * 60_000)
    with pytest.raises(HeaderListTooLarge):
        bombed.decode(b"\xbe" * 60_000)
    with pytest.raises(HeaderListTooLarge):
        bombed.decode(b"\xbe" * 9)
    assert decode(b"\xbe", bombed) == [(b"a", b"v" * 4000)]


def test_too_many_fields_are_too_large_and_what_they_taught_is_kept() -> None:
    small = decoder(16_384, 3)
    with pytest.raises(HeaderListTooLarge):
        small.decode(b"\x82" * 4)
    with pytest.raises(HeaderListTooLarge):
        small.decode(b"\x82" * 4 + INSERTS)
    with pytest.raises(HeaderListTooLarge):
        small.decode(b"\x82" * 3 + INSERTS)
    assert decode(b"\xbe", small) == [(b"a", b"b")]


def test_memory_for_blocks_seen_before_is_bounded() -> None:
    ours = decoder()
    for number in range(5000):
        ours.decode(bytes(0x81 + (number >> shift & 0x0F) for shift in (0, 4, 8, 12)))
    assert len(ours._leads) <= 512
    assert len(ours._interned) <= 512
