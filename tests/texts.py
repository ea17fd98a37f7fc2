"""Small corpora of real text for the tests of the data, and jobs that read them."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from worker.data import open_source
from worker.data.masked_lm import MaskedLM
from worker.spec.cluster import BertSpec, ClusterSpec, DataSpec, RunSpec

LENGTH, BATCH, VOCABULARY = 32, 4, 400


def spec_of(path: Path, sentence_order: bool = False, seed: int = 1, **settings: object) -> ClusterSpec:
    sizes = {"sequence_length": LENGTH, "minibatch_size": BATCH, "vocab_size": VOCABULARY, **settings}
    return ClusterSpec(
        machines=["cpu"],
        model=BertSpec(sentence_order=sentence_order),
        data=DataSpec(source="text", path=str(path), **sizes),
        run=RunSpec(seed=seed),
    )


def write_text(folder: Path) -> Path:
    """A few real documents, a very short one and an empty one."""
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("bisect.py", "stat.py", "abc.py"):
        (folder / name).write_bytes((library / name).read_bytes())
    (folder / "short.txt").write_text("one short line, and little more\n")
    (folder / "empty.txt").touch()
    return folder


def source_of(spec: ClusterSpec, cache: Path) -> MaskedLM:
    source = open_source(spec, cache)
    assert isinstance(source, MaskedLM)
    return source
