"""YAML as cluster.yml has it: each mistake of form with its place, and scalars that are what they look like."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.configs import TREE, M, problems
from vpipe_cli import yamltree
from vpipe_cli.yamltree import Place

FORM = {
    "empty": ("", [": is empty; `vpipe init` writes a starter file"]),
    "comments only": ("# nothing\n", [": is empty; `vpipe init` writes a starter file"]),
    "a list": ("- cpu\n", [":1:1: must be `key: value` lines, one of them `machines:`, not a list"]),
    "a word": ("\nhello", [":2:1: must be `key: value` lines, one of them `machines:`, not one value"]),
    "tab": ("run:\n\tsteps: 3", [":2:1: a tab stands here; YAML wants spaces"]),
    "indentation": ("run:\n  steps: 3\n seed: 1", [":3:2: does not fit under the lines above; mend its indentation"]),
    "second colon": ("a: b: c", [":1:5: `:` does not fit here; quote a value that has one, or mend the indentation"]),
    "open quote": ("name: 'x", [":1:7: a quote opens here and is never closed"]),
    "open bracket": ("machines: [cpu", [":1:11: a bracket opens here and is never closed"]),
    "not a pair": ("machines: [cpu]\nname\n", [":3:1: must be `key: value`"]),
    "odd start": ("name: @x", [":1:7: a value cannot begin with this character; put it in quotes"]),
    "two documents": (M + "---\nname: x", [":2:1: a second document starts here; one file describes one job"]),
    "no such character": ('name: "\\UFFFFFFFF"', [":1:5: an escape in the quotes after this names no character"]),
    "half a character": (M + 'name: "\\ud800"', [":2:7: name: an escape in quotes names half a character"]),
    "control character": ("name: a\0b", [":1:8: is not text: it holds the character '\\x00'"]),
    "duplicate key": (M + "name: a\nname: b", [":3:1: name: duplicate key; the first one is in line 2"]),
    "key is a list": (M + "? [a]\n: 1", [":2:3: a key must be one word"]),
    "tag": (M + "run: {steps: !!int 3}", [":2:14: run.steps: tags (!name) are not allowed; remove it"]),
    "alias bomb": (
        "machines: &a [cpu]\nname: &b [*a, *a]",
        [
            ":1:11: machines: anchors (&name) are not allowed; remove it",
            ":2:7: name: anchors (&name) are not allowed; remove it",
            ":2:11: name[0]: aliases (*name) are not allowed; write the value here",
            ":2:15: name[1]: aliases (*name) are not allowed; write the value here",
        ],
    ),
    "deep": ("[" * 40, [":1:33: is nested deeper than 32 levels"]),
    "very long": ("a: [" + "1," * 10_000, [":1:19999: the file holds more than 10000 values"]),
}


@pytest.mark.parametrize("text, expected", FORM.values(), ids=FORM)
def test_mistakes_of_form(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-4", 1e-4), ("-1.5E+3", -1500.0), (".5", 0.5), ("3.", 3.0), (".inf", float("inf")),
        ("0", 0), ("+12", 12), ("-7", -7), ("0x1F", 31), ("0o17", 15), ("022", "022"), ("1_000", "1_000"),
        ("12:30", "12:30"), ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("2024-01-01",) * 2,
        ("true", True), ("FALSE", False), ("tRue", "tRue"), ("null", None), ("~", None), ("", None), ("none", "none"),
        ("9" * 5000, "9" * 5000), ("1e5000", float("inf")), ("\u0661", "\u0661"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert (yamltree.scalar(text), type(yamltree.scalar(text))) == (value, type(value))


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.text(), TREE.filter(lambda value: value == value), min_size=1))
def test_what_is_dumped_is_read_the_same(values: dict[str, object]) -> None:
    node, mistakes = yamltree.parse(yamltree.dump(values), lambda line, column: Place((0, line, column), ""))
    assert mistakes == [] and node is not None
    assert repr(yamltree.plain(node)) == repr(values)
