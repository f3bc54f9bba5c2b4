"""How the network is trained (§3.3, §3.4): on clips, towards the joint loss of both regressors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lib.clips import NO_AUGMENTATION, Augmentation, ClipBatch, ClipSource, SkeletonNoise
from lib.files import MM
from lib.formats.shard_source import ShardSource
from lib.hands import HandModel, for_hand
from lib.losses import (
    LossWeights,
    joint_angle_loss,
    keypoint_loss,
    masked_mean,
    pinch_loss,
    pose_loss,
    root_position_loss,
    temporal_loss,
)
from lib.network import Features, HandPrediction, NetworkConfig, TemporalState, UmeTrack
from lib.training import Losses, Task, TrainingConfig, draw_examples

PINCH_COPIES = 6
"""How many times clips that show a pinch are drawn, for the baseline, too: 3 % of all clips, 15 % of those drawn."""

BATCHES_TO_BEGIN_WITH = 10
"""Batches whose features show a new temporal module what to pass on at first."""


@dataclass(frozen=True)
class ClipTrainingConfig(TrainingConfig):
    """A network, its losses and its batches of clips.

    A batch holds as many clips of `clip_frames` as make `hands` hands, each in one or two views. Source: §5.1.
    Deviation: clip lengths and batch, which the paper leaves open or chooses for nine GPUs; networks that begin as
    another; occluders, pinches drawn more often, and noisy input skeletons.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    pretrained: str | None = None
    """The run whose network this one begins as, wholly or in part."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    hands: int = 96
    clip_frames: int = 8
    validation_hands: int = 768
    skeleton_noise: SkeletonNoise = field(default_factory=SkeletonNoise)
    pinch_copies: int = PINCH_COPIES
    occluded: float = 0.0
    """Share of the clips in which an occluder passes before the hand: rendered training sequences have none, and
    nothing else hides a hand for long enough to be worth remembering."""
    keep_batch_norms: bool = False
    """Whether batch normalisation keeps the means and variances that it begins with: of few clips, whose frames are
    alike, those of a batch say little."""

    def __post_init__(self):
        if self.weights.temporal and self.clip_frames < 3:
            raise ValueError(f"L_temp needs clips of three frames or more, not {self.clip_frames}: weigh it 0")


@dataclass(frozen=True)
class ClipData:
    """What to train on, validation users to watch the training with, and the fingerprint of both."""

    train: ClipSource | ShardSource
    validation: ClipSource | ShardSource
    fingerprint: str


@dataclass(frozen=True)
class Pretrained:
    """Weights to begin with, of all parts of a network or of some, and the hash of the file that they are from."""

    weights: Mapping[str, Tensor]
    sha256: str


@dataclass(frozen=True)
class ClipTraining(Task):
    """The training of a UmeTrack network."""

    config: ClipTrainingConfig
    data: ClipData
    generic_hand: HandModel
    pretrained: Pretrained | None = None
    progress_metric = "known_mpjpe_mm"

    @property
    def sources(self) -> Mapping[str, str]:
        """What it learns from."""
        return super().sources | ({} if self.pretrained is None else {"pretrained": self.pretrained.sha256})

    def learner(self, device: torch.device) -> ClipLearner:
        """A new network, and what its losses need."""
        network = UmeTrack(self.config.network).to(device)
        return ClipLearner(network, self.generic_hand.to(device, torch.float32))

    def begin(self, learner: ClipLearner) -> None:
        """Begin as the pretrained network; a temporal module that it has not begins by passing on its features."""
        if self.pretrained is None:
            return
        network = learner.network
        new, _ = network.load_state_dict(self.pretrained.weights, strict=False)
        if new and all(name.startswith("temporal.") for name in new):
            batches = (self.batch(step, 0, 1) for step in range(BATCHES_TO_BEGIN_WITH))
            with torch.no_grad():
                network.eval()
                network.initialise_temporal_module(torch.cat([network.extract(batch.crops) for batch in batches]))

    def batch(self, step: int, rank: int, processes: int) -> ClipBatch:
        """One process's share of the step's clips, augmented."""
        config, frames = self.config, self.config.clip_frames
        clips = self.data.train.clips(frames, config.pinch_copies)
        chosen, generator = draw_examples(clips, config.hands // frames, config.seed, step, rank, processes)
        source, chosen = self.data.train.opened(chosen, frames)
        batch = source.batch(chosen, frames, config.augmentation, generator)
        return batch.with_noisy_skeletons(config.skeleton_noise, generator).occluded(config.occluded, generator)

    def losses(self, learner: nn.Module, batch: ClipBatch) -> Losses:
        """The weighted losses."""
        if self.config.keep_batch_norms:
            keep_batch_norms(learner)
        return learner(batch, self.config.weights)

    def validate(self, learner: ClipLearner, source: ClipSource | ShardSource) -> Losses:
        """The terms of the loss on clips that are as long as those that are trained on, with exact skeletons."""
        frames = self.config.clip_frames
        chosen, generator = draw_examples(source.clips(frames), self.config.validation_hands // frames, seed=0, step=0)
        source, chosen = source.opened(chosen, frames)
        return self.losses(learner, source.batch(chosen, frames, NO_AUGMENTATION, generator))


def keep_batch_norms(module: nn.Module) -> None:
    """Let batch normalisation use the means and variances that it has, and keep them; their scales still learn."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


class ClipLearner(nn.Module):
    """The network as it is trained: clips in, losses out."""

    def __init__(self, network: UmeTrack, generic_hand: HandModel):
        super().__init__()
        self.network = network
        self.generic_hand = generic_hand

    def forward(self, batch: ClipBatch, weights: LossWeights) -> Losses:
        """L of Eq. 9 for regressor K, plus `weights.unknown` times that of U for hands that two cameras see.

        Each term is a mean over the hands it applies to; also reported is the error of the landmarks (mm). Deviation:
        Eq. 6 sums over the frames of a clip; a mean does not depend on how long clips are.
        """
        features = clip_features(self.network, batch)
        true = batch.landmarks()
        known = self.network.known(features, batch.crops, batch.input_model)
        terms = _terms(known, batch.hand_model, batch, true, torch.ones_like(batch.pinch), weights, "known")
        total = terms["known_loss"]
        two = batch.crops.two_views
        if weights.unknown and bool(two.any()):
            unknown = _spread(self.network.unknown(features[two], batch.crops[two]), two)
            generic = self.generic_hand.scaled(unknown.scale)
            terms |= _terms(unknown, generic, batch, true, two.unflatten(0, batch.shape), weights, "unknown")
            total = total + weights.unknown * terms["unknown_loss"]
        return Losses(total, terms)


def clip_features(network: UmeTrack, batch: ClipBatch) -> Features:
    """Features of all hands of the clips, (frames * clips, ...): extracted at once, remembered frame by frame."""
    frames, clips = batch.shape
    extracted = network.extract(batch.crops)
    state = TemporalState.untracked(clips, extracted.device)
    remembered = []
    for frame in range(frames):
        rows = slice(frame * clips, (frame + 1) * clips)
        features, state = network.remember(extracted[rows], batch.crops[rows], state)
        remembered.append(features)
    return torch.cat(remembered)


def _terms(
    prediction: HandPrediction,
    model: HandModel,
    batch: ClipBatch,
    true: Float[Tensor, "hands 21 3"],
    mask: Bool[Tensor, "frames clips"],
    weights: LossWeights,
    name: str,
) -> dict[str, Tensor]:
    """Every term of one regressor, averaged over the hand instances of the mask (the temporal term over inner ones)."""
    frames = batch.shape
    landmarks = model.landmarks(prediction.joint_angles, for_hand(prediction.world_from_wrist, batch.crops.hand))
    angles, wrists = prediction.joint_angles.unflatten(0, frames), prediction.world_from_wrist.unflatten(0, frames)
    keypoints = keypoint_loss(landmarks, true).unflatten(0, frames)
    parts = {
        "pose": pose_loss(
            keypoints,
            joint_angle_loss(angles, batch.joint_angles),
            root_position_loss(wrists, batch.world_from_wrist),
            weights,
        )
    }
    loss = masked_mean(parts["pose"], mask)
    report = {
        "pose": loss,
        "mpjpe_mm": masked_mean((landmarks - true).norm(dim=-1).mean(dim=-1).unflatten(0, frames), mask).detach() * MM,
    }
    if weights.temporal:
        report["temporal"] = masked_mean(temporal_loss(angles, wrists), mask[2:] & mask[1:-1] & mask[:-2])
        loss = loss + weights.temporal * report["temporal"]
    if weights.pinch:
        report["pinch"] = masked_mean(pinch_loss(landmarks.unflatten(0, frames), batch.pinch), mask)
        loss = loss + weights.pinch * report["pinch"]
    return {f"{name}_{term}": value for term, value in (report | {"loss": loss}).items()}


def _spread(prediction: HandPrediction, rows: Bool[Tensor, "hands"]) -> HandPrediction:
    """A prediction for some hands as one for all of them; the others get zeros."""

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(len(rows), *values.shape[1:]).masked_scatter(
            rows.reshape(-1, *[1] * (values.ndim - 1)).expand(len(rows), *values.shape[1:]), values
        )

    return HandPrediction(
        *(spread(getattr(prediction, f)) for f in ("joint_angles", "world_from_wrist", "landmark_sigma", "scale"))
    )
