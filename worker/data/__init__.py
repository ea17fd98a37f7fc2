"""Where minibatches come from: the source that cluster.yml names."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from worker import entry
from worker.data import tasks
from worker.data.base import Minibatch, Signature, Source, TensorSpec
from worker.data.corpus import find, find_parallel
from worker.data.store import open_tokenised, tokenizer_json
from worker.errors import DataError
from worker.spec.cluster import ClusterSpec
from worker.spec.data import AnyData, DataSpec, EntryDataSpec, Hdf5Spec, ImagesSpec, ParallelSpec, SyntheticSpec
from worker.spec.model import BertSpec

__all__ = ["Minibatch", "Signature", "Source", "TensorSpec", "open_evaluation", "open_source", "signature"]


def signature(spec: ClusterSpec) -> Signature:
    """Shapes and dtypes of every minibatch of the job, known without reading any data.

    Raises:
        DataError: the user's own function fails, or gives no source.
    """
    if isinstance(spec.data, EntryDataSpec):
        return _users(spec.data.model_dump_json()).signature
    assert spec.task is not None
    return tasks.signature(spec.task, spec.data)


def open_source(spec: ClusterSpec, cache: Path, tokenizer: str | None = None) -> Source:
    """The job's data; text is tokenised into the folder ``cache`` on first use. Prints its progress.

    Args:
        tokenizer: for text, in place of one trained on it.
    Raises:
        DataError: the data are missing, unreadable, damaged or too short, or ``cache`` cannot be written.
    """
    data, seed, promised = spec.data, spec.run.seed, signature(spec)
    if isinstance(data, EntryDataSpec):
        return _users(data.model_dump_json())
    assert spec.task is not None
    if isinstance(data, SyntheticSpec):
        from worker.data.synthetic import Synthetic

        return Synthetic(data, spec.task, seed, promised)
    if isinstance(data, ImagesSpec):
        from worker.data.images import Pictures

        return Pictures(data, seed, promised)
    if isinstance(data, Hdf5Spec):
        from worker.data.hdf5 import MaskedShards

        return MaskedShards(data, spec.task == "masked-lm-pairs", seed, promised)
    if isinstance(data, ParallelSpec):
        from worker.data.translation import Translation

        files = find_parallel(data)
        return Translation(open_tokenised(files, data.vocab_size, cache, tokenizer), files, data, seed, promised)
    return _text(spec, data, cache, promised, tokenizer)


def open_evaluation(spec: ClusterSpec, cache: Path) -> Source:
    """What ``evaluate`` measures on: data of the same kind, with the tokenizer of the training data.

    Raises:
        DataError: as ``open_source``; or the source has no held-out data of this kind.
    """
    held_out, target = spec.evaluate.held_out, spec.evaluate.held_out_target
    again = spec.run.model_copy(update={"seed": spec.run.seed + 1})
    plain = {"augment": False} if isinstance(spec.data, ImagesSpec) else {}
    data = spec.data.model_copy(update=plain)
    if held_out is None:
        return open_source(spec.model_copy(update={"run": again, "data": data}), cache)
    if not hasattr(data, "path"):
        raise DataError("evaluate.held_out belongs to data with a path", "leave it out to measure on the training data")
    paths = {"path": held_out, **({"target_path": target} if target else {})}
    if isinstance(data, DataSpec) and data.source == "python-stdlib":
        paths["source"] = "text"
    elsewhere = spec.model_copy(update={"run": again, "data": data.model_copy(update=paths)})
    return open_source(elsewhere, cache, _tokenizer_of(spec.data, cache))


def _tokenizer_of(data: AnyData, cache: Path) -> str | None:
    """The tokenizer of text that was opened before, as its own JSON."""
    if isinstance(data, ParallelSpec):
        return tokenizer_json(find_parallel(data), data.vocab_size, cache)
    if isinstance(data, DataSpec) and data.source != "memmap":
        return tokenizer_json(find(data), data.vocab_size, cache)
    return None


def _text(spec: ClusterSpec, data: DataSpec, cache: Path, promised: Signature, tokenizer: str | None) -> Source:
    if data.source == "memmap":
        from worker.data.memmap import open_memmap

        corpus = open_memmap(data)
    else:
        files = find(data)
        corpus = open_tokenised(files, data.vocab_size, cache, tokenizer)
        if not len(corpus.tokens):
            where = f"{files.files[0]} has" if len(files.files) == 1 else f"all files below {files.root} have"
            raise DataError(f"{where} no text", "point data.path at text to learn from")
    if spec.task == "causal-lm":
        from worker.data.causal_lm import CausalLM

        return CausalLM(corpus, data, spec.run.seed, promised)
    from worker.data.masked_lm import MaskedLM, Pairs

    swaps = isinstance(spec.model, BertSpec) and spec.model.sentence_order
    pairs: Pairs | None = None if spec.task == "masked-lm" else "order" if swaps else "next"
    return MaskedLM(corpus, data, pairs, spec.run.seed, promised)


@lru_cache(maxsize=1)
def _users(section: str) -> Source:
    """The source that the user's own function gives; it is asked once a process."""
    spec = EntryDataSpec.model_validate_json(section)
    source = entry.call(spec.entry, spec.args, DataError, {"minibatch_size": spec.minibatch_size}, spec.code)
    for name in ("signature", "minibatch", "baseline_loss"):
        if not hasattr(source, name):
            raise DataError(
                f"data.entry {spec.entry} returns a {type(source).__name__} without {name}",
                "return a source: an object with signature, baseline_loss and minibatch(number)",
            )
    return source  # type: ignore[no-any-return]  # it has been looked at
