"""Tensors as safetensors files: written without a copy in memory, hashed on the way, and on the disk when it returns.

The format is a length, a JSON header and the bytes; the library writes it only by way of copies of everything. Reading
is the library's, from the very bytes that were hashed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from worker.checkpoint import verify
from worker.checkpoint.manifest import FileEntry
from worker.errors import CheckpointError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write(path: Path, tensors: Mapping[str, Tensor], rank: int) -> FileEntry:
    """Write a new file, mode 0600, and read it back.

    Args:
        tensors: contiguous and on the CPU; nobody may write to them meanwhile.
    Raises:
        OSError: no room, no permission, or there is such a file.
    """
    # Widest first, as readers that map the file like to find them.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    total, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        for block in (_header(tensors, order), *(_bytes(tensors[name]) for name in order)):
            total.update(block)
            size += len(block)
            while block:
                block = block[file.write(block) or 0 :]
        os.fsync(descriptor)
    entry = FileEntry(bytes=size, sha256=total.hexdigest(), rank=rank)
    verify.check(path.parent, path.name, entry)
    return entry


def read(path: Path, name: str, entry: FileEntry) -> dict[str, Tensor]:
    """The tensors of a file that is what was written. Raises CheckpointError."""
    data = verify.content(path, name, entry)
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # its own kind of error, and ValueError
        raise CheckpointError(f"{path / name} is no safetensors file ({error})") from error


def _header(tensors: Mapping[str, Tensor], order: list[str]) -> memoryview:
    entries, start = {}, 0
    for name in order:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(len(text).to_bytes(8, "little") + text)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else memoryview(b"")
