"""What a rank does with memory: what is freed stays for the next minibatch, and what is imported is let be."""

from __future__ import annotations

import ctypes
import gc

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
LARGE = 1 << 30
PYTHONS = gc.get_threshold()


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


def begin() -> None:
    """Look for garbage rarely until ``settle``.

    Modules and models make some 200 000 objects that stay; to look through them again and again takes a fifth of a
    rank's start.
    """
    gc.set_threshold(50_000)


def settle() -> None:
    """What is there now stays: never look through it for garbage again, and through what comes as Python does."""
    gc.freeze()
    gc.set_threshold(*PYTHONS)
