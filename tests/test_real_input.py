"""Models of each kind learn from real input, by the command itself, in a pipeline.

Text and pairs are of Python's standard library, which people wrote for people: its source, and every function's
signature with the first sentence of its docstring, a translation of sorts. Pictures are the icons of matplotlib's
toolbar, in the sizes and colours they come in.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from tests import reference
from tests.rig import SLOW
from vpipe_cli import yamltree
from worker import data, models
from worker.results import sha256_of
from worker.spec.files import RunFiles
from worker.spec.job import Job

LIBRARY = Path(sysconfig.get_path("stdlib"))
MODULES = ("argparse", "ast", "calendar", "cmd", "codecs", "datetime", "difflib", "inspect", "shutil", "turtle")
ICONS = Path(matplotlib.get_data_path()) / "images"


def write_pairs(folder: Path) -> dict[str, Any]:
    """Signatures and what they mean, line by line."""
    pairs = []
    for module in MODULES:
        for node in ast.walk(ast.parse((LIBRARY / f"{module}.py").read_text())):
            if isinstance(node, ast.FunctionDef) and (told := ast.get_docstring(node)):
                signature = f"{node.name}({', '.join(each.arg for each in node.args.args)})"
                pairs.append((signature, " ".join(told.split("\n\n")[0].split(". ")[0].split())))
    for name, side in (("signatures", 0), ("meanings", 1)):
        (folder / name).write_text("".join(f"{pair[side]}\n" for pair in pairs))
    paths = {"path": str(folder / "signatures"), "target_path": str(folder / "meanings")}
    return {"source": "parallel", **paths, "sequence_length": 24, "vocab_size": 400, "on_bad_record": "skip"}


def write_pictures(folder: Path) -> dict[str, Any]:
    """Two classes: icons of arrows, and all others, one of which is damaged."""
    for icon in ICONS.glob("*.png"):
        label = "arrows" if icon.stem.split("_")[0] in ("back", "forward", "move") else "others"
        (folder / "icons" / label).mkdir(parents=True, exist_ok=True)
        (folder / "icons" / label / icon.name).write_bytes(icon.read_bytes())
    (folder / "icons" / "others" / "damaged.png").write_bytes((ICONS / "home.png").read_bytes()[:40])
    given = {"source": "images", "path": str(folder / "icons"), "image_size": 32, "classes": 2, "augment": False}
    return {**given, "on_bad_record": "skip"}


def write_jsonl(folder: Path) -> dict[str, Any]:
    """Modules of the library as records."""
    texts = [(LIBRARY / f"{module}.py").read_text() for module in MODULES]
    (folder / "code.jsonl").write_text("".join(f"{json.dumps({'code': text})}\n" for text in texts))
    given = {"source": "jsonl", "path": str(folder / "code.jsonl"), "text_key": "code"}
    return {**given, "sequence_length": 24, "vocab_size": 400}


SMALL = {"hidden_size": 32, "num_layers": 2}
KINDS: dict[str, tuple[dict[str, Any], Any, str, int]] = {
    "gpt2": ({"name": "gpt2", **SMALL, "dropout": 0.0}, write_jsonl, "asp", 2),
    "transformer": ({"name": "transformer", **SMALL, "num_layers": 1, "dropout": 0.0}, write_pairs, "bsp", 2),
    "gnmt": ({"name": "gnmt", **SMALL, "dropout": 0.0}, write_pairs, "asp", 3),
    "resnet50": ({"name": "resnet50", "width": 8, "blocks": [1, 1]}, write_pictures, "bsp", 2),
}
"""Model, what writes its data, and the mode and number of stages that every run of the tests has."""


def launch(folder: Path, model: dict[str, Any], given: dict[str, Any], stages: int, mode: str, steps: int) -> RunFiles:
    """A run by the command itself, to its end."""
    job = {
        "machines": [f"cpu*{stages}"],
        "model": model,
        "data": given,
        "pipeline": {"sync_mode": mode, **({"minibatches_per_step": 2} if mode == "bsp" else {})},
        "optimizer": {"lr": 5e-3, "clip_grad_norm": 1.0},
        "run": {"steps": steps},
        "checkpoint": {"every_steps": None},
    }
    (folder / "c.yml").write_text(yamltree.dump(job))
    environment = {**os.environ, "VPIPE_HOME": str(folder / "home"), "VPIPE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "vpipe_cli.app", "launch", "c.yml"]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=170)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (run,) = (folder / "home" / "runs").iterdir()
    return RunFiles(run)


def ways() -> list[Any]:
    """Every kind under both modes and on two and three stages; what KINDS does not name is slow to have too."""
    return [
        pytest.param(kind, *way, id=f"{kind}-{way[0]}-{way[1]}", marks=[] if [*way] == usual else SLOW)
        for kind, (_, _, *usual) in KINDS.items()
        for way in product(("asp", "bsp"), (2, 3))
    ]


@pytest.mark.parametrize(("kind", "mode", "stages"), ways())
def test_the_loss_falls_on_real_input(kind: str, mode: str, stages: int, tmp_path: Path) -> None:
    """And under bsp the weights become those of one process; records that were left out are counted."""
    model, write, *_ = KINDS[kind]
    steps = 40 if mode == "asp" else 30
    files = launch(tmp_path, model, write(tmp_path), stages, mode, steps)
    losses = [json.loads(line)["loss"] for line in files.metrics(stages - 1).read_text().splitlines()]
    assert len(losses) == steps and sum(losses[-10:]) < 0.9 * sum(losses[:10]), losses
    result = json.loads(files.result.read_bytes())
    assert (result["records_left_out"] > 0) == (write is not write_jsonl)
    if mode == "bsp":
        assert result["weights_sha256"] == of_one_process(files, tmp_path / "cache")


def of_one_process(files: RunFiles, cache: Path) -> str:
    """The digest of the weights that the same job has without a pipeline."""
    job = Job.model_validate_json(files.job.read_bytes())
    found = reference.bsp(job.spec, models.build_model(job.spec), data.open_source(job.spec, cache), job.plan)
    return hashlib.sha256("".join(sha256_of(name, found[name]) for name in sorted(found)).encode()).hexdigest()
