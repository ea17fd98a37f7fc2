"""Sentences with their translations, and pictures with their class, as a source reads them; bad ones by their place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

from tests.test_sources import RESNET, SIZES, failure, open_source
from worker.data.base import IGNORED
from worker.data.tokenizer import CLS, PAD, SEP

FIGURES = Path(matplotlib.get_data_path()) / "images"
"""Icons that matplotlib ships: real pictures, drawn by people, of many sizes and with transparency."""

ENGLISH = ("a house", "the small house", "a small cat", "the cat sees a house", "the house is small") * 4
GERMAN = ("ein Haus", "das kleine Haus", "eine kleine Katze", "die Katze sieht ein Haus", "das Haus ist klein") * 4
TRANSLATOR = {"name": "transformer"}


def parallel(
    folder: Path, one: tuple[str, ...] = ENGLISH, other: tuple[str, ...] = GERMAN, **given: Any
) -> dict[str, Any]:
    """Two files, and the section that reads them."""
    (folder / "en").write_text("".join(f"{line}\n" for line in one))
    (folder / "de").write_text("".join(f"{line}\n" for line in other))
    return {"source": "parallel", "path": str(folder / "en"), "target_path": str(folder / "de"), **SIZES, **given}


def test_pairs_are_framed_and_shifted(tmp_path: Path) -> None:
    source = open_source(tmp_path, TRANSLATOR, **parallel(tmp_path))
    for number in range(10):
        minibatch = source.minibatch(number)
        labels, target = minibatch.targets["labels"], minibatch.inputs["target_ids"]
        assert bool((target[:, 0] == CLS).all())
        for row, shifted in zip(labels, target, strict=True):
            real = row[row != IGNORED]
            assert int(real[-1]) == SEP and torch.equal(shifted[1 : len(real)], real[:-1])
        ids, mask = minibatch.inputs["source_ids"], minibatch.inputs["source_mask"]
        assert torch.equal(ids != PAD, mask) and bool((ids[torch.arange(2), mask.sum(1) - 1] == SEP).all())


BAD_PAIRS = {
    "empty line": ((*ENGLISH, ""), (*GERMAN, "leer"), "en:21: the line is empty"),
    "too long": (
        (*ENGLISH, "house " * 30),
        (*GERMAN, "lang"),
        "en:21: has 30 tokens and its end; data.sequence_length is 16",
    ),
    "one more": ((*ENGLISH, "more"), GERMAN, "de ends before line 21, which the other file has"),
    "empty files": ((), (), "en and de have no pair of lines that could be used"),
}


@pytest.mark.parametrize(("one", "other", "message"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_a_bad_pair_is_named(one: tuple[str, ...], other: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert failure(tmp_path, TRANSLATOR, **parallel(tmp_path, one, other)).endswith(message)


def test_bad_pairs_are_left_out_and_counted(tmp_path: Path) -> None:
    one, other = (*ENGLISH, "", "house " * 30), (*GERMAN, "leer", "lang")
    source = open_source(tmp_path, TRANSLATOR, **parallel(tmp_path, one, other, on_bad_record="skip"))
    assert (source.skipped, len(source)) == (2, 20)  # type: ignore[arg-type]


def pictures(folder: Path) -> dict[str, Any]:
    """Icons in two classes, and the section that reads them."""
    for label, names in {"arrows": ("back", "forward"), "papers": ("filesave", "subplots")}.items():
        (folder / "icons" / label).mkdir(parents=True)
        for name in names:
            (folder / "icons" / label / f"{name}.png").write_bytes((FIGURES / f"{name}_large.png").read_bytes())
    return {"source": "images", "path": str(folder / "icons"), "image_size": 16, "classes": 2, "minibatch_size": 2}


def test_pictures_are_read_with_their_class(tmp_path: Path) -> None:
    source = open_source(tmp_path, RESNET, **pictures(tmp_path))
    epoch = [source.minibatch(number) for number in range(2)]
    assert sorted(label for each in epoch for label in each.targets["labels"].tolist()) == [0, 0, 1, 1]
    assert epoch[0].inputs["pixels"].shape == (2, 3, 16, 16) and epoch[0].inputs["pixels"].std() > 0.1
    again = open_source(tmp_path, RESNET, **pictures(tmp_path / "again"))
    assert torch.equal(again.minibatch(1).inputs["pixels"], epoch[1].inputs["pixels"])
    assert source.baseline_loss == pytest.approx(math.log(2))


def test_bad_pictures_are_named_or_left_out(tmp_path: Path) -> None:
    given = pictures(tmp_path)
    bad = tmp_path / "icons" / "papers" / "torn.png"
    bad.write_bytes((FIGURES / "home_large.png").read_bytes()[:300])
    assert failure(tmp_path, RESNET, **given).startswith(f"{bad}: cannot be read as a picture (")
    source = open_source(tmp_path, RESNET, on_bad_record="skip", **{**given, "minibatch_size": 5})
    minibatch = source.minibatch(0)
    assert minibatch.counts == (4,) and source.skipped == 1
    assert sorted(minibatch.targets["labels"].tolist()) == [IGNORED, 0, 0, 1, 1]


def test_a_number_of_classes_that_does_not_fit_is_told(tmp_path: Path) -> None:
    given = {**pictures(tmp_path), "classes": 3}
    message = failure(tmp_path, RESNET, **given)
    assert message == f"{tmp_path / 'icons'} has 2 folders (arrows, papers), but data.classes is 3"
    (tmp_path / "icons" / "empty").mkdir()
    assert failure(tmp_path, RESNET, **given) == f"{tmp_path / 'icons' / 'empty'} has no pictures"
