"""`data` of cluster.yml: one class per kind of source, chosen by ``source``, or by ``entry`` for the user's own.

Each says which kinds of minibatches it can give (``gives``); ``worker.data`` opens it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from worker.spec.model import EntryName, Task
from worker.spec.section import Count, Misfit, PathText, Section, listed

Tokens = Annotated[int, Field(ge=8)]
Vocabulary = Annotated[int, Field(ge=300)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]

TEXT: tuple[Task, ...] = ("causal-lm", "masked-lm", "masked-lm-pairs")
WITH_PATH = ("text", "jsonl", "memmap", "hf")


class DataSection(Section):
    """What all sources have in common."""

    minibatch_size: Count = Field(8, description="examples per minibatch")
    prefetch: Annotated[int, Field(ge=0)] = Field(
        2, description="minibatches read ahead in the background, at least a step's; 0: none"
    )

    @property
    def gives(self) -> tuple[Task, ...]:
        """Kinds of minibatches it can make, the usual one first; empty where only its own code knows."""
        return ()

    @property
    def varies(self) -> bool:
        """Whether each minibatch has sizes of its own."""
        return False


class DataSpec(DataSection):
    """Text: files of it, records of it, or its tokens."""

    source: Literal["python-stdlib", "text", "jsonl", "memmap", "hf"] = Field(
        "python-stdlib",
        description="python-stdlib: the interpreter's .py files; text: your file or folder; jsonl: a record a line; "
        "memmap: tokens as numbers; hf: a folder that datasets saved",
    )
    path: PathText | None = Field(None, description="the file or folder of all sources but python-stdlib")
    text_key: PathText = Field("text", description="jsonl and hf: the field that holds the text")
    dtype: Literal["uint16", "uint32", "int32", "int64"] = Field(
        "uint16", description="memmap: the type of the numbers; a .npy file says it itself"
    )
    sequence_length: Tokens = Field(128, description="tokens per sequence")
    vocab_size: Vocabulary = Field(
        8192, description="entries of the tokenizer trained on the corpus; memmap: more than the largest number in it"
    )
    variable: bool = Field(
        False, description="cut each minibatch to its longest sequence; lengths then travel with the tensors"
    )
    mask_probability: Share = Field(0.15, description="share of tokens to predict")
    on_bad_record: Literal["stop", "skip"] = Field(
        "stop", description="jsonl and hf: what to do about a record that is wrong"
    )

    def misfits(self) -> Iterator[Misfit]:
        """A path belongs to the sources that read one."""
        if self.source in WITH_PATH and self.path is None:
            message = f"is {self.source}, which needs `path`: the file or folder to read"
            yield Misfit(message, ("source", "path"))
        for key, users in (("path", WITH_PATH), ("text_key", ("jsonl", "hf")), ("dtype", ("memmap",))):
            given = getattr(self, key) != type(self).model_fields[key].default
            if given and self.source not in users:
                yield Misfit(f"belongs to source {listed(users)}, but source is {self.source}", (key, "source"))

    @property
    def gives(self) -> tuple[Task, ...]:
        """Any task on text."""
        return TEXT

    @property
    def varies(self) -> bool:
        """As the user says."""
        return self.variable


class ParallelSpec(DataSection):
    """Parallel text: line i of one file is the translation of line i of the other."""

    source: Literal["parallel"] = Field("parallel", description="two files of lines that translate each other")
    path: PathText = Field(description="the file to translate from")
    target_path: PathText = Field(description="the file to translate into")
    sequence_length: Tokens = Field(64, description="most tokens of a sentence, its end included")
    vocab_size: Vocabulary = Field(8192, description="entries of the tokenizer trained on both files")
    on_bad_record: Literal["stop", "skip"] = Field(
        "stop", description="what to do about a pair of which one side is empty or too long"
    )

    @property
    def gives(self) -> tuple[Task, ...]:
        """Translation."""
        return ("translation",)


class ImagesSpec(DataSection):
    """Pictures in a folder for each class."""

    source: Literal["images"] = Field("images", description="a folder of pictures for each class")
    path: PathText = Field(description="the folder with the classes' folders")
    image_size: Annotated[int, Field(ge=8)] = Field(224, description="pixels of each side, after scaling and cutting")
    classes: Annotated[int, Field(ge=2)] = Field(description="number of classes: folders in path")
    augment: bool = Field(True, description="training: cut at random and mirror half of the pictures")
    on_bad_record: Literal["stop", "skip"] = Field("stop", description="what to do about a file that is no picture")

    @property
    def gives(self) -> tuple[Task, ...]:
        """Pictures of classes."""
        return ("images",)


class Hdf5Spec(DataSection):
    """BERT's pre-training data as NVIDIA's scripts write them: shards of masked pairs with their labels."""

    source: Literal["hdf5"] = Field("hdf5", description="shards of masked sequences, made beforehand")
    path: PathText = Field(description="a shard, or a folder of *.hdf5")
    sequence_length: Tokens = Field(128, description="tokens per sequence, as the shards have them")
    vocab_size: Vocabulary = Field(30528, description="more than the largest token number in the shards")
    on_bad_record: Literal["stop", "skip"] = Field("stop", description="what to do about a record that is wrong")

    @property
    def gives(self) -> tuple[Task, ...]:
        """Masked text; its pairs say whether the second passage follows."""
        return ("masked-lm-pairs", "masked-lm")


class SyntheticSpec(DataSection):
    """Made-up minibatches for any model: to measure, and to try a model out."""

    source: Literal["synthetic"] = Field("synthetic", description="made up: nothing is read")
    sequence_length: Tokens = Field(128, description="tokens per sequence")
    vocab_size: Vocabulary = Field(8192, description="token numbers are below this")
    image_size: Annotated[int, Field(ge=8)] = Field(64, description="pixels of each side")
    classes: Annotated[int, Field(ge=2)] = Field(10, description="number of classes")
    mask_probability: Share = Field(0.15, description="share of tokens to predict")

    @property
    def gives(self) -> tuple[Task, ...]:
        """Whatever the model takes."""
        return ("causal-lm", "masked-lm", "masked-lm-pairs", "translation", "images")


class EntryDataSpec(DataSection):
    """The user's own data: a function that returns a source of minibatches."""

    entry: EntryName = Field(description="package.module:function, found on PYTHONPATH or beside cluster.yml")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")
    code: PathText | None = Field(None, description="folder of the package; default: that of cluster.yml")


def _tag(value: object) -> str | None:
    """Which class a `data` is for."""
    if isinstance(value, DataSection):
        value = {"entry": 1} if isinstance(value, EntryDataSpec) else {"source": getattr(value, "source", None)}
    if not isinstance(value, dict):
        return None
    if "entry" in value:
        return "entry"
    source = str(value.get("source", "python-stdlib"))
    return "text" if source in ("python-stdlib", *WITH_PATH) else source


AnyData = Annotated[
    Annotated[DataSpec, Tag("text")]
    | Annotated[ParallelSpec, Tag("parallel")]
    | Annotated[ImagesSpec, Tag("images")]
    | Annotated[Hdf5Spec, Tag("hdf5")]
    | Annotated[SyntheticSpec, Tag("synthetic")]
    | Annotated[EntryDataSpec, Tag("entry")],
    Discriminator(_tag),
]
"""`data` of cluster.yml, told apart by ``source``; by ``entry`` where that is given."""
