"""What people and programs write where it may do harm: names, arguments, output; and files with mistakes."""

from __future__ import annotations

import json
import random

from tests import canary
from tests.faults.arena import ENDLESS, Arena, Trial
from tests.faults.case import case

EVIL = r"$(touch X) `touch X`; touch X | touch X & 'q' \" \\ -- -rf * ~ {a,b} %s"


@case("S2", "shell metacharacters and quotes in every string of cluster.yml", "literal, or refused", "I8")
def s2(arena: Arena, chance: random.Random) -> list[Trial]:
    evil = json.dumps(EVIL + "\nnew line")
    trial = arena.launch(f"model.args={{depth: 6, label: {evil}}}", "run.steps=5")
    trial.ends("succeeded", 0)
    for key in ("name", "model.entry", "data.source", "machines", "python", "engine"):
        said = arena.vpipe("launch", f"{key}={'[' + evil + ']' if key == 'machines' else evil}", "run.steps=5")
        assert said.code in (2, 104, 105) or key == "python", f"{key}: {said.text}"
        assert "Traceback" not in said.text and "internal error" not in said.text, said.text
    return [trial]


@case("S3", "run names `../x`, absolute, 300 characters, NUL", "refused, within bounds", "I8 I10")
def s3(arena: Arena, chance: random.Random) -> list[Trial]:
    names = ["../x", "/etc/passwd", "x" * 300, "..", "a/b", "-rf", "a\nb", "\x1b[2J"]
    for command in ("status", "logs", "stop", "rm", "resume"):
        name = chance.choice(names)
        said = arena.vpipe(command, "--", name)
        assert said.code in (2, 102), f"{command} {name!r}: {said.code} {said.text}"
        assert len(said.text.splitlines()) < 10 and "\x1b" not in said.text, said.text
    for name in names:
        said = arena.vpipe("launch", f"name={json.dumps(name)}")
        assert said.code == 2 and "Traceback" not in said.text, said.text
    return []


@case("S4", "a secret in the environment of every command", "in no file, argv or output", "I6")
def s4(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch(*ENDLESS).until_step(3)
    assert canary.in_argv() == []
    trial.vpipe("status", trial.id)
    trial.vpipe("logs", trial.id, "-o", "jsonl")
    trial.kill(arena.middle)
    trial.ends("failed", 100, arena.middle, "SIGKILL")
    dumped = trial.vpipe("debug-dump", trial.id, "--to", str(arena.folder / "kept-dump.tar.gz"))
    assert dumped.code == 0, dumped.text
    return [trial]


@case("S5", "a rank prints markup, OSC 52, CSI 2J, C1, bidi", "shown harmless; nobody stumbles", "I4 I7")
def s5(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch("run.steps=40").until_step(3)
    evil = "[/red] [link=x]y \x1b]52;c;ZXZpbA==\x07 \x1b[2J \x1b]0;t\x07 \x9b31m \u202egnp.exe \x08 end"
    trial.do(arena.middle, f"print({evil!r})")
    trial.ends("succeeded", 0)
    trial.vpipe("logs", trial.id)
    shown = trial.vpipe("logs", trial.id, "-o", "jsonl")
    assert "[/red]" in shown.out and "[/red]" in trial.launched.text, "the line was not shown"
    assert b"\x1b[2J" in trial.files.log(1, arena.middle).read_bytes(), "the log is not as it was written"
    return [trial]


@case("S6", "all sockets of a run's processes are looked at", "none listens on all addresses", "S6")
@case("S7", "every command runs with umask 000", "folders 0700, files 0600", "S7")
def s67(arena: Arena, chance: random.Random) -> list[Trial]:
    return [arena.launch("run.steps=20").until_step(3).ends("succeeded", 0)]


@case("B1", "YAML with an unknown key, a wrong type, a duplicate key", "all at once with line:column, exit 2", "I9")
def b1(arena: Arena, chance: random.Random) -> list[Trial]:
    (arena.folder / "kept-bad.yml").write_text("name: a\nmachines: [cpu*2]\nrun: {stepps: 3, seed: x}\nname: b\n")
    said = arena.vpipe("launch", "kept-bad.yml")
    assert said.code == 2, said.text
    for where in (":3:7", ":4:1"):
        assert f"kept-bad.yml{where}" in said.err, said.err
    return []


@case("B3", "0 stages, more stages than layers, a duplicate device, port 70000", "refused before any SSH", "I9")
def b3(arena: Arena, chance: random.Random) -> list[Trial]:
    asked = ["pipeline.stages=0", "machines=[cpu*40]", "machines=['h1:0', 'h1:0']", "ssh.port=70000"]
    for override in asked:
        said = arena.vpipe("launch", override)
        assert said.code in (2, 104) and "Traceback" not in said.text, f"{override}: {said.code} {said.text}"
    assert not list(arena.home.glob("runs/*")), "a run was made"
    return []
