"""What crosses each cut of a model: names from the layers' own lists, shapes and dtypes from the meta device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.data.base import Signature, TensorSpec
from worker.errors import ModelError
from worker.models.base import Layer, Model
from worker.precision import rounded


@dataclass(frozen=True)
class Cut:
    """The tensors that cross between two layers, in an order both sides know.

    ``differentiable`` are those whose gradient travels back: floating point, and made by a layer, not by the data.
    """

    specs: Mapping[str, TensorSpec]
    differentiable: frozenset[str]


@dataclass(frozen=True)
class Flow:
    """A model that has been walked once on the meta device.

    ``cuts[i]`` stands before layer i; ``modules`` are the layers without storage, to be materialised by their stage.
    ``holders`` gives for every full parameter name, in layer order, the layer that has it; ``tied`` is the model's, in
    the order of the borrowers' layers.
    """

    cuts: tuple[Cut, ...]
    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    holders: Mapping[str, int]
    tied: Mapping[str, str]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Full names of all parameters in layer order, borrowed ones left out."""
        return tuple(name for name in self.holders if name not in self.tied)

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype of a parameter by full name."""
        layer = self.holders[name]
        parameters = dict(self.modules[layer].named_parameters(prefix=self.names[layer]))
        return TensorSpec(tuple(parameters[name].shape), parameters[name].dtype)


def trace(model: Model, signature: Signature, dtype: torch.dtype | None = None) -> Flow:
    """Walk ``model`` on the meta device.

    Raises ModelError naming the layer that takes a tensor nobody gives, fails on its input, or returns something else
    than it says.
    """
    modules = tuple(_build(layer) for layer in model.layers)
    values = {name: torch.empty(spec.shape, dtype=spec.dtype, device="meta") for name, spec in signature.inputs.items()}
    from_data = set(values)
    cuts = []
    for index, layer in enumerate(model.layers):
        _check_inputs(model, index, values, signature)
        live = [name for name in values if _is_needed(name, model.layers[index:])]
        cuts.append(_cut({name: values[name] for name in live}, from_data))
        if index < len(model.layers) - 1:
            for name, value in zip(layer.outputs, _run(layer, modules[index], values), strict=True):
                values[name] = rounded(value, dtype)
                from_data.discard(name)
    holders = _holders(model, modules)
    return Flow(
        cuts=tuple(cuts),
        names=tuple(layer.name for layer in model.layers),
        modules=modules,
        holders=holders,
        tied={name: model.tied[name] for name in holders if name in model.tied},
    )


def _build(layer: Layer) -> nn.Module:
    with torch.device("meta"):
        return layer.build()


def _is_needed(name: str, layers: Sequence[Layer]) -> bool:
    """Whether the value that ``name`` has now is taken by one of ``layers`` before another is given that name."""
    for layer in layers:
        if name in layer.inputs:
            return True
        if name in layer.outputs:
            return False
    return False


def _cut(values: Mapping[str, Tensor], from_data: set[str]) -> Cut:
    return Cut(
        specs={name: TensorSpec(tuple(value.shape), value.dtype) for name, value in values.items()},
        differentiable=frozenset(n for n, v in values.items() if v.is_floating_point() and n not in from_data),
    )


def _check_inputs(model: Model, index: int, values: Mapping[str, Tensor], signature: Signature) -> None:
    layer, last = model.layers[index], index == len(model.layers) - 1
    known = set(values) | (set(signature.targets) if last else set())
    if missing := [name for name in layer.inputs if name not in known]:
        raise ModelError(
            f"layer {layer.name} takes {', '.join(missing)}, which no earlier layer and no input of the data gives",
            f"known here: {', '.join(sorted(known))}; targets reach the last layer only",
        )


def _run(layer: Layer, module: nn.Module, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The outputs of one layer on the meta device."""
    try:
        with torch.no_grad():
            result = module(*(values[name] for name in layer.inputs))
    except Exception as error:
        raise ModelError(f"layer {layer.name} fails on its input: {type(error).__name__}: {error}") from error
    outputs = result if isinstance(result, tuple) else (result,)
    if len(outputs) != len(layer.outputs) or not all(isinstance(value, Tensor) for value in outputs):
        kinds = ", ".join(type(value).__name__ for value in outputs)
        raise ModelError(f"layer {layer.name} returns ({kinds}) for its outputs {', '.join(layer.outputs)}")
    return outputs


def _holders(model: Model, modules: Sequence[nn.Module]) -> dict[str, int]:
    """The layer of every parameter, by full name; checks that names and ties make sense."""
    holders: dict[str, int] = {}
    for index, (layer, module) in enumerate(zip(model.layers, modules, strict=True)):
        for name, _ in module.named_parameters(prefix=layer.name):
            if name in holders:
                raise ModelError(f"two parameters have the name {name}", "give every layer a name of its own")
            holders[name] = index
    for borrower, owner in model.tied.items():
        if borrower not in holders or owner not in holders:
            raise ModelError(f"tied parameters {borrower} and {owner}: the model lacks one of them")
        if holders[owner] > holders[borrower]:
            raise ModelError(f"{borrower} borrows {owner}, whose layer comes later", "let the earlier layer own it")
    return holders
