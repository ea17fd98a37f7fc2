"""Machines that are gone: spares in their place, or a new plan on those that are left; or why neither can be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vpipe_cli import config, machines, remaining
from worker.errors import ConfigError, UnreachableError
from worker.planner import make_plan
from worker.spec.cluster import ClusterSpec


def job(*overrides: str, on: str = "['a:0,1', 'b:0,1', 'c:0,1']", more: str = "") -> ClusterSpec:
    path = Path("cluster.yml")
    path.write_text(f"machines: {on}\nmodel: {{name: bert, num_layers: 4}}\n{more}")
    return config.load(path, overrides)


def left(*overrides: str, down: str) -> ClusterSpec:
    """The job of cluster.yml on what is left; it must be one that can be planned."""
    without = remaining.without(config.load("cluster.yml", overrides), {down})
    found = config.load("cluster.yml", [*overrides, *without.overrides])
    make_plan(found, len(machines.slots(found.machines)))
    return found


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_nothing_changes_while_all_are_there() -> None:
    spec = job("spares=['d:0,1']")
    assert remaining.without(spec, {"d"}) == remaining.Remaining()
    assert remaining.wanted(spec) and not remaining.wanted(job())


def test_a_spare_takes_the_ranks_of_the_lost_and_the_plan_stays() -> None:
    spec = job("spares=['d:0,1']")
    found = remaining.without(spec, {"b"})
    assert found.overrides == ['machines=["a:0,1", "d:0,1", "c:0,1"]']
    assert found.told == ["b does not answer", "in its place: d:0,1"]
    assert left("spares=['d:0,1']", down="b").pipeline == spec.pipeline


def test_spares_that_are_gone_or_of_another_kind_are_no_help() -> None:
    for spares, down in ((["d:0,1"], {"b", "d"}), (["d:cpu*2"], {"b"})):
        with pytest.raises(
            UnreachableError, match=r"b does not answer; without it 4 of 6 ranks are left, and .* not set"
        ):
            remaining.without(job(f"spares={spares}"), down)


def test_fewer_ranks_as_far_as_the_job_allows() -> None:
    spec = job("run.min_ranks=3", "pipeline.sync_mode=bsp")
    found = left("run.min_ranks=3", "pipeline.sync_mode=bsp", down="b")
    assert (found.pipeline.stages, found.pipeline.partition) == (4, "auto")
    assert found.pipeline.minibatches_per_step == spec.pipeline.minibatches_per_step
    with pytest.raises(UnreachableError, match=r"a, b does not answer; without it 2 of 6 ranks .* run.min_ranks is 3"):
        remaining.without(spec, {"a", "b"})


def test_the_spares_there_are_come_first() -> None:
    found = remaining.without(job("run.min_ranks=1", "spares=[d:0]"), {"a"})
    assert found.overrides[0] == 'machines=["d:0", "b:0,1", "c:0,1"]'
    assert found.told[-1] == "5 of 6 ranks are left, and planned anew"


@pytest.mark.parametrize(
    "pipeline, stages, replicas",
    [
        ("{stages: 3, replicas: 2, sync_mode: bsp}", 3, [2, 1, 1]),
        ("{stages: 2, replicas: 3, sync_mode: bsp}", 2, [2, 2]),
        ("{partition: [1, 1, 2, 2, 2, 2], recompute_ratio: [0.5, 0, 0, 0, 0, 1]}", 4, 1),
        ("{schedule: interleaved, stages: 6, sync_mode: bsp}", 6, 1),
        ("{schedule: zb-v, stages: 6, sync_mode: bsp}", 4, 1),
    ],
)
def test_the_pipeline_fits_what_is_left(pipeline: str, stages: int, replicas: object) -> None:
    slots = "['a:0', 'b:0', 'c:0']" if "schedule" in pipeline else "['a:0,1', 'b:0,1', 'c:0,1']"
    job(on=slots, more=f"pipeline: {pipeline}\nrun: {{min_ranks: 1}}\n")
    found = left(down="b").pipeline
    assert (found.stages, found.replicas) == (stages, replicas)


def test_mistakes_in_spares_are_found_where_they_stand() -> None:
    with pytest.raises(ConfigError, match=r"cluster.yml:3:15: spares\[1\]: 'e' names no device"):
        job(more="spares: [d:0, e]\n")
    with pytest.raises(ConfigError, match=re.escape("spares: belongs to engine ssh, but engine is local")):
        job("spares=['d:0']", on="['cpu*2']")
