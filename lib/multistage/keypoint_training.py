"""How KeyNet is trained: on single crops of the training cache, with the hand's pose some frames before as input."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.cameras import Pinhole
from lib.clip_training import PINCH_COPIES, ClipData
from lib.clips import NO_AUGMENTATION, Augmentation, ClipSource
from lib.crops import CROP_SIZE
from lib.files import MM
from lib.formats.shard_source import ShardSource
from lib.hands import for_hand
from lib.multistage.keypoints import KeyNet, KeyNetConfig, decode, hand_scale, prior, relative_distance, targets
from lib.training import Losses, Task, TrainingConfig, draw_examples
from lib.transforms import apply, axis_angle_rotation, homogeneous

HIT_PX = 3.0
"""The distance of PCK@3 px."""


@dataclass(frozen=True)
class PriorConfig:
    """How the input pose differs from the true one: late, extrapolated, wrong, or missing.

    Source: MEgATrack for `stale` and `stale_frames`. Deviation: the rest, which is not published.
    """

    untracked: float = 0.15
    """Share of the hands without an input pose."""
    stale: float = 0.1
    """Share of the hands whose input pose is that of `stale_frames` before."""
    stale_frames: int = 20
    extrapolation: float = 0.5
    """Share of the motion between the two frames before that goes on."""
    position: float = 0.006
    """Standard deviations of the error of the wrist's position (m), of its rotation and of the joint angles (rad)."""
    rotation: float = 0.08
    joint_angles: float = 0.12


@dataclass(frozen=True)
class KeypointTrainingConfig(TrainingConfig):
    """KeyNet, its loss and its batches.

    Deviation: MEgATrack takes SGD at a constant rate and batches of 256, more than CPU cores can afford. Here
    batches are small, the rate falls along half a cosine, and the experiments train by Muon.
    """

    network: KeyNetConfig = field(default_factory=KeyNetConfig)
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(single_view=0.0))
    prior: PriorConfig = field(default_factory=PriorConfig)
    distance_weight: float = 0.05
    pinch_copies: int = PINCH_COPIES
    hands: int = 16
    """Per batch; each gives one crop or two."""
    validation_hands: int = 256


@dataclass(frozen=True)
class CropBatch:
    """Crops, their expected keypoints as input, and the true ones."""

    images: Float[Tensor, "crops 1 96 96"]
    prior: Float[Tensor, "crops 63"]
    pixels: Float[Tensor, "crops 21 2"]
    relative_distance: Float[Tensor, "crops 21"]

    def __len__(self) -> int:
        return len(self.images)


class KeypointLearner(nn.Module):
    """KeyNet as it is trained: crops in, losses out."""

    def __init__(self, network: KeyNet, distance_weight: float):
        super().__init__()
        self.network = network
        self.distance_weight = distance_weight

    def forward(self, batch: CropBatch) -> Losses:
        """Mean squared error of both kinds of heatmaps; also reported are the errors of the decoded keypoints.

        Source: MEgATrack. A sum over bins instead of the mean would silence the output's ReLU early on.
        """
        heatmaps = self.network(batch.images, batch.prior)
        true = targets(batch.pixels, batch.relative_distance)
        plane = (heatmaps.plane - true.plane).square().mean()
        distance = (heatmaps.distance - true.distance).square().mean()
        total = plane + self.distance_weight * distance
        found = decode(heatmaps)
        error_px = (found.pixels - batch.pixels).norm(dim=-1).detach()
        error_mm = (found.relative_distance - batch.relative_distance).abs().detach() * MM
        terms = {
            "loss": total,
            "plane": plane,
            "distance": distance,
            "median_px": error_px.median(),
            "hits_percent": 100 * (error_px < HIT_PX).float().mean(),
            "median_distance_mm": error_mm.median(),
        }
        return Losses(total, terms)


@dataclass(frozen=True)
class KeypointTraining(Task):
    """The training of KeyNet."""

    config: KeypointTrainingConfig
    data: ClipData
    progress_metric = "median_px"

    def learner(self, device: torch.device) -> KeypointLearner:
        """A new KeyNet and its loss."""
        return KeypointLearner(KeyNet(self.config.network).to(device), self.config.distance_weight)

    def batch(self, step: int, rank: int, processes: int) -> CropBatch:
        """One process's share of the step's hands, augmented."""
        config, data = self.config, self.data
        clips = data.train.clips(1, config.pinch_copies)
        hands, generator = draw_examples(clips, config.hands, config.seed, step, rank, processes)
        return crop_batch(data.train, hands, config.augmentation, config.prior, generator)

    def losses(self, learner: nn.Module, batch: CropBatch) -> Losses:
        """The loss."""
        return learner(batch)

    def validate(self, learner: KeypointLearner, source: ClipSource | ShardSource) -> Losses:
        """Errors on crops, with expected keypoints as in training."""
        hands, generator = draw_examples(source.clips(1), self.config.validation_hands, seed=0, step=0)
        return learner(crop_batch(source, hands, NO_AUGMENTATION, self.config.prior, generator))


def crop_batch(
    source: ClipSource | ShardSource,
    hands: Int[Tensor, "hands 2"],
    augmentation: Augmentation,
    config: PriorConfig,
    generator: torch.Generator,
) -> CropBatch:
    """All crops of the given hands (clips of one frame), augmented."""
    source, hands = source.opened(hands, 1, before=max(config.stale_frames, 2))
    clips = source.batch(hands, 1, augmentation, generator)
    model, crops = clips.hand_model, clips.crops
    shown = torch.stack((torch.ones_like(crops.two_views), crops.two_views), dim=1)
    expected, known = _expected_landmarks(source, hands, config, generator)
    expected = expected * clips.world_scale[:, None, None]

    def seen(landmarks: Float[Tensor, "hands 21 3"]) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, relative distances and depths in all crops that are shown."""
        points = apply(crops.camera_from_world, landmarks[:, None])[shown]
        pixels = Pinhole.create(CROP_SIZE, crops.focal_px[shown])[:, None].project(points)
        scale = hand_scale(model)[:, None].expand(shown.shape)[shown]
        return pixels, relative_distance(points, scale), points[..., 2]

    pixels, distances, depths = seen(expected)
    known = known[:, None].expand(shown.shape)[shown] & (depths > 0).all(dim=-1)
    return CropBatch(crops.images[shown][:, None], prior(pixels, distances, known), *seen(clips.landmarks())[:2])


def _expected_landmarks(
    source: ClipSource,
    hands: Int[Tensor, "hands 2"],
    config: PriorConfig,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "hands 21 3"], Bool[Tensor, "hands"]]:
    """Where a tracker would expect the landmarks (m, not enlarged), and whether it was tracking the hand at all."""
    count, device = len(hands), source.device

    def normal(deviation: float, *shape: int) -> Tensor:
        return (deviation * torch.randn(count, *shape, generator=generator)).to(device)

    def happens(share: float) -> Tensor:
        return (torch.rand(count, generator=generator) < share).to(device)

    frame, hand = hands.to(device).unbind(1)
    stale, known = happens(config.stale), ~happens(config.untracked)
    last = frame - torch.where(stale, config.stale_frames, 1)
    known &= _seen_before(source, frame, last, hand)
    last = last.clamp(min=0)
    before = torch.where(_seen_before(source, frame, last - 1, hand) & ~stale, last - 1, last)
    angles, wrist = (source.labels[name][last, hand] for name in ("joint_angles", "world_from_wrist"))
    angles = angles + config.extrapolation * (angles - source.labels["joint_angles"][before, hand])
    position = wrist[:, :3, 3]
    position = position + config.extrapolation * (position - source.labels["world_from_wrist"][before, hand][:, :3, 3])
    axis = nn.functional.normalize(normal(1.0, 3), dim=-1)
    rotation = axis_angle_rotation(axis, normal(config.rotation)) @ wrist[:, :3, :3]
    moved = homogeneous(rotation, position + normal(config.position, 3))
    model = source.hand_models[source.sequence[frame]]
    return model.landmarks(angles + normal(config.joint_angles, 22), for_hand(moved, hand)), known


def _seen_before(
    source: ClipSource, frame: Int[Tensor, "hands"], earlier: Int[Tensor, "hands"], hand: Int[Tensor, "hands"]
) -> Bool[Tensor, "hands"]:
    """Whether a hand was seen in an earlier frame of the same sequence."""
    inside = earlier.clamp(min=0)
    same = (earlier >= 0) & (source.sequence[inside] == source.sequence[frame])
    return same & (source.labels["views"][inside, hand] > 0)
