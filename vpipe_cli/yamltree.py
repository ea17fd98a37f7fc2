"""YAML text -> a tree of nodes that know their place, with every mistake of form; and values -> YAML text.

The one door of PyYAML. Plain scalars are read as YAML 1.2 does: ``1e-4`` is a number; ``no``, ``022`` and ``12:30`` are
text, so that a wrong type is an error and never another value. Anchors, aliases and tags are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import yaml

MAX_DEPTH = 32
MAX_NODES = 10_000

Scalar = None | bool | int | float | str

_WORDS: dict[str, Scalar] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_PREFIXED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_LONGEST_NUMBER = 100  # longer ones stay text: int() refuses thousands of digits, float() overflows

_SYNTAX = (
    ("'\\t'", "a tab stands here; YAML wants spaces"),
    ("mapping values are not allowed", "`:` does not fit here; quote a value that has one, or mend the indentation"),
    ("expected <block end>", "does not fit under the lines above; mend its indentation"),
    ("'<document start>'", "a second document starts here; one file describes one job"),
    ("unexpected end of stream", "a quote opens here and is never closed"),
    ("'<stream end>'", "a bracket opens here and is never closed"),
    ("could not find expected ':'", "must be `key: value`"),
    ("cannot start any token", "a value cannot begin with this character; put it in quotes"),
)
"""What PyYAML says, and what that means to somebody who wrote a file."""


@dataclass(frozen=True, order=True)
class Place:
    """Where something stands: ``text`` for the user, ``order`` (source, line, column) to sort by."""

    order: tuple[int, int, int]
    text: str = field(compare=False)


@dataclass(frozen=True, order=True)
class Mistake:
    """Something wrong at a place; ``key`` is the dotted path it belongs to."""

    place: Place
    key: str = field(compare=False)
    message: str = field(compare=False)


@dataclass
class Node:
    """A value and its place. ``broken`` says that a mistake was already reported for it, so it has no value."""

    place: Place
    key_place: Place
    value: Scalar | list[Node] | dict[str, Node]
    text: str = ""
    broken: bool = False


class _Stop(Exception):
    """Reading cannot go on; the mistakes say why."""


def scalar(text: str) -> Scalar:
    """The value of an unquoted scalar, by YAML 1.2's core schema, but for ``022``, which stays text."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _PREFIXED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _SPECIAL.fullmatch(text) else text


def parse(text: str, at: Callable[[int, int], Place]) -> tuple[Node | None, list[Mistake]]:
    """The tree of one document, None where there is none, and all mistakes of form.

    ``at`` turns a line and a column, both from 0, into a Place.
    """
    reader = _Reader(at)
    try:
        return reader.document(text), reader.mistakes
    except _Stop:
        return None, reader.mistakes


def label(key: str) -> str:
    """A key as it is shown: in quotes, escaped and cut short when it is not a plain word."""
    return key if _WORD.fullmatch(key) else repr(key[:40])


def plain(node: Node) -> object:
    """The tree's values without their places; what is broken is left out of its mapping."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items() if not child.broken}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def dump(value: object) -> str:
    """YAML text that ``parse`` reads as the same value: mappings as lines, lists in brackets."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Mark(Protocol):
    """What PyYAML's two kinds of mark share; both count from 0."""

    line: int
    column: int


class _Reader:
    """Builds nodes from PyYAML's events, which carry marks and expand nothing."""

    def __init__(self, at: Callable[[int, int], Place]) -> None:
        self.at = at
        self.mistakes: list[Mistake] = []
        self.nodes = 0

    def document(self, text: str) -> Node | None:
        """The only document of the text; None when it holds nothing."""
        events = self.events(text)
        event = next(events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        root = self.node(next(events), events, "", None, 1)
        next(events)
        event = next(events)
        if not isinstance(event, yaml.StreamEndEvent):
            self.mistake(self.place(event.start_mark), "", "a second document starts here; one file describes one job")
        return root if root.text or root.broken or root.value is not None else None

    def events(self, text: str) -> Iterator[yaml.Event]:
        """PyYAML's events after the stream's start; its errors become one mistake and the end of reading."""
        last = self.at(0, 0)
        try:
            for event in yaml.parse(text, Loader=yaml.SafeLoader):
                last = self.place(event.end_mark)
                if not isinstance(event, yaml.StreamStartEvent):
                    yield event
        except yaml.reader.ReaderError as error:
            position = text.count("\n", 0, error.position), error.position - text.rfind("\n", 0, error.position) - 1
            self.mistake(self.at(*position), "", f"is not text: it holds the character {text[error.position]!r}")
        except yaml.MarkedYAMLError as error:
            self.syntax(error)
        except (ValueError, OverflowError):  # chr() of an escape beyond Unicode, as in "\UFFFFFFFF"
            self.mistake(last, "", "an escape in the quotes after this names no character")
        raise _Stop

    def syntax(self, error: yaml.MarkedYAMLError) -> None:
        """One mistake for what PyYAML's scanner or parser refused."""
        said = error.problem or "wrong syntax"
        message = next((ours for theirs, ours in _SYNTAX if theirs in said), f"is not YAML: {said}")
        mark = error.context_mark if "never closed" in message else error.problem_mark
        self.mistake(self.place(mark), "", message)

    def node(self, event: yaml.Event, events: Iterator[yaml.Event], key: str, named: Place | None, depth: int) -> Node:
        """The node that ``event`` begins; ``named`` is the place of its key."""
        place = self.place(event.start_mark)
        node = Node(place, named or place, None)
        self.nodes += 1
        if depth > MAX_DEPTH:
            self.fail(place, f"is nested deeper than {MAX_DEPTH} levels")
        if self.nodes > MAX_NODES:
            self.fail(place, f"the file holds more than {MAX_NODES} values")
        self.refuse(node, event, key)
        if isinstance(event, yaml.ScalarEvent):
            node.text = event.value
            node.value = scalar(event.value) if event.implicit[0] and event.style is None else event.value
        elif isinstance(event, yaml.SequenceStartEvent):
            node.value = self.sequence(events, key, depth)
            node.broken |= any(item.broken for item in node.value)
        elif isinstance(event, yaml.MappingStartEvent):
            node.value = self.mapping(events, key, depth)
        return node

    def refuse(self, node: Node, event: yaml.Event, key: str) -> None:
        """Mark a node broken that uses what cluster.yml does without."""
        found = ""
        if isinstance(event, yaml.AliasEvent):
            found = "aliases (*name) are not allowed; write the value here"
        elif getattr(event, "anchor", None) is not None:
            found = "anchors (&name) are not allowed; remove it"
        elif getattr(event, "tag", None) is not None:
            found = "tags (!name) are not allowed; remove it"
        elif isinstance(event, yaml.ScalarEvent) and any("\ud800" <= letter <= "\udfff" for letter in event.value):
            found = "an escape in quotes names half a character"
        if found:
            self.mistake(node.place, key, found)
            node.broken = True

    def sequence(self, events: Iterator[yaml.Event], key: str, depth: int) -> list[Node]:
        """The items up to the sequence's end."""
        items: list[Node] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self.node(event, events, f"{key}[{len(items)}]", None, depth + 1))
        return items

    def mapping(self, events: Iterator[yaml.Event], key: str, depth: int) -> dict[str, Node]:
        """The entries up to the mapping's end; of a key given twice, the first."""
        entries: dict[str, Node] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            name = self.node(event, events, key, None, depth + 1)
            path = f"{key}.{label(name.text)}" if key else label(name.text)
            child = self.node(next(events), events, path, name.place, depth + 1)
            if isinstance(name.value, (list, dict)):
                self.mistake(name.place, key, "a key must be one word")
            elif name.text in entries:
                first = entries[name.text].key_place.order[1] + 1
                self.mistake(name.place, path, f"duplicate key; the first one is in line {first}")
            elif not name.broken:
                entries[name.text] = child
        return entries

    def place(self, mark: _Mark | None) -> Place:
        return self.at(mark.line, mark.column) if mark else self.at(0, 0)

    def mistake(self, place: Place, key: str, message: str) -> None:
        self.mistakes.append(Mistake(place, key, message))

    def fail(self, place: Place, message: str) -> None:
        self.mistake(place, "", message)
        raise _Stop


class _Dumper(yaml.SafeDumper):
    """Quotes what ``scalar`` would not read as text, and writes lists in brackets."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = None if scalar(value) == value and value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _list(dumper: _Dumper, value: list[object]) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
