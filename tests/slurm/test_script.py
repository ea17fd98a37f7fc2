"""The script for sbatch and what may stand in it; what squeue says. No Slurm is needed."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import configs
from tests.slurm import gang
from vpipe_cli import machines
from vpipe_cli.launch import Launch, Surroundings, describe, resolve
from vpipe_cli.placing import Shipped
from vpipe_cli.runs.store import create, new_id
from vpipe_cli.slurm import template
from vpipe_cli.slurm.queue import Queued, parse
from vpipe_cli.slurm.script import script
from worker.errors import PreflightError
from worker.spec.files import RunFiles
from worker.spec.slurm import option_problem

SLURM = "engine: slurm\nslurm: {nodes: 2"
OPTIONS: dict[str, object] = {
    "partition": "gpu",
    "qos": "high",
    "time": "1-12",
    "constraint": "a100&ib",
    "extra": ["--mem=10G"],
}


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    return gang.launch_of(create(new_id("gang"), "slurm"), [gang.SLEEP] * 2, OPTIONS, {})


def test_the_whole_script(launch: Launch) -> None:
    root = "/shared/my home"
    found = script(launch, root)
    assert found.splitlines() == [
        "#!/bin/bash",
        "#SBATCH --job-name=job",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --partition=gpu",
        "#SBATCH --qos=high",
        "#SBATCH --time=1-12",
        '#SBATCH --constraint="a100&ib"',
        "#SBATCH --signal=B:USR1@180",
        "#SBATCH --requeue",
        "#SBATCH --export=HOME,LANG,LC_ALL,LD_LIBRARY_PATH,LOGNAME,PATH,TMPDIR,TZ,USER",
        f'#SBATCH --output="{root}/runs/{launch.run}/slurm.log"',
        "#SBATCH --open-mode=append",
        "#SBATCH --mem=10G",
        "set -u",
        f"run={shlex.quote(f'{root}/runs/{launch.run}')}",
        f"hostd={shlex.quote(f'{root}/code/{launch.code}/worker/hostd')}",
        'vpipe() { python3 -I -S "$hostd" slurm "$1" "$run"; }',
        "trap 'touch \"$run/preempt\"' USR1",
        "trap : TERM",
        "vpipe begin || { vpipe end; exit; }",
        "srun --nodes=2 --ntasks-per-node=1 --wait=0 --kill-on-bad-exit=0 --input=none \\",
        '  --export=ALL python3 -I -S "$hostd" slurm node "$run" &',
        'srun=$!; wait "$srun"',
        'while kill -0 "$srun" 2>/dev/null; do wait "$srun"; done',
        "vpipe end",
    ]
    assert subprocess.run(["bash", "-n"], input=found, text=True, check=False).returncode == 0


def test_the_manual_explains_every_line_of_what_its_own_file_gives(tmp_path: Path) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text()
    given = manual.partition("```yaml\n")[2].partition("```")[0]
    shown = manual.partition("```bash\n")[2].partition("```")[0]
    spec = configs.load(tmp_path, given, "slurm.login=elsewhere")  # where /shared is looked for
    nodes, files = machines.slots(spec.machines), RunFiles(tmp_path / "RUN")
    launch = resolve(spec, "RUN", files, nodes, Surroundings.here(), shipped=Shipped("DIGEST"))
    assert script(launch, "/shared/vpipe") == shown
    rows = manual.partition(shown)[2].partition("\n\n|")[2].partition("\n\n")[0].splitlines()
    told = {term for row in rows[2:] for term in re.findall("`(.*?)`", row.partition(" | ")[0])}
    lines = {
        term: {line for line in shown.splitlines() if all(part in line for part in term.split("..."))} for term in told
    }
    assert {term for term, found in lines.items() if not found} == set(), "explained, but not there"
    assert set(shown.splitlines()) - set().union(*lines.values()) == set(), "there, but not explained"


def test_dry_run_shows_it_with_the_paths_of_the_nodes(launch: Launch, tmp_path: Path) -> None:
    shown = describe(launch)
    assert "  #SBATCH --partition=gpu" in shown and "~/.vpipe" not in shown
    assert str(tmp_path) in shown


def test_dry_run_for_a_login_node_elsewhere_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    launch = gang.launch_of(create(new_id("gang"), "slurm"), [gang.SLEEP] * 2, {"login": "nobody"}, {})
    assert f'#SBATCH --output="~/.vpipe/runs/{launch.run}/slurm.log"' in describe(launch)


def test_an_image_of_each_node(launch: Launch) -> None:
    spec = launch.job.spec.model_copy(
        update={"slurm": launch.job.spec.slurm.model_copy(update={"image": "sbcast", "node_folder": "/local/"})}
    )
    ranks = [rank.model_copy(update={"argv": ["exec", "~/.vpipe/images/abc.sif"]}) for rank in launch.ranks]
    job = launch.job.model_copy(update={"spec": spec})
    sent = launch.model_copy(update={"image": "abc", "job": job, "ranks": ranks})
    assert "sbcast --force /r/images/abc.sif /local/vpipe-images-abc/abc.sif.part || true" in script(sent, "/r")
    assert '"/local/vpipe-images-abc/abc.sif"' in template.files(sent, "/r")["slurm/node2.json"]


def test_a_folder_that_no_script_can_name(launch: Launch) -> None:
    with pytest.raises(PreflightError, match="VPIPE_HOME"):
        script(launch, '/home/a"\n#SBATCH --wrap=x')


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--mem=10G", ""),
        ("--exclusive", ""),
        ("--comment=it is here", ""),
        ("--mem=1G\n#SBATCH --wrap=x", "line break"),
        ("-p gpu", "not of the form"),
        ("--partition=x", "`slurm.partition` says that"),
        ("--output=/dev/null", "sets itself"),
        ("--signal=9", "sets itself"),
        ("--array=1-3", "`vpipe sweep`"),
    ],
)
def test_further_options(option: str, says: str) -> None:
    problem = option_problem(option)
    assert says in problem and bool(says) == bool(problem)


@pytest.mark.parametrize(
    "value",
    ["time: soon", "partition: 'a b'", "account: '-x'", "node_folder: tmp", "time: 0", "login: -h", "login: localhost"],
)
def test_values_that_are_none(value: str) -> None:
    key = value.partition(":")[0]
    (problem,) = configs.problems(f"{SLURM}, {value}}}\n")
    assert f"slurm.{key}" in problem


def test_machines_may_be_left_out(tmp_path: Path) -> None:
    assert configs.load(tmp_path, f"{SLURM}, gpus_per_node: 4}}\n").machines == ["node[1-2]:0-3"]
    assert configs.load(tmp_path, f"machines: [cpu*9]\n{SLURM}}}\n").machines == ["node[1-2]:cpu*1"]
    (problem,) = configs.problems("machines: [cpu*2]\nengine: slurm\n")
    assert "with engine slurm name its nodes" in problem


def test_keys_of_the_job_stay_short(tmp_path: Path) -> None:
    spec = configs.load(tmp_path, "machines: [cpu*2]\nmodel: {num_layers: 2}\n", "partition=[2,4]", "qos=x")
    assert (spec.pipeline.partition, spec.slurm.qos) == ([2, 4], "x")


def test_what_squeue_says() -> None:
    waits = parse("7|PENDING|Resources|2026-11-24T12:00:00|")
    assert waits == ("7", Queued("PENDING", "Resources", "2026-11-24T12:00:00"))
    assert parse("7_2|PENDING|Priority|N/A|") == ("7_2", Queued("PENDING", "Priority"))
    _, running = parse("7|RUNNING|None|2026-11-24T12:00:00|n[1-2]\n")
    assert running == Queued("RUNNING", "", "2026-11-24T12:00:00", "n[1-2]") and not running.has_ended
    assert parse("7|TIMEOUT|TimeLimit|x|")[1].has_ended
