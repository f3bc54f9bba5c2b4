"""What is minimised: the joint loss of both regressors over clips (§3.3, §3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lib.clips import ClipBatch
from lib.files import MM
from lib.hands import HandModel, for_hand
from lib.losses import (
    LossWeights,
    joint_angle_loss,
    keypoint_loss,
    pinch_loss,
    pose_loss,
    root_position_loss,
    temporal_loss,
)
from lib.network import Crops, Features, HandPrediction, TemporalState, UmeTrack


@dataclass(frozen=True)
class ClipLosses:
    """The mean of each loss term over the hands it applies to, and the error of regressor K (mm)."""

    total: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]]


class ClipLearner(nn.Module):
    """The network as it is trained: clips in, losses out."""

    def __init__(self, network: UmeTrack, generic_hand: HandModel):
        super().__init__()
        self.network = network
        self.generic_hand = generic_hand

    def forward(self, batch: ClipBatch, weights: LossWeights) -> ClipLosses:
        """L of Eq. 9 for regressor K, plus `weights.unknown` times that of U for hands that two cameras see."""
        features = clip_features(self.network, batch)
        known = self.network.known(features, batch.crops, batch.hand_model)
        terms = _terms(known, batch.hand_model, batch, torch.ones_like(batch.pinch), weights, "known")
        total = terms["known_loss"]
        two = batch.crops.two_views
        if weights.unknown and bool(two.any()):
            unknown = _spread(self.network.unknown(features[two], _some(batch.crops, two)), two)
            generic = self.generic_hand.scaled(unknown.scale)
            terms |= _terms(unknown, generic, batch, two.unflatten(0, batch.shape), weights, "unknown")
            total = total + weights.unknown * terms["unknown_loss"]
        return ClipLosses(total, terms)


def clip_features(network: UmeTrack, batch: ClipBatch) -> Features:
    """Features of all hands of the clips, (frames * clips, ...): extracted at once, remembered frame by frame."""
    frames, clips = batch.shape
    extracted = network.extract(batch.crops)
    state = TemporalState.untracked(clips, extracted.device)
    remembered = []
    for frame in range(frames):
        rows = slice(frame * clips, (frame + 1) * clips)
        features, state = network.remember(extracted[rows], _some(batch.crops, rows), state)
        remembered.append(features)
    return torch.cat(remembered)


def _terms(
    prediction: HandPrediction,
    model: HandModel,
    batch: ClipBatch,
    mask: Bool[Tensor, "frames clips"],
    weights: LossWeights,
    name: str,
) -> dict[str, Tensor]:
    """Every term of one regressor, averaged over the hand-frames of the mask (the temporal term over inner ones)."""
    frames = batch.shape
    hand = batch.crops.hand
    landmarks = model.landmarks(prediction.joint_angles, for_hand(prediction.world_from_wrist, hand))
    true = batch.hand_model.landmarks(
        batch.joint_angles.flatten(0, 1), for_hand(batch.world_from_wrist.flatten(0, 1), hand)
    )
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
    loss = _mean(parts["pose"], mask)
    report = {
        "pose": loss,
        "mpjpe_mm": _mean((landmarks - true).norm(dim=-1).mean(dim=-1).unflatten(0, frames), mask).detach() * MM,
    }
    if weights.temporal:
        report["temporal"] = _mean(temporal_loss(angles, wrists), mask[2:] & mask[1:-1] & mask[:-2])
        loss = loss + weights.temporal * report["temporal"]
    if weights.pinch:
        report["pinch"] = _mean(pinch_loss(landmarks.unflatten(0, frames), batch.pinch), mask)
        loss = loss + weights.pinch * report["pinch"]
    return {f"{name}_{term}": value for term, value in (report | {"loss": loss}).items()}


def _mean(values: Float[Tensor, "frames clips"], mask: Bool[Tensor, "frames clips"]) -> Float[Tensor, ""]:
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def _some(crops: Crops, rows) -> Crops:
    return Crops(
        crops.images[rows], crops.focal_px[rows], crops.camera_from_world[rows], crops.hand[rows], crops.two_views[rows]
    )


def _spread(prediction: HandPrediction, rows: Bool[Tensor, "hands"]) -> HandPrediction:
    """A prediction for some hands as one for all of them; the others get zeros."""

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(len(rows), *values.shape[1:]).masked_scatter(
            rows.reshape(-1, *[1] * (values.ndim - 1)).expand(len(rows), *values.shape[1:]), values
        )

    return HandPrediction(
        *(spread(getattr(prediction, f)) for f in ("joint_angles", "world_from_wrist", "landmark_sigma", "scale"))
    )
