"""`vpipe plan` and `vpipe profile` as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.test_profile_file import NODE
from vpipe_cli import config, profiles
from vpipe_cli.app import app
from vpipe_cli.machines import slots
from vpipe_cli.render import profile as drawn
from worker.errors import UsageError
from worker.planner import make_plan
from worker.planner.choose import OutOfMemory
from worker.spec.job import Plan
from worker.spec.profile import LayerProfile, LinkProfile, Profile, model_digest

CLUSTER = "machines: [cpu*2]\nmodel: {num_layers: 2, hidden_size: 32, num_heads: 2}\n"
LAYERS = 6
MB = 2**20


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to type in, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def measured(model: str | None = None, **more: Any) -> Profile:
    """Six layers, the last of them thrice as dear."""
    sizes = {"activation_bytes": 10 * MB, "output_bytes": MB, "parameter_bytes": 4 * MB}
    sizes |= {"gradient_bytes": 4 * MB, "optimizer_bytes": 8 * MB}
    layers = [
        LayerProfile(name=f"l{i}", forward=s, input_grad=s, weight_grad=s, recompute=s, **sizes)
        for i, s in enumerate([0.01] * (LAYERS - 1) + [0.03])
    ]
    return Profile(model=model, layers=layers, links=[LinkProfile(latency=1e-4, forward=1e9, backward=1e9)], **more)


def job(folder: Path, *overrides: str) -> tuple[Path, Path]:
    """cluster.yml, and a profile of its model."""
    cluster, path = folder / "cluster.yml", folder / "profile.json"
    cluster.write_text(CLUSTER)
    path.write_text(measured(model_digest(config.load(cluster, overrides))).to_json())
    return cluster, path


def plan(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["plan", *arguments, "-o", "json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_job_is_planned_from_its_profile(elsewhere: Path) -> None:
    _, profile = job(elsewhere)
    document = plan("--profile", str(profile), "--compare")
    assert (document["partition"], document["replicas"], document["recompute_ratio"]) == ([4, 2], [1, 1], [0.0, 0.0])
    predicted = document["predicted"]
    assert predicted["step_seconds"] == pytest.approx(0.12, rel=0.02)
    assert predicted["lower_bound_seconds"] == pytest.approx(0.12)
    assert [stage["seconds"] for stage in predicted["stages"]] == pytest.approx([0.12, 0.12])
    assert all(stage["memory_bytes"] > 0 for stage in predicted["stages"])
    assert [each["name"] for each in document["compare"]] == ["even split", "PipeDream", "GPipe", "this plan"]


def test_memory_makes_it_recompute(elsewhere: Path) -> None:
    _, profile = job(elsewhere)
    free = plan("--profile", str(profile), "recompute_ratio=auto")
    tight = plan("--profile", str(profile), "recompute_ratio=auto", "--memory", "160MiB")
    assert free["recompute_ratio"] == [0.0, 0.0] and tight["recompute_ratio"][0] > 0
    assert max(stage["memory_bytes"] for stage in tight["predicted"]["stages"]) <= 160 * MB
    assert tight["predicted"]["step_seconds"] > free["predicted"]["step_seconds"]


def test_a_profile_of_pipedreams_needs_no_file(elsewhere: Path) -> None:
    Path("g.txt").write_text("".join(f"node{i} -- Linear -- {NODE}\n" for i in (1, 2)) + "\tnode1 -- node2\n")
    document = plan("--profile", "g.txt", "machines=[cpu*3]", "--cost-model", "pipedream", "--bandwidth", "1GB/s")
    assert document["predicted"]["step_seconds"] == pytest.approx(0.002, rel=1e-3)
    assert document["replicas"] == [3] and document["partition"] == [2]


def test_a_machine_measured_as_slower_gets_fewer_layers(elsewhere: Path) -> None:
    _, path = job(elsewhere)
    profile = Profile.model_validate_json(path.read_bytes())
    path.write_text(profile.model_copy(update={"speeds": [1.0, 0.5]}).to_json())
    assert plan("--profile", str(path))["partition"] == [5, 1]


@pytest.mark.parametrize("mode", ["asp", "bsp"])
def test_more_in_flight_where_links_are_slow(mode: str, elsewhere: Path) -> None:
    """Hops of 15 ms beside stages of 120 ms: what is in flight covers the way there and back, and memory limits it."""
    _, path = job(elsewhere)
    profile = Profile.model_validate_json(path.read_bytes())
    path.write_text(
        profile.model_copy(update={"links": [LinkProfile(latency=0.015, forward=1e9, backward=1e9)]}).to_json()
    )
    asked = ("--profile", str(path), f"sync_mode={mode}")
    own, free = plan(*asked), plan(*asked, "--in-flight", "free")
    assert (own["in_flight"], free["in_flight"]) == (2, 3)
    assert free["predicted"]["step_seconds"] < own["predicted"]["step_seconds"]
    least = max(stage["memory_bytes"] for stage in own["predicted"]["stages"])
    assert plan(*asked, "--in-flight", "free", "--memory", str(int(least / 0.95) + 1))["in_flight"] == 2


def test_several_stages_on_each_device(elsewhere: Path) -> None:
    """As a launch will have them; the last layer is as dear as three others."""
    _, profile = job(elsewhere)
    asked = ("stages=4", "pipeline.schedule=interleaved", "sync_mode=bsp", "minibatches_per_step=4")
    document = plan("--profile", str(profile), "--compare", *asked)
    assert (sum(document["partition"]), document["replicas"]) == (LAYERS, [1] * 4)
    predicted = document["predicted"]
    assert predicted["lower_bound_seconds"] <= predicted["step_seconds"] < predicted["lower_bound_seconds"] * 1.3
    spec = config.load(Path("cluster.yml"), asked)
    made = make_plan(spec, 2, None, Profile.model_validate_json(profile.read_bytes()))
    assert (made.partition, made.chunks, made.ranks) == (document["partition"], 2, 2)


def test_text_and_picture(elsewhere: Path) -> None:
    _, profile = job(elsewhere)
    result = CliRunner().invoke(app, ["plan", "--profile", str(profile), "sync_mode=bsp", "--schedules", "every"])
    assert "no plan can be below" in result.stdout and "stage" in result.stdout and "why" in result.stdout
    result = CliRunner().invoke(app, ["plan", "--profile", str(profile), "-o", "png", "--file", "p.png"])
    assert result.stdout == "p.png\n" and Path("p.png").read_bytes().startswith(b"\x89PNG")
    drawn.draw(measured(), Path("layers.png"))
    assert Path("layers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--profile", "nowhere.json"], "cannot read nowhere.json"),
        (["--profile", "other.json"], "other.json is a profile of another model"),
        (["--profile", "profile.json", "--memory", "1MiB"], "no plan fits 1 MiB a device with the given"),
        (["--profile", "profile.json", "--memory", "lots"], "'lots' is not a size"),
        (["--profile", "profile.json", "--memory", "1GiB,2GiB,3GiB"], "memory: 3 values for 2 devices"),
        (["--profile", "unnamed.json", "machines=[cpu*9]", "replicas=1"], "9 stages are more than the 6 layers"),
        (
            ["--profile", "profile.json", "stages=8", "pipeline.schedule=interleaved", "sync_mode=bsp"],
            "is 8 but the model has 6 layers",
        ),
        (
            ["--profile", "profile.json", "replicas=2", "pipeline.schedule=interleaved", "sync_mode=bsp", "stages=2"],
            "schedule interleaved with replicas is not planned",
        ),
    ],
)
def test_what_cannot_be_planned(arguments: list[str], message: str, elsewhere: Path) -> None:
    job(elsewhere)
    Path("other.json").write_text(measured("0" * 32).to_json())
    Path("unnamed.json").write_text(measured().to_json())
    with pytest.raises(UsageError) as raised:
        CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False, standalone_mode=False)
    assert message in raised.value.message and raised.value.exit_code == 2


def test_a_launch_plans_from_what_was_measured(elsewhere: Path) -> None:
    cluster, profile = job(elsewhere)
    spec = config.load(cluster)
    devices = slots(spec.machines)
    assert profiles.for_launch(spec, devices) is None  # it does not measure where it can do without
    assert make_plan(spec, 2).reason.startswith("auto: balances estimated FLOPs")
    kept = profiles.kept(spec, devices)
    kept.parent.mkdir(parents=True)
    kept.write_text(profile.read_text())
    made = make_plan(spec, 2, profile=profiles.for_launch(spec, devices))
    assert made.partition == [4, 2] and made.reason.startswith("auto: from measured layers; stage ")
    assert made.predicted is not None and made.predicted.stage_seconds == pytest.approx([0.12, 0.12])
    assert Plan.model_validate_json(made.model_dump_json()) == made


def test_what_is_given_is_kept_and_predicted(elsewhere: Path) -> None:
    cluster, profile = job(elsewhere)
    spec = config.load(cluster, ["partition=[2,4]", "recompute_ratio=[0.3,0.5]", f"planner.profile={profile}"])
    made = make_plan(spec, 2, profile=profiles.for_launch(spec, slots(spec.machines)))
    assert (made.partition, made.recompute_ratio, made.reason) == ([2, 4], [0.3, 0.5], "given in cluster.yml")
    assert made.predicted is not None and made.predicted.stage_seconds == pytest.approx([0.06, 0.22])


def test_memory_that_cannot_do_is_refused_before_a_launch(elsewhere: Path) -> None:
    cluster, profile = job(elsewhere)
    spec = config.load(cluster, ["memory=1MiB", "recompute_ratio=auto", f"planner.profile={profile}"])
    with pytest.raises(OutOfMemory, match="the least that would do"):
        make_plan(spec, 2, profile=profiles.for_launch(spec, slots(spec.machines)))


def test_plan_needs_no_torch(elsewhere: Path) -> None:
    _, profile = job(elsewhere)
    code = f"import sys; sys.modules['torch'] = None; sys.argv = ['vpipe', 'plan', '--profile', {str(profile)!r}]\n"
    code += "from vpipe_cli.app import main; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and "predicted" in ended.stdout, ended.stderr
