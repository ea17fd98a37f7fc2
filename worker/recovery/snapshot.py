"""A rank's state at a moment when nothing is in flight: copied out, so that training can go on; and put back.

Per layer one group of tensors: weights and buffers by full name, ``optimizer/KEY/NAME`` for the optimizer's state,
``older/NAME`` for the version before the current one where the schedule keeps one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from worker.alike import checksums
from worker.checkpoint import layout
from worker.executor import Executor
from worker.recovery import randomness
from worker.runtime import StageRuntime

OPTIMIZER, OLDER = "optimizer/", "older/"


@dataclass(frozen=True)
class Snapshot:
    """What one rank gives to a checkpoint.

    ``files`` are its tensors by file name; ``layers`` the file of each layer; ``parameters`` the file of each owned
    parameter with its shape and dtype; ``values`` what of an optimizer's state is no tensor, by parameter and key.
    ``sums`` are checksums of the parameters, where the stage has replicas, which must have the same.
    """

    files: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, tuple[str, list[int], str]] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=dict)
    scaler: dict[str, float] | None = None
    has_older: bool = False


class Camera:
    """Takes snapshots of one rank into memory that it keeps: fresh pages would cost more than the copying.

    Args:
        rank: whose executor it is. ``replicas``: the ranks of its stages; the first of them writes their layers.
    """

    def __init__(self, executor: Executor, rank: int, replicas: range, device: torch.device) -> None:
        self._executor = executor
        self._rank = rank
        self._writes_layers = rank == replicas[0]
        self._has_replicas = len(replicas) > 1
        self._device = device
        self._memory: dict[tuple[str, str], Tensor] = {}

    def take(self) -> Snapshot:
        """The rank as it stands. The tensors are overwritten by the next one."""
        scaler = self._executor.scaler
        taken = Snapshot(scaler=scaler.state() if scaler else None, has_older=any(map(_older, self._runtimes())))
        own = taken.files[layout.rank_file(self._rank)] = randomness.states(self._device)
        for runtime in self._runtimes():
            assert runtime.is_drained, "a checkpoint is taken while minibatches are in flight"
            if self._has_replicas:
                taken.sums.update(checksums(runtime.stash.parameters))
            for position, layer in enumerate(runtime.stage.layers):
                module = runtime.stage.modules[position]
                if self._writes_layers:
                    name = layout.layer_file(runtime.stage.first_layer + position, layer.name)
                    self._layer(taken, name, layer.name, module, runtime)
                else:  # the replicas' buffers are their own
                    own.update(self._kept(layout.rank_file(self._rank), dict(buffers(layer.name, module))))
        return taken

    def _runtimes(self) -> list[StageRuntime]:
        return list(self._executor.stages.values())

    def _layer(self, taken: Snapshot, file: str, name: str, module: nn.Module, runtime: StageRuntime) -> None:
        tensors = dict(buffers(name, module))
        older = _older(runtime)
        for full in owned(name, module, runtime):
            parameter = runtime.stash.parameters[full]
            taken.parameters[full] = (file, list(parameter.shape), str(parameter.dtype).removeprefix("torch."))
            tensors[full] = parameter
            if full in older:
                tensors[f"{OLDER}{full}"] = older[full]
            for key, value in _state(runtime, parameter).items():
                if isinstance(value, Tensor):
                    tensors[f"{OPTIMIZER}{key}/{full}"] = value
                elif value is not None:
                    taken.values.setdefault(full, {})[key] = float(value)
        if tensors:
            taken.layers[name] = file
            taken.files[file] = self._kept(file, tensors)

    def _kept(self, file: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the CPU."""
        copies = {}
        for name, tensor in tensors.items():
            memory = self._memory.get((file, name))
            if memory is None or memory.shape != tensor.shape or memory.dtype != tensor.dtype:
                memory = torch.empty(tensor.shape, dtype=tensor.dtype)
                self._memory[file, name] = memory
            copies[name] = memory.copy_(tensor.detach())
        return copies


def put_back(
    executor: Executor, tensors: Mapping[str, Tensor], values: Mapping[str, Mapping[str, float]], step: int
) -> None:
    """Give the rank the state that ``tensors``, those of all its layers' files, and ``values`` hold."""
    for runtime in executor.stages.values():
        with torch.no_grad():
            for full, parameter in runtime.stash.parameters.items():
                parameter.copy_(tensors[full])
            for layer, module in zip(runtime.stage.layers, runtime.stage.modules, strict=True):
                for full, buffer in buffers(layer.name, module):
                    buffer.copy_(tensors[full])
        older = {full: tensors[f"{OLDER}{full}"] for full in runtime.stash.parameters if f"{OLDER}{full}" in tensors}
        older = {full: tensor.to(runtime.stage.device) for full, tensor in older.items()}
        runtime.stash.restore(step, older)
        runtime.updates = step
        _put_state_back(runtime, tensors, values)


def buffers(layer: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that belong to a module's state, by full name."""
    for path, part in module.named_modules(prefix=layer):
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                yield f"{path}.{name}", buffer


def owned(layer: str, module: nn.Module, runtime: StageRuntime) -> list[str]:
    """Full names of a layer's parameters, borrowed ones left out."""
    names = [name for name, _ in module.named_parameters(prefix=layer, remove_duplicate=False)]
    return [name for name in names if name in runtime.stash.parameters]


def _older(runtime: StageRuntime) -> Mapping[str, Tensor]:
    return runtime.stash.older


def _state(runtime: StageRuntime, parameter: nn.Parameter) -> dict[str, Any]:
    return dict(runtime.optimizer.state.get(parameter, {})) if runtime.optimizer else {}


def _put_state_back(
    runtime: StageRuntime, tensors: Mapping[str, Tensor], values: Mapping[str, Mapping[str, float]]
) -> None:
    """By way of the optimizer's own ``load_state_dict``, which knows what must be on the device."""
    if runtime.optimizer is None:
        return
    names = {id(parameter): full for full, parameter in runtime.stash.parameters.items()}
    saved: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            key, _, full = name.removeprefix(OPTIMIZER).partition("/")
            saved.setdefault(full, {})[key] = tensor
    for full, each in values.items():
        saved.setdefault(full, {}).update(each)
    whole = runtime.optimizer.state_dict()
    order = [parameter for group in runtime.optimizer.param_groups for parameter in group["params"]]
    whole["state"] = {i: saved[names[id(p)]] for i, p in enumerate(order) if names[id(p)] in saved}
    runtime.optimizer.load_state_dict(whole)
