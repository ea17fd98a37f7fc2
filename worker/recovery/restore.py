"""Where a run begins: at its newest checkpoint that all ranks can read, or at the beginning if it has none.

A rank reads what it needs, whoever wrote it, so any partition fits. Nothing is taken over before every rank has read
its part; if one finds damage, it is named and all of them go back to the checkpoint before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from worker.build import Builder
from worker.checkpoint import changes, layout, manifest
from worker.checkpoint.manifest import Manifest
from worker.errors import CheckpointError
from worker.executor import Executor
from worker.recovery import randomness, snapshot, tensors
from worker.recovery.place import Place
from worker.rendezvous import Rendezvous
from worker.schedule.job import minibatches_per_step
from worker.spec.cluster import ClusterSpec


@dataclass(frozen=True)
class Saved:
    """A checkpoint, as far as one rank needs it: read and verified, not taken over yet.

    ``data_offset`` is that of the data's minibatches to the run's; ``own`` are the rank's own tensors, where the same
    rank of the same layout wrote them.
    """

    manifest: Manifest
    data_offset: int
    weights: Mapping[str, Tensor]
    own: Mapping[str, Tensor]

    @property
    def step(self) -> int:
        """Steps done."""
        return self.manifest.step

    def put_back(self, executor: Executor, rank: int) -> None:
        """Give ``executor`` the state that was saved."""
        own = {name: tensor for name, tensor in self.own.items() if not name.startswith("random/")}
        snapshot.put_back(executor, {**self.weights, **own}, self.manifest.optimizer_values, self.step)
        entry = self.manifest.ranks.get(str(rank)) if self.own else None
        scale = (entry or self.manifest.ranks["0"]).scaler
        if executor.scaler is not None and scale is not None:
            executor.scaler.restore(scale)
        if self.own:
            randomness.restore(self.own, next(iter(executor.stages.values())).stage.device)


def find(
    builder: Builder, place: Place, attempt: int, rendezvous: Rendezvous, say: Callable[[str], None]
) -> Saved | None:
    """The newest checkpoint that every rank could read; None where there is none. All ranks call this together.

    Args:
        say: told by rank 0 what was passed over, and why.
    Raises:
        CheckpointError: there are checkpoints and none can be used, or the job cannot go on from the newest.
    """
    if place.keeps:
        layout.clean(place.folder)
    views = map(json.loads, rendezvous.exchange("checkpoints", json.dumps(layout.steps(place.folder))))
    everywhere = sorted(set.intersection(*map(set, views)), reverse=True)
    wrong: list[str] = []
    for step in everywhere:
        saved, problem = _read(builder, place, step)
        verdicts = rendezvous.exchange(f"checkpoint {step}", problem)
        bad = [f"rank {rank}: {verdict}" for rank, verdict in enumerate(verdicts) if verdict]
        if saved is not None and not bad:
            rendezvous.agree(f"checkpoint {step}'s hash", saved.manifest.text()[-80:])
            _set_newer_aside(place, step, attempt)
            return saved
        wrong += bad
        if place.rank == 0:
            say(f"checkpoint step-{step} cannot be used: {'; '.join(bad)}")
    if wrong:
        raise CheckpointError(f"no checkpoint of this run can be used: {'; '.join(wrong)}", _LOOK)
    _set_newer_aside(place, -1, attempt)
    return None


_LOOK = "`vpipe checkpoint verify` looks at them all; `vpipe launch` begins anew"


def _set_newer_aside(place: Place, step: int, attempt: int) -> None:
    """What is newer than the one in use is damaged, or in one place only; its step will be saved again."""
    if place.keeps:
        for newer in [each for each in layout.steps(place.folder) if each > step]:
            layout.set_aside(place.folder, newer, attempt)


def _read(builder: Builder, place: Place, step: int) -> tuple[Saved | None, str]:
    """The checkpoint after ``step`` as this rank needs it, or what is wrong with it.

    Raises CheckpointError where the job does not fit it.
    """
    path = layout.committed(place.folder, step)
    try:
        found = manifest.read(path)
    except CheckpointError as error:
        return None, error.message
    _refuse(found, builder)
    flow, plan = builder.flow, builder.job.plan
    names = [flow.names[index] for stage in plan.stages_of(builder.rank) for index in plan.layers_of(stage)]
    mine = layout.rank_file(builder.rank)
    same = not changes.layout(found, plan) and mine in found.files
    weights: dict[str, Tensor] = {}
    try:
        for name in names:
            if name in found.layers:
                weights |= tensors.read(path, found.layers[name], found.files[found.layers[name]])
        own = tensors.read(path, mine, found.files[mine]) if same else {}
    except CheckpointError as error:
        return None, error.message
    return Saved(found, data_offset(found, builder.job.spec), weights, own), ""


def _refuse(found: Manifest, builder: Builder) -> None:
    """The model must have exactly the parameters that were saved."""
    if found.step < builder.job.spec.run.steps:  # an attempt may have died behind its last checkpoint
        changes.refuse(found, builder.job.spec)
    flow = builder.flow
    name = f"{found.run}@{found.step}"
    if odd := sorted(set(flow.parameters) ^ found.parameters.keys()):
        which = "does not have" if odd[0] in flow.parameters else "has"
        raise CheckpointError(
            f"{name} is of another model: it {which} {odd[0]}", "resume with the model it was saved from"
        )
    for full in flow.parameters:
        shape, saved = list(flow.spec(full).shape), found.parameters[full].shape
        if shape != saved:
            raise CheckpointError(
                f"{name} is of another model: {full} is {saved} there and {shape} here",
                "resume with the model it was saved from",
            )


def data_offset(found: Manifest, spec: ClusterSpec) -> int:
    """What to add to a minibatch's number in the run for its number in the data.

    With minibatches of another size the data goes on at the next whole one: less than a minibatch is left out.
    """
    old, new = int(found.spec["data"].get("minibatch_size", 1)), spec.data.minibatch_size
    return -(-found.data_position * old // new) - found.step * minibatches_per_step(spec)
