"""The losses of §3.4, one function per equation, unreduced: one value per hand, frame or landmark.

Lengths are metres and angles radians, which is what makes the paper's weights sensible. Signals over time carry the
frames in their first dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.hands import INDEX_TIP, NUM_FINGER_JOINTS, THUMB_TIP
from lib.transforms import acceleration

Landmarks = Float[Tensor, "*batch 21 3"]
_Angles = Float[Tensor, "*batch 22"]
_Poses = Float[Tensor, "*batch 4 4"]

PINCHED, SAFE = 0.01, 0.02
"""ε1 and ε2 of Eq. 7 and 8, metres between the fingertips."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms: λθ and λw of Eq. 5, λt and λp of Eq. 9.

    `unknown` weighs all terms of regressor U against those of regressor K; the paper trains both jointly and does not
    say how. A weight of zero switches a term off.
    """

    joint_angles: float = 0.05
    root_position: float = 0.5
    temporal: float = 0.05
    pinch: float = 0.4
    unknown: float = 1.0


def masked_mean(values: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """The mean over the mask; zero if it is empty."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def keypoint_loss(predicted: Landmarks, true: Landmarks) -> Float[Tensor, "*batch 21"]:
    """|p_j - p̂_j|_1 of each landmark, summed over its coordinates, m. Source: Eq. 4, which sums over the landmarks."""
    return (predicted - true).abs().sum(dim=-1)


def joint_angle_loss(predicted: _Angles, true: _Angles) -> Float[Tensor, "*batch"]:
    """|θ - θ̂|_1 over the 20 finger joints, rad. Source: first term of Eq. 5."""
    return (predicted - true)[..., :NUM_FINGER_JOINTS].abs().sum(dim=-1)


def root_position_loss(predicted: _Poses, true: _Poses) -> Float[Tensor, "*batch"]:
    """|w(T) - w(T̂)|_1 of the wrist's position, m. Source: second term of Eq. 5."""
    return (predicted - true)[..., :3, 3].abs().sum(dim=-1)


def pose_loss(
    keypoints: Tensor, joint_angles: Tensor, root_position: Tensor, weights: LossWeights
) -> Float[Tensor, "*batch"]:
    """L_pose of each hand from its three parts. Source: Eq. 4 and 5."""
    return keypoints.sum(dim=-1) + weights.joint_angles * joint_angles + weights.root_position * root_position


def temporal_loss(
    joint_angles: Float[Tensor, "frames *batch 22"], world_from_wrist: Float[Tensor, "frames *batch 4 4"]
) -> Float[Tensor, "inner *batch"]:
    """|acc(θ̂, t)|_1 + |acc(T̂, t)|_1 of every frame but the first and the last. Source: Eq. 6.

    Deviation: the paper does not say how T is written; here it is the 3x4 matrix of rotation and position (m).
    """
    turning = acceleration(joint_angles[..., :NUM_FINGER_JOINTS]).abs().sum(dim=-1)
    return turning + acceleration(world_from_wrist[..., :3, :]).abs().sum(dim=(-2, -1))


def pinch_loss(landmarks: Landmarks, pinch: Bool[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """l max(d - ε1, 0) + (1 - l) max(ε2 - d, 0) with d the distance of the fingertips, m. Source: Eq. 7 and 8.

    Deviation: the paper prints min(·, 0), which would reward what it means to penalise.
    """
    gap = landmarks[..., THUMB_TIP, :] - landmarks[..., INDEX_TIP, :]
    distance = torch.linalg.vector_norm(gap, dim=-1)
    return torch.where(pinch, (distance - PINCHED).clamp(min=0), (SAFE - distance).clamp(min=0))
