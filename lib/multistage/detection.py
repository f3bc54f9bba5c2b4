"""DetNet: where the hands are in a view that nobody knows anything about yet.

Source: MEgATrack (Han et al. 2020). A circle per hand, left first.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from lib.crop_cache import SHRINK, shrink
from lib.multistage.layers import InvertedResidual, convolution, stacked

BLOCKS = (
    (96, 32, 2, 1), (96, 32, 1, 1), (192, 64, 2, 1), (384, 64, 1, 2), (384, 64, 2, 1), (384, 64, 1, 3),
    (384, 96, 1, 1), (576, 96, 1, 2), (576, 128, 2, 1), (768, 128, 1, 2), (768, 160, 1, 1),
)  # fmt: skip
"""Inverted residual blocks: width of the expansion, outputs, stride, repeat."""
PRESENCE_THRESHOLD = 0.5
VIEW_WIDTH = 640
"""Of the views that are learnt from, with what pads them (px)."""


@dataclass(frozen=True)
class DetNetConfig:
    """DetNet comes in one size."""


@dataclass(frozen=True)
class Circles:
    """Circles around the hands of a view or of many, left first, in its pixels, and how likely each hand is there."""

    center_px: Float[Tensor, "*batch 2 2"]
    radius_px: Float[Tensor, "*batch 2"]
    presence: Float[Tensor, "*batch 2"]


class DetNet(nn.Module):
    """Shrunk views in; x, y and radius of the circle around each hand, and the logit of its presence, out.

    Deviation: ReLU throughout, where the activation inside the blocks is not published.
    """

    def __init__(self, config: DetNetConfig):
        super().__init__()
        self.config = config
        self.backbone = nn.Sequential(
            convolution(1, 32, kernel=3, stride=2), nn.ReLU(inplace=True), stacked(InvertedResidual, 32, BLOCKS)
        )
        self.center = convolution(160, 4)
        self.radius = convolution(160, 2)
        self.presence = convolution(160, 2)

    @property
    def costly_layers(self) -> tuple[nn.Module, ...]:
        """What may run in half precision in training: nothing, as it convolves depthwise, whose gradient in bfloat16
        now and then is NaN (torch 2.13 on CPUs)."""
        return ()

    def forward(self, pictures: Float[Tensor, "views 1 rows columns"]) -> Float[Tensor, "views 2 4"]:
        """x, y, radius, logit of presence; `pictures` in [0, 1] as `views.shrink` makes them."""
        features = self.backbone(pictures).float()
        center, radius, presence = (
            head(features).mean(dim=(2, 3)) for head in (self.center, self.radius, self.presence)
        )
        return torch.cat((center.unflatten(1, (2, 2)), radius[..., None], presence[..., None]), dim=-1)


def normalised(circles_px: Float[Tensor, "*batch 3"], rows: int, columns: int) -> Float[Tensor, "*batch 3"]:
    """Circles (x, y, radius) as the network gives them: from the centre of the padded view, in units of its width."""
    center = SHRINK * circles_px.new_tensor([columns, rows, 0]) / 2
    return (circles_px - center) / (SHRINK * columns)


def to_circles(output: Float[Tensor, "views 2 4"], rows: int, columns: int) -> Circles:
    """The network's output in pixels of the view; the inverse of `normalised`."""
    center = SHRINK * output.new_tensor([columns, rows, 0]) / 2
    circles_px = output[..., :3] * (SHRINK * columns) + center
    return Circles(circles_px[..., :2], circles_px[..., 2], output[..., 3].sigmoid())


@torch.inference_mode()
def detect(network: DetNet, picture: UInt8[np.ndarray, "height width"]) -> Circles:
    """The circles around both hands in one view; a hand counts as found from a presence of `PRESENCE_THRESHOLD` on."""
    view, scale = fit_view(picture)
    small = torch.from_numpy(shrink(view))
    device = next(network.parameters()).device
    output = network(small.to(device).float().div(255)[None, None])
    circles = to_circles(output.cpu(), *small.shape)
    return Circles(circles.center_px[0] / scale, circles.radius_px[0] / scale, circles.presence[0])


def is_learnt_from(height: int, width: int) -> bool:
    """Whether views of this size can be shrunk to what DetNet learns from."""
    return not (height % SHRINK or width % SHRINK) and VIEW_WIDTH - 8 * SHRINK < width <= VIEW_WIDTH


def fit_view(picture: UInt8[np.ndarray, "height width"]) -> tuple[UInt8[np.ndarray, "rows columns"], float]:
    """A view as wide as those that DetNet learns from, and its pixels per pixel of the picture.

    Views of 609 to 640 columns stay as they are, if they can be shrunk; others become 640 wide.
    """
    height, width = picture.shape
    if is_learnt_from(height, width):
        return picture, 1.0
    rows = max(1, round(height * VIEW_WIDTH / width / SHRINK)) * SHRINK
    finer = cv2.INTER_AREA if width > VIEW_WIDTH else cv2.INTER_LINEAR
    return cv2.resize(picture, (VIEW_WIDTH, rows), interpolation=finer), VIEW_WIDTH / width
