"""What a layer costs before anything is measured: floating-point operations, counted on paper."""

from __future__ import annotations

from collections.abc import Callable

from worker.spec.cluster import ClusterSpec
from worker.spec.data import DataSpec, Hdf5Spec, ImagesSpec, ParallelSpec, SyntheticSpec
from worker.spec.model import BertSpec, GnmtSpec, Gpt2Spec, ResNetSpec, TransformerSpec, VggSpec

Texts = DataSpec | ParallelSpec | Hdf5Spec | SyntheticSpec
Pictures = ImagesSpec | SyntheticSpec


def layer_flops(spec: ClusterSpec) -> list[float] | None:
    """Forward FLOPs of each layer for one example, a multiplication and an addition counted as two.

    A backward costs twice its forward in every layer alike, so the balance does not depend on it. Elementwise work
    counts a few operations a number; of a masked model only the tokens to predict pass the head. None for a model whose
    layers only its own code knows.
    """
    count = _COUNTS.get(type(spec.model))
    return count(spec.model, spec.data) if count else None


def _bert(model: BertSpec | Gpt2Spec, data: Texts) -> list[float]:
    width, tokens = model.hidden_size, data.sequence_length
    share = getattr(data, "mask_probability", 0.15) if isinstance(model, BertSpec) else 1.0
    head = share * (2 * width**2 * isinstance(model, BertSpec) + _head(width, data.vocab_size) + 10 * width)
    embeddings = 10.0 * width
    return [
        tokens * cost
        for cost in (embeddings, *[_attention(width, tokens), _feed_forward(model)] * model.num_layers, head)
    ]


def _transformer(model: TransformerSpec, data: Texts) -> list[float]:
    width, tokens = model.hidden_size, data.sequence_length
    attention, feed_forward = _attention(width, tokens), _feed_forward(model)
    encoder = [attention, feed_forward] * model.num_layers
    decoder = [attention, attention, feed_forward] * model.depth
    embeddings = 10.0 * width
    costs = (embeddings, *encoder, embeddings, *decoder, _head(width, data.vocab_size))
    return [tokens * cost for cost in costs]


def _gnmt(model: GnmtSpec, data: Texts) -> list[float]:
    width, tokens = model.hidden_size, data.sequence_length
    lstm, embeddings = 16.0 * width**2 + 30 * width, 2.0 * width
    attention = 2 * lstm + 4 * width**2 + 8 * width * tokens  # its LSTM also reads the context of the encoder
    stacks = [embeddings, *[lstm] * model.num_layers], [embeddings, attention, *[1.5 * lstm] * (model.num_layers - 1)]
    return [tokens * cost for cost in (*stacks[0], *stacks[1], _head(width, data.vocab_size))]


def _resnet(model: ResNetSpec, data: Pictures) -> list[float]:
    size, inputs = (data.image_size + 1) // 2, model.width
    costs = [size**2 * 2.0 * 3 * 49 * inputs, size**2 * 10.0 * inputs]
    size = (size + 1) // 2
    for group, blocks in enumerate(model.blocks):
        width, outputs = model.width << group, 4 * model.width << group
        for block in range(blocks):
            stride = 2 if group and not block else 1
            after = -(-size // stride)
            shortcut = after**2 * inputs * outputs if not block else 0
            products = size**2 * inputs * width + after**2 * (9 * width**2 + width * outputs) + shortcut
            costs.append(2.0 * products + 10.0 * after**2 * outputs)
            size, inputs = after, outputs
    return [*costs, 2.0 * inputs * data.classes + size**2 * inputs]


def _vgg(model: VggSpec, data: Pictures) -> list[float]:
    size, inputs = data.image_size, 3
    costs = []
    for outputs, pools in vgg_layers(model.width):
        costs.append(size**2 * (18.0 * inputs * outputs + 3 * outputs))
        size, inputs = (size // 2 if pools else size), outputs
    wide = [(49 * inputs, model.hidden_size), (model.hidden_size, model.hidden_size), (model.hidden_size, data.classes)]
    return [*costs, *(2.0 * rows * columns for rows, columns in wide)]


def vgg_layers(width: int) -> list[tuple[int, bool]]:
    """Channels of each convolution of VGG-16, and whether pooling follows it."""
    groups = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
    return [(factor * width, number == count - 1) for factor, count in groups for number in range(count)]


def _attention(width: int, tokens: int) -> float:
    return 8.0 * width**2 + 4 * width * tokens + 15 * width


def _feed_forward(model: BertSpec | Gpt2Spec | TransformerSpec) -> float:
    inner = model.intermediate_size or 4 * model.hidden_size
    return 4.0 * model.hidden_size * inner + 10 * inner + 10 * model.hidden_size


def _head(width: int, words: int) -> float:
    return 2.0 * width * words + 5 * words


_COUNTS: dict[type, Callable[..., list[float]]] = {
    BertSpec: _bert,
    Gpt2Spec: _bert,
    TransformerSpec: _transformer,
    GnmtSpec: _gnmt,
    ResNetSpec: _resnet,
    VggSpec: _vgg,
}
