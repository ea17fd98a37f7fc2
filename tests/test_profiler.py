"""The profiler on a small model: what it must find whatever the machine's speed."""

from __future__ import annotations

import torch

from benchmarks.layers import Workload, encoders, sleepers
from worker.profiler import measure
from worker.profiler.memory import _peaks
from worker.spec.cluster import ClusterSpec

CPU = torch.device("cpu")


def spec() -> ClusterSpec:
    return ClusterSpec.model_validate({"machines": ["cpu"]})


def test_bytes_are_those_of_the_tensors() -> None:
    """Two encoder layers of width 64 on 2 x 8 tokens, in float32."""
    workload: Workload = encoders(2, 64, 8, 2)
    said: list[str] = []
    found = measure(spec(), workload.model, workload.source, CPU, 2, said.append)
    names = [layer.name for layer in found.layers]
    assert names == ["encoder.0", "encoder.1", "classifier", "loss"] and len(said) == 4
    hidden = 2 * 8 * 64 * 4
    assert [layer.output_bytes for layer in found.layers] == [hidden, hidden, hidden, 0]
    encoder = found.layers[0]
    weights = 4 * (3 * 64 * 65 + 64 * 65 + 256 * 65 + 64 * 257 + 4 * 64)
    assert encoder.parameter_bytes == encoder.gradient_bytes == weights
    assert 2 * weights <= encoder.optimizer_bytes <= 2 * weights + 1000  # AdamW: two moments, and a step each
    assert 8 * hidden <= encoder.activation_bytes <= 30 * hidden
    assert found.layers[3].parameter_bytes == found.layers[3].update == 0
    assert found.base_bytes > 2**20 and found.copy_rate > 1e6
    assert all(layer.forward > 0 and layer.input_grad + layer.weight_grad > 0 for layer in found.layers)
    assert all(layer.recompute > 0 for layer in found.layers)


def test_times_are_those_that_pass() -> None:
    """Sleeping layers: never less than they sleep."""
    workload = sleepers(1, 4096, 0.004, 0.002, 0.006)
    found = measure(spec(), workload.model, workload.source, CPU, 2)
    for layer in found.layers[:2]:
        assert layer.forward >= 0.6 * 0.002 and layer.input_grad + layer.weight_grad >= 0.6 * 0.004


def test_a_peak_is_what_a_layer_needs_for_a_moment() -> None:
    events = [(1, 100), (2, 50), (3, -50), (11, 10), (12, 80), (13, -80)]
    assert _peaks(events, [(0, 5, 0), (10, 15, 1)], 2) == [50, 80]
