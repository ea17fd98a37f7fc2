"""Random numbers keyed by what they are for, so that no partition, order or recomputation changes one of them."""

from __future__ import annotations

import hashlib

import torch


def key(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def seed_layer(seed: int, minibatch: int, layer: int, device: torch.device) -> None:
    """Set the generator that dropout draws from, as it must stand when ``layer`` meets ``minibatch``."""
    value = key(seed, minibatch, layer)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)
