"""Motion of two hands and a headset at 30 frames per second: what the rendered dataset shows.

World: metres, y up, the floor at y = 0, the user seated at the origin. Headset and body: x right, y down, z forward,
the body frame being the resting headset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from lib.hands import LEFT, NUM_FINGER_JOINTS, RIGHT, HandModel
from lib.rendered.arms import arm_scale, mirrored
from lib.rendered.contact import NUM_CAPSULES, Capsules, Pairs, cross_pairs, find_contacts, resolve_contacts, self_pairs
from lib.rendered.pinches import fingertip_distance
from lib.rendered.postures import within
from lib.rendered.tracks import (
    FRAMES_PER_SECOND,
    Timeline,
    drift,
    encounter_track,
    finger_track,
    pinch_track,
    wrist_track,
)

Protocol = Literal["separate_hand", "pinch", "hand_hand", "occlusion"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
PINCH_DISTANCE, NEAR_MISS_DISTANCE = 0.010, 0.035
"""Fingertips of thumb and index closer than the first pinch; a near miss dwells between the first and the second."""
LEAST_PINCHED_SHARE = 0.1
"""At least this share of the frames of a pinch sequence are pinches of some hand."""
MOST_OVERLAP = 0.006
"""No two capsules of a motion overlap more deeply than this (metres); where they would, it is sampled again."""
_GAP, _FLESH = 0.025, 0.0015
"""Separate hands are kept apart by the first distance; what touches may overlap by the second (metres)."""
_WRIST_COMPLIANCE = 0.003
"""How far a wrist gives way against a finger joint, in m^2 per rad^2."""
_CLOSEST = 0.28
"""Wrists are sampled this far from the headset, or farther (metres)."""
_NECK = np.array([0.0, 0.10, -0.12])
"""The point about which the head turns, in the body frame."""


@dataclass(frozen=True)
class Occluder:
    """A flat occluder that passes between headset and hands, centred in its frame, `size` metres along its x and y."""

    world_from_occluder: Float[np.ndarray, "frames 4 4"]
    size: Float[np.ndarray, "2"]
    active: Bool[np.ndarray, "frames"]


@dataclass(frozen=True)
class Motion:
    """What moves in one sequence; metres and radians, hand 0 left, 1 right.

    `world_from_wrist` are proper rotations; a right hand is mirrored only when it is posed (`lib.hands.for_hand`).
    A hand that is not `present` takes no part: zero angles, identity wrist. `pinch` is true exactly where the
    fingertips of thumb and index are closer than `PINCH_DISTANCE`, `near_miss` where they dwell above it.
    """

    joint_angles: Float[np.ndarray, "frames 2 22"]
    world_from_wrist: Float[np.ndarray, "frames 2 4 4"]
    present: Bool[np.ndarray, "frames 2"]
    world_from_headset: Float[np.ndarray, "frames 4 4"]
    pinch: Bool[np.ndarray, "frames 2"]
    near_miss: Bool[np.ndarray, "frames 2"]
    occluder: Occluder | None = None


@dataclass(frozen=True)
class _Hands:
    """Both hands in the body frame."""

    angles: np.ndarray
    body_from_wrist: np.ndarray
    present: np.ndarray
    dwelling: np.ndarray


def sample_motion(protocol: str, hand: HandModel, generator: np.random.Generator, frames: int) -> Motion:
    """A new motion of one user's hands: a pure function of the arguments and the state of `generator`.

    Raises ValueError for an unknown protocol, fewer than 30 frames, or a hand without a mesh. Source: spec "Motion".
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    if frames < FRAMES_PER_SECOND:
        raise ValueError(f"a motion needs at least {FRAMES_PER_SECOND} frames, got {frames}")
    capsules = Capsules.of(hand)
    together = protocol == "hand_hand" or (protocol == "occlusion" and generator.random() < 0.3)
    while True:
        hands = _sample_hands(protocol, together, capsules, generator, frames)
        body_from_headset = _headset(hands, generator)
        hands, overlap = _settled(_out_of_face(hands, body_from_headset), capsules, together)
        distance = fingertip_distance(capsules, hands.angles)
        pinch = (distance < PINCH_DISTANCE) & hands.present
        enough = protocol != "pinch" or pinch.any(axis=1).mean() >= LEAST_PINCHED_SHARE
        points = capsules.pose(hands.angles, hands.body_from_wrist).ends.reshape(frames, 2, -1, 3)
        occluder = _occluder(points, hands.present, body_from_headset, generator) if protocol == "occlusion" else None
        if enough and overlap < MOST_OVERLAP and (occluder is None or not _cuts(occluder, points, hands.present)):
            break
    near_miss = hands.dwelling & hands.present & ~pinch & (distance < NEAR_MISS_DISTANCE)
    return _in_world(hands, body_from_headset, occluder, pinch, near_miss, generator)


def _sample_hands(protocol, together: bool, capsules: Capsules, generator: np.random.Generator, frames: int) -> _Hands:
    """Both hands as sampled, with tremor, inside the joint limits."""
    if together:
        angles, wrists = encounter_track(capsules, generator, frames)
        present, dwelling = np.ones((frames, 2), bool), np.zeros((frames, 2), bool)
    else:
        angles, wrists, present, dwelling = _separate_tracks(protocol, capsules, generator, frames)
    angles = angles + np.radians(0.3) * drift(generator, angles.shape, 4.0)
    turns = Rotation.from_rotvec(np.radians(0.4) * drift(generator, (frames, 2, 3), 4.0).reshape(-1, 3)).as_matrix()
    wrists[..., :3, :3] = wrists[..., :3, :3] @ turns.reshape(frames, 2, 3, 3)
    wrists[..., :3, 3] += 0.0008 * drift(generator, (frames, 2, 3), 4.0)
    return _Hands(within(angles, _limits(capsules)), wrists, present, dwelling)


def _separate_tracks(protocol, capsules: Capsules, generator: np.random.Generator, frames: int):
    """Angles, wrists, presence and near-miss dwelling (frames, 2, ...) of hands that move on their own."""
    present = np.ones((frames, 2), bool)
    if generator.random() < 0.25:
        present[:, generator.integers(2)] = False
    pinching = present[0] & (protocol == "pinch") & (generator.random(2) < 0.35)
    if protocol == "pinch":
        pinching[generator.choice(np.nonzero(present[0])[0])] = True
    angles, wrists = np.zeros((frames, 2, NUM_FINGER_JOINTS)), np.zeros((frames, 2, 4, 4))
    dwelling = np.zeros((frames, 2), bool)
    for side in (LEFT, RIGHT):
        wrists[:, side] = wrist_track(
            arm_scale(capsules.hand), generator, frames, may_leave=protocol == "separate_hand"
        )
        if pinching[side]:
            angles[:, side], dwelling[:, side] = pinch_track(capsules, generator, frames)
        else:
            angles[:, side] = finger_track(capsules.hand, generator, frames)
    wrists[:, RIGHT] = mirrored(wrists[:, RIGHT])
    return angles, wrists, present, dwelling


def _out_of_face(hands: _Hands, body_from_headset: np.ndarray) -> _Hands:
    """The same motion with wrists that would come too close to the headset deflected along the line of sight."""
    poses, eye = hands.body_from_wrist.copy(), body_from_headset[:, None, :3, 3]
    offset = poses[..., :3, 3] - eye
    distance = np.linalg.norm(offset, axis=-1, keepdims=True)
    poses[..., :3, 3] = eye + offset / distance * (distance + _CLOSEST + np.hypot(distance - _CLOSEST, 0.02)) / 2
    return replace(hands, body_from_wrist=poses)


def _settled(hands: _Hands, capsules: Capsules, together: bool) -> tuple[_Hands, float]:
    """The same motion with fingers out of each other and the palm, and the two hands apart or touching.

    Also returns the deepest overlap that remains (metres).
    """
    fingers, wrists = np.zeros((2, 23)), np.zeros((2, 23))
    fingers[:, :NUM_FINGER_JOINTS], wrists[:, NUM_FINGER_JOINTS:] = 1.0, _WRIST_COMPLIANCE
    pairs, angles, poses = self_pairs(capsules, _FLESH), hands.angles, hands.body_from_wrist
    if together:
        touching = cross_pairs(capsules, -_FLESH)
        pairs = Pairs(*(np.concatenate(parts) for parts in zip(pairs, touching, strict=True)))
        angles, poses = resolve_contacts(capsules, angles, poses, pairs, (fingers + wrists).ravel(), 14)
    else:
        angles, poses = resolve_contacts(capsules, angles, poses, pairs, fingers.ravel(), 12)
        if hands.present.all():
            angles, poses = resolve_contacts(capsules, angles, poses, cross_pairs(capsules, _GAP), wrists.ravel(), 10)
    contacts = find_contacts(capsules.pose(angles, poses), pairs)
    shown = hands.present[contacts.frames, contacts.first // NUM_CAPSULES]
    return replace(hands, angles=angles, body_from_wrist=poses), _FLESH + contacts.overlaps[shown].max(initial=0)


def _headset(hands: _Hands, generator: np.random.Generator) -> Float[np.ndarray, "frames 4 4"]:
    """body_from_headset: a head that looks about, follows the hands in part, and sways."""
    frames = len(hands.angles)
    moves = 3 + frames // 20
    timeline = Timeline.sample(
        generator.uniform(18, 50, moves), generator.uniform(-8, 15, moves), generator.uniform(-30, 0)
    )
    keys = np.radians(generator.normal(0, (12, 7, 3), (moves + 1, 3)))
    yaw, decline, roll = (timeline.shares(np.arange(frames, dtype=float)) @ keys).T
    shown = hands.present[..., None]
    target = (hands.body_from_wrist[..., :3, 3] * shown).sum(axis=1) / shown.sum(axis=1)
    x, y, z = gaussian_filter1d(target, 8, axis=0, mode="nearest").T
    attention = generator.uniform(0, 0.6)
    yaw = yaw + attention * np.arctan2(x, np.maximum(z, 0.2))
    decline = decline + attention * np.arctan2(y, np.maximum(np.hypot(x, z), 0.2))
    headset = np.tile(np.eye(4), (frames, 1, 1))
    headset[:, :3, :3] = Rotation.from_euler("YXZ", np.stack((yaw, -decline, roll), axis=1)).as_matrix()
    sway = generator.uniform(0.002, 0.012) * drift(generator, (frames, 3), 12.0)
    headset[:, :3, 3] = _NECK - headset[:, :3, :3] @ _NECK + sway
    return headset


def _occluder(points: np.ndarray, present: np.ndarray, body_from_headset: np.ndarray, generator) -> Occluder:
    """An occluder that sweeps through the line of sight to one hand for 10-30 frames; poses still in the body frame.

    It passes in front of all `points` (frames, 2, points, 3) of the hands that are not beside the user's head.
    """
    frames = len(points)
    count = int(generator.integers(10, min(30, frames - 1) + 1))
    first = int(generator.integers(frames - count + 1))
    active = (np.arange(frames) >= first) & (np.arange(frames) < first + count)
    side = int(generator.choice(np.nonzero(present[0])[0]))
    eye = body_from_headset[:, :3, 3]
    sight = points[:, side].mean(axis=1) - eye
    sight /= np.linalg.norm(sight, axis=1, keepdims=True)
    depths = np.einsum("fhpi,fi->fhp", points - eye[:, None, None], sight)[active][:, present[0]]
    size, tilt = generator.uniform((0.15, 0.20), (0.21, 0.28)), np.radians(generator.normal(0, 5, 2))
    depth = max(np.min(depths[depths > 0.15]) - 0.25 * np.abs(tilt).max() - generator.uniform(0.02, 0.05), 0.10)
    across = np.cross(body_from_headset[:, :3, 1], sight)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    facing = np.stack((across, np.cross(sight, across), sight), axis=2)
    spin = Rotation.from_euler("ZXY", [generator.uniform(0, 2 * np.pi), *tilt]).as_matrix()
    progress = np.clip((np.arange(frames) - first) / (count - 1), 0, 1) * 2 - 1
    sweep = (np.linalg.norm(size) / 2 + 0.4 * depth) * np.sign(progress) * np.abs(progress) ** 1.5
    heading = generator.uniform(0, 2 * np.pi)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, :3, :3] = facing @ spin
    poses[:, :3, 3] = eye + depth * sight + sweep[:, None] * (facing @ [np.cos(heading), np.sin(heading), 0.0])
    return Occluder(poses, size, active)


def _cuts(occluder: Occluder, points: np.ndarray, present: np.ndarray) -> bool:
    """Whether a hand comes closer than a finger's thickness to the occluder while it passes."""
    offsets = points - occluder.world_from_occluder[:, None, None, :3, 3]
    local = np.abs(offsets @ occluder.world_from_occluder[:, None, :3, :3])
    touching = (local[..., :2] < occluder.size / 2 + 0.02).all(axis=-1) & (local[..., 2] < 0.02)
    return bool(touching[occluder.active][:, present[0]].any())


def _in_world(hands: _Hands, body_from_headset, occluder: Occluder | None, pinch, near_miss, generator) -> Motion:
    """Seats the user somewhere in the room, 1.2 m above the floor at eye level, turned at random."""
    world_from_body = np.eye(4)
    turn = Rotation.from_euler("y", generator.uniform(-np.pi, np.pi)).as_matrix()
    world_from_body[:3, :3] = turn @ np.diag([1.0, -1.0, -1.0])
    world_from_body[:3, 3] = generator.normal((0, 1.2, 0), (0.1, 0.05, 0.1))
    joint_angles = np.pad(hands.angles, ((0, 0), (0, 0), (0, 2)))
    world_from_wrist = world_from_body @ hands.body_from_wrist
    joint_angles[~hands.present], world_from_wrist[~hands.present] = 0.0, np.eye(4)
    if occluder is not None:
        occluder = replace(occluder, world_from_occluder=world_from_body @ occluder.world_from_occluder)
    world_from_headset = world_from_body @ body_from_headset
    return Motion(joint_angles, world_from_wrist, hands.present, world_from_headset, pinch, near_miss, occluder)


def _limits(capsules: Capsules) -> np.ndarray:
    return capsules.hand.joint_limits[:NUM_FINGER_JOINTS].numpy()
