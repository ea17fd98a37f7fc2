"""What a rank holds at once, counted on its Actions: minibatches in flight, and versions of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from worker.errors import ScheduleError
from worker.schedule.action import Action, Kind


@dataclass(frozen=True)
class Use:
    """The weights one minibatch meets in one stage, as numbers of updates that made them.

    ``forward`` and ``backward`` are what those passes use; ``updated`` is what its gradient is applied to.
    """

    stage: int
    minibatch: int
    forward: int
    backward: int
    updated: int

    @property
    def staleness(self) -> int:
        """Updates between the weights used and the weights updated: 0 under BSP."""
        return self.updated - self.forward

    @property
    def drift(self) -> int:
        """Updates between forward and backward: 0 where weights are stashed."""
        return self.backward - self.forward


def peak_in_flight(actions: Iterable[Action]) -> int:
    """Most minibatches (of all its stages together) that a rank has run forward but not wholly backward."""
    return int(peak_activations(actions))


def peak_activations(actions: Iterable[Action], weight_share: float = 1.0) -> float:
    """The same in units of one minibatch's activations, of which an INPUT_GRAD frees all but ``weight_share``."""
    whole = rest = 0
    peak = 0.0
    for action in actions:
        if action.kind is Kind.FORWARD:
            whole += 1
        elif action.kind is Kind.BACKWARD:
            whole -= 1
        elif action.kind is Kind.INPUT_GRAD:
            whole, rest = whole - 1, rest + 1
        elif action.kind is Kind.WEIGHT_GRAD:
            rest -= 1
        peak = max(peak, whole + rest * weight_share)
    return peak


def versions(actions: Iterable[Action], stashes: bool = True) -> list[Use]:
    """The weights every minibatch meets on a rank, in the order of the updates that take them in.

    Args:
        stashes: whether a backward uses its forward's weights; the newest if not.
    Raises:
        ScheduleError: where a forward asks for weights that are not made yet.
    """
    forwards: dict[tuple[int, int], int] = {}
    ended: list[tuple[int, int, int, int]] = []
    uses: list[Use] = []
    newest = 0
    for action, newest in _numbered(actions):
        key = (action.stage, action.minibatch)
        if action.kind is Kind.FORWARD:
            forwards[key] = _version_of(action, newest)
        elif action.kind in (Kind.BACKWARD, Kind.WEIGHT_GRAD):
            ended.append((*key, forwards[key], forwards[key] if stashes else newest))
        elif action.kind is Kind.UPDATE:
            uses += [Use(*each, newest) for each in ended]
            ended = []
    return uses + [Use(*each, newest) for each in ended]


def peak_versions(actions: Sequence[Action], stashes: bool = True) -> int:
    """Most versions of its weights that a rank must hold at once, the newest among them."""
    last_use: dict[int, int] = {}
    forwards: dict[tuple[int, int], int] = {}
    updates: list[tuple[int, int]] = []
    for position, (action, newest) in enumerate(_numbered(actions)):
        key = (action.stage, action.minibatch)
        if action.kind is Kind.UPDATE:
            updates.append((position, newest))
            continue
        if action.kind is Kind.FORWARD:
            forwards[key] = _version_of(action, newest)
        last_use[forwards[key] if stashes or action.kind is Kind.FORWARD else newest] = position
    peak, older = 1, set[int]()
    for position, newest in updates:
        older = {version for version in older | {newest} if last_use.get(version, -1) > position}
        peak = max(peak, 1 + len(older))
    return peak


def _numbered(actions: Iterable[Action]) -> Iterator[tuple[Action, int]]:
    """Each action with the number of updates before it; the updates of a rank's stages in a row are one."""
    newest, was_update = 0, False
    for action in actions:
        is_update = action.kind is Kind.UPDATE
        if was_update and not is_update:
            newest += 1
        yield action, newest
        was_update = is_update


def _version_of(forward: Action, newest: int) -> int:
    if forward.version is None:
        return newest
    if forward.version > newest:
        raise ScheduleError(f"{forward} asks for the weights of update {forward.version}, but only {newest} are done")
    return forward.version
