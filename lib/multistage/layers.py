"""What both networks of the baseline are built of: convolutions and inverted residual blocks."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn


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

    def __init__(self, inputs: int, width: int | None, outputs: int, stride: int):
        super().__init__()
        expand = [] if width is None else [convolution(inputs, width), nn.ReLU(inplace=True)]
        width = width or inputs
        depthwise = convolution(width, width, kernel=3, stride=stride, groups=width)
        self.layers = nn.Sequential(*expand, depthwise, nn.ReLU(inplace=True), convolution(width, outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, features: Float[Tensor, "pictures inputs height width"]) -> Tensor:
        """Features with `outputs` channels."""
        return features + self.layers(features) if self.adds else self.layers(features)


def stacked(block: type[nn.Module], inputs: int, rows: Iterable[tuple[int | None, ...]]) -> nn.Sequential:
    """Blocks given as rows (*channels, stride, repeat); a repeated block has no stride but in its first instance.

    A block is made of its inputs, its channels, of which the last are its outputs, and its stride.
    """
    layers = []
    for *channels, stride, repeat in rows:
        for index in range(repeat):
            layers.append(block(inputs, *channels, stride if index == 0 else 1))
            inputs = channels[-1]
    return nn.Sequential(*layers)
