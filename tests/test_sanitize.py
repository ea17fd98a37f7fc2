"""Whatever a log holds, nothing that commands a terminal comes out of ``clean``."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpipe_cli.sanitize import clean
from worker.logfilter import shown, shown_all

CASES = {
    "plain": (b"loss 5.12", "loss 5.12"),
    "tab stays": (b"a\tb", "a\tb"),
    "colour": (b"\x1b[1;31mred\x1b[0m", "red"),
    "clear screen": (b"a\x1b[2Jb", "ab"),
    "clipboard, BEL": (b"a\x1b]52;c;ZXZpbA==\x07b", "ab"),
    "clipboard, ST": (b"a\x1b]52;c;ZXZpbA==\x1b\\b", "ab"),
    "title without an end": (b"a\x1b]0;evil", "a"),
    "title broken off by a sequence": (b"a\x1b]0;evil\x1b[2Jb", "ab"),
    "device control": (b"a\x1bP+q544e\x1b\\b", "ab"),
    "C1 as UTF-8": ("a\u009b2Jb".encode(), "ab"),
    "C1 string as UTF-8": ("a\u009d52;c;x\u009cb".encode(), "ab"),
    "C1 as a bare byte": (b"a\x9b2Jb", "a\ufffd2Jb"),
    "cut off escape": (b"a\x1b", "a"),
    "cut off CSI": (b"a\x1b[31", "a"),
    "nested": (b"\x1b\x1b[2J[2Jx", "[2Jx"),
    "charset": (b"a\x1b(0b", "ab"),
    "other controls": (b"a\x07\x08\x00\x7fb", "ab"),
    "bidi": ("a\u202eb\u2066c\u200fd".encode(), "abcd"),
    "line separators": ("a\u2028b".encode(), "ab"),
    "markup is only text": (b"[/red][bold]x[link=http://e.org]", "[/red][bold]x[link=http://e.org]"),
    "not UTF-8": (b"caf\xe9", "caf\ufffd"),
    "CRLF": (b"text\r", "text"),
    "progress bar": (b" 10%|#   |\r 50%|##  |\r100%|####|", "100%|####|"),
    "progress bar erased last": (b" 99%\r\x1b[K", " 99%"),
    "nothing left": (b"\r\x1b[K\r", ""),
    "lone surrogate": ("a\ud800b", "a?b"),
}


@pytest.mark.parametrize(("raw", "shown"), CASES.values(), ids=CASES)
def test_clean(raw: str | bytes, shown: str) -> None:
    assert clean(raw) == shown


STAMPS = [b"2026-11-23T12:49:01.500000Z o ", b"2026-11-23T12:49:01.500000Z e "]
WORDS = [*"\x1b\x9b\x9d\x9c\r\x07[]m a\u202e\udce2\udc80", "\x1b[0m", "2J"]


@given(st.one_of(st.binary(), st.text(st.sampled_from("\x1b\x9b\x9d\x9c\r\x07[]P\\;?2Jm a\u202e"))))
def test_nothing_but_printable_text_comes_out(raw: str | bytes) -> None:
    shown = clean(raw)
    assert all(character == "\t" or unicodedata.category(character) != "Cc" for character in shown)
    assert clean(shown) == shown


@given(st.lists(st.tuples(st.sampled_from([*STAMPS, b""]), st.lists(st.sampled_from(WORDS)).map("".join)), max_size=4))
def test_lines_that_are_cleaned_together_are_what_each_is_alone(written: list[tuple[bytes, str]]) -> None:
    lines = [stamp + text.encode("utf-8", "surrogateescape") for stamp, text in written]
    assert shown_all(b"".join(line + b"\n" for line in lines)) == [shown(line) for line in lines]
