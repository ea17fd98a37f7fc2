"""ResNet-50 (He et al. 2016; stride in the 3x3 convolution) and VGG-16 (Simonyan, Zisserman 2015) as lists of layers.

Layers and their parts are called as in torchvision, so that full parameter names are the same, and so are the counts:
25 557 032 and 138 357 544 for a thousand classes. A norm's running statistics are of the rank's own minibatches.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from worker.models.base import Layer, Model
from worker.models.parts import token_loss, token_scores
from worker.planner.estimate import vgg_layers
from worker.spec.data import ImagesSpec, SyntheticSpec
from worker.spec.model import ResNetSpec, VggSpec

Pictures = ImagesSpec | SyntheticSpec

EXPANSION = 4


def build_resnet(spec: ResNetSpec, data: Pictures) -> Model:
    """``conv1``, ``bn1`` with pooling, every bottleneck ``layerG.B``, ``fc`` with the loss."""
    layers = [
        Layer("conv1", partial(_convolution, 3, spec.width, 7, 2), ("pixels",), ("hidden",)),
        Layer("bn1", partial(Pooled, spec.width), ("hidden",), ("hidden",)),
    ]
    inputs = spec.width
    for group, blocks in enumerate(spec.blocks):
        width, outputs = spec.width << group, EXPANSION * spec.width << group
        for index in range(blocks):
            stride = 2 if group and not index else 1
            block = partial(Bottleneck, inputs, width, outputs, stride, shortcut=index == 0)
            layers.append(Layer(f"layer{group + 1}.{index}", block, ("hidden",), ("hidden",)))
            inputs = outputs
    layers.append(Layer("fc", partial(Averaged, inputs, data.classes), ("hidden", "labels"), ("loss",)))
    return Model(tuple(layers), ("classes",))


def build_vgg(spec: VggSpec, data: Pictures) -> Model:
    """``features.N`` for every convolution with what follows it, ``classifier.N`` for every linear map."""
    layers: list[Layer] = []
    inputs, place = 3, 0
    for outputs, pools in vgg_layers(spec.width):
        block = partial(Convolved, inputs, outputs, pools)
        layers.append(Layer(f"features.{place}", block, ("hidden" if layers else "pixels",), ("hidden",)))
        inputs, place = outputs, place + (3 if pools else 2)
    wide = spec.hidden_size
    layers.append(Layer("classifier.0", partial(Flattened, 49 * inputs, wide, spec.dropout), ("hidden",), ("hidden",)))
    layers.append(Layer("classifier.3", partial(Hidden, wide, wide, spec.dropout), ("hidden",), ("hidden",)))
    layers.append(Layer("classifier.6", partial(Classifier, wide, data.classes), ("hidden", "labels"), ("loss",)))
    return Model(tuple(layers), ("classes",))


class Convolution(nn.Conv2d):
    """A convolution that starts normal by its fan-out (He et al. 2015), any bias at zero."""

    def reset_parameters(self) -> None:
        """Set all parameters."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> Convolution:
    return Convolution(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Pooled(nn.BatchNorm2d):
    """Norm, relu, pooling to half the size: (b, c, h, w) -> (b, c, h/2, w/2)."""

    def forward(self, hidden: Tensor) -> Tensor:
        """The end of the stem."""
        return F.max_pool2d(F.relu(super().forward(hidden)), 3, 2, padding=1)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with a norm, and the shortcut: (b, c, h, w) -> (b, outputs, h/s, w/s)."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _convolution(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if shortcut else None
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Branch and shortcut."""
        branch = F.relu(self.bn1(self.conv1(hidden)))
        branch = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(branch)))))
        return F.relu(branch + (self.downsample(hidden) if self.downsample is not None else hidden))


class Classifier(nn.Linear):
    """Class loss: (b, h) and labels (b,) -> (1,), summed over the pictures that have a label."""

    def reset_parameters(self) -> None:
        """Small weights, so that all classes begin alike."""
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """(b, h) -> (b, classes)."""
        return super().forward(hidden)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """Cross entropy."""
        return token_loss(self.logits(hidden), labels)

    def scores(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Evaluation: how many classes were the likeliest, and among the five likeliest."""
        return token_scores(self.logits(hidden), labels)


class Averaged(Classifier):
    """The mean over all places before the class loss: (b, c, h, w) and labels (b,) -> (1,)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, classes)."""
        return super().logits(hidden.mean(dim=(2, 3)))


class Convolved(Convolution):
    """A 3x3 convolution, relu, and pooling to half the size where a group ends."""

    def __init__(self, inputs: int, outputs: int, pools: bool) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.pools = pools

    def forward(self, hidden: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, outputs, h, w), or half of h and w."""
        hidden = F.relu(super().forward(hidden))
        return F.max_pool2d(hidden, 2) if self.pools else hidden


class Hidden(nn.Linear):
    """A linear map, relu, dropout: (b, h) -> (b, h)."""

    def __init__(self, inputs: int, outputs: int, share: float) -> None:
        super().__init__(inputs, outputs)
        self.share = share

    def reset_parameters(self) -> None:
        """Weights that keep the size of what passes (He et al. 2015)."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Relu, then dropout."""
        return F.dropout(F.relu(super().forward(hidden)), self.share, self.training)


class Flattened(Hidden):
    """Pooling to 7x7 and flattening first: (b, c, h, w) -> (b, h)."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Whatever the size of the pictures."""
        return super().forward(F.adaptive_avg_pool2d(hidden, 7).flatten(1))
