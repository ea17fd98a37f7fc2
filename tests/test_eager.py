"""torch's compiler stays out of ranks, which would import it only to tell it to leave them alone."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys, torch
from worker import data, eager, models, optimizer
from worker.flow import trace
from worker.spec.cluster import ClusterSpec, OptimizerSpec
if sys.argv[1] == "spared":
    eager.spare_the_compiler()
sources = {"bert": {}, "gpt2": {}, "resnet50": {"source": "synthetic"}, "vgg16": {"source": "synthetic"}}
for name, source in sources.items():
    given = {"machines": ["cpu"], "model": {"name": name}, "data": source, "run": {"steps": 1}}
    spec = ClusterSpec.model_validate(given)
    trace(models.build_model(spec), data.signature(spec))
for name in ("adamw", "adam", "nadam", "lamb", "muon", "sgd"):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    rule = optimizer.build(OptimizerSpec(name=name, lr=0.1), {"weight": weight})
    weight.sum().backward()
    eager.step(rule)
    rule.zero_grad()
    rule.load_state_dict(rule.state_dict())
    assert weight.grad is None and weight[0, 0] != 1, name
print("torch._dynamo" in sys.modules)
"""


def is_imported(how: str) -> str:
    command = [sys.executable, "-c", CODE, how]
    return subprocess.run(command, check=True, timeout=100, capture_output=True, text=True).stdout


def test_neither_shapes_nor_updates_import_the_compiler() -> None:
    assert is_imported("spared") == "False\n"
    assert is_imported("not spared") == "True\n"
