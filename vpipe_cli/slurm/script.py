"""The script that sbatch is given: a pure function of the launch. docs/slurm.md explains it line by line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from vpipe_cli import placing
from vpipe_cli.launch import Launch
from worker.errors import PreflightError
from worker.spec.files import RunFiles
from worker.spec.slurm import SlurmSpec

PATH = re.compile(rf"(?:/|{re.escape(placing.ROOT)})[^\x00-\x1f\x7f\"\\%]*")
"""Paths that can stand in a line of #SBATCH; and where nobody has asked a login node yet, what stands for one."""


def script(launch: Launch, root: str) -> str:
    """What runs on the first node of the allocation.

    Args:
        root: where vpipe keeps everything, on storage that all nodes share.
    Raises:
        PreflightError: ``root`` cannot be named in it.
    """
    folder = f"{_nameable(root)}/runs/{launch.run}"
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in _options(launch, str(RunFiles(Path(folder)).slurm_log))),
            "set -u",
            f"run={shlex.quote(folder)}",
            f"hostd={shlex.quote(f'{root}/code/{launch.code}/worker/hostd')}",
            'vpipe() { python3 -I -S "$hostd" slurm "$1" "$run"; }',
            "trap 'touch \"$run/preempt\"' USR1",
            "trap : TERM",
            "vpipe begin || { vpipe end; exit; }",
            *_broadcast(launch, root),
            f"srun --nodes={len(hosts_of(launch))} --ntasks-per-node=1 --wait=0 --kill-on-bad-exit=0 --input=none \\",
            '  --export=ALL python3 -I -S "$hostd" slurm node "$run" &',
            'srun=$!; wait "$srun"',
            'while kill -0 "$srun" 2>/dev/null; do wait "$srun"; done',
            "vpipe end",
            "",
        ]
    )


def array_script(launch: Launch, folder: str, tasks: int, throttle: int) -> str:
    """The script of many runs that ask Slurm for the same: each is a task of one array, and runs its own script.

    Args:
        launch: that of any of them.
        folder: has for each task a link to its run's folder, named by the task's number.
        throttle: how many run at a time.
    Raises:
        PreflightError: ``folder`` cannot be named in it.
    """
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --array=0-{tasks - 1}%{throttle}",
            *(f"#SBATCH {option}" for option in _options(launch, f"{_nameable(folder)}/%a/slurm.log")),
            f'exec bash {shlex.quote(folder)}/"$SLURM_ARRAY_TASK_ID"/slurm.sh',
            "",
        ]
    )


def _nameable(folder: str) -> str:
    if not PATH.fullmatch(folder):
        raise PreflightError(f"a job of Slurm cannot name the folder {folder!r}", "VPIPE_HOME names another place")
    return folder


def hosts_of(launch: Launch) -> list[str]:
    """The launch's hosts in the order of their ranks."""
    return list(dict.fromkeys(rank.host for rank in launch.ranks))


def node_image(launch: Launch) -> str:
    """Where each node has its own copy of the image; empty where all read the shared one."""
    spec = launch.job.spec.slurm
    if not launch.image or spec.image == "shared":
        return ""
    return f"{spec.node_folder.rstrip('/')}/vpipe-images-{launch.image[:12]}/{launch.image}.sif"


def _options(launch: Launch, log: str) -> Iterator[str]:
    spec, hosts = launch.job.spec.slurm, hosts_of(launch)
    per_node = max(sum(rank.host == host for rank in launch.ranks) for host in hosts)
    yield f"--job-name={launch.job.spec.name}"
    yield f"--nodes={len(hosts)}"
    yield "--ntasks-per-node=1"
    yield f"--cpus-per-task={per_node * spec.cpus_per_rank}"
    if any(rank.device != "cpu" for rank in launch.ranks):
        yield f"--gpus-per-node={per_node}"
    if spec.nodes is None:
        yield f"--nodelist={','.join(hosts)}"
    yield from _asked(spec)
    yield f"--signal=B:USR1@{spec.save_before}"
    yield "--requeue" if spec.max_requeues else "--no-requeue"
    yield f"--export={','.join(placing.INHERITED)}"
    yield f'--output="{log}"'
    yield "--open-mode=append"
    yield from spec.extra


def _asked(spec: SlurmSpec) -> Iterator[str]:
    for name in ("partition", "account", "qos", "time", "constraint"):
        value = getattr(spec, name)
        if value is not None:
            yield f'--{name}="{value}"' if name == "constraint" else f"--{name}={value}"


def _broadcast(launch: Launch, root: str) -> Iterator[str]:
    """Lines that send the image to all nodes; hostd verifies it, and copies the shared one where it is missing."""
    target = node_image(launch)
    if target and launch.job.spec.slurm.image == "sbcast":
        image, part = shlex.quote(f"{root}/images/{launch.image}.sif"), shlex.quote(f"{target}.part")
        yield f"srun --nodes={len(hosts_of(launch))} --ntasks-per-node=1 mkdir -p -m 700 {shlex.quote(_parent(target))}"
        yield f"sbcast --force {image} {part} || true"


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
