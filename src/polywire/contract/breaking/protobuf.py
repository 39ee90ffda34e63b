"""The protobuf side of a comparison: files, and what is gone from them or from their packages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.protobuf import descriptor_pb2

from polywire.contract.breaking.described import FileProto, Index, Path, Placed
from polywire.contract.breaking.findings import Category, Finding
from polywire.contract.breaking.protobuf_rules import FILE_OPTIONS, PROTOBUF_RULES

_OPTIONS = descriptor_pb2.FileOptions.DESCRIPTOR.fields_by_name
_DECLARED = ("service", "message", "enum", "extension")


def found(
    rule: str, where: str, change: str, new: Index, file: FileProto | None = None, *path: int, old_file: str = ""
) -> Finding:
    """A finding of the protobuf side, at *path* of *file*, which is one of NEW."""
    return Finding(
        rule=PROTOBUF_RULES[rule],
        where=where,
        change=change,
        file=file.name if file is not None else old_file,
        line=new.line(file, *path) if file is not None else 0,
    )


def compare_files(old: Index, new: Index) -> Iterator[Finding]:
    for name, before in old.files.items():
        after = new.files.get(name)
        if after is None:
            yield found("FILE_NO_DELETE", name, f"The file {name!r} is gone.", new, old_file=name)
        else:
            yield from _compare_file(before, after, new)
    packages = {file.package for file in new.files.values()}
    for file in old.files.values():
        if file.package not in packages:
            packages.add(file.package)
            change = f"The package {file.package!r} is gone."
            yield found("PACKAGE_NO_DELETE", file.package, change, new)
    for what in _DECLARED:
        yield from _gone(what, _placed(old, what), _placed(new, what), new)


def _placed(index: Index, what: str) -> Mapping[str, Placed[Any]]:
    places: Mapping[str, Placed[Any]] = getattr(index, f"{what}s")
    return places


def _compare_file(before: FileProto, after: FileProto, new: Index) -> Iterator[Finding]:
    if before.package != after.package:
        change = f"The package changed from {before.package!r} to {after.package!r}."
        yield found("FILE_SAME_PACKAGE", after.name, change, new, after, 2)
    was, now = before.syntax or "proto2", after.syntax or "proto2"
    if was != now:
        yield found("FILE_SAME_SYNTAX", after.name, f"The syntax changed from {was} to {now}.", new, after, 12)
    set_here = {field.name for field, _ in after.options.ListFields()}
    for option, rule in FILE_OPTIONS.items():
        said, says = getattr(before.options, option), getattr(after.options, option)
        if said != says:
            change = f"The option {option} changed from {_spelled(said)} to {_spelled(says)}."
            path = (8, _OPTIONS[option].number) if option in set_here else ()
            yield found(rule, after.name, change, new, after, *path)


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _gone(
    what: str, before: Mapping[str, Placed[Any]], after: Mapping[str, Placed[Any]], new: Index
) -> Iterator[Finding]:
    """What a file or a package no longer declares. Names count inside of a file as they do without its package."""
    in_files = {(placed.file.name, placed.name) for placed in after.values()}
    packages = {file.package for file in new.files.values()}
    for placed in before.values():
        file = new.files.get(placed.file.name)
        if file is not None and (file.name, placed.name) not in in_files:
            moved = after.get(placed.full_name)
            change = f"The {what} is gone from {file.name}" + (
                "." if moved is None else f": it is in {moved.file.name} now."
            )
            path = _around(placed, new)
            yield found(f"{what.upper()}_NO_DELETE", placed.full_name, change, new, file, *path)
        if placed.file.package in packages and placed.full_name not in after:
            change = f"The {what} is gone from package {placed.file.package!r}."
            rule, path = f"PACKAGE_{what.upper()}_NO_DELETE", _around(placed, new)
            yield found(rule, placed.full_name, change, new, file, *path, old_file=placed.file.name)


def _around(placed: Placed[Any], new: Index) -> Path:
    """The message in NEW that was around something."""
    name = placed.full_name
    while name:
        name = name.rpartition(".")[0]
        message = new.messages.get(name)
        if message is not None and message.file.name == placed.file.name:
            return message.path
    return ()


def in_category(findings: Iterable[Finding], category: Category) -> Iterator[Finding]:
    return (finding for finding in findings if category in finding.rule.categories)
