"""Capsules around the bones of two hands: how deep they interpenetrate, and how to move fingers and wrists apart.

Per hand 20 capsules: three for each finger in the order of the bones, the metacarpals of index to pinky, the forearm.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.ndimage import gaussian_filter1d

from lib.hands import LEFT, NUM_FINGER_JOINTS, RIGHT, HandModel, for_hand

NUM_CAPSULES, THUMB_DISTAL_CAPSULE, _FOREARM = 20, 2, 19
_NUM_VARIABLES = 2 * (NUM_FINGER_JOINTS + 3)
_KNUCKLE = 0.35
"""A proximal phalanx counts from this share of its length: nearer to the knuckle it is one with the palm."""
_CROSSED = -0.5
"""Fingers count as crossed where the normal of their contact points so much (cosine) to the wrong side."""
_SOFTNESS = 3e-4
_LONGEST_STEP = np.tile(np.r_[np.full(NUM_FINGER_JOINTS, 0.3), np.full(3, 0.05)], 2)
"""Of one round, in radians and metres."""
_FINGER_FRAMES, _WRIST_FRAMES = 1.5, 3.0
"""Temporal smoothing (standard deviations) of the corrections, so that they add no jerk."""


@dataclass(frozen=True)
class Capsules:
    """The capsules of one user's hand, in the rest frame (metres).

    `touching[i, j]` is the distance of two axes at which the skins of one hand meet: the sum of their radii, or less
    where the resting hand is closer (neighbours at a knuckle).
    """

    hand: HandModel
    ends: Float[np.ndarray, "20 2 3"]
    radii: Float[np.ndarray, "20"]
    touching: Float[np.ndarray, "20 20"]

    @staticmethod
    def of(hand: HandModel) -> Capsules:
        """Fits the radii to the mesh of `hand`; raises ValueError if it has none."""
        if hand.mesh_vertices is None or hand.mesh_bone_weights is None:
            raise ValueError("capsules are fitted to the mesh: expected a hand model with mesh_vertices and weights")
        hand = hand.to(dtype=torch.float64)
        vertices, bone = hand.mesh_vertices.numpy(), hand.mesh_bone_weights.argmax(dim=-1).numpy()
        ends = _bone_segments(hand, vertices)
        owner = np.where(bone >= 2, bone - 2, -1)
        palm = owner < 0
        distances = np.stack([_point_segment(vertices, *ends[i]) for i in range(15, NUM_CAPSULES)], axis=1)
        owner[palm] = 15 + distances[palm].argmin(axis=1)
        radii = np.array([np.median(_point_segment(vertices[owner == i], *ends[i])) for i in range(NUM_CAPSULES)])
        for i in (2, 5, 8, 11, 14):
            along = ends[i, 1] - ends[i, 0]
            ends[i, 1] -= radii[i] * along / np.linalg.norm(along)
        for i in (3, 6, 9, 12):
            ends[i, 0] += _KNUCKLE * (ends[i, 1] - ends[i, 0])
        first, second = np.divmod(np.arange(NUM_CAPSULES**2), NUM_CAPSULES)
        at_rest = closest_points(ends[first], ends[second])[2].reshape(NUM_CAPSULES, NUM_CAPSULES)
        return Capsules(hand, ends, radii, np.minimum(radii[:, None] + radii, at_rest))

    def pose(self, joint_angles: np.ndarray, world_from_wrist: np.ndarray) -> PosedCapsules:
        """Both hands (frames, 2, 20) under their wrists (frames, 2, 4, 4), the right one mirrored."""
        angles = torch.from_numpy(np.pad(joint_angles, ((0, 0), (0, 0), (0, 2))))
        sides = torch.tensor([LEFT, RIGHT]).expand(world_from_wrist.shape[:2])
        wrists = for_hand(torch.from_numpy(world_from_wrist), sides)
        bones = self.hand.bones(angles, wrists).numpy()
        finger_bones, palm_bones = bones[:, :, 2:], np.repeat(bones[:, :, 1:2], 5, axis=2)
        capsule_bones = np.concatenate((finger_bones, palm_bones), axis=2)
        # The first axis of a finger is fixed in the palm; later joints' own turns leave their axes in place.
        joint_bones = np.insert(finger_bones, np.arange(0, 15, 3), palm_bones, axis=2)
        axes, origins = (part[:NUM_FINGER_JOINTS, None].numpy() for part in
                         (self.hand.joint_rotation_axes, self.hand.joint_rest_positions))  # fmt: skip
        axes = axes @ joint_bones[..., :3, :3].swapaxes(-1, -2)
        axes[:, RIGHT] *= -1
        return PosedCapsules(_moved(capsule_bones, self.ends), axes[..., 0, :], _moved(joint_bones, origins)[..., 0, :])


class PosedCapsules(NamedTuple):
    """Capsule axes (frames, 2, 20, 2, 3), and axes and origins (frames, 2, 20, 3) of the joints, in metres."""

    ends: np.ndarray
    joint_axes: np.ndarray
    joint_origins: np.ndarray


class Contacts(NamedTuple):
    """Pairs of capsules that are too close: indices (contacts,), points and unit normals (contacts, 3), metres.

    Capsules count through both hands, 0-19 left and 20-39 right; `normals` point from the first to the second,
    `depths` say how far they have to part along them, `overlaps` how much their distance lacks (metres).
    """

    frames: np.ndarray
    first: np.ndarray
    second: np.ndarray
    first_points: np.ndarray
    second_points: np.ndarray
    normals: np.ndarray
    depths: np.ndarray
    overlaps: np.ndarray


class Pairs(NamedTuple):
    """Which capsules must keep which distance: indices and distances of the axes (pairs,)."""

    first: Int[np.ndarray, "pairs"]
    second: Int[np.ndarray, "pairs"]
    distance: Float[np.ndarray, "pairs"]


def self_pairs(capsules: Capsules, tolerance: float) -> Pairs:
    """Pairs within each hand, fingers against other fingers and the palm."""
    finger = np.minimum(np.arange(NUM_CAPSULES) // 3, 5)
    first, second = np.nonzero(np.triu(finger[:, None] != finger) & (finger[:, None] < 5))
    same = (first % 3 == 0) & (first >= 3) & (second >= 15)
    keep = ~same & (second != _FOREARM) & ~((first == 0) & (second >= 15))
    first, second = first[keep], second[keep]
    distance = capsules.touching[first, second] - tolerance
    return Pairs(np.concatenate((first, first + NUM_CAPSULES)), np.concatenate((second, second + NUM_CAPSULES)),
                 np.tile(distance, 2))  # fmt: skip


def cross_pairs(capsules: Capsules, gap: float) -> Pairs:
    """All pairs of one capsule of each hand, whose skins must stay `gap` metres apart (negative: may overlap)."""
    first, second = (index.ravel() for index in np.indices((NUM_CAPSULES, NUM_CAPSULES)))
    return Pairs(first, second + NUM_CAPSULES, capsules.radii[first] + capsules.radii[second] + gap)


def find_contacts(posed: PosedCapsules, pairs: Pairs) -> Contacts:
    """All pairs closer than allowed. Fingers that overlap and lie in the wrong order are to part sideways."""
    ends = posed.ends.reshape(len(posed.ends), 2 * NUM_CAPSULES, 2, 3)
    centers, half = ends.mean(axis=2), np.linalg.norm(ends[0, :, 1] - ends[0, :, 0], axis=-1) / 2
    reach = half[pairs.first] + half[pairs.second] + pairs.distance
    products = centers @ centers.swapaxes(1, 2)
    squares = np.diagonal(products, axis1=1, axis2=2)
    apart = squares[:, :, None] + squares[:, None] - 2 * products
    frames, index = np.nonzero(apart[:, pairs.first, pairs.second] < reach**2)
    first, second = pairs.first[index], pairs.second[index]
    points, others, distances = closest_points(ends[frames, first], ends[frames, second])
    overlaps = pairs.distance[index] - distances
    normals = (others - points) / np.maximum(distances[:, None], 1e-9)
    sideways, crossed = _crossings(posed, frames, first, second, normals)
    depths = overlaps + crossed * (1 - (normals * sideways).sum(axis=1)) * distances
    normals = np.where(crossed[:, None], sideways, normals)
    contacts = Contacts(frames, first, second, points, others, normals, depths, overlaps)
    return Contacts(*(part[overlaps > 0] for part in contacts))


def _crossings(posed: PosedCapsules, frames, first, second, normals) -> tuple[np.ndarray, np.ndarray]:
    """The direction (contacts, 3) in which the second finger should lie, and where it lies on the other side.

    Bending axes of index to pinky point to the pinky's side; they serve as that direction.
    """
    hand, local = np.divmod(first, NUM_CAPSULES)
    ordered = (local >= 3) & (local < 15) & (second // NUM_CAPSULES == hand) & (second % NUM_CAPSULES < 15)
    sideways = posed.joint_axes[frames, hand, np.where(ordered, 4 * (local // 3) + 1 + local % 3, 0)]
    sideways = np.where((hand == RIGHT)[:, None], -sideways, sideways)
    return sideways, ordered & ((normals * sideways).sum(axis=1) < _CROSSED)


def resolve_contacts(
    capsules: Capsules,
    joint_angles: Float[np.ndarray, "frames 2 20"],
    world_from_wrist: Float[np.ndarray, "frames 2 4 4"],
    pairs: Pairs,
    compliance: Float[np.ndarray, "46"],
    iterations: int,
) -> tuple[Float[np.ndarray, "frames 2 20"], Float[np.ndarray, "frames 2 4 4"]]:
    """Angles and wrists with the contacts of `pairs` moved apart, by corrections that are smooth in time.

    `compliance` (per hand 20 angles in rad^2 and 3 wrist coordinates in m^2) says what gives way. Each round is a
    Gauss-Newton step to the nearest configuration, in that metric, in which the contacts of the round just touch.
    """
    for _ in range(iterations):
        posed = capsules.pose(joint_angles, world_from_wrist)
        contacts = find_contacts(posed, pairs)
        if not len(contacts.frames):
            break
        step = _projection(posed, contacts, compliance).reshape(-1, 2, NUM_FINGER_JOINTS + 3)
        turns = gaussian_filter1d(step[..., :NUM_FINGER_JOINTS], _FINGER_FRAMES, axis=0, mode="nearest")
        shifts = gaussian_filter1d(step[..., NUM_FINGER_JOINTS:], _WRIST_FRAMES, axis=0, mode="nearest")
        joint_angles = joint_angles + turns
        limits = capsules.hand.joint_limits[:NUM_FINGER_JOINTS].numpy()
        joint_angles = np.clip(joint_angles, limits[:, 0], limits[:, 1])
        world_from_wrist = world_from_wrist.copy()
        world_from_wrist[..., :3, 3] += shifts
    return joint_angles, world_from_wrist


def _projection(posed: PosedCapsules, contacts: Contacts, compliance: np.ndarray) -> np.ndarray:
    """The correction (frames, 46) of one round of `resolve_contacts`: all contacts of a frame solved at once."""
    frames = contacts.frames
    slots = np.arange(len(frames)) - np.searchsorted(frames, frames)
    jacobian = np.zeros((len(posed.ends), slots.max() + 1, _NUM_VARIABLES))
    for capsule, points, normals in (
        (contacts.first, contacts.first_points, -contacts.normals),
        (contacts.second, contacts.second_points, contacts.normals),
    ):
        columns, gradient = _endpoint_gradient(posed, frames, capsule, points, normals)
        jacobian[frames[:, None], slots[:, None], columns] += gradient
    depths = np.zeros(jacobian.shape[:2])
    depths[frames, slots] = contacts.depths
    pull = jacobian * compliance
    normal = pull @ jacobian.swapaxes(1, 2) + _SOFTNESS * np.eye(depths.shape[1])
    forces = np.maximum(np.linalg.solve(normal, depths[..., None]), 0)
    return np.clip((pull.swapaxes(1, 2) @ forces)[..., 0], -_LONGEST_STEP, _LONGEST_STEP)


def _endpoint_gradient(posed, frames, capsule, points, normals):
    """Columns (contacts, 7) and derivatives of normal . point: four joints of the finger, three of the wrist."""
    hand, local = np.divmod(capsule, NUM_CAPSULES)
    finger, level = np.minimum(local // 3, 4), local % 3
    joints = 4 * finger[:, None] + np.arange(4)
    moved = (np.arange(4) <= level[:, None] + 1) & (local < 15)[:, None]
    select = frames[:, None], hand[:, None], joints
    motion = np.cross(posed.joint_axes[select], points[:, None] - posed.joint_origins[select])
    turning = np.einsum("cji,ci->cj", motion, normals) * moved
    start = (NUM_FINGER_JOINTS + 3) * hand[:, None]
    columns = np.concatenate((start + joints, start + NUM_FINGER_JOINTS + np.arange(3)), axis=1)
    return columns, np.concatenate((turning, normals), axis=1)


def closest_points(
    first: Float[np.ndarray, "pairs 2 3"], second: Float[np.ndarray, "pairs 2 3"]
) -> tuple[Float[np.ndarray, "pairs 3"], Float[np.ndarray, "pairs 3"], Float[np.ndarray, "pairs"]]:
    """Closest points of pairs of segments, and their distance. Source: Ericson 2005, Real-Time Collision Detection."""
    along, other, between = first[:, 1] - first[:, 0], second[:, 1] - second[:, 0], first[:, 0] - second[:, 0]
    a, e = (np.maximum(np.einsum("pi,pi->p", v, v), 1e-12) for v in (along, other))
    b, c, f = (np.einsum("pi,pi->p", *v) for v in ((along, other), (along, between), (other, between)))
    denominator = a * e - b * b
    s = np.where(denominator > 1e-12 * a * e, np.clip((b * f - c * e) / np.maximum(denominator, 1e-18), 0, 1), 0.0)
    t = np.clip((b * s + f) / e, 0, 1)
    s = np.clip((b * t - c) / a, 0, 1)
    points, others = first[:, 0] + s[:, None] * along, second[:, 0] + t[:, None] * other
    return points, others, np.linalg.norm(points - others, axis=-1)


def _moved(bones: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ bones[..., :3, :3].swapaxes(-1, -2) + bones[..., None, :3, 3]


def _bone_segments(hand: HandModel, vertices: np.ndarray) -> np.ndarray:
    """Axes of the 20 capsules of the resting hand, (20, 2, 3): joint to joint, knuckle to wrist, wrist to stub."""
    joints, landmarks = hand.joint_rest_positions.numpy(), hand.landmark_rest_positions.numpy()
    segments = []
    for finger in range(5):
        points = (*joints[4 * finger + np.array([0, 2, 3])], landmarks[finger])
        segments += list(pairwise(points))
    knuckles = joints[4:NUM_FINGER_JOINTS:4]
    segments += [(0.25 * knuckle, knuckle) for knuckle in knuckles]
    stub = np.array([min(vertices[:, 0].min(), -0.01), 0.0, 0.0])
    return np.array([*segments, (np.zeros(3), stub)])


def _point_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    share = np.clip((points - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
    return np.linalg.norm(points - start - share[:, None] * (end - start), axis=-1)
