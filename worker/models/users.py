"""The user's own model: what ``model.entry`` returns, as layers.

A ``Model`` or a list of ``Layer`` is taken as it is; of an ``nn.Sequential`` or a list of modules each is a layer, the
last one's output are logits, and the cross entropy with ``labels`` is added. Parameters start as the user's
constructors set them: a layer is built a second time on the CPU, with random numbers keyed by seed and layer name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from worker import entry
from worker.data.base import Signature
from worker.errors import ModelError
from worker.models.base import Layer, Model
from worker.models.parts import token_loss, token_scores
from worker.spec.data import AnyData
from worker.spec.model import EntrySpec

OFFERED = ("vocab_size", "sequence_length", "minibatch_size", "image_size", "classes")
"""Keys of ``data`` that the function gets if it has a parameter of that name."""


def build(spec: EntrySpec, data: AnyData, signature: Signature) -> Model:
    """The layers of the user's model.

    Raises:
        ModelError: the function is not there, raises, or returns something else; or a module is in two layers.
    """
    call = partial(_call, spec, data)
    with torch.device("meta"):
        made = call()
    if isinstance(made, Model):
        return replace(made, layers=tuple(_keeping_values(layer) for layer in made.layers))
    if isinstance(made, (list, tuple, nn.Sequential, nn.ModuleList)) and len(made):
        parts: list[Any] = list(made)
        if all(isinstance(part, Layer) for part in parts):
            return Model(tuple(_keeping_values(layer) for layer in parts))
        if all(isinstance(part, nn.Module) for part in parts):
            return _of_modules(spec, parts, call, signature)
    what = "nothing" if made is None else f"a {type(made).__name__}"
    if isinstance(made, (list, tuple)):
        what = f"a list of {', '.join(sorted({type(part).__name__ for part in made})) or 'nothing'}"
    raise ModelError(
        f"model.entry {spec.entry} returns {what}",
        "return an nn.Sequential, a list of modules or of Layer, or a Model; docs/your-own-model.md has examples",
    )


def _call(spec: EntrySpec, data: AnyData) -> Any:
    offered = {name: getattr(data, name) for name in OFFERED if hasattr(data, name)}
    return entry.call(spec.entry, spec.args, ModelError, offered, spec.code)


def _of_modules(spec: EntrySpec, parts: Sequence[nn.Module], call: Callable[[], Any], signature: Signature) -> Model:
    """Each module a layer, named by its number."""
    owners: dict[int, str] = {}
    for number, part in enumerate(parts):
        for name, parameter in part.named_parameters():
            first = owners.setdefault(id(parameter), f"{number}.{name}")
            if first.partition(".")[0] != str(number):
                raise ModelError(
                    f"model.entry {spec.entry}: layers {first.partition('.')[0]} and {number} share {first}",
                    "give each a module of its own; Model.tied can tie single parameters across layers",
                )
    inputs, targets = tuple(signature.inputs), tuple(signature.targets)
    if len(targets) != 1:
        raise ModelError(
            f"model.entry {spec.entry} returns modules, but the data have the targets {', '.join(targets)}",
            "return Layers, the last of which takes them and gives the loss",
        )
    layers = []
    for number in range(len(parts)):
        takes = inputs if number == 0 else ("hidden",)
        layers.append(_keeping_values(Layer(str(number), partial(_nth, call, number), takes, ("hidden",))))
    last = layers.pop()
    takes = (*last.inputs, targets[0])
    layers.append(_keeping_values(Layer(last.name, partial(_with_loss, call, len(parts) - 1), takes, ("loss",))))
    return Model(tuple(layers))


def _nth(call: Callable[[], Any], number: int) -> nn.Module:
    module = list(call())[number]
    assert isinstance(module, nn.Module)
    return module


def _with_loss(call: Callable[[], Any], number: int) -> nn.Module:
    return Logits(_nth(call, number))


class Logits(nn.Module):
    """A module whose output are logits, and their cross entropy: (..., c) and labels (...) -> (1,), the sum."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor) -> Tensor:
        """The last of ``tensors`` are the labels."""
        return token_loss(self._logits(tensors), tensors[-1])

    def scores(self, *tensors: Tensor) -> Tensor:
        """Evaluation: how many labels were the likeliest, and among the five likeliest."""
        return token_scores(self._logits(tensors), tensors[-1])

    def guesses(self, *tensors: Tensor) -> Tensor:
        """Translation: the likeliest next token at every place; no earlier one may know of it."""
        return self._logits(tensors).argmax(-1)

    def _logits(self, tensors: tuple[Tensor, ...]) -> Tensor:
        logits = self.module(*tensors[:-1])
        if not isinstance(logits, Tensor) or logits.dim() != tensors[-1].dim() + 1:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ModelError(
                f"the last module gives {shape} for labels of {tuple(tensors[-1].shape)}",
                "it must give logits: one more dimension than the labels, of the size of the classes",
            )
        return logits


def _keeping_values(layer: Layer) -> Layer:
    """``layer`` with parameters that start as its constructor sets them, unless it says how itself."""
    return replace(layer, build=partial(_with_values, layer))


def _with_values(layer: Layer) -> nn.Module:
    module = layer.build()
    if isinstance(module, nn.Module):
        module.reset_parameters = partial(_copy_from_new, layer, module)  # type: ignore[assignment]
        return module
    what = "nothing" if module is None else f"a {type(module).__name__}"
    raise ModelError(f"build of layer {layer.name} returns {what}, not a module")


def _copy_from_new(layer: Layer, module: nn.Module) -> None:
    with torch.device("cpu"):
        new = layer.build()
    fresh = {**dict(new.named_parameters()), **dict(new.named_buffers())}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        tensor.data.copy_(fresh[name])
