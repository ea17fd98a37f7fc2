"""Training on several hosts over real SSH: the weights are those of the same job on this machine, bit for bit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import canary
from tests.hostile import BOUND, CANARY, EVIL
from tests.rig import with_token
from tests.testbed.host import Host, keygen
from tests.testbed.network import Testbed
from vpipe_cli.container.store import Image

pytestmark = pytest.mark.timeout(900)  # four imports of torch at a time, on two cores that others may use too
LIMIT = 400.0

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
    """A folder with a cluster.yml for some hosts, and the ``vpipe`` command in it, with a secret in its environment.

    Args:
        config: the ssh_config that leads to the hosts.
    """

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self._config = folder, config
        home = {"VPIPE_HOME": str(folder / "home"), "VPIPE_CACHE": str(folder / "cache")}
        self.env = {**os.environ, **home, "MY_TOKEN": canary.SECRET}
        self.corpus = folder / "corpus"
        self.said = ""
        write_corpus(self.corpus)

    def write(self, machines: Sequence[str], steps: int = 8, more: str = "") -> None:
        text = CLUSTER.format(
            machines=json.dumps(list(machines)),
            config=self._config,
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
        """What a command prints; ``said`` is what it prints for people."""
        process = self.start(*arguments)
        out, self.said = process.communicate(timeout=LIMIT)
        assert process.returncode == expect, out + self.said
        assert "Traceback" not in self.said
        return out

    def weights(self, machines: Sequence[str], *overrides: str, more: str = "") -> str:
        """The digest that a job ends with on these machines. Nothing of it is left there, and the secret is nowhere."""
        self.write(machines, more=more)
        out = self.run("launch", *overrides, "-o", "json")
        document: dict[str, Any] = json.loads(out)
        assert with_token(document["run"]) == []
        assert canary.leaks(self.folder, out, self.said) == []
        return str(document["result"]["weights_sha256"])


def write_corpus(folder: Path) -> None:
    """A text so small that the tokenizer is trained in no time."""
    folder.mkdir()
    for number in range(4):
        words = " ".join(f"def f{n}(x): return x + {n * number} # {n % 7}" for n in range(400))
        (folder / f"{number}.py").write_text(words.replace("#", "\n"))


@pytest.fixture
def shell(tmp_path: Path, testbed: Testbed) -> Shell:
    return Shell(tmp_path, testbed.ssh_config)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The digest that the job ends with in four processes of this machine, by its mode."""
    shell = Shell(tmp_path_factory.mktemp("alone"), Path("/dev/null"))
    return cache(lambda *mode: shell.weights(["cpu*4"], *mode))


def slots(hosts: Sequence[Host], *counts: int) -> list[str]:
    return [f"{host.name}:cpu*{count}" for host, count in zip(hosts, counts, strict=True)]


@pytest.mark.parametrize("mode", [ASP, BSP], ids=["asp", "bsp"])
def test_four_hosts_end_with_the_weights_of_one_machine(
    shell: Shell, testbed: Testbed, alone: Callable[..., str], mode: tuple[str, ...]
) -> None:
    assert shell.weights(slots(testbed.take(4), 1, 1, 1, 1), *mode) == alone(*mode)


def test_two_hosts_with_three_ranks_and_one(shell: Shell, testbed: Testbed, alone: Callable[..., str]) -> None:
    assert shell.weights(slots(testbed.take(2), 3, 1), *ASP) == alone(*ASP)


def test_a_bastion_and_a_port_user_and_key_of_ones_own(
    shell: Shell, testbed: Testbed, alone: Callable[..., str], tmp_path: Path
) -> None:
    """Ana has no other key there, and no right to read what root has."""
    _, hosts = testbed.behind_bastion(2, port=2222)
    keygen(tmp_path / "mine")
    for host in hosts:
        host.path("/home/ana/.ssh/authorized_keys").write_text((tmp_path / "mine.pub").read_text())
    write_corpus(hosts[0].path("/home/ana/corpus"))
    ways = ", ".join(f"{host.name}: {{user: ana, key: {tmp_path / 'mine'}, port: 2222}}" for host in hosts)
    there = shell.weights(slots(hosts, 1, 1), *BSP, f"ssh.hosts={{{ways}}}", "data.path=/home/ana/corpus")
    assert there == alone(*BSP)
    assert all(list(host.path("/home/ana/.vpipe/runs").iterdir()) for host in hosts)


def test_four_hosts_in_containers(
    shell: Shell, testbed: Testbed, alone: Callable[..., str], worker_image: Image
) -> None:
    """The image has its own Python and its own torch of the same version. It is sent once, for all launches.

    Image, bind and data have names that no shell must read.
    """
    machines = slots(testbed.take(4), 1, 1, 1, 1)
    image, corpus = shell.folder / f"{EVIL}.sif", shell.corpus.rename(shell.folder / BOUND)
    image.symlink_to(worker_image.path)
    more = f"container: {json.dumps({'image': str(image), 'binds': [f'{corpus}:/{BOUND}']})}\n"
    inside = f"data.path={json.dumps(f'/{BOUND}')}"
    assert shell.weights(machines, *BSP, inside, more=more) == alone(*BSP)
    assert all(re.search(rf"^h{n}: has all \d+ MiB, from ", shell.said, re.MULTILINE) for n in (1, 2, 3, 4))
    assert shell.weights(machines, *ASP, inside, more=more) == alone(*ASP)
    assert "image" not in shell.said and "has all" not in shell.said
    assert list(shell.folder.rglob(CANARY)) == []


def test_a_secret_of_the_client_is_on_no_command_line_and_in_no_file(shell: Shell, testbed: Testbed) -> None:
    """Neither here nor there, while it runs and after; nor in what is told of the run."""
    (host,) = testbed.take(1)
    shell.write(slots([host], 1), steps=2)
    process = shell.start("launch", "-o", "json")
    while process.poll() is None:
        assert canary.in_argv() == []
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    run = json.loads(out)["run"]
    told = [out, err, shell.run("logs", run, "-o", "jsonl")]
    told.append(shell.run("exec", "--rank", "0", "--run", run, "--", "env"))
    shell.run("debug-dump", run, "--to", str(shell.folder / "dump.tar.gz"))
    with tarfile.open(shell.folder / "dump.tar.gz") as dump:
        dump.extractall(shell.folder / "dump", filter="data")
    assert canary.leaks(shell.folder, *told) == []
    assert canary.leaks(host.path("/root/.vpipe")) == []
