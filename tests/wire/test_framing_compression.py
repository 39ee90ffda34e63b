"""gzip of single messages: bounded, checked to the end."""

from __future__ import annotations

import gzip
import tracemalloc

import pytest

from polywire.wire.compression import Corrupt, TooLarge, compress, decompress


@pytest.mark.parametrize("size", [0, 1, 16_384, 1_000_000])
def test_what_was_compressed_comes_back(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert decompress(compress(data), size) == data
    assert decompress(gzip.compress(data), size) == data
    assert gzip.decompress(compress(data)) == data


def test_a_bomb_is_refused_at_the_limit() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            decompress(bomb, 1_000_000)
        # Refused before it is inflated, not after: that alone would be the bomb.
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_one_byte_more_than_the_limit_is_too_much() -> None:
    assert len(decompress(gzip.compress(bytes(1000)), 1000)) == 1000
    with pytest.raises(TooLarge):
        decompress(gzip.compress(bytes(1001)), 1000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it ends too early"),
        (gzip.compress(b"abc", mtime=0)[:-1], "it ends too early"),
        (gzip.compress(b"abc", mtime=0) + b"x", "there are bytes after its end"),
        (gzip.compress(b"abc", mtime=0) * 2, "there are bytes after its end"),
        (gzip.compress(b"abc", mtime=0)[:-8] + b"\0" * 8, "Error -3 while decompressing data: incorrect data check"),
        (b"plain text", "Error -3 while decompressing data: incorrect header check"),
    ],
)
def test_anything_but_one_whole_stream_is_corrupt(data: bytes, reason: str) -> None:
    with pytest.raises(Corrupt) as caught:
        decompress(data, 1000)
    assert str(caught.value) == reason
