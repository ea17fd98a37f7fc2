"""A driver file and its JSON -> the text of a cluster.yml that loads, and notes on what it does not hold."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vpipe_cli import config
from vpipe_cli.importing import layout, maps, models, old, rates, write
from vpipe_cli.importing.note import Note
from vpipe_cli.importing.old import OldJob
from vpipe_cli.importing.write import Line, Section
from worker.errors import ConfigError, UsageError
from worker.spec.cluster import ClusterSpec
from worker.spec.container import PINNED

DEAD = {
    "compress_activations": "nothing read it; for 16 bits between stages set precision: bf16",
    "compress_in_gpu": "nothing read it",
    "print_frequency": "every step is recorded",
    "verbose_frequency": "every step is recorded",
    "log_directory": "runs and their logs are kept below $VPIPE_HOME",
    "directory": "nothing is read from there any more",
    "distributed_backend": "chosen by the devices",
    "master_addr": "the machine of rank 0 is known",
    "loss_scale": "fp16 finds its scale by itself",
    "resume": "vpipe resume RUN continues a run of vpipe; old checkpoints cannot be read",
}
"""Keys that are carried nowhere, and why nothing is lost by that; those of a job that has them are told."""


@dataclass(frozen=True)
class Imported:
    """``text`` of cluster.yml, what it says (with other paths for those that are not here), and what is to be told."""

    text: str
    spec: ClusterSpec
    notes: tuple[Note, ...]


def convert(path: Path, examples: int | None = None) -> Imported:
    """The cluster.yml of an old configuration.

    Args:
        examples: in an epoch of the data, where epochs are to be counted as steps.
    Raises:
        UsageError: a file is missing.
        ConfigError: a file says something wrong, or what no cluster.yml can say.
    """
    job = old.read(path)
    found, cut = maps.maps_of(job), maps.cut_of(job)
    stages = layout.stages_of(job, found, cut)
    sizes = [len(ranks) for ranks in stages]
    machines, user = layout.machines(job, stages)
    model = models.model_of(job, cut)
    pipeline = layout.pipeline(job, found, cut, stages, model.extra)
    size, per_step = _number(model.data, "minibatch_size", 1), _number(pipeline, "minibatches_per_step", 1)
    run = rates.length(job, examples, model.examples, size, per_step)
    optimizer = rates.optimizer(job, run, sizes)
    sections: dict[str, Line | Section] = {
        "name": Line(re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-")[:64] or "imported"),
        "machines": Line(machines, "by rank: the devices of stage 0, then those of stage 1, and so on"),
        "ssh": {"user": Line(user)} if user else {},
        "container": _container(job),
        "model": model.model,
        "data": model.data,
        "pipeline": pipeline,
        "optimizer": optimizer,
        **({"precision": Line("fp16")} if job.flag("fp16") else {}),
        "checkpoint": {"every_steps": Line(run.epoch, "an epoch")} if run.epoch else {},
        "evaluate": {"every_steps": Line(run.epoch, "an epoch"), **model.evaluate} if model.evaluate else {},
        "run": {"steps": Line(run.steps, run.why)},
    }
    for key in (key for key in DEAD if key in job.places):
        job.not_needed(key, DEAD[key])
    spec = _checked(job, sections)
    notes = tuple(sorted(job.notes, key=lambda note: ("left out", "changed", "not needed").index(note.kind)))
    return Imported(write.text(sections, path.name, notes), spec, notes)


def _number(section: Section, key: str, default: int) -> int:
    value = section[key].value if key in section else default
    return value if isinstance(value, int) else default


def _container(job: OldJob) -> dict[str, Line]:
    """The image, where it can be named here."""
    image = job.text("container")
    if not image:
        return {}
    if image.endswith((".sif", ".def")):
        return {"image": Line(image)}
    if PINNED.fullmatch(f"docker://{image}"):
        return {"image": Line(f"docker://{image}")}
    why = f"{image!r} is a docker image by name; write container: {{image: docker://{image.split(':')[0]}@sha256:...}}"
    job.left_out("container", f"{why}, or a .def or .sif; without one the Python of each machine is used")
    return {}


def _checked(job: OldJob, sections: dict[str, Line | Section]) -> ClusterSpec:
    """What vpipe itself reads in the file. Data that is not on this machine is told, and taken as given."""
    probe = dict(sections)
    for section in ("data", "evaluate", "container"):
        lines = probe[section]
        assert isinstance(lines, Mapping)
        absent = [key for key in ("path", "target_path", "held_out", "image") if _is_absent(lines, key)]
        if absent:
            places = {"container": "container"}.get(section, "data_dir")
            named = " and ".join(f"{section}.{key}" for key in absent)
            job.changed(places, f"{named}: not on this machine; those that read data need it")
            made_up = Line(str(job.path.resolve()) if section != "container" else "none.def")
            probe[section] = {**lines, **dict.fromkeys(absent, made_up)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cluster.yml"
        (Path(folder) / "none.def").touch()
        path.write_text(write.text(probe, job.path.name), encoding="utf-8")
        try:
            return config.load(path)
        except ConfigError as error:
            said = "\n".join(f"{problem.key}: {problem.message}" for problem in error.problems)
            message = f"{job.path}: what it asks for is no job for vpipe, so nothing was written:\n{said}"
            raise UsageError(message) from None


def _is_absent(lines: Mapping[str, Line], key: str) -> bool:
    value = lines[key].value if key in lines else None
    return isinstance(value, str) and "://" not in value and not os.path.exists(value)


def save(imported: Imported, path: Path, force: bool = False) -> None:
    """Write the file.

    Raises:
        UsageError: it exists and ``force`` is not given, or it cannot be written.
    """
    try:
        with open(path, "w" if force else "x", encoding="utf-8") as file:
            file.write(imported.text)
    except FileExistsError:
        raise UsageError(f"{path} exists already", "name another file with -f, or overwrite it with --force") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None
