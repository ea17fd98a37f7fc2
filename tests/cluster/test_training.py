"""Training on several hosts over real SSH: the weights are those of the same job on this machine, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.rig import with_token
from tests.testbed.host import Host
from tests.testbed.network import Testbed
from vpipe_cli.container.store import Image

pytestmark = pytest.mark.timeout(400)  # four imports of torch at a time, on two cores

CLUSTER = """
name: small
machines: {machines}
ssh: {{config: {config}}}
python: {python}
model: {{name: bert, hidden_size: 32, num_layers: 2, num_heads: 2}}
data: {{source: text, path: {corpus}, sequence_length: 32, minibatch_size: 4, vocab_size: 400}}
optimizer: {{name: adamw, lr: 1e-3, clip_grad_norm: 1.0}}
run: {{steps: {steps}, threads: 1}}
"""
ASP = ("sync_mode=asp",)
BSP = ("sync_mode=bsp", "minibatches_per_step=4")


class Shell:
    """A folder with a cluster.yml for some hosts, and the ``vpipe`` command in it."""

    def __init__(self, folder: Path, testbed: Testbed) -> None:
        self.folder, self._testbed = folder, testbed
        self.env = {**os.environ, "VPIPE_HOME": str(folder / "home"), "VPIPE_CACHE": str(folder / "cache")}
        self.corpus = folder / "corpus"
        self.corpus.mkdir()
        for number in range(4):  # small, so that the tokenizer is trained in no time
            words = " ".join(f"def f{n}(x): return x + {n * number} # {n % 7}" for n in range(400))
            (self.corpus / f"{number}.py").write_text(words.replace("#", "\n"))

    def write(self, machines: Sequence[str], steps: int = 8, more: str = "") -> None:
        text = CLUSTER.format(
            machines=json.dumps(list(machines)),
            config=self._testbed.ssh_config,
            python=sys.executable,
            corpus=self.corpus,
            steps=steps,
        )
        (self.folder / "cluster.yml").write_text(text + more)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vpipe_cli.app", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str, expect: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=150)
        assert process.returncode == expect, out + err
        assert "Traceback" not in err
        return out

    def weights(self, machines: Sequence[str], *overrides: str, more: str = "") -> str:
        """The digest that a job ends with on these machines."""
        self.write(machines, more=more)
        document: dict[str, Any] = json.loads(self.run("launch", *overrides, "-o", "json"))
        assert with_token(document["run"]) == []
        return str(document["result"]["weights_sha256"])


@pytest.fixture
def shell(tmp_path: Path, testbed: Testbed) -> Shell:
    return Shell(tmp_path, testbed)


def slots(hosts: Sequence[Host], *counts: int) -> list[str]:
    return [f"{host.name}:cpu*{count}" for host, count in zip(hosts, counts, strict=True)]


@pytest.mark.parametrize("mode", [ASP, BSP], ids=["asp", "bsp"])
def test_four_hosts_end_with_the_weights_of_one_machine(shell: Shell, testbed: Testbed, mode: tuple[str, ...]) -> None:
    there = shell.weights(slots(testbed.take(4), 1, 1, 1, 1), *mode)
    assert there == shell.weights(["cpu*4"], *mode)


def test_two_hosts_with_three_ranks_and_one(shell: Shell, testbed: Testbed) -> None:
    there = shell.weights(slots(testbed.take(2), 3, 1), *BSP)
    assert there == shell.weights(["cpu*2"], *BSP)


CONTAINER = """
container:
  image: {image}
  binds: ["{corpus}:/corpus"]
"""


def test_four_hosts_in_containers(shell: Shell, testbed: Testbed, worker_image: Image) -> None:
    """The image has its own Python and its own torch of the same version."""
    hosts = testbed.take(4)
    more = CONTAINER.format(image=worker_image.path, corpus=shell.corpus)
    there = shell.weights(slots(hosts, 1, 1, 1, 1), *BSP, "data.path=/corpus", more=more)
    assert there == shell.weights(["cpu*4"], *BSP)
