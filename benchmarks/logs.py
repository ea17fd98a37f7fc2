"""How fast logs are read, merged and made fit for a terminal: MB/s of log, beside ``cat``, and the memory it takes.

    python -m benchmarks.logs [--megabytes 200] [--ranks 4]

One JSON line per kind of log. ``cpu_mb_per_s`` counts the processor time of the reader alone, without its start, which
a busy machine changes little; ``ratio_to_cat`` is of wall times, start included, taken in turns: the median of five.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

TURNS = 5
KINDS = {
    "plain": b"step %d/600  loss 5.120  140.2 samples/s  30 ms a step, 23%% waiting",
    "coloured": b"\x1b[32mstep\x1b[0m %d/600  loss \x1b[1m5.120\x1b[0m  140.2 samples/s",
    "utf-8": "épreuve %d/600  perte 5,120 — 140,2 échantillons/s".encode(),
}


def main() -> None:
    """Print one line per kind of log and way of asking."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=4)
    given = parser.parse_args()
    for kind, text in KINDS.items():
        with tempfile.TemporaryDirectory(dir="/dev/shm") as home:
            os.environ["VPIPE_HOME"] = home
            size = write(Path(home), text, given.megabytes << 20, given.ranks)
            for question in (["-f"], ["--grep", "77/600"]):
                found = measure(Path(home), question, size)
                print(json.dumps({"kind": kind, "asked": " ".join(question), **found}), flush=True)


def write(home: Path, text: bytes, size: int, ranks: int) -> int:
    """The logs of a run that has ended; their bytes."""
    from tests import runs

    files = runs.make_run(home, ranks=ranks)
    begin, total = datetime(2026, 11, 23, 12, 49), 0
    for rank in range(ranks):
        with files.log(1, rank).open("wb") as log:
            step = 0
            while log.tell() < size // ranks:
                at = begin + timedelta(microseconds=400 * step + 100 * rank)
                log.write(f"{at:%Y-%m-%dT%H:%M:%S.%f}Z o ".encode() + text % step + b"\n")
                step += 1
            total += log.tell()
    runs.state(files, "succeeded")
    return total


def measure(home: Path, question: list[str], size: int) -> dict[str, float]:
    """Wall time beside ``cat``, processor time, and the most memory, of `vpipe logs`."""
    logs = [str(path) for path in sorted(home.glob("runs/*/attempt-1/*.log"))]
    ratios, used, starting = [], [], []
    for _ in range(TURNS):
        cat = clock(["cat", *logs])
        wall, cpu = busy([sys.executable, "-m", "vpipe_cli.app", "logs", *question])
        starting.append(busy([sys.executable, "-m", "vpipe_cli.app", "logs", "--tail", "0"])[1])
        ratios.append(wall / cat)
        used.append(cpu)
    return {
        "megabytes": round(size / 1e6),
        "cpu_mb_per_s": round(size / 1e6 / (statistics.median(used) - statistics.median(starting))),
        "start_seconds": round(statistics.median(starting), 2),
        "ratio_to_cat": round(statistics.median(ratios), 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }


def busy(command: list[str]) -> tuple[float, float]:
    """Seconds a command takes, and seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = clock(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def clock(command: list[str]) -> float:
    """Seconds a command takes, its output thrown away by another process as a terminal would."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        while process.stdout.read(1 << 20):
            pass
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
