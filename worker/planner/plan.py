"""The plan of a job: the partition given or balanced, and the recompute ratio of every stage."""

from __future__ import annotations

from collections.abc import Sequence

from worker.errors import UsageError
from worker.planner.estimate import layer_flops
from worker.planner.job import is_planned, plan_job
from worker.planner.partition import balance
from worker.spec.cluster import ClusterSpec
from worker.spec.job import Plan
from worker.spec.pipeline import CHUNKED
from worker.spec.profile import Profile


def make_plan(
    spec: ClusterSpec, ranks: int, flops: Sequence[float] | None = None, profile: Profile | None = None
) -> Plan:
    """The plan for ``ranks`` ranks of a resolved specification: its lists, where given, have one entry per stage.

    Args:
        flops: of each layer, where the model's own code was asked for them; None to count them on paper.
        profile: what layers cost, where it was measured; then the plan is made from it, and predicts what it will do.
    Raises:
        UsageError: the partition does not fit the layers, or there is neither a partition nor a count of layers.
    """
    if profile is not None and is_planned(spec.pipeline):
        return plan_job(spec, ranks, profile)
    stages, given = spec.pipeline.stages or ranks, spec.pipeline.replicas
    replicas = list(given) if isinstance(given, list) else [given] * stages
    wanted, ratio = spec.pipeline.partition, spec.pipeline.recompute_ratio
    ratios = (
        [float(each) for each in ratio] if isinstance(ratio, list) else [0.0 if ratio == "auto" else ratio] * stages
    )
    flops = layer_flops(spec) if flops is None else flops
    if wanted == "auto":
        partition, reason = _balanced(flops, stages)
    else:
        partition, reason = list(wanted), "given in cluster.yml"
        if flops is not None and sum(partition) != len(flops):
            message = f"pipeline.partition adds up to {sum(partition)} but the model has {len(flops)} layers"
            raise UsageError(message, "give as many layers as the model has, or `partition: auto`")
    return Plan(
        partition=partition,
        recompute_ratio=ratios,
        reason=reason,
        replicas=replicas,
        chunks=sum(replicas) // ranks if spec.pipeline.schedule in CHUNKED else 1,
        folds=spec.pipeline.schedule == "zb-v",
    )


def _balanced(costs: Sequence[float] | None, stages: int) -> tuple[list[int], str]:
    if costs is None:
        message = "pipeline.partition is auto, but only the model's own code knows its layers, and it cannot run here"
        raise UsageError(message, "give the layers per stage: `partition: [4, 4]`; or install torch here")
    if len(costs) < stages:
        raise UsageError(f"pipeline.stages is {stages} but the model has {len(costs)} layers")
    partition, rest = balance(costs, stages), iter(costs)
    largest = max(sum(next(rest) for _ in range(layers)) for layers in partition)
    above = 100 * (largest * stages / sum(costs) - 1) if sum(costs) else 0.0
    return partition, f"auto: balances estimated FLOPs per layer; largest stage {above:.1f} % above the mean"
