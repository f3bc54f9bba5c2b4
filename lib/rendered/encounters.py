"""Encounters of two hands: how they touch, clasp, interlace or hide each other, as poses of both in the body frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from lib.hands import LANDMARKS, LEFT, NUM_FINGER_JOINTS, RIGHT, HandModel
from lib.rendered.arms import mirrored
from lib.rendered.postures import sample_any_posture, sample_posture

_Vector = tuple[float | int, float | int, float | int]


@dataclass(frozen=True)
class Side:
    """One hand of an encounter, as if it were a left hand (a right one is mirrored): x right, y down, z forward.

    `fingers` and `back` say where the straight fingers point and the back of the hand faces; `anchor`, a landmark plus
    `offset` in the axes of the hand, is put at `target` (metres for an average hand, from the meeting point).
    """

    posture: str | None
    fingers: _Vector
    back: _Vector
    anchor: str
    target: _Vector
    offset: _Vector = (0.0, 0.0, 0.0)


def _symmetric(side: Side) -> tuple[Side, Side]:
    return side, side


_GRASPING = Side("cylinder grasp", (0.6, -0.15, 0.8), (0.0, -1.0, -0.2), "palm", (0, 0, 0), (0.015, -0.026, 0.0))
_GRASPED_FINGERS, _GRASPED_BACK = (0.8, -0.1, 0.6), (0.2, -1.0, -0.2)
_OFFERED = Side("open", (0.2, -0.75, 0.6), (-0.9, 0.1, 0.4), "palm", (0, 0, 0))
ENCOUNTERS = {
    "palms together": _symmetric(Side("flat", (0, -0.75, 0.65), (-1, 0, 0), "palm", (-0.012, 0, 0))),
    "fingertips together": _symmetric(
        Side("disk grasp", (0.25, -0.6, 0.75), (-1, 0, 0.3), "middle tip", (-0.001, 0, 0)),
    ),
    "fingers interlaced": (
        Side("interlaced", (0.7, -0.6, 0.4), (-0.7, -0.7, 0.2), "middle intermediate", (0.004, 0, 0.006)),
        Side("interlaced", (0.7, -0.6, 0.4), (-0.7, -0.7, 0.2), "middle intermediate", (0.004, 0, -0.006)),
    ),
    "palm on palm": (
        Side("open", (0.6, -0.1, 0.8), (0, 1, 0.2), "palm", (0, 0.012, 0)),
        Side("flat", (0.6, -0.1, 0.8), (0, -1, -0.2), "palm", (0, -0.012, 0)),
    ),
    "fist in palm": (
        _OFFERED,
        Side("fist", (0.9, -0.1, 0.4), (-0.2, -0.8, 0.5), "middle intermediate", (-0.014, 0, 0)),
    ),
    "finger on palm": (_OFFERED, Side("point", (0.75, -0.2, 0.5), (-0.3, -0.9, 0), "index tip", (0, 0, 0))),
    "finger grasped": (_GRASPING, Side("point", _GRASPED_FINGERS, _GRASPED_BACK, "index intermediate", (0, 0, 0))),
    "fingers grasped": (_GRASPING, Side("flat", _GRASPED_FINGERS, _GRASPED_BACK, "ring proximal", (0, 0, 0))),
    "wrist grasped": (_GRASPING, Side("loose fist", _GRASPED_FINGERS, _GRASPED_BACK, "wrist", (0, 0, 0))),
    "fists together": _symmetric(
        Side("fist", (0.8, -0.2, 0.5), (-0.4, -0.8, 0.3), "middle intermediate", (-0.012, 0, 0)),
    ),
    "one hides the other": (
        Side(None, (0.3, -0.7, 0.6), (-0.3, -0.5, -0.8), "palm", (0, 0, -0.055)),
        Side(None, (0.3, -0.7, 0.6), (-0.3, -0.5, -0.8), "palm", (0, 0, 0.055)),
    ),
    "other sides facing": (
        Side(None, (0.4, -0.7, 0.5), (-0.6, 0.1, 0.8), "palm", (0.01, 0, -0.06)),
        Side(None, (0.3, -0.5, 0.8), (-0.6, -0.8, -0.1), "palm", (0.01, 0, 0.05)),
    ),
}  # fmt: skip


def sample_encounter(
    name: str, hand: HandModel, scale: float, generator: np.random.Generator
) -> tuple[Float[np.ndarray, "2 20"], Float[np.ndarray, "2 4 4"]]:
    """Joint angles and wrists (left, right) of one execution of a named encounter, about a meeting point at the origin.

    With equal chance either hand takes either part.
    """
    angles, wrists = np.zeros((2, NUM_FINGER_JOINTS)), np.zeros((2, 4, 4))
    sides = ENCOUNTERS[name]
    order = generator.permutation(2)
    for hand_index, side in zip(order, sides, strict=True):
        angles[hand_index] = _posture(side, hand, generator)
    if sides[0] is sides[1]:
        angles[RIGHT] = angles[LEFT] + generator.normal(0, np.radians(1.5), NUM_FINGER_JOINTS)
    for hand_index, side in zip(order, sides, strict=True):
        wrists[hand_index] = _wrist(side, hand, angles[hand_index], scale, generator)
    wrists[RIGHT] = mirrored(wrists[RIGHT])
    common = np.eye(4)
    common[:3, :3] = Rotation.from_rotvec(generator.normal(0, np.radians((12, 15, 8)))).as_matrix()
    return angles, common @ wrists


def _posture(side: Side, hand: HandModel, generator: np.random.Generator) -> np.ndarray:
    limits = hand.joint_limits[:NUM_FINGER_JOINTS].numpy()
    if side.posture is None:
        return sample_any_posture(limits, generator)
    return sample_posture(side.posture, limits, generator, variation=0.6)


def _wrist(side: Side, hand: HandModel, angles: np.ndarray, scale: float, generator: np.random.Generator) -> np.ndarray:
    """body_from_wrist of a left hand with its anchor at the target, with a few degrees and millimetres of variation."""
    forward = np.array(side.fingers) / np.linalg.norm(side.fingers)
    across = np.cross(forward, side.back)
    across /= np.linalg.norm(across)
    wrist = np.eye(4)
    wobble = Rotation.from_rotvec(generator.normal(0, np.radians(6), 3)).as_matrix()
    wrist[:3, :3] = wobble @ np.stack((forward, np.cross(across, forward), across), axis=1)
    landmarks = hand.landmarks(torch.from_numpy(np.pad(angles, (0, 2))), torch.eye(4, dtype=torch.float64)).numpy()
    anchor = landmarks[LANDMARKS.index(side.anchor)] + scale * np.array(side.offset)
    target = scale * (np.array(side.target) + generator.normal(0, 0.003, 3))
    wrist[:3, 3] = target - wrist[:3, :3] @ anchor
    return wrist
