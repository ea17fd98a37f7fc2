"""What is kept of runs beside their numbers: notes, differences, and what the shell offers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests import runs
from vpipe_cli.commands import completing
from vpipe_cli.commands.diff import diff
from vpipe_cli.commands.note import note
from vpipe_cli.runs.compare import compare
from vpipe_cli.runs.notes import add, notes
from worker.errors import UsageError
from worker.spec.files import write_atomic

cli = typer.Typer()
cli.command()(diff)
cli.command()(note)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two runs that have ended well: the second of 10 steps, with a result a quarter faster."""
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    one, other = runs.make_run(tmp_path, number=1), runs.make_run(tmp_path, steps=10, number=2)
    runs.succeed(one)
    runs.succeed(other, steps=10)
    faster = runs.result(steps=10).model_copy(update={"samples_per_second": 100.0})
    write_atomic(other.result, faster.model_dump_json())
    return one.folder.name, other.folder.name


def test_what_differs_is_told_and_nothing_else(two: tuple[str, str], tmp_path: Path) -> None:
    from vpipe_cli.runs.store import find

    found = {(change.part, change.key): (change.a, change.b, change.share) for change in compare(*map(find, two))}
    assert found == {
        ("config", "run.steps"): (20, 10, None),
        ("result", "steps"): (20, 10, -0.5),
        ("result", "samples_per_second"): (80.0, 100.0, 0.25),
    }
    text = CliRunner().invoke(cli, ["diff", *two]).stdout
    assert "config  run.steps           20" in text and "+25.0%" in text
    document = json.loads(CliRunner().invoke(cli, ["diff", two[0], two[0], "-o", "json"]).stdout)
    assert document["changes"] == []
    assert "are alike" in CliRunner().invoke(cli, ["diff", two[0], two[0]]).stdout


def test_notes_are_kept_with_the_run(two: tuple[str, str]) -> None:
    from vpipe_cli.runs.store import find

    assert CliRunner().invoke(cli, ["note", two[0], " the \x1b[31mslow one "]).exit_code == 0
    assert [each.text for each in notes(find(two[0]))] == ["the \x1b[31mslow one"]
    shown = CliRunner().invoke(cli, ["note", two[0]]).stdout
    assert "slow one" in shown and "\x1b" not in shown
    assert "no notes" in CliRunner().invoke(cli, ["note", two[1]]).stderr
    with pytest.raises(UsageError, match="1 to 10000 characters"):
        add(find(two[0]), "  ")


def test_the_shell_is_offered_runs_keys_and_values(two: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(completing.runs("bert")) == sorted(two) and completing.runs("x") == [] == completing.sweeps("")
    assert completing.settings("recomp") == ["recompute_ratio="]
    assert completing.settings("sync_mode=asp,b") == ["sync_mode=asp,bsp"]
    assert completing.settings("nothing=x") == []


def test_numbers_for_prometheus(two: tuple[str, str]) -> None:
    from vpipe_cli.runs import exporting
    from vpipe_cli.runs.store import find

    text = exporting.text(find(two[0]), "openmetrics")
    assert f'vpipe_run_info{{run="{two[0]}",name="bert",state="succeeded"}} 1.0\n' in text
    assert f'vpipe_step{{run="{two[0]}"}} 20.0\n' in text and text.endswith("\n# EOF\n")
    assert (
        text.count("# TYPE") == len({line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}) == 12
    )
    labels = f'run="{two[0]}",rank="1",stage="1",host="localhost",device="cpu"'
    assert f"vpipe_rank_versions{{{labels}}} 1.0\n" in text
    assert f"vpipe_rank_peak_memory_bytes{{{labels}}} {float(401 << 20)!r}\n" in text


def test_numbers_for_tensorboard(two: tuple[str, str], tmp_path: Path) -> None:
    from vpipe_cli.runs import exporting, tensorboard
    from vpipe_cli.runs.store import find

    assert tensorboard.crc32c(b"123456789") == 0xE3069283
    data = exporting.write(find(two[1]), "tensorboard", tmp_path / "tb").read_bytes()
    messages = []
    while data:
        length = int.from_bytes(data[:8], "little")
        messages.append(data[12 : 12 + length])
        assert tensorboard.record(messages[-1]) == data[: 16 + length]
        data = data[16 + length :]
    assert messages[0].endswith(b"brain.Event:2")
    assert len(messages) == 1 + len(exporting.text(find(two[1]), "jsonl").splitlines())
    assert tensorboard.event(runs.BEGIN + 0.1 * 3, 3, "loss", 6.7) in messages
