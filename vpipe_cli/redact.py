"""Takes secrets out of text that leaves this machine: by the names they stand under, by their values where known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "[redacted]"
WORDS = frozenset(
    {"TOKEN", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "CREDENTIAL", "CREDENTIALS", "APIKEY"}
    | {"AUTH", "AUTHORIZATION", "COOKIE", "BEARER"}
)
KEYS = frozenset({"API", "ACCESS", "SECRET", "PRIVATE", "LICENSE", "ENCRYPTION", "SIGNING"})
"""What makes a secret of a name that ends in KEY."""
SHORTEST = 6  # characters of a value that is looked for wherever it stands: shorter ones are ordinary words too

PAIR = re.compile(
    r"""(?P<name>[A-Za-z][A-Za-z0-9_.-]*)(?P<sign>["']?\s*[=:]\s*)(?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;"'}\]]+)"""
)
SCHEME = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}")
LOGIN = re.compile(r"(?P<begin>\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+@")
KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def is_secret(name: str) -> bool:
    """Whether what stands under this name is nobody's business: ``WANDB_API_KEY``, ``password``, ``hfToken``."""
    parts = [part.upper() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]
    return any(part in WORDS for part in parts) or (len(parts) > 1 and parts[-1] == "KEY" and parts[-2] in KEYS)


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """The values of the environment's secrets, longest first, to be looked for in any text."""
    values = {value for name, value in environ.items() if is_secret(name) and len(value) >= SHORTEST}
    return sorted(values, key=len, reverse=True)


def text(given: str, known: Iterable[str] = ()) -> str:
    """Any text without its secrets. ``known`` are values that must go wherever they stand."""
    for value in known:
        given = given.replace(value, HIDDEN).replace(json.dumps(value)[1:-1], HIDDEN)
    given = KEY_BLOCK.sub(HIDDEN, given)
    given = LOGIN.sub(lambda match: f"{match['begin']}{HIDDEN}@", given)
    given = SCHEME.sub(lambda match: f"{match[1]} {HIDDEN}", given)
    return PAIR.sub(_pair, given)


def _pair(match: re.Match[str]) -> str:
    value = match["value"]
    if not is_secret(match["name"]) or value.startswith(HIDDEN[:4]):
        return match[0]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{match['name']}{match['sign']}{quote}{HIDDEN}{quote}"


def document(value: Any, known: Iterable[str] = ()) -> Any:
    """A JSON value without its secrets."""
    known = list(known)
    if isinstance(value, dict):
        return {
            key: HIDDEN if isinstance(key, str) and is_secret(key) and inner else document(inner, known)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [document(each, known) for each in value]
    return text(value, known) if isinstance(value, str) else value
