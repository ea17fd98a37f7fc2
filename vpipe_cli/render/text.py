"""Numbers as short text: times, sizes, shares, and small pictures of a character a value."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"


def clock(seconds: float) -> str:
    """``0:35``, ``1:02:03``; from a day on ``2d 3h``."""
    whole = max(0, round(seconds))
    if whole >= 86400:
        return f"{whole // 86400}d {whole % 86400 // 3600}h"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def age(seconds: float) -> str:
    """The largest whole unit: ``35s``, ``5m``, ``3h``, ``2d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def span(seconds: float) -> str:
    """A short time to three digits: ``0.41 ms``, ``12.1 ms``, ``3.20 s``."""
    value, unit = (seconds * 1e3, "ms") if seconds < 0.9995 else (seconds, "s")
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def size(count: float) -> str:
    """Bytes to about three digits: ``812 MiB``, ``1.4 GiB``."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while count >= 1000 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.1f} {units[0]}" if count < 10 and units[0] != "B" else f"{count:.0f} {units[0]}"


def loss(value: float | None) -> str:
    """Four digits, or a dash."""
    return "-" if value is None else f"{value:#.4g}"


def rate(value: float | None) -> str:
    """Samples per second to about three digits, or a dash."""
    return "-" if value is None else f"{value:.{0 if value >= 99.5 else 1 if value >= 9.95 else 2}f}"


def percent(share: float) -> str:
    """``42%``."""
    return f"{share:.0%}"


def error(predicted: float, measured: float) -> str:
    """How far a prediction was off what was measured: ``+4%`` where it took longer than predicted."""
    return f"{measured / predicted - 1:+.0%}" if predicted else "-"


def bar(share: float, width: int) -> str:
    """A share of 0..1 as a bar of ``width`` characters, blank where it is not filled."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    full, part = divmod(eighths, 8)
    return (EIGHTHS[8] * full + (EIGHTHS[part] if part else "")).ljust(width)


def sparkline(points: Sequence[tuple[float, float]], width: int) -> str:
    """Values over x as a line of at most ``width`` characters between their least and greatest."""
    if not points or width < 1:
        return ""
    means = _means([value for _, value in points], width)
    low, high = min(means), max(means)
    scale = (len(LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(LEVELS[round((value - low) * scale)] for value in means)


def _means(values: Sequence[float], count: int) -> list[float]:
    """The means of ``count`` pieces of about equal length; the values themselves if they are fewer."""
    count = min(count, len(values))
    cuts = [len(values) * piece // count for piece in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]


def numbers(values: Sequence[int]) -> str:
    """``0``, ``0 and 3``, ``0, 1 and 3``; for many the first ones and how many more."""
    words = [str(value) for value in values]
    if len(words) > 8:
        words = [*words[:6], f"{len(words) - 6} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
