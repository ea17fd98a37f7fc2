"""`vpipe debug-dump`: what helps is in it, what is secret is not."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import canary, runs
from vpipe_cli import redact
from vpipe_cli.app import app
from vpipe_cli.runs import dump
from worker.spec.files import RunFiles


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    monkeypatch.setenv("MY_TOKEN", canary.SECRET)
    files = runs.make_run(tmp_path)
    runs.fail(files)
    return files


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        members = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {name.partition("/")[2]: file.read().decode() for name, file in members.items() if file}


def test_a_dump_tells_what_happened(files: RunFiles, tmp_path: Path) -> None:
    runs.log(files, 0, 1.0, f"my_token={canary.SECRET} and again {canary.SECRET}")
    (files.checkpoints / "step-5").mkdir(parents=True)
    (files.checkpoints / "step-5" / "layer-0000-x.safetensors").write_bytes(b"weights")
    done = CliRunner().invoke(app, ["debug-dump", "--to", str(tmp_path / "d.tar.gz"), "-o", "json"])
    assert done.exit_code == 0, done.output
    found = unpacked(tmp_path / "d.tar.gz")
    assert sorted(found) == json.loads(done.stdout)["names"]
    assert {"status.json", "versions.json", "events.jsonl", "job.json", "attempt-1/rank-1.exit.json"} <= set(found)
    assert json.loads(found["status.json"])["first_failure"]["rank"] == 1
    assert "layer-0000-x.safetensors" in found["files.txt"] and "Left out: weights" in found["README.txt"]
    assert not [name for name, text in found.items() if canary.SECRET in text or ("weights" in text and name[0] == "c")]
    assert "my_token=[redacted] and again [redacted]" in found["attempt-1/rank-0.log"]
    assert (tmp_path / "d.tar.gz").stat().st_mode & 0o777 == 0o600


def test_an_existing_file_stays_as_it_is(files: RunFiles, tmp_path: Path) -> None:
    (tmp_path / "d").write_text("mine")
    done = CliRunner().invoke(app, ["debug-dump", "--to", str(tmp_path / "d")])
    assert done.exit_code != 0 and (tmp_path / "d").read_text() == "mine"


def test_of_a_long_log_the_end_is_kept_in_whole_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {number}\n" for number in range(50_000)))
    kept = dump._read(tmp_path / "log", dump.END).splitlines()
    assert kept[0].endswith("bytes before this are left out]") and kept[-1] == "line 49999"
    assert all(line.startswith("line ") for line in kept[1:])


def test_a_link_is_not_followed(files: RunFiles, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("private matter")
    (files.folder / "x.json").symlink_to(tmp_path / "private")
    dump.write(runs.run(files), tmp_path / "d", {})
    assert "x.json" not in unpacked(tmp_path / "d")


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "password", "hfToken", "HF_TOKEN", "db-secret", "AWS_SECRET_ACCESS_KEY"]
)
def test_names_of_secrets(name: str) -> None:
    assert redact.is_secret(name)


@pytest.mark.parametrize("name", ["tokenizer", "tokens_per_second", "key", "keep", "author", "compass", "vocab_size"])
def test_names_of_no_secrets(name: str) -> None:
    assert not redact.is_secret(name)


@pytest.mark.parametrize(
    "given, left",
    [
        ("HF_TOKEN=hf_abc next", "HF_TOKEN=[redacted] next"),
        ("api_key: 'a b c'", "api_key: '[redacted]'"),
        ('{"password": "x\\"y", "n": 1}', '{"password": "[redacted]", "n": 1}'),
        ("https://ana:pw@host/x", "https://ana:[redacted]@host/x"),
        ("Authorization: Bearer abcdefgh", "Authorization: [redacted] [redacted]"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----", "[redacted]"),
        ("loss: 3.5, tokens: 12", "loss: 3.5, tokens: 12"),
    ],
)
def test_text_is_redacted(given: str, left: str) -> None:
    assert redact.text(given) == left


def test_documents_are_redacted_in_depth() -> None:
    given = {"env": [{"HF_TOKEN": "x", "PATH": "/bin"}], "a": "the value s3cr3t!", "token": None}
    assert redact.document(given, ["s3cr3t!"]) == {
        "env": [{"HF_TOKEN": "[redacted]", "PATH": "/bin"}], "a": "the value [redacted]", "token": None,
    }  # fmt: skip
