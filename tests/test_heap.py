"""A rank keeps the memory that its tensors leave, so that the next minibatch's need no fresh pages."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from worker.heap import keep_freed
if sys.argv[1] == "kept" and not keep_freed():
    sys.exit(3)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def minibatch():
    return [torch.ones(12_000_000) for _ in range(3)]  # 48 MB each
for _ in range(12):
    minibatch()
before = faults()
for _ in range(4):
    minibatch()
print(faults() - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, timeout=100)
    if done.returncode == 3:
        pytest.skip("another malloc than glibc's")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    assert faults("kept") < faults("as it comes") / 10


def test_what_a_rank_begins_with_is_never_looked_through_for_garbage() -> None:
    code = """
import gc
from worker import heap
before = gc.get_threshold()
heap.begin()
assert gc.isenabled() and gc.get_threshold() > before
import torch
heap.settle()
assert gc.get_freeze_count() > 100_000, gc.get_freeze_count()
assert len(gc.get_objects()) < 10_000, len(gc.get_objects())
assert gc.isenabled() and gc.get_threshold() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
