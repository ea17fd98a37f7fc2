"""The planner's choice beside the best of a sweep over partition and recompute_ratio: `python -m benchmarks.sweep`.

Measures the layers (`vpipe profile`), then runs twelve trials as `vpipe sweep` does. Prints a JSON line for each trial,
predicted and measured, and one that says how far the choice was from the best found, and whether the order agrees.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from benchmarks.folder import folder

CLUSTER: dict[str, object] = {
    "name": "sweep",
    "machines": ["cpu*2"],
    "model": {"name": "bert", "hidden_size": 128, "num_layers": 6, "num_heads": 4},
    "data": {"source": "python-stdlib", "sequence_length": 128, "minibatch_size": 16, "vocab_size": 2048},
    "pipeline": {"stages": 2, "sync_mode": "bsp", "minibatches_per_step": 8},
    "run": {"threads": 1},
}
SMALL: dict[str, object] = {
    **CLUSTER,
    "model": {"name": "bert", "hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "data": {"source": "synthetic", "sequence_length": 32, "minibatch_size": 4, "vocab_size": 300},
}
RATIOS = ("0", "0.5", "1")
SHOWN = ("samples_per_second", "step_seconds", "predicted_step_seconds", "peak_memory_bytes", "predicted_memory_bytes")


def compared(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The choice beside the best, and the share of pairs of trials whose order was predicted."""
    measured = [trial for trial in trials if trial["state"] == "succeeded"]
    best = max(measured, key=lambda trial: trial["samples_per_second"])
    chosen = next(trial for trial in measured if trial["planner"])
    pairs = [pair for pair in combinations(measured, 2) if all(each["predicted_step_seconds"] for each in pair)]
    right = sum(
        (a["predicted_step_seconds"] < b["predicted_step_seconds"]) == (a["step_seconds"] < b["step_seconds"])
        for a, b in pairs
    )
    return {
        "case": "choice",
        "trials": len(measured),
        "chosen": chosen["parameters"],
        "best": best["parameters"],
        "below_best": round(1 - chosen["samples_per_second"] / best["samples_per_second"], 4),
        "pairs_in_order": round(right / len(pairs), 4) if pairs else None,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep and print its records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model on made-up data, a few steps")
    quick = parser.parse_args(arguments).quick
    partitions = "partition=[3,3],[2,4],[4,2],[5,1]" if quick else "partition=[7,7],[6,8],[8,6],[9,5]"
    with folder(SMALL if quick else CLUSTER) as here:
        here.vpipe("profile")
        sweep = ("sweep", partitions, f"recompute_ratio={','.join(RATIOS)}", "--steps", "4" if quick else "40")
        trials = json.loads(here.vpipe(*sweep, "-o", "json"))["trials"]
    for trial in trials:
        record = {"case": "trial", **trial["parameters"], "planner": trial["planner"]}
        print(json.dumps(record | {name: trial[name] for name in SHOWN}))
    print(json.dumps(compared(trials)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
