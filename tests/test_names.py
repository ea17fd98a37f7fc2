"""Published names both ways: weights of transformers give its logits here, and what is exported gives ours there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import reference
from worker import data, models
from worker.errors import ModelError
from worker.models import names
from worker.spec.cluster import ClusterSpec

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 24, "num_layers": 2, "num_heads": 3, "dropout": 0.0}
TEXT = {"source": "synthetic", "sequence_length": 16, "vocab_size": 300, "minibatch_size": 3}
KINDS = {"gpt2": "GPT2LMHeadModel", "bert": "BertForMaskedLM", "bert-nsp": "BertForPreTraining"}


def spec_of(name: str) -> ClusterSpec:
    return ClusterSpec.model_validate({"machines": ["cpu"], "model": {"name": name, **SIZES}, "data": TEXT})


def published_model(spec: ClusterSpec) -> Any:
    """A model as the package makes it, with random weights, biases and norms too."""
    given = names.hf_config(spec.model, 300, 16)
    model = getattr(transformers, KINDS[spec.model.name])(transformers.AutoConfig.for_model(**given))  # type: ignore[union-attr]
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model.eval()


def our_logits(spec: ClusterSpec, weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    model = models.build_model(spec)
    whole = reference.Whole(model, data.open_source(spec, Path()), 1, "fp32")
    whole.set(weights)
    values = dict(inputs)
    for layer, module in zip(model.layers[:-1], whole.modules[:-1], strict=True):
        results = module(*(values[name] for name in layer.inputs))
        values.update(zip(layer.outputs, results if isinstance(results, tuple) else (results,), strict=True))
    return whole.modules[-1].logits(values["hidden"])  # type: ignore[operator,no-any-return]


def their_logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    renamed = {"segment_ids": "token_type_ids"}
    result = model(**{renamed.get(name, name): tensor.long() for name, tensor in inputs.items()})
    return result.prediction_logits if "prediction_logits" in result else result.logits


@pytest.mark.parametrize("name", KINDS)
def test_published_weights_give_equal_logits_and_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    spec = spec_of(name)
    other = published_model(spec)
    weights = names.ours(spec.model, other.state_dict())
    inputs = dict(data.open_source(spec, tmp_path).minibatch(0).inputs)
    assert torch.allclose(our_logits(spec, weights, inputs), their_logits(other, inputs), atol=1e-5, rtol=1e-4)
    back = names.published(spec.model, weights)
    assert all(torch.equal(other.state_dict()[key], tensor) for key, tensor in back.items())
    assert set(dict(other.named_parameters())) == set(back)


@pytest.mark.parametrize("name", [*KINDS, "hf"])
def test_from_pretrained_opens_what_is_exported(name: str, tmp_path: Path) -> None:
    if name == "hf":
        llama = {"model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24}
        llama |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        spec = ClusterSpec.model_validate({"machines": ["cpu"], "model": {"name": "hf", "config": llama}, "data": TEXT})
        kind = "LlamaForCausalLM"
    else:
        spec, kind = spec_of(name), KINDS[name]
    source = data.open_source(spec, tmp_path)
    whole = reference.Whole(models.build_model(spec), source, 1, "fp32")
    weights = {key: parameter.detach().clone() for key, parameter in whole.owned().items()}
    names.write_folder(tmp_path / "exported", spec, weights)
    opened, report = getattr(transformers, kind).from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    inputs = dict(source.minibatch(0).inputs)
    assert torch.allclose(our_logits(spec, weights, inputs), their_logits(opened.eval(), inputs), atol=1e-5, rtol=1e-4)


def test_weights_of_the_bare_model_are_found_too() -> None:
    spec = spec_of("gpt2")
    bare = {key.removeprefix("transformer."): tensor for key, tensor in published_model(spec).state_dict().items()}
    assert names.ours(spec.model, bare).keys() == names.ours(spec.model, published_model(spec).state_dict()).keys()


def test_what_is_missing_or_not_published_is_told() -> None:
    spec = spec_of("gpt2")
    with pytest.raises(ModelError, match=r"have no transformer\.wte\.weight"):
        names.ours(spec.model, {})
    other = ClusterSpec.model_validate({"machines": ["cpu"], "model": {"name": "gnmt"}, "data": TEXT})
    with pytest.raises(ModelError, match="no published names for model gnmt"):
        names.published(other.model, {})
