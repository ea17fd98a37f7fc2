"""A save may be cut off anywhere: what is found then is the old checkpoint or the new one, and whole.

A child process with an executor at step 1 saves step 2, which makes step 1 superfluous; strace ends it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.saved import Alone, Run, job_of, newest
from tests.test_checkpoint import MODEL, SPEC
from worker.checkpoint import layout, manifest
from worker.recovery import setup
from worker.spec.files import RunFiles

CALLS = ("mkdir", "openat", "write", "fsync", "rename", "unlinkat", "rmdir")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was saved after each of its three steps. Not to be written to."""
    return Run(tmp_path_factory.mktemp("origin") / "run", job_of(SPEC, [1, 2]), MODEL).train()


class Injected:
    """One save in a process of its own, with strace at it."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.folder = folder / "checkpoints"
        self.folder.mkdir()
        shutil.copytree(run.path(1), self.folder / "step-1")
        self.trace = folder / "trace"
        self.files = RunFiles(folder)

    def save(self, *inject: str) -> str | None:
        """Save, traced; what the save raised, "" if nothing, None if the process was killed."""
        alone = Alone(self.folder, MODEL, SPEC.model_copy(update={"checkpoint": _keep_one()}), attempt=2)
        said, say = os.pipe()
        if not (pid := os.fork()):
            self._child(alone, inject, say)
        os.close(say)
        os.waitpid(pid, 0)
        with os.fdopen(said) as answer:
            text = answer.read()
        return text[1:] if text else None

    def _child(self, alone: Alone, inject: tuple[str, ...], say: int) -> None:
        try:
            calls = ["-e", f"trace={','.join(CALLS)}", *(word for each in inject for word in ("-e", f"inject={each}"))]
            command = ["strace", "-f", "-y", "-o", str(self.trace), *calls, "-p", str(os.getpid())]
            strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            assert strace.stderr and "attached" in strace.stderr.readline()
            saver = setup.saver(alone.builder, alone.executor, 2, alone.place, alone.rendezvous, 0)
            assert saver
            saver.save(2)
            saver.close()
            os.write(say, b"=")
        except BaseException as error:
            os.write(say, f"={error}".encode())
        finally:
            os._exit(0)


def _keep_one() -> Any:
    return SPEC.checkpoint.model_copy(update={"keep": 1})


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@needs_strace
@pytest.mark.parametrize("call", CALLS)
def test_a_save_may_die_at_any_point(call: str, run: Run, tmp_path: Path) -> None:
    """Killed at the n-th call of each kind, for every n there is: what is found then is old or new, and whole."""
    for number in range(1, 100):
        (tmp_path / str(number)).mkdir()
        injected = Injected(run, tmp_path / str(number))
        said = injected.save(f"{call}:signal=KILL:when={number}")
        step, wrong = newest(injected.folder)
        assert step in (1, 2) and not wrong
        alone = Alone(injected.folder, MODEL, SPEC, attempt=3)
        assert alone.saved and alone.saved.step == step
        assert sorted(os.listdir(injected.folder)) in (["step-1"], ["step-1", "step-2"], ["step-2"])
        if said is not None:
            assert (said, step) == ("", 2)
            break
    assert said == ""
    assert number > 1


@needs_strace
@pytest.mark.parametrize(
    "inject, reason",
    [
        ("mkdir:error=EROFS", "Read-only file system"),
        ("write:error=ENOSPC:when=9", "No space left on device"),
        *((f"fsync:error=EIO:when={number}", "Input/output error") for number in range(1, 8)),
        ("rename:error=ENOSPC:when=1", "No space left on device"),
    ],
)
def test_what_the_system_refuses_is_said_and_harms_nothing(inject: str, reason: str, run: Run, tmp_path: Path) -> None:
    injected = Injected(run, tmp_path)
    said = injected.save(inject)
    assert said and re.search(f"rank 0 cannot write checkpoint step-2 below .*: {reason}", said)
    assert newest(injected.folder)[0] in (1, 2)


def order(trace: str, folder: Path) -> list[str]:
    """The fsyncs, the commit and what is deleted, in the order of a trace; folders relative to ``folder``."""
    events = []
    for line in trace.splitlines():
        if match := re.search(r"fsync\(\d+<([^>]+)>", line):
            events.append(f"fsync {os.path.relpath(match[1], folder)}")
        elif match := re.search(r'rename\("([^"]+)", "([^"]+)"', line):
            events.append(f"rename {os.path.relpath(match[1], folder)} {os.path.relpath(match[2], folder)}")
    return events


def well_ordered(events: list[str], files: list[str]) -> bool:
    """All files and the folder are on the disk before the commit, and the commit before anything old goes."""
    commit = events.index("rename step-2.tmp-2 step-2")
    before, after = events[:commit], events[commit + 1 :]
    is_durable = all(f"fsync step-2.tmp-2/{name}" in before for name in files)
    old = after.index("rename step-1 step-1.deleting")
    return is_durable and before[-1] == "fsync step-2.tmp-2" and "fsync ." in after[:old]


@needs_strace
@pytest.mark.parametrize("mutant", [None, "fsync_folder"])
def test_everything_is_on_the_disk_before_the_commit_says_so(
    mutant: str | None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without the fsync of folders this test fails."""
    if mutant:
        monkeypatch.setattr(layout, mutant, lambda path: None)
    injected = Injected(run, tmp_path)
    assert injected.save() == ""
    files = [*manifest.read(injected.folder / "step-2").files, "manifest.json"]
    assert well_ordered(order(injected.trace.read_text(), injected.folder), files) == (mutant is None)
