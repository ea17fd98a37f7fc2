"""What holds whatever happens: each checker reads what a run has left and says what is wrong with it."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path

from tests import canary
from tests.faults.arena import LIMIT, Said, Trial
from worker.checkpoint import layout, verify
from worker.spec.files import read_events
from worker.spec.records import FINAL

AFTER: dict[str, set[str]] = {
    "": {"planning"},
    "planning": {"shipping", "starting", "failed", "stopped", "lost"},
    "shipping": {"starting", "failed", "stopped", "lost"},
    "starting": {"running", "restarting", *FINAL},
    "running": {"restarting", *FINAL},
    "restarting": {"running", "restarting", *FINAL},
}
"""The states that may follow each state; nothing follows a final one."""

MOST_LINES = 25
STAMPED = re.compile(r"^\d+/s\d+ \S+ +\| ", re.MULTILINE)
"""A line of a rank's log, as ``launch`` shows it."""


def no_two_attempts_at_once(trial: Trial) -> list[str]:
    """I1: attempts of a run never overlap."""
    wrong = []
    ends: dict[int, float] = {}
    for attempt in range(1, trial.attempt + 1):
        exits = [json.loads(path.read_bytes()) for path in trial.files.attempt(attempt).glob("rank-*.exit.json")]
        began = min((each["started"] for each in exits), default=0.0)
        if began and began < ends.get(attempt - 1, 0.0):
            wrong.append(f"attempt {attempt} began before attempt {attempt - 1} had ended")
        ends[attempt] = max((each["ended"] for each in exits), default=0.0)
    starts = [(event["attempt"], event["rank"]) for event in trial.events("rank-start")]
    if len(starts) != len(set(starts)):
        wrong.append("a rank was started twice in one attempt")
    return wrong


def nothing_is_left(trial: Trial) -> list[str]:
    """I2: 5 s after the end no process has the run's token."""
    return ["5 s after the end processes of the run are alive"] if trial.gone_after == float("inf") else []


def history_is_legal(trial: Trial) -> list[str]:
    """I3: every line of the history is whole, every change of state is legal, a final state is the last."""
    lines = trial.files.events.read_text().splitlines()
    wrong = [] if len(lines) == len(list(read_events(trial.files.events))) else ["the history has a broken line"]
    before = ""
    for event in trial.events():
        if event["state"] not in AFTER.get(before, set()):
            wrong.append(f"{before or 'nothing'} is followed by {event['state']}")
        before = event["state"]
    times = [event["time"] for event in read_events(trial.files.events)]
    return wrong + ([] if times == sorted(times) else ["the history is not in order of time"])


def logs_are_shown_once(trial: Trial) -> list[str]:
    """I4: what ``logs`` or ``launch`` showed of a rank is what its log has, in order, without gap or repetition."""
    wrong = []
    for said in trial.said:
        if said.arguments[0] != "logs" or "jsonl" not in said.arguments or said.code != 0:
            continue
        shown: dict[tuple[int, int], list[str]] = {}
        for record in map(json.loads, said.out.splitlines()):
            shown.setdefault((record.get("attempt", 1), record["rank"]), []).append(record["text"])
        for (attempt, rank), texts in shown.items():
            lines = trial.files.log(attempt, rank).read_bytes().split(b"\n")[:-1]
            there = [line.split(b" ", 2)[2].decode(errors="replace") for line in lines]
            there = there if "-f" in said.arguments else there[: len(texts)]  # which may have grown since
            if [clean(text) for text in texts] != [clean(text) for text in there]:
                wrong.append(
                    f"the log of rank {rank} was shown otherwise than it is ({len(texts)}, {len(there)} lines)"
                )
    return wrong


def clean(text: str) -> str:
    """What is left of a line for comparing: its printable ASCII."""
    return re.sub(r"[^ -~]", "", text)


def saved_and_equal(trial: Trial) -> list[str]:
    """I5: the newest checkpoint is whole; weights and losses are those of the undisturbed run, bit for bit."""
    wrong = []
    if steps := layout.steps(trial.files.checkpoints):
        wrong += verify.problems(layout.committed(trial.files.checkpoints, steps[0]))
    if trial.whole is not None and trial.files.result.exists():
        found = trial.result()
        if found.weights_sha256 != trial.whole.weights_sha256:
            wrong.append(f"weights {found.weights_sha256[:12]}, undisturbed {trial.whole.weights_sha256[:12]}")
        if found.loss != trial.whole.loss:
            wrong.append(f"loss {found.loss}, undisturbed {trial.whole.loss}")
    return wrong


def no_secret_is_out(trial: Trial) -> list[str]:
    """I6: the secret in the environment of every command is in no file, argv or output."""
    return canary.leaks(trial.arena.home, *(said.text for said in trial.said))


def no_foreign_escape(trial: Trial) -> list[str]:
    """I7: no control character but newline and tab comes out where output is no terminal."""
    found = {
        said.arguments[0]: re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", said.text) for said in trial.said
    }
    return [f"`{name}` printed {match[0]!r}" for name, match in found.items() if match]


def nothing_else_changed(trial: Trial) -> list[str]:
    """I8: the user's home is as it was, and beside cluster.yml lies nothing that was not there."""
    own = trial.arena.sentinel
    allowed = re.compile(r"\.bashrc|\.(cache|config)(/matplotlib(/.*)?)?")  # matplotlib keeps its list of fonts there
    wrong = [f"{path} is new" for path in own.rglob("*") if not allowed.fullmatch(str(path.relative_to(own)))]
    known = re.compile(r"home|cache|sentinel|cluster\.yml|victim\.py|__pycache__|(out|err|kept)-.*|rank-\d+\.(do|new)")
    wrong += [f"{path.name} is new" for path in trial.arena.folder.iterdir() if not known.fullmatch(path.name)]
    return wrong


def failure_is_told(trial: Trial) -> list[str]:
    """I9: the run ended as it should; the error has rank, stage, host and cause on one screen, and no traceback."""
    expected = trial.expected
    launched = trial.launched
    if not expected or launched is None:
        return []
    wrong = [] if trial.state == expected["state"] else [f"it ended {trial.state}, not {expected['state']}"]
    if launched.code not in (expected["code"], -9):
        wrong.append(f"exit code {launched.code}, not {expected['code']}: {launched.text[-600:]}")
    if expected["rank"] is not None:
        failure = trial.events()[-1].get("first_failure") or {}
        if failure.get("rank") != expected["rank"] or not re.search(expected["cause"], failure.get("cause", "")):
            wrong.append(f"named as first failure: {failure}")
        wrong += _screen(launched, expected["rank"]) if launched.code is not None and launched.code >= 0 else []
    return wrong


def _screen(said: Said, rank: int) -> list[str]:
    own = [line for line in said.text.splitlines() if line.strip() and not STAMPED.match(line)]
    about = [line for line in own if not re.match(r"step \d+/", line)]
    wrong = [] if f"rank {rank} (localhost, stage " in said.text else [f"rank {rank} is not named: {said.text[-400:]}"]
    wrong += [f"{len(about)} lines instead of a screen"] if len(about) > MOST_LINES + 30 else []
    return wrong + (["a traceback of vpipe's own"] if "Traceback" in "\n".join(about[:MOST_LINES]) else [])


def every_command_ended(trial: Trial) -> list[str]:
    """I10: no command hangs."""
    return [f"`{' '.join(said.arguments)}` did not end in {LIMIT:g} s" for said in trial.said if said.code is None]


def nobody_listens_everywhere(trial: Trial) -> list[str]:
    """S6: no process of the run takes connections on all addresses."""
    return [f"listens on all addresses: {found}" for found in sorted(set(trial.wildcards))]


def only_the_user_may_read(trial: Trial) -> list[str]:
    """S7: folders 0700 and files 0600, though every command runs with umask 000."""
    paths = [trial.arena.home, *trial.arena.home.rglob("*")]
    return [f"mode {_mode(path):o}: {path}" for path in paths if path.exists() and _mode(path) & 0o077]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode) if not path.is_symlink() else 0


CHECKERS: dict[str, Callable[[Trial], list[str]]] = {
    "I1": no_two_attempts_at_once,
    "I2": nothing_is_left,
    "I3": history_is_legal,
    "I4": logs_are_shown_once,
    "I5": saved_and_equal,
    "I6": no_secret_is_out,
    "I7": no_foreign_escape,
    "I8": nothing_else_changed,
    "I9": failure_is_told,
    "I10": every_command_ended,
    "S6": nobody_listens_everywhere,
    "S7": only_the_user_may_read,
}


def check(trial: Trial) -> list[str]:
    """Everything that is wrong with what a run has left, each with the invariant's name."""
    return [f"{name}: {problem}" for name, checker in CHECKERS.items() for problem in checker(trial)]
