"""The checkpoints of runs as the command line sees them: chosen, verified, given to a new run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpipe_cli.runs import store
from vpipe_cli.runs.store import Run
from worker.checkpoint import changes, layout, manifest, verify
from worker.checkpoint.manifest import Manifest
from worker.errors import CheckpointError, PreflightError, UnreachableError, UsageError
from worker.spec.files import RunFiles
from worker.spec.job import Job, code_digest


@dataclass(frozen=True)
class Checkpoint:
    """One committed checkpoint, of the run with the id ``run``; ``problem`` is why its manifest cannot be read, if it
    cannot; ``asked`` the path it was named by, if it was."""

    run: str
    step: int
    path: Path
    manifest: Manifest | None
    problem: str = ""
    asked: str = ""

    @property
    def name(self) -> str:
        """How it is asked for."""
        return self.asked or f"{self.run}@{self.step}"


def folder(asked: str | None) -> Path | None:
    """The folder of a checkpoint that ``asked`` is the path of, wherever it lies; None where it names a run."""
    if asked and (os.sep in asked or (Path(asked) / layout.MANIFEST).is_file()):
        return Path(asked).expanduser().absolute()
    return None


def at(path: Path, asked: str) -> Checkpoint:
    """The checkpoint in the folder ``path``; not verified. Raises CheckpointError where there is none."""
    if not path.is_dir():
        raise CheckpointError(f"{asked} is no folder", "a checkpoint is a folder step-N, with a manifest.json in it")
    found = manifest.read(path)
    return Checkpoint(found.run, found.step, path, found, asked=asked)


def split(asked: str | None) -> tuple[Run, int | None]:
    """``RUN``, ``RUN@STEP`` or ``@STEP`` as a run and a step; None stands for the newest of each.

    Raises:
        RunNotFound: there is no such run. UsageError: the step is no number.
    """
    name, at, number = (asked or "").partition("@")
    if at and not re.fullmatch(r"\d{1,18}", number):
        raise UsageError(f"{asked}: a step is a number", "`vpipe checkpoint ls` lists the steps that were saved")
    return store.find(name or None), int(number) if at else None


def listed(run: Run) -> list[Checkpoint]:
    """All checkpoints of a run, newest first; no file of tensors is read."""
    return [_open(run, step) for step in layout.steps(run.files.checkpoints)]


def find(asked: str | None) -> Checkpoint:
    """One checkpoint by name, the newest if no step is named; not verified. Raises CheckpointError, RunNotFound."""
    run, step = split(asked)
    steps = layout.steps(run.files.checkpoints)
    if not steps:
        hint = "`checkpoint.every_steps` in cluster.yml says when one is written"
        if run.files.hosts.exists():
            hint = f"`vpipe checkpoint fetch {run.id}` brings it from the run's hosts"
        raise CheckpointError(f"run {run.id} has no checkpoint", hint)
    if step is not None and step not in steps:
        there = ", ".join(map(str, steps[:10]))
        raise CheckpointError(f"run {run.id} has no checkpoint of step {step}", f"it has those of step {there}")
    return _open(run, steps[0] if step is None else step)


def whole(asked: str | None) -> tuple[Checkpoint, list[str]]:
    """The checkpoint asked for, every hash verified. Where no step was named, the newest that verifies, and what is
    wrong with newer ones.

    Raises:
        CheckpointError: it is damaged, or all are.
    """
    if path := folder(asked):
        found = at(path, str(asked))
        if wrong := problems(found):
            raise CheckpointError(f"{found.name} is damaged: {'; '.join(wrong)}")
        return found, []
    run, step = split(asked)
    if step is not None:
        found = find(asked)
        if wrong := problems(found):
            raise CheckpointError(f"{found.name} is damaged: {'; '.join(wrong)}", _OTHERS)
        return found, []
    passed: list[str] = []
    for each in [find(asked), *listed(run)[1:]]:
        if not (wrong := problems(each)):
            return each, passed
        passed.append(f"{each.name} is damaged: {'; '.join(wrong)}")
    raise CheckpointError(f"no checkpoint of run {run.id} can be used: {'; '.join(passed)}", _OTHERS)


_OTHERS = "`vpipe checkpoint verify` looks at all of a run's checkpoints"


def fetch(asked: str | None) -> Checkpoint:
    """The checkpoint asked for, brought from the run's hosts where it is not here: from those that answer, since others
    may have copies of what the rest had. Raises as ``saved.fetch``."""
    from vpipe_cli.engines import saved
    from vpipe_cli.transport.connect import connect

    run, step = split(asked)
    if run.files.hosts.exists():
        folders = json.loads(run.files.hosts.read_bytes())
        job = Job.model_validate_json(run.files.job.read_bytes())
        with connect(list(folders), job.spec.ssh, partial=True) as hosts:
            if len(hosts) == 0:
                raise UnreachableError("; ".join(error.message for error in hosts.errors.values()))
            step = saved.fetch(run.files, hosts, folders, step)
    return find(run.id if step is None else f"{run.id}@{step}")


def brought(asked: str) -> tuple[Checkpoint, list[str]]:
    """As ``whole``; where a run that is on other machines is named, the newest that they have, brought from there.

    Raises:
        CheckpointError: there is none, or it is damaged. UnreachableError: nobody answers, and there is none here.
    """
    if folder(asked):
        return whole(asked)
    run, step = split(asked)
    here = layout.steps(run.files.checkpoints)
    if run.files.hosts.exists() and (step is None or step not in here):
        try:
            return whole(fetch(asked).name)
        except UnreachableError:
            if not here:
                raise
    return whole(asked)


def problems(checkpoint: Checkpoint) -> list[str]:
    """What is wrong with it, every file read."""
    return [checkpoint.problem] if checkpoint.problem else verify.problems(checkpoint.path)


def fit(checkpoint: Checkpoint, job: Job) -> list[str]:
    """What will be another in ``job`` than it was; nothing where it goes on bit for bit.

    Raises:
        CheckpointError: ``job`` cannot go on from it, with the reason.
    """
    assert checkpoint.manifest is not None
    changes.refuse(checkpoint.manifest, job.spec)
    return changes.changes(checkpoint.manifest, job.spec, job.plan, code_digest())


def told(name: str, differences: Sequence[str]) -> list[str]:
    """Lines for people: where a run goes on, and what will not be as it was."""
    if not differences:
        return [f"goes on from {name}, bit for bit"]
    return [f"goes on from {name}, with differences:", *(f"  {difference}" for difference in differences)]


def give(checkpoint: Checkpoint, files: RunFiles) -> None:
    """Make the checkpoint the first one of a new run: linked where that can be, so that it costs no room and outlives
    the run it came from. Raises PreflightError."""
    target = layout.committed(files.checkpoints, checkpoint.step)
    try:
        files.checkpoints.mkdir(mode=0o700, exist_ok=True)  # what `parents` makes has the umask's mode
        target.mkdir(mode=0o700)
        for name in _names(checkpoint):
            _link(checkpoint.path / name, target / name)
        layout.fsync_folder(target)
        layout.fsync_folder(files.checkpoints)
    except OSError as error:
        hint = "make room there, or name another place with VPIPE_HOME"
        raise PreflightError(f"cannot put {checkpoint.name} into the new run: {error}", hint) from error


def export(checkpoint: Checkpoint, to: str) -> tuple[Path, str]:
    """Write its weights to the file ``to``; the file, and whose names they have there: ``published`` or ``own``.

    Raises:
        CheckpointError: it cannot be read, or the file not be written; or there is no torch on this machine.
    """
    path, is_folder = Path(to).absolute(), to.endswith("/")
    if path.is_dir() and not is_folder:
        hint = f"name the file in it; or write {to}/ for a folder that from_pretrained opens"
        raise UsageError(f"--to {to} is a folder", hint)
    target = f"{path}/" if is_folder else str(path)
    command = [sys.executable, "-m", "worker.recovery.export", str(checkpoint.path), target]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise CheckpointError(f"{checkpoint.name} cannot be exported to {path}: {said}")
    return path, done.stdout.strip()


def _names(checkpoint: Checkpoint) -> Iterator[str]:
    assert checkpoint.manifest is not None
    yield layout.MANIFEST
    yield from checkpoint.manifest.files


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target, follow_symlinks=False)
        target.chmod(0o600)


def _open(run: Run, step: int) -> Checkpoint:
    path = layout.committed(run.files.checkpoints, step)
    try:
        return Checkpoint(run.id, step, path, manifest.read(path))
    except CheckpointError as error:
        return Checkpoint(run.id, step, path, None, error.message)
