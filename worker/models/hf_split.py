"""Where a model of the transformers package can be cut: it is run once on the meta device, and watched.

Such a model runs some modules, then a row of repeated blocks, each on the hidden state of the one before, then the
rest. What else the blocks are given (masks, rotary angles) is made before the first of them. A model that does anything
else is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from worker.errors import ModelError

Path = tuple[int | str, ...]
"""Where a tensor stands among a call's arguments: a position or a name, then positions in tuples."""


@dataclass(frozen=True)
class Call:
    """What one block is given besides the hidden state: ``shared`` names its tensors, ``constants`` the rest."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shared: Mapping[Path, str]


@dataclass(frozen=True)
class Split:
    """A model on the meta device, and where it may be cut.

    ``blocks`` is the name of the list of blocks. ``sources`` says for each shared tensor which block is first given it,
    and where. ``before`` and ``behind`` are the names of the modules with parameters or buffers that run before and
    after the blocks; ``returns`` for those before what a call gave.
    """

    model: nn.Module
    blocks: str
    calls: tuple[Call, ...]
    sources: Mapping[str, tuple[int, Path]]
    before: frozenset[str]
    behind: frozenset[str]
    returns: Mapping[str, Any]
    gives_tuple: int
    """Entries of the tuple that a block returns; 0 where it returns the hidden state itself."""


def find_blocks(model: nn.Module) -> str:
    """The name of the list of blocks with the most parameters. Raises ModelError where there is none."""
    sizes = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len(part)
    }
    if not sizes:
        raise ModelError(f"{type(model).__name__} cannot be split: it has no list of blocks")
    name: str = max(sizes, key=lambda name: sizes[name])
    others = [other for other, size in sizes.items() if not other.startswith(f"{name}.") and 2 * size > sizes[name]]
    if others := [other for other in others if other != name and not name.startswith(f"{other}.")]:
        raise ModelError(f"{type(model).__name__} cannot be split: it has two rows of blocks, {name} and {others[0]}")
    return name


def watch(model: nn.Module, inputs: Mapping[str, Tensor]) -> Split:
    """Run ``model`` on meta tensors and find out what goes where.

    Raises:
        ModelError: it cannot run without values, or its blocks are not a row.
    """
    name = find_blocks(model)
    watcher = _Watcher(model, name)
    try:
        with torch.no_grad():
            model(**inputs)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ModelError(
            f"{type(model).__name__} cannot be split: it does not run without values ({reason})"
        ) from error
    finally:
        watcher.stop()
    return watcher.split()


class _Watcher:
    """Hooks on every module of a model that note when it runs, and what blocks are given and give."""

    def __init__(self, model: nn.Module, blocks: str) -> None:
        self.model, self.blocks = model, blocks
        self.row: list[nn.Module] = list(cast(nn.ModuleList, model.get_submodule(blocks)))
        self.given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.gave: list[Any] = []
        self.phases: dict[str, set[str]] = {}
        self.returns: dict[str, Any] = {}
        inside = {part for block in self.row for part in block.modules()}
        self.hooks = [block.register_forward_pre_hook(self._enter, with_kwargs=True) for block in self.row]
        self.hooks += [block.register_forward_hook(self._leave) for block in self.row]
        for name, part in model.named_modules():
            if part not in inside and any(True for _ in _own(part)):
                self.hooks.append(part.register_forward_hook(self._noting(name)))

    def stop(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.given.append((args, kwargs))

    def _leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.gave.append(output)

    def _noting(self, name: str) -> Any:
        def note(part: nn.Module, args: Any, output: Any) -> None:
            phase = "before" if not self.given else "behind" if len(self.gave) == len(self.row) else "between"
            self.phases.setdefault(name, set()).add(phase)
            self.returns[name] = _shapes(output)

        return note

    def split(self) -> Split:
        self._check()
        names: dict[int, str] = {}
        sources: dict[str, tuple[int, Path]] = {}
        calls = []
        for number, (args, kwargs) in enumerate(self.given):
            shared = {}
            for path, tensor in _tensors(args[1:], kwargs):
                name = names.setdefault(id(tensor), f"shared.{len(names)}")
                sources.setdefault(name, (number, path))
                shared[path] = name
            calls.append(Call(_blank(args[1:]), {key: _blank(value) for key, value in kwargs.items()}, shared))
        phase = {which: {n for n, phases in self.phases.items() if which in phases} for which in ("before", "behind")}
        unused = {
            name for name, part in self.model.named_modules() if any(True for _ in _own(part)) and self._is_idle(name)
        }
        return Split(
            self.model,
            self.blocks,
            tuple(calls),
            sources,
            frozenset(phase["before"]),
            frozenset(phase["behind"] | unused),
            {name: self.returns[name] for name in phase["before"]},
            len(self.gave[0]) if isinstance(self.gave[0], tuple) else 0,
        )

    def _is_idle(self, name: str) -> bool:
        return name not in self.phases and not name.startswith(f"{self.blocks}.")

    def _check(self) -> None:
        kind = type(self.model).__name__
        if len(self.gave) != len(self.row):
            raise ModelError(f"{kind} cannot be split: of its {len(self.row)} blocks it runs {len(self.gave)}")
        for name, phases in self.phases.items():
            if "between" in phases:
                raise ModelError(f"{kind} cannot be split: {name} runs between its blocks")
        for number, output in enumerate(self.gave):
            hidden = output[0] if isinstance(output, tuple) and output else output
            rest = output[1:] if isinstance(output, tuple) else ()
            if not isinstance(hidden, Tensor) or any(value is not None for value in rest):
                raise ModelError(f"{kind} cannot be split: block {number} gives more than a hidden state")
            if number + 1 < len(self.given):
                args, _ = self.given[number + 1]
                if not args or args[0] is not hidden:
                    raise ModelError(
                        f"{kind} cannot be split: block {number + 1} is not given what block {number} gave"
                    )
            if any(tensor is hidden for later in self.given[number + 2 :] for _, tensor in _tensors(*later)):
                raise ModelError(f"{kind} cannot be split: what block {number} gives is used again later")


def _own(part: nn.Module) -> Iterator[Tensor]:
    yield from part.parameters(recurse=False)
    yield from part.buffers(recurse=False)


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor among the arguments, with its place; those in tuples and lists too."""
    stack: list[tuple[Path, Any]] = [((number,), value) for number, value in enumerate(args)]
    stack += [((name,), value) for name, value in kwargs.items()]
    for path, value in stack:
        if isinstance(value, Tensor):
            yield path, value
        elif isinstance(value, (tuple, list)):
            stack += [((*path, index), each) for index, each in enumerate(value)]


def _blank(value: Any) -> Any:
    """``value`` with None in place of every tensor."""
    if isinstance(value, (tuple, list)):
        return type(value)(_blank(each) for each in value)
    return None if isinstance(value, Tensor) else value


def fill(value: Any, path: Path, tensor: Tensor) -> Any:
    """``value``, nested tuples, with ``tensor`` at ``path``."""
    if not path:
        return tensor
    items = list(value)
    items[int(path[0])] = fill(items[int(path[0])], path[1:], tensor)
    return type(value)(items)


def at(args: tuple[Any, ...], kwargs: Mapping[str, Any], path: Path) -> Tensor:
    """The tensor at ``path`` of a call's arguments, the hidden state left out."""
    value = args[path[0]] if isinstance(path[0], int) else kwargs[path[0]]
    for index in path[1:]:
        value = value[index]
    assert isinstance(value, Tensor)
    return value


def _shapes(output: Any) -> Any:
    """What a module returned, every tensor as its shape and dtype."""
    if isinstance(output, Tensor):
        return (tuple(output.shape), output.dtype)
    if isinstance(output, (tuple, list)):
        return [_shapes(each) for each in output]
    return None


def zeros(shapes: Any, device: torch.device) -> Any:
    """What ``_shapes`` noted, as zeros."""
    if isinstance(shapes, list):
        return tuple(zeros(each, device) for each in shapes)
    return None if shapes is None else torch.zeros(shapes[0], dtype=shapes[1], device=device)
