"""Pinches: the joint angles with which thumb and index fingertip of one user's hand touch, or nearly touch."""

import numpy as np
import torch
from jaxtyping import Float

from lib.hands import INDEX_TIP, NUM_FINGER_JOINTS, THUMB_TIP
from lib.rendered.contact import THUMB_DISTAL_CAPSULE, Capsules
from lib.rendered.postures import DIP_PER_PIP, within

_JOINTS = 8
"""Thumb and index finger."""
_ITERATIONS, _FIRST_DAMPING, _DIFFERENCE = 25, 100.0, 1e-5
_SQUASH = 0.001
"""How far the pulps of a pinch yield (metres)."""
_SCALES = {"tips": 0.001, "pulps": 0.0005, "facing": 0.5, "coupling": np.radians(10), "prior": np.radians(25)}
"""What counts as one unit of each residual (metres, cosines, radians)."""


def solve_pinches(
    capsules: Capsules,
    prior_angles: Float[np.ndarray, "pinches 20"],
    tip_distances: Float[np.ndarray, "pinches"],
    touching: np.ndarray,
) -> Float[np.ndarray, "pinches 20"]:
    """The postures next to `prior_angles` whose thumb and index fingertip have the given distances (metres).

    Where `touching`, the pulps of both fingertips meet, on the palmar side of the thumb's distal phalanx.
    Levenberg-Marquardt with forward differences over the joints of the two fingers; the others keep their angles.
    """
    limits = capsules.hand.joint_limits[:NUM_FINGER_JOINTS].numpy()
    steps = np.concatenate((np.zeros((1, 20)), np.eye(_JOINTS, 20) * _DIFFERENCE))

    def residuals_around(angles):
        return _residuals(capsules, angles[:, None] + steps, prior_angles, tip_distances, touching)

    angles, residuals = prior_angles, residuals_around(prior_angles)
    damping = np.full(len(angles), _FIRST_DAMPING)
    for _ in range(_ITERATIONS):
        jacobian = ((residuals[:, 1:] - residuals[:, :1]) / _DIFFERENCE).swapaxes(1, 2)
        normal = jacobian.swapaxes(1, 2) @ jacobian + damping[:, None, None] * np.eye(_JOINTS)
        step = np.linalg.solve(normal, jacobian.swapaxes(1, 2) @ residuals[:, 0, :, None])[..., 0]
        trial = within(angles - np.pad(step, ((0, 0), (0, NUM_FINGER_JOINTS - _JOINTS))), limits)
        trial_residuals = residuals_around(trial)
        better = (trial_residuals[:, 0] ** 2).sum(axis=1) < (residuals[:, 0] ** 2).sum(axis=1)
        angles = np.where(better[:, None], trial, angles)
        residuals = np.where(better[:, None, None], trial_residuals, residuals)
        damping *= np.where(better, 0.3, 4.0)
    return angles


def fingertip_distance(capsules: Capsules, joint_angles: Float[np.ndarray, "*batch 20"]) -> Float[np.ndarray, "*batch"]:
    """Distance of the thumb's and the index finger's tip (metres)."""
    angles = torch.from_numpy(np.pad(joint_angles, [(0, 0)] * (joint_angles.ndim - 1) + [(0, 2)]))
    tips = capsules.hand.landmarks(angles, torch.eye(4, dtype=angles.dtype))[..., (THUMB_TIP, INDEX_TIP), :]
    return np.linalg.norm((tips[..., 0, :] - tips[..., 1, :]).numpy(), axis=-1)


def _residuals(capsules: Capsules, angles, prior, tip_distances, touching) -> np.ndarray:
    """Residuals (pinches, 1 + joints, residuals) of `solve_pinches` at angles (pinches, 1 + joints, 20)."""
    hand = capsules.hand
    bones = hand.bones(
        torch.from_numpy(np.pad(angles, ((0, 0), (0, 0), (0, 2)))), torch.eye(4, dtype=torch.float64)
    ).numpy()
    tips, centers, pulps = [], [], []
    for finger in (THUMB_TIP, INDEX_TIP):
        capsule = THUMB_DISTAL_CAPSULE + 3 * finger
        bone = bones[:, :, 2 + capsule]
        start, center = capsules.ends[capsule]
        axis = hand.joint_rotation_axes[4 * finger + 3].numpy()
        to_pulp = np.cross(axis, center - start) / np.linalg.norm(center - start)
        tips.append(bone[..., :3, :3] @ hand.landmark_rest_positions[finger].numpy() + bone[..., :3, 3])
        centers.append(bone[..., :3, :3] @ center + bone[..., :3, 3])
        pulps.append(bone[..., :3, :3] @ to_pulp)
    between = centers[1] - centers[0]
    apart = np.linalg.norm(between, axis=-1)
    towards = between / apart[..., None]
    radii = capsules.radii[THUMB_DISTAL_CAPSULE] + capsules.radii[THUMB_DISTAL_CAPSULE + 3]
    facing = [1 - (sign * towards * pulp).sum(axis=-1) for sign, pulp in zip((1, -1), pulps, strict=True)]
    return np.concatenate((
        ((np.linalg.norm(tips[1] - tips[0], axis=-1) - tip_distances[:, None]) / _SCALES["tips"])[..., None],
        (np.where(touching[:, None], apart - radii + _SQUASH, 0.0) / _SCALES["pulps"])[..., None],
        np.stack(facing, axis=-1) / _SCALES["facing"],
        ((angles[..., 7] - DIP_PER_PIP * angles[..., 6]) / _SCALES["coupling"])[..., None],
        (angles - prior[:, None])[..., :_JOINTS] / _SCALES["prior"],
    ), axis=-1)  # fmt: skip
