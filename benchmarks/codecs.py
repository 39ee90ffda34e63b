"""How long it takes to read and write the order and a small message: nanoseconds of CPU, the best of several rounds.

python benchmarks/codecs.py [--rounds 7] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
from google.protobuf import json_format

import messages
from polywire.codec import Format, codec_for
from polywire.codec.descriptors import runtime_class
from polywire.contract import Message

Row = tuple[str, Callable[[], Any], Callable[[], Any], int]


def rows(message: Message) -> list[Row]:
    """Name, decode, encode, bytes."""
    kind = type(message)
    made: list[Row] = []
    formats: tuple[Format, ...] = ("proto", "json", "protojson")
    for name in formats:
        codec = codec_for(kind, name)
        data = codec.encode(message)
        made.append((name, bound(codec.decode, data), bound(codec.encode, message), len(data)))
    runtime = runtime_class(kind)
    data = codec_for(kind, "proto").encode(message)
    parsed = runtime.FromString(data)
    made.append(("upb, message untouched", bound(runtime.FromString, data), parsed.SerializeToString, len(data)))
    rebuilt = bound(rebuild, message, runtime)
    made.append(("upb, all fields by name", lambda: touch(runtime.FromString(data)), rebuilt, len(data)))
    decoder, encoder = msgspec.json.Decoder(kind), msgspec.json.Encoder()
    text = encoder.encode(message)
    made.append(("msgspec JSON", bound(decoder.decode, text), bound(encoder.encode, message), len(text)))
    written = json_format.MessageToJson(parsed, indent=None)
    made.append(
        (
            "protobuf json_format",
            lambda: json_format.Parse(written, runtime()),
            lambda: json_format.MessageToJson(parsed, indent=None),
            len(written),
        )
    )
    return made


def bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def touch(parsed: Any) -> None:
    """Read every field once, as code that uses the runtime's own objects would."""
    for field in parsed.DESCRIPTOR.fields:
        value = getattr(parsed, field.name)
        if field.is_repeated and field.message_type:
            for element in value:
                touch(element)
        elif field.message_type:
            touch(value)


def rebuild(message: Any, runtime: Any) -> bytes:
    """Through the runtime's objects, built from ours."""
    built = runtime()
    fill(message, built)
    written: bytes = built.SerializeToString()
    return written


def fill(message: Any, built: Any) -> None:
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if isinstance(value, list):
            for element in value:
                fill(element, getattr(built, name).add())
        elif isinstance(value, Message):
            fill(value, getattr(built, name))
        elif isinstance(value, messages.State):
            setattr(built, name, 2)
        elif isinstance(value, messages.datetime):
            built.placed.FromDatetime(value)
        else:
            setattr(built, name, value)


def measure(function: Callable[[], Any], rounds: int) -> float:
    """Nanoseconds per call: the best round, as everything that disturbs only adds."""
    calls = 1
    while clocked(function, calls) < 0.01:
        calls *= 2
    return min(clocked(function, calls) for _ in range(rounds)) / calls * 1e9


def clocked(function: Callable[[], Any], calls: int) -> float:
    begin = time.process_time()
    for _ in range(calls):
        function()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = []
    for title, message in (("order", messages.order()), ("stock", messages.stock()), ("query", messages.query())):
        print(f"\n{title:28}{'decode ns':>12}{'encode ns':>12}{'bytes':>8}")
        for name, decode, encode, size in rows(message):
            row = {"message": title, "codec": name, "bytes": size}
            row["decode_ns"], row["encode_ns"] = (round(measure(f, arguments.rounds)) for f in (decode, encode))
            print(f"{name:28}{row['decode_ns']:>12}{row['encode_ns']:>12}{size:>8}")
            figures.append(row)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
