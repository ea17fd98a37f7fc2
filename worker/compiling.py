"""torch.compile of a stage: layer by layer, so that the partition changes nothing, and before the run is ready."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from worker import buffers
from worker.data.base import TensorSpec
from worker.errors import ModelError
from worker.stage import Stage


def prepare(cache: Path) -> None:
    """Have the compiler work in this process, and keep what it makes in ``cache``, a folder of the user's alone.

    By itself it starts processes of its own, and keeps programs under /tmp, where others could put theirs before it.
    """
    own = cache / "inductor"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(own)  # torch has set it on being imported


def compile_layers(stage: Stage, loss_weights: str, targets: Mapping[str, TensorSpec]) -> None:
    """Compile the layers of ``stage`` by running it once, forward and backward, on zeros.

    The model's last layer, the loss, is left as it is: its sizes may depend on values, and so it would be compiled
    again in the midst of a run.

    Args:
        loss_weights: the name of the seed of the backward among ``targets``, which are those of the last stage.
    Raises:
        ModelError: the compiler cannot, or is not there.
    """
    try:
        for module in stage.modules if stage.outgoing else stage.modules[:-1]:
            module.compile()
        _run(stage, loss_weights, targets)
    except Exception as error:
        what = str(error).strip().splitlines()[0]
        names = f"{stage.layers[0].name} to {stage.layers[-1].name}"
        raise ModelError(
            f"layers {names} cannot be compiled: {type(error).__name__}: {what}",
            "on a CPU that needs a C++ compiler on every machine, or in the image; or leave out pipeline.compile",
        ) from error


def _run(stage: Stage, loss_weights: str, targets: Mapping[str, TensorSpec]) -> None:
    with ExitStack() as untouched:
        for module in stage.modules:
            untouched.enter_context(buffers.kept(module))
        given = _zeros(targets, stage.device) if stage.outgoing is None else {}
        graph = stage.forward(0, _zeros(stage.incoming.specs, stage.device), given)
        names = sorted(stage.outgoing.differentiable) if stage.outgoing else []
        stage.backward(graph, {name: torch.zeros_like(graph.outputs[name]) for name in names}, given.get(loss_weights))
        stage.finish(graph)
    stage.stash.gradients.clear()


def _zeros(specs: Mapping[str, TensorSpec], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.zeros(spec.shape, dtype=spec.dtype, device=device) for name, spec in specs.items()}
