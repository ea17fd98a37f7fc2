"""key=value on the command line: any key that is unique, and mistakes that name the argument they came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.configs import M, load, problems
from vpipe_cli import config


@pytest.mark.parametrize(
    "overrides, key, value",
    [
        (["optimizer.lr=1e-4"], "optimizer.lr", 1e-4),
        (["lr=1e-4"], "optimizer.lr", 1e-4),
        (["lr=1", "lr=2"], "optimizer.lr", 2.0),
        (["lr = 2"], "optimizer.lr", 2.0),
        (["partition=[4,6]"], "pipeline.partition", [4, 6]),
        (["recompute_ratio=0.5"], "pipeline.recompute_ratio", 0.5),
        (["clip_grad_norm=null"], "optimizer.clip_grad_norm", None),
        (["run={steps: 5}"], "run.steps", 5),
        (["name=foo"], "name", "foo"),
        (["machines=[cpu*3]"], "pipeline.stages", 3),
    ],
)
def test_overrides(tmp_path: Path, overrides: list[str], key: str, value: object) -> None:
    spec: object = load(tmp_path, M + "optimizer: {lr: 0.1, clip_grad_norm: 1}", *overrides)
    for part in key.split("."):
        spec = getattr(spec, part)
    assert spec == value


def test_an_override_mends_a_mistake_of_the_file() -> None:
    assert problems(M + "optimizer: {lr: fast}") != []
    assert problems(M + "optimizer: {lr: fast}", ("lr=0.1",)) == []


def test_a_path_on_the_command_line_begins_in_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    spec = load(tmp_path, M, "source=text", f"path={Path(__file__).name}")
    assert spec.data.path == __file__


@pytest.mark.parametrize(
    "override, expected",
    [
        ("lr=fast", "optimizer.lr: must be a number, not 'fast'"),
        ("lr", "must be key=value"),
        ("lr=", "optimizer.lr: has no value after `=`"),
        ("lrr=1", "lrr: unknown key; did you mean `optimizer.lr`?"),
        ("zzz=1", "zzz: unknown key; `vpipe config schema` lists all keys"),
        ("=1", "'': unknown key; `vpipe config schema` lists all keys"),
        ("schedule=linear",
         "schedule: is short for `pipeline.schedule` and for `optimizer.schedule`; write one of them"),
        ("run=3", "run: must be a group of `key: value` lines, not 3"),
        ("run.steps.x=3", "run.steps.x: unknown key; did you mean `run.steps`?"),
        ("run={stops: 3}", "run.stops: unknown key; did you mean `steps`?"),
        ("partition=[4,6", "pipeline.partition: a bracket opens here and is never closed"),
        ("lr=*a", "optimizer.lr: aliases (*name) are not allowed; write the value here"),
        ("stages=3", "pipeline.stages: is 3 but machines gives 2 devices; they must be equal"),
    ],
)  # fmt: skip
def test_a_wrong_override_names_itself(override: str, expected: str) -> None:
    assert problems(M, (override,)) == [f"command line: {override}: {expected}"]


def test_an_argument_with_an_equals_sign_is_no_file_unless_it_is(tmp_path: Path) -> None:
    (tmp_path / "a=b.yml").touch()
    assert config.split(["lr=1", "x=2"]) == (Path("cluster.yml"), ["lr=1", "x=2"])
    assert config.split(["c.yml", "lr=1"]) == (Path("c.yml"), ["lr=1"])
    assert config.split([f"{tmp_path}/a=b.yml", "lr=1"]) == (tmp_path / "a=b.yml", ["lr=1"])
