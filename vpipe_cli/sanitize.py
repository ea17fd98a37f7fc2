"""Text from a run made safe for a terminal: no control character, no escape sequence, no hidden reordering is left."""

from __future__ import annotations

import re

# What a terminal would take as one command is dropped whole, so that its parameters do not stay behind as text.
_STRING = r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x18\x1a\x1b\x9c]*(?:\x07|\x18|\x1a|\x1b\\|\x9c|(?=\x1b)|\Z)"
_CSI = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
_ESCAPE = r"\x1b[ -/]*[0-~]?"
_SEQUENCE = re.compile(f"{_STRING}|{_CSI}|{_ESCAPE}")

# C0 but \t and \r, DEL, C1, the bidi marks, embeddings and isolates, and the two separators that end a line.
_CONTROL = re.compile("[\x00-\x08\x0a-\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def decode(raw: bytes) -> str:
    """UTF-8 text; each byte that is none is shown as U+FFFD."""
    return raw.decode("utf-8", "replace")


def clean(text: str | bytes) -> str:
    """One line of text that a terminal only shows.

    A progress bar redrawn with ``\\r`` becomes its last state. Tabs stay. Cleaning twice changes nothing more.
    """
    if isinstance(text, bytes):
        text = decode(text)
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate, which JSON can carry, cannot be printed
    text = _CONTROL.sub("", _SEQUENCE.sub("", text))
    states = [state for state in text.split("\r") if state.strip()]
    return states[-1] if states else ""
