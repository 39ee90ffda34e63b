"""The line of every key, checked against documents whose values are their own line numbers."""

from __future__ import annotations

import textwrap
import tomllib
from typing import Any

import pytest

from polywire.system.positions import Path, positions


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    if isinstance(value, dict):
        return {found: leaf for key, inner in value.items() for found, leaf in leaves(inner, (*path, key)).items()}
    if isinstance(value, list):
        return {found: leaf for key, inner in enumerate(value) for found, leaf in leaves(inner, (*path, key)).items()}
    return {path: value}


DOCUMENTS = {
    "tables": """\
        a = 1
        [b]
        c = 3
          [b.d]
        e = 5  # not [this]

        "f.g" = 7
        h.i = 8
        ["j k".'l']
        m = 10
        """,
    "inline tables and arrays": """\
        a = { b = 1, c = { d = 1 }, "e.f" = 1 }
        g = [2, 2, [2], { h = 2 }]
        i = [
            4, # a comment, with = and [brackets]
            5,
            { j = 6 },
        ]
        k = 8
        """,
    "arrays of tables": """\
        [[a]]
        b = 2
        [[a]]
        b = 4
        [a.c]
        d = 6
        [[a.e]]
        f = 8
        [[a.e]]
        f = 10
        """,
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_value_stands_on_the_line_that_it_names(name: str) -> None:
    text = textwrap.dedent(DOCUMENTS[name])

    found = positions(text)

    assert {path: found[path] for path in leaves(tomllib.loads(text))} == leaves(tomllib.loads(text))


def test_strings_of_all_four_kinds_do_not_lead_astray() -> None:
    text = (
        'a = "# [x] \\" = \\\\"\n'
        "b = 'C:\\'\n"
        'c = """one\n[two]\n  three = "3" \\""""\n'
        "d = '''\n'' = '\n'''\n"
        'e = """"quoted""""\n'
        "f = 1\r\n"
        "g = 1979-05-27 07:32:00Z\n"
        "h = 2\n"
    )

    tomllib.loads(text)

    assert positions(text) == {
        ("a",): 1, ("b",): 2, ("c",): 3, ("d",): 6, ("e",): 9, ("f",): 10, ("g",): 11, ("h",): 12,
    }  # fmt: skip


def test_a_table_stands_where_its_header_is() -> None:
    assert positions("\n[a.b]\nc = 1\n[a]\nd = 2\n") == {
        ("a",): 2, ("a", "b"): 2, ("a", "b", "c"): 3, ("a", "d"): 5,
    }  # fmt: skip
