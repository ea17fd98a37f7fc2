"""Whether a rank ended because memory was not enough: by what it, or the library it called, said of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SIGNS = re.compile(
    r"OutOfMemoryError|out of memory\. Tried|CUDA out of memory|CUDA error: out of memory|can't allocate memory"
    r"|MemoryError|Cannot allocate memory|bad_alloc|OOM_KILL|oom-kill",
)


def ran_out(cause: str, last_lines: Iterable[str] = ()) -> bool:
    """Whether memory was not enough. A plain SIGKILL is none: it may have been a person."""
    return bool(_SIGNS.search(cause)) or any(_SIGNS.search(line) for line in last_lines)
