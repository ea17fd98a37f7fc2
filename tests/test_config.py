"""cluster.yml: every mistake has its place and its remedy, several come at once, and nothing is silently misread."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpipe_cli import config, explain, starter, yamltree
from vpipe_cli.yamltree import Place
from worker.errors import ConfigError
from worker.spec.cluster import ClusterSpec

M = "machines: [cpu*2]\n"
SECTIONS = "name, machines, engine, model, data, pipeline, optimizer, precision, run"

FORM = {
    "empty": ("", [": is empty; `vpipe init` writes a starter file"]),
    "comments only": ("# nothing\n", [": is empty; `vpipe init` writes a starter file"]),
    "a list": ("- cpu\n", [":1:1: must be `key: value` lines, one of them `machines:`, not a list"]),
    "a word": ("\nhello", [":2:1: must be `key: value` lines, one of them `machines:`, not one value"]),
    "tab": ("run:\n\tsteps: 3", [":2:1: a tab stands here; YAML wants spaces"]),
    "indentation": ("run:\n  steps: 3\n seed: 1", [":3:2: does not fit under the lines above; mend its indentation"]),
    "second colon": ("a: b: c", [":1:5: `:` does not fit here; quote a value that has one, or mend the indentation"]),
    "open quote": ("name: 'x", [":1:7: a quote opens here and is never closed"]),
    "open bracket": ("machines: [cpu", [":1:11: a bracket opens here and is never closed"]),
    "not a pair": ("machines: [cpu]\nname\n", [":3:1: must be `key: value`"]),
    "odd start": ("name: @x", [":1:7: a value cannot begin with this character; put it in quotes"]),
    "two documents": (M + "---\nname: x", [":2:1: a second document starts here; one file describes one job"]),
    "no such character": ('name: "\\UFFFFFFFF"', [":1:5: an escape in the quotes after this names no character"]),
    "half a character": (M + 'name: "\\ud800"', [":2:7: name: an escape in quotes names half a character"]),
    "control character": ("name: a\0b", [":1:8: is not text: it holds the character '\\x00'"]),
    "duplicate key": (M + "name: a\nname: b", [":3:1: name: duplicate key; the first one is in line 2"]),
    "key is a list": (M + "? [a]\n: 1", [":2:3: a key must be one word"]),
    "tag": (M + "run: {steps: !!int 3}", [":2:14: run.steps: tags (!name) are not allowed; remove it"]),
    "alias bomb": (
        "machines: &a [cpu]\nname: &b [*a, *a]",
        [
            ":1:11: machines: anchors (&name) are not allowed; remove it",
            ":2:7: name: anchors (&name) are not allowed; remove it",
            ":2:11: name[0]: aliases (*name) are not allowed; write the value here",
            ":2:15: name[1]: aliases (*name) are not allowed; write the value here",
        ],
    ),
    "deep": ("[" * 40, [":1:33: is nested deeper than 32 levels"]),
    "very long": ("a: [" + "1," * 10_000, [":1:19999: the file holds more than 10000 values"]),
}

VALUES = {
    "unknown key": (M + "nme: x", [":2:1: nme: unknown key; did you mean `name`?"]),
    "unknown key, nothing near": (M + "zzz: x", [f":2:1: zzz: unknown key; the keys here are {SECTIONS}"]),
    "key of another section": (M + "lr: 1", [":2:1: lr: unknown key; did you mean `optimizer.lr`?"]),
    "text for a number": (M + "optimizer: {lr: fast}", [":2:17: optimizer.lr: must be a number, not 'fast'"]),
    "quoted number": (
        M + "run: {steps: '9'}",
        [":2:14: run.steps: must be a whole number, not '9'; remove the quotes"],
    ),
    "float for a count": (M + "run: {steps: 1e3}", [":2:14: run.steps: must be a whole number, not 1e3"]),
    "leading zero": (M + "run: {steps: 022}", [":2:14: run.steps: must be a whole number, not '022'; write 22"]),
    "base 60": (M + "run: {stall_timeout: 12:30}", [":2:22: run.stall_timeout: must be a number, not '12:30'"]),
    "no for false": (
        M + "model: {sentence_order: no}",
        [":2:25: model.sentence_order: must be true or false, not 'no'"],
    ),
    "infinite": (M + "run: {stall_timeout: .inf}", [":2:22: run.stall_timeout: must be a finite number, is .inf"]),
    "zero stages": (M + "pipeline: {stages: 0}", [":2:20: pipeline.stages: must be at least 1, is 0"]),
    "more stages than layers": (
        "machines: [cpu*12]",
        [":1:11: pipeline.stages: is 12 but the model has 10 layers; a stage needs at least one"],
    ),
    "more stages than devices": (
        M + "pipeline: {stages: 4}",
        [":2:20: pipeline.stages: is 4 but machines gives 2 devices; they must be equal"],
    ),
    "partition sum": (
        M + "pipeline:\n  partition: [4, 5]",
        [":3:14: pipeline.partition: adds up to 9 but the model has 10 layers"],
    ),
    "partition length": (
        M + "pipeline: {partition: [4, 3, 3]}",
        [":2:23: pipeline.partition: has 3 entries for 2 stages"],
    ),
    "ratio length": (
        M + "pipeline: {recompute_ratio: [0.5]}",
        [":2:29: pipeline.recompute_ratio: has 1 entry for 2 stages"],
    ),
    "ratio entry": (
        M + "pipeline: {recompute_ratio: [0.5, 2]}",
        [":2:35: pipeline.recompute_ratio[1]: must be at most 1, is 2"],
    ),
    "neither of a union": (
        M + "pipeline: {partition: aut}",
        [":2:23: pipeline.partition: must be auto or a list of whole numbers, not 'aut'; did you mean auto?"],
    ),
    "wrong choice": (
        M + "optimizer: {name: adaw}",
        [":2:19: optimizer.name: must be adamw, adam, nadam or sgd, not 'adaw'; did you mean adamw?"],
    ),
    "one beta": (
        M + "optimizer: {betas: [0.9]}",
        [":2:20: optimizer.betas[1]: has too few entries; entry 2 is missing"],
    ),
    "empty section": (M + "optimizer:", [":2:11: optimizer: must be a group of `key: value` lines, not empty"]),
    "name": (
        M + "name: 'a b'",
        [
            ":2:7: name: cannot be 'a b'; it names the runs: letters, digits, . _ and -, at most 64, "
            "the first a letter or digit"
        ],
    ),
    "no machines": (
        "name: x",
        [
            ':1:1: machines: is missing; devices in rank order: "cpu*2" is two CPU slots here, '
            '"localhost:0,1" two GPUs here'
        ],
    ),
    "machines not a list": ("machines: cpu*2", [":1:11: machines: must be a list, not 'cpu*2'; write ['cpu*2']"]),
    "no device": ("machines: []", [":1:11: machines: must have 1 or more entries, has 0"]),
    "comma splits": (
        "machines: [localhost:0,1]",
        [":1:24: machines[1]: must be text, not 1; an entry that holds a comma needs quotes"],
    ),
    "heads": (M + "model: {num_heads: 3}", [":2:20: model.num_heads: is 3 but must divide hidden_size 128"]),
    "text without path": (
        M + "data: {source: text}",
        [":2:16: data.source: is text, which needs `path`: the file or folder to read"],
    ),
    "path without text": (
        M + "data: {path: x}",
        [":2:14: data.path: belongs to source text, but source is python-stdlib"],
    ),
    "empty path": (M + "data: {source: text, path: ''}", [":2:28: data.path: must not be empty"]),
    "gpipe under asp": (
        M + "pipeline: {schedule: gpipe}",
        [":2:22: pipeline.schedule: is gpipe, which flushes: it needs sync_mode bsp"],
    ),
}

MANY = """\
machines:
  - cpu*2
  - gpu7:0
nme: x
model: {num_heads: 3, dropout: high}
pipeline:
  partition: [4, 4]
  schedule: gpipe
  schedule: 1f1b
optimizer:
  lr: -1
"""


def problems(text: str | bytes, overrides: tuple[str, ...] = ()) -> list[str]:
    """What ``load`` says of a file, each without the file's name; empty when it says nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.yml")
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        try:
            config.load(path, overrides)
        except ConfigError as error:
            assert error.exit_code == 2
            return [str(problem).removeprefix(str(path)) for problem in error.problems]
    return []


def load(tmp_path: Path, text: str, *overrides: str) -> ClusterSpec:
    path = tmp_path / "c.yml"
    path.write_text(text)
    return config.load(path, overrides)


@pytest.mark.parametrize("text, expected", FORM.values(), ids=FORM)
def test_mistakes_of_form(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


@pytest.mark.parametrize("text, expected", VALUES.values(), ids=VALUES)
def test_mistakes_of_value(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_all_mistakes_come_at_once_in_the_order_of_the_file() -> None:
    assert [re.match(r":\d+:\d+: [\w.\[\]]+", problem)[0] for problem in problems(MANY)] == [  # type: ignore[index]
        ":3:5: machines[1]",
        ":4:1: nme",
        ":5:20: model.num_heads",
        ":5:32: model.dropout",
        ":7:14: pipeline.partition",
        ":8:13: pipeline.schedule",
        ":9:3: pipeline.schedule",
        ":11:7: optimizer.lr",
    ]


def test_a_file_of_mistakes_is_cut_short() -> None:
    found = problems(M + "".join(f"k{number}: 1\n" for number in range(1000)))
    assert len(found) == 51
    assert found[-1] == ":52:1: more mistakes begin here; these are too many to list"


@pytest.mark.parametrize(
    "raw, expected",
    [
        (b"name: x\n  \xff\n", ":2:3: is not UTF-8 text: byte 0xff"),
        ("name: x".encode("utf-16"), ":1:1: is not UTF-8 text: byte 0xff"),
        (b"\x7fELF\x02\x01\0", ":1:1: is not text: it holds the character '\\x7f'"),
        (b"#" * 1_000_001, ": is larger than 1 MB; a job is described in a few lines"),
    ],
)
def test_a_file_that_is_no_text(raw: bytes, expected: str) -> None:
    assert problems(raw) == [expected]


@pytest.mark.parametrize(
    "path, expected",
    [
        ("none.yml", "no such file; `vpipe init` writes a starter file"),
        (".", "is a folder; name the file in it"),
        ("/dev/zero", "is not a plain file"),
        ("a\0b", "cannot be read: embedded null byte"),
    ],
)
def test_what_is_no_file(path: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert [(problem.where, problem.message) for problem in caught.value.problems] == [(path, expected)]


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-4", 1e-4), ("-1.5E+3", -1500.0), (".5", 0.5), ("3.", 3.0), (".inf", float("inf")),
        ("0", 0), ("+12", 12), ("-7", -7), ("0x1F", 31), ("0o17", 15), ("022", "022"), ("1_000", "1_000"),
        ("12:30", "12:30"), ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("2024-01-01",) * 2,
        ("true", True), ("FALSE", False), ("tRue", "tRue"), ("null", None), ("~", None), ("", None), ("none", "none"),
        ("9" * 5000, "9" * 5000), ("1e5000", float("inf")), ("\u0661", "\u0661"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert (yamltree.scalar(text), type(yamltree.scalar(text))) == (value, type(value))


def test_defaults_are_worked_out(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    text = "machines: [cpu, cpu*2]\ndata: {source: text, path: corpus}\npipeline: {sync_mode: bsp, stages: null}"
    spec = load(tmp_path, text)
    assert (spec.pipeline.stages, spec.pipeline.minibatches_per_step) == (3, 8)
    assert spec.data.path == str(tmp_path / "corpus")
    assert load(tmp_path, "machines: [cpu]").pipeline.minibatches_per_step is None


def test_a_path_that_is_not_there_is_named_in_full(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"data.path: no such file or folder: '{tmp_path}/corpus'"):
        load(tmp_path, M + "data: {source: text, path: ./corpus}")


@pytest.mark.parametrize(
    "overrides, key, value",
    [
        (["optimizer.lr=1e-4"], "optimizer.lr", 1e-4),
        (["lr=1e-4"], "optimizer.lr", 1e-4),
        (["lr=1", "lr=2"], "optimizer.lr", 2.0),
        (["lr = 2"], "optimizer.lr", 2.0),
        (["partition=[4,6]"], "pipeline.partition", [4, 6]),
        (["recompute_ratio=0.5"], "pipeline.recompute_ratio", 0.5),
        (["clip_grad_norm=null"], "optimizer.clip_grad_norm", None),
        (["run={steps: 5}"], "run.steps", 5),
        (["name=foo"], "name", "foo"),
        (["machines=[cpu*3]"], "pipeline.stages", 3),
    ],
)
def test_overrides(tmp_path: Path, overrides: list[str], key: str, value: object) -> None:
    spec: object = load(tmp_path, M + "optimizer: {lr: wrong, clip_grad_norm: 1}".replace("wrong", "0.1"), *overrides)
    for part in key.split("."):
        spec = getattr(spec, part)
    assert spec == value


def test_an_override_mends_a_mistake_of_the_file() -> None:
    assert problems(M + "optimizer: {lr: fast}") != []
    assert problems(M + "optimizer: {lr: fast}", ("lr=0.1",)) == []


def test_a_path_on_the_command_line_begins_in_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    spec = load(tmp_path, M, "source=text", f"path={Path(__file__).name}")
    assert spec.data.path == __file__


@pytest.mark.parametrize(
    "override, expected",
    [
        ("lr=fast", "optimizer.lr: must be a number, not 'fast'"),
        ("lr", "must be key=value"),
        ("lr=", "optimizer.lr: has no value after `=`"),
        ("lrr=1", "lrr: unknown key; did you mean `optimizer.lr`?"),
        ("zzz=1", "zzz: unknown key; `vpipe config schema` lists all keys"),
        ("=1", "'': unknown key; `vpipe config schema` lists all keys"),
        ("schedule=linear",
         "schedule: is short for `pipeline.schedule` and for `optimizer.schedule`; write one of them"),
        ("run=3", "run: must be a group of `key: value` lines, not 3"),
        ("run.steps.x=3", "run.steps.x: unknown key; did you mean `run.steps`?"),
        ("run={stops: 3}", "run.stops: unknown key; did you mean `steps`?"),
        ("partition=[4,6", "pipeline.partition: a bracket opens here and is never closed"),
        ("lr=*a", "optimizer.lr: aliases (*name) are not allowed; write the value here"),
        ("stages=3", "pipeline.stages: is 3 but machines gives 2 devices; they must be equal"),
    ],
)  # fmt: skip
def test_a_wrong_override_names_itself(override: str, expected: str) -> None:
    assert problems(M, (override,)) == [f"command line: {override}: {expected}"]


def test_an_argument_with_an_equals_sign_is_no_file_unless_it_is(tmp_path: Path) -> None:
    (tmp_path / "a=b.yml").touch()
    assert config.split(["lr=1", "x=2"]) == (Path("cluster.yml"), ["lr=1", "x=2"])
    assert config.split(["c.yml", "lr=1"]) == (Path("c.yml"), ["lr=1"])
    assert config.split([f"{tmp_path}/a=b.yml", "lr=1"]) == (tmp_path / "a=b.yml", ["lr=1"])


@pytest.mark.parametrize(
    "case", ["tab", "alias bomb", "duplicate key", "text for a number", "partition sum", "no device"]
)
def test_the_command_refuses_before_anything_is_written(tmp_path: Path, case: str) -> None:
    text, expected = (FORM | VALUES)[case]
    (tmp_path / "c.yml").write_text(text)
    command = [sys.executable, "-m", "vpipe_cli.app", "launch", "c.yml"]
    environment = {**os.environ, "VPIPE_HOME": str(tmp_path / "home")}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stderr == "error: " + "".join(f"c.yml{line}\n" for line in expected)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert os.listdir(tmp_path) == ["c.yml"]


def test_the_starter_file_names_every_key_and_shows_the_defaults(tmp_path: Path) -> None:
    text = starter.text()
    spec = load(tmp_path, text)
    section, shown = "", {}
    for line in text.splitlines():
        if match := re.match(r"(\w+):|( *)(?:# )?(\w+): +(.+?)(?: +#.*)?$", line):
            section = match[1] or (section if match[2] else "")
            shown[".".join(filter(None, [section, match[3]]))] = (match[4], "# " in line[:4])
    assert set(shown) >= set(explain.names())
    other = {"model.intermediate_size", "data.source", "data.path", "pipeline.minibatches_per_step"}
    for key, (value, commented) in shown.items():
        if commented and key in explain.names() and key not in other:
            assert load(tmp_path, text, f"{key}={value}") == spec, key


VALUE = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["auto", "bsp", "text", "cpu"])
)
KEY = st.sampled_from([name.rpartition(".")[2] for name in explain.names()]) | st.text(max_size=5)
TREE = st.recursive(VALUE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=5))


@settings(deadline=None, max_examples=150)
@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")) | TREE.map(str).map(str.encode))
def test_no_bytes_raise_anything_but_a_config_error(raw: bytes) -> None:
    problems(raw)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(KEY, TREE), st.lists(st.tuples(KEY, st.text() | TREE.map(str)), max_size=2))
def test_no_values_raise_anything_but_a_config_error(
    values: dict[str, object], overrides: list[tuple[str, str]]
) -> None:
    problems(yamltree.dump({"machines": ["cpu"], **values}), tuple(f"{key}={value}" for key, value in overrides))


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.text(), TREE.filter(lambda value: value == value), min_size=1))
def test_what_is_dumped_is_read_the_same(values: dict[str, object]) -> None:
    node, mistakes = yamltree.parse(yamltree.dump(values), lambda line, column: Place((0, line, column), ""))
    assert mistakes == [] and node is not None
    assert repr(yamltree.plain(node)) == repr(values)
