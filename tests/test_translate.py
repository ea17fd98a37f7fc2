"""Translations of an evaluation in a pipeline: those of one process, word for word, and so is their BLEU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch

from tests import harness, reference
from tests.test_evaluate import evaluated, train
from tests.test_pairs_and_pictures import ENGLISH, GERMAN, parallel
from vpipe_cli import config
from worker import data, models
from worker.data.base import Source
from worker.data.tokenizer import CLS, PAD, SEP
from worker.errors import ConfigError
from worker.models.base import Model
from worker.spec.cluster import ClusterSpec
from worker.translate import score

MODELS: dict[str, dict[str, Any]] = {
    "transformer": {"name": "transformer", "hidden_size": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.1},
    "gnmt": {"name": "gnmt", "hidden_size": 32, "num_layers": 2, "dropout": 0.1},
}


def spec_of(name: str, folder: Path, **given: Any) -> ClusterSpec:
    """Four minibatches of the pairs that it learns from, once it knows some of them by heart."""
    section = parallel(folder, ENGLISH, GERMAN, **{"minibatch_size": 5, "sequence_length": 12, **given})
    spec = ClusterSpec.model_validate(
        {
            "machines": ["cpu"],
            "model": MODELS[name],
            "data": section,
            "pipeline": {"sync_mode": "bsp", "minibatches_per_step": 2},
            "optimizer": {"lr": 2e-2},
            "evaluate": {"bleu": True},
            "run": {"steps": 20, "seed": 3, "stall_timeout": 60.0},
        }
    )
    return evaluated(spec, every=20, minibatches=4)


def translated(weights: dict[str, torch.Tensor], spec: ClusterSpec, model: Model, source: Source) -> list[str]:
    """Greedy translations, written down plainly: word by word, in one process."""
    whole = reference.Whole(model, source, spec.run.seed, "fp32")
    whole.set(weights)
    found = []
    for index in range(spec.evaluate.minibatches):
        inputs = dict(source.minibatch(index).inputs)
        target = torch.full_like(inputs["target_ids"], PAD)
        target[:, 0] = CLS
        words: list[list[int]] = [[] for _ in target]
        for place in range(target.shape[1]):
            likeliest = logits(whole, {**inputs, "target_ids": target}).argmax(-1)[:, place]
            for row, word in enumerate(likeliest.tolist()):
                if SEP not in words[row]:
                    words[row].append(word)
                    if word != SEP and place + 1 < target.shape[1]:
                        target[row, place + 1] = word
        found += [source.sentence(row) for row in words]  # type: ignore[attr-defined]
    return found


@torch.no_grad()
def logits(whole: reference.Whole, values: dict[str, torch.Tensor]) -> torch.Tensor:
    for layer, module in zip(whole.model.layers[:-1], whole.modules[:-1], strict=True):
        results = module.eval()(*(values[name] for name in layer.inputs))
        values.update(zip(layer.outputs, results if isinstance(results, tuple) else (results,), strict=True))
    return whole.modules[-1].eval().logits(values["hidden"])  # type: ignore[no-any-return,operator]


@pytest.mark.parametrize(
    ("name", "stages", "replicas"), [("transformer", 3, None), ("transformer", 2, [1, 2]), ("gnmt", 2, [2, 1])]
)
def test_bleu_is_that_of_one_process(name: str, stages: int, replicas: list[int] | None, tmp_path: Path) -> None:
    spec = spec_of(name, tmp_path)
    model, source = models.build_model(spec), data.open_source(spec, tmp_path / "cache")
    other = data.open_evaluation(spec, tmp_path / "cache")
    layers = len(model.layers)
    job = harness.job_of(spec, [layers - stages + 1, *[1] * (stages - 1)], 0.0, replicas)
    weights, found = train(job, model, source, other, tmp_path)
    sentences = translated(weights, spec, model, other)
    wanted = [
        other.sentence(row)  # type: ignore[attr-defined]
        for index in range(4)
        for row in other.minibatch(index).targets["labels"].tolist()
    ]
    assert set(wanted) == set(GERMAN)
    assert found[0].bleu == sacrebleu.corpus_bleu(sentences, [wanted]).score
    assert found[0].bleu > 5 or name == "gnmt", sentences


def test_sentences_are_scored_in_the_order_of_minibatches() -> None:
    ranks = [[(2, ["c c c c"], ["c c c c"])], [(1, ["b b b b"], ["b b b b"]), (0, ["a"], ["x a b c d"])]]
    expected = sacrebleu.corpus_bleu(["a", "b b b b", "c c c c"], [["x a b c d", "b b b b", "c c c c"]]).score
    assert score(ranks) == expected


@pytest.mark.parametrize("name", ["synthetic", "text"])
def test_what_has_no_sentences_is_refused_in_the_file(name: str, tmp_path: Path) -> None:
    model = {"synthetic": "transformer", "text": "gpt2"}[name]
    source = {"synthetic": "{source: synthetic}", "text": "{source: python-stdlib}"}[name]
    path = tmp_path / "c.yml"
    path.write_text(f"machines: [cpu]\nmodel: {{name: {model}}}\ndata: {source}\nevaluate: {{bleu: true}}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert "c.yml:4:18: evaluate.bleu: compares sentences, and data.source is" in str(caught.value)


def test_a_missing_package_is_named_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    spec = spec_of("gnmt", tmp_path)
    model, source = models.build_model(spec), data.open_source(spec, tmp_path / "cache")
    with pytest.raises(Exception) as caught:
        train(harness.job_of(spec, [len(model.layers)]), model, source, source, tmp_path)
    assert "evaluate.bleu needs the sacrebleu package" in str(caught.value)
    assert "pip install 'vpipe[bleu]'" in str(caught.value)


def test_a_model_that_cannot_translate_is_named(tmp_path: Path) -> None:
    spec = spec_of("gnmt", tmp_path)
    model, source = models.build_model(spec), data.open_source(spec, tmp_path / "cache")
    head = type(model.layers[-1].build())
    guesses = head.guesses
    try:
        del head.guesses
        with pytest.raises(Exception) as caught:
            train(harness.job_of(spec, [len(model.layers)]), model, source, source, tmp_path)
    finally:
        head.guesses = guesses
    assert "evaluate.bleu needs a last layer with a method guesses; Head has none" in str(caught.value)
