"""Weights under the names that others publish them with, both ways: BERT and GPT-2 as transformers has them, and hf.

``published`` and ``ours`` undo each other. torchvision's names are those of resnet50 and vgg16 here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worker.errors import ModelError
from worker.models import hf
from worker.spec.cluster import ClusterSpec
from worker.spec.files import write_atomic
from worker.spec.model import BertSpec, Gpt2Spec, HfSpec, ModelSection

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """Where one of our parameters is published: ``parts``, laid end to end; matrices of GPT-2 stand on their side."""

    parts: tuple[str, ...]
    turned: bool = False


def published(spec: ModelSection, weights: Mapping[str, Tensor]) -> Weights:
    """``weights`` of the model of ``spec`` by published names; tied ones once, under their owner's name.

    Raises:
        ModelError: nobody publishes such a model.
    """
    if isinstance(spec, HfSpec):
        return {_strip(name): tensor for name, tensor in weights.items()}
    table = _table(spec)
    found = {}
    for name, tensor in weights.items():
        place = table[name]
        for part, value in zip(place.parts, tensor.chunk(len(place.parts)), strict=True):
            found[part] = value.T.contiguous() if place.turned else value.clone()
    return found


def ours(spec: ModelSection, weights: Mapping[str, Tensor], wanted: Iterable[str] | None = None) -> Weights:
    """Published ``weights`` by our names: ``wanted``, or all that the model has.

    Raises:
        ModelError: one is missing; or nobody publishes such a model.
    """
    table = _table(spec)
    found = {}
    for name in table if wanted is None else wanted:
        place = table[name]
        parts = [_find(weights, part) for part in place.parts]
        found[name] = torch.cat([part.T if place.turned else part for part in parts])
    return found


def stored_name(weights: Collection[str], name: str) -> str | None:
    """How the published ``name`` is called in ``weights``: so, or as in a file of the bare model, or of long ago."""
    older = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    candidates = [each for full in (name, older) for each in (full, full.partition(".")[2])]
    return next((each for each in candidates if each in weights), None)


def _find(weights: Mapping[str, Tensor], name: str) -> Tensor:
    found = stored_name(weights, name)
    if found is None:
        raise ModelError(f"the weights to import have no {name}", "they must be of a model of the same family and size")
    return weights[found]


def _strip(name: str) -> str:
    return name.removeprefix(f"{hf.BEFORE}.").removeprefix(f"{hf.BEHIND}.")


def _table(spec: ModelSection) -> dict[str, Published]:
    make = {BertSpec: _bert, Gpt2Spec: _gpt2}.get(type(spec))
    if make is None:
        raise ModelError(f"there are no published names for model {getattr(spec, 'name', 'entry')}")
    return make(spec)  # type: ignore[operator,no-any-return]


def _bert(spec: BertSpec) -> dict[str, Published]:
    """As ``BertForPreTraining`` has them."""
    pairs: dict[str, tuple[str, ...]] = {
        "embeddings.norm": ("bert.embeddings.LayerNorm",),
        "head.transform": ("cls.predictions.transform.dense",),
        "head.norm": ("cls.predictions.transform.LayerNorm",),
    }
    if spec.pairs:
        pairs |= {"head.pooler": ("bert.pooler.dense",), "head.classifier": ("cls.seq_relationship",)}
    for index in range(spec.num_layers):
        here, there = f"encoder.{index}", f"bert.encoder.layer.{index}"
        parts = tuple(f"{there}.attention.self.{name}" for name in ("query", "key", "value"))
        pairs[f"{here}.attention.query_key_value"] = parts
        pairs[f"{here}.attention.output"] = (f"{there}.attention.output.dense",)
        pairs[f"{here}.attention.norm"] = (f"{there}.attention.output.LayerNorm",)
        pairs[f"{here}.feed_forward.expand"] = (f"{there}.intermediate.dense",)
        pairs[f"{here}.feed_forward.contract"] = (f"{there}.output.dense",)
        pairs[f"{here}.feed_forward.norm"] = (f"{there}.output.LayerNorm",)
    embeddings = {"word": "word_embeddings", "position": "position_embeddings", "segment": "token_type_embeddings"}
    return {
        **{f"embeddings.{a}.weight": Published((f"bert.embeddings.{b}.weight",)) for a, b in embeddings.items()},
        **_both(pairs, lambda name: False),
        "head.decoder.bias": Published(("cls.predictions.bias",)),
    }


def _gpt2(spec: Gpt2Spec) -> dict[str, Published]:
    """As ``GPT2LMHeadModel`` has them."""
    pairs: dict[str, tuple[str, ...]] = {"head.norm": ("transformer.ln_f",)}
    for index in range(spec.num_layers):
        here, there = f"block.{index}", f"transformer.h.{index}"
        pairs[f"{here}.attention.norm"] = (f"{there}.ln_1",)
        pairs[f"{here}.attention.query_key_value"] = (f"{there}.attn.c_attn",)
        pairs[f"{here}.attention.output"] = (f"{there}.attn.c_proj",)
        pairs[f"{here}.feed_forward.norm"] = (f"{there}.ln_2",)
        pairs[f"{here}.feed_forward.expand"] = (f"{there}.mlp.c_fc",)
        pairs[f"{here}.feed_forward.output"] = (f"{there}.mlp.c_proj",)
    return {
        "embeddings.word.weight": Published(("transformer.wte.weight",)),
        "embeddings.position.weight": Published(("transformer.wpe.weight",)),
        **_both(pairs, lambda name: not name.endswith("norm")),
    }


def _both(pairs: Mapping[str, tuple[str, ...]], turned: Callable[[str], bool]) -> dict[str, Published]:
    """Weight and bias of each."""
    return {
        f"{name}.{kind}": Published(tuple(f"{part}.{kind}" for part in parts), kind == "weight" and turned(name))
        for name, parts in pairs.items()
        for kind in ("weight", "bias")
    }


def config(spec: BertSpec | Gpt2Spec, vocab_size: int, sequence_length: int) -> dict[str, object]:
    """What ``config.json`` says of such a model: the arguments of transformers' configuration class."""
    inner = spec.intermediate_size or 4 * spec.hidden_size
    if isinstance(spec, Gpt2Spec):
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": vocab_size,
            "n_positions": sequence_length,
            "n_embd": spec.hidden_size,
            "n_layer": spec.num_layers,
            "n_head": spec.num_heads,
            "n_inner": inner,
            "resid_pdrop": spec.dropout,
            "embd_pdrop": spec.dropout,
            "attn_pdrop": spec.dropout,
            "bos_token_id": 3,
            "eos_token_id": 3,
        }
    return {
        "model_type": "bert",
        "architectures": ["BertForPreTraining" if spec.pairs else "BertForMaskedLM"],
        "vocab_size": vocab_size,
        "max_position_embeddings": sequence_length,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": inner,
        "hidden_dropout_prob": spec.dropout,
        "attention_probs_dropout_prob": spec.dropout,
        "pad_token_id": 0,
    }


def hf_config(spec: ModelSection, vocab_size: int, sequence_length: int) -> dict[str, object]:
    """The content of ``config.json`` for such a model. Raises ModelError where transformers has no such family."""
    if isinstance(spec, BertSpec | Gpt2Spec):
        return config(spec, vocab_size, sequence_length)
    if isinstance(spec, HfSpec):
        from worker.models.hf import on_meta

        model = on_meta(spec)
        found: dict[str, object] = json.loads(model.config.to_json_string(use_diff=False))
        return {**found, "architectures": [type(model).__name__], "use_cache": True}
    raise ModelError(f"there are no published names for model {getattr(spec, 'name', 'entry')}")


def write_folder(folder: Path, spec: ClusterSpec, weights: Mapping[str, Tensor]) -> None:
    """A folder that ``from_pretrained`` opens: config.json and model.safetensors.

    Raises:
        ModelError: transformers has no such family. OSError: it cannot be written.
    """
    from safetensors.torch import save_file

    data = spec.data
    words, length = getattr(data, "vocab_size", 0), getattr(data, "sequence_length", 0)
    described, found = hf_config(spec.model, words, length), published(spec.model, weights)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in found.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    write_atomic(folder / "config.json", json.dumps(described, indent=2, sort_keys=True) + "\n")
