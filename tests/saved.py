"""Runs that save themselves: the real ``train`` on forked ranks, with the toy model and its data."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests import harness, ranks, toy
from tests.rig import wait_for
from worker import data, models
from worker.build import Builder
from worker.checkpoint import layout, manifest, verify
from worker.checkpoint.manifest import Manifest
from worker.data.base import Source
from worker.executor import Executor
from worker.metrics import MetricsFile
from worker.models.base import Model
from worker.recovery import place, restore
from worker.recovery.restore import Saved
from worker.rendezvous import Rendezvous
from worker.spec.checkpoint import CheckpointSpec
from worker.spec.cluster import ClusterSpec, DataSpec, OptimizerSpec, PipelineSpec, RunSpec
from worker.spec.files import RunFiles
from worker.spec.job import Job, code_digest
from worker.spec.records import StepMetrics
from worker.trace import Stopwatch
from worker.train import train

MODEL, DATA = toy.model(), toy.Data()
STEPS, EVERY = 12, 4
Prepare = Callable[[int], None]


def spec(sync_mode: str = "bsp", order: str = "1f1b", per_step: int | None = None, **more: Any) -> ClusterSpec:
    """Twelve steps, saved after every fourth; ``more`` are keys of the optimizer, or whole sections by name."""
    if per_step is None and (sync_mode == "bsp" or order in ("2bw", "accumulate")):
        per_step = 5
    sections = {key: more.pop(key) for key in ("run", "checkpoint", "precision") if key in more}
    optimizer = {"lr": 1e-2, "clip_grad_norm": 0.5, "warmup_steps": 6, "schedule": "linear"} | more
    return ClusterSpec(
        machines=["cpu"],
        data=DataSpec(minibatch_size=toy.BATCH),
        pipeline=PipelineSpec(sync_mode=sync_mode, schedule=order, minibatches_per_step=per_step),
        optimizer=OptimizerSpec(**optimizer),
        checkpoint=CheckpointSpec(**{"every_steps": EVERY, "timeout": 15.0} | sections.pop("checkpoint", {})),
        run=RunSpec(**{"steps": STEPS, "seed": 3, "stall_timeout": 20.0} | sections.pop("run", {})),
        **sections,
    )


def job_of(whole: ClusterSpec, partition: list[int] | None = None, **layout: Any) -> Job:
    return harness.job_of(whole, partition or [2, 3, 1], **layout)


class Run:
    """A run folder, and the attempts made in it."""

    def __init__(self, folder: Path, job: Job, model: Model = MODEL, source: Source = DATA) -> None:
        self.files, self.job, self.model, self.source = RunFiles(folder), job, model, source
        self.attempts = 0
        folder.mkdir(parents=True)
        code_digest()  # once for all that are forked from here

    @property
    def folder(self) -> Path:
        return self.files.checkpoints

    def path(self, step: int) -> Path:
        return layout.committed(self.folder, step)

    def steps(self) -> list[int]:
        return layout.steps(self.folder)

    def saved(self, step: int = STEPS) -> Manifest:
        return manifest.read(self.path(step))

    def state(self, step: int = STEPS) -> dict[str, Any]:
        """The hash of every layer's file (weights, buffers, the optimizer's state), and what is no tensor."""
        found = self.saved(step)
        hashes = {name: found.files[file].sha256 for name, file in found.layers.items()}
        return {**hashes, "values": found.optimizer_values, "scaler": found.ranks["0"].scaler}

    def train(self, prepare: Prepare | None = None) -> Run:
        """One attempt to the end of the run."""
        outcomes = self.attempt(prepare)
        failures = [outcome.text for outcome in outcomes if isinstance(outcome, ranks.Failure)]
        assert not failures, "\n".join(failures)
        return self

    def failures(self, prepare: Prepare | None = None) -> list[BaseException | None]:
        """One attempt in which every rank fails; their errors, None for one that was killed."""
        outcomes = self.attempt(prepare)
        assert all(isinstance(outcome, ranks.Failure) for outcome in outcomes), outcomes
        return [outcome.error for outcome in outcomes]

    def attempt(self, prepare: Prepare | None = None) -> list[Any]:
        """One attempt, however it ends; ``prepare(rank)`` runs first in every rank. What each rank ended with."""
        self.attempts += 1
        folder = self.files.attempt(self.attempts)
        folder.mkdir()
        return ranks.attempt(len(self.job.ranks), folder, partial(self._rank, folder, prepare))

    def log(self, rank: int = 0) -> str:
        """What a rank of the last attempt printed."""
        return (self.files.attempt(self.attempts) / f"out-{rank}").read_text()

    def _rank(self, folder: Path, prepare: Prepare | None, rank: int) -> None:
        sys.stdout = (folder / f"out-{rank}").open("w", buffering=1)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        models.build_model = lambda spec: self.model  # type: ignore[assignment]
        data.signature = lambda spec: self.source.signature  # type: ignore[assignment]
        data.open_source = lambda spec, cache: self.source  # type: ignore[assignment]
        if prepare:
            prepare(rank)
        size = len(self.job.ranks)
        rendezvous = Rendezvous(dist.FileStore(str(folder / "store"), size), rank, size, 20.0)
        train(self.job, rank, self.files, self.attempts, folder, rendezvous)


def resumed(folder: Path, origin: Run, job: Job | None = None, step: int = EVERY) -> Run:
    """A new run, not yet trained, that begins with one checkpoint of ``origin``."""
    run = Run(folder, job or origin.job, origin.model, origin.source)
    shutil.copytree(origin.path(step), run.path(step))
    return run


class Alone:
    """A run on one rank in this very process, whose executor stands where a checkpoint left it."""

    def __init__(self, folder: Path, model: Model, whole: ClusterSpec, attempt: int = 1) -> None:
        self.job = job_of(whole, [len(model.layers)])
        self.rendezvous = Rendezvous(dist.HashStore(), 0, 1, 5.0)
        self.builder = Builder(self.job, model, DATA.signature, 0, torch.device("cpu"))
        self.place = place.find(folder, self.rendezvous)
        self.said: list[str] = []
        self.saved: Saved | None = restore.find(self.builder, self.place, attempt, self.rendezvous, self.said.append)
        self.executor: Executor = self.builder.executor(None, Stopwatch(), _ignore)
        if self.saved:
            self.saved.put_back(self.executor, 0)


def newest(folder: Path) -> tuple[int | None, list[str]]:
    """The newest step in ``folder`` whose checkpoint verifies, None if none does; and what is wrong with newer ones."""
    wrong: list[str] = []
    for step in layout.steps(folder):
        found = verify.problems(layout.committed(folder, step))
        if not found:
            return step, wrong
        wrong += found
    return None, wrong


def kill_at(step: int, only: int | None = None, once: Callable[[], bool] = lambda: True) -> Prepare:
    """Every rank, or ``only`` one, kills itself once it has done ``step`` steps, and ``once`` says so."""
    write = MetricsFile.write

    def mutant(self: MetricsFile, metrics: StepMetrics) -> None:
        write(self, metrics)
        if metrics.step >= step:
            wait_for(once)
            os.kill(os.getpid(), 9)

    def prepare(rank: int) -> None:
        if only in (None, rank):
            MetricsFile.write = mutant  # type: ignore[method-assign]

    return prepare


def _ignore(step: StepMetrics) -> None:
    """No test here looks at metrics."""
