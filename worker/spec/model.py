"""`model` of cluster.yml: one class per model family, chosen by ``name``, or by ``entry`` for the user's own.

Each says how many layers a cut may fall between, where that can be counted without torch, and which kind of data it
learns from (``task``); ``worker.models`` builds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from worker.spec.section import Count, Misfit, PathText, Probability, Section

Task = Literal["masked-lm", "masked-lm-pairs", "causal-lm", "translation", "images"]
"""What a minibatch holds: ``worker.data.tasks`` lists the names of its tensors."""

EntryName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]


class ModelSection(Section):
    """What the sections of all models have in common."""

    @property
    def layer_count(self) -> int | None:
        """Number of layers a cut may fall between; None where only the model's own code knows."""
        return None

    @property
    def task(self) -> Task | None:
        """The kind of minibatches it learns from; None where only the model's own code knows."""
        return None

    @property
    def ties_ends(self) -> bool:
        """Whether the last layer borrows a parameter of the first."""
        return False

    @property
    def starts(self) -> frozenset[str]:
        """Keys that only say what values the parameters begin with."""
        return frozenset()


class _Heads(ModelSection):
    """A model with attention heads."""

    hidden_size: Count = Field(128, description="width of the hidden state")
    num_heads: Count = Field(4, description="attention heads; must divide hidden_size")
    intermediate_size: Count | None = Field(None, description="width of the feed-forward part; default 4 x hidden_size")
    dropout: Probability = Field(0.1, description="dropout of hidden states and of attention weights")

    def misfits(self) -> Iterator[Misfit]:
        """Heads share the hidden state evenly."""
        if self.hidden_size % self.num_heads:
            message = f"is {self.num_heads} but must divide hidden_size {self.hidden_size}"
            yield Misfit(message, ("num_heads", "hidden_size"))

    @property
    def ties_ends(self) -> bool:
        """Head and embedding share their matrix."""
        return True


class _Published(_Heads):
    """A model whose weights others publish in the naming of transformers."""

    folder: PathText | None = Field(
        None, description="folder to start from: config.json and *.safetensors as transformers saves them; null: random"
    )

    @property
    def starts(self) -> frozenset[str]:
        """The folder."""
        return frozenset({"folder"})


class BertSpec(_Published):
    """BERT as a list of layers: embeddings, an attention and a feed-forward half per encoder layer, the head."""

    name: Literal["bert", "bert-nsp"] = Field(
        "bert", description="the model family; bert-nsp also learns whether a second passage follows the first"
    )
    num_layers: Count = Field(4, description="encoder layers; each is two layers of the pipeline")
    sentence_order: bool = Field(False, description="also train to tell whether two passages stand in their own order")

    def misfits(self) -> Iterator[Misfit]:
        """One task for pairs of passages is enough."""
        yield from super().misfits()
        if self.name == "bert-nsp" and self.sentence_order:
            message = "belongs to bert; bert-nsp learns from pairs of its own"
            yield Misfit(message, ("sentence_order", "name"))

    @property
    def layer_count(self) -> int:
        """Embeddings, two halves per layer, head."""
        return 2 * self.num_layers + 2

    @property
    def pairs(self) -> bool:
        """Whether the model has a second loss, about two passages."""
        return self.sentence_order or self.name == "bert-nsp"

    @property
    def task(self) -> Task:
        """Masked text, in pairs for the second loss."""
        return "masked-lm-pairs" if self.pairs else "masked-lm"


class Gpt2Spec(_Published):
    """GPT-2: embeddings, an attention and a feed-forward half per block, the head, which shares the word embedding."""

    name: Literal["gpt2"] = Field("gpt2", description="the model family")
    num_layers: Count = Field(4, description="blocks; each is two layers of the pipeline")

    @property
    def layer_count(self) -> int:
        """Embeddings, two halves per block, head."""
        return 2 * self.num_layers + 2

    @property
    def task(self) -> Task:
        """Text."""
        return "causal-lm"


class TransformerSpec(_Heads):
    """Encoder-decoder Transformer with one vocabulary: source embedding, encoder, target embedding, decoder, head."""

    name: Literal["transformer"] = Field("transformer", description="the model family")
    num_layers: Count = Field(4, description="encoder layers; each is two layers of the pipeline")
    decoder_layers: Count | None = Field(
        None, description="decoder layers, each three layers of the pipeline; default num_layers"
    )

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return self.decoder_layers or self.num_layers

    @property
    def layer_count(self) -> int:
        """Two embeddings, two layers per encoder layer, three per decoder layer, head."""
        return 2 * self.num_layers + 3 * self.depth + 3

    @property
    def task(self) -> Task:
        """Pairs of sentences."""
        return "translation"


class GnmtSpec(ModelSection):
    """GNMT-style LSTMs: bidirectional first layer, residuals from the third on, attention in the decoder's first."""

    name: Literal["gnmt"] = Field("gnmt", description="the model family")
    hidden_size: Annotated[int, Field(ge=2, multiple_of=2)] = Field(128, description="width of the hidden state; even")
    num_layers: Annotated[int, Field(ge=2)] = Field(4, description="LSTM layers of the encoder, and of the decoder")
    dropout: Probability = Field(0.1, description="dropout between layers")

    @property
    def layer_count(self) -> int:
        """Two embeddings, both stacks, head."""
        return 2 * self.num_layers + 3

    @property
    def task(self) -> Task:
        """Pairs of sentences."""
        return "translation"


class ResNetSpec(ModelSection):
    """ResNet-50 with torchvision's parameter names; each bottleneck is a layer of the pipeline."""

    name: Literal["resnet50"] = Field("resnet50", description="the model family")
    blocks: Annotated[list[Count], Field(min_length=1, max_length=4)] = Field(
        [3, 4, 6, 3], description="bottlenecks in each of the groups"
    )
    width: Count = Field(64, description="channels of the first convolution; each group has twice as many")

    @property
    def layer_count(self) -> int:
        """First convolution, its norm with pooling, bottlenecks, classifier."""
        return sum(self.blocks) + 3

    @property
    def task(self) -> Task:
        """Pictures of classes."""
        return "images"


class VggSpec(ModelSection):
    """VGG-16 with torchvision's parameter names; each convolution or linear map is a layer of the pipeline."""

    name: Literal["vgg16"] = Field("vgg16", description="the model family")
    width: Count = Field(64, description="channels of the first convolutions; later ones have 2, 4 and 8 times as many")
    hidden_size: Count = Field(4096, description="width of the two hidden linear maps")
    dropout: Probability = Field(0.5, description="dropout before the linear maps")

    @property
    def layer_count(self) -> int:
        """13 convolutions and 3 linear maps."""
        return 16

    @property
    def task(self) -> Task:
        """Pictures of classes."""
        return "images"


class HfSpec(ModelSection):
    """A causal or masked language model of the transformers package, split at its repeated blocks."""

    name: Literal["hf"] = Field("hf", description="the model family")
    folder: PathText | None = Field(None, description="folder with config.json, and with *.safetensors to start from")
    config: dict[str, Any] | None = Field(None, description="the configuration itself; model_type names the family")
    head: Literal["causal", "masked"] = Field("causal", description="predict the next token, or hidden ones")
    weights: Literal["load", "fresh"] = Field("load", description="with folder: start from its weights, or at random")

    @property
    def starts(self) -> frozenset[str]:
        """Not the folder: it also says what the model is."""
        return frozenset({"weights"})

    def misfits(self) -> Iterator[Misfit]:
        """Either a folder or a configuration."""
        if (self.folder is None) == (self.config is None):
            yield Misfit("needs either `folder` or `config`", ("name", "folder"))

    @property
    def task(self) -> Task:
        """Text."""
        return "causal-lm" if self.head == "causal" else "masked-lm"


class EntrySpec(ModelSection):
    """The user's own model: a function that returns the layers."""

    entry: EntryName = Field(description="package.module:function, found on PYTHONPATH or beside cluster.yml")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")
    code: PathText | None = Field(None, description="folder of the package; default: that of cluster.yml")
    takes: Task | None = Field(
        None, description="the kind of minibatches it learns from; default: what data.source gives first"
    )

    @property
    def task(self) -> Task | None:
        """As the user says."""
        return self.takes


def _tag(value: object) -> str | None:
    """Which class a `model` is for."""
    if isinstance(value, ModelSection):
        value = {"entry": 1} if isinstance(value, EntrySpec) else {"name": getattr(value, "name", None)}
    if not isinstance(value, dict):
        return None
    if "entry" in value:
        return "entry"
    name = value.get("name", "bert")
    return "bert" if name == "bert-nsp" else str(name)


ModelSpec = Annotated[
    Annotated[BertSpec, Tag("bert")]
    | Annotated[Gpt2Spec, Tag("gpt2")]
    | Annotated[TransformerSpec, Tag("transformer")]
    | Annotated[GnmtSpec, Tag("gnmt")]
    | Annotated[ResNetSpec, Tag("resnet50")]
    | Annotated[VggSpec, Tag("vgg16")]
    | Annotated[HfSpec, Tag("hf")]
    | Annotated[EntrySpec, Tag("entry")],
    Discriminator(_tag),
]
"""`model` of cluster.yml, told apart by ``name``; by ``entry`` where that is given."""
