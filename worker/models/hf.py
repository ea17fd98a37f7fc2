"""Causal and masked language models of the transformers package, by configuration or from a folder.

Layers: ``before`` (embeddings, masks, angles), then the model's own blocks under the names they have there
(``model.layers.3``), then ``behind`` (last norm, head, loss). Full parameter names are theirs, but for ``before.`` and
``behind.`` in front; ``worker.models.names`` takes those off again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from worker.errors import ModelError
from worker.models import folder, hf_split
from worker.models.base import Layer, Model
from worker.models.hf_split import Split
from worker.models.parts import token_loss, token_scores
from worker.spec.data import DataSpec, Hdf5Spec, SyntheticSpec
from worker.spec.model import HfSpec

Texts = DataSpec | Hdf5Spec | SyntheticSpec

BEFORE, BEHIND = "before", "behind"
ATTENTION = "vpipe"
"""The attention registered with transformers: torch's, with masks that never depend on values."""


def build(spec: HfSpec, data: Texts) -> Model:
    """The layers for sequences of ``data.sequence_length`` tokens.

    Raises:
        ModelError: the package is missing, the configuration is refused, or the model cannot be split: with the reason.
    """
    model = on_meta(spec)
    vocabulary = model.config.get_text_config().vocab_size
    if vocabulary < data.vocab_size:
        raise ModelError(
            f"the model has {vocabulary} words, but data.vocab_size is {data.vocab_size}",
            f"set data.vocab_size to at most {vocabulary}",
        )
    inputs = _inputs(spec, model)
    shape = (data.minibatch_size, data.sequence_length)
    split = hf_split.watch(
        model, _arguments(inputs, {n: torch.zeros(shape, dtype=d, device="meta") for n, d in inputs.items()})
    )
    values = _Values(spec, model)
    shared = tuple(split.sources)
    layers = [Layer(BEFORE, partial(_before, split, tuple(inputs), values), tuple(inputs), ("hidden", *shared))]
    for index, call in enumerate(split.calls):
        takes = ("hidden", *dict.fromkeys(call.shared.values()))
        layers.append(Layer(f"{split.blocks}.{index}", partial(_block, split, index, values), takes, ("hidden",)))
    layers.append(Layer(BEHIND, partial(_behind, split, tuple(inputs), shape, values), ("hidden", "labels"), ("loss",)))
    loss = "causal_lm" if spec.head == "causal" else "masked_lm"
    return Model(tuple(layers), (loss,), _tied(split))


def on_meta(spec: HfSpec) -> Any:
    """The package's own model of the configuration, without storage. Raises ModelError."""
    try:
        import transformers
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        raise ModelError(f"model hf needs the transformers package ({error})", "pip install 'vpipe[hf]'") from None

    def always(*args: Any, **kwargs: Any) -> Any:
        return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})

    transformers.AttentionInterface.register(ATTENTION, sdpa_attention_forward)
    transformers.AttentionMaskInterface.register(ATTENTION, always)
    auto = transformers.AutoModelForCausalLM if spec.head == "causal" else transformers.AutoModelForMaskedLM
    try:
        if spec.folder is not None:
            config = transformers.AutoConfig.from_pretrained(spec.folder, local_files_only=True)
        else:
            config = transformers.AutoConfig.for_model(**(spec.config or {}))
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(f"{config.model_type} cannot be split: it has an encoder and a decoder")
        with torch.device("meta"):
            build_model: Any = auto.from_config
            model = build_model(config, attn_implementation=ATTENTION, dtype=torch.float32)
    except ModelError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ModelError(f"transformers refuses the model: {reason}", "see model.folder and model.config") from error
    model.config.use_cache = False
    return model.train()


def _inputs(spec: HfSpec, model: Any) -> dict[str, torch.dtype]:
    """The inputs of the data that the model takes."""
    if spec.head == "causal":
        return {"input_ids": torch.int64}
    takes = model.forward.__code__.co_varnames
    segments = {"segment_ids": torch.int64} if "token_type_ids" in takes or _wrapped(model, "token_type_ids") else {}
    return {"input_ids": torch.int64, **segments, "attention_mask": torch.bool}


def _wrapped(model: Any, name: str) -> bool:
    import inspect

    return name in inspect.signature(model.forward).parameters


def _arguments(names: Mapping[str, Any] | tuple[str, ...], values: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the model is called with. Without a mask it would look into the values, so it always gets one."""
    ids = values["input_ids"]
    mask = values["attention_mask"] if "attention_mask" in names else torch.ones_like(ids)
    arguments = {"input_ids": ids, "attention_mask": mask.long()}
    return {**arguments, **({"token_type_ids": values["segment_ids"]} if "segment_ids" in names else {})}


class _Stop(Exception):
    """Ends a forward once the last block was reached."""


class _Tap(nn.Module):
    """Stands in for a block: ``seen`` gets what it is given; gives back ``gives()``, or its hidden state."""

    def __init__(self, block: nn.Module, seen: Callable[[tuple[Any, ...], dict[str, Any]], Any], entries: int) -> None:
        super().__init__()
        for name, value in vars(block).items():  # some models ask a block what kind it is
            if not name.startswith("_") and isinstance(value, (str, int, float, bool)) and name != "training":
                setattr(self, name, value)
        self._seen, self._entries = seen, entries

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = self._seen(args, kwargs)
        return (hidden, *[None] * (self._entries - 1)) if self._entries else hidden


class _Nothing(nn.Module):
    """Stands in for a module whose work is done in another stage: gives zeros of the right shape.

    Some models set the initial values of a module's parts, so it has a weight and a bias to be set: of no elements.
    """

    def __init__(self, shapes: Any) -> None:
        super().__init__()
        self.shapes = shapes
        self.__dict__.update(weight=torch.empty(0, 0, device="cpu"), bias=torch.empty(0, device="cpu"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        device = next((value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        return hf_split.zeros(self.shapes, device or torch.device("cpu"))


class _Part(nn.Module):
    """What runs before or behind the blocks: the whole model without the rest, under its own names."""

    def __init__(self, split: Split, keep: frozenset[str], values: _Values) -> None:
        super().__init__()
        shell = _shell(split, keep, self._tap)
        for name, child in shell.named_children():  # so that names here are those in the model
            self.add_module(name, child)
        self._shell: Callable[..., Any]
        self.__dict__["_shell"] = shell
        _alias(self)
        self.reset_parameters = partial(values.set, self, "")

    def _tap(self, args: tuple[Any, ...], kwargs: dict[str, Any], number: int) -> Any:
        raise NotImplementedError


class _Before(_Part):
    """Inputs of the data -> hidden state, and what all blocks share."""

    def __init__(self, split: Split, inputs: tuple[str, ...], values: _Values) -> None:
        super().__init__(split, split.before, values)
        self._inputs, self._sources, self._last = inputs, split.sources, len(split.calls) - 1
        self._found: dict[str, Tensor] = {}

    def _tap(self, args: tuple[Any, ...], kwargs: dict[str, Any], number: int) -> Any:
        self._found.setdefault("hidden", args[0])
        for name, (block, path) in self._sources.items():
            if block == number:
                self._found[name] = hf_split.at(args[1:], kwargs, path)
        if number == self._last:
            raise _Stop
        return args[0]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        self._found = {}
        with suppress(_Stop):
            self._shell(**_arguments(self._inputs, dict(zip(self._inputs, tensors, strict=True))))
        found, self._found = self._found, {}
        return (found["hidden"], *(found[name] for name in self._sources))


class _Behind(_Part):
    """The hidden state behind the last block and the labels -> (1,), the sum of the loss."""

    def __init__(self, split: Split, inputs: tuple[str, ...], shape: tuple[int, int], values: _Values) -> None:
        super().__init__(split, split.behind, values)
        self._inputs, self._shape = inputs, shape
        self._hidden: Tensor | None = None

    def _tap(self, args: tuple[Any, ...], kwargs: dict[str, Any], number: int) -> Any:
        return self._hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(b, s, h) -> (b, s, vocabulary)."""
        ids = torch.zeros(self._shape, dtype=torch.int64, device=hidden.device)
        values = {"input_ids": ids, "segment_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}
        self._hidden = hidden
        try:
            return cast(Tensor, self._shell(**_arguments(self._inputs, values)).logits)
        finally:
            self._hidden = None

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return token_loss(self.logits(hidden), labels)

    def scores(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Evaluation: how many labels were the likeliest, and among the five likeliest."""
        return token_scores(self.logits(hidden), labels)


def _before(split: Split, inputs: tuple[str, ...], values: _Values) -> nn.Module:
    return _Before(split, inputs, values)


def _behind(split: Split, inputs: tuple[str, ...], shape: tuple[int, int], values: _Values) -> nn.Module:
    return _Behind(split, inputs, shape, values)


def _block(split: Split, index: int, values: _Values) -> nn.Module:
    """A block that takes the hidden state and its shared tensors by position."""
    name, call = f"{split.blocks}.{index}", split.calls[index]
    block = copy.deepcopy(split.model.get_submodule(name))
    _alias(block)
    original = type(block).forward
    order = list(dict.fromkeys(call.shared.values()))

    def forward(hidden: Tensor, *shared: Tensor) -> Any:
        given = dict(zip(order, shared, strict=True))
        args: Any = call.args
        kwargs = dict(call.kwargs)
        for path, tensor in call.shared.items():
            if isinstance(path[0], int):
                args = hf_split.fill(args, path, given[tensor])
            else:
                kwargs[path[0]] = hf_split.fill(kwargs[path[0]], path[1:], given[tensor])
        result = original(block, hidden, *args, **kwargs)
        return result[0] if isinstance(result, tuple) else result

    block.forward = forward
    block.reset_parameters = partial(values.set, block, f"{name}.")  # type: ignore[assignment]
    return block


def _alias(part: nn.Module) -> None:
    """Let a parameter that several modules of ``part`` share belong to the first, where the others look it up."""
    owners: dict[int, tuple[nn.Module, str]] = {}
    for module in part.modules():
        for key, parameter in list(module._parameters.items()):
            owner = owners.setdefault(id(parameter), (module, key))
            if parameter is not None and owner[0] is not module:
                del module._parameters[key]
                shared = property(partial(_first_of, owner))
                module.__class__ = type(type(module).__name__, (type(module),), {key: shared})


def _first_of(owner: tuple[nn.Module, str], module: nn.Module) -> Any:
    return getattr(*owner)


def _shell(split: Split, keep: frozenset[str], tap: Callable[..., Any]) -> nn.Module:
    """The model with taps for blocks, and nothing that ``keep`` does not name."""
    blocks = split.model.get_submodule(split.blocks)
    taps = [
        _Tap(block, partial(tap, number=number), split.gives_tuple)
        for number, block in enumerate(cast(nn.ModuleList, blocks))
    ]
    memo: dict[int, nn.Module] = {id(blocks): nn.ModuleList(taps)}
    for name in (split.before | split.behind) - keep:
        memo[id(split.model.get_submodule(name))] = _Nothing(split.returns.get(name))
    return copy.deepcopy(split.model, memo)


def _tied(split: Split) -> dict[str, str]:
    """Parameters of the last layer that are those of the first."""
    tied = {}
    owners: dict[int, str] = {}
    for name, parameter in split.model.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        if owner in split.before:
            owners.setdefault(id(parameter), f"{BEFORE}.{name}")
    for name, parameter in split.model.named_parameters(remove_duplicate=False):
        if name.rpartition(".")[0] in split.behind and id(parameter) in owners:
            tied[f"{BEHIND}.{name}"] = owners[id(parameter)]
    return tied


class _Values:
    """Gives parts of the model their initial values: the package's own, or those of a folder."""

    def __init__(self, spec: HfSpec, model: Any) -> None:
        self._model = model
        loads = spec.folder is not None and spec.weights == "load"
        self._index = folder.index(Path(spec.folder or ""), INSTEAD) if loads else None
        self._prefix = f"{model.base_model_prefix}."

    def set(self, part: nn.Module, prefix: str) -> None:
        """Set all parameters and buffers of ``part``, whose names in the model begin with ``prefix``.

        Raises:
            ModelError: one has no initial value, or the folder has none for it.
        """
        for tensor in (*part.parameters(), *part.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else _UNSET)
        for module in part.modules():
            self._model._init_weights(module)
        if self._index is not None:
            self._load(part, prefix)
        for name, tensor in (*part.named_parameters(), *part.named_buffers()):
            unset = tensor.isnan() if tensor.is_floating_point() else tensor == _UNSET
            if tensor.dtype != torch.bool and tensor.numel() and bool(unset.any()):
                raise ModelError(f"{prefix}{name} gets no initial value from {type(self._model).__name__}")

    def _load(self, part: nn.Module, prefix: str) -> None:
        assert self._index is not None
        tied = set(getattr(self._model, "all_tied_weights_keys", None) or ())
        for name, tensor in part.state_dict(keep_vars=True).items():
            full = prefix + name
            found = next((key for key in (full, full.removeprefix(self._prefix)) if key in self._index), None)
            if found is None:
                if full in tied:
                    continue
                raise ModelError(
                    f"model.folder has no weights called {full}",
                    "weights=fresh starts at random; export such weights anew",
                )
            value = folder.read(self._index[found], found)
            if value.shape != tensor.shape:
                raise ModelError(f"{full} is {tuple(value.shape)} in model.folder, {tuple(tensor.shape)} in the model")
            tensor.data.copy_(value)


_UNSET = -7_770_777
INSTEAD = "start at random with model.weights=fresh"
