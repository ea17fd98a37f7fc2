"""Text from a run made safe for a terminal: no control character, no escape sequence, no hidden reordering is left.

What counts as such is said once, in ``worker.logfilter``, which also looks for text on the hosts.
"""

from __future__ import annotations

from worker import logfilter


def decode(raw: bytes) -> str:
    """UTF-8 text; each byte that is none is shown as U+FFFD."""
    return raw.decode("utf-8", "replace")


def clean(text: str | bytes) -> str:
    """One line of text that a terminal only shows: see ``worker.logfilter.clean``."""
    return logfilter.clean(decode(text) if isinstance(text, bytes) else text)
