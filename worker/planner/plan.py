"""The plan of a job: the partition given or balanced, and the recompute ratio of every stage."""

from __future__ import annotations

from worker.planner.estimate import layer_flops
from worker.planner.partition import balance
from worker.spec.cluster import ClusterSpec
from worker.spec.job import Plan


def make_plan(spec: ClusterSpec, ranks: int) -> Plan:
    """The plan for ``ranks`` ranks of a resolved specification: its lists, where given, have one entry per stage."""
    stages, replicas = spec.pipeline.stages or ranks, spec.pipeline.replicas
    given, ratio = spec.pipeline.partition, spec.pipeline.recompute_ratio
    ratios = [float(each) for each in ratio] if isinstance(ratio, list) else [float(ratio)] * stages
    partition, reason = (list(given), "given in cluster.yml") if given != "auto" else _balanced(spec, stages)
    return Plan(
        partition=partition,
        recompute_ratio=ratios,
        reason=reason,
        replicas=list(replicas) if isinstance(replicas, list) else [replicas] * stages,
        chunks=stages // ranks if spec.pipeline.schedule == "interleaved" else 1,
    )


def _balanced(spec: ClusterSpec, stages: int) -> tuple[list[int], str]:
    costs = layer_flops(spec)
    partition, rest = balance(costs, stages), iter(costs)
    largest = max(sum(next(rest) for _ in range(layers)) for layers in partition)
    above = 100 * (largest * stages / sum(costs) - 1)
    return partition, f"auto: balances estimated FLOPs per layer; largest stage {above:.1f} % above the mean"
