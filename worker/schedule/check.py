"""validate: the proof on paper that a schedule does all its work, cannot deadlock, and stays within its bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from worker.errors import ScheduleError
from worker.schedule.action import Action, Kind
from worker.schedule.versions import peak_activations, peak_versions
from worker.schedule.walk import walk

Key = tuple[int, int]
"""A stage and a minibatch."""

Wire = tuple[int, int, int]
"""Sending rank, receiving rank, and the direction: 1 for activations, -1 for gradients."""


def validate(
    ranks: Sequence[Sequence[Action]],
    *,
    in_flight: float | None = None,
    versions: int | None = None,
    weight_share: float = 1.0,
    stashes: bool = True,
    by_order: bool = True,
) -> None:
    """Prove that ``ranks`` can run: nothing missing, nothing twice, no deadlock, no bound exceeded.

    Args:
        in_flight: most minibatches' activations that a rank may hold; with several chunks each counts its share;
            None: any number.
        versions: most versions of its weights that a rank may hold; None: any number.
        weight_share: share of a minibatch's activations that an INPUT_GRAD leaves to its WEIGHT_GRAD.
        stashes: whether a backward uses its forward's weights.
        by_order: messages between two ranks in one direction are told apart by their order alone.
    Raises:
        ScheduleError: names the rank, the action and the reason.
    """
    _each_once(ranks)
    needs_update = any(action.kind is Kind.UPDATE for actions in ranks for action in actions)
    for rank, actions in enumerate(ranks):
        _in_order(rank, actions, needs_update)
    if by_order:
        _wires_agree(ranks)
    walk(ranks, lambda _: 1.0, joint=True)
    for rank, actions in enumerate(ranks):
        _within(rank, actions, in_flight, versions, weight_share, stashes)


def _each_once(ranks: Sequence[Sequence[Action]]) -> None:
    """Every stage runs every minibatch forward once and backward once, in one piece or in two."""
    places: dict[Key, dict[Kind, int]] = {}
    for rank, actions in enumerate(ranks):
        for action in actions:
            if action.kind is Kind.UPDATE:
                continue
            place = places.setdefault((action.stage, action.minibatch), {})
            if action.kind in place:
                raise ScheduleError(f"rank {rank} runs {action}, which rank {place[action.kind]} runs too")
            place[action.kind] = rank
    stages = {stage for stage, _ in places}
    minibatches = {minibatch for _, minibatch in places}
    missing = set(range(len(stages))) - stages
    if missing:
        raise ScheduleError(f"no rank runs stage {min(missing)}, but stage {max(stages)} is run")
    for stage in sorted(stages):
        for minibatch in sorted(minibatches):
            _whole(stage, minibatch, places.get((stage, minibatch), {}))


def _whole(stage: int, minibatch: int, place: Mapping[Kind, int]) -> None:
    """One minibatch in one stage: F with B, or F with I and W, all on one rank."""
    kinds = "".join(sorted(kind.value for kind in place))
    if kinds not in ("BF", "FIW"):
        has = kinds or "nothing"
        raise ScheduleError(f"stage {stage} needs F, and B or both I and W, of minibatch {minibatch}; it has {has}")
    if len(set(place.values())) > 1:
        where = ", ".join(f"{kind.value} on rank {rank}" for kind, rank in place.items())
        raise ScheduleError(f"stage {stage} splits minibatch {minibatch} over ranks: {where}")


_FOLLOWS = {Kind.BACKWARD: Kind.FORWARD, Kind.INPUT_GRAD: Kind.FORWARD, Kind.WEIGHT_GRAD: Kind.INPUT_GRAD}
"""What must come before on the same rank."""


def _in_order(rank: int, actions: Sequence[Action], needs_update: bool) -> None:
    """F before B and I, I before W, and an update after every gradient, unless the schedule has none at all."""
    seen: set[tuple[int, Kind, int]] = set()
    waiting: dict[int, Action] = {}
    for action in actions:
        before = _FOLLOWS.get(action.kind)
        if before is not None and (action.stage, before, action.minibatch) not in seen:
            raise ScheduleError(f"rank {rank} runs {action} before {action.stage}{before.value}{action.minibatch}")
        seen.add((action.stage, action.kind, action.minibatch))
        if action.kind is Kind.UPDATE:
            waiting.pop(action.stage, None)
        elif before is not None:
            waiting[action.stage] = action
    if needs_update and waiting:
        left = next(iter(waiting.values()))
        raise ScheduleError(f"rank {rank} ends without an update of stage {left.stage} after {left}")


def _wires_agree(ranks: Sequence[Sequence[Action]]) -> None:
    """On each wire, one direction between two ranks, things arrive in the order in which they are wanted."""
    homes = {(stage, minibatch): rank for rank, actions in enumerate(ranks) for _, stage, minibatch in _passes(actions)}
    sent: dict[Wire, list[str]] = {}
    wanted: dict[Wire, list[str]] = {}
    for rank, actions in enumerate(ranks):
        for step, stage, minibatch in _passes(actions):
            what = "F" if step > 0 else "B"
            receiver = homes.get((stage + step, minibatch), rank)
            if receiver != rank:
                sent.setdefault((rank, receiver, step), []).append(f"{stage}{what}{minibatch}")
            sender = homes.get((stage - step, minibatch), rank)
            if sender != rank:
                wanted.setdefault((sender, rank, step), []).append(f"{stage - step}{what}{minibatch}")
    for wire, order in wanted.items():
        for first, want in zip(sent[wire], order, strict=True):
            if first != want:
                raise ScheduleError(f"rank {wire[1]} wants {want} from rank {wire[0]}, which sends {first} first")


def _passes(actions: Sequence[Action]) -> Iterator[tuple[int, int, int]]:
    """The actions that make something for a neighbour: the step to that stage (1 or -1), stage, minibatch."""
    for action in actions:
        if action.kind is Kind.FORWARD:
            yield 1, action.stage, action.minibatch
        elif action.kind in (Kind.BACKWARD, Kind.INPUT_GRAD):
            yield -1, action.stage, action.minibatch


def _within(
    rank: int,
    actions: Sequence[Action],
    in_flight: float | None,
    most_versions: int | None,
    weight_share: float,
    stashes: bool,
) -> None:
    """Neither too many activations nor too many weights."""
    stages = {action.stage for action in actions}
    held = peak_activations(actions, weight_share) / max(1, len(stages))
    if in_flight is not None and held > in_flight + 1e-9:
        raise ScheduleError(f"rank {rank} holds the activations of {held:g} minibatches; the bound is {in_flight:g}")
    try:
        kept = peak_versions(actions, stashes)
    except ScheduleError as error:
        raise ScheduleError(f"rank {rank}: {error.message}") from None
    if most_versions is not None and kept > most_versions:
        raise ScheduleError(f"rank {rank} holds {kept} versions of its weights; the bound is {most_versions}")
