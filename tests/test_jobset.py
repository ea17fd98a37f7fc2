"""The manifest for Kubernetes, against the fields that JobSet v1alpha2, batch/v1 and core/v1 publish; and its pods."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vpipe_cli.app import app

STRING, NUMBER, FLAG, MAP = str, int, bool, {"*": str}
MOUNT = {"name": STRING, "mountPath": STRING, "readOnly": FLAG, "subPath": STRING}
ENV = {"name": STRING, "value": STRING, "valueFrom": {"fieldRef": {"fieldPath": STRING, "apiVersion": STRING}}}
CONTAINER = {
    "name": STRING, "image": STRING, "imagePullPolicy": STRING, "command": [STRING], "args": [STRING],
    "workingDir": STRING, "env": [ENV], "volumeMounts": [MOUNT], "resources": {"limits": MAP, "requests": MAP},
}  # fmt: skip
VOLUME = {
    "name": STRING, "configMap": {"name": STRING}, "persistentVolumeClaim": {"claimName": STRING, "readOnly": FLAG},
    "emptyDir": {"medium": STRING, "sizeLimit": STRING},
}  # fmt: skip
POD = {"restartPolicy": STRING, "containers": [CONTAINER], "volumes": [VOLUME], "nodeSelector": MAP}
META = {"name": STRING, "namespace": STRING, "labels": MAP, "annotations": MAP}
JOB = {
    "backoffLimit": NUMBER, "completionMode": STRING, "completions": NUMBER, "parallelism": NUMBER,
    "activeDeadlineSeconds": NUMBER, "template": {"metadata": META, "spec": POD},
}  # fmt: skip
JOBSET = {
    "apiVersion": STRING, "kind": STRING, "metadata": META,
    "spec": {
        "suspend": FLAG, "ttlSecondsAfterFinished": NUMBER,
        "network": {"enableDNSHostnames": FLAG, "publishNotReadyAddresses": FLAG, "subdomain": STRING},
        "failurePolicy": {"maxRestarts": NUMBER, "restartStrategy": STRING},
        "successPolicy": {"operator": STRING, "targetReplicatedJobs": [STRING]},
        "replicatedJobs": [{"name": STRING, "replicas": NUMBER, "template": {"metadata": META, "spec": JOB}}],
    },
}  # fmt: skip
CONFIG = {"apiVersion": STRING, "kind": STRING, "metadata": META, "data": MAP}
CLUSTER = """
name: Small.job
machines: [cpu*2]
model: {{name: bert, hidden_size: 32, num_layers: 2, num_heads: 2}}
data: {{source: text, path: {corpus}, sequence_length: 32, minibatch_size: 4, vocab_size: 300}}
run: {{steps: 3, threads: 1, max_restarts: 2}}
"""


def misfits(value: Any, schema: Any, path: str = "") -> list[str]:
    """Where a value is not of a schema: unknown keys, wrong types."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{path} is no mapping"]
        unknown = [] if "*" in schema else [f"{path}.{key} is unknown" for key in value.keys() - schema.keys()]
        known = {key: schema.get(key, schema.get("*")) for key in value if key in schema or "*" in schema}
        return unknown + [each for key, inner in known.items() for each in misfits(value[key], inner, f"{path}.{key}")]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [each for index, item in enumerate(value) for each in misfits(item, schema[0], f"{path}[{index}]")]
    return [] if type(value) is schema else [f"{path} is {value!r}"]


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text(" ".join(f"word{n % 50} and more of it {n}\n" for n in range(4000)))
    path = tmp_path / "cluster.yml"
    path.write_text(CLUSTER.format(corpus=tmp_path / "corpus.txt"))
    return path


def objects(cluster: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    done = CliRunner().invoke(
        app, ["export", "jobset", str(cluster), "--image", "lab/vpipe:1", "-o", "json", *arguments]
    )
    assert done.exit_code == 0, done.output
    config, jobset = json.loads(done.stdout)["items"]
    return config, jobset


def test_it_has_no_field_that_is_not_published(cluster: Path) -> None:
    config, jobset = objects(cluster)
    assert misfits(config, CONFIG) == []
    assert misfits(jobset, JOBSET) == []
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (2, 2, 0)
    assert jobset["spec"]["failurePolicy"] == {"maxRestarts": 2}
    name = jobset["metadata"]["name"]
    store = next(
        each["value"] for each in job["template"]["spec"]["containers"][0]["env"] if each["name"] == "VPIPE_STORE"
    )
    assert store == f"{name}-ranks-0-0.{name}:29400"
    assert len(f"{name}-ranks-0-0") <= 63


def test_a_job_without_an_image_of_a_registry(cluster: Path) -> None:
    done = CliRunner().invoke(app, ["export", "jobset", str(cluster)])
    assert "--image" in str(getattr(done.exception, "hint", ""))


def test_its_pods_train(cluster: Path, tmp_path: Path) -> None:
    """As the pods would, but for their names: two processes, a folder they share, job.json from elsewhere."""
    config, jobset = objects(cluster)
    (tmp_path / "job.json").write_text(config["data"]["job.json"])
    container = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    given = ["--job", str(tmp_path / "job.json"), "--folder", str(tmp_path / "run")]
    command = [sys.executable, *container["command"][1:3], *given]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {**os.environ, "VPIPE_STORE": f"127.0.0.1:{port}", "GLOO_SOCKET_IFNAME": "lo", "VPIPE_RESTART": "1"}
    env |= {"VPIPE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    pods = [subprocess.Popen(command, env={**env, "JOB_COMPLETION_INDEX": str(rank)}) for rank in range(2)]
    assert [pod.wait(120) for pod in pods] == [0, 0]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 3
    assert (tmp_path / "run" / "attempt-2" / "rank-1.ready").exists()
