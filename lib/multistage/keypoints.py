"""KeyNet: where the keypoints of a hand are in one crop, and which of them are nearer to the camera than the others.

Source: MEgATrack (Han et al. 2020). Deviation: it sees the perspective crops of the
end-to-end network (§3.1) instead of square cut-outs of the fisheye view, which favours it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.checkpoints import check_names_and_shapes, load_weights
from lib.crops import CROP_SIZE
from lib.errors import InputError
from lib.hands import NUM_LANDMARKS, SKELETON_EDGES, HandModel
from lib.multistage.layers import InvertedResidual, convolution, stacked
from lib.network import Backbone as ImageEncoder
from lib.network import ResidualBlock

BINS = 18
BIN_PX, FIRST_BIN_PX = 8.0, -20.5
"""Size of a heatmap's bins and centre of the first, in pixels of the crop: where the layers of the network put them.

They halve 96 pixels to 6, pad by 1, double to 16 and pad by 1: a margin of 24 pixels around the crop. Bins that end
with the crop, of 5.3 pixels, learn more slowly: after 200 steps the median error was 9.3 pixels, with these 8.1.
"""
RANGE = 0.130
"""Relative distances (m, of a hand of scale one) reach from -RANGE to RANGE, in `BINS` bins."""
BRANCH_CHANNELS, BRANCH_SIZE = 32, 12
GENERIC_LENGTH = 0.79099
"""Length of the lines of `SKELETON_EDGES` together, in the study's generic hand at rest (m)."""

IMAGE_BLOCKS = ((None, 32, 1, 1), (96, 32, 2, 1), (192, 32, 1, 1), (192, 64, 2, 1), (384, 64, 1, 2))
TRUNK_BLOCKS = ((384, 64, 1, 5), (384, 96, 1, 1), (480, 96, 1, 2), (576, 128, 2, 1), (768, 128, 1, 2), (768, 160, 1, 1))
"""Inverted residual blocks: width of the expansion, outputs, stride, repeat."""
RESIDUAL_IMAGE_BLOCKS, RESIDUAL_TRUNK_BLOCKS = ((32, 1, 2), (64, 2, 3)), ((128, 2, 2),)
"""Residual blocks, as in the end-to-end reference network: outputs, stride, repeat."""
FEATURE_CHANNELS = 160

Images = Float[Tensor, f"crops 1 {CROP_SIZE} {CROP_SIZE}"]
_Pixels = Float[Tensor, "*batch 21 2"]
Distances = Float[Tensor, "*batch 21"]


@dataclass(frozen=True)
class KeyNetConfig:
    """What the network is made of.

    The `residual` blocks are those of the end-to-end reference network, for CPUs: they see 5 to 6 times as many crops
    in a minute as the published `inverted` ones.
    """

    keypoint_input: bool = True
    """Whether the network receives where the keypoints are expected."""
    blocks: Literal["inverted", "residual"] = "inverted"


@dataclass(frozen=True)
class Heatmaps:
    """What the network says of each keypoint: over rows and columns of the crop, and over relative distances."""

    plane: Float[Tensor, "crops 21 18 18"]
    distance: Float[Tensor, "crops 21 18"]


@dataclass(frozen=True)
class Keypoints:
    """Keypoints in pixels of their crop, how much farther than the hand's mean they are (m, divided by the hand's
    scale), and how sure the network is, in [0, 1]."""

    pixels: Float[Tensor, "*batch 21 2"]
    relative_distance: Float[Tensor, "*batch 21"]
    confidence: Float[Tensor, "*batch 21"]


class KeyNet(nn.Module):
    """Crops that show left hands, and where their keypoints are expected (see `prior`), in; heatmaps out."""

    def __init__(self, config: KeyNetConfig):
        super().__init__()
        self.config = config
        self.backbone = KeypointBackbone(config)
        self.plane = nn.Sequential(
            convolution(FEATURE_CHANNELS, 63, kernel=3, padding=2), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(63, 42, kernel_size=2, stride=2),
            convolution(42, NUM_LANDMARKS, kernel=3, padding=2), nn.ReLU(),
        )  # fmt: skip
        # Nearly empty heatmaps to begin with, as the true ones are: learning them from full ones takes far longer.
        nn.init.constant_(self.plane[3][1].weight, 0.1)
        self.distance = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(FEATURE_CHANNELS, NUM_LANDMARKS * BINS, 1), nn.ReLU(),
            nn.Flatten(), nn.Unflatten(1, (NUM_LANDMARKS, BINS)),
        )  # fmt: skip

    @property
    def costly_layers(self) -> tuple[nn.Module, ...]:
        """What may run in half precision in training: only residual blocks, as the others convolve depthwise (see
        `DetNet.costly_layers`)."""
        return (self.backbone,) if self.config.blocks == "residual" else ()

    @property
    def output_layers(self) -> tuple[nn.Module, ...]:
        """The layers that give the heatmaps."""
        return self.plane[3], self.distance[1]

    def forward(self, images: Images, prior: Float[Tensor, "crops 63"]) -> Heatmaps:
        """`images` in [0, 1]; without `keypoint_input` the prior is not looked at."""
        features = self.backbone(images, prior).float()
        return Heatmaps(self.plane(features), self.distance(features))


class KeypointBackbone(nn.Module):
    """Image branch and keypoint branch, joined at 12x12 pixels; 160 features of 6x6 pixels."""

    def __init__(self, config: KeyNetConfig):
        super().__init__()
        joined = BRANCH_CHANNELS * config.keypoint_input
        if config.blocks == "inverted":
            stem = convolution(1, 32, kernel=3, stride=2), nn.ReLU(inplace=True)
            self.image = nn.Sequential(*stem, stacked(InvertedResidual, 32, IMAGE_BLOCKS))
            self.trunk = stacked(InvertedResidual, 64 + joined, TRUNK_BLOCKS)
        else:
            stem = nn.PixelUnshuffle(4), convolution(16, 32, kernel=3), nn.ReLU(inplace=True)
            self.image = nn.Sequential(*stem, stacked(ResidualBlock, 32, RESIDUAL_IMAGE_BLOCKS))
            end = convolution(128, FEATURE_CHANNELS), nn.ReLU(inplace=True)
            self.trunk = nn.Sequential(stacked(ResidualBlock, 64 + joined, RESIDUAL_TRUNK_BLOCKS), *end)
        self.keypoints = None
        if config.keypoint_input:
            shape = (BRANCH_CHANNELS, BRANCH_SIZE, BRANCH_SIZE)
            size = BRANCH_CHANNELS * BRANCH_SIZE**2
            self.keypoints = nn.Sequential(nn.Linear(3 * NUM_LANDMARKS, size), nn.ReLU(), nn.Unflatten(1, shape))

    @property
    def image_layers(self) -> nn.ModuleList:
        """The layers that the end-to-end reference network has, too; of `residual` blocks only."""
        _, stem, _, blocks = self.image
        return nn.ModuleList([*stem, *blocks, *self.trunk[0]])

    def forward(self, images: Images, prior: Float[Tensor, "crops 63"]) -> Float[Tensor, "crops 160 6 6"]:
        features = self.image(images)
        if self.keypoints is not None:
            features = torch.cat((features, self.keypoints(prior)), dim=1)
        return self.trunk(features)


def pretrain(backbone: ImageEncoder, weights: Path) -> None:
    """Let the end-to-end network's image encoder begin with what a KeyNet has learnt to see; its head stays new.

    Raises InputError if there are no weights, or not those of a KeyNet of the same layers: without keypoint input, of
    `residual` blocks, and for the reference network.
    """
    keynet = load_weights(weights, KeyNet, KeyNetConfig)
    if keynet.config.blocks != "residual":
        raise InputError(f"{weights} holds a KeyNet of {keynet.config.blocks} blocks, expected residual ones")
    layers, learnt = backbone.image_layers, keynet.backbone.image_layers.state_dict()
    learnt["0.bias"] = torch.zeros_like(layers[0].bias)
    check_names_and_shapes(learnt, layers.state_dict(), weights)
    layers.load_state_dict(learnt)


@torch.inference_mode()
def predict_keypoints(network: KeyNet, images: Images, prior: Float[Tensor, "crops 63"]) -> Keypoints:
    """The keypoints of crops; confidence is the highest bin of the heatmap, 0.78 to 1 for a perfect one."""
    return decode(network(images, prior))


def decode(heatmaps: Heatmaps) -> Keypoints:
    """The peaks of heatmaps, between bins by a parabola through the logarithms of the highest and its neighbours."""
    peak, index = heatmaps.plane.flatten(-2).max(dim=-1)
    row, column = index // BINS, index % BINS
    along_row = heatmaps.plane.take_along_dim(row[..., None, None], dim=-2)[..., 0, :]
    along_column = heatmaps.plane.take_along_dim(column[..., None, None], dim=-1)[..., 0]
    bins = torch.stack((_refine(along_row, column), _refine(along_column, row)), dim=-1)
    distance = _refine(heatmaps.distance, heatmaps.distance.argmax(dim=-1))
    relative_distance = (distance + 0.5) * (2 * RANGE / BINS) - RANGE
    return Keypoints(bins * BIN_PX + FIRST_BIN_PX, relative_distance, peak.clamp(0, 1))


def _refine(values: Float[Tensor, "*batch 18"], peak: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The place of the peak, at most half a bin from bin `peak`."""
    inner = peak.clamp(1, BINS - 2)
    around = values.clamp(min=1e-4).log().take_along_dim(inner[..., None] + torch.tensor([-1, 0, 1]).to(peak), dim=-1)
    before, middle, after = around.unbind(-1)
    curvature = (before - 2 * middle + after).clamp(max=-1e-6)
    place = inner + 0.5 * (before - after) / curvature
    return place.clamp(peak - 0.5, peak + 0.5)


def targets(pixels: _Pixels, relative_distance: Distances) -> Heatmaps:
    """Heatmaps that `decode` reads the given keypoints from: Gaussians of one bin's width and of height one."""
    column, row = (_gaussian((pixels[..., axis] - FIRST_BIN_PX) / BIN_PX) for axis in (0, 1))
    return Heatmaps(
        row[..., :, None] * column[..., None, :], _gaussian((relative_distance + RANGE) * (BINS / 2 / RANGE) - 0.5)
    )


def _gaussian(place: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 18"]:
    return (-0.5 * (torch.arange(BINS, device=place.device) - place[..., None]).square()).exp()


def prior(
    pixels: Float[Tensor, "crops 21 2"], relative_distance: Float[Tensor, "crops 21"], valid: Bool[Tensor, "crops"]
) -> Float[Tensor, "crops 63"]:
    """Where keypoints are expected, as the network reads it; zeros for a hand of which nothing is known."""
    center = (CROP_SIZE - 1) / 2
    scaled = torch.cat(((pixels - center) / (CROP_SIZE / 2), relative_distance[..., None] / RANGE), dim=-1)
    return torch.where(valid[:, None], scaled.flatten(1), 0)


def relative_distance(
    points_camera: Float[Tensor, "*batch 21 3"], scale: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch 21"]:
    """How much farther each keypoint is from the camera's centre than their mean, divided by the hand's scale (m).

    Source: MEgATrack. Distances, not depths, since the views are fisheye views.
    """
    distance = points_camera.norm(dim=-1)
    return (distance - distance.mean(dim=-1, keepdim=True)) / scale[..., None]


def hand_scale(model: HandModel) -> Float[Tensor, "*batch"]:
    """The size of a hand as a multiple of the study's generic hand: the ratio of their lengths along the skeleton.

    Deviation: MEgATrack does not say what its scale is measured by; any hand model has these lengths.
    """
    start, end = torch.tensor(SKELETON_EDGES, device=model.landmark_rest_positions.device).unbind(-1)
    rest = model.landmark_rest_positions
    return (rest[..., start, :] - rest[..., end, :]).norm(dim=-1).sum(dim=-1) / GENERIC_LENGTH
