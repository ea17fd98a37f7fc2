"""Freed memory stays with a rank of CPU tensors, which will want as much again for the next minibatch."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
LARGE = 1 << 30


def keep_freed() -> bool:
    """Have malloc reuse what was freed, of blocks up to a gigabyte, instead of giving it back to the kernel.

    By itself glibc maps every block over 32 MiB anew and trims its heap, so that activations cost thousands of page
    faults a minibatch. The peak of memory stays what it is; it is held longer.

    Returns whether this machine's malloc takes such wishes: glibc's does, others are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGE)) and bool(mallopt(TRIM_THRESHOLD, 2 * LARGE - 1))
