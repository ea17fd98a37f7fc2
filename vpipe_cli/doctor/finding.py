"""One thing found out about one host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What was checked on a host, what is so, and what to do about it where it is not well."""

    host: str
    check: str
    fact: str
    verdict: Verdict = "ok"
    remedy: str = ""
