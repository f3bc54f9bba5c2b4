"""How the network is trained (§3.3, §3.4): on clips, towards the joint loss of both regressors, in two phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lib.clips import MILD_AUGMENTATION, NO_AUGMENTATION, Augmentation, ClipBatch, ClipSource, SkeletonNoise
from lib.files import MM
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
from lib.network import Backbone, Features, HandPrediction, NetworkConfig, TemporalState, UmeTrack
from lib.training import Losses, Task, TrainingConfig, draw_examples

PINCH_COPIES = 6
"""How many times clips that show a pinch are drawn, for the baseline, too: 3 % of all clips, 15 % of those drawn."""

BATCHES_TO_BEGIN_WITH = 10
"""Batches of the first phase whose features show the temporal module what to pass on at first."""


@dataclass(frozen=True)
class ClipTrainingConfig(TrainingConfig):
    """A network, its losses and its batches of clips.

    The first `pose_steps` train with L_pose alone, on clips of `pose_clip_frames`; the rest with all `weights`, on
    clips of `clip_frames`; each phase has a schedule of its own. A batch holds as many clips as make `hands` hands,
    each in one or two views. Source: §5.1. Deviation: clip lengths and batch, which the paper leaves open or chooses
    for nine GPUs; phases of unequal length; a memory that comes with the second phase, since on single frames there is
    nothing to remember; encoders that begin as a KeyNet's; occluders, pinches drawn more often, and noisy input
    skeletons. So few clips are in a batch of the second phase, and their frames so alike, that their mean and variance
    say little, and that it forgets at the rate of the first: the statistics are kept, the rate is lower, and the
    augmentation milder.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    pretrained: str | None = None
    """The experiment whose KeyNet the image encoder begins as."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    pose_steps: int = 2_520
    second_learning_rate: float = 5e-4
    second_augmentation: Augmentation = field(default_factory=lambda: MILD_AUGMENTATION)
    hands: int = 96
    pose_clip_frames: int = 1
    clip_frames: int = 8
    validation_hands: int = 768
    skeleton_noise: SkeletonNoise = field(default_factory=SkeletonNoise)
    pinch_copies: int = PINCH_COPIES
    occluded: float = 0.25
    """Share of the clips of the second phase in which an occluder passes before the hand: rendered training sequences
    have none, and nothing else hides a hand for long enough to be worth remembering."""

    def weights_at(self, step: int) -> LossWeights:
        """The loss weights of a step: no temporal and no pinch term in the first phase."""
        return replace(self.weights, temporal=0.0, pinch=0.0) if step < self.pose_steps else self.weights

    def clip_frames_at(self, step: int) -> int:
        """How long the clips of a step are."""
        return self.pose_clip_frames if step < self.pose_steps else self.clip_frames

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step: each phase has a schedule of its own."""
        if step < self.pose_steps:
            return self.scheduled(self.learning_rate, step, self.pose_steps)
        return self.scheduled(self.second_learning_rate, step - self.pose_steps, self.steps - self.pose_steps)

    def network_at(self, step: int) -> NetworkConfig:
        """The network that a step trains: on single frames there is nothing to remember, so no temporal module."""
        return replace(self.network, temporal_module=self.network.temporal_module and step >= self.pose_steps)

    def with_steps(self, steps: int) -> ClipTrainingConfig:
        """The same training in another number of steps, phases in proportion, of which a tenth at most warms up."""
        pose_steps = steps * self.pose_steps // self.steps
        shortest = min(phase for phase in (pose_steps, steps - pose_steps) if phase)
        warmup_steps = min(self.warmup_steps, max(1, shortest // 10))
        return replace(self, steps=steps, pose_steps=pose_steps, warmup_steps=warmup_steps)

    def first_phase(self) -> tuple[int, ClipTrainingConfig]:
        """The phase with L_pose alone, bare hands and no memory, the same whatever the second does."""
        without_second = {"steps": self.pose_steps, "clip_frames": self.pose_clip_frames, "second_learning_rate": 0.0}
        without_second |= {"second_augmentation": self.augmentation}
        pose = replace(self.weights, temporal=0.0, pinch=0.0)
        return self.pose_steps, replace(self, weights=pose, network=self.network_at(0), occluded=0.0, **without_second)


@dataclass(frozen=True)
class ClipData:
    """What to train on, validation users to watch the training with, and the fingerprint of both."""

    train: ClipSource
    validation: ClipSource
    fingerprint: str


@dataclass(frozen=True)
class PretrainedEncoder:
    """What an image encoder begins as: puts the weights of a file into it, whose hash it knows."""

    load: Callable[[Backbone], None]
    sha256: str


@dataclass(frozen=True)
class ClipTraining(Task):
    """The training of a UmeTrack network."""

    config: ClipTrainingConfig
    data: ClipData
    generic_hand: HandModel
    encoder: PretrainedEncoder | None = None
    progress_metric = "known_mpjpe_mm"

    @property
    def sources(self) -> Mapping[str, str]:
        """What it learns from."""
        return super().sources | ({} if self.encoder is None else {"pretrained": self.encoder.sha256})

    def learner(self, device: torch.device, step: int) -> ClipLearner:
        """A new network as the phase of the step has it, and what its losses need."""
        network = UmeTrack(self.config.network_at(step))
        if self.encoder is not None:
            self.encoder.load(network.backbone)
        return ClipLearner(network.to(device), self.generic_hand.to(device, torch.float32))

    def second_phase(self, learner: ClipLearner) -> ClipLearner:
        """The same network, and what it is to remember with, which begins by passing on what the first phase learnt."""
        network = learner.network
        if not self.config.network.temporal_module:
            return learner
        device = next(network.parameters()).device
        with torch.no_grad():
            network.eval()
            features = [network.extract(self.batch(step, 0, 1).crops) for step in range(BATCHES_TO_BEGIN_WITH)]
        remembering = self.learner(device, self.config.pose_steps)
        remembering.network.initialise_temporal_module(torch.cat(features))
        remembering.network.load_state_dict(remembering.network.state_dict() | network.state_dict())
        return remembering

    def batch(self, step: int, rank: int, processes: int) -> ClipBatch:
        """One process's share of the step's clips, augmented."""
        config, frames = self.config, self.config.clip_frames_at(step)
        clips = self.data.train.clips(frames, config.pinch_copies)
        chosen, generator = draw_examples(clips, config.hands // frames, config.seed, step, rank, processes)
        first = step < config.pose_steps
        augmentation = config.augmentation if first else config.second_augmentation
        batch = self.data.train.batch(chosen, frames, augmentation, generator)
        batch = batch.with_noisy_skeletons(config.skeleton_noise, generator)
        return batch if first else batch.occluded(config.occluded, generator)

    def losses(self, learner: nn.Module, batch: ClipBatch, step: int) -> Losses:
        """The losses of a step, weighted as its phase says."""
        if 0 < self.config.pose_steps <= step:
            keep_batch_norms(learner)
        return learner(batch, self.config.weights_at(step))

    def validate(self, learner: ClipLearner, source: ClipSource, step: int) -> Losses:
        """The terms of the loss on clips that are as long as those that the step trains on, with exact skeletons."""
        frames = self.config.clip_frames_at(step)
        chosen, generator = draw_examples(source.clips(frames), self.config.validation_hands // frames, seed=0, step=0)
        batch = source.batch(chosen, frames, NO_AUGMENTATION, generator)
        return self.losses(learner, batch, step)


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
    """Every term of one regressor, averaged over the hand-frames of the mask (the temporal term over inner ones)."""
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
