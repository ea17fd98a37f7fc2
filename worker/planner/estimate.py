"""What a layer costs before anything is measured: floating-point operations, counted on paper."""

from __future__ import annotations

from worker.spec.cluster import ClusterSpec


def layer_flops(spec: ClusterSpec) -> list[float]:
    """Forward FLOPs of each layer for one sequence, a multiplication and an addition counted as two.

    A backward costs twice its forward in every layer alike, so the balance does not depend on it. Elementwise work
    counts a few operations a number; only the tokens to predict pass the head.
    """
    model, data = spec.model, spec.data
    width, tokens = model.hidden_size, data.sequence_length
    inner = model.intermediate_size or 4 * width
    embeddings = 10 * width
    attention = 8 * width**2 + 4 * width * tokens + 15 * width
    feed_forward = 4 * width * inner + 10 * inner + 10 * width
    head = data.mask_probability * (2 * width**2 + 2 * width * data.vocab_size + 10 * width + 5 * data.vocab_size)
    return [float(tokens * cost) for cost in (embeddings, *[attention, feed_forward] * model.num_layers, head)]
