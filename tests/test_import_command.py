"""``vpipe import``: what it says and writes; and old files that it refuses, or that mean harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_import import FOUR, IMAGES, TWICE_FOUR, VPIPE, brought, straight, write
from vpipe_cli import config
from vpipe_cli.importing import convert
from worker.errors import ConfigError, UsageError

M = [0, 1, 1]
WRONG: dict[str, tuple[dict[str, Any], Any, Any, str]] = {
    "no map file": ({"config_file": "gone.json"}, None, None, "old.yml:2:1: config_file: no such file: 'gone.json'"),
    "no cut file": ({"partition": "gone.json"}, straight(2), None, "partition: no such file: 'gone.json'"),
    "broken JSON": ({}, '{"module_to_stage_map":\n [0, 1,]}', None, "conf.json:2:"),
    "unquoted key": ({}, '{"module_to_stage_map": [0], "stage_to_rank_map": {0: [0]}}', None, "json:1:52: is not JSON"),
    "key twice": ({}, '{"mp_size": 1, "mp_size": 2}', None, "the key 'mp_size' is there twice"),
    "no object": ({}, "[1]", None, "conf.json: must be a JSON object"),
    "no map": ({}, {"stage_to_rank_map": {"0": [0]}}, None, "module_to_stage_map: must be a list of stages"),
    "stage without rank": (
        *({}, {"module_to_stage_map": M, "stage_to_rank_map": {"0": [0, 1]}}, None),
        "stage_to_rank_map: says nothing of stage 1",
    ),
    "empty stage": ({}, straight(2) | {"stage_to_rank_map": {"0": [0], "1": []}}, None, "stage 1 needs a list"),
    "ranks without stage": ({}, straight(2) | {"module_to_stage_map": [0, 0]}, None, "has stage '1', but no module"),
    "rank twice": (
        *({}, {"module_to_stage_map": M, "stage_to_rank_map": {"0": [0, 1], "1": [1]}}, None),
        "rank 1 is in stage 0 and stage 1; a rank runs one stage",
    ),
    "not contiguous": (
        *({}, straight(2) | {"module_to_stage_map": [0, 1, 0]}, None),
        "conf.json:2:2: module_to_stage_map: module 2 is in stage 0, after stage 1",
    ),
    "stage left out": ({}, straight(2) | {"module_to_stage_map": [0, 2]}, None, "module 1 is in stage 2, after"),
    "rank without machine": (
        *({}, {"module_to_stage_map": [0, 0], "stage_to_rank_map": {"0": list(range(6))}}, None),
        "stage_to_rank_map: has rank 4, but machines gives 4: ranks 0 to 3",
    ),
    "cut for others": (
        *({}, straight(4), {"partition": [24, 25], "recompute_ratio": [0, 0]}),
        "cut.json:2:2: partition: has 2 entries, but module_to_stage_map has 4 modules and the criterion",
    ),
    "uneven ratios": ({}, straight(2), {"partition": [24, 25], "recompute_ratio": [0]}, "has 1 entries, partition 2"),
    "ratio of 2": ({}, straight(2), {"partition": [24, 25], "recompute_ratio": [0, 2]}, "shares from 0 to 1"),
    "blocks of no model": ({}, straight(2), {"partition": [24, 24], "recompute_ratio": [0, 0]}, "adds up to 48 blocks"),
    "machine": ({"machines": ["a"]}, None, None, "machines: must be a list of host:gpu"),
    "speech": ({"model_type": "speech_to_text"}, None, None, "is 'speech_to_text'; there were programs for"),
    "text for a count": ({"epochs": "many"}, None, None, "epochs: must be a whole number from 1, not 'many'"),
    "too many stages": (
        *({"model_type": "image_classification", "module": "vgg16", "machines": TWICE_FOUR * 3}, straight(17), None),
        "is no job for vpipe, so nothing was written:\npipeline.stages: is 17 but the model has 16 layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_says_what_and_where(tmp_path: Path, name: str) -> None:
    changes, maps, cut, said = WRONG[name]
    with pytest.raises(UsageError) as error:
        brought(
            tmp_path,
            {**changes, **{k: v for k, v in {**VPIPE, "machines": FOUR}.items() if k not in changes}},
            maps,
            cut,
        )
    assert said in str(error.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("a: &x 1\nmachines: *x\n", "anchors (&name) are not allowed"),
        ("module: !!python/name:os.system x\n", "tags (!name) are not allowed"),
        ("- 1\n", "is no mapping of keys"),
        ("", "machines: is missing"),
        ("machines: [cpu*2]\n", "module: is missing; is this a configuration of driver.py?"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "old.yml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        convert.convert(path)
    assert said in str(error.value) and str(path) in str(error.value)


def test_values_cannot_leave_their_comment(tmp_path: Path) -> None:
    job = {**IMAGES, "machines": FOUR, "module": "vgg16", "container": "x\nrun: {steps: 1}\x1b[2J\u2028y"}
    made = brought(tmp_path, job, straight(4))
    assert made.spec.run.steps > 1 and "\x1b" not in made.text
    assert all(line.startswith("#") for line in made.text.split("\n\nname:")[0].split("\n"))


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "bert" / "books_seq_len_128_x").mkdir(parents=True)
    path = write(tmp_path, {**VPIPE, "machines": FOUR, "sync_mode": "bsp"}, straight(4))

    def vpipe(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vpipe_cli.app", "import", *arguments], cwd=tmp_path, timeout=60,
            capture_output=True, text=True, env={**os.environ, "VPIPE_HOME": str(tmp_path / "home")},
        )  # fmt: skip

    first = vpipe(str(path), "-o", "json")
    assert (first.returncode, first.stderr) == (0, "")
    found = json.loads(first.stdout)
    assert found["file"] == "cluster.yml" and {"kind", "key", "where", "why"} == found["notes"][0].keys()
    spec = config.load(tmp_path / "cluster.yml")
    assert (spec.name, spec.pipeline.minibatches_per_step, spec.engine) == ("old", 32, "local")
    again = vpipe(str(path))
    assert (again.returncode, again.stdout) == (2, "") and "cluster.yml exists already" in again.stderr
    other = vpipe(str(path), "-f", "other.yml")
    assert other.stdout.endswith("wrote other.yml; look at it with: vpipe config show other.yml\n")
    assert "left out" in other.stdout and (tmp_path / "other.yml").read_text() == (tmp_path / "cluster.yml").read_text()
    gone = vpipe("gone.yml")
    assert gone.returncode == 2 and "gone.yml: no such file" in gone.stderr
