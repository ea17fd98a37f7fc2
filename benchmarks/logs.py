"""How fast logs are read, merged and made fit for a terminal: MB/s of log, beside ``cat``, and the memory it takes.

    python -m benchmarks.logs [--megabytes 200] [--ranks 4] [--only here|ssh]

One JSON line per kind of log. ``cpu_mb_per_s`` counts the processor time of the reader alone, without its start, which
a busy machine changes little; ``ratio_to_cat`` is of wall times, start included, taken in turns: the median of five.

``where``: in this machine's files, or over SSH on two hosts (``tests/testbed``, which needs root); there
``cpu_mb_per_s`` has the ciphers and the channels in it, and ``host_cpu_mb_per_s`` is what sshd and the program that
reads the logs cost the hosts. The hosts' cores are this machine's, so there is no wall time to compare.
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

from tests import runs
from tests.spread import Spread
from tests.testbed.network import Testbed, lacks

TURNS = 5
KINDS = {
    "plain": b"step %d/600  loss 5.120  140.2 samples/s  30 ms a step, 23%% waiting",
    "coloured": b"\x1b[32mstep\x1b[0m %d/600  loss \x1b[1m5.120\x1b[0m  140.2 samples/s",
    "utf-8": "épreuve %d/600  perte 5,120 — 140,2 échantillons/s".encode(),
}


def main() -> None:
    """Print one line per kind of log and way of asking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--only", choices=["here", "ssh"])
    given = parser.parse_args()
    for kind, text in KINDS.items():
        with tempfile.TemporaryDirectory(dir="/dev/shm") as home:
            os.environ["VPIPE_HOME"] = home
            if given.only != "ssh":
                size = write(Path(home), text, given.megabytes << 20, given.ranks)
                for question in (["-f"], ["--grep", "77/600"]):
                    _print(kind, "here", question, measure(Path(home), question, size))
        with tempfile.TemporaryDirectory() as home:
            os.environ["VPIPE_HOME"] = home
            if given.only != "here" and not lacks():
                _print(kind, "ssh", [], measure_far(Path(home), text, given.megabytes << 20))


def _print(kind: str, where: str, question: list[str], found: dict[str, float]) -> None:
    print(json.dumps({"kind": kind, "where": where, "asked": " ".join(question), **found}), flush=True)


def write(home: Path, text: bytes, size: int, ranks: int) -> int:
    """The logs of a run that has ended; their bytes."""
    files = runs.make_run(home, ranks=ranks)
    total = sum(fill(files.log(1, rank), rank, text, size // ranks) for rank in range(ranks))
    runs.state(files, "succeeded")
    return total


def fill(path: Path, rank: int, text: bytes, size: int) -> int:
    """Write a rank's log; its bytes."""
    begin, step = datetime(2026, 11, 23, 12, 49), 0
    with path.open("wb") as log:
        while log.tell() < size:
            at = begin + timedelta(microseconds=400 * step + 100 * rank)
            log.write(f"{at:%Y-%m-%dT%H:%M:%S.%f}Z o ".encode() + text % step + b"\n")
            step += 1
        return log.tell()


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


def measure_far(home: Path, text: bytes, size: int) -> dict[str, float]:
    """Processor time of `vpipe logs` and of two hosts that have the logs of a run which goes on."""
    testbed = Testbed()
    try:
        spread = Spread(home, testbed)
        size = sum(fill(files.log(1, rank), rank, text, size // 2) for rank, files in enumerate(spread.there))
        command = [sys.executable, "-m", "vpipe_cli.app", "logs", spread.run.id]
        used, there, starting = [], [], []
        for _ in range(TURNS):
            before = sum(spent(host.pid) for host in spread.hosts)
            used.append(busy(command)[1])
            there.append(sum(spent(host.pid) for host in spread.hosts) - before)
            starting.append(busy([*command, "--tail", "0"])[1])
    finally:
        testbed.close()
    return {
        "megabytes": round(size / 1e6),
        "cpu_mb_per_s": round(size / 1e6 / (statistics.median(used) - statistics.median(starting))),
        "host_cpu_mb_per_s": round(size / 1e6 / statistics.median(there)),
        "start_seconds": round(statistics.median(starting), 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }


def spent(pid: int) -> float:
    """Seconds of processor time of a process, and of all that it started and waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


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
