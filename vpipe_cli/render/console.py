"""Where drawing goes: a rich Console that takes no text for markup, and whether it can be drawn upon again."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

UNFOLDED = 10_000
"""Columns of what is not a terminal: nothing is cut or folded there."""


def console(stream: TextIO | None = None) -> Console:
    """A console on ``stream`` (standard output). Text in it is only ever text: no markup, no emoji, no highlighting."""
    from rich.console import Console

    stream = stream or sys.stdout
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 gets question marks, not an error
    width = None if stream.isatty() else UNFOLDED
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


def can_redraw(target: Console) -> bool:
    """Whether a live view can be drawn there: a terminal with a cursor to move, and no wish for plain output."""
    return target.is_terminal and not target.is_dumb_terminal and not target.no_color


def show(renderable: RenderableType, stream: TextIO | None = None) -> None:
    """Print one thing."""
    console(stream).print(renderable)
