"""What both networks of the baseline are built of: convolutions and inverted residual blocks."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn

from lib.network import ResidualBlock


def convolution(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int | None = None, groups: int = 1
) -> nn.Sequential:
    """Convolution and batch normalisation; without `padding` the picture keeps its size, but for the stride."""
    padding = kernel // 2 if padding is None else padding
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class InvertedResidual(nn.Module):
    """Expand to `width` channels (None: stay), convolve each 3x3 by itself, project; added to the input if it fits."""

    def __init__(self, inputs: int, width: int | None, outputs: int, stride: int = 1):
        super().__init__()
        expand = [] if width is None else [convolution(inputs, width), nn.ReLU(inplace=True)]
        width = width or inputs
        depthwise = convolution(width, width, kernel=3, stride=stride, groups=width)
        self.layers = nn.Sequential(*expand, depthwise, nn.ReLU(inplace=True), convolution(width, outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, features: Float[Tensor, "pictures inputs height width"]) -> Tensor:
        """Features with `outputs` channels."""
        return features + self.layers(features) if self.adds else self.layers(features)


def inverted_residuals(inputs: int, blocks: Iterable[tuple[int | None, int, int, int]]) -> nn.Sequential:
    """Blocks given as (width, outputs, stride, repeat); a repeated block has no stride but in its first instance."""
    layers = []
    for width, outputs, stride, repeat in blocks:
        for index in range(repeat):
            layers.append(InvertedResidual(inputs, width, outputs, stride if index == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers)


def residuals(inputs: int, blocks: Iterable[tuple[int, int, int]]) -> nn.Sequential:
    """Residual blocks given as (outputs, stride, repeat); a repeated block has no stride but in its first instance."""
    layers = []
    for outputs, stride, repeat in blocks:
        for index in range(repeat):
            layers.append(ResidualBlock(inputs, outputs, stride if index == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers)
