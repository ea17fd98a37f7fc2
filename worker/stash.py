"""Weight versions without copies: what makes asynchronous training exact (weight stashing, PipeDream 2019).

A version is a set of leaf tensors that share the storage of the stage's parameters. A forward runs on the current
leaves, and its graph keeps them alive, so its backward differentiates the very weights it used. An update that finds
the storage in use moves the parameters to a copy first: the old version lives until the last graph that reads it ends,
and then frees itself. Memory is one version per graph in flight at most; where none is in flight, updates are in place
and nothing is copied.

Leaves are made by ``parameter.data``, which shares storage but not autograd's version counter: the optimizer may then
write to the parameter without the graph of another version complaining. Assigning ``.data`` under a live graph instead
is silently wrong, operator by operator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

Slot = tuple[nn.Module, str]
"""A module, and the name under which it looks up one of its parameters."""

Give = Callable[[str, Tensor], None]
"""Takes a parameter's gradient by name."""


@dataclass
class Storage:
    """The memory that one or more versions share: the owned parameters by full name, and the leaves on them.

    ``readers`` counts the graphs in flight on it.
    """

    tensors: Mapping[str, Tensor]
    leaves: Mapping[str, Tensor]
    readers: int = 0


class Version(NamedTuple):
    """Leaves by full parameter name. ``number`` counts the updates that went into the owned ones."""

    number: int
    leaves: Mapping[str, Tensor]
    storage: Storage


class WeightStash:
    """The parameters of one stage, and the versions of them that graphs in flight still need.

    Args:
        modules: the stage's layers by name, materialised.
        tied: full name of a borrowed parameter -> full name of its owner, of the whole model.
        stashes: False to let updates write under graphs in flight, whose backward then meets newer weights.
        keep: how many versions before the current one a forward may still ask for.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], tied: Mapping[str, str], stashes: bool = True, keep: int = 0
    ) -> None:
        self._stashes = stashes
        self._slots: dict[str, Slot] = {}
        self._frozen: set[str] = set()
        self.parameters: dict[str, nn.Parameter] = {}
        """Owned parameters by full name: what the optimizer updates."""
        self._recurrent = [part for each in modules.values() for part in each.modules() if isinstance(part, nn.RNNBase)]
        for layer, module in modules.items():
            for name, slot in _slots(module).items():
                full, parameter = f"{layer}.{name}", getattr(*slot)
                self._slots[full] = slot
                if full not in tied:
                    self.parameters[full] = parameter
                if not parameter.requires_grad:
                    self._frozen.add(full)
        self.borrowed = {name: owner for name, owner in tied.items() if name in self._slots}
        """Borrowed parameters of this stage -> their owners, which may be in this stage too."""
        self.tied = {name: owner for name, owner in tied.items() if owner in self.parameters}
        """Parameters borrowed anywhere in the model -> their owners, where the owner is in this stage."""
        self.gradients: dict[str, Tensor] = {}
        """Sum of the gradients collected since the last update, by full name."""
        self._installed: Mapping[str, Tensor] | None = None
        self._received: dict[str, Tensor] = {}
        self._spare: Storage | None = None
        self._written: Storage | None = None
        self._read = 0
        self._versions = deque([self._on(self._own_storage(), 0)], maxlen=keep + 1)

    @property
    def current(self) -> Version:
        """The version that the parameters themselves have."""
        return self._versions[-1]

    @property
    def held(self) -> int:
        """Versions that take memory of their own: the current one, and those that graphs in flight read."""
        return self._read + (self.current.storage.readers == 0)

    def version(self, number: int | None) -> Version:
        """The version that ``number`` updates made; the current one for None."""
        if number is None:
            return self.current
        return next(version for version in self._versions if version.number == number)

    @property
    def older(self) -> Mapping[str, Tensor]:
        """The owned parameters as the version before the current one has them; none where only one is kept."""
        return {} if len(self._versions) < 2 else self._versions[-2].storage.tensors

    def restore(self, number: int, older: Mapping[str, Tensor]) -> None:
        """Call the parameters, which were written from outside, version ``number``.

        Args:
            older: the version before it; empty where there is none, and what asks for it gets the current one.
        """
        current = self._on(self._own_storage(), number)
        before = current._replace(number=number - 1)
        if older:
            before = self._on(self._storage(older), number - 1)
        self._versions.extend([before, current])
        self._installed = None

    def lent(self, owner: str, number: int | None) -> Tensor:
        """The parameter ``owner`` as version ``number`` has it, to be sent while updates go on."""
        leaf = self.version(number).leaves[owner]
        # With a stash, updates go elsewhere as long as a graph reads this memory. Without one they write right here.
        return leaf if self._stashes else leaf.detach().clone()

    def acquire(self, number: int | None = None) -> Version:
        """A version, kept until ``release``."""
        version = self.version(number)
        self._read += version.storage.readers == 0
        version.storage.readers += 1
        return version

    def release(self, version: Version) -> None:
        """Say that the graph that ran on ``version`` has ended."""
        version.storage.readers -= 1
        self._read -= version.storage.readers == 0
        self._reuse(version.storage)

    def install(self, version: Version) -> None:
        """Let the modules compute with ``version``. Pointers only; no tensor is copied."""
        if self._installed is version.leaves:
            return
        for name, leaf in version.leaves.items():
            module, key = self._slots[name]
            module._parameters[key] = leaf  # type: ignore[assignment]  # a leaf is a Parameter in all but type
        for recurrent in self._recurrent:  # these look their weights up in a list of their own
            recurrent._flat_weights = [getattr(recurrent, name) for name in recurrent._flat_weights_names]
        self._installed = version.leaves

    def hand_out(self, version: Version, factor: float = 1.0) -> None:
        """Let the next backward on ``version`` add to the sums so far, in place: the same sums, with a copy less."""
        if factor != 1.0:
            return  # this backward's gradients must be divided before they join the others
        for name in self.gradients.keys() & version.leaves.keys():
            version.leaves[name].grad = self.gradients.pop(name)

    def collect(self, version: Version, factor: float = 1.0) -> None:
        """Add the gradients, over ``factor``, that a backward left on the leaves of ``version``, in order of calls."""
        for name, leaf in version.leaves.items():
            if (gradient := leaf.grad) is not None:
                leaf.grad = None
                self._add(name, gradient, factor)

    @contextmanager
    def collecting(self, version: Version, factor: float, give: Give) -> Iterator[None]:
        """Within this, a backward's gradients are collected one by one, and their sum so far is given on at once."""
        hook = self.collector(version, factor, give)
        leaves = [leaf for leaf in version.leaves.values() if leaf.requires_grad]
        register = Tensor.register_post_accumulate_grad_hook
        hooks = [register(leaf, hook) for leaf in leaves]  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for each in hooks:
                each.remove()

    def collector(self, version: Version, factor: float, give: Give) -> Callable[[Tensor], None]:
        """What collects the gradient of one leaf of ``version``, and gives its sum so far on."""
        names = {id(leaf): name for name, leaf in version.leaves.items()}

        def take(leaf: Tensor) -> None:
            name, gradient = names[id(leaf)], leaf.grad
            assert gradient is not None
            leaf.grad = None
            self._add(name, gradient, factor)
            give(name, self.gradients[name])

        return take

    def _add(self, name: str, gradient: Tensor, factor: float) -> None:
        if factor != 1.0:
            gradient.div_(factor)
        if name in self.gradients:
            self.gradients[name].add_(gradient)
        else:
            self.gradients[name] = gradient

    @property
    def on_loan(self) -> Mapping[str, Tensor]:
        """What was received last for each borrowed parameter, as ``borrow`` takes it."""
        return dict(self._received)

    def borrow(self, name: str, value: Tensor) -> None:
        """Use ``value``, just received from its owner's stage, for the borrowed parameter ``name`` from now on."""
        self._received[name] = value.requires_grad_(name not in self._frozen)
        for index, version in enumerate(self._versions):
            self._versions[index] = version._replace(leaves={**version.leaves, **self._received})

    def before_update(self) -> None:
        """Make the parameters safe to write: on a copy where a graph in flight reads them, in place where none does."""
        if not self._is_in_use():
            return
        self._written, self._spare = self._spare or self._another_storage(), None
        for name, parameter in self.parameters.items():
            parameter.data = self._written.tensors[name].copy_(parameter.data)

    def after_update(self) -> None:
        """Begin the next version; the same weights under another number where the update was left out."""
        self.gradients.clear()
        number = self.current.number + 1
        written, self._written = self._written, None
        oldest = self._versions[0].storage
        self._versions.append(self._on(written, number) if written else self.current._replace(number=number))
        self._reuse(oldest)

    def _reuse(self, storage: Storage) -> None:
        """Keep memory that nobody needs any more for the next copy: writing to fresh pages costs far more."""
        if storage.readers == 0 and all(version.storage is not storage for version in self._versions):
            self._spare = storage

    def _is_in_use(self) -> bool:
        """Whether an update must leave the current version's storage alone."""
        return self._stashes and (self._versions.maxlen != 1 or self.current.storage.readers > 0)

    def _on(self, storage: Storage, number: int) -> Version:
        return Version(number, {**storage.leaves, **self._received} if self._received else storage.leaves, storage)

    def _own_storage(self) -> Storage:
        """That of the parameters at present."""
        return self._storage({name: parameter.data for name, parameter in self.parameters.items()})

    def _another_storage(self) -> Storage:
        return self._storage({name: torch.empty_like(parameter.data) for name, parameter in self.parameters.items()})

    def _storage(self, tensors: Mapping[str, Tensor]) -> Storage:
        """With leaves on the memory of ``tensors``, the owned parameters by full name."""
        leaves = {name: self._leaf(name, tensors) for name in self.parameters}
        for name, owner in self.borrowed.items():
            if owner in self.parameters:
                # A leaf of its own: gradients of each holder are summed apart, as they are when stages part them.
                leaves[name] = self._leaf(owner, tensors)
        return Storage(tensors, leaves)

    def _leaf(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors[name].data.requires_grad_(self.parameters[name].requires_grad)


def _slots(module: nn.Module) -> dict[str, Slot]:
    """Where every parameter of ``module`` is looked up, by its name in the module."""
    slots = {}
    for name, _ in module.named_parameters():
        path, _, key = name.rpartition(".")
        slots[name] = (module.get_submodule(path), key)
    return slots
