"""`vpipe profile` on other machines over real SSH: their layers, and the links between them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.test_training import Shell, slots
from tests.testbed.network import Testbed
from vpipe_cli.container.store import Image

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def shell(tmp_path: Path, testbed: Testbed) -> Shell:
    return Shell(tmp_path, testbed.ssh_config)


def test_layers_and_links_of_other_machines(shell: Shell, testbed: Testbed) -> None:
    hosts = testbed.take(2)
    shell.write(slots(hosts, 2, 1))
    found = json.loads(shell.run("profile", "--repeats", "2", "-o", "json"))
    assert len(found["layers"]) == 6 and all(layer["forward"] > 0 for layer in found["layers"])
    inside, between = found["links"]
    assert min(inside["forward"], inside["backward"], between["forward"], between["backward"]) > 0
    assert found["processes"] == 2
    assert not [path for host in hosts for path in Path(host.path("/root/.vpipe/runs")).glob("profile-*")]
    plan = json.loads(shell.run("plan", "-o", "json"))  # from what was kept
    assert sum(plan["partition"]) == 6 and len(plan["predicted"]["stages"]) == 3


def test_in_the_container_of_the_job(shell: Shell, testbed: Testbed, worker_image: Image) -> None:
    """This machine's Python does not exist there: what was measured is what the image has."""
    more = f'container: {{image: {worker_image.path}, binds: ["{shell.corpus}:/corpus"]}}\n'
    shell.write(slots(testbed.take(1), 1), more=more)
    found = json.loads(shell.run("profile", "data.path=/corpus", "--repeats", "1", "-o", "json"))
    assert len(found["layers"]) == 6


def test_what_went_wrong_over_there_is_said(shell: Shell, testbed: Testbed) -> None:
    (host,) = testbed.take(1)
    shell.write(slots([host], 1))
    process = shell.start("profile", "python=/nowhere/python")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 104 and f"{host.name}: profiling failed" in err and "/nowhere/python" in err
