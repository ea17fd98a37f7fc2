"""What recording spans costs: `python -m benchmarks.tracing`.

One run records windows of steps and leaves as many out between them, so that both meet the same noise. Of each window
the time beyond that of unrecorded steps, writing it out included, is set against the time of its steps; medians.
`cost` is what is left of that at the default sampling.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.folder import folder
from worker.spec.files import RunFiles

WINDOW = 16
"""Steps recorded at a time: what `trace.window: auto` means for two stages under asp."""
DEFAULT_INTERVAL = 100
CLUSTER: dict[str, object] = {
    "name": "tracing",
    "machines": ["cpu*2"],
    "model": {"name": "bert", "hidden_size": 128, "num_layers": 2, "num_heads": 4, "intermediate_size": 256},
    "data": {"source": "synthetic", "sequence_length": 64, "minibatch_size": 16, "vocab_size": 2048},
    "pipeline": {"stages": 2},
    "trace": {"window": WINDOW, "interval": 2 * WINDOW},
}


def extra(seconds: Sequence[float], window: int) -> list[float]:
    """Of each window, the share by which its steps took longer. ``seconds`` are those of the steps, from the second on.

    The spans of a window are written out in the step behind it, which therefore counts with the window.
    """
    found = []
    for begin in range(2 * window, len(seconds) - 2 * window + 1, 2 * window):
        usual = statistics.median(
            [*seconds[begin - window + 1 : begin], *seconds[begin + window + 1 : begin + 2 * window]]
        )
        found.append(sum(seconds[begin : begin + window + 1]) / usual / window - (window + 1) / window)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and print a record for each rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3200)
    steps = parser.parse_args(arguments).steps
    with folder({**CLUSTER, "run": {"steps": steps, "threads": 1}}) as here:
        files = RunFiles(Path(json.loads(here.vpipe("launch", "-o", "json"))["folder"]))
        for rank in range(2):
            lines = files.metrics(rank).read_text().splitlines()
            found = extra([json.loads(line)["seconds"] for line in lines[1:]], WINDOW)
            share = statistics.median(found)
            record = {"case": "tracing", "rank": rank, "windows": len(found), "recorded_steps_slower": round(share, 4)}
            print(json.dumps(record | {"cost": round(share * WINDOW / DEFAULT_INTERVAL, 5)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
