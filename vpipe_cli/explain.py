"""A refused cluster.yml -> sentences: each error with its place, what must stand there, and the nearest name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic_core import ErrorDetails

from vpipe_cli.yamltree import Mistake, Node, Place, label, scalar
from worker.spec.cluster import ClusterSpec, Misfits

Path = tuple[str | int, ...]

TAGS = ("name", "source")
"""The keys that tell the kinds of a section apart."""


@dataclass(frozen=True)
class Fault:
    """A mistake, and the paths of all values that took part in it."""

    mistake: Mistake
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class _Located:
    """A pydantic error and the node it is about; ``branch`` is the choice of a union it speaks for.

    ``tagged`` is the path with the tag of each section that comes in several kinds, as ``model`` does.
    """

    error: ErrorDetails
    path: Path
    node: Node
    branch: str = ""
    fork: Path = ()
    tagged: Path = ()


def faults(errors: Iterable[ErrorDetails], root: Node) -> Iterator[Fault]:
    """What is wrong with the tree, one Fault for each thing the user must change."""
    forks: dict[Path, list[_Located]] = {}
    for found in (_locate(error, root) for error in errors):
        if found.branch:
            forks.setdefault(found.fork, []).append(found)
        elif isinstance(misfits := found.error.get("ctx", {}).get("error"), Misfits):
            yield from _misfits(misfits, found.path, root)
        elif found.error["type"] == "union_tag_invalid":
            yield _wrong_tag(found)
        else:
            yield _fault(found, _sentence(found))
    for fork in forks.values():
        yield from _choices(fork)


def dotted(path: Path) -> str:
    """``("pipeline", "partition", 1)`` as ``pipeline.partition[1]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{label(part)}" for part in path).removeprefix(".")


def place_of(root: Node, path: Path) -> Place:
    """The place of the value at ``path``, or of the key of the nearest section around it."""
    node = root
    for part in path:
        child = _child(node, part)
        if child is None:
            return node.key_place
        node = child
    return node.place


def names() -> list[str]:
    """Every key of cluster.yml by its dotted path: sections first, each followed by its own keys, of all its kinds."""
    return list(dict.fromkeys(_names(_schema(), "")))


def words(key: str) -> list[str]:
    """The words that the value of a key may be, in all kinds of its section; empty where it is no choice of words."""
    return list(dict.fromkeys(_words(_schema(), key.split("."))))


def suggest(key: str, known: Sequence[str], section: str = "") -> str:
    """What to say after "unknown key": the nearest name, the section it belongs to, or the names there are.

    ``section`` is the one that ``key`` stands in, where it does not belong.
    """
    if near := get_close_matches(key.lower(), known, 1):
        return f"; did you mean `{near[0]}`?"
    elsewhere = [name for name in names() if not section or not name.startswith(f"{section}.")]
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(elsewhere)}
    if near := get_close_matches(key.lower().rpartition(".")[2], by_leaf, 1, 0.75):
        return f"; did you mean `{by_leaf[near[0]]}`?"
    return f"; the keys here are {', '.join(known)}" if len(known) < 20 else "; `vpipe config schema` lists all keys"


def _locate(error: ErrorDetails, root: Node) -> _Located:
    """Walk an error's ``loc`` down the tree; pydantic mixes the names of a union's branches into it."""
    node, branch = root, ""
    path: Path = ()
    fork: Path = ()
    tagged: Path = ()
    for part in error["loc"]:
        child = _child(node, part)
        if "oneOf" in _schema_at(tagged):
            tagged = (*tagged, part)
        elif child is None and isinstance(part, str) and error["type"] != "missing":
            branch, fork = part, path
        else:
            node, path, tagged = child or node, (*path, part), (*tagged, part)
    return _Located(error, path, node, branch, fork, tagged)


def _child(node: Node, part: str | int) -> Node | None:
    if isinstance(node.value, dict) and isinstance(part, str):
        return node.value.get(part)
    if isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    return None


def _misfits(misfits: Misfits, section: Path, root: Node) -> Iterator[Fault]:
    for misfit in misfits.found:
        paths = tuple((*section, *key.split(".")) for key in misfit.keys)
        yield Fault(Mistake(place_of(root, paths[0]), dotted(paths[0]), misfit.message), paths)


def _fault(found: _Located, message: str) -> Fault:
    at_key = found.error["type"] in ("extra_forbidden", "missing") and isinstance(found.path[-1], str)
    place = found.node.key_place if at_key else found.node.place
    return Fault(Mistake(place, dotted(found.path), message), (found.path,))


def _choices(fork: list[_Located]) -> Iterator[Fault]:
    """One union: the faults of the one branch whose kind the value has, or else what all branches would take."""
    kinds = {found.branch for found in fork if found.path == found.fork and _is_kind(found.error)}
    right = [found for found in fork if found.branch not in kinds]
    for found in right:
        yield _fault(found, _sentence(found))
    if not right:
        first = fork[0]
        tagged = first.tagged[: len(first.tagged) - len(first.path) + len(first.fork)]
        whole = _Located(first.error, first.fork, _node_at(fork, first.fork), tagged=tagged)
        yield _fault(whole, _wrong_kind(whole))


def _wrong_tag(found: _Located) -> Fault:
    """A section that comes in several kinds, and is of none of them."""
    section = found.node.value if isinstance(found.node.value, dict) else {}
    key = next(key for key in TAGS if key in section)
    kinds = _schema_at(found.tagged)["oneOf"]
    words = [word for kind in kinds for word in _literals(_resolved(kind, _schema())["properties"].get(key, {}))]
    at = _Located(found.error, (*found.path, key), section[key])
    schema = {"enum": words}
    message = f"must be {_described(schema)}, not {_shown(at.node)}{_remedy(at.path, schema, at.node)}"
    return _fault(at, message)


def _node_at(fork: list[_Located], path: Path) -> Node:
    return next(found.node for found in fork if found.path == path)


def _is_kind(error: ErrorDetails) -> bool:
    return error["type"].endswith("_type") or error["type"] == "literal_error"


def _sentence(found: _Located) -> str:
    error = found.error
    if _is_kind(error) or error["type"] == "union_tag_not_found":
        return _wrong_kind(found)
    if error["type"] == "extra_forbidden":
        key, section = str(found.path[-1]), found.tagged[:-1]
        known = list(_schema_at(section).get("properties", {}))
        return "unknown key" + suggest(key, known, dotted(found.path[:-1]))
    if error["type"] in _SENTENCES:
        return _SENTENCES[error["type"]](error.get("ctx", {}), found)
    return error["msg"][0].lower() + error["msg"][1:]


def _missing(_: Mapping[str, Any], found: _Located) -> str:
    if isinstance(found.path[-1], int):
        return f"has too few entries; entry {found.path[-1] + 1} is missing"
    return f"is missing; {_schema_at(found.tagged).get('description', 'it has no default')}"


def _is(found: _Located) -> str:
    return f"is {_shown(found.node)}"


_SENTENCES: dict[str, Callable[[Mapping[str, Any], _Located], str]] = {
    "missing": _missing,
    "greater_than": lambda c, f: f"must be above {c['gt']:g}, {_is(f)}",
    "greater_than_equal": lambda c, f: f"must be at least {c['ge']:g}, {_is(f)}",
    "less_than": lambda c, f: f"must be below {c['lt']:g}, {_is(f)}",
    "less_than_equal": lambda c, f: f"must be at most {c['le']:g}, {_is(f)}",
    "finite_number": lambda c, f: f"must be a finite number, {_is(f)}",
    "too_short": lambda c, f: f"must have {c['min_length']} or more entries, has {c['actual_length']}",
    "too_long": lambda c, f: f"must have at most {c['max_length']} entries, has {c['actual_length']}",
    "string_too_short": lambda c, f: "must not be empty",
    "string_pattern_mismatch": lambda c, f: f"cannot be {_shown(f.node)}; it {_form(f)}",
}


def _form(found: _Located) -> str:
    return str(_schema_at(found.tagged).get("description", "has another form: see `vpipe config schema`"))


def _wrong_kind(found: _Located) -> str:
    schema, node = _schema_at(found.tagged), found.node
    return f"must be {_described(schema)}, not {_shown(node)}{_remedy(found.path, schema, node)}"


def _remedy(path: Path, schema: dict[str, Any], node: Node) -> str:
    """What was probably meant, where that can be told."""
    if isinstance(node.value, (int, float)) and isinstance(path[-1], int) and schema.get("type") == "string":
        return "; an entry that holds a comma needs quotes"
    if not isinstance(node.value, str):
        return ""
    if near := get_close_matches(node.text.lower(), _literals(schema), 1):
        return f"; did you mean {near[0]}?"
    if schema.get("items", {}).get("type") == "string":
        return f"; write [{node.text!r}]"
    if not isinstance(scalar(node.text), str):
        return "; remove the quotes"
    digits = node.text.replace("_", "").lstrip("0")
    return f"; write {digits}" if digits != node.text and isinstance(scalar(digits), (int, float)) else ""


def _shown(node: Node) -> str:
    if isinstance(node.value, dict):
        return "a group of keys"
    if isinstance(node.value, list):
        return "a list"
    text = node.text if len(node.text) <= 40 else node.text[:40] + "..."
    if isinstance(node.value, str):
        return repr(text)
    return text or "empty"


@cache
def _schema() -> dict[str, Any]:
    return ClusterSpec.model_json_schema()


def _schema_at(path: Path) -> dict[str, Any]:
    """The JSON schema of the value at ``path``; empty where there is none."""
    top = _schema()
    here: dict[str, Any] = top
    for part in path:
        choices = [_resolved(choice, top) for choice in here.get("anyOf", [here])]
        if "oneOf" in here:
            here = next(kind for kind in (_resolved(each, top) for each in here["oneOf"]) if _has_tag(kind, str(part)))
            continue
        if isinstance(part, str):
            below = (choice.get("properties", {}).get(part) or choice.get("additionalProperties") for choice in choices)
            here = next((found for found in below if isinstance(found, dict)), {})
        else:
            items = next((choice for choice in choices if choice.get("type") == "array"), {})
            here = items.get("items") or next(iter(items.get("prefixItems", [])), {})
        here = _resolved(here, top)
    return here


def _has_tag(kind: dict[str, Any], tag: str) -> bool:
    """Whether the schema is that of the kind ``tag`` of a section."""
    keys = kind["properties"]
    return tag in kind.get("required", []) or any(tag in _literals(keys.get(key, {})) for key in TAGS)


def _resolved(schema: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    choices = [choice for choice in schema.get("anyOf", []) if choice.get("type") != "null"]
    if len(choices) == 1 and "$ref" in choices[0]:  # a section that may be left out
        schema = {**{key: value for key, value in schema.items() if key != "anyOf"}, **choices[0]}
    target = schema.get("$ref", "").rpartition("/")[2]
    return {**top["$defs"][target], **schema} if target else schema


def _names(section: dict[str, Any], prefix: str) -> Iterator[str]:
    top = _schema()
    for kind in section.get("oneOf", []):
        yield from _names(_resolved(kind, top), prefix)
    for key, schema in section.get("properties", {}).items():
        yield prefix + key
        yield from _names(_resolved(schema, top), f"{prefix}{key}.")


def _words(section: dict[str, Any], path: Sequence[str]) -> Iterator[str]:
    for kind in section.get("oneOf", []):
        yield from _words(_resolved(kind, _schema()), path)
    schema = section.get("properties", {}).get(path[0])
    if schema is not None and len(path) > 1:
        yield from _words(_resolved(schema, _schema()), path[1:])
    elif schema is not None:
        yield from ["true", "false"] if schema.get("type") == "boolean" else _literals(schema)


def _literals(schema: dict[str, Any]) -> list[str]:
    """The words a value may be."""
    here = [*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])]
    below = [word for choice in schema.get("anyOf", []) for word in _literals(choice)]
    return list(dict.fromkeys(map(str, here + below)))


_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}


def _described(schema: dict[str, Any]) -> str:
    """What a value must be, in words: ``auto or a list of whole numbers``."""
    if "anyOf" in schema:
        return " or ".join(_described(choice) for choice in schema["anyOf"] if choice.get("type") != "null")
    if words := _literals(schema):
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items") or schema["prefixItems"][0]
        return "a list" if items.get("type") == "string" else f"a list of {_KINDS.get(items.get('type'), 'value')}s"
    if kind in ("integer", "number"):
        return f"a {_KINDS[kind]}"
    return _KINDS.get(str(kind), "a group of `key: value` lines")
