"""bert and gpt2 that begin with published weights: the same logits, also in a real run; and what cannot be said so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests import reference
from tests.rig import SLOW
from tests.test_main_job import Shell
from tests.test_names import KINDS, our_logits, published_model, spec_of, their_logits
from tests.test_real_input import of_one_process
from vpipe_cli import yamltree
from worker import data, models
from worker.data.base import IGNORED
from worker.errors import ModelError
from worker.models import folder
from worker.spec.cluster import ClusterSpec
from worker.spec.files import RunFiles
from worker.spec.job import Job

transformers = pytest.importorskip("transformers")


def beginning(name: str, path: Path, **changed: Any) -> ClusterSpec:
    """The job of ``spec_of`` that begins with the weights in ``path``; ``section__key`` changes a value."""
    values = spec_of(name).model_dump(include={"machines", "model", "data"})
    values["model"]["folder"] = str(path)
    for key, value in changed.items():
        section, _, last = key.partition("__")
        values[section][last] = value
    return ClusterSpec.model_validate(values)


def starting_weights(spec: ClusterSpec) -> dict[str, Tensor]:
    whole = reference.Whole(models.build_model(spec), data.open_source(spec, Path()), spec.run.seed, "fp32")
    return {name: parameter.detach().clone() for name, parameter in whole.owned().items()}


@pytest.mark.parametrize("name", KINDS)
def test_it_begins_with_the_logits_of_what_save_pretrained_wrote(name: str, tmp_path: Path) -> None:
    """In several files, and of a model that may read more positions."""
    other = published_model(spec_of(name))
    other.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    spec = beginning(name, tmp_path, data__sequence_length=12)
    inputs = dict(data.open_source(spec, tmp_path).minibatch(0).inputs)
    ours = our_logits(spec, starting_weights(spec), inputs)
    assert torch.allclose(ours, their_logits(other, inputs), atol=1e-5, rtol=1e-4)


def test_a_layer_reads_its_own_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published_model(spec_of("gpt2")).save_pretrained(tmp_path)
    model = models.build_model(beginning("gpt2", tmp_path))
    asked: list[str] = []
    read = folder.read
    monkeypatch.setattr(folder, "read", lambda file, name, rows: (asked.append(name), read(file, name, rows))[1])
    models.initialise(model.layers[3].name, model.layers[3].build(), 1)
    assert asked and all(name.startswith("transformer.h.1.") for name in asked)


@pytest.mark.parametrize("name", ["gpt2", pytest.param("bert", marks=SLOW)])
def test_a_run_goes_on_from_published_weights(name: str, tmp_path: Path) -> None:
    """Its first loss is theirs, its weights become those of one process, and what it exports opens there again."""
    other = published_model(spec_of(name))
    other.save_pretrained(tmp_path / "published")
    shell = Shell(tmp_path, tmp_path / "cache")
    job = beginning(name, Path("published")).model_dump(include={"model"}) | {
        "machines": ["cpu*2"],
        "data": {"source": "text", "path": "corpus", "sequence_length": 16, "vocab_size": 300, "minibatch_size": 3},
        "pipeline": {"sync_mode": "bsp", "minibatches_per_step": 2},
        "optimizer": {"lr": 1e-3},
        "run": {"steps": 2, "threads": 1},
    }
    (tmp_path / "cluster.yml").write_text(yamltree.dump(job))
    shell.run("launch")
    files = shell.newest()
    first = json.loads(files.metrics(1).read_text().splitlines()[0])["loss"]
    assert first == pytest.approx(their_loss(other, files, tmp_path / "cache"), rel=1e-4)
    assert json.loads(files.result.read_bytes())["weights_sha256"] == of_one_process(files, tmp_path / "cache")
    shell.run("checkpoint", "export", "--to", "opened/")
    opened, report = type(other).from_pretrained(tmp_path / "opened", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not any(map(torch.equal, opened.parameters(), other.parameters()))
    if name == "gpt2":  # a checkpoint has what the run began with behind it
        shutil.rmtree(tmp_path / "published")
        shell.run("resume", "model.folder=null", "run.steps=3")


def their_loss(other: Any, files: RunFiles, cache: Path) -> float:
    """What transformers' model loses on the first step of the run."""
    spec = Job.model_validate_json(files.job.read_bytes()).spec
    source = data.open_source(spec, cache)
    lost, count = 0.0, 0
    for minibatch in (source.minibatch(number) for number in range(2)):
        labels = minibatch.targets["labels"].flatten()
        with torch.no_grad():
            logits = their_logits(other, dict(minibatch.inputs)).flatten(0, 1)
        lost += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        count += int((labels != IGNORED).sum())
    return lost / count


def of_long_ago(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norms as gamma and beta, a table of positions' numbers, the tied matrix once more, in 16 bits."""
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.half()
        for name, tensor in weights.items()
    }
    word = renamed["bert.embeddings.word_embeddings.weight"].clone()
    return renamed | {"bert.embeddings.position_ids": torch.arange(16), "cls.predictions.decoder.weight": word}


def bare(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As files of the model without its head have them, with the masks of older versions."""
    found = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    return found | {"h.0.attn.bias": torch.ones(1, 1, 16, 16), "h.1.attn.masked_bias": torch.tensor(-1e4)}


def rewritten(path: Path, name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
    """A folder whose weights are those of ``save_pretrained`` after ``change``; the weights before."""
    published_model(spec_of(name)).save_pretrained(path)
    weights = safetensors.torch.load_file(path / "model.safetensors")
    safetensors.torch.save_file(
        {key: tensor.contiguous() for key, tensor in change(dict(weights)).items()}, path / "model.safetensors"
    )
    return weights


@pytest.mark.parametrize(("name", "change"), [("bert", of_long_ago), ("gpt2", bare)])
def test_files_of_other_versions_are_read(name: str, change: Any, tmp_path: Path) -> None:
    weights = rewritten(tmp_path, name, change)
    found = starting_weights(beginning(name, tmp_path))
    norm = {"bert": "bert.embeddings.LayerNorm.bias", "gpt2": "transformer.ln_f.bias"}[name]
    assert torch.allclose(found["embeddings.norm.bias" if name == "bert" else "head.norm.bias"], weights[norm], 1e-3)


def test_bert_without_a_second_loss_leaves_its_head_out(tmp_path: Path) -> None:
    published_model(spec_of("bert-nsp")).save_pretrained(tmp_path)
    assert "head.classifier.bias" not in starting_weights(beginning("bert", tmp_path))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model__hidden_size": 48}, "model.hidden_size is 48, but n_embd there is 24; model.intermediate_size is 192"),
        ({"data__vocab_size": 512}, "data.vocab_size is 512, but vocab_size there is 300"),
        ({"model__num_heads": 6}, "model.num_heads is 6, but n_head there is 3"),
        ({"model__num_layers": 3}, "model.num_layers is 3, but n_layer there is 2"),
        ({"data__sequence_length": 17}, "data.sequence_length is 17, but model.folder .* has 16 positions"),
        ({"model__name": "bert"}, "model.name is bert, but model_type there is gpt2"),
    ],
)
def test_a_model_of_another_size_is_refused_with_both_numbers(
    changed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    published_model(spec_of("gpt2")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=words):
        models.build_model(beginning("gpt2", tmp_path, **changed))


LAST = "transformer.h.1.mlp.c_proj.bias"
HARM: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (lambda all_: {k: v for k, v in all_.items() if k != LAST}, rf"has no {LAST}\n.*as GPT2LMHeadModel"),
    "surplus": (
        lambda all_: all_ | {"h.2.ln_1.bias": torch.zeros(24)},
        "has h.2.ln_1.bias, for which gpt2 has no place",
    ),
    "shape": (lambda all_: all_ | {LAST: torch.zeros(7)}, rf"{LAST} in .* has the shape \(7,\); it must be \(24,\)"),
}


@pytest.mark.parametrize("harm", HARM)
def test_weights_that_do_not_fit_are_named(harm: str, tmp_path: Path) -> None:
    change, words = HARM[harm]
    rewritten(tmp_path, "gpt2", change)
    with pytest.raises(ModelError) as caught:
        models.build_model(beginning("gpt2", tmp_path))
    assert caught.match(words)


def relu(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (relu, "has activation_function relu, but gpt2 here is built with gelu_new"),
        (lambda path: (path / "config.json").unlink(), "config.json cannot be read"),
        (lambda path: (path / "config.json").write_text("[]"), "config.json holds no table"),
        (lambda path: (path / "model.safetensors").unlink(), r"has no \*.safetensors(.|\n)*model.folder=null"),
        (lambda path: (path / "model.safetensors").write_bytes(b"x" * 99), "model.safetensors cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(harm: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    published_model(spec_of("gpt2")).save_pretrained(tmp_path)
    harm(tmp_path)
    with pytest.raises(ModelError, match=words):
        models.build_model(beginning("gpt2", tmp_path))
