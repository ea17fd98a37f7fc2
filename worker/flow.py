"""What crosses each cut of a model: names from the layers' own lists, shapes and dtypes from the meta device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.data.base import Signature, TensorSpec
from worker.errors import ModelError
from worker.models.base import Layer, Model
from worker.precision import rounded


@dataclass(frozen=True)
class Cut:
    """The tensors that cross between two layers, in an order both sides know.

    ``differentiable`` are those whose gradient travels back: a parameter comes before them, and the loss depends on
    them in a way that autograd can follow. With ``varies`` each minibatch has sizes of its own.
    """

    specs: Mapping[str, TensorSpec]
    differentiable: frozenset[str]
    varies: bool = False


@dataclass(frozen=True)
class Flow:
    """A model that has been walked once on the meta device.

    ``cuts[i]`` stands before layer i; ``modules`` are the layers without storage, to be materialised by their stage.
    ``holders`` gives for every full parameter name, in layer order, the layer that has it; ``tied`` is the model's, in
    the order of the borrowers' layers.
    """

    cuts: tuple[Cut, ...]
    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    holders: Mapping[str, int]
    tied: Mapping[str, str]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Full names of all parameters in layer order, borrowed ones left out."""
        return tuple(name for name in self.holders if name not in self.tied)

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype of a parameter by full name."""
        layer = self.holders[name]
        parameters = dict(self.modules[layer].named_parameters(prefix=self.names[layer]))
        return TensorSpec(tuple(parameters[name].shape), parameters[name].dtype)


def trace(model: Model, signature: Signature, dtype: torch.dtype | None = None) -> Flow:
    """Walk ``model`` on the meta device. The last layer is not run: a loss may depend on values.

    Raises ModelError naming the layer that cannot be built, takes a tensor nobody gives, fails on its input, or returns
    something else than it says; and where names or ties are ambiguous.
    """
    _check_names(model, signature)
    modules = tuple(_build(layer) for layer in model.layers)
    holders = _holders(model, modules)
    values = {name: torch.empty(spec.shape, dtype=spec.dtype, device="meta") for name, spec in signature.inputs.items()}
    before: list[dict[str, Tensor]] = []
    links: list[Links] = []
    for index, layer in enumerate(model.layers):
        _check_inputs(model, index, values, signature)
        before.append({name: values[name] for name in values if _is_needed(name, model.layers[index:])})
        if index < len(model.layers) - 1:
            results, link = _run(layer, modules[index], values)
            values |= {name: rounded(value, dtype) for name, value in results.items()}
            links.append(link)
    wanted = _wanted(model.layers, links)
    cuts = tuple(_cut(live, names, signature.varies) for live, names in zip(before, wanted, strict=True))
    tied = {name: model.tied[name] for name in holders if name in model.tied}
    flow = Flow(cuts, tuple(layer.name for layer in model.layers), modules, holders, tied)
    _check_ties(model.tied, flow)
    return flow


def outputs_of(layer: Layer, result: object) -> tuple[Tensor, ...]:
    """What the module of ``layer`` returned, as one tensor per output. Raises ModelError where it is not that."""
    outputs = result if isinstance(result, tuple) else (result,)
    if len(outputs) != len(layer.outputs) or not all(isinstance(value, Tensor) for value in outputs):
        kinds = ", ".join(type(value).__name__ for value in outputs)
        raise ModelError(
            f"layer {layer.name} returns ({kinds}) for its outputs ({', '.join(layer.outputs)})",
            "return one tensor, or a tuple of tensors, in the order of the layer's outputs",
        )
    return outputs


def _check_names(model: Model, signature: Signature) -> None:
    """A name must mean one thing wherever the model is cut."""
    if not model.layers:
        raise ModelError("the model has no layers")
    names: set[str] = set()
    for layer in model.layers:
        if layer.name in names:
            raise ModelError(f"two layers are called {layer.name}", "give every layer a name of its own")
        if len(set(layer.outputs)) < len(layer.outputs):
            raise ModelError(f"layer {layer.name} gives two outputs one name: {', '.join(layer.outputs)}")
        if clash := [name for name in layer.outputs if name in signature.targets]:
            raise ModelError(f"layer {layer.name} gives {clash[0]}, a target of the data", "rename one of them")
        names.add(layer.name)
    if clash := [name for name in signature.inputs if name in signature.targets]:
        raise ModelError(f"the data has {clash[0]} among its inputs and its targets", "rename one of them")
    if len(model.layers[-1].outputs) != 1:
        raise ModelError(
            f"the last layer, {layer.name}, gives ({', '.join(layer.outputs)}); it must give the loss alone"
        )


def _build(layer: Layer) -> nn.Module:
    try:
        with torch.device("meta"):
            return layer.build()
    except Exception as error:
        raise ModelError(f"layer {layer.name} cannot be built: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _is_needed(name: str, layers: Sequence[Layer]) -> bool:
    """Whether the value that ``name`` has now is taken by one of ``layers`` before another is given that name."""
    for layer in layers:
        if name in layer.inputs:
            return True
        if name in layer.outputs:
            return False
    return False


def _cut(values: Mapping[str, Tensor], wanted: set[str], varies: bool) -> Cut:
    return Cut(
        specs={name: TensorSpec.of(value) for name, value in values.items()},
        differentiable=frozenset(name for name, value in values.items() if value.requires_grad and name in wanted),
        varies=varies,
    )


def _check_inputs(model: Model, index: int, values: Mapping[str, Tensor], signature: Signature) -> None:
    layer, last = model.layers[index], index == len(model.layers) - 1
    known = set(values) | (set(signature.targets) if last else set())
    if missing := [name for name in layer.inputs if name not in known]:
        raise ModelError(
            f"layer {layer.name} takes {', '.join(missing)}, which no earlier layer and no input of the data gives",
            f"known here: {', '.join(sorted(known))}; targets reach the last layer only",
        )


Links = Mapping[str, set[str]]
"""For each output of a layer the inputs that it passes gradients to."""


def _run(layer: Layer, module: nn.Module, values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Links]:
    """The outputs of one layer on the meta device; they require a gradient where a parameter comes before them."""
    leaves = {name: values[name].detach().requires_grad_(values[name].requires_grad) for name in layer.inputs}
    versions = {name: leaf._version for name, leaf in leaves.items()}
    try:
        with torch.enable_grad():
            result = module(*(leaves[name] for name in layer.inputs))
    except Exception as error:
        raise ModelError(
            f"layer {layer.name} fails on its input: {_brief(error)}",
            "layers are first run without values, to learn shapes; no shape may depend on a value",
        ) from error
    if written := [name for name, leaf in leaves.items() if leaf._version != versions[name]]:
        hint = "compute a new tensor: this one may be on its way to another stage, or be needed to recompute the layer"
        raise ModelError(f"layer {layer.name} writes to its input {written[0]}", hint)
    outputs = dict(zip(layer.outputs, outputs_of(layer, result), strict=True))
    names = {id(leaf): name for name, leaf in leaves.items()}
    links = {name: {names[leaf] for leaf in _leaves(value) if leaf in names} for name, value in outputs.items()}
    return {name: value.detach().requires_grad_(value.requires_grad) for name, value in outputs.items()}, links


def _leaves(value: Tensor) -> set[int]:
    """The ids of all leaves that a backward from ``value`` would reach."""
    found, seen = {id(value)}, set()
    stack = [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        stack += [following for following, _ in node.next_functions]
    return found


def _wanted(layers: Sequence[Layer], links: Sequence[Links]) -> list[set[str]]:
    """For each cut the names of the values whose gradient comes from the loss. The last layer may use any it takes."""
    wanted = [set(layers[-1].inputs)]
    for layer, link in zip(layers[-2::-1], reversed(links), strict=True):
        behind = wanted[0]
        used = [link[name] for name in layer.outputs if name in behind]
        wanted.insert(0, (behind - set(layer.outputs)).union(*used))
    return wanted


def _holders(model: Model, modules: Sequence[nn.Module]) -> dict[str, int]:
    """The layer of every parameter, by full name; checks that each is one of its own."""
    holders: dict[str, int] = {}
    names: dict[int, str] = {}
    for index, (layer, module) in enumerate(zip(model.layers, modules, strict=True)):
        for name, parameter in module.named_parameters(prefix=layer.name, remove_duplicate=False):
            if name in holders:
                raise ModelError(f"two parameters have the name {name}", "give every layer a name of its own")
            if (first := names.setdefault(id(parameter), name)) != name:
                hint = "make one of them a parameter of its own, and tie it to the other with Model.tied"
                raise ModelError(f"{first} and {name} are one parameter", hint)
            if parameter.dtype != torch.float32:
                hint = "leave parameters in float32; `precision` sets what layers compute in"
                raise ModelError(f"{name} is {TensorSpec.of(parameter)}", hint)
            holders[name] = index
    return holders


def _check_ties(tied: Mapping[str, str], flow: Flow) -> None:
    for borrower, owner in tied.items():
        if missing := [name for name in (borrower, owner) if name not in flow.holders]:
            raise ModelError(f"{borrower} is tied to {owner}, but there is no {missing[0]}")
        if owner in tied:
            raise ModelError(f"{borrower} is tied to {owner}, which is tied itself", f"tie both to {tied[owner]}")
        if flow.holders[owner] > flow.holders[borrower]:
            raise ModelError(f"{borrower} borrows {owner}, whose layer comes later", "let the earlier layer own it")
        if flow.spec(borrower) != flow.spec(owner):
            raise ModelError(f"{borrower} is {flow.spec(borrower)}, but {owner}, its owner, {flow.spec(owner)}")
