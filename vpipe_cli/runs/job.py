"""The job of a run as its files tell it."""

from __future__ import annotations

import json

from vpipe_cli.runs.store import Run
from worker.errors import NotFinished
from worker.spec.job import Job


def placed_job(run: Run) -> Job:
    """The run's job, its ranks on the devices that cluster.yml names (a rank itself sees only one, as number 0).

    Raises:
        NotFinished: if its launch has not got as far as that, or never did.
    """
    try:
        job = Job.model_validate_json(run.files.job.read_bytes())
        devices = {rank["rank"]: rank["device"] for rank in json.loads(run.files.launch.read_bytes())["ranks"]}
    except FileNotFoundError:
        raise NotFinished(f"run {run.id} has no ranks yet", f"`vpipe status {run.id}` says how it stands") from None
    ranks = [rank.model_copy(update={"device": devices.get(rank.rank, rank.device)}) for rank in job.ranks]
    return job.model_copy(update={"ranks": ranks})
