"""What a launch leaves in the run's folder for the steps in its allocation, which know no other file."""

from __future__ import annotations

import json
from typing import Any

from vpipe_cli import placing
from vpipe_cli.launch import Launch, slice_of
from vpipe_cli.slurm.script import hosts_of, node_image, script

ASKS = "VPIPE_PREEMPT"
"""Tells ranks that the run may have to leave; see ``worker.recovery.leave``."""


def files(launch: Launch, root: str) -> dict[str, str]:
    """The text of each file, by its name in the run's folder. Hosts bear the names that the launch gives them.

    ``slurm.json`` is what ``hostd slurm`` needs; below ``slurm/`` lie job.json and launch.json as they were worked
    out, to be written anew with the nodes of each allocation, and the part of every host. ``slurm.sh`` is for sbatch.
    Raises PreflightError where no script can name ``root``.
    """
    hosts, spec = hosts_of(launch), launch.job.spec
    told = {
        "run": launch.run,
        "hosts": hosts,
        "named": spec.slurm.nodes is None,
        "restarts": launch.restarts,
        "max_requeues": spec.slurm.max_requeues,
        "saves": spec.checkpoint.every_steps is not None,
    }
    placed = in_root(launch.model_dump_json(indent=2), root) + "\n"
    found = {
        "slurm.json": _text(told),
        "slurm.sh": script(launch, root),
        "launch.json": placed,
        "slurm/job.json": launch.job.model_dump_json(indent=2) + "\n",
        "slurm/launch.json": placed,
    }
    return found | {f"slurm/{host}.json": _text(_slice(launch, host, root)) for host in hosts}


def in_root(text: str, root: str) -> str:
    """Text of a launch with its paths as they are on the storage that all nodes share."""
    return text.replace(placing.ROOT, root)


def _slice(launch: Launch, host: str, root: str) -> dict[str, Any]:
    told = slice_of(launch, host, root)
    shared, own = f"{root}/images/{launch.image}.sif", node_image(launch)
    for rank in told["ranks"]:
        rank["env"] = {**rank["env"], f"{rank['env_prefix']}{ASKS}": "1"}
        rank["argv"] = [own if own and word == shared else word for word in rank["argv"]]
    if own:
        told["node_image"] = {"source": shared, "target": own, "sha256": launch.image}
    return told


def _text(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"
