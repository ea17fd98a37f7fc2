"""Runs that go on after an injury: from the right place, to the same end; and disks that fill up."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults.arena import DEPTH, Arena, Trial
from tests.faults.case import case
from tests.rig import wait_for
from worker.checkpoint import layout

ASP = ("pipeline.sync_mode=asp", "pipeline.minibatches_per_step=null", "pipeline.recompute_ratio=0.5")


CALLS = {"mkdir": 1, "fsync": 5, "rename": 2, "unlinkat": 5}
"""Of which there are so many in one save, at least. strace counts them thread by thread, and every save has its own."""


@case(
    "C1", "SIGKILL at a random mkdir, fsync, rename or unlink of a save", "restarted; bit-equal", "I5", needs="strace"
)
def c1(arena: Arena, chance: random.Random) -> list[Trial]:
    whole = arena.undisturbed()
    trial = arena.launch("run.max_restarts=1").until_step(3)
    call = chance.choice(list(CALLS))
    number = chance.randint(1, CALLS[call])
    inject = f"inject={call}:signal=KILL:when={number}"
    trial.hurt(inject)
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject, "-p", str(trial.pid(0))]
    _freeze(trial)  # or it could be at its end before strace is there
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr and "attached" in strace.stderr.readline()
        _freeze(trial, signal.SIGCONT)
        trial.ends_as(whole)
    assert trial.attempt == 2, f"{trial.attempt} attempts after {inject}"
    trial.injuries.clear()  # it came at some later time than it was asked for
    return [trial]


@case("C2", "kill -9 of a random rank at a random step, bsp", "restarted; ends bit-equal to undisturbed", "I1 I3 I5")
def c2(arena: Arena, chance: random.Random) -> list[Trial]:
    return [_killed_once(arena, chance)]


@case("C2a", "the same under asp with recomputation", "the same", "I1 I3 I5")
def c2a(arena: Arena, chance: random.Random) -> list[Trial]:
    return [_killed_once(arena, chance, *ASP)]


@case("C2r", "the same with two replicas of a stage", "the same", "I1 I3 I5")
def c2r(arena: Arena, chance: random.Random) -> list[Trial]:
    stages = arena.ranks - 1
    replicas = [1] * (stages - 1) + [2] if stages > 1 else [2]
    return [_killed_once(arena, chance, f"pipeline.stages={stages}", f"pipeline.replicas={replicas}")]


def _killed_once(arena: Arena, chance: random.Random, *settings: str) -> Trial:
    whole = arena.undisturbed(*settings)
    trial = arena.launch("run.max_restarts=1", *settings).until_step(chance.randint(3, 50))
    trial.kill(chance.randrange(arena.ranks))
    trial.ends_as(whole)
    assert trial.attempt == 2, f"{trial.attempt} attempts"
    return trial


def _damaged(arena: Arena, harm: Any) -> tuple[Trial, str]:
    """A run whose newest checkpoint is harmed before a rank is killed; what the second attempt says."""
    whole = arena.undisturbed()
    trial = arena.launch("run.max_restarts=1").until_step(22)
    wait_for(lambda: layout.steps(trial.files.checkpoints)[:2] == [20, 10])
    _freeze(trial)  # so that no newer one is saved meanwhile
    newest = layout.steps(trial.files.checkpoints)[0]
    harm(layout.committed(trial.files.checkpoints, newest))
    trial.kill(arena.middle)
    trial.ends_as(whole)
    return trial, trial.files.log(2, 0).read_text()


def _freeze(trial: Trial, number: int = signal.SIGSTOP) -> None:
    for rank in range(trial.arena.ranks):
        os.kill(trial.pid(rank), number)


def _shard(folder: Path) -> Path:
    return sorted(folder.glob("layer-0001-*"))[0]


@case("C3", "a bit of a shard flips", "named; the checkpoint before is used, and said", "I5 I9")
def c3(arena: Arena, chance: random.Random) -> list[Trial]:
    def flip(folder: Path) -> None:
        data = bytearray(_shard(folder).read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        _shard(folder).write_bytes(data)

    trial, said = _damaged(arena, flip)
    assert "cannot be used" in said and "was changed: its sha256" in said, said
    return [trial]


@case("C4", "a shard, or the manifest, is missing", "not a checkpoint; the one before is used", "I5")
def c4(arena: Arena, chance: random.Random) -> list[Trial]:
    what = chance.choice(["shard", "manifest"])
    trial, said = _damaged(arena, lambda f: (_shard(f) if what == "shard" else f / layout.MANIFEST).unlink())
    assert "cannot be used" in said, said
    return [trial]


@case("C7", "resumed on fewer ranks", "bit-equal under bsp, and what is different is said", "I5")
def c7(arena: Arena, chance: random.Random) -> list[Trial]:
    whole = arena.undisturbed()
    first = arena.launch().until_step(30)
    _freeze(first)  # which else may be at its end before it hears
    first.vpipe("stop", first.id)
    first.ends("stopped", 103)
    fewer = max(1, arena.ranks - chance.randint(1, 2))
    arena_ranks, arena.ranks = arena.ranks, fewer
    partition = [1] * (fewer - 1) + [DEPTH + 2 - (fewer - 1)]
    second = arena.launch(f"machines=[cpu*{fewer}]", f"pipeline.partition={partition}", command="resume")
    second.ends_as(whole)
    assert "with differences" in second.launched.text, second.launched.text
    arena.ranks = arena_ranks
    return [first, second]


class Bomb:
    """Leaves a folder where anything unpickles it."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._path,)


@case("C8", "pickles as shard, manifest and extra file", "never executed; the checkpoint before is used", "I5 I8")
def c8(arena: Arena, chance: random.Random) -> list[Trial]:
    mark = arena.folder / "exploded"

    def lay(folder: Path) -> None:
        for path in (_shard(folder), folder / "optimizer.pt", folder / ".metadata"):
            path.write_bytes(pickle.dumps(Bomb(mark)))
            path.chmod(0o600)

    trial, said = _damaged(arena, lay)
    trial.vpipe("checkpoint", "verify", trial.id)
    assert not mark.exists(), "a pickle was executed"
    assert "cannot be used" in said, said
    return [trial]


@case("D1", "the disk fills up", "named; after making room `vpipe resume` ends bit-equal", "I5 I9", needs="root")
def d1(arena: Arena, chance: random.Random) -> list[Trial]:
    whole = arena.undisturbed()
    with _small_disk(arena.home, "12m"):
        trial = arena.launch().until_step(22)
        filler = arena.home / "filler"
        trial.hurt("the disk is full")
        _fill(filler)
        trial.ends("failed", 100, None, "")
        failure = (trial.events()[-1].get("first_failure") or {}).get("cause", "")
        assert "No space left on device" in failure, failure
        filler.unlink()
        second = arena.launch(command="resume").ends_as(whole)
        from tests.faults.checkers import check

        assert not (wrong := check(second)), wrong
        wrong = check(trial)
        assert not wrong, wrong
    return []


@case("D2", "the home is read-only", "one line, exit 104, nothing started", "I9", needs="root")
def d2(arena: Arena, chance: random.Random) -> list[Trial]:
    with _small_disk(arena.home, "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(arena.home)], check=True)
        said = arena.vpipe("launch")
    assert said.code == 104 and "Read-only file system" in said.err, said.text
    assert "Traceback" not in said.text
    return []


def _fill(path: Path) -> None:
    path.touch(0o600)
    path.chmod(0o600)
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))


class _small_disk:
    """A file system of its own in place of a folder."""

    def __init__(self, folder: Path, size: str) -> None:
        self._folder, self._size = folder, size

    def __enter__(self) -> None:
        self._folder.mkdir(exist_ok=True)
        kept = self._folder.with_name("kept-home")
        self._folder.rename(kept)
        self._folder.mkdir()
        options = f"size={self._size},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self._folder)], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self._folder)], check=True)
        self._folder.rmdir()
        self._folder.with_name("kept-home").rename(self._folder)
