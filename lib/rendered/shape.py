"""Our own hand, the 53 users around it, and more hands to train on.

The generic hand is the population mean: a skeleton made here from published bone lengths, and the mesh and skinning
that `lib.rendered.sculpt` made around it and stored in `hand.npz`. A user is that hand with other bone lengths,
thickness, palm, joint axes and overall size.

Rest frame of the left hand: origin in the wrist, x towards the fingers, y out of the back of the hand, z towards the
thumb. Positive angles flex a finger, abduct it towards the thumb, and oppose the thumb.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from lib.formats.hand_files import GENERIC_JOINT_LIMITS
from lib.hands import NUM_BONES, PALM, HandModel, skin

TRAIN_USERS, TEST_USERS = range(44), range(44, 53)
EXTRA_USERS = range(53, 185)
"""More users to train on, whom the paper's dataset has no like of. Why: with 44, a network that makes 9.7 mm on the
clips it was trained on makes 12.1 mm on new ones of the same users, and 16.6 mm on those of new users."""
SCALE_RANGE = (0.8, 1.2)
ASSET = Path(__file__).with_name("hand.npz")

# Bone lengths from joint to joint, the last one with the tissue of the fingertip. Source: Buryanov & Kotiuk 2010.
BONE_LENGTHS_MM = np.array(
    [
        [46.22, 31.57, 21.67 + 5.67],  # thumb: metacarpal, proximal, distal
        [39.78, 22.38, 15.82 + 3.84],  # index: proximal, middle, distal
        [44.63, 26.33, 17.40 + 3.95],
        [41.37, 25.65, 17.30 + 3.95],
        [32.57, 18.11, 15.96 + 3.73],
    ]
)
_METACARPAL_LENGTHS_MM = np.array([68.12, 64.60, 58.00, 53.69])
_METACARPAL_BASES_MM = np.array([[18.0, -1.0, 12.5], [21.5, 1.5, 2.0], [20.5, 0.5, -7.0], [18.5, -2.5, -14.0]])
_METACARPAL_HEADINGS_DEG = np.array([[8.0, -1.0], [0.0, -1.5], [-9.0, 2.0], [-18.0, 5.0]])  # to the thumb; to the palm
_FINGER_HEADINGS_DEG = np.array([4.0, -2.0, -9.0, -18.0])  # of the resting finger, towards the thumb
_FINGER_ROLLS_DEG = np.array([5.0, -2.0, -9.0, -17.0])  # of the bending axes about the finger: fists close obliquely
_REST_BENDS_DEG = (4.0, 6.0, 4.0)
_THUMB_BASE_MM = np.array([15.0, -9.0, 15.5])
_THUMB_HEADINGS_DEG = np.array([[36.0, 25.0], [38.0, 17.0], [42.0, 19.0]])  # towards the thumb's side; to the palm
_THUMB_FLEXION_AXIS = np.array([0.42, 0.90, -0.10])
_THUMB_OPPOSITION = np.array([0.20, -0.65, -0.73])  # where positive angles of the two saddle axes carry the metacarpal
_THUMB_ADDUCTION = np.array([0.57, 0.72, -0.30])
_SADDLE_GAP_MM = 3.0  # between the two axes of the thumb's saddle joint
_PALM_MM = np.array([66.0, -16.3, 2.0])  # on the skin
_PALM_WEIGHTS = {1: 0.9, 8: 0.06, 5: 0.04}


@dataclass(frozen=True)
class Skeleton:
    """The bones of a resting left hand, in metres.

    chains: per finger the three joint centres and the fingertip. axes: per finger the unit axes of its four joints.
    """

    chains: Float[np.ndarray, "5 4 3"]
    axes: Float[np.ndarray, "5 4 3"]

    @property
    def directions(self) -> Float[np.ndarray, "5 3 3"]:
        """Unit vectors along the three bones of each finger."""
        return unit(np.diff(self.chains, axis=1))

    @property
    def dorsal(self) -> Float[np.ndarray, "5 3 3"]:
        """Unit vectors out of the back of the three bones of each finger."""
        flexion = self.axes[:, [1, 2, 3]].copy()
        flexion[0, 0] = self.axes[0, 2]
        return unit(np.cross(self.directions, flexion))


def generic_skeleton() -> Skeleton:
    """The skeleton of the mean hand. Source: bone lengths, Buryanov & Kotiuk 2010; the palm is ours."""
    chains, axes = zip(_thumb(), *(_finger(f) for f in range(4)), strict=True)
    return Skeleton(np.stack(chains) / 1000, np.stack(axes))


@dataclass(frozen=True)
class Variation:
    """How a hand differs from the mean one: factors about 1, shifts in metres, turns in radians."""

    scale: float = 1.0
    palm: Float[np.ndarray, "3"] = field(default_factory=lambda: np.ones(3))  # length, depth, width
    base_shifts: Float[np.ndarray, "5 3"] = field(default_factory=lambda: np.zeros((5, 3)))
    lengths: Float[np.ndarray, "5 3"] = field(default_factory=lambda: np.ones((5, 3)))
    thickness: Float[np.ndarray, "5"] = field(default_factory=lambda: np.ones(5))
    axis_turns: Float[np.ndarray, "5 4 3"] = field(default_factory=lambda: np.zeros((5, 4, 3)))

    def bone_maps(self, skeleton: Skeleton) -> Float[np.ndarray, "17 4 4"]:
        """Affine maps that carry points around each bone of the mean hand to their place in this hand.

        The palm is stretched along the three axes of the rest frame; every finger bone along itself (length) and
        across (thickness), and starts where the bone before it ends.
        """
        maps = np.tile(np.eye(4), (NUM_BONES, 1, 1))
        maps[:2, :3, :3] = np.diag(self.palm)
        directions = skeleton.directions
        for finger in range(5):
            start = maps[1, :3, :3] @ skeleton.chains[finger, 0] + self.base_shifts[finger]
            for k in range(3):
                along = np.outer(directions[finger, k], directions[finger, k])
                linear = self.lengths[finger, k] * along + self.thickness[finger] * (np.eye(3) - along)
                origin, end = skeleton.chains[finger, k : k + 2]
                bone = maps[2 + 3 * finger + k]
                bone[:3, :3], bone[:3, 3] = linear, start - linear @ origin
                start = start + linear @ (end - origin)
        maps[:, :3] *= self.scale
        return maps


@cache
def generic_hand() -> HandModel:
    """The mean hand with its mesh."""
    return _hand(Variation())


def user_hand(user: int, seed: int = 0) -> HandModel:
    """The hand of one user: the same for the same (seed, user), whatever came before.

    Most of the variation is the overall scale, spread evenly over `SCALE_RANGE` in each group of users; bone lengths,
    thickness, palm and joint axes vary on top, so that no scaled mean hand fits.
    Raises ValueError for an unknown user.
    """
    return _hand(_user_variation(user, seed))


def user_scale(user: int, seed: int = 0) -> float:
    """The overall size of a user's hand as a multiple of the mean one's; see `user_hand`."""
    return _user_variation(user, seed).scale


@cache
def vertex_albedo() -> Float[np.ndarray, "vertices"]:
    """Share of the skin's brightness at every vertex, in (0, 1]: nails and palm light, creases and knuckles dark."""
    return _asset()["albedo"].astype(np.float64)


def _user_variation(user: int, seed: int) -> Variation:
    group = next((users for users in (TRAIN_USERS, TEST_USERS, EXTRA_USERS) if user in users), None)
    if group is None:
        raise ValueError(f"unknown user {user}: expected 0..{EXTRA_USERS[-1]}")
    order = np.random.default_rng([seed, group[0]]).permutation(len(group))
    low, high = SCALE_RANGE
    generator = np.random.default_rng([seed, group[0], user])
    place = (order[user - group[0]] + generator.uniform()) / len(group)

    def factors(deviation: float, *shape: int) -> np.ndarray:
        return np.exp(deviation * generator.standard_normal(shape).clip(-2, 2))

    thick, palm = factors(0.06, 1), factors(0.05, 1)
    return Variation(
        scale=low + (high - low) * float(place),
        palm=palm * factors(0.04, 3),
        base_shifts=0.0015 * generator.standard_normal((5, 3)).clip(-2, 2) * [1, 0.6, 1],
        lengths=factors(0.04, 1) * factors(0.04, 5, 1) * factors(0.05, 5, 3),
        thickness=thick * factors(0.03, 5),
        axis_turns=np.deg2rad(4.0) * generator.standard_normal((5, 4, 3)).clip(-2, 2),
    )


def _hand(variation: Variation) -> HandModel:
    skeleton, asset = generic_skeleton(), _asset()
    maps = torch.from_numpy(variation.bone_maps(skeleton))
    joints = np.repeat(skeleton.chains[:, :3], [2, 1, 1], axis=1)
    joints[0, 1] += _SADDLE_GAP_MM / 1000 * skeleton.directions[0, 0]
    joint_weights = _one_hot([f * 3 + 2 + k for f in range(5) for k in (0, 0, 1, 2)])
    joint_weights = torch.from_numpy(np.concatenate((joint_weights, _one_hot([0, 0]))))
    joints = torch.from_numpy(np.concatenate((joints.reshape(20, 3), np.zeros((2, 3)))))
    landmarks, landmark_weights = _landmarks(skeleton)
    axes = np.concatenate((_turned(skeleton.axes, variation.axis_turns).reshape(20, 3), np.eye(3)[1:]))
    weights = torch.from_numpy(asset["bone_weights"].astype(np.float64))
    return HandModel(
        joint_rotation_axes=torch.from_numpy(axes),
        joint_rest_positions=skin(joints, joint_weights, maps),
        joint_limits=GENERIC_JOINT_LIMITS,
        landmark_rest_positions=skin(landmarks, landmark_weights, maps),
        landmark_bone_weights=landmark_weights,
        mesh_vertices=skin(torch.from_numpy(asset["vertices"].astype(np.float64)), weights, maps),
        mesh_triangles=torch.from_numpy(asset["triangles"].astype(np.int64)),
        mesh_bone_weights=weights,
    ).to(dtype=torch.float32)


def _landmarks(skeleton: Skeleton) -> tuple[torch.Tensor, torch.Tensor]:
    """Rest positions and bone weights in the order of `lib.hands.LANDMARKS`."""
    chains = skeleton.chains
    points = (chains[:, 3], np.zeros((1, 3)), chains[0, 1:3], chains[1:, :3].reshape(12, 3), _PALM_MM[None] / 1000)
    weights = _one_hot([4, 7, 10, 13, 16, 1, 2, 3, 1, 5, 6, 1, 8, 9, 1, 11, 12, 1, 14, 15, 1])
    weights[PALM] = 0.0
    weights[PALM, list(_PALM_WEIGHTS)] = list(_PALM_WEIGHTS.values())
    return torch.from_numpy(np.concatenate(points)), torch.from_numpy(weights)


def _finger(finger: int) -> tuple[np.ndarray, np.ndarray]:
    """Joint centres and tip (4, 3) in mm and axes (4, 3) of index to pinky (0 to 3)."""
    heading, tilt = np.deg2rad(_METACARPAL_HEADINGS_DEG[finger])
    knuckle = _METACARPAL_BASES_MM[finger] + _METACARPAL_LENGTHS_MM[finger] * _heading(heading, tilt)
    direction = _heading(np.deg2rad(_FINGER_HEADINGS_DEG[finger]), 0.0)
    flexion = np.cross([0.0, 1.0, 0.0], direction)
    flexion = _rotated(flexion, direction * np.deg2rad(_FINGER_ROLLS_DEG[finger]))
    points = [knuckle]
    for length, bend in zip(BONE_LENGTHS_MM[finger + 1], np.deg2rad(_REST_BENDS_DEG), strict=True):
        direction = _rotated(direction, flexion * bend)
        points.append(points[-1] + length * direction)
    abduction = np.cross(flexion, unit(points[1] - points[0]))
    return np.stack(points), np.stack((abduction, flexion, flexion, flexion))


def _thumb() -> tuple[np.ndarray, np.ndarray]:
    """Joint centres and tip (4, 3) in mm and axes (4, 3) of the thumb."""
    directions = np.stack([_heading(*np.deg2rad(pair)) for pair in _THUMB_HEADINGS_DEG])
    points = _THUMB_BASE_MM + np.concatenate((np.zeros((1, 3)), np.cumsum(BONE_LENGTHS_MM[0][:, None] * directions, 0)))
    saddle = unit(np.cross(directions[0], np.stack((_THUMB_OPPOSITION, _THUMB_ADDUCTION))))
    flexion = [
        unit(_THUMB_FLEXION_AXIS - direction * (_THUMB_FLEXION_AXIS @ direction)) for direction in directions[1:]
    ]
    return points, np.concatenate((saddle, np.stack(flexion)))


def _heading(to_thumb: float, to_palm: float) -> np.ndarray:
    return np.array([np.cos(to_palm) * np.cos(to_thumb), -np.sin(to_palm), np.cos(to_palm) * np.sin(to_thumb)])


def _rotated(vector: np.ndarray, turn: np.ndarray) -> np.ndarray:
    return Rotation.from_rotvec(turn).apply(vector)


def _turned(axes: np.ndarray, turns: np.ndarray) -> np.ndarray:
    return Rotation.from_rotvec(turns.reshape(-1, 3)).apply(axes.reshape(-1, 3)).reshape(axes.shape)


def _one_hot(bones: list[int]) -> np.ndarray:
    return np.eye(NUM_BONES)[bones]


@cache
def _asset() -> dict[str, np.ndarray]:
    with np.load(ASSET, allow_pickle=False) as stored:
        return dict(stored)


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors of the last axis at length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
