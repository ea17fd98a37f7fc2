"""How long `vpipe --help` keeps a person waiting, beside plain `python -c pass`: `python -m benchmarks.startup`.

Prints one JSON line: medians of interleaved runs, in milliseconds, and the median of their differences.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

REPEATS = 21
COMMANDS = {"python": ["-c", "pass"], "vpipe_help": ["-m", "vpipe_cli.app", "--help"]}


def milliseconds(arguments: Sequence[str]) -> float:
    """Wall time of one interpreter with ``arguments``."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Time each command in turn, so that both meet the same noise."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPEATS):
        for name, arguments in COMMANDS.items():
            times[name].append(milliseconds(arguments))
    differences = [help_ - plain for plain, help_ in zip(times["python"], times["vpipe_help"], strict=True)]
    medians = {f"{name}_ms": round(statistics.median(values), 1) for name, values in times.items()}
    print(json.dumps({"case": "startup", **medians, "difference_ms": round(statistics.median(differences), 1)}))


if __name__ == "__main__":
    main()
