"""The corpus: its files, the tokenizer, the cache that holds both, and every error of the data."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from tests.texts import VOCABULARY, source_of, spec_of, write_text
from worker.data import open_source, tokenizer
from worker.data.corpus import find
from worker.data.store import _cut
from worker.data.tokenizer import SPECIAL_TOKENS
from worker.errors import DataError
from worker.spec.cluster import DataSpec


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


TRICKY = 'def f(x):\n\n\tif x == "[MASK] [SEP]":\r\n        return "ä€𝄞"  # \x00 \ufeff\n   \n'


def test_tokens_decode_to_the_text() -> None:
    trained = tokenizer.train([TRICKY] * 3, 300)
    (ids,) = tokenizer.encode(trained, [TRICKY])
    assert trained.decode(ids.tolist(), skip_special_tokens=False) == TRICKY
    assert ids.min() >= len(SPECIAL_TOKENS)


def test_a_line_break_and_its_indentation_are_one_token() -> None:
    trained = tokenizer.train(["if x:\n        y\n        z\n"] * 9, 300)
    assert trained.encode("x:\n        z", add_special_tokens=False).tokens == ["x", ":", "ĊĠĠĠĠĠĠĠĠ", "z"]


def test_long_documents_are_cut_before_line_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.data.store.PIECE_CHARACTERS", 10)
    document = "abc\ndefgh\nij\n" + "x" * 25 + "\ny"
    pieces = list(_cut(document))
    assert "".join(pieces) == document
    assert pieces[:2] == ["abc\ndefgh", "\nij"] and max(map(len, pieces)) == 10


PREPARE = """
import sys
from pathlib import Path
from worker.data import open_source
from worker.spec.cluster import ClusterSpec, DataSpec
data = DataSpec(source="text", path=sys.argv[1], vocab_size=400, sequence_length=32)
open_source(ClusterSpec(machines=["cpu"], data=data), Path(sys.argv[2]))
"""


def start_preparing(text: Path, cache: Path, threads: str = "true") -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": threads}
    return subprocess.Popen([sys.executable, "-c", PREPARE, str(text), str(cache)], env=environment)


def hashes(cache: Path) -> dict[str, str]:
    """SHA-256 of every file of the one folder in the cache."""
    (folder,) = cache.iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_preparation_is_the_same_in_other_processes(text: Path, tmp_path: Path) -> None:
    caches = [tmp_path / threads for threads in ("true", "false")]
    running = [start_preparing(text, cache, cache.name) for cache in caches]
    assert [process.wait(60) for process in running] == [0, 0]
    assert hashes(caches[0]) == hashes(caches[1])


def test_two_may_prepare_at_a_time(text: Path, tmp_path: Path) -> None:
    running = [start_preparing(text, tmp_path / "cache") for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert len(hashes(tmp_path / "cache")) == 5


def test_the_cache_is_used_again(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = source_of(spec_of(text), tmp_path)
    assert "training the tokenizer" in capsys.readouterr().out
    again = source_of(spec_of(text), tmp_path)
    assert capsys.readouterr().out == ""
    ids = [source.minibatch(5).inputs["input_ids"] for source in (first, again)]
    assert torch.equal(*ids)


@pytest.mark.parametrize("name", ["tokens.npy", "bounds.npy", "counts.npy", "tokenizer.json", "sha256.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_cache_is_prepared_again(text: Path, tmp_path: Path, name: str, damage: str) -> None:
    source_of(spec_of(text), tmp_path)
    before = hashes(tmp_path)
    (folder,) = tmp_path.iterdir()
    if damage == "cut":
        os.truncate(folder / name, (folder / name).stat().st_size - 3)
    else:
        (folder / name).unlink()
    source_of(spec_of(text), tmp_path)
    assert hashes(tmp_path) == before


def test_an_interrupted_preparation_leaves_nothing(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("worker.data.store._hash", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_source(spec_of(text), tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_text_or_vocabulary_is_another_cache(tmp_path: Path) -> None:
    file, cache = tmp_path / "text", tmp_path / "cache"
    file.write_text("some words, again and again " * 9)
    source_of(spec_of(file), cache)
    source_of(spec_of(file, vocab_size=301), cache)
    file.write_text("other words, again and again " * 9)
    source_of(spec_of(file), cache)
    assert len(list(cache.iterdir())) == 3


def test_the_cache_is_private(text: Path, tmp_path: Path) -> None:
    source_of(spec_of(text), tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_tokenizer_is_kept(text: Path, tmp_path: Path) -> None:
    source_of(spec_of(text), tmp_path)
    (folder,) = tmp_path.iterdir()
    kept = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [kept.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert kept.get_vocab_size() == VOCABULARY


def test_the_standard_library_is_found_without_what_is_installed() -> None:
    corpus = find(DataSpec())
    relative = [path.relative_to(corpus.root) for path in corpus.files]
    assert Path("argparse.py") in relative and Path("json/decoder.py") in relative
    assert all(path.suffix == ".py" and "site-packages" not in path.parts for path in relative)


def test_links_to_folders_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.txt").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    names = [path.name for path in find(DataSpec(source="text", path=str(tmp_path))).files]
    assert names == ["a.txt", "b.txt"]


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Müller".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 text: byte 1 is 0xfc"):
        open_source(spec_of(tmp_path), tmp_path / "cache")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ({}, "no text files below"),
        ({"a.txt": ""}, "has no text"),
        ({"a.txt": "too short"}, "the corpus has 2 tokens; one sequence of 32 needs 29"),
    ],
)
def test_too_little_data_is_said(tmp_path: Path, content: dict[str, str] | None, message: str) -> None:
    if content is not None:
        (tmp_path / "data").mkdir()
        for name, words in content.items():
            (tmp_path / "data" / name).write_text(words)
    with pytest.raises(DataError, match=message):
        open_source(spec_of(tmp_path / "data"), tmp_path / "cache")


def test_text_in_documents_of_one_token_is_too_little(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text("x")
    with pytest.raises(DataError, match="no document"):
        open_source(spec_of(tmp_path), tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_said(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot keep the tokenised corpus"):
        open_source(spec_of(text), tmp_path / "file" / "cache")
