"""Asks a model's own code for its layers, where cluster.yml alone does not tell them: in a process that has torch."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import lru_cache

from worker.errors import UsageError
from worker.spec.cluster import ClusterSpec

DEADLINE = 120.0
"""Seconds; importing torch and transformers takes some ten."""


def layer_flops(spec: ClusterSpec) -> list[float] | None:
    """Forward FLOPs of each layer of a model that only its own code knows.

    None for any other model, and where this machine has no torch.

    Raises:
        UsageError: the code fails or cannot be cut, with what it says; or takes longer than DEADLINE.
    """
    if spec.model.layer_count is not None or importlib.util.find_spec("torch") is None:
        return None
    return list(_ask(spec.model_copy(update={"machines": ["cpu"]}).model_dump_json()))


@lru_cache(maxsize=32)
def _ask(spec: str) -> tuple[float, ...]:
    command = [sys.executable, "-m", "worker.outline"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        ended = subprocess.run(command, input=spec, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        message = f"the model's own code did not tell its layers within {DEADLINE:.0f} s"
        raise UsageError(message, "give the layers per stage: pipeline.partition") from None
    try:
        told = json.loads(ended.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise UsageError(f"the model's own code could not tell its layers: {last}") from None
    if "error" in told:
        raise UsageError(told["error"], told["hint"])
    return tuple(told["flops"])
