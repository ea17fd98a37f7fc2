"""What crosses each cut, and every way in which a model's names, shapes and ties can be wrong."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import toy
from worker.data.base import Signature, TensorSpec
from worker.errors import ModelError
from worker.flow import trace
from worker.models.base import Layer, Model

IDS = TensorSpec((2, 3), torch.int64)
SIGNATURE = Signature({"ids": IDS}, {"labels": IDS})


class Apply(nn.Module):
    """A layer without parameters."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function


def layer(name: str, inputs: str, outputs: str, function: Callable[..., Any] = lambda *tensors: tensors[0]) -> Layer:
    return Layer(name, lambda: Apply(function), tuple(inputs.split()), tuple(outputs.split()))


LOSS = layer("loss", "h labels", "loss")
EMBED = Layer("embed", lambda: nn.Embedding(5, 4), ("ids",), ("h",))
OUT = Layer("out", lambda: nn.Linear(4, 5), ("h",), ("h",))


def square(name: str) -> Layer:
    return Layer(name, lambda: nn.Linear(4, 4), ("h",), ("h",))


def model(*layers: Layer, tied: Mapping[str, str] | None = None) -> Model:
    return Model(layers, tied=tied or {})


def test_a_tensor_crosses_every_cut_between_giver_and_last_taker() -> None:
    flow = trace(toy.model(blocks=2), toy.Data().signature)
    crossing = [set(cut.specs) for cut in flow.cuts]
    assert crossing == [{"ids", "mask"}, {"hidden", "skip", "mask"}, {"hidden", "skip", "mask"}, {"hidden", "skip"}]
    assert [set(cut.differentiable) for cut in flow.cuts[1:]] == [{"hidden", "skip"}] * 3
    assert flow.cuts[2].specs["mask"] == TensorSpec((toy.BATCH, toy.LENGTH), torch.bool)


def test_a_value_that_is_given_anew_does_not_cross() -> None:
    flow = trace(model(EMBED, layer("a", "h", "x"), layer("b", "ids", "h"), layer("c", "h x", "h"), LOSS), SIGNATURE)
    assert [set(cut.specs) for cut in flow.cuts] == [{"ids"}, {"ids", "h"}, {"ids", "x"}, {"x", "h"}, {"h"}]


def differentiable(*layers: Layer, inputs: TensorSpec = IDS) -> list[str]:
    """What has a gradient at each cut, the names in one word."""
    cuts = trace(model(*layers), Signature({"ids": inputs}, {"labels": IDS})).cuts
    return ["".join(sorted(cut.differentiable)) for cut in cuts]


def test_nothing_has_a_gradient_before_the_first_parameter() -> None:
    floats = TensorSpec((2, 4), torch.float32)
    assert differentiable(layer("a", "ids", "h", torch.sin), OUT, LOSS, inputs=floats) == ["", "", "h"]


def test_nothing_has_a_gradient_that_none_could_come_back_to() -> None:
    loss = layer("loss", "h labels", "loss")
    assert differentiable(EMBED, layer("a", "h", "h", Tensor.detach), square("b"), loss) == ["", "", "", "h"]
    assert differentiable(EMBED, layer("a", "h", "h", Tensor.long), layer("b", "h", "h"), loss) == ["", "", "", ""]


def test_a_gradient_goes_around_a_layer_that_stops_it() -> None:
    stops = layer("a", "h", "x", Tensor.detach)
    joins = layer("b", "h x", "h", torch.add)
    assert differentiable(EMBED, stops, joins, LOSS) == ["", "h", "h", "h"]


def test_each_output_has_the_gradients_of_its_own_inputs() -> None:
    crosses = layer("a", "h x", "x h", lambda h, x: (h * 2, x.detach()))
    assert differentiable(EMBED, layer("split", "h", "h x", lambda h: (h, h)), crosses, LOSS) == ["", "", "", ""]
    loss = layer("loss", "x labels", "loss")
    assert differentiable(EMBED, layer("split", "h", "h x", lambda h: (h, h)), crosses, loss) == ["", "h", "h", "x"]


def test_parameters_are_named_in_layer_order_without_borrowed_ones() -> None:
    flow = trace(toy.model(blocks=1), toy.Data().signature)
    assert flow.parameters[0] == "embed.word.weight"
    assert flow.parameters[-1] == "head.decoder.bias"
    assert flow.tied == {"head.decoder.weight": "embed.word.weight"}
    assert flow.spec("head.decoder.weight") == TensorSpec((toy.WORDS, toy.WIDTH), torch.float32)


def twice_one_parameter() -> nn.Module:
    both = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    both[1].weight = both[0].weight
    return both


SHARED = nn.Linear(4, 4, device="meta")


def fail() -> nn.Module:
    raise ValueError("no such size\nin two lines")


BAD: dict[str, tuple[Model, str]] = {
    "no layers": (model(), "the model has no layers"),
    "two of a name": (model(EMBED, layer("embed", "h", "h"), LOSS), "two layers are called embed"),
    "one name for two outputs": (
        model(EMBED, layer("a", "h", "h h", lambda h: (h, h)), LOSS),
        "layer a gives two outputs one name: h, h",
    ),
    "gives a target": (model(EMBED, layer("a", "h", "labels"), LOSS), "layer a gives labels, a target of the data"),
    "two losses": (
        model(EMBED, layer("loss", "h", "loss other")),
        "the last layer, loss, gives (loss, other); it must give the loss alone",
    ),
    "takes the unknown": (
        model(EMBED, layer("a", "h x", "h"), LOSS),
        "layer a takes x, which no earlier layer and no input of the data gives",
    ),
    "takes a target early": (
        model(EMBED, layer("a", "h labels", "h"), LOSS),
        "layer a takes labels, which no earlier layer and no input of the data gives",
    ),
    "takes what is given later": (
        model(EMBED, layer("a", "x", "h"), layer("b", "h", "x"), LOSS),
        "layer a takes x, which no earlier layer and no input of the data gives",
    ),
    "cannot be built": (
        model(Layer("a", fail, ("ids",), ("h",)), LOSS),
        "layer a cannot be built: ValueError: no such size",
    ),
    "does not fit its input": (
        model(EMBED, Layer("a", lambda: nn.Linear(7, 4), ("h",), ("h",)), LOSS),
        "layer a fails on its input: RuntimeError: ",
    ),
    "writes to an input without gradients": (
        model(layer("a", "ids", "x", lambda ids: ids[0].add_(1) * 2), EMBED, LOSS),
        "layer a writes to its input ids",
    ),
    "writes to its input": (
        model(EMBED, layer("a", "h", "h", lambda h: h.relu_()), LOSS),
        "layer a fails on its input: RuntimeError: a leaf Variable that requires grad is being used in an in-place",
    ),
    "shape depends on values": (
        model(EMBED, layer("a", "h", "h", lambda h: h[h > 0]), LOSS),
        "layer a fails on its input: NotImplementedError: ",
    ),
    "returns nothing": (
        model(EMBED, layer("a", "h", "h", lambda h: None), LOSS),
        "layer a returns (NoneType) for its outputs (h)",
    ),
    "returns a list": (
        model(EMBED, layer("a", "h", "h x", lambda h: [h, h]), LOSS),
        "layer a returns (list) for its outputs (h, x)",
    ),
    "returns too few": (
        model(EMBED, layer("a", "h", "h x", lambda h: (h,)), LOSS),
        "layer a returns (Tensor) for its outputs (h, x)",
    ),
    "tied to nothing": (
        model(EMBED, OUT, LOSS, tied={"out.weight": "embed.w"}),
        "out.weight is tied to embed.w, but there is no embed.w",
    ),
    "nothing tied": (
        model(EMBED, OUT, LOSS, tied={"out.w": "embed.weight"}),
        "out.w is tied to embed.weight, but there is no out.w",
    ),
    "tied to a later one": (
        model(EMBED, OUT, LOSS, tied={"embed.weight": "out.weight"}),
        "embed.weight borrows out.weight, whose layer comes later",
    ),
    "tied to itself": (
        model(EMBED, OUT, LOSS, tied={"out.weight": "out.weight"}),
        "out.weight is tied to out.weight, which is tied itself",
    ),
    "tied in a chain": (
        model(
            EMBED, square("a"), square("b"), square("c"), LOSS, tied={"c.weight": "b.weight", "b.weight": "a.weight"}
        ),
        "c.weight is tied to b.weight, which is tied itself",
    ),
    "tied to another shape": (
        model(EMBED, OUT, LOSS, tied={"out.bias": "embed.weight"}),
        "out.bias is float32 (5,), but embed.weight, its owner, float32 (5, 4)",
    ),
    "a parameter twice in a layer": (
        model(EMBED, Layer("a", twice_one_parameter, ("h",), ("h",)), LOSS),
        "a.0.weight and a.1.weight are one parameter",
    ),
    "a parameter in two layers": (
        model(EMBED, *(Layer(name, lambda: SHARED, ("h",), ("h",)) for name in "ab"), LOSS),
        "a.weight and b.weight are one parameter",
    ),
    "names that meet": (
        model(
            EMBED,
            Layer("a", lambda: nn.Sequential(OrderedDict(b=nn.Linear(4, 4))), ("h",), ("h",)),
            square("a.b"),
            LOSS,
        ),
        "two parameters have the name a.b.weight",
    ),
    "double parameters": (
        model(Layer("embed", lambda: nn.Embedding(5, 4, dtype=torch.float64), ("ids",), ("h",)), LOSS),
        "embed.weight is float64 (5, 4)",
    ),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_a_model_that_cannot_be_cut_is_refused(bad: Model, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        trace(bad, SIGNATURE)
    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message


def test_a_name_that_is_input_and_target_is_refused() -> None:
    with pytest.raises(ModelError, match="the data has ids among its inputs and its targets"):
        trace(model(EMBED, layer("loss", "h", "loss")), Signature({"ids": IDS}, {"ids": IDS}))
