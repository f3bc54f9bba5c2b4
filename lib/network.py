"""The UmeTrack network, from top to bottom (§3.2, §3.3, Figures 2 and 4).

Every layer acts on left-hand crops of `CROP_SIZE` pixels; a right hand arrives through a mirrored crop camera. One call
takes any mix of hands seen by one or two cameras. The temporal state is passed in and returned, never kept.

    crops -> Backbone -> feature transform -> fusion -> TemporalModule -> RegressorKnown(skeleton) or RegressorUnknown
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.crops import CROP_SIZE, Crops
from lib.hands import NUM_FINGER_JOINTS, NUM_JOINTS, NUM_LANDMARKS, HandModel, for_hand
from lib.transforms import align_points, invert

FEATURE_CHANNELS, FEATURE_SIZE = 72, 6
MEMORY_CHANNELS, SKELETON_CHANNELS = 18, 4
BACKBONE_FOCAL_PX = 200.0
MIN_SIGMA = 1e-5

Features = Float[Tensor, "hands channels height width"]
PairFeatures = Float[Tensor, "pairs channels height width"]
"""Features of those hands that two cameras see."""
_Poses = Float[Tensor, "hands 4 4"]


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a network and what is switched off in it. The default is the published network.

    `stem` turns the crop into the first feature map: "convolution" (3x3, then max-pooling) as published, or "unshuffle"
    (4x4 pixel blocks become channels), cheaper on CPUs. `widths` and `blocks` describe the residual stages; every stage
    but the first halves the resolution, and the last must end at 6x6. Source: Table 2 for the three ablations.
    Deviation: the unshuffle stem.
    """

    stem: Literal["convolution", "unshuffle"] = "convolution"
    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: tuple[int, ...] = (2, 3, 5, 2)
    feature_transform: bool = True
    skeleton_encoder: bool = True
    temporal_module: bool = True

    def __post_init__(self):
        stride = {"convolution": 2, "unshuffle": 4}[self.stem] * 2 ** (len(self.widths) - 1)
        if len(self.widths) != len(self.blocks) or CROP_SIZE // stride != FEATURE_SIZE:
            stages = {"convolution": 4, "unshuffle": 3}[self.stem]
            raise ValueError(
                f"a network with a {self.stem} stem needs {stages} stages to end at {FEATURE_SIZE}x{FEATURE_SIZE} "
                f"features, got widths {self.widths} and blocks {self.blocks}"
            )


@dataclass(frozen=True)
class TemporalState:
    """What the temporal module remembers of each hand: features in the axes of the camera they were made for.

    A hand that is not `tracked` starts from zeros.
    """

    memory: Float[Tensor, f"hands {MEMORY_CHANNELS} {FEATURE_SIZE} {FEATURE_SIZE}"]
    camera_from_world: _Poses
    tracked: Bool[Tensor, "hands"]

    @staticmethod
    def untracked(hands: int, device: torch.device | str | None = None) -> TemporalState:
        """The state of hands seen for the first time."""
        return TemporalState(
            torch.zeros(hands, MEMORY_CHANNELS, FEATURE_SIZE, FEATURE_SIZE, device=device),
            torch.eye(4, device=device).repeat(hands, 1, 1),
            torch.zeros(hands, dtype=torch.bool, device=device),
        )

    def lose(self, lost: Bool[Tensor, "hands"]) -> TemporalState:
        """The state in which the hands of the mask start afresh."""
        return replace(self, tracked=self.tracked & ~lost)

    def __getitem__(self, hands: Int[Tensor, "chosen"]) -> TemporalState:
        """The state of some of the hands."""
        return TemporalState(self.memory[hands], self.camera_from_world[hands], self.tracked[hands])

    def update(self, hands: Int[Tensor, "chosen"], state: TemporalState) -> TemporalState:
        """This state with that of some hands replaced."""
        hands = hands.to(self.tracked.device)
        return TemporalState(
            self.memory.index_copy(0, hands, state.memory),
            self.camera_from_world.index_copy(0, hands, state.camera_from_world),
            self.tracked.index_copy(0, hands, state.tracked),
        )


@dataclass(frozen=True)
class HandPrediction:
    """What a regressor says about each hand; angles in radians, the rest in metres.

    `scale` multiplies the generic hand and is predicted for unknown skeletons only; `landmark_sigma` is the published
    network's uncertainty of each landmark, which the paper does not mention.
    """

    joint_angles: Float[Tensor, f"hands {NUM_JOINTS}"]
    world_from_wrist: _Poses
    landmark_sigma: Float[Tensor, f"hands {NUM_LANDMARKS}"]
    scale: Float[Tensor, "hands"] | None = None


class UmeTrack(nn.Module):
    """The whole network. `features` runs up to the temporal module; `known` and `unknown` regress the pose from there.

    Source: §3.2 and Figure 2, §3.3 and Figure 4; layer sizes from the published checkpoint.
    """

    def __init__(self, config: NetworkConfig | None = None):
        super().__init__()
        self.config = config = config or NetworkConfig()
        self.backbone = Backbone(config)
        self.fusion = _pointwise_layers(
            (2 * FEATURE_CHANNELS, 108, FEATURE_CHANNELS, FEATURE_CHANNELS), batch_norm=True
        )
        known_channels = FEATURE_CHANNELS
        if config.temporal_module:
            channels = MEMORY_CHANNELS + FEATURE_CHANNELS
            self.temporal = _pointwise_layers((channels, channels, channels, channels), batch_norm=False)
        if config.skeleton_encoder:
            self.skeleton_encoder = nn.Sequential(
                nn.Linear(NUM_JOINTS * 6, SKELETON_CHANNELS * FEATURE_SIZE**2),
                nn.Unflatten(1, (SKELETON_CHANNELS, FEATURE_SIZE, FEATURE_SIZE)),
                nn.BatchNorm2d(SKELETON_CHANNELS),
                nn.ReLU(),
            )
            known_channels += SKELETON_CHANNELS
        self.regressor_known = Regressor(known_channels, predicts_scale=False)
        self.regressor_unknown = Regressor(FEATURE_CHANNELS, predicts_scale=True)

    @property
    def costly_layers(self) -> tuple[nn.Module, ...]:
        """The layers that may run in half precision in training: the convolutions of backbone and regressors."""
        return self.backbone, self.regressor_known.layers, self.regressor_unknown.layers

    @property
    def output_layers(self) -> tuple[nn.Module, ...]:
        """The layers that give the outputs."""
        return self.regressor_known.layers[-1], self.regressor_unknown.layers[-1]

    def features(self, crops: Crops, state: TemporalState) -> tuple[Features, TemporalState]:
        """Features with 3D and temporal context in each hand's reference camera, and the state after this frame."""
        return self.remember(self.extract(crops), crops, state)

    def extract(self, crops: Crops) -> Features:
        """The 3D feature extractor: z^3d in the axes of each hand's reference camera. Source: Eq. 1 and 2."""
        hands, two = len(crops.images), crops.two_views
        images = torch.cat((crops.images[:, 0], crops.images[two, 1]))
        first, second = self.backbone(images[:, None]).float().split((hands, len(images) - hands))
        if not self.config.feature_transform:
            return _where_two_views(two, first, self.fusion, first[two], second)
        return self._place_features(crops, first, second)

    def _place_features(self, crops: Crops, first: Features, second: PairFeatures) -> Features:
        two, lens = crops.two_views, _focal_scaling(crops.focal_px)
        first_from_second = crops.camera_from_world[two, 0] @ invert(crops.camera_from_world[two, 1])
        moved = feature_transform(second, lens[two, 0].inverse() @ first_from_second @ lens[two, 1])
        return feature_transform(_where_two_views(two, first, self.fusion, first[two], moved), lens[:, 0])

    def remember(self, features: Features, crops: Crops, state: TemporalState) -> tuple[Features, TemporalState]:
        """The temporal module: mixes the memory, moved to the current reference camera, into the features.

        Source: §3.2, and the published code for the move, of which the paper says nothing.
        """
        camera_from_world = crops.camera_from_world[:, 0].to(features)
        tracked = torch.ones_like(state.tracked)
        if not self.config.temporal_module:
            return features, TemporalState(state.memory, camera_from_world, tracked)
        memory = state.memory
        if self.config.feature_transform:
            memory = feature_transform(memory, camera_from_world @ invert(state.camera_from_world))
        memory = torch.where(state.tracked[:, None, None, None], memory, 0)
        mixed = self.temporal(torch.cat((memory, features), dim=1)).to(features.dtype)
        memory, features = mixed.split((MEMORY_CHANNELS, FEATURE_CHANNELS), dim=1)
        return features, TemporalState(memory, camera_from_world, tracked)

    @torch.no_grad()
    def initialise_temporal_module(self, features: Features) -> None:
        """Let the temporal module begin by ignoring the memory and passing features like these on as they are, nearly.

        Its hidden channels hold the features' principal directions and their negatives, of which a ReLU keeps one.
        They have room for 45 of 72 directions; in a trained network the others make 1.5 % of the mean square. Source:
        "looks linear" weights, Balduzzi et al. 2017. Deviation: the paper does not say what its module begins with.
        """
        first, second, third = (layer for layer in self.temporal if isinstance(layer, nn.Conv2d))
        vectors = features.transpose(0, 1).flatten(1)
        kept = first.out_channels // 2
        directions = torch.linalg.eigh(vectors @ vectors.T).eigenvectors[:, -kept:].T
        both_signs = torch.cat((torch.eye(kept), -torch.eye(kept))).to(directions)
        for layer in (first, second, third):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(first.weight[:, :MEMORY_CHANNELS])
        first.weight[:, MEMORY_CHANNELS:, 0, 0] = both_signs @ directions
        second.weight[:, :, 0, 0] = both_signs @ both_signs.T
        third.weight[MEMORY_CHANNELS:, :, 0, 0] = (both_signs @ directions).T

    def known(self, features: Features, crops: Crops, model: HandModel) -> HandPrediction:
        """Regressor K: the pose of hands whose skeletons are known. Source: Eq. 3, Figure 4a."""
        if self.config.skeleton_encoder:
            skeleton = self.skeleton_encoder(model.skeleton_feature.expand(len(features), -1))
            features = torch.cat((features, skeleton), dim=1)
        return self.regressor_known(features, crops)

    def unknown(self, features: Features, crops: Crops) -> HandPrediction:
        """Regressor U: the pose and the scale of hands that two cameras see. Source: §3.3, Figure 4b."""
        return self.regressor_unknown(features, crops)


class Backbone(nn.Module):
    """The image encoder: a small ResNet from crops (views, 1, 96, 96) to signed features (views, 72, 6, 6)."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        if config.stem == "convolution":
            shrink_before, shrink_after, channels = [], [nn.MaxPool2d(2)], 1
        else:
            shrink_before, shrink_after, channels = [nn.PixelUnshuffle(4)], [], 16
        self.stem = nn.Sequential(
            *shrink_before,
            nn.Conv2d(channels, config.widths[0], 3, padding=1),
            nn.BatchNorm2d(config.widths[0]),
            nn.ReLU(),
            *shrink_after,
        )
        self.stages = nn.Sequential()
        channels = config.widths[0]
        for index, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            first = ResidualBlock(channels, width, stride=1 if index == 0 else 2)
            self.stages.append(nn.Sequential(first, *(ResidualBlock(width, width) for _ in range(blocks - 1))))
            channels = width
        self.head = nn.Conv2d(channels, FEATURE_CHANNELS, 1)
        # Features are moved by the decimetres between cameras, so they begin of that size. The usual five times larger
        # ones drown what there is to triangulate by, which the network then learns late.
        for parameter in self.head.parameters():
            nn.init.uniform_(parameter, -0.2 * channels**-0.5, 0.2 * channels**-0.5)

    @property
    def image_layers(self) -> nn.ModuleList:
        """All layers but the head."""
        return nn.ModuleList([*(layer for layer in self.stem if [*layer.parameters()]), *chain(*self.stages)])

    def forward(self, images: Float[Tensor, f"views 1 {CROP_SIZE} {CROP_SIZE}"]) -> Features:
        return self.head(self.stages(self.stem(images)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes (He et al. 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(
        self, x: Float[Tensor, "views channels_in height_in width_in"]
    ) -> Float[Tensor, "views channels height width"]:
        residual = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(residual + self.shortcut(x))


class Regressor(nn.Module):
    """Two residual blocks and a 1x1 convolution, averaged: angles, root points, (log scale,) sigmas.

    Source: Figure 4.
    """

    def __init__(self, channels: int, predicts_scale: bool):
        super().__init__()
        points = root_points()
        self.sizes = (NUM_FINGER_JOINTS, points.numel(), int(predicts_scale), NUM_LANDMARKS)
        self.layers = nn.Sequential(
            ResidualBlock(channels, channels),
            ResidualBlock(channels, channels),
            nn.Conv2d(channels, sum(self.sizes), 1),
        )
        self.register_buffer("root_points", points, persistent=False)

    def forward(self, features: Features, crops: Crops) -> HandPrediction:
        raw = self.layers(features).float().mean(dim=(2, 3))
        angles, points, log_scale, sigma = raw.split(self.sizes, dim=1)
        camera_from_wrist = align_points(self.root_points, points.unflatten(1, (-1, 3)))
        world_from_camera = invert(crops.camera_from_world[:, 0].to(raw))
        return HandPrediction(
            joint_angles=nn.functional.pad(angles, (0, NUM_JOINTS - NUM_FINGER_JOINTS)),
            world_from_wrist=for_hand(world_from_camera @ camera_from_wrist, crops.hand),
            landmark_sigma=nn.functional.softplus(sigma).clamp(min=MIN_SIGMA),
            scale=log_scale[:, 0].exp() if log_scale.shape[1] else None,
        )


def feature_transform(features: Features, b_from_a: _Poses) -> Features:
    """The feature transform layer (FTL): takes the channels as 3D points of frame a and gives them in frame b.

    The first third of the channels holds x, then y, then z. Source: Eq. 1, after Worrall et al. 2017 and Remelli et al.
    2020.
    """
    points = features.unflatten(1, (3, -1)).flatten(2)
    b_from_a = b_from_a.to(features)
    return (b_from_a[:, :3, :3] @ points + b_from_a[:, :3, 3:]).reshape(features.shape)


def root_points() -> Float[Tensor, "7 3"]:
    """Points of the wrist frame, 0.1 m from its origin, whose camera coordinates encode the root pose. Source: §3.2."""
    corners = torch.tensor([[-1.0, -1, 0], [-1, 0, -1], [0, -1, -1]]) / 2**0.5
    return 0.1 * torch.cat((torch.zeros(1, 3), torch.eye(3), corners))


def _focal_scaling(focal_px: Float[Tensor, "hands 2"]) -> Float[Tensor, "hands 2 4 4"]:
    """S of K = K_200 S: the backbone works for one focal length, S = diag(1, 1, f / 200, 1) restores the true one."""
    one = torch.ones_like(focal_px)
    return torch.diag_embed(torch.stack((one, one, focal_px / BACKBONE_FOCAL_PX, one), dim=-1))


def _where_two_views(two: Bool[Tensor, "hands"], single: Features, fusion: nn.Module, *views: PairFeatures) -> Features:
    """The features of one-view hands as they are, those of two-view hands fused from `views`. Source: Eq. 2."""
    if not len(views[0]):
        return single
    return single.index_put((two,), fusion(torch.cat(views, dim=1)).to(single.dtype))


def _pointwise_layers(channels: tuple[int, ...], batch_norm: bool) -> nn.Sequential:
    """1x1 convolutions with ReLU between them, and batch normalisation before it where asked for."""
    layers = nn.Sequential()
    for index, (channels_in, channels_out) in enumerate(pairwise(channels)):
        layers.append(nn.Conv2d(channels_in, channels_out, 1))
        if index < len(channels) - 2:
            layers.extend([nn.BatchNorm2d(channels_out), nn.ReLU()] if batch_norm else [nn.ReLU()])
    return layers
