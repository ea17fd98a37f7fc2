"""`python -m worker.outline < spec.json`: the layers of a model whose own code alone knows them, and what each costs.

Run by the planner's side on a machine that has torch: nothing is allocated, layers are walked on the meta device.
Prints one JSON object: ``names`` and ``flops`` of the layers, or ``error`` and ``hint``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from worker import data, models
from worker.data.base import Signature, TensorSpec
from worker.eager import spare_the_compiler
from worker.errors import VpipeError
from worker.flow import trace
from worker.models.base import Model
from worker.spec.cluster import ClusterSpec


def outline(spec: ClusterSpec) -> dict[str, Any]:
    """Names of the layers, and forward FLOPs of each for one minibatch.

    Raises:
        ModelError, DataError: the model cannot be built or cut.
    """
    model, signature = models.build_model(spec), data.signature(spec)
    modules = trace(model, signature).modules
    return {"names": [layer.name for layer in model.layers], "flops": _flops(model, modules, signature)}


def _flops(model: Model, modules: tuple[nn.Module, ...], signature: Signature) -> list[float]:
    values = {name: _empty(spec) for name, spec in {**signature.inputs, **signature.targets}.items()}
    costs = []
    for layer, module in zip(model.layers, modules, strict=True):
        count, results = _counted(lambda layer=layer, module=module: module(*(values[n] for n in layer.inputs)))  # type: ignore[misc]
        outputs = results if isinstance(results, tuple) else (results,)
        if results is not None:
            values.update(zip(layer.outputs, outputs, strict=True))
        else:  # a loss that looks into its values: its matrices, once for each place
            places = max(max(spec.shape[0] * (spec.shape[1:2] or (1,))[0], 1) for spec in signature.targets.values())
            count = 2.0 * places * sum(p.numel() for p in module.parameters() if p.dim() > 1)
        elements = sum(value.numel() for value in outputs if isinstance(value, Tensor))
        costs.append(count + 10.0 * elements)
    return costs


def _counted(run: Callable[[], Any]) -> tuple[float, Any]:
    """The FLOPs of matrix products in ``run``, and what it returns; None where it needs values."""
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            results = run()
    except (RuntimeError, NotImplementedError, TypeError):
        return 0.0, None
    return float(counter.get_total_flops()), results


def _empty(spec: TensorSpec) -> Tensor:
    return torch.empty(spec.shape, dtype=spec.dtype, device="meta")


def main() -> None:
    """Read a ClusterSpec from the standard input and print what there is to say."""
    out = os.fdopen(os.dup(1), "w")
    spare_the_compiler()
    with redirect_stdout(sys.stderr):  # whatever the user's code prints
        try:
            told = outline(ClusterSpec.model_validate_json(sys.stdin.read()))
        except VpipeError as error:
            told = {"error": error.message, "hint": error.hint}
    out.write(json.dumps(told) + "\n")
    out.close()


if __name__ == "__main__":
    main()
