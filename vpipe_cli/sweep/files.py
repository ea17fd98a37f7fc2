"""The name of every file of a sweep, once, below ``$VPIPE_HOME/sweeps/<id>/``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SweepFiles:
    """The files of one sweep below ``folder``."""

    folder: Path

    @property
    def definition(self) -> Path:
        """Axes, trials, options: what is to be run. Written anew when the same command is typed again."""
        return self.folder / "sweep.json"

    @property
    def cluster(self) -> Path:
        """cluster.yml as it was when the command was typed last."""
        return self.folder / "cluster.yml"

    @property
    def events(self) -> Path:
        """Which run each trial has, and how it ended: one checksummed line each, never rewritten."""
        return self.folder / "events.jsonl"

    @property
    def lock(self) -> Path:
        """Locked by the controller as long as it lives."""
        return self.folder / "alive.lock"

    @property
    def stop(self) -> Path:
        """Exists once a stop was asked for."""
        return self.folder / "stop"

    @property
    def log(self) -> Path:
        """What the controller had to say."""
        return self.folder / "controller.log"

    def array(self, number: int) -> Path:
        """The folder of one array of Slurm, counted from 1; ``sweep.arrays`` says what is in it."""
        return self.folder / f"array-{number}"

    @property
    def picture(self) -> Path:
        """Step time, memory and their trade-off, as a picture."""
        return self.folder / "sweep.png"

    def results(self, form: str) -> Path:
        """results.jsonl, results.csv, results.md."""
        return self.folder / f"results.{form}"
