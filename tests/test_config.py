"""cluster.yml: every mistake has its place and its remedy, several come at once, and nothing is silently misread."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.configs import KEY, TREE, M, load, problems
from tests.test_yamltree import FORM
from vpipe_cli import config, explain, starter, yamltree
from worker.errors import ConfigError
from worker.spec.cluster import ClusterSpec

SECTIONS = ", ".join(ClusterSpec.model_fields)

VALUES = {
    "unknown key": (M + "nme: x", [":2:1: nme: unknown key; did you mean `name`?"]),
    "unknown key, nothing near": (M + "zzz: x", [f":2:1: zzz: unknown key; the keys here are {SECTIONS}"]),
    "key of another section": (M + "lr: 1", [":2:1: lr: unknown key; did you mean `optimizer.lr`?"]),
    "text for a number": (M + "optimizer: {lr: fast}", [":2:17: optimizer.lr: must be a number, not 'fast'"]),
    "quoted number": (
        M + "run: {steps: '9'}",
        [":2:14: run.steps: must be a whole number, not '9'; remove the quotes"],
    ),
    "float for a count": (M + "run: {steps: 1e3}", [":2:14: run.steps: must be a whole number, not 1e3"]),
    "leading zero": (M + "run: {steps: 022}", [":2:14: run.steps: must be a whole number, not '022'; write 22"]),
    "base 60": (M + "run: {stall_timeout: 12:30}", [":2:22: run.stall_timeout: must be a number, not '12:30'"]),
    "no for false": (
        M + "model: {sentence_order: no}",
        [":2:25: model.sentence_order: must be true or false, not 'no'"],
    ),
    "infinite": (M + "run: {stall_timeout: .inf}", [":2:22: run.stall_timeout: must be a finite number, is .inf"]),
    "no floor": (M + "run: {stall_floor: 0}", [":2:20: run.stall_floor: must be above 0, is 0"]),
    "zero stages": (M + "pipeline: {stages: 0}", [":2:20: pipeline.stages: must be at least 1, is 0"]),
    "more stages than layers": (
        "machines: [cpu*12]",
        [":1:11: pipeline.stages: is 12 but the model has 10 layers; a stage needs at least one"],
    ),
    "more stages than devices": (
        M + "pipeline: {stages: 4}",
        [":2:20: pipeline.stages: is 4 but machines gives 2 devices; they must be equal"],
    ),
    "accumulate with recomputation": (
        M + "pipeline: {schedule: accumulate, recompute_ratio: 0.5}",
        [
            ":2:51: pipeline.recompute_ratio: needs another schedule: under accumulate a layer would be recomputed "
            "with newer weights"
        ],
    ),
    "partition sum": (
        M + "pipeline:\n  partition: [4, 5]",
        [":3:14: pipeline.partition: adds up to 9 but the model has 10 layers"],
    ),
    "partition length": (
        M + "pipeline: {partition: [4, 3, 3]}",
        [":2:23: pipeline.partition: has 3 entries for 2 stages"],
    ),
    "ratio length": (
        M + "pipeline: {recompute_ratio: [0.5]}",
        [":2:29: pipeline.recompute_ratio: has 1 entry for 2 stages"],
    ),
    "ratio entry": (
        M + "pipeline: {recompute_ratio: [0.5, 2]}",
        [":2:35: pipeline.recompute_ratio[1]: must be at most 1, is 2"],
    ),
    "recomputed and offloaded": (
        M + "pipeline: {recompute_ratio: [0, 0.75], offload_ratio: 0.5}",
        [
            ":2:55: pipeline.offload_ratio: leaves layers no choice: with recompute_ratio 0.75 it must be at most 0.25",
        ],
    ),
    "compiled and taken apart": (
        M + "pipeline: {compile: true, sync_mode: bsp, schedule: zb-h1, offload_ratio: 0.5}",
        [
            ":2:21: pipeline.compile: needs another schedule: zb-h1 takes the backward of layers apart",
            ":2:21: pipeline.compile: does not go with offload_ratio",
        ],
    ),
    "neither of a union": (
        M + "pipeline: {partition: aut}",
        [":2:23: pipeline.partition: must be auto or a list of whole numbers, not 'aut'; did you mean auto?"],
    ),
    "wrong choice": (
        M + "optimizer: {name: adaw}",
        [":2:19: optimizer.name: must be adamw, adam, nadam, lamb, muon or sgd, not 'adaw'; did you mean adamw?"],
    ),
    "one beta": (
        M + "optimizer: {betas: [0.9]}",
        [":2:20: optimizer.betas[1]: has too few entries; entry 2 is missing"],
    ),
    "empty section": (M + "optimizer:", [":2:11: optimizer: must be a group of `key: value` lines, not empty"]),
    "name": (
        M + "name: 'a b'",
        [
            ":2:7: name: cannot be 'a b'; it names the runs: letters, digits, . _ and -, at most 64, "
            "the first a letter or digit"
        ],
    ),
    "no machines": (
        "name: x",
        [
            ':1:1: machines: is missing; devices in rank order: "cpu*2" is two CPU slots here, '
            '"localhost:0,1" two GPUs here, "gpu[1-2]:0-3" four GPUs on each of two machines that SSH reaches'
        ],
    ),
    "machines not a list": ("machines: cpu*2", [":1:11: machines: must be a list, not 'cpu*2'; write ['cpu*2']"]),
    "no device": ("machines: []", [":1:11: machines: must have 1 or more entries, has 0"]),
    "comma splits": (
        "machines: [localhost:0,1]",
        [":1:24: machines[1]: must be text, not 1; an entry that holds a comma needs quotes"],
    ),
    "heads": (M + "model: {num_heads: 3}", [":2:20: model.num_heads: is 3 but must divide hidden_size 128"]),
    "text without path": (
        M + "data: {source: text}",
        [":2:16: data.source: is text, which needs `path`: the file or folder to read"],
    ),
    "path without text": (
        M + "data: {path: x}",
        [":2:14: data.path: belongs to source text, jsonl, memmap or hf, but source is python-stdlib"],
    ),
    "no such model": (
        M + "model: {name: gpt}",
        [
            ":2:15: model.name: must be bert, bert-nsp, gpt2, transformer, gnmt, resnet50, vgg16 or hf, not 'gpt'; "
            "did you mean gpt2?"
        ],
    ),
    "key of another model": (
        M + "model: {name: gpt2, sentence_order: true}",
        [
            ":2:21: model.sentence_order: unknown key; the keys here are hidden_size, num_heads, intermediate_size, "
            "dropout, folder, name, num_layers"
        ],
    ),
    "two tasks": (
        M + "model: {name: bert-nsp, sentence_order: true}",
        [":2:41: model.sentence_order: belongs to bert; bert-nsp learns from pairs of its own"],
    ),
    "entry without function": (
        M + "model: {entry: mine}",
        [":2:16: model.entry: cannot be 'mine'; it package.module:function, found on PYTHONPATH or beside cluster.yml"],
    ),
    "model and data that do not fit": (
        M + "model: {name: resnet50}\ndata: {source: python-stdlib}",
        [
            ":3:16: data.source: is python-stdlib, which gives causal-lm, masked-lm or masked-lm-pairs, but resnet50 "
            "learns from images; sources of that: images, synthetic"
        ],
    ),
    "no number of classes": (
        M + "model: {name: resnet50}\ndata: {source: images, path: .}",
        [":3:1: data.classes: is missing; number of classes: folders in path"],
    ),
    "heads of another kind": (
        M + "model: {name: gpt2, num_heads: 3}",
        [":2:32: model.num_heads: is 3 but must divide hidden_size 128"],
    ),
    "no such source": (
        M + "data: {source: pictures}",
        [
            ":2:16: data.source: must be python-stdlib, text, jsonl, memmap, hf, parallel, images, hdf5 or synthetic, "
            "not 'pictures'"
        ],
    ),
    "a model that is none": (M + "model: 5", [":2:8: model: must be a group of `key: value` lines, not 5"]),
    "empty path": (M + "data: {source: text, path: ''}", [":2:28: data.path: must not be empty"]),
    "gpipe under asp": (
        M + "pipeline: {schedule: gpipe}",
        [":2:22: pipeline.schedule: is gpipe, which needs sync_mode bsp"],
    ),
    "depth of no pipelining": (
        M + "pipeline: {in_flight: 3, schedule: none}",
        [":2:23: pipeline.in_flight: must be left out: with schedule none one minibatch is in flight"],
    ),
    "depth with replicas": (
        M + "pipeline: {in_flight: 3, replicas: 2}",
        [
            ":2:23: pipeline.in_flight: must be left out: with replicas, 1f1b admits as many minibatches as there are "
            "ranks"
        ],
    ),
    "depth of zero bubble with replicas": (
        M + "pipeline: {in_flight: 3, replicas: 2, sync_mode: bsp, schedule: zb-h2}",
        [
            ":2:23: pipeline.in_flight: must be left out: with replicas, zb-h2 admits twice as many minibatches as "
            "there are ranks"
        ],
    ),
    "unequal replicas interleaved": (
        "machines: [cpu*3]\npipeline: {replicas: [2, 1], sync_mode: bsp, schedule: interleaved}",
        [":2:22: pipeline.replicas: is [2, 1]; interleaved needs equally many for all stages, which share their ranks"],
    ),
    "depth of zb-v": (
        M + "pipeline: {in_flight: 3, sync_mode: bsp, schedule: zb-v}",
        [":2:23: pipeline.in_flight: must be left out: zb-v has one depth, that of 1f1b"],
    ),
    "three stages a device under zb-v": (
        M + "pipeline: {stages: 6, sync_mode: bsp, schedule: zb-v}",
        [":2:20: pipeline.stages: is 6 but machines gives 2 devices; zb-v needs 2 stages for each"],
    ),
    "stages that do not fill groups of replicas": (
        "machines: [cpu*4]\npipeline: {stages: 3, replicas: 2, sync_mode: bsp, schedule: interleaved}",
        [
            ":2:20: pipeline.stages: is 3 but machines gives 4 devices; interleaved needs 2, 3 ... stages for each 2 "
            "of them"
        ],
    ),
}

MANY = """\
machines:
  - cpu*2
  - gpu7
nme: x
model: {num_heads: 3, dropout: high}
pipeline:
  partition: [4, 4]
  schedule: gpipe
  schedule: 1f1b
optimizer:
  lr: -1
"""


@pytest.mark.parametrize("text, expected", VALUES.values(), ids=VALUES)
def test_mistakes_of_value(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_all_mistakes_come_at_once_in_the_order_of_the_file() -> None:
    assert [re.match(r":\d+:\d+: [\w.\[\]]+", problem)[0] for problem in problems(MANY)] == [  # type: ignore[index]
        ":3:5: machines[1]",
        ":4:1: nme",
        ":5:20: model.num_heads",
        ":5:32: model.dropout",
        ":7:14: pipeline.partition",
        ":8:13: pipeline.schedule",
        ":9:3: pipeline.schedule",
        ":11:7: optimizer.lr",
    ]


def test_a_file_of_mistakes_is_cut_short() -> None:
    found = problems(M + "".join(f"k{number}: 1\n" for number in range(1000)))
    assert len(found) == 51
    assert found[-1] == ":52:1: more mistakes begin here; these are too many to list"


@pytest.mark.parametrize(
    "raw, expected",
    [
        (b"name: x\n  \xff\n", ":2:3: is not UTF-8 text: byte 0xff"),
        ("name: x".encode("utf-16"), ":1:1: is not UTF-8 text: byte 0xff"),
        (b"\x7fELF\x02\x01\0", ":1:1: is not text: it holds the character '\\x7f'"),
        (b"#" * 1_000_001, ": is larger than 1 MB; a job is described in a few lines"),
    ],
)
def test_a_file_that_is_no_text(raw: bytes, expected: str) -> None:
    assert problems(raw) == [expected]


@pytest.mark.parametrize(
    "path, expected",
    [
        ("none.yml", "no such file; `vpipe init` writes a starter file"),
        (".", "is a folder; name the file in it"),
        ("/dev/zero", "is not a plain file"),
        ("a\0b", "cannot be read: embedded null byte"),
    ],
)
def test_what_is_no_file(path: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert [(problem.where, problem.message) for problem in caught.value.problems] == [(path, expected)]


def test_defaults_are_worked_out(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    text = "machines: [cpu, cpu*2]\ndata: {source: text, path: corpus}\npipeline: {sync_mode: bsp, stages: null}"
    spec = load(tmp_path, text)
    assert (spec.pipeline.stages, spec.pipeline.minibatches_per_step) == (3, 8)
    assert spec.data.path == str(tmp_path / "corpus")
    assert load(tmp_path, "machines: [cpu]").pipeline.minibatches_per_step is None


def test_a_path_that_is_not_there_is_named_in_full(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"data.path: no such file or folder: '{tmp_path}/corpus'"):
        load(tmp_path, M + "data: {source: text, path: ./corpus}")


def test_a_path_is_not_missed_where_nobody_knows_on_which_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "machines: ['h[2-1]:cpu']\ndata: {source: text, path: /nowhere}")
    assert [problem.key for problem in caught.value.problems] == ["machines[0]"]


@pytest.mark.parametrize(
    "case", ["tab", "alias bomb", "duplicate key", "text for a number", "partition sum", "no device"]
)
def test_the_command_refuses_before_anything_is_written(tmp_path: Path, case: str) -> None:
    text, expected = (FORM | VALUES)[case]
    (tmp_path / "c.yml").write_text(text)
    command = [sys.executable, "-m", "vpipe_cli.app", "launch", "c.yml"]
    environment = {**os.environ, "VPIPE_HOME": str(tmp_path / "home")}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stderr == "error: " + "".join(f"c.yml{line}\n" for line in expected)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert os.listdir(tmp_path) == ["c.yml"]


def test_the_starter_file_names_every_key_and_shows_the_defaults(tmp_path: Path) -> None:
    text = starter.text()
    spec = load(tmp_path, text)
    section, shown = "", {}
    for line in text.splitlines():
        if match := re.match(r"(?:# )?(\w+):(?= +#|$)|( *)(?:# )?(\w+): +(.+?)(?: +#.*)?$", line):
            section = match[1] or (section if match[2] else "")
            shown[".".join(filter(None, [section, match[3]]))] = (match[4], "# " in line[:4])
    default = load(tmp_path, M).model_dump()
    sections = {key: value for key, value in default.items() if isinstance(value, dict)}
    assert set(shown) >= set(default) - set(sections)
    assert set(shown) >= {f"{section}.{key}" for section, keys in sections.items() for key in keys}
    other = {"model.intermediate_size", "data.source", "data.path", "pipeline.minibatches_per_step"}
    for key, (value, commented) in shown.items():
        if value is not None and commented and key in explain.names() and key not in other:
            assert load(tmp_path, text, f"{key}={value}") == spec, key


@settings(deadline=None, max_examples=80)
@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")) | TREE.map(str).map(str.encode))
def test_no_bytes_raise_anything_but_a_config_error(raw: bytes) -> None:
    problems(raw)


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(KEY, TREE), st.lists(st.tuples(KEY, st.text() | TREE.map(str)), max_size=2))
def test_no_values_raise_anything_but_a_config_error(
    values: dict[str, object], overrides: list[tuple[str, str]]
) -> None:
    problems(yamltree.dump({"machines": ["cpu"], **values}), tuple(f"{key}={value}" for key, value in overrides))
