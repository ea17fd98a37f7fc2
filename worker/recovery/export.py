"""`python -m worker.recovery.export CHECKPOINT FILE`: a checkpoint's weights as one safetensors file.

Under the names that others publish such a model with, where there are any; otherwise under vpipe's own.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from torch import Tensor

from worker.checkpoint import manifest
from worker.errors import CheckpointError, ModelError, VpipeError
from worker.models import names
from worker.recovery import tensors
from worker.spec.cluster import ClusterSpec


def weights(path: Path) -> dict[str, Tensor]:
    """All parameters of the checkpoint in ``path`` by full name, tied ones once; every file verified.

    Raises CheckpointError.
    """
    found = manifest.read(path)
    every: dict[str, Tensor] = {}
    for file in sorted({entry.file for entry in found.parameters.values()}):
        every |= tensors.read(path, file, found.files[file])
    if missing := found.parameters.keys() - every.keys():
        raise CheckpointError(f"{path} lacks {min(missing)}, which its manifest names")
    return {name: every[name] for name in found.parameters}


def published(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The same under published names; whether there are any for this model."""
    own = weights(path)
    try:
        spec = ClusterSpec.model_validate({**manifest.read(path).spec, "machines": ["cpu"]})
        return names.published(spec.model, own), True
    except (ModelError, ValueError):  # nobody publishes it, or a vpipe with other keys wrote it
        return own, False


def main() -> int:
    """Export; says on stdout how the weights are called."""
    parser = argparse.ArgumentParser(prog="python -m worker.recovery.export")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("file", help="or, ending with /, a folder that from_pretrained opens")
    arguments = parser.parse_args()
    if arguments.file.endswith("/"):
        return _folder(arguments.checkpoint, Path(arguments.file))
    arguments.file = Path(arguments.file)
    aside = arguments.file.with_name(f".{arguments.file.name}.{os.getpid()}")
    try:
        found, are_published = published(arguments.checkpoint)
        tensors.write(aside, {name: tensor.contiguous() for name, tensor in found.items()}, 0)
        os.replace(aside, arguments.file)
    except (VpipeError, OSError) as error:
        aside.unlink(missing_ok=True)
        print(f"{error}", file=sys.stderr)
        return CheckpointError.exit_code if isinstance(error, VpipeError) else 1
    print("published" if are_published else "own")
    return 0


def _folder(checkpoint: Path, folder: Path) -> int:
    try:
        spec = ClusterSpec.model_validate({**manifest.read(checkpoint).spec, "machines": ["cpu"]})
        names.write_folder(folder, spec, weights(checkpoint))
    except (VpipeError, OSError, ValueError) as error:
        print(f"{error}", file=sys.stderr)
        return CheckpointError.exit_code if isinstance(error, VpipeError) else 1
    print("published")
    return 0


if __name__ == "__main__":
    sys.exit(main())
