"""Where runs are hurt: a folder with a model, a cluster.yml and a home, and the ``vpipe`` command in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import canary
from tests.faults import sockets
from tests.faults.references import References
from tests.rig import wait_for
from worker.hostd.processes import find_strays
from worker.spec.files import RunFiles, read_events
from worker.spec.records import FINAL, Result

MODEL = Path(__file__).with_name("victim.py")
LIMIT = 240.0
"""Seconds that any command or wait may take: generous, since the machine that tests may be busy. Nothing hangs."""
STEPS, EVERY, DEPTH = 60, 10, 6

CLUSTER = """\
name: fault
machines: [cpu*{ranks}]
model: {{entry: "victim:build", args: {{depth: {depth}}}}}
data: {{source: synthetic, sequence_length: 12, vocab_size: 300, minibatch_size: 4}}
pipeline: {{sync_mode: bsp, minibatches_per_step: 4}}
optimizer: {{lr: 1e-2, clip_grad_norm: 1.0}}
checkpoint: {{every_steps: {every}, keep: 2}}
run: {{steps: {steps}, threads: 1}}
"""
ENDLESS = ("run.steps=1000000", "checkpoint.every_steps=100000")


@dataclass
class Said:
    """A command that has ended: what it printed, and how."""

    arguments: tuple[str, ...]
    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return self.out + self.err


class Arena:
    """One folder of its own. ``sentinel`` is the user's home, in which nothing may change.

    Args:
        ranks: of the runs launched here.
        references: what undisturbed runs end with; default: of this arena alone.
    """

    def __init__(self, folder: Path, ranks: int = 4, references: References | None = None) -> None:
        self.folder, self.ranks = folder, ranks
        self._references = references or References(folder / "kept-references")
        self.home, self.sentinel = folder / "home", folder / "sentinel"
        self.env = {**os.environ, "VPIPE_HOME": str(self.home), "VPIPE_CACHE": str(folder / "cache")}
        self.env |= {"HOME": str(self.sentinel), "MY_TOKEN": canary.SECRET, "COLUMNS": "120"}
        self.env |= {"PYTHONPATH": str(Path(__file__).parents[2])}
        self.sentinel.mkdir(parents=True)
        (self.sentinel / ".bashrc").write_text("# the user's own\n")
        (folder / "victim.py").write_text(MODEL.read_text())
        self.write()
        self.trials: list[Trial] = []
        self.times: list[tuple[float, float, None]] = []

    @property
    def middle(self) -> int:
        """A rank with neighbours on both sides, if there are three."""
        return self.ranks // 2

    def write(self, more: str = "") -> None:
        """cluster.yml, with ``more`` lines."""
        text = CLUSTER.format(ranks=self.ranks, depth=DEPTH, every=EVERY, steps=STEPS)
        (self.folder / "cluster.yml").write_text(text + more)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """``vpipe`` with some arguments, under a umask that hides nothing; its output goes to files."""
        number = len(list(self.folder.glob("out-*")))
        with (self.folder / f"out-{number}").open("wb") as out, (self.folder / f"err-{number}").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "vpipe_cli.app", *arguments],
                cwd=self.folder,
                env={**self.env, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                umask=0,
            )
        process.args = (str(number), *arguments)
        return process

    def ended(self, process: subprocess.Popen[bytes], began: float) -> Said:
        """What a command said, once it has ended; code None where it did not within the limit."""
        try:
            code: int | None = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            code = None
        number, *arguments = process.args  # type: ignore[misc]
        out, err = ((self.folder / f"{name}-{number}").read_text(errors="replace") for name in ("out", "err"))
        return Said(tuple(map(str, arguments)), code, out, err, time.monotonic() - began)

    def vpipe(self, *arguments: str, **env: str) -> Said:
        """A command from its beginning to its end."""
        began = time.monotonic()
        return self.ended(self.start(*arguments, **env), began)

    def launch(self, *overrides: str, command: str = "launch", **env: str) -> Trial:
        """Begin a run by ``vpipe launch`` or ``vpipe resume ...`` and watch it; returns once it has a folder."""
        before = set(self.home.glob("runs/*"))
        began = time.monotonic()
        process = self.start(*command.split(), *overrides, **env)
        ready = lambda: process.poll() is not None or self._begun(before)  # noqa: E731
        wait_for(ready, LIMIT)
        found = self._begun(before)
        assert found, self.ended(process, began).text
        self.trials.append(Trial(self, RunFiles(found.pop()), process, began))
        return self.trials[-1]

    def _begun(self, before: set[Path]) -> set[Path]:
        new = set(self.home.glob("runs/*")) - before
        return {folder for folder in new if any(read_events(RunFiles(folder).events))}

    def undisturbed(self, *overrides: str) -> Result:
        """What a run that nobody hurts ends with; made once for the same settings."""

        def run() -> Result:
            trial = self.launch(*overrides)
            said = trial.end()
            assert said.code == 0, said.text
            return trial.result()

        return self._references.get([f"{self.ranks} ranks", *overrides], run)

    def close(self) -> None:
        """End whatever a case has left."""
        for trial in self.trials:
            trial.command.kill()
            trial.command.wait()
            for pid in [*trial.hostds(), *find_strays(trial.id)]:
                with quietly():
                    os.kill(pid, signal.SIGKILL)


class Trial:
    """One run, and what was done to it and when."""

    def __init__(self, arena: Arena, files: RunFiles, command: subprocess.Popen[bytes], began: float) -> None:
        self.arena, self.files, self.command, self.began = arena, files, command, began
        self.id = files.folder.name
        self.said: list[Said] = []
        self.launched: Said | None = None
        self.injuries: list[tuple[float, str]] = []
        self.expected: dict[str, Any] = {}
        self.whole: Result | None = None
        self.wildcards: list[str] = []
        self.gone_after: float | None = None

    def events(self, kind: str = "state") -> list[dict[str, Any]]:
        return [event for event in read_events(self.files.events) if event["event"] == kind]

    @property
    def state(self) -> str:
        return str(self.events()[-1]["state"])

    @property
    def attempt(self) -> int:
        return max([event["attempt"] for event in self.events("rank-start")], default=1)

    def hostds(self) -> list[int]:
        """The hostd that began the run."""
        events = self.events()
        return [event["hostd"] for event in events if "hostd" in event and events[-1]["state"] not in FINAL]

    def pid(self, rank: int) -> int:
        """The process of a rank of the newest attempt."""
        return [event["pid"] for event in self.events("rank-start") if event["rank"] == rank][-1]

    def step(self, rank: int) -> int:
        """The step that a rank of the newest attempt is in."""
        try:
            fields = self.files.progress(self.attempt, rank).read_bytes().split(b"\0", 1)[0].split(b"\t")
            return int(fields[1])
        except (OSError, ValueError, IndexError):
            return 0

    def until_step(self, step: int, attempt: int = 1) -> Trial:
        """Wait until every rank of an attempt is in a step."""
        assert self.reaches(step, attempt), f"the run ended before step {step}: {self.end().text}"
        return self

    def reaches(self, step: int, attempt: int = 1) -> bool:
        """As ``until_step``; False where the run ends before."""
        ranks = range(self.arena.ranks)
        ready = lambda: self.attempt >= attempt and all(self.step(rank) >= step for rank in ranks)  # noqa: E731
        over = lambda: self.command.poll() is not None or self.state in FINAL  # noqa: E731
        # Asked once: under asp a rank that goes forward in one step goes back to an earlier one for its backward.
        found = wait_for(lambda: "ready" if ready() else "over" if over() else None, LIMIT)
        if found == "ready":
            self.wildcards += sockets.wildcards([self.pid(rank) for rank in ranks] + self.hostds())
        return found == "ready"

    def until(self, state: str) -> Trial:
        """Wait until the run enters a state."""
        wait_for(lambda: state in [event["state"] for event in self.events()], LIMIT)
        return self

    def hurt(self, what: str) -> None:
        """Note that it was hurt now."""
        self.injuries.append((time.time(), what))

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a rank."""
        self.hurt(f"{signal.Signals(number).name} to rank {rank}")
        os.kill(self.pid(rank), number)

    def do(self, rank: int, code: str) -> None:
        """Let a rank execute Python code in the midst of its next forward."""
        file = self.arena.folder / f"rank-{rank}.do"
        file.with_suffix(".new").write_text(code)
        self.hurt(f"rank {rank}: {code}")
        file.with_suffix(".new").rename(file)

    def end(self) -> Said:
        """What the command that launched it said, once it has ended."""
        said = self.launched = self.arena.ended(self.command, self.began)
        self.said.append(said)
        self._watch_them_go()
        return said

    def _watch_them_go(self) -> None:
        """How long processes of the run outlive its end; at most 5 s are waited for."""
        if self.gone_after is None and self.state in FINAL:
            over = self.events()[-1]["time"]
            deadline = time.monotonic() + 5.0
            while (left := find_strays(self.id)) and time.monotonic() < deadline:
                time.sleep(0.05)
            self.gone_after = float("inf") if left else max(0.0, time.time() - over)

    def vpipe(self, *arguments: str) -> Said:
        """Another command, kept with what is known of this run."""
        self.said.append(self.arena.vpipe(*arguments))
        return self.said[-1]

    def status(self) -> dict[str, Any]:
        """What ``vpipe status`` says."""
        said = self.vpipe("status", self.id, "-o", "json")
        document: dict[str, Any] = json.loads(said.out)
        return document

    def result(self) -> Result:
        return Result.model_validate_json(self.files.result.read_bytes())

    def ends(self, state: str, code: int, rank: int | None = None, cause: str = "") -> Trial:
        """Wait for the end and say how it must be: checked with all else."""
        self.expected = {"state": state, "code": code, "rank": rank, "cause": cause}
        self.end()
        return self

    def ends_as(self, whole: Result) -> Trial:
        """Wait for the end: it must be that of the undisturbed run."""
        self.whole = whole
        return self.ends("succeeded", 0)


@contextmanager
def quietly() -> Iterator[None]:
    """Processes that are gone already are no error."""
    with suppress(ProcessLookupError, PermissionError):
        yield
