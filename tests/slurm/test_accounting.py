"""What accounting says of jobs that have ended, where a cluster has it: squeue forgets them after some minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig import wait_for
from tests.slurm.accounting import PROGRAMS, Accounted
from tests.slurm.cluster import lacks
from vpipe_cli.slurm.queue import Queued, accounted
from vpipe_cli.transport.local import LocalTransport


def test_how_jobs_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing := lacks(*PROGRAMS):
        pytest.skip(f"a Slurm with accounts needs {missing}")
    slurm = Accounted(tmp_path)
    try:
        for name, value in slurm.env.items():
            monkeypatch.setenv(name, value)

        def sbatch(wrapped: str, *options: str) -> str:
            return slurm.run("sbatch", "--parsable", "--output=/dev/null", f"--wrap={wrapped}", *options).strip()

        good, array, held = sbatch("true"), sbatch("exit 3", "--array=0-1"), sbatch("true", "--hold")
        slurm.run("scancel", held)  # "CANCELLED by 0" in its words
        ended = {good: "COMPLETED", f"{array}_1": "FAILED", held: "CANCELLED", "999": "GONE"}
        found = {job: Queued(state) for job, state in ended.items()}
        wait_for(lambda: {job: accounted(LocalTransport(), job) for job in ended} == found, 60)
    finally:
        slurm.close()
