"""``model_type`` and ``module`` of a driver file -> the sections ``model`` and ``data``.

Of the three models that vPipe built from source lines, a block ends where a residual connection does; a layer here does
too. GPT (CPM) and the Transformer thus have as many blocks as layers; of BERT the first block holds the embeddings
and the first attention, which are two layers here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vpipe_cli.importing.maps import Cut, Maps
from vpipe_cli.importing.old import OldJob
from vpipe_cli.importing.write import Line

BLOCKS = {"bert": (2, 1), "cpm": (2, 2), "transformer": (5, 3)}
"""Blocks per layer, and blocks beside those of layers."""
CPM = {"medium": (24, 1024, 16), "large": (32, 2560, 32)}
IMAGENET = 1_281_167
LAYER = re.compile(r"\bnn\.(?:Conv2d|Linear)\(")


@dataclass(frozen=True)
class Model:
    """Sections of cluster.yml; ``extra``: layers the first block holds beside its one; ``examples`` of an epoch."""

    model: dict[str, Line]
    data: dict[str, Line]
    evaluate: dict[str, Line]
    extra: int = 0
    examples: int | None = None


def model_of(job: OldJob, cut: Cut | None) -> Model:
    """What is trained, and on what.

    Raises:
        ConfigError: the partition fits no number of layers.
    """
    kind = job.text("model_type")
    if kind == "image_classification":
        return _images(job)
    if kind == "translation":
        return _gnmt(job)
    layers = _layers(job, cut)
    return {"bert": _bert, "cpm": _cpm, "transformer": _transformer}[kind](job, layers)


def stage_layers(job: OldJob, maps: Maps) -> list[int] | None:
    """Layers of each stage where only PipeDream's generated code tells: VGG-16's, if its stageN.py are found."""
    folder = job.text("module").replace(".", os.sep)
    if "vgg16" not in _words(job):
        return None
    for base in job.folders():
        files = [base / folder / f"stage{module}.py" for module in range(len(maps.modules) - 1)]
        if all(file.is_file() for file in files):
            counts = [0] * (maps.modules[-1] + 1)
            for module, file in enumerate(files):
                counts[maps.modules[module]] += len(LAYER.findall(file.read_text("utf-8", "replace")))
            return counts if sum(counts) == 16 and min(counts) else None
    return None


def _words(job: OldJob) -> list[str]:
    return re.split(r"[./]", job.text("module"))


def _layers(job: OldJob, cut: Cut | None) -> int:
    """Layers of the model as the partition, else the module's name, tells."""
    kind, module = job.text("model_type"), job.text("module")
    per, beside = BLOCKS[kind]
    if cut is not None:
        layers, rest = divmod(sum(cut.blocks) - beside, per)
        if rest or layers < 1:
            message = (
                f"adds up to {sum(cut.blocks)} blocks; the {kind} model has {beside} and {per} more for each layer"
            )
            raise cut.source.refuse("partition", message)
        return layers
    if kind == "cpm":
        return CPM["large" if "large" in module else "medium"][0]
    sizes = (12, 6) if kind == "transformer" else (48, 24)
    return sizes[0] if re.search(r"gpus=8\b", module) else sizes[1]


def _data_dir(job: OldJob) -> str:
    """``data_dir``, absolute where it is found below one of the places it may be in."""
    given = job.text("data_dir")
    if os.path.isabs(given):
        return given
    found = next((folder / given for folder in job.folders() if (folder / given).exists()), None)
    return str(found if found is not None else (job.folders() or [Path()])[0] / given)


def _synthetic(job: OldJob) -> bool:
    return job.flag("synthetic_data") or not job.text("data_dir")


def _bert(job: OldJob, layers: int) -> Model:
    length = re.search(r"seq_len_(\d+)", job.text("data_dir"))
    data = {
        "source": Line("synthetic" if _synthetic(job) else "hdf5"),
        **({} if _synthetic(job) else {"path": Line(_data_dir(job))}),
        "sequence_length": Line(int(length[1]) if length else 128, "as the name of data_dir says" if length else ""),
        "minibatch_size": Line(job.count("batch_size", 8)),
        "vocab_size": Line(30528),
    }
    if not _synthetic(job):
        job.changed("data_dir", "the old program read one of its shards only; all are read now")
    job.changed("module", "the head shares the matrix of the word embedding, which it did not")
    model = {
        "name": Line("bert", "masked words alone were learned"),
        "num_layers": Line(layers, f"{2 * layers + 1} blocks there, {2 * layers + 2} layers here"),
        **_width(1024, 16),
    }
    return Model(model, data, {}, extra=1)


def _cpm(job: OldJob, layers: int) -> Model:
    _, width, heads = CPM["large" if "large" in job.text("module") else "medium"]
    job.left_out("data_dir", "CHID's records have no reader here; give text, jsonl or tokens (docs/models.md)")
    data = {
        "source": Line("synthetic"),
        "sequence_length": Line(696),
        "minibatch_size": Line(job.count("batch_size", 8)),
        "vocab_size": Line(30000),
    }
    return Model({"name": Line("gpt2"), "num_layers": Line(layers), **_width(width, heads)}, data, {})


def _transformer(job: OldJob, layers: int) -> Model:
    tokens, length = job.count("batch_size", 2560), 64
    size = max(1, tokens // length)
    job.changed("batch_size", f"was {tokens} tokens; it is {size} pairs of at most {length} tokens now")
    job.left_out("data_dir", "fairseq's binary data has no reader here; give two text files with source: parallel")
    job.left_out("module", "smoothed labels (0.1); the loss is the plain one")
    data = {
        "source": Line("synthetic"),
        "sequence_length": Line(length),
        "minibatch_size": Line(size),
        "vocab_size": Line(33712),
    }
    return Model({"name": Line("transformer"), "num_layers": Line(layers), **_width(1024, 16)}, data, {})


def _width(width: int, heads: int) -> dict[str, Line]:
    return {"hidden_size": Line(width), "num_heads": Line(heads), "dropout": Line(0.1)}


def _gnmt(job: OldJob) -> Model:
    folder = _data_dir(job)
    job.left_out("module", "smoothed labels (0.1); the loss is the plain one")
    data = {
        "source": Line("synthetic" if _synthetic(job) else "parallel"),
        "sequence_length": Line(50),
        "minibatch_size": Line(job.count("batch_size", 128)),
        "vocab_size": Line(32320),
    }
    if not _synthetic(job):
        why = (
            "the names of its files are those of NVIDIA's preparation of WMT; data.path and target_path may need others"
        )
        job.changed("data_dir", why)
        job.left_out("data_dir", "the sentences to validate on; give evaluate.held_out and held_out_target")
        job.changed("data_dir", "the vocabulary is made anew from both files, the old one is not read")
        data["path"] = Line(f"{folder.rstrip('/')}/train.tok.clean.bpe.32000.en")
        data["target_path"] = Line(f"{folder.rstrip('/')}/train.tok.clean.bpe.32000.de")
    layers = 8 if "gnmt_large" in _words(job) else 4
    model = {"name": Line("gnmt"), "hidden_size": Line(1024), "num_layers": Line(layers), "dropout": Line(0.2)}
    return Model(model, data, {})


def _images(job: OldJob) -> Model:
    words, folder = _words(job), _data_dir(job).rstrip("/")
    imagenet = "imagenet" in folder.lower()
    held_out = {} if _synthetic(job) else {"held_out": Line(f"{folder}/val")}
    data = {
        "source": Line("synthetic" if _synthetic(job) else "images"),
        **({} if _synthetic(job) else {"path": Line(f"{folder}/train")}),
        "image_size": Line(224),
        "classes": Line(1000),
        "minibatch_size": Line(job.count("batch_size", 256)),
    }
    name = next((each for each in ("vgg16", "resnet50") if each in words), "")
    model = {"name": Line(name)}
    if not name:
        arch = re.sub(r"\W", "_", words[1] if len(words) > 1 and words[0] == "models" else words[0]).lower()
        entry = f"{'m_' if not arch[:1].isalpha() else ''}{arch}:build"
        why = f"vpipe has no such model: write its layers as the function {entry} (docs/your-own-model.md)"
        job.left_out("module", why)
        model = {"entry": Line(entry, "to be written; see docs/your-own-model.md"), "takes": Line("images")}
    return Model(model, data, held_out, examples=IMAGENET if imagenet else None)
