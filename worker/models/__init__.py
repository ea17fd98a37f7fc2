"""Models as lists of layers: the one that cluster.yml names, and the initial values of any layer."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import nn

from worker.data import signature
from worker.errors import ModelError
from worker.models import bert as bert
from worker.models.base import Layer, Model
from worker.rng import key
from worker.spec.cluster import ClusterSpec
from worker.spec.model import (
    BertSpec,
    EntrySpec,
    GnmtSpec,
    Gpt2Spec,
    HfSpec,
    ModelSection,
    ResNetSpec,
    TransformerSpec,
    VggSpec,
)

__all__ = ["Layer", "Model", "build_model", "initialise"]


def build_model(spec: ClusterSpec) -> Model:
    """The job's model; nothing is allocated before a layer is built.

    Raises:
        ModelError: the user's own code or the transformers package refuse, the model cannot be cut, or the weights to
            begin with are of another.
    """
    if isinstance(spec.model, EntrySpec):
        from worker.models import users

        return users.build(spec.model, spec.data, signature(spec))
    module, _, function = _FAMILIES[type(spec.model)].partition(":")
    model: Model = getattr(import_module(f"worker.models.{module}"), function)(spec.model, spec.data)
    if isinstance(spec.model, BertSpec | Gpt2Spec) and spec.model.folder is not None:
        from worker.models import start

        return start.from_folder(spec.model, spec.data, model)  # type: ignore[arg-type]
    return model


_FAMILIES: dict[type[ModelSection], str] = {
    BertSpec: "bert:build",
    Gpt2Spec: "gpt2:build",
    TransformerSpec: "transformer:build",
    GnmtSpec: "gnmt:build",
    ResNetSpec: "vision:build_resnet",
    VggSpec: "vision:build_vgg",
    HfSpec: "hf:build",
}
"""Module and function that build each family; imported when needed."""


def initialise(layer_name: str, module: nn.Module, seed: int) -> None:
    """Give a layer on the CPU its initial values: the same for (seed, name) whatever was drawn before or after.

    Torch's CPU generator is left as it was found.

    Raises:
        ModelError: a part of the layer has parameters or buffers and no ``reset_parameters`` to set them.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(key(seed, layer_name))
    try:
        _reset(layer_name, module)
    finally:
        torch.default_generator.set_state(state)


def _reset(path: str, module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        with torch.no_grad():
            reset()
        return
    own = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
    if own:
        raise ModelError(
            f"{path}.{own[0]} has no initial value: {type(module).__name__} has no reset_parameters()",
            "give the module a reset_parameters() that sets all its parameters and buffers",
        )
    for name, child in module.named_children():
        _reset(f"{path}.{name}", child)
