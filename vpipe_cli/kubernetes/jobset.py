"""A launch as a JobSet (jobset.x-k8s.io/v1alpha2): one Indexed Job, a pod for every rank; a pure function.

JobSet gives each pod a name that the others resolve, and restarts all of them together when one fails. job.json travels
in a ConfigMap; ``python -m worker.pod`` makes a rank of a pod. Nothing here was run on a cluster.
"""

from __future__ import annotations

import re
from typing import Any

from vpipe_cli.launch import Launch
from worker.errors import UsageError

STORE_PORT = 29400
JOB, RUN, CODE = "/vpipe/job", "/vpipe/run", "/vpipe/code"
NAME = "ranks"


def manifest(launch: Launch, image: str, claim: str, code_in_image: str) -> list[dict[str, Any]]:
    """The objects to apply, in order.

    Args:
        image: of a registry; it holds ``python3`` with all that ranks import.
        claim: the PersistentVolumeClaim, ReadWriteMany, that keeps the run: its checkpoints, metrics and results.
        code_in_image: folder of vpipe's ``worker`` package in the image.
    Raises:
        UsageError: names that Kubernetes cannot have.
    """
    name = _name(launch.run)
    for what, given in (("--claim", claim), ("--image", image)):
        if not given or not given.isprintable() or " " in given:
            raise UsageError(f"{what}: {given!r} cannot be one")
    return [_config(launch, name), _jobset(launch, name, image, claim, code_in_image)]


def _config(launch: Launch, name: str) -> dict[str, Any]:
    job = launch.job.model_copy(update={"ranks": [rank.model_copy(update={"host": f"{name}-{NAME}-0-{rank.rank}"})
                                                  for rank in launch.job.ranks]})  # fmt: skip
    metadata = {"name": name, "labels": {"app.kubernetes.io/managed-by": "vpipe"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"job.json": job.model_dump_json()}}


def _jobset(launch: Launch, name: str, image: str, claim: str, code: str) -> dict[str, Any]:
    ranks = len(launch.ranks)
    job = {
        "backoffLimit": 0,
        "completionMode": "Indexed",
        "completions": ranks,
        "parallelism": ranks,
        "template": {"spec": _pod(launch, name, image, claim, code)},
    }
    spec = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": launch.restarts},
        "replicatedJobs": [{"name": NAME, "replicas": 1, "template": {"spec": job}}],
    }
    labels = {"app.kubernetes.io/managed-by": "vpipe"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }


def _pod(launch: Launch, name: str, image: str, claim: str, code: str) -> dict[str, Any]:
    threads = launch.job.ranks[0].threads
    env: list[dict[str, Any]] = [
        {"name": "PYTHONPATH", "value": code},
        {"name": "OMP_NUM_THREADS", "value": str(threads)},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
        {"name": "VPIPE_CACHE", "value": f"{RUN}/cache"},
        {"name": "VPIPE_RUN", "value": launch.run},
        {"name": "VPIPE_STORE", "value": f"{name}-{NAME}-0-0.{name}:{STORE_PORT}"},
        {"name": "VPIPE_RESTART", "valueFrom": {"fieldRef": {"fieldPath": RESTART}}},
    ]
    limits = {"cpu": str(threads)}
    if any(rank.device != "cpu" for rank in launch.ranks):
        limits["nvidia.com/gpu"] = "1"
    mounts = [{"name": "job", "mountPath": JOB, "readOnly": True}, {"name": "run", "mountPath": RUN}]
    mounts.append({"name": "memory", "mountPath": "/dev/shm"})
    command = ["python3", "-m", "worker.pod", "--job", f"{JOB}/job.json", "--folder", f"{RUN}/{launch.run}"]
    container = {
        "name": "rank",
        "image": image,
        "command": command,
        "env": env,
        "resources": {"limits": limits},
        "volumeMounts": mounts,
    }
    volumes: list[dict[str, Any]] = [
        {"name": "job", "configMap": {"name": name}},
        {"name": "run", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
    ]
    return {"restartPolicy": "Never", "containers": [container], "volumes": volumes}


RESTART = "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']"
"""How often JobSet has restarted the ranks."""


def _name(run: str) -> str:
    """The run's id as Kubernetes takes names: lower case, ``-``, short enough for the pods' names behind it."""
    name = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    stem, _, tail = name.rpartition("-")
    return f"{stem[:30].strip('-')}-{tail}" if len(name) > 40 else name
