"""What is another in a job than in the one that wrote a checkpoint: what is said, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from worker.checkpoint.manifest import Manifest
from worker.errors import CheckpointError
from worker.spec.cluster import ClusterSpec
from worker.spec.job import Plan

MEANS_NOTHING = (
    *("name", "machines", "spares", "engine", "ssh", "slurm", "container", "planner", "trace", "report"),
    *("checkpoint.keep", "checkpoint.timeout", "checkpoint.copies", "pipeline.offload_ratio"),
)
"""Keys that change no number of the training; so do most of ``run``."""
MEANS_SOMETHING = ("run.steps", "run.seed")


def layout(manifest: Manifest, plan: Plan) -> list[str]:
    """What differs in who holds what: nothing of it changes a weight or an optimizer's state."""
    now = plan.model_dump(mode="json")
    before = {"folds": False, **manifest.plan}  # which older checkpoints do not say
    keys = ("partition", "replicas", "chunks", "folds")
    return [f"{key} is {now[key]}, was {before[key]}" for key in keys if now[key] != before[key]]


def changes(manifest: Manifest, spec: ClusterSpec, plan: Plan, code: str) -> list[str]:
    """A line for each difference that may change how training goes on; none: it goes on bit for bit."""
    found = layout(manifest, plan)
    found += [f"{key} is {new}, was {old}" for key, old, new in _differences(manifest, spec)]
    if code and code != manifest.code_digest:
        found.append(f"the code is another (vpipe {manifest.versions.get('vpipe')} wrote it)")
    return found


def refuse(manifest: Manifest, spec: ClusterSpec) -> None:
    """Raises CheckpointError where a checkpoint cannot be gone on from with ``spec``, with the reason."""
    old, new = _flat(manifest.spec), _flat(spec.model_dump(mode="json"))
    name = f"{manifest.run}@{manifest.step}"
    keys = {key for key in old.keys() | new.keys() if key.startswith("model.") and not key.endswith("dropout")}
    model = sorted(keys - _starts(spec))
    if key := next((key for key in model if old.get(key) != new.get(key)), None):
        raise CheckpointError(
            f"{name} is of another model: {key} is {new.get(key)}, was {old.get(key)}",
            "keep the model of the run that is resumed, or train from the beginning",
        )
    if old["optimizer.name"] != new["optimizer.name"]:
        raise CheckpointError(
            f"{name} has the state of {old['optimizer.name']}, which {new['optimizer.name']} cannot go on with",
            f"keep optimizer.name={old['optimizer.name']}",
        )
    if manifest.step >= spec.run.steps and not spec.evaluate.only:
        raise CheckpointError(
            f"{name} has all of its {spec.run.steps} steps behind it",
            f"set run.steps to more than {manifest.step} to go on",
        )


def _differences(manifest: Manifest, spec: ClusterSpec) -> Iterator[tuple[str, Any, Any]]:
    old, new = _flat(manifest.spec), _flat(spec.model_dump(mode="json"))
    for key in sorted(old.keys() | new.keys()):
        ours = key.startswith("run.") and key not in MEANS_SOMETHING
        ours |= key.startswith("evaluate.") and not key.endswith(".every_steps")
        placed = key.split(".")[0] in MEANS_NOTHING or key in MEANS_NOTHING
        told = key in ("pipeline.stages", "pipeline.partition", "pipeline.replicas", "pipeline.recompute_ratio")
        drains = key.endswith(".every_steps") and {old["pipeline.sync_mode"], new["pipeline.sync_mode"]} == {"bsp"}
        behind = key in _starts(spec)
        if not (ours or placed or told or drains or behind) and old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def _starts(spec: ClusterSpec) -> set[str]:
    """Keys of what the model began with, which a checkpoint has behind it."""
    return {f"model.{key}" for key in spec.model.starts}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
