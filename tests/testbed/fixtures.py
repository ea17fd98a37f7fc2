"""Hosts for tests: ``first, second = testbed.take(2)``. Imported by tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed.network import Testbed, lacks


@pytest.fixture(scope="session")
def _testbed() -> Iterator[Testbed]:
    if missing := lacks():
        pytest.skip(f"a testbed needs {missing}")
    made = Testbed()
    yield made
    made.close()


@pytest.fixture
def testbed(_testbed: Testbed) -> Iterator[Testbed]:
    """Hosts on demand, fresh for every test; what one test did to them, killed or cut, no other sees."""
    yield _testbed
    _testbed.reset()
