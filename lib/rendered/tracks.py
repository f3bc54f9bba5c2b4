"""Tracks: smooth paths of fingers and wrists through sampled keys, in the body frame, before contacts are resolved.

Every path is a superposition of minimum-jerk pieces between keys, overlapping so that movements flow into each other;
the shares of the keys are never negative and sum to one, so a path never leaves the hull of its keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from lib.hands import LEFT, NUM_FINGER_JOINTS, RIGHT, HandModel
from lib.recordings import FRAMES_PER_SECOND
from lib.rendered.arms import arm_scale, mirrored, sample_position, sample_wrist, wrist_bend
from lib.rendered.contact import Capsules
from lib.rendered.encounters import ENCOUNTERS, sample_encounter
from lib.rendered.pinches import solve_pinches
from lib.rendered.postures import POSTURES, sample_any_posture, sample_posture, within

_THEMES = {
    "gestures": ("point", "victory", "thumb alone", "open", "call me", "horns", "ring", "fist", "gun", "relaxed"),
    "counting": ("fist", "one", "two", "three", "four", "five"),
    "counting from the thumb": ("fist", "thumb alone", "gun", "three from the thumb", "four", "five"),
    "pointing": ("point", "relaxed", "gun", "loose fist", "point"),
    "grasping": ("open", "cylinder grasp", "sphere grasp", "disk grasp", "tripod", "lateral key", "hook", "mouth"),
    "opening and closing": ("spread", "fist", "open", "claw", "flat", "loose fist", "table"),
    "free": tuple(POSTURES),
}
_PINCH_READY = ("ring", "tripod", "mouth", "cylinder grasp", "resting", "relaxed", "sphere grasp")
_SPEED, _TURN_SPEED = 0.35, 3.0
"""Typical mean speeds of a move of the wrist, in m/s and rad/s."""
_MOST_BEND = np.radians(50)
_THUMB_INDEX_OPENING_DEG = np.array([-8, -4, -10, -12, 1, -14, -18, -12], dtype=float)


@dataclass(frozen=True)
class Timeline:
    """When each move from one key to the next starts and how long it takes (frames); moves may overlap.

    Made by `sample`, so that moves start and end in the order of their keys.
    """

    starts: Float[np.ndarray, "moves"]
    durations: Float[np.ndarray, "moves"]

    @staticmethod
    def sample(durations: Float[np.ndarray, "moves"], holds: Float[np.ndarray, "moves"], first: float) -> Timeline:
        """Moves of about these durations with holds between them (frames; negative holds overlap the moves)."""
        starts = first + np.concatenate(([0.0], np.cumsum(durations + holds)[:-1]))
        return Timeline._ordered(starts, starts + durations)

    @staticmethod
    def _ordered(starts: np.ndarray, ends: np.ndarray) -> Timeline:
        starts, ends = np.maximum.accumulate(starts), np.maximum.accumulate(ends)
        return Timeline(starts, np.maximum(ends - starts, 1.0))

    def part(self, begin: Float[np.ndarray, "moves"], end: Float[np.ndarray, "moves"]) -> Timeline:
        """The same moves, each confined to a part of its time from `begin` to `end` in [0, 1]."""
        return Timeline._ordered(self.starts + begin * self.durations, self.starts + end * self.durations)

    def shares(self, times: Float[np.ndarray, "frames"]) -> Float[np.ndarray, "frames keys"]:
        """How much each key counts at each time (frames). Source: Flash & Hogan 1985 (minimum jerk)."""
        progress = np.clip((times[:, None] - self.starts) / self.durations, 0, 1)
        reached = progress**3 * (10 - 15 * progress + 6 * progress**2)
        return -np.diff(reached, axis=1, prepend=1.0, append=0.0)


def blend_wrists(shares: Float[np.ndarray, "frames keys"], wrists: Float[np.ndarray, "keys 4 4"]) -> np.ndarray:
    """Rigid transforms (frames, 4, 4) between the keys; rotations are normalised means of quaternions."""
    quaternions = Rotation.from_matrix(wrists[:, :3, :3]).as_quat()
    turned = np.sign(np.einsum("ki,ki->k", quaternions[1:], quaternions[:-1]))
    quaternions[1:] *= np.cumprod(np.where(turned == 0, 1.0, turned))[:, None]
    path = np.tile(np.eye(4), (len(shares), 1, 1))
    path[:, :3, :3] = Rotation.from_quat(shares @ quaternions).as_matrix()
    path[:, :3, 3] = shares @ wrists[:, :3, 3]
    return path


def drift(generator: np.random.Generator, shape: tuple[int, ...], frames: float) -> np.ndarray:
    """Gaussian noise of unit variance, smooth along the first axis over about so many frames."""
    noise = generator.normal(size=(shape[0] + 80, *shape[1:]))
    return gaussian_filter1d(noise, frames, axis=0)[40:-40] * np.sqrt(2 * frames * np.sqrt(np.pi))


def wrist_track(scale: float, generator: np.random.Generator, frames: int, may_leave: bool) -> np.ndarray:
    """body_from_wrist (frames, 4, 4) of a left hand: near and far moves at varied speed, with pauses."""
    positions = [sample_position(scale, generator)]
    for _ in range(3 + frames // 10):
        away = may_leave and generator.random() < 0.1
        share = 1.0 if away else generator.uniform(0.1, 1.0)
        positions.append(positions[-1] + share * (sample_position(scale, generator, away) - positions[-1]))
    wrists = np.stack([sample_wrist(position, scale, generator) for position in positions])
    distances = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    seconds = np.maximum(distances / _SPEED, _turns(wrists) / _TURN_SPEED)
    seconds /= generator.lognormal(0, 0.4, len(seconds))
    durations = np.clip(FRAMES_PER_SECOND * seconds, 10, 60)
    holds = durations * generator.uniform(-0.4, 0.3, len(durations))
    timeline = Timeline.sample(durations, holds, generator.uniform(-20, 5))
    return blend_wrists(timeline.shares(np.arange(frames, dtype=float)), wrists)


def finger_track(hand: HandModel, generator: np.random.Generator, frames: int) -> Float[np.ndarray, "frames 20"]:
    """Joint angles through the postures of a theme, the fingers a little out of step (radians).

    The thumb folds over the fingers after they have closed, and makes way before they open.
    """
    theme = _THEMES[str(generator.choice(list(_THEMES)))]
    limits = hand.joint_limits[:NUM_FINGER_JOINTS].numpy()
    count, begin = 3 + frames // 9, int(generator.integers(len(theme)))
    order = (np.arange(count) + begin) * generator.choice((-1, 1)) % len(theme)
    if theme is _THEMES["free"]:
        keys = np.stack([sample_any_posture(limits, generator) for _ in range(count)])
    else:
        keys = np.stack([sample_posture(theme[k], limits, generator) for k in order])
    durations = generator.uniform(9, 24, count - 1)
    timeline = Timeline.sample(durations, generator.uniform(-5, 18, count - 1), generator.uniform(-15, 5))
    opening = np.diff(keys[:, 0]) < 0
    thumb = timeline.part(np.where(opening, 0.0, 0.4), np.where(opening, 0.6, 1.0))
    others = timeline.part(np.where(opening, 0.4, 0.0), np.where(opening, 1.0, 0.6))
    paths = [thumb.shares(np.arange(frames, dtype=float)) @ keys[:, :4]]
    for finger, lag in enumerate(generator.uniform(-1.5, 1.5, 4), start=1):
        paths.append(others.shares(np.arange(frames) - lag) @ keys[:, 4 * finger : 4 * finger + 4])
    return np.concatenate(paths, axis=1)


def pinch_track(capsules: Capsules, generator: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Joint angles (frames, 20) of repeated pinches and near misses, and where a near miss dwells (frames,).

    Closures take 90-200 ms. Source: spec "Motion".
    """
    limits = capsules.hand.joint_limits[:NUM_FINGER_JOINTS].numpy()
    count = 2 + frames // 22
    contact = generator.random(count) < 0.65
    contact[0] = True
    contact = generator.permutation(contact)
    name = str(generator.choice(_PINCH_READY))
    ready = np.stack([sample_posture(name, limits, generator) for _ in range(count + 1)])
    distances = np.where(contact, generator.uniform(0.003, 0.006, count), generator.uniform(0.013, 0.028, count))
    closed = solve_pinches(capsules, ready[:-1], distances, contact)
    opened = ready.copy()
    opened[:, :8] += np.radians(_THUMB_INDEX_OPENING_DEG) * generator.uniform(0.5, 2.0, (count + 1, 1))
    keys = np.insert(closed, np.arange(count + 1), within(opened, limits), axis=0)[: 2 * count + 1]
    seconds = generator.uniform(0.09, 0.2, count) * np.where(contact, 1, 2)
    durations = np.stack((FRAMES_PER_SECOND * seconds, generator.uniform(4, 10, count)), axis=1).ravel()
    holds = np.stack((generator.uniform(5, 16, count), generator.uniform(2, 28, count)), axis=1).ravel()
    shares = Timeline.sample(durations, holds, generator.uniform(-4, 8)).shares(np.arange(frames, dtype=float))
    return shares @ keys, shares[:, 1::2] @ ~contact > 0.9


def encounter_track(capsules: Capsules, generator: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Joint angles (frames, 2, 20) and body_from_wrist (frames, 2, 4, 4) of hands that meet, dwell and part."""
    scale, keys = arm_scale(capsules.hand), []
    for name in generator.choice(list(ENCOUNTERS), 2 + frames // 50):
        angles, wrists = _natural_encounter(str(name), capsules.hand, scale, generator)
        keys.append((angles, _parted(wrists, generator)))
        keys += [_varied(angles, wrists, generator) for _ in range(generator.integers(1, 4))]
        keys.append((angles, _parted(wrists, generator)))
    keys = keys[generator.integers(2) :]
    angles, wrists = (np.stack(parts) for parts in zip(*keys, strict=True))
    turns = np.maximum(_turns(wrists[:, LEFT]), _turns(wrists[:, RIGHT]))
    durations = np.maximum(generator.uniform(9, 22, len(turns)), FRAMES_PER_SECOND * turns / _TURN_SPEED)
    timeline = Timeline.sample(durations, generator.uniform(-4, 10, len(turns)), generator.uniform(-15, 5))
    shares = timeline.shares(np.arange(frames, dtype=float))
    angles = np.einsum("fk,khj->fhj", shares, angles)
    return angles, np.stack([blend_wrists(shares, wrists[:, side]) for side in (LEFT, RIGHT)], axis=1)


def _natural_encounter(name: str, hand: HandModel, scale: float, generator: np.random.Generator):
    """Angles and wrists of an encounter before the user, redrawn until both forearms can come from the elbows."""
    while True:
        angles, wrists = sample_encounter(name, hand, scale, generator)
        wrists[:, :3, 3] += _meeting_point(scale, generator)
        if max(wrist_bend(wrists[LEFT], scale), wrist_bend(mirrored(wrists[RIGHT]), scale)) < _MOST_BEND:
            return angles, wrists


def _meeting_point(scale: float, generator: np.random.Generator) -> np.ndarray:
    azimuth, decline = np.radians(generator.normal(0, 8)), np.radians(generator.uniform(10, 48))
    direction = np.array([np.sin(azimuth) * np.cos(decline), np.sin(decline), np.cos(azimuth) * np.cos(decline)])
    return direction * generator.uniform(0.34, 0.46) * np.sqrt(scale)


def _parted(wrists: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The wrists moved apart sideways, a little turned."""
    sideways = np.array([[-1.0, 0.1, -0.1], [1.0, 0.1, -0.1]]) * generator.uniform(0.03, 0.12)
    return _jittered(wrists, 0.015, 6.0, generator, sideways)


def _varied(angles: np.ndarray, wrists: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same encounter a moment later: hands rub and shift, together by centimetres, on each other by millimetres."""
    together = generator.normal(0, 0.02, 3)
    return angles + np.radians(generator.normal(0, 3, angles.shape)), _jittered(wrists, 0.005, 4.0, generator, together)


def _turns(wrists: np.ndarray) -> np.ndarray:
    """Angles (keys - 1,) between successive orientations (radians)."""
    rotations = Rotation.from_matrix(wrists[:, :3, :3])
    return (rotations[1:] * rotations[:-1].inv()).magnitude()


def _jittered(wrists, position: float, angle_deg: float, generator, offset: np.ndarray) -> np.ndarray:
    moved = wrists.copy()
    turns = Rotation.from_rotvec(generator.normal(0, np.radians(angle_deg), (2, 3))).as_matrix()
    moved[:, :3, :3] = moved[:, :3, :3] @ turns
    moved[:, :3, 3] += offset + generator.normal(0, position, (2, 3))
    return moved
