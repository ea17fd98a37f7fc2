"""Old driver configurations, written here after their descriptions: what becomes of them, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vpipe_cli import machines, yamltree
from vpipe_cli.importing import convert
from vpipe_cli.importing.convert import Imported
from worker.spec.model import BertSpec, EntrySpec, GnmtSpec, Gpt2Spec, TransformerSpec, VggSpec

FOUR = [f"localhost:{gpu}" for gpu in range(4)]
TWICE_FOUR = [f"{host}:{gpu}" for host in ("first", "localhost") for gpu in range(4)]
SIXTEEN = [f"v{host}:{4 * host + gpu}" for host in range(4) for gpu in range(4)]
"""As PipeDream's files count GPUs: through all hosts, which its driver never looked at."""

VPIPE = {
    "directory": "bert",
    "data_dir": "books_seq_len_128_x",
    "log_directory": "output",
    "container": "bert",
    "batch_size": 16,
    "learning_rate": 0.05,
    "weight_decay": 0.0,
    "epochs": 40,
    "compress_activations": False,
    "learning_rate_policy": "polynomial",
    "model_type": "bert",
    "distributed_backend": "gloo",
}
IMAGES = {
    "data_dir": "/data/imagenet/",
    "container": "nvcr.io/nvidia/pytorch:19.05-py3",
    "batch_size": 64,
    "learning_rate": 0.04,
    "weight_decay": 0.0005,
    "epochs": 60,
    "learning_rate_policy": "polynomial",
    "model_type": "image_classification",
    "distributed_backend": "gloo",
}
WORDS = {**IMAGES, "data_dir": "/data/wmt", "model_type": "translation", "learning_rate": 0.0003, "weight_decay": 0.0}


def straight(stages: int, **more: object) -> dict[str, object]:
    """The maps of one rank per stage and one stage per module, the criterion in the last."""
    ranks = {str(stage): [stage] for stage in range(stages)}
    return {"module_to_stage_map": [*range(stages), stages - 1], "stage_to_rank_map": ranks, **more}


def write(folder: Path, job: dict[str, Any], maps: object = None, cut: object = None) -> Path:
    """The files as they lay there: YAML in a folder of its own, JSON below ``directory``."""
    inner = folder / str(job.get("directory", "")) / "m"
    inner.mkdir(parents=True, exist_ok=True)
    (folder / "configs").mkdir(exist_ok=True)
    if maps is not None:
        (inner / "conf.json").write_text(maps if isinstance(maps, str) else json.dumps(maps, indent=1))
        job = {**job, "config_file": "m/conf.json"}
    if cut is not None:
        (inner / "cut.json").write_text(json.dumps(cut, indent=1))
        job = {**job, "partition": "m/cut.json"}
    path = folder / "configs" / "old.yml"
    path.write_text(yamltree.dump({"module": "m", **job}))
    return path


def brought(folder: Path, job: dict[str, Any], maps: object = None, cut: object = None, **more: Any) -> Imported:
    return convert.convert(write(folder, job, maps, cut), **more)


def told(made: Imported, kind: str) -> set[str]:
    return {note.key for note in made.notes if note.kind == kind}


@pytest.mark.parametrize(
    "stages, blocks, ratios, batch, mode, layers, shares",
    [
        (4, [13, 13, 13, 10], [1, 1, 1, 1], 16, "bsp", [14, 13, 13, 10], 1.0),
        (4, [13, 13, 13, 10], [0, 0, 0, 0], 8, "asp", [14, 13, 13, 10], 0.0),
        (4, [12, 13, 13, 11], [0.3, 0, 0, 0], 16, "asp", [13, 13, 13, 11], [3, 0, 0, 0]),
        (8, [12, 12, 13, 13, 13, 13, 12, 9], [1] * 8, 16, "bsp", [13, 12, 13, 13, 13, 13, 12, 9], 1.0),
        (8, [11, 12, 13, 13, 13, 13, 12, 10], [0] * 8, 4, "asp", [12, 12, 13, 13, 13, 13, 12, 10], 0.0),
        (
            *(8, [11, 11, 12, 12, 13, 13, 14, 11], [1, 0.85, 0.8, 0.6, 0.5, 0.2, 0, 0], 16, "asp"),
            *([12, 11, 12, 12, 13, 13, 14, 11], [12, 9, 9, 7, 6, 2, 0, 0]),
        ),
    ],
)
def test_the_six_of_vpipe(
    tmp_path: Path, stages: int, blocks: list[int], ratios: list[float], batch: int, mode: str, layers: list[int],
    shares: float | list[int],
) -> None:  # fmt: skip
    devices = FOUR if stages == 4 else TWICE_FOUR
    job = {**VPIPE, "machines": devices, "sync_mode": mode, "batch_size": batch}
    made = brought(tmp_path, job, straight(stages), {"partition": blocks, "recompute_ratio": ratios})
    spec = made.spec
    assert isinstance(spec.model, BertSpec)
    assert (spec.model.num_layers, spec.model.hidden_size, spec.model.num_heads) == (6 * stages, 1024, 16)
    assert (spec.pipeline.partition, spec.pipeline.replicas, spec.data.minibatch_size) == (layers, 1, batch)
    found = spec.pipeline.recompute_ratio
    if isinstance(found, list):  # as many layers as there were whole blocks in the recomputed lines
        assert [int(count * ratio + 1e-9) for count, ratio in zip(layers, found, strict=True)] == shares
    else:
        assert found == shares
    assert (spec.pipeline.sync_mode, spec.pipeline.schedule) == (mode, "1f1b")
    assert spec.pipeline.minibatches_per_step == (32 if mode == "bsp" else None)
    optimizer = spec.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("lamb", 0.05, 0.0)
    assert (optimizer.schedule, optimizer.power, optimizer.warmup_steps, spec.run.steps) == (
        "polynomial",
        0.5,
        7264,
        36320,
    )
    assert [f"{slot.host}:{slot.device[5:]}" for slot in machines.slots(spec.machines)] == devices
    assert spec.engine == ("local" if stages == 4 else "ssh")
    assert told(made, "left out") == {"container", "epochs"}
    assert told(made, "not needed") == {
        *("learning_rate_policy", "log_directory", "directory", "compress_activations", "distributed_backend")
    }


def test_vgg_on_16_as_15_and_1(tmp_path: Path) -> None:
    maps = {
        "module_to_stage_map": [0, 1, 1],
        "stage_to_rank_map": {"0": list(range(15)), "1": [15]},
        "stage_to_depth_map": {"0": 1, "1": 0},
    }
    convolutions = "self.a = torch.nn.Conv2d(1, 1)\nself.b = torch.nn.ReLU()\n" * 13
    (tmp_path / "vgg16" / "gpus").mkdir(parents=True)
    (tmp_path / "vgg16" / "gpus" / "stage0.py").write_text(convolutions)
    (tmp_path / "vgg16" / "gpus" / "stage1.py").write_text("self.a = torch.nn.Linear(1, 1)\n" * 3)
    made = brought(tmp_path, {**IMAGES, "machines": SIXTEEN, "module": "vgg16.gpus"}, maps)
    spec = made.spec
    assert isinstance(spec.model, VggSpec)
    assert (spec.pipeline.stages, spec.pipeline.partition, spec.pipeline.replicas) == (2, [13, 3], [15, 1])
    assert spec.pipeline.in_flight == "auto", "the depth map says what PipeDream's formula does"
    assert spec.machines == [f"v{host}:0-3" for host in range(4)], "GPU numbers were never used"
    optimizer = spec.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.schedule, optimizer.power) == ("sgd", 0.9, "polynomial", 2.0)
    assert optimizer.scale_lr_by_replicas
    assert (spec.run.steps, spec.evaluate.every_steps) == (60 * (1_281_167 // 64), 1_281_167 // 64)
    assert told(made, "left out") == {"container"}
    assert "machines" in told(made, "changed")


def test_resnet_on_ranks_that_do_not_follow_each_other(tmp_path: Path) -> None:
    ranks = {"0": [0, 1, 4, 5, 8, 9, 12, 13], "1": [2, 6, 10, 14], "2": [3, 7, 11, 15]}
    maps = {"module_to_stage_map": [0, 1, 2, 2], "stage_to_rank_map": ranks}
    made = brought(tmp_path, {**IMAGES, "machines": SIXTEEN, "module": "models.resnet50.gpus=16"}, maps)
    slots = machines.slots(made.spec.machines)
    assert made.spec.pipeline.replicas == [8, 4, 4]
    assert [f"{slot.host}:{slot.device[5:]}" for slot in slots] == [
        f"v{rank // 4}:{rank % 4}" for stage in ranks.values() for rank in stage
    ]
    assert made.spec.pipeline.partition == "auto"
    assert told(made, "left out") == {"container", "module_to_stage_map"}


@pytest.mark.parametrize("name, count", [("resnet50", 16), ("vgg16", 4)])
def test_data_parallel_is_one_stage(tmp_path: Path, name: str, count: int) -> None:
    maps = {"module_to_stage_map": [0, 0, 0], "stage_to_rank_map": {"0": list(range(count))}}
    job = {
        **IMAGES,
        "machines": SIXTEEN[:count],
        "module": f"models.{name}.gpus={count}",
        "distributed_backend": "nccl",
    }
    made = brought(tmp_path, job, maps)
    assert (made.spec.pipeline.stages, made.spec.pipeline.replicas) == (1, count)
    assert not made.spec.optimizer.scale_lr_by_replicas
    assert told(made, "left out") == {"container"}


def test_alexnet_is_for_the_user_to_write(tmp_path: Path) -> None:
    made = brought(tmp_path, {**IMAGES, "machines": FOUR, "module": "models.alexnet.gpus=4"}, straight(4))
    assert made.spec.model == EntrySpec(entry="alexnet:build", takes="images", code=made.spec.model.code)  # type: ignore[union-attr]
    assert "module" in told(made, "left out") and "alexnet:build" in made.text


def test_gnmt_on_12_with_three_ranks_in_a_stage(tmp_path: Path) -> None:
    ranks = {**{str(stage): [stage] for stage in range(8)}, "8": [8, 9, 10], "9": [11]}
    depths = {str(stage): depth for stage, depth in enumerate([12, 11, 10, 9, 8, 7, 6, 5, 1, 0])}
    maps = {"module_to_stage_map": [*range(10), 9], "stage_to_rank_map": ranks, "stage_to_depth_map": depths}
    made = brought(tmp_path, {**WORDS, "machines": SIXTEEN[:12], "module": "models.gnmt.gpus=12"}, maps)
    spec = made.spec
    assert isinstance(spec.model, GnmtSpec) and spec.model.num_layers == 4
    assert (spec.pipeline.replicas, spec.pipeline.in_flight) == ([1] * 8 + [3, 1], "auto")
    assert (spec.optimizer.name, spec.optimizer.lr, spec.optimizer.betas) == ("adam", 0.0003, (0.9, 0.999))
    assert {"stage_to_depth_map", "module_to_stage_map", "epochs", "container"} < told(made, "left out")
    assert spec.run.steps == 10 * 6_000, "60 epochs of a length that is a guess, and said to be one"
    counted = brought(tmp_path, {**WORDS, "machines": SIXTEEN[:12], "module": "models.gnmt"}, maps, examples=64_000)
    assert counted.spec.run.steps == 60 * 1_000 and "epochs" not in told(counted, "left out")


def test_gnmt_names_machines_that_have_no_stage(tmp_path: Path) -> None:
    made = brought(tmp_path, {**WORDS, "machines": SIXTEEN[:12], "module": "models.gnmt_large.x"}, straight(10))
    assert made.spec.model.num_layers == 8  # type: ignore[union-attr]
    assert len(machines.slots(made.spec.machines)) == 10
    assert any(note.key == "machines" and "v2:2-3" in note.why.replace(",", "-") for note in made.notes)


def test_depths_of_one_rank_per_stage(tmp_path: Path) -> None:
    job = {**IMAGES, "machines": FOUR, "module": "models.vgg16.x"}
    deeper = brought(tmp_path, job, straight(4, stage_to_depth_map={"0": 6, "1": 4, "2": 2, "3": 0}))
    assert deeper.spec.pipeline.in_flight == 7
    assert "stage_to_depth_map" not in {note.key for note in deeper.notes}
    uneven = brought(tmp_path, job, straight(4, stage_to_depth_map={"0": 6, "1": 1, "2": 1, "3": 0}))
    assert [note.why for note in uneven.notes if note.key == "stage_to_depth_map"] == [
        "asked for 6, 1, 1, 0 warmups by stage; in_flight: 7 gives 6, 4, 2, 0"
    ]


@pytest.mark.parametrize(
    "kind, module, blocks, model",
    [
        ("transformer", "vgpus=4", [9, 10, 9, 5], TransformerSpec(num_layers=6, hidden_size=1024, num_heads=16)),
        ("transformer", "vgpus=8", [8] * 7 + [7], TransformerSpec(num_layers=12, hidden_size=1024, num_heads=16)),
        ("cpm", "medium_4", [12, 13, 13, 12], Gpt2Spec(num_layers=24, hidden_size=1024, num_heads=16)),
        ("cpm", "large_8", [8, 8, 8, 8, 8, 9, 9, 8], Gpt2Spec(num_layers=32, hidden_size=2560, num_heads=32)),
    ],
)  # fmt: skip
def test_blocks_are_layers_in_the_other_models_of_vpipe(
    tmp_path: Path, kind: str, module: str, blocks: list[int], model: object
) -> None:
    job = {**VPIPE, "model_type": kind, "module": module, "machines": TWICE_FOUR[: len(blocks)], "batch_size": 640}
    made = brought(tmp_path, job, straight(len(blocks)), {"partition": blocks, "recompute_ratio": [0.8] * len(blocks)})
    assert (made.spec.model, made.spec.pipeline.partition) == (model, blocks)
    assert made.spec.pipeline.recompute_ratio == 0.8
    assert made.spec.optimizer.betas == (0.9, 0.997)
    schedule = ("inverse_sqrt", 4000) if kind == "transformer" else ("constant", 0)
    assert (made.spec.optimizer.schedule, made.spec.optimizer.warmup_steps) == schedule
    assert made.spec.data.minibatch_size == (10 if kind == "transformer" else 640), "there, it counted tokens"
    assert "data_dir" in told(made, "left out")


def test_the_large_cpm_of_vpipe(tmp_path: Path) -> None:
    """Its tensor-parallel groups are left out, their leaders stay."""
    maps = {
        "module_to_stage_map": [*range(8), 7],
        "stage_to_rank_map": {str(s): [4 * s] for s in range(8)},
        "mp_size": 4,
    }
    cut = {"partition": [8, 8, 8, 8, 8, 9, 9, 8], "recompute_ratio": [0.8, 0.6, 0.6, 0.4, 0.4, 0.2, 0, 0]}
    devices = [f"h{rank // 8}:{rank % 8}" for rank in range(32)]
    job = {**VPIPE, "model_type": "cpm", "module": "large_8", "machines": devices, "batch_size": 2, "sync_mode": "asp"}
    made = brought(tmp_path, job, maps, cut)
    assert (made.spec.model.num_layers, made.spec.pipeline.partition) == (32, cut["partition"])  # type: ignore[union-attr]
    ratios = made.spec.pipeline.recompute_ratio
    assert isinstance(ratios, list)
    assert [int(n * r + 1e-9) for n, r in zip(cut["partition"], ratios, strict=True)] == [6, 4, 4, 3, 3, 1, 0, 0]
    assert [f"{slot.host}:{slot.device[5:]}" for slot in machines.slots(made.spec.machines)] == devices[::4]
    assert "mp_size" in told(made, "left out")


@pytest.mark.parametrize("stages, replicas", [(4, 8), (8, 4)])
def test_cpm_on_32_with_replicas_of_every_stage(tmp_path: Path, stages: int, replicas: int) -> None:
    ranks = {str(stage): [*range(stage * replicas, (stage + 1) * replicas)] for stage in range(stages)}
    maps = {"module_to_stage_map": [*range(stages), stages - 1], "stage_to_rank_map": ranks}
    cut = {
        "partition": [50 // stages + (stage < 50 % stages) for stage in range(stages)],
        "recompute_ratio": [0] * stages,
    }
    devices = [f"h{rank // 8}:{rank % 8}" for rank in range(32)]
    made = brought(tmp_path, {**VPIPE, "model_type": "cpm", "module": "medium", "machines": devices}, maps, cut)
    assert (made.spec.pipeline.stages, made.spec.pipeline.replicas) == (stages, replicas)
    assert len(machines.slots(made.spec.machines)) == 32 and made.spec.pipeline.partition == cut["partition"]


def test_tensor_parallel_ranks_are_left_out(tmp_path: Path) -> None:
    maps = {"module_to_stage_map": [0, 1, 1], "stage_to_rank_map": {"0": [0], "1": [4]}, "mp_size": 4}
    cut = {"partition": [25, 25], "recompute_ratio": [0, 0]}
    made = brought(tmp_path, {**VPIPE, "model_type": "cpm", "module": "medium", "machines": TWICE_FOUR}, maps, cut)
    assert made.spec.machines == ["first:0", "localhost:0"]
    assert {"mp_size", "machines"} < told(made, "left out")


def test_flags(tmp_path: Path) -> None:
    job = {**IMAGES, "machines": FOUR, "module": "models.vgg16.x"}
    plain = brought(tmp_path, {**job, "no_input_pipelining": True, "fp16": True, "recompute": True}, straight(4)).spec
    assert (plain.pipeline.schedule, plain.precision) == ("none", "fp16")
    both = brought(tmp_path, {**job, "macrobatch": True, "num_minibatches": 100, "grad_clip": 5.0}, straight(4))
    pipeline = both.spec.pipeline
    assert (pipeline.schedule, pipeline.minibatches_per_step, both.spec.run.steps) == ("2bw", 4, 60 * 25)
    assert "grad_clip" in told(both, "left out")


@pytest.mark.parametrize(
    "policy, course",
    [
        ("step", {"schedule": "step", "decay": 0.1, "decay_every": 3000}),
        ("polynomial", {"schedule": "polynomial", "power": 2.0}),
        ("exponential_decay", {"schedule": "exponential", "decay": 0.97}),
        ("linear", {"schedule": "linear"}),
        ("of my own", {"schedule": "constant"}),
    ],
)
def test_courses_of_the_rate(tmp_path: Path, policy: str, course: dict[str, object]) -> None:
    job = {**IMAGES, "machines": FOUR, "module": "models.vgg16.x", "learning_rate_policy": policy, "lr_warmup": True}
    made = brought(tmp_path, job, straight(4), examples=6_400)
    found = made.spec.optimizer
    assert {key: getattr(found, key) for key in course} == course
    assert (found.warmup_steps, made.spec.run.steps) == (500, 6000)
    assert ("learning_rate_policy" in told(made, "left out")) == (policy == "of my own")


def test_a_rate_of_which_the_driver_wrote_six_digits(tmp_path: Path) -> None:
    made = brought(tmp_path, {**IMAGES, "machines": FOUR, "module": "vgg16", "learning_rate": 1.5e-7}, straight(4))
    assert made.spec.optimizer.lr == 1.5e-7
    assert any(note.key == "learning_rate" and "0.000000 was used" in note.why for note in made.notes)


def test_unknown_keys_users_and_pinned_images(tmp_path: Path) -> None:
    image = "nvcr.io/nvidia/pytorch@sha256:" + 64 * "0"
    job = {**IMAGES, "machines": ["me@a:0", "me@a:1", "me@b:0"], "module": "vgg16", "container": image, "colour": "red"}
    made = brought(tmp_path, job, straight(3, extra=1))
    spec = made.spec
    assert (spec.machines, spec.ssh.user) == (["a:0,1", "b:0"], "me")
    assert spec.container is not None and spec.container.image == f"docker://{image}"
    places = {note.key: note.where for note in made.notes if "unknown" in note.why}
    line = next(n for n, text in enumerate(write(tmp_path, job).read_text().split("\n"), 1) if "colour" in text)
    assert places["colour"] == f"{tmp_path}/configs/old.yml:{line}:1"
    assert places["extra"].startswith(str(tmp_path / "m" / "conf.json:"))
