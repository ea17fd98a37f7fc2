"""What every test shares: one thread, as a rank has, so that sums come out alike and forked ranks are safe."""

from __future__ import annotations

import signal

import pytest
import torch

from tests.apptainer.fixtures import image_base, small_image, tiny_base, worker_image
from tests.testbed.fixtures import _testbed, testbed

__all__ = ["_testbed", "image_base", "small_image", "testbed", "tiny_base", "worker_image"]

SLOW = ("slurm/", "cluster/", "test_faults", "test_real_input", "test_main_job", "test_sweep_job", "test_start")
"""Files that begin first, so that no worker is left alone with one at the end."""

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would commands


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files: the slowest first, the others as they were found."""
    names = [f"tests/{name}" for name in SLOW]
    items.sort(key=lambda item: next((n for n, name in enumerate(names) if item.nodeid.startswith(name)), len(names)))
