"""Every source: each record once an epoch, whatever the replicas and wherever a run resumes; bad input by its place."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.texts import write_text
from worker import data
from worker.data.bad_records import BadRecords
from worker.data.base import IGNORED, Source
from worker.data.causal_lm import CausalLM, Stream
from worker.data.order import Order
from worker.data.store import Shards, TokenisedCorpus
from worker.data.tokenizer import PAD, SEP
from worker.errors import DataError
from worker.prefetch import numbers
from worker.spec.cluster import ClusterSpec

RESNET = {"name": "resnet50"}


def spec_of(model: dict[str, Any], **given: Any) -> ClusterSpec:
    return ClusterSpec.model_validate({"machines": ["cpu"], "model": model, "data": given})


def open_source(folder: Path, model: dict[str, Any], **given: Any) -> Source:
    return data.open_source(spec_of(model, **given), folder / "cache")


def failure(folder: Path, model: dict[str, Any], **given: Any) -> str:
    with pytest.raises(DataError) as caught:
        source = open_source(folder, model, **given)
        for number in range(8):
            source.minibatch(number)
    return caught.value.message


@given(
    records=st.integers(1, 40),
    size=st.integers(1, 7),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    replicas=st.lists(st.integers(1, 3), min_size=5, max_size=5),
)
def test_each_record_is_read_once_an_epoch_across_resumes(
    records: int, size: int, cuts: list[int], replicas: list[int]
) -> None:
    """A run that is cut off anywhere, resumed each time with another number of replicas, over two epochs."""
    total = math.ceil(2 * records / size)
    edges = sorted({0, total, *(cut for cut in cuts if cut < total)})
    read: Counter[tuple[int, int]] = Counter()
    for attempt, (start, end) in enumerate(pairwise(edges)):
        for replica in range(replicas[attempt]):
            order = Order(7, records, size)  # nothing is carried over from attempt to attempt
            for number in numbers(start, end, 1, replica, replicas[attempt]):
                read.update(order.rows(number))
    whole = {(example, epoch) for example in range(records) for epoch in range(2)}
    assert {row: read[row] for row in whole} == dict.fromkeys(whole, 1)
    assert all(times == 1 for times in read.values())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(8, 12))
def test_next_token_text_predicts_every_token_once(lengths: list[int], length: int) -> None:
    tokens = np.arange(100, 100 + sum(lengths), dtype=np.uint16)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    stream = Stream(TokenisedCorpus(tokens, bounds, np.bincount(tokens, minlength=300)))
    expected = [t for i in range(len(lengths)) for t in (SEP, *tokens[bounds[i] : bounds[i + 1]])]
    assert stream.read(0, len(stream)).tolist() == expected
    if len(expected) <= length:
        return
    spec = spec_of({"name": "gpt2"}, sequence_length=length, minibatch_size=1, vocab_size=300)
    corpus = TokenisedCorpus(tokens, bounds, np.bincount(tokens, minlength=300))
    source = CausalLM(corpus, spec.data, 1, data.signature(spec))  # type: ignore[arg-type]
    minibatches = [source.minibatch(number) for number in range(len(source))]
    labels = [int(t) for each in minibatches for t in each.targets["labels"].flatten() if t != IGNORED]
    assert sorted(labels) == sorted(expected[1:])
    pairs = [(each.inputs["input_ids"][0], each.targets["labels"][0]) for each in minibatches]
    for ids, after in pairs:
        real = int((after != IGNORED).sum())
        assert torch.equal(ids[1:real], after[: real - 1])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_shards_read_like_one_array(lengths: list[int], draw: st.DataObject) -> None:
    parts = [np.arange(sum(lengths[:i]), sum(lengths[: i + 1])) for i in range(len(lengths))]
    shards, whole = Shards(parts), np.concatenate(parts)
    start, stop = (draw.draw(st.integers(0, len(whole) + 2)) for _ in range(2))
    assert shards[start:stop].tolist() == whole[start:stop].tolist()


GPT, BERT = {"name": "gpt2"}, {"name": "bert"}
SIZES: dict[str, Any] = {"sequence_length": 16, "minibatch_size": 2, "vocab_size": 300}


def write_jsonl(path: Path, *lines: str) -> Path:
    """A few records of real text, then ``lines``."""
    folder = path.parent / f"{path.name}.texts"
    folder.mkdir()
    texts = [file.read_text() for file in sorted(write_text(folder).glob("*.py"))]
    records = [json.dumps({"text": text[start : start + 400]}) for text in texts for start in range(0, 4000, 400)]
    path.write_text("".join(f"{line}\n" for line in (*records, *lines)))
    return path


def test_jsonl_reads_the_field_of_every_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl")
    source = open_source(tmp_path, GPT, source="jsonl", path=str(path), **SIZES)
    ids = source.minibatch(0).inputs["input_ids"]
    assert ids.shape == (2, 16) and int(ids.max()) < 300
    assert set(open_source(tmp_path, BERT, source="jsonl", path=str(path), **SIZES).minibatch(3).inputs) == {
        "input_ids",
        "segment_ids",
        "attention_mask",
    }


BAD_LINES = {
    "no JSON": ('{"text": ', r"a\.jsonl:31: is no JSON \(Expecting value.*\)"),
    "no object": ("[1]", r"a\.jsonl:31: is a list, not an object"),
    "no field": ('{"body": "x"}', r"a\.jsonl:31: text is missing; data\.text_key names the field"),
    "no text": ('{"text": 5}', r"a\.jsonl:31: text is a int, not text; data\.text_key names the field"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_or_left_out(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", line)
    assert re.search(message, failure(tmp_path, GPT, source="jsonl", path=str(path), **SIZES))
    for opened in (1, 2):  # from the cache too
        source = open_source(tmp_path, GPT, source="jsonl", path=str(path), on_bad_record="skip", **SIZES)
        assert source.skipped == 1, opened
    assert "data: left out" in capsys.readouterr().out


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    for number in (0, 2):
        np.save(tmp_path / f"tokens-{number:05}-of-00004.npy", np.arange(100, dtype=np.uint16))
    message = failure(tmp_path, GPT, source="memmap", path=str(tmp_path), **SIZES)
    assert message == f"of the 4 shards tokens-*.npy in {tmp_path}, 1, 3 is missing"


def test_memmap_reads_shards_as_one(tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).integers(5, 300, 500)
    tokens[:250].astype(np.uint16).tofile(tmp_path / "a.bin")
    np.save(tmp_path / "b.npy", tokens[250:].astype(np.int32))
    source = open_source(tmp_path, GPT, source="memmap", path=str(tmp_path), **SIZES)
    read = [source.minibatch(number) for number in range(16)]
    assert {tuple(row) for m in read for row in m.inputs["input_ids"].tolist()} <= {
        tuple(tokens[start : start + 16]) for start in range(0, 500, 16)
    } | {(*tokens[496:499], *[PAD] * 13)}


BAD_TOKENS = {
    "empty": (b"", "is empty"),
    "odd": (b"abc", "has 3 bytes, which is no whole number of uint16"),
    "too large": (np.array([7, 300], np.uint16).tobytes(), r"token 1 is 300; data\.vocab_size is 300"),
}


@pytest.mark.parametrize(("content", "message"), BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_bad_tokens_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    assert re.search(
        r"a\.bin:? " + message, failure(tmp_path, GPT, source="memmap", path=str(tmp_path / "a.bin"), **SIZES)
    )


def test_only_the_first_bad_records_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    bad = BadRecords("skip")
    for number in range(100):
        bad.found(f"a:{number}", "bad")
    told = capsys.readouterr().out.splitlines()
    assert bad.count == 100 and len(told) == 13 and told[-1] == "data: left out 64 records so far"


def write_shard(path: Path, rows: int = 6, **changed: Any) -> None:
    h5py = pytest.importorskip("h5py")
    ids = np.arange(rows * 16).reshape(rows, 16) % 290 + 5
    columns = {
        "input_ids": ids,
        "input_mask": np.ones_like(ids),
        "segment_ids": np.repeat([[0] * 8 + [1] * 8], rows, axis=0),
        "masked_lm_positions": np.repeat([[3, 9, 0, 0]], rows, axis=0),
        "masked_lm_ids": np.repeat([[7, 8, 0, 0]], rows, axis=0),
        "next_sentence_labels": np.arange(rows) % 2,
        **changed,
    }
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=np.asarray(values, dtype=np.int32))


def test_hdf5_shards_give_labels_where_words_are_hidden(tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / f"part_{number}.hdf5")
    source = open_source(tmp_path, {"name": "bert-nsp"}, source="hdf5", path=str(tmp_path), **SIZES)
    minibatches = [source.minibatch(number) for number in range(6)]
    for each in minibatches:
        assert each.counts == (4, 2)
        assert (each.targets["labels"] != IGNORED).nonzero()[:, 1].tolist() == [3, 9, 3, 9]
    assert sum(int(each.targets["order_labels"].sum()) for each in minibatches) == 6


BAD_SHARDS = {
    "label": (
        {"next_sentence_labels": [0, 1, 2, 0, 0, 0]},
        r"next_sentence_labels of record 2 has 2; it must be below 2",
    ),
    "position": ({"masked_lm_positions": [[16, 0, 0, 0]] * 6}, r"masked_lm_positions of record \d has 16"),
    "word": ({"input_ids": np.full((6, 16), 300)}, r"input_ids of record \d has 300; it must be below 300"),
    "length": ({"input_ids": np.full((6, 32), 9)}, r"input_ids is \(6, 32\); data.sequence_length is 16"),
}


@pytest.mark.parametrize(("changed", "message"), BAD_SHARDS.values(), ids=BAD_SHARDS)
def test_a_bad_shard_is_named(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "part.hdf5", **changed)
    told = failure(tmp_path, {"name": "bert-nsp"}, source="hdf5", path=str(tmp_path), **SIZES)
    assert re.search(r"part\.hdf5: " + message, told)


def test_bad_records_of_shards_are_rows_without_a_target(tmp_path: Path) -> None:
    write_shard(tmp_path / "part.hdf5", next_sentence_labels=[0, 1, 2, 0, 0, 0])
    given: dict[str, Any] = {**SIZES, "minibatch_size": 6, "on_bad_record": "skip"}
    source = open_source(tmp_path, {"name": "bert-nsp"}, source="hdf5", path=str(tmp_path), **given)
    minibatch = source.minibatch(0)
    assert minibatch.counts == (10, 5) and source.skipped == 1  # type: ignore[attr-defined]
    (row,) = (minibatch.targets["order_labels"] == IGNORED).nonzero().flatten().tolist()
    assert set(minibatch.targets["labels"][row].tolist()) == {IGNORED}
    assert bool(minibatch.inputs["attention_mask"][row].all())


def test_a_missing_or_empty_shard_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "part-2-of-2.hdf5")
    told = failure(tmp_path, BERT, source="hdf5", path=str(tmp_path), **SIZES)
    assert told == f"of the 2 shards part-*.hdf5 in {tmp_path}, 1 is missing"
    write_shard(tmp_path / "part-1-of-2.hdf5", rows=0)
    told = failure(tmp_path, BERT, source="hdf5", path=str(tmp_path), **SIZES)
    assert told == f"{tmp_path / 'part-1-of-2.hdf5'} is empty"


@pytest.mark.parametrize("source", ["text", "jsonl"])
def test_an_empty_file_is_told(source: str, tmp_path: Path) -> None:
    file = tmp_path / "texts" / "empty.jsonl"
    file.parent.mkdir()
    file.touch()
    assert failure(tmp_path, GPT, source=source, path=str(file), **SIZES) == f"{file} has no text"
    (tmp_path / "texts" / "other.jsonl").touch()
    told = failure(tmp_path, BERT, source=source, path=str(file.parent), **SIZES)
    assert told == f"all files below {file.parent} have no text"


def test_what_is_no_shard_is_named(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "a.hdf5").write_text("no")
    told = failure(tmp_path, BERT, source="hdf5", path=str(tmp_path), **SIZES)
    assert told.startswith(f"{tmp_path / 'a.hdf5'} is no HDF5 file, or damaged")


def test_a_folder_that_datasets_saved_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    texts = [json.loads(line)["text"] for line in write_jsonl(tmp_path / "a.jsonl").read_text().splitlines()]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"))
    source = open_source(tmp_path, GPT, source="hf", path=str(tmp_path / "saved"), **SIZES)
    jsonl = open_source(tmp_path, GPT, source="jsonl", path=str(tmp_path / "a.jsonl"), **SIZES)
    assert torch.equal(source.minibatch(3).inputs["input_ids"], jsonl.minibatch(3).inputs["input_ids"])
    message = failure(tmp_path, GPT, source="hf", path=str(tmp_path / "saved"), text_key="body", **SIZES)
    assert message == f"{tmp_path / 'saved'} has no field body"


def test_a_record_without_text_is_named_or_left_out(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    texts = [json.loads(line)["text"] for line in write_jsonl(tmp_path / "a.jsonl").read_text().splitlines()]
    datasets.Dataset.from_dict({"text": [*texts, None]}).save_to_disk(str(tmp_path / "saved"))
    given = {"source": "hf", "path": str(tmp_path / "saved"), **SIZES}
    told = failure(tmp_path, GPT, **given)
    assert told == f"{tmp_path / 'saved'}: record {len(texts)}: text is a NoneType, not text"
    assert open_source(tmp_path, GPT, on_bad_record="skip", **given).skipped == 1  # type: ignore[attr-defined]


MISSING = {
    "datasets": (GPT, {"source": "hf"}, "source hf needs the datasets package", "vpipe[hf]"),
    "h5py": (BERT, {"source": "hdf5"}, "source hdf5 needs the h5py package", "vpipe[hdf5]"),
    "PIL.Image": (
        RESNET,
        {"source": "images", "classes": 2},
        "source images needs the Pillow package",
        "vpipe[images]",
    ),
}


@pytest.mark.parametrize("package", MISSING)
def test_a_missing_package_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, section, message, extra = MISSING[package]
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError) as caught:
        open_source(tmp_path, model, path=str(tmp_path), **section)
    assert caught.value.message == message and extra in str(caught.value)
