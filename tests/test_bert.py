"""BERT as layers: equal to transformers' BERT for the same weights, and the same initial values however it is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.data import signature
from worker.errors import ModelError
from worker.models import build_model, initialise
from worker.models.base import Model
from worker.spec.cluster import BertSpec, ClusterSpec, DataSpec

VOCABULARY, LENGTH, BATCH = 300, 16, 3
DECODER, WORDS = "head.decoder.weight", "embeddings.word.weight"


def spec_of(sentence_order: bool = False, dropout: float = 0.0) -> ClusterSpec:
    model = BertSpec(hidden_size=24, num_layers=2, num_heads=3, sentence_order=sentence_order, dropout=dropout)
    data = DataSpec(sequence_length=LENGTH, minibatch_size=BATCH, vocab_size=VOCABULARY)
    return ClusterSpec(machines=["cpu"], model=model, data=data)


def materialise(model: Model, seed: int = 1) -> dict[str, nn.Module]:
    """All layers by name, with their initial values and the decoder tied."""
    modules = {}
    for layer in model.layers:
        with torch.device("meta"):
            module = layer.build()
        modules[layer.name] = module.to_empty(device="cpu")
        initialise(layer.name, module, seed)
    modules["head"].decoder.weight = modules["embeddings"].word.weight
    return modules


def parameters(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    named = {f"{layer}.{name}": p for layer, module in modules.items() for name, p in module.named_parameters()}
    return {name: p for name, p in named.items() if name != DECODER}


def run(model: Model, modules: dict[str, nn.Module], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every value that flows, the last layer's loss included."""
    values = dict(values)
    for layer in model.layers:
        values[layer.outputs[0]] = modules[layer.name](*(values[name] for name in layer.inputs))
    return values


def example() -> dict[str, Tensor]:
    """A minibatch with padding in two rows of three."""
    generator = torch.Generator().manual_seed(3)
    real = torch.arange(LENGTH) < torch.tensor([[LENGTH], [9], [5]])
    ids = torch.randint(5, VOCABULARY, (BATCH, LENGTH), generator=generator) * real
    predicted = real & (torch.rand(BATCH, LENGTH, generator=generator) < 0.4)
    return {
        "input_ids": ids,
        "segment_ids": (torch.arange(LENGTH) >= 4).long() * real,
        "attention_mask": real,
        "labels": torch.where(predicted, torch.randint(5, VOCABULARY, (BATCH, LENGTH), generator=generator), -100),
        "order_labels": torch.tensor([1, 0, 1]),
    }


def theirs(spec: ClusterSpec, attention: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=spec.model.hidden_size,
        num_hidden_layers=spec.model.num_layers,
        num_attention_heads=spec.model.num_heads,
        intermediate_size=4 * spec.model.hidden_size,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=attention,
    )
    return transformers.BertForPreTraining(config)


def their_names(layers: int) -> dict[str, tuple[str, ...]]:
    """Our parameter -> theirs, laid end to end."""
    pairs = {
        "embeddings.word": ("bert.embeddings.word_embeddings",),
        "embeddings.position": ("bert.embeddings.position_embeddings",),
        "embeddings.segment": ("bert.embeddings.token_type_embeddings",),
        "embeddings.norm": ("bert.embeddings.LayerNorm",),
        "head.transform": ("cls.predictions.transform.dense",),
        "head.norm": ("cls.predictions.transform.LayerNorm",),
        "head.decoder": ("cls.predictions",),
        "head.pooler": ("bert.pooler.dense",),
        "head.classifier": ("cls.seq_relationship",),
    }
    for i in range(layers):
        here, there = f"encoder.{i}", f"bert.encoder.layer.{i}"
        pairs[f"{here}.attention.query_key_value"] = tuple(
            f"{there}.attention.self.{n}" for n in ("query", "key", "value")
        )
        pairs[f"{here}.attention.output"] = (f"{there}.attention.output.dense",)
        pairs[f"{here}.attention.norm"] = (f"{there}.attention.output.LayerNorm",)
        pairs[f"{here}.feed_forward.expand"] = (f"{there}.intermediate.dense",)
        pairs[f"{here}.feed_forward.contract"] = (f"{there}.output.dense",)
        pairs[f"{here}.feed_forward.norm"] = (f"{there}.output.LayerNorm",)
    kinds = ("weight", "bias")
    return {f"{name}.{kind}": tuple(f"{n}.{kind}" for n in names) for name, names in pairs.items() for kind in kinds}


def copy_into(other: nn.Module, ours: dict[str, Tensor], names: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Give ``other`` our weights; its parameters by name."""
    parameters = dict(other.named_parameters())
    with torch.no_grad():
        for name, value in ours.items():
            for part, target in zip(value.chunk(len(names[name])), names[name], strict=True):
                parameters[target].copy_(part)
    return parameters


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_transformers(attention: str) -> None:
    spec = spec_of(sentence_order=True)
    model = build_model(spec)
    modules, other, minibatch = materialise(model), theirs(spec, attention), example()
    # Initial biases of zero and norms of one would hide a wrong name.
    ours, generator = parameters(modules), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in ours.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    names = their_names(spec.model.num_layers)
    parameters_there = copy_into(other, ours, names)

    values = run(model, modules, minibatch)
    result = other(
        input_ids=minibatch["input_ids"],
        token_type_ids=minibatch["segment_ids"],
        attention_mask=minibatch["attention_mask"].long(),
    )
    real, last = minibatch["attention_mask"], model.layers[-2].outputs[0]
    hidden = run(Model(model.layers[:-1]), modules, minibatch)[last]
    assert torch.allclose(modules["head"].logits(hidden)[real], result.prediction_logits[real], atol=1e-5, rtol=1e-5)
    assert torch.allclose(modules["head"].order_logits(hidden), result.seq_relationship_logits, atol=1e-5, rtol=1e-5)

    masked = F.cross_entropy(result.prediction_logits.flatten(0, 1), minibatch["labels"].flatten(), reduction="sum")
    order = F.cross_entropy(result.seq_relationship_logits, minibatch["order_labels"], reduction="sum")
    assert torch.allclose(values["loss"], torch.stack([masked, order]), rtol=1e-5)
    values["loss"].sum().backward()
    (masked + order).backward()
    for name, parameter in ours.items():
        gradient = torch.cat([parameters_there[target].grad for target in names[name]])
        assert torch.allclose(parameter.grad, gradient, atol=2e-5, rtol=1e-4), name


def test_without_sentence_order_the_loss_is_one_term() -> None:
    model = build_model(spec_of())
    loss = run(model, materialise(model), example())["loss"]
    assert loss.shape == (len(model.losses),) == (1,) and loss.dtype == torch.float32


def test_padding_changes_nothing_that_is_real() -> None:
    model, minibatch = build_model(spec_of()), example()
    modules = materialise(model)
    other = {**minibatch, "input_ids": torch.where(minibatch["attention_mask"], minibatch["input_ids"], 77)}
    assert torch.equal(run(model, modules, minibatch)["loss"], run(model, modules, other)["loss"])


def test_a_minibatch_without_targets_costs_nothing() -> None:
    model, minibatch = build_model(spec_of()), example()
    loss = run(model, materialise(model), {**minibatch, "labels": torch.full((BATCH, LENGTH), -100)})["loss"]
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize("sentence_order", [False, True])
def test_layers_and_names(sentence_order: bool) -> None:
    spec = spec_of(sentence_order)
    model = build_model(spec)
    names = [f"{layer.name}.{name}" for layer in model.layers for name, _ in layer.build().named_parameters()]
    assert len(model.layers) == spec.model.layer_count
    assert len(set(names)) == len(names)
    assert set(model.tied) | set(model.tied.values()) <= set(names)


def test_all_but_the_head_run_on_the_meta_device() -> None:
    spec = spec_of(dropout=0.1)
    model = build_model(spec)
    with torch.device("meta"):
        values = {n: torch.empty(t.shape, dtype=t.dtype) for n, t in signature(spec).inputs.items()}
        for layer in model.layers[:-1]:
            values[layer.outputs[0]] = layer.build()(*(values[name] for name in layer.inputs))
    assert values["hidden"].is_meta and values["hidden"].shape == (BATCH, LENGTH, spec.model.hidden_size)


def test_dropout_of_zero_is_no_operation() -> None:
    model = build_model(spec_of())
    modules, state = materialise(model), torch.get_rng_state()
    assert not any(isinstance(part, nn.Dropout) for module in modules.values() for part in module.modules())
    run(model, modules, example())
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_reaches_every_layer_of_the_encoder() -> None:
    modules = materialise(build_model(spec_of(dropout=0.5)))
    hidden, mask = torch.randn(BATCH, LENGTH, 24), example()["attention_mask"]
    attention, feed_forward = modules["encoder.0.attention"], modules["encoder.1.feed_forward"]
    assert not torch.equal(attention(hidden, mask), attention(hidden, mask))
    assert not torch.equal(feed_forward(hidden), feed_forward(hidden))


def test_initial_values_do_not_depend_on_order() -> None:
    model = build_model(spec_of())
    every = parameters(materialise(model))
    torch.manual_seed(5)
    alone = materialise(Model(model.layers[::-1]))
    assert all(torch.equal(every[name], value) for name, value in parameters(alone).items())


def test_initial_values_depend_on_seed_and_layer() -> None:
    model = build_model(spec_of())
    first, second = parameters(materialise(model, seed=1)), parameters(materialise(model, seed=2))
    assert not torch.equal(first[WORDS], second[WORDS])
    name = "feed_forward.expand.weight"
    assert not torch.equal(first[f"encoder.0.{name}"], first[f"encoder.1.{name}"])


def test_initialise_leaves_the_generator_as_it_was() -> None:
    state = torch.get_rng_state()
    materialise(build_model(spec_of()))
    assert torch.equal(torch.get_rng_state(), state)


def test_initialise_leaves_a_tied_decoder_alone() -> None:
    modules = materialise(build_model(spec_of()))
    before = modules["embeddings"].word.weight.clone()
    initialise("head", modules["head"], 1)
    assert torch.equal(modules["embeddings"].word.weight, before)


def test_initialise_names_what_it_cannot_set() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

    with pytest.raises(ModelError, match=r"tower\.1\.factor has no initial value: Scale"):
        initialise("tower", nn.Sequential(nn.Linear(3, 3), Scale()), 1)
