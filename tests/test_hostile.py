"""Every text of cluster.yml: what is put there is taken as it is, or refused with its place; nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import CASES, EVIL, STRINGS, Case, keys
from vpipe_cli import config, yamltree
from worker.errors import ConfigError

NAMED = [
    pytest.param(key, case, id=f"{key}-{number}") for key, cases in CASES.items() for number, case in enumerate(cases)
]


def test_no_key_that_takes_text_is_left_out() -> None:
    assert set(keys()) == set(CASES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where files of all these names are, so that a path is refused for what it is and not for what is missing."""
    made = tmp_path_factory.mktemp("hostile")
    for name in [*STRINGS, "x", "x.sif", "x.def"]:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        if name != "..":
            (made / name).touch()
    return made


def load(folder: Path, case: Case, text: str) -> dict[str, Any]:
    """The job with the text in its place, as values."""
    document = {"machines": ["h1:cpu"], **case.write(text)}
    (folder / "cluster.yml").write_text(yamltree.dump(document))
    return config.load(folder / "cluster.yml").model_dump()


def leaves(value: object) -> Iterator[object]:
    """Every key and value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


@pytest.mark.parametrize(("key", "case"), NAMED)
def test_taken_as_it_is_or_refused_with_its_place(folder: Path, key: str, case: Case) -> None:
    load(folder, case, case.right)
    field = key.partition(".")[2]
    for text in STRINGS:
        try:
            found = set(map(repr, leaves(load(folder, case, text))))
        except ConfigError as error:
            (problem,) = error.problems
            assert re.fullmatch(rf"{re.escape(str(folder))}/cluster\.yml:\d+:\d+", problem.where), (text, problem)
            assert field in problem.key.replace("[", ".").split("."), (text, problem)
            assert error.message.isprintable(), (text, problem)
        else:
            as_path = os.path.abspath(folder / text)
            assert repr(text) in found or repr(as_path) in found, text


FREE = [
    "ClusterSpec.python",
    "SshSpec.config",
    "EntrySpec.args",
    "EntrySpec.code",
    "DataSpec.path",
    "DataSpec.text_key",
]


@pytest.mark.parametrize("key", FREE)
def test_what_names_files_and_labels_takes_all_of_it(folder: Path, key: str) -> None:
    """Not everything is refused."""
    load(folder, CASES[key][0], EVIL)
