"""Pictures in a folder for each class, scaled, cut and normalised as is usual for ImageNet."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from worker.data.bad_records import BadRecords
from worker.data.base import IGNORED, Minibatch, Signature
from worker.data.corpus import files_below
from worker.data.order import PICTURE, Order, random_words
from worker.errors import DataError
from worker.spec.data import ImagesSpec

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, from 0 to 1."""

MARGIN = 256 / 224
"""Without augmentation the shorter side is scaled to this times the size, and the middle is cut out."""

SMALLEST_SHARE = 0.25
"""With augmentation a square of at least this share of the picture's shorter side squared is cut out."""


class Pictures:
    """Endless minibatches of pictures with their class; a Source. Classes are numbered in the order of their folders.

    A picture that cannot be read, where those are to be left out, is a row of zeros with nothing to predict: so all
    other rows stay where they are.

    Raises:
        DataError: the folders are not as many as ``classes``, one has no picture, or Pillow is missing.
    """

    def __init__(self, spec: ImagesSpec, seed: int, signature: Signature) -> None:
        try:
            import PIL.Image  # noqa: F401
        except ImportError:
            raise DataError("source images needs the Pillow package", "pip install 'vpipe[images]'") from None
        root = Path(spec.path).expanduser()
        self.files, self._labels, counts = _list(root, spec.classes)
        shares = np.array(counts) / sum(counts)
        self.baseline_loss = float(-(shares * np.log(shares)).sum())
        self.signature = signature
        self._spec, self._seed = spec, seed
        self._bad = BadRecords(spec.on_bad_record)
        self._order = Order(seed, len(self), spec.minibatch_size)

    def __len__(self) -> int:
        """Examples per epoch."""
        return len(self.files)

    @property
    def skipped(self) -> int:
        """Pictures that could not be read so far."""
        return self._bad.count

    def minibatch(self, number: int) -> Minibatch:
        """Minibatch ``number`` >= 0: the same tensors whenever and wherever it is asked for."""
        rows = self._order.rows(number)
        size = self._spec.image_size
        pixels = np.zeros((len(rows), 3, size, size), dtype=np.float32)
        labels = np.full(len(rows), IGNORED, dtype=np.int64)
        for row, (example, epoch) in enumerate(rows):
            try:
                pixels[row] = self._read(example, epoch)
                labels[row] = self._labels[example]
            except (OSError, ValueError, SyntaxError) as error:
                self._bad.found(str(self.files[example]), f"cannot be read as a picture ({error})")
        count = int((labels != IGNORED).sum())
        return Minibatch({"pixels": torch.from_numpy(pixels)}, {"labels": torch.from_numpy(labels)}, (count,))

    def _read(self, example: int, epoch: int) -> NDArray[np.float32]:
        from PIL import Image

        with Image.open(self.files[example]) as opened:
            picture = opened.convert("RGB")
        words = random_words(self._seed, PICTURE, example, epoch, 4) if self._spec.augment else None
        cut = _cut(picture, words, self._spec.image_size)
        mirrored = words is not None and bool(words[3] >> np.uint64(63))
        array = np.asarray(cut, dtype=np.float32)[:, ::-1] if mirrored else np.asarray(cut, dtype=np.float32)
        normal = (array / 255 - np.array(MEAN, dtype=np.float32)) / np.array(DEVIATION, dtype=np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))


def _cut(picture: Image, words: NDArray[np.uint64] | None, size: int) -> Image:
    """A square of ``picture``, scaled to ``size``: the middle, or one at random."""
    from PIL.Image import Resampling

    shorter = min(picture.size)
    if words is None:
        side = shorter / MARGIN
        left, top = ((length - side) / 2 for length in picture.size)
    else:
        share, x, y = (float(word >> np.uint64(11)) / 2**53 for word in words[:3])
        side = shorter * math.sqrt(SMALLEST_SHARE + share * (1 - SMALLEST_SHARE))
        left, top = (at * (length - side) for at, length in zip((x, y), picture.size, strict=True))
    return picture.resize((size, size), Resampling.BILINEAR, box=(left, top, left + side, top + side))


def _list(root: Path, classes: int) -> tuple[list[Path], list[int], list[int]]:
    """All pictures, the class of each, and how many each class has."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder", "data.path is the folder with a folder for each class")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) != classes:
        names = ", ".join(folder.name for folder in folders[:5]) + (" ..." if len(folders) > 5 else "")
        message = f"{root} has {len(folders)} folders ({names or 'none'}), but data.classes is {classes}"
        raise DataError(message, "there must be one folder for each class")
    files: list[Path] = []
    labels: list[int] = []
    for number, folder in enumerate(folders):
        found = [path for path in files_below(folder, "") if path.suffix.lower() in SUFFIXES]
        if not found:
            raise DataError(f"{folder} has no pictures", f"those are files that end in {', '.join(SUFFIXES)}")
        files += found
        labels += [number] * len(found)
    return files, labels, np.bincount(labels).tolist()
