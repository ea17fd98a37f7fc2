"""A Slurm of two nodes for tests: ``slurm``. Imported by the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Slurm, lacks


@pytest.fixture(scope="session")
def _slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if missing := lacks():
        pytest.skip(f"a Slurm to test with needs {missing}")
    try:
        made = Slurm(tmp_path_factory.mktemp("slurm"))
    except AssertionError as error:  # another program may have taken a port before its daemon did
        print(error)
        made = Slurm(tmp_path_factory.mktemp("slurm"))
    yield made
    made.close()


@pytest.fixture
def slurm(_slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """Two idle nodes, named by SLURM_CONF in the environment; no job of a test outlives it."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    for name, value in _slurm.env.items():
        monkeypatch.setenv(name, value)
    yield _slurm
    _slurm.clear()
