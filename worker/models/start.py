"""bert and gpt2 that begin with published weights: the layers of the model, with initial values from ``model.folder``.

Every rank compares config.json and the names and shapes of all weights; it reads those of its own layers only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worker.errors import ModelError
from worker.models import folder, names
from worker.models.base import Layer, Model
from worker.spec.data import DataSpec, Hdf5Spec, SyntheticSpec
from worker.spec.model import BertSpec, Gpt2Spec

Texts = DataSpec | Hdf5Spec | SyntheticSpec

POSITIONS = {"bert.embeddings.position_embeddings.weight", "transformer.wpe.weight"}
HOW = "publish it with save_pretrained as {}; model.folder=null starts at random, or with a checkpoint's weights"

SIZES: dict[type, dict[str, str]] = {
    BertSpec: {
        "model_type": "model.name",
        "hidden_size": "model.hidden_size",
        "num_hidden_layers": "model.num_layers",
        "num_attention_heads": "model.num_heads",
        "intermediate_size": "model.intermediate_size",
        "vocab_size": "data.vocab_size",
    },
    Gpt2Spec: {
        "model_type": "model.name",
        "n_embd": "model.hidden_size",
        "n_layer": "model.num_layers",
        "n_head": "model.num_heads",
        "n_inner": "model.intermediate_size",
        "vocab_size": "data.vocab_size",
    },
}
"""What config.json and cluster.yml say alike."""

FIXED: dict[type, dict[str, Any]] = {
    BertSpec: {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "is_decoder": False,
        "tie_word_embeddings": True,
    },
    Gpt2Spec: {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
}
"""What models of the family may choose, and these do not; as here where config.json is silent."""

UNUSED = {
    BertSpec: r"(bert\.)?embeddings\.position_ids|cls\.predictions\.decoder\.(weight|bias)",
    Gpt2Spec: r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias|lm_head\.weight",
}
"""Copies of tied weights, and constants that files of older versions have."""
SECOND_LOSS = r"|(bert\.)?pooler\..*|cls\.seq_relationship\..*"


def from_folder(spec: BertSpec | Gpt2Spec, data: Texts, model: Model) -> Model:
    """``model`` whose layers begin with the weights in ``spec.folder``.

    Raises:
        ModelError: they are of another model or another size, one is missing, or one has no place here.
    """
    where = Path(spec.folder or "")
    _check_config(where, spec, data)
    weights = _Stored(folder.index(where, "start at random with model.folder=null"))
    _check_names(where, spec, model, weights, data.sequence_length)
    return replace(model, layers=tuple(_beginning(layer, spec, model, weights) for layer in model.layers))


@dataclass(frozen=True)
class _Stored(Mapping[str, Tensor]):
    """The weights of a folder, read when they are asked for; ``rows`` of a table of positions."""

    files: dict[str, Path]
    rows: int | None = None

    def __getitem__(self, name: str) -> Tensor:
        return folder.read(self.files[name], name, self.rows)

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _check_config(where: Path, spec: BertSpec | Gpt2Spec, data: Texts) -> None:
    there = folder.config(where)
    here = names.config(spec, data.vocab_size, data.sequence_length)
    if "n_inner" in here and there.get("n_inner") is None:
        there = {**there, "n_inner": 4 * there.get("n_embd", 0)}
    sizes = SIZES[type(spec)] if there.get("model_type") == here["model_type"] else {"model_type": "model.name"}
    wrong = [
        f"{ours} is {here[theirs]}, but {theirs} there is {there.get(theirs, 'not said')}"
        for theirs, ours in sizes.items()
        if there.get(theirs) != here[theirs]
    ]
    if wrong:
        raise ModelError(
            f"model.folder {where} has another model: {'; '.join(wrong)}", "set these keys to what its config.json says"
        )
    for key, value in FIXED[type(spec)].items():
        if there.get(key, value) != value:
            message = (
                f"model.folder {where} has {key} {there[key]}, but {there['model_type']} here is built with {value}"
            )
            raise ModelError(message, "model.name=hf runs transformers' own code for such a folder")


def _check_names(where: Path, spec: BertSpec | Gpt2Spec, model: Model, weights: _Stored, length: int) -> None:
    """Each weight once, of the right shape; none that means something and is not taken."""
    how = HOW.format(names.config(spec, 0, 0)["architectures"][0])  # type: ignore[index]
    expected = {name: tuple(each.shape) for name, each in names.published(spec, _empty(model)).items()}
    stored = {name: names.stored_name(weights, name) for name in expected}
    for name, found in stored.items():
        if found is None:
            raise ModelError(f"model.folder {where} has no {name}", how)
        shape = folder.shape(weights.files[found], found)
        if name in POSITIONS:  # the first ones are enough
            if shape[:1] < (length,):
                message = f"data.sequence_length is {length}, but model.folder {where} has {shape[0]} positions"
                raise ModelError(message, f"set data.sequence_length to at most {shape[0]}")
            shape = (length, *shape[1:])
        if shape != expected[name]:
            message = f"{found} in model.folder {where} has the shape {shape}; it must be {expected[name]}"
            raise ModelError(message, "see model.* and data.vocab_size, which say the sizes")
    unused = UNUSED[type(spec)] + (SECOND_LOSS if isinstance(spec, BertSpec) and not spec.pairs else "")
    surplus = sorted(name for name in weights.files.keys() - set(stored.values()) if not re.fullmatch(unused, name))
    if surplus:
        more = f" and {len(surplus) - 1} more" if len(surplus) > 1 else ""
        message = f"model.folder {where} has {surplus[0]}{more}, for which {getattr(spec, 'name', '')} has no place"
        raise ModelError(message, how)


def _empty(model: Model) -> dict[str, Tensor]:
    """Every parameter that the model owns, without storage."""
    with torch.device("meta"):
        found = {f"{each.name}.{name}": p for each in model.layers for name, p in each.build().named_parameters()}
    return {name: parameter for name, parameter in found.items() if name not in model.tied}


def _beginning(layer: Layer, spec: BertSpec | Gpt2Spec, model: Model, weights: _Stored) -> Layer:
    return replace(layer, build=partial(_built, layer, spec, model, weights))


def _built(layer: Layer, spec: BertSpec | Gpt2Spec, model: Model, weights: _Stored) -> nn.Module:
    module = layer.build()
    module.reset_parameters = partial(_fill, module, layer.name, spec, model, weights)  # type: ignore[assignment]
    return module


def _fill(module: nn.Module, layer: str, spec: BertSpec | Gpt2Spec, model: Model, weights: _Stored) -> None:
    for key, parameter in module.named_parameters():
        if (name := f"{layer}.{key}") not in model.tied:
            source = replace(weights, rows=len(parameter)) if key == "position.weight" else weights
            parameter.data.copy_(names.ours(spec, source, [name])[name])
