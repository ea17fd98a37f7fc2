"""Models of the transformers package, split by the names of their layers: equal to the whole, or refused with why."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import harness, reference
from worker import data, models
from worker.errors import ModelError
from worker.models import names
from worker.models.base import Model
from worker.spec.cluster import ClusterSpec

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
UNDROPPED = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
CAUSAL: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "num_key_value_heads": 2},
    "qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 320, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 16, **UNDROPPED},
}
MASKED: dict[str, dict[str, Any]] = {
    "modernbert": {**SIZES, **TOKENS, "local_attention": 6, "max_position_embeddings": 64},
    "bert": {**SIZES, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
ALL = {**CAUSAL, **MASKED}


def spec_of(kind: str, sync_mode: str = "bsp", **model: Any) -> ClusterSpec:
    given = model or {"config": {"model_type": kind, **ALL[kind]}}
    return ClusterSpec.model_validate(
        {
            "machines": ["cpu"],
            "model": {"name": "hf", "head": "causal" if kind in CAUSAL else "masked", **given},
            "data": {"source": "synthetic", "sequence_length": 12, "vocab_size": 300, "minibatch_size": 2},
            "pipeline": {"sync_mode": sync_mode, "minibatches_per_step": 3 if sync_mode == "bsp" else None},
            "optimizer": {"lr": 1e-2},
            "run": {"steps": 3, "seed": 5, "stall_timeout": 20.0},
        }
    )


def whole_of(spec: ClusterSpec, tmp_path: Path) -> reference.Whole:
    """All layers of our split in one process, with their initial values."""
    model = models.build_model(spec)
    return reference.Whole(model, data.open_source(spec, tmp_path), spec.run.seed, "fp32")


def theirs(kind: str, weights: dict[str, Tensor]) -> Any:
    """The whole model as the package builds it, with our weights under its names."""
    config = transformers.AutoConfig.for_model(model_type=kind, **ALL[kind])
    auto = transformers.AutoModelForCausalLM if kind in CAUSAL else transformers.AutoModelForMaskedLM
    model = auto.from_config(config, attn_implementation="sdpa")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= set(model.all_tied_weights_keys)
    model.tie_weights()
    return model.train()


def run(model: Model, modules: list[nn.Module], values: dict[str, Tensor]) -> Tensor:
    for layer, module in zip(model.layers[:-1], modules[:-1], strict=True):
        results = module(*(values[name] for name in layer.inputs))
        results = results if isinstance(results, tuple) else (results,)
        values.update(zip(layer.outputs, results, strict=True))
    return modules[-1].logits(values["hidden"])  # type: ignore[operator,no-any-return]


def our_weights(whole: reference.Whole) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in whole.owned().items()}


@pytest.mark.parametrize("kind", ALL)
def test_logits_and_gradients_are_those_of_the_whole(kind: str, tmp_path: Path) -> None:
    spec = spec_of(kind)
    whole = whole_of(spec, tmp_path)
    whole.set(our_weights(whole))
    other = theirs(kind, names.published(spec.model, our_weights(whole)))
    minibatch = data.open_source(spec, tmp_path).minibatch(0)
    ours = run(whole.model, whole.modules, dict(minibatch.inputs))
    given = {name: minibatch.inputs[name] for name in ("input_ids", "attention_mask") if name in minibatch.inputs}
    logits = other(**given, **({"token_type_ids": minibatch.inputs["segment_ids"]} if kind == "bert" else {})).logits
    assert torch.allclose(ours, logits, atol=1e-5, rtol=1e-5)
    for tensor in (ours, logits):
        tensor.sin().sum().backward()
    gradients = names.published(spec.model, whole.with_borrowed(whole.take_gradients()))
    there = dict(other.named_parameters())
    assert set(gradients) == {name for name, parameter in there.items() if parameter.grad is not None}
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, there[name].grad, atol=1e-5, rtol=1e-4), name


@pytest.mark.parametrize(("kind", "sync_mode"), [("llama", "bsp"), ("qwen3", "asp"), ("modernbert", "bsp")])
def test_three_stages_equal_one_process(kind: str, sync_mode: str, tmp_path: Path) -> None:
    spec = spec_of(kind, sync_mode)
    model, source = models.build_model(spec), data.open_source(spec, tmp_path)
    assert len(model.layers) == 5
    job = harness.job_of(spec, [2, 2, 1], recompute_ratio=0.5)
    weights = harness.train(job, model, source, tmp_path)
    expected = {"asp": reference.asp, "bsp": reference.bsp}[sync_mode](spec, model, source, job.plan)
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []


@pytest.mark.parametrize("kind", ["llama", "qwen3", "bert"])
def test_a_folder_that_save_pretrained_wrote_is_the_start(kind: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(model_type=kind, **ALL[kind])
    auto = transformers.AutoModelForCausalLM if kind in CAUSAL else transformers.AutoModelForMaskedLM
    torch.manual_seed(3)
    other = auto.from_config(config)
    other.save_pretrained(tmp_path / "published", max_shard_size="20KB")
    spec = spec_of(kind, folder=str(tmp_path / "published"))
    found = names.published(spec.model, our_weights(whole_of(spec, tmp_path)))
    assert set(found) == set(dict(other.named_parameters()))
    assert all(torch.equal(found[name], parameter) for name, parameter in other.named_parameters())


def test_nothing_is_asked_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a configuration nor for a folder, nor for tokens that datasets saved."""

    def refuse(*given: Any) -> None:
        raise AssertionError(f"asked the network: {given}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    whole_of(spec_of("llama"), tmp_path)
    config = transformers.AutoConfig.for_model(model_type="llama", **CAUSAL["llama"])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "published")
    whole_of(spec_of("llama", folder=str(tmp_path / "published")), tmp_path)
    words = ["a record of a dozen words or so that somebody once saved here"] * 40
    pytest.importorskip("datasets").Dataset.from_dict({"text": words}).save_to_disk(str(tmp_path / "saved"))
    given = {"source": "hf", "path": str(tmp_path / "saved"), "sequence_length": 12, "vocab_size": 300}
    spec = ClusterSpec.model_validate({"machines": ["cpu"], "model": {"name": "gpt2"}, "data": given})
    assert data.open_source(spec, tmp_path / "cache").minibatch(0).counts[0] > 0


def test_the_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"model hf needs the transformers package(.|\n)*pip install 'vpipe\[hf\]'"):
        models.build_model(spec_of("llama"))


def refusal(spec: ClusterSpec, tmp_path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        whole_of(spec, tmp_path)
    return caught.value.message


def test_what_cannot_be_split_says_why(tmp_path: Path) -> None:
    t5 = {"model_type": "t5", "vocab_size": 320, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 16}
    assert refusal(spec_of("llama", config=t5), tmp_path) == "t5 cannot be split: it has an encoder and a decoder"
    assert "transformers refuses the model" in refusal(spec_of("llama", config={"model_type": "nonesuch"}), tmp_path)
    small = {"model_type": "llama", **CAUSAL["llama"], "vocab_size": 200}
    message = "the model has 200 words, but data.vocab_size is 300"
    assert refusal(spec_of("llama", config=small), tmp_path) == message
    (tmp_path / "empty").mkdir()
    transformers.AutoConfig.for_model(model_type="llama", **CAUSAL["llama"]).save_pretrained(tmp_path / "empty")
    assert refusal(spec_of("llama", folder=str(tmp_path / "empty")), tmp_path).endswith("has no *.safetensors")
