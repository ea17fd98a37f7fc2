"""``lr=1e-4,1e-3``, ``recompute_ratio=range(0,1,0.25)``, ``partition=[4,8],[6,6]``: text -> the values of a key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation

from vpipe_cli import explain, overrides
from worker.errors import ConfigError, Problem

MOST_VALUES = 100_000
_LONGEST_SHOWN = 60
_RANGE = re.compile(r"range\((.*)\)", re.DOTALL)
_CLOSES = {"]": "[", "}": "{", ")": "("}


@dataclass(frozen=True)
class Axis:
    """A key and the values it takes, each as YAML text. ``name`` is the key as typed, ``key`` its dotted path."""

    name: str
    key: str
    values: tuple[str, ...]


class _Wrong(Exception):
    """What is wrong with the values of one key."""


def axes(given: Sequence[str]) -> list[Axis]:
    """The axes that were typed as ``KEY=V1,V2``.

    Raises:
        ConfigError: with every mistake of form; whether the values suit their keys is for ``trials`` to find out.
    """
    known = explain.names()
    found: list[Axis] = []
    problems: list[Problem] = []
    for text in given:
        name, equals, values = text.partition("=")
        name = name.strip()
        key, message = overrides.complete(name, known) if equals else ("", "must be KEY=V1,V2")
        try:
            if not key:
                raise _Wrong(message)
            if any(axis.key == key for axis in found):
                raise _Wrong(f"is swept twice; write all its values once: {name}=V1,V2")
            found.append(Axis(name, key, tuple(_values(values))))
        except _Wrong as wrong:
            problems.append(Problem(f"command line: {shortened(text)}", key or name[:40], str(wrong)))
    if problems:
        raise ConfigError(problems)
    return found


def shortened(text: str) -> str:
    """Text of a command line, cut to a length that a message can carry."""
    short = text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
    return short if short.isprintable() else repr(short)


def _values(text: str) -> list[str]:
    if not text.strip():
        raise _Wrong("has no value after `=`, so the grid is empty")
    found: list[str] = []
    for piece in _pieces(text):
        if not piece:
            raise _Wrong("has an empty value between commas; write '' for an empty text")
        numbers = _RANGE.fullmatch(piece)
        found += _range(numbers[1]) if numbers else [piece]
        if len(found) > MOST_VALUES:
            raise _Wrong(f"has more than {MOST_VALUES:,} values")
    seen: set[str] = set()
    twice = next((value for value in found if value in seen or seen.add(value)), None)  # type: ignore[func-returns-value]
    if twice is not None:
        raise _Wrong(f"has the value {shortened(twice)} twice; --repeat N runs every trial several times")
    return found


def _pieces(text: str) -> Iterator[str]:
    """The parts between commas that stand in no bracket and no quotes."""
    opened: list[str] = []
    quote, start = "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            opened.append(letter)
        elif letter in _CLOSES:
            if not opened or opened.pop() != _CLOSES[letter]:
                raise _Wrong(f"has a `{letter}` that closes nothing")
        elif letter == "," and not opened:
            yield text[start:at].strip()
            start = at + 1
    if quote or opened:
        raise _Wrong(f"has a `{quote or opened[-1]}` that is never closed")
    yield text[start:].strip()


def _range(text: str) -> list[str]:
    """``a,b,step`` as Python counts: from a, below b. Exact in decimals."""
    try:
        numbers = [Decimal(part.strip()) for part in text.split(",")]
    except InvalidOperation:
        numbers = []
    if len(numbers) not in (2, 3) or not all(number.is_finite() and abs(number.adjusted()) < 30 for number in numbers):
        raise _Wrong(f"range({shortened(text)}) must hold two or three numbers: range(0,1,0.25) is 0,0.25,0.5,0.75")
    first, end, step = (*numbers, Decimal(1))[:3]
    if not step:
        raise _Wrong(f"range({text}) has step 0 and would never end")
    count = max(0, int(((end - first) / step).to_integral_value(ROUND_CEILING)))
    if not count:
        raise _Wrong(f"range({text}) holds no value: it counts from {first} to below {end} by {step}")
    if count > MOST_VALUES:
        raise _Wrong(f"range({text}) has {count:,} values; at most {MOST_VALUES:,}")
    return [_plain(first + number * step) for number in range(count)]


def _plain(number: Decimal) -> str:
    """Without exponent and without zeros at the end: ``0.5``, ``100``."""
    text = f"{number:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"
