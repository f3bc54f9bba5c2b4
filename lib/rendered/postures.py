"""The library of natural hand postures: 20 joint angles each, with the variation of real hands.

Angles follow `lib.hands`: four per finger, abduction (positive towards the thumb) and the flexion of the MCP, PIP and
DIP joint; for the thumb opposition and adduction at the CMC joint, then the flexion of its MCP and IP joint.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

POSTURE_MARGIN = np.radians(0.5)
"""Sampled postures keep this distance from the joint limits, so that tremor does not cross them (radians)."""
DIP_PER_PIP = 2 / 3
_SPREAD_DEG = np.array([15.0, 3.0, -9.0, -19.0])


@dataclass(frozen=True)
class Posture:
    """One named shape in degrees: thumb angles, MCP and PIP flexion of the fingers, and their spread in [-1, 1]."""

    thumb: tuple[int, int, int, int]
    mcp: tuple[int, int, int, int]
    pip: tuple[int, int, int, int]
    spread: float = 0.1


_FOLDED_THUMB = (38, 0, 45, 40)
POSTURES = {
    "relaxed": Posture((5, 0, 15, 15), (18, 22, 26, 30), (25, 30, 32, 30)),
    "resting": Posture((12, 2, 18, 20), (28, 35, 40, 42), (35, 42, 44, 40), 0.0),
    "open": Posture((-12, -3, 5, 5), (2, 2, 4, 4), (6, 6, 6, 6), 0.4),
    "flat": Posture((-8, 18, 8, 5), (4, 4, 5, 6), (4, 4, 4, 4), -0.2),
    "spread": Posture((-28, -8, 0, -5), (-3, -3, -2, 0), (4, 4, 5, 5), 1.0),
    "fist": Posture(_FOLDED_THUMB, (72, 76, 78, 80), (92, 96, 96, 90), 0.0),
    "loose fist": Posture((28, 2, 30, 25), (55, 60, 62, 62), (70, 76, 78, 72), 0.0),
    "point": Posture(_FOLDED_THUMB, (0, 70, 75, 76), (6, 92, 94, 90), 0.0),
    "gun": Posture((-25, -5, 5, 0), (2, 68, 74, 76), (6, 90, 92, 90), 0.0),
    "thumb alone": Posture((-24, -2, 5, -5), (70, 75, 78, 80), (92, 96, 96, 92), 0.0),
    "one": Posture((40, 2, 48, 42), (2, 72, 76, 78), (8, 94, 95, 90), 0.0),
    "two": Posture((44, 0, 48, 42), (0, 2, 72, 76), (5, 6, 92, 90), 0.4),
    "three": Posture((46, 0, 50, 45), (0, 0, 2, 74), (5, 5, 8, 88), 0.5),
    "three from the thumb": Posture((-24, -5, 5, 0), (0, 2, 70, 76), (5, 6, 92, 90), 0.6),
    "four": Posture((52, 5, 50, 45), (0, 0, 0, 2), (5, 5, 5, 6), 0.5),
    "five": Posture((-20, -6, 3, 0), (0, 0, 0, 2), (5, 5, 5, 5), 0.8),
    "victory": Posture((44, 0, 48, 42), (-2, -2, 72, 76), (4, 4, 92, 90), 1.0),
    "call me": Posture((-28, -6, 3, -5), (68, 72, 74, 5), (90, 94, 92, 8), 0.6),
    "horns": Posture((42, 0, 48, 42), (0, 70, 74, 4), (6, 92, 94, 8), 0.3),
    "ring": Posture((32, -4, 22, 18), (42, 18, 10, 6), (52, 22, 16, 14), 0.3),
    "cylinder grasp": Posture((34, -8, 14, 16), (42, 44, 46, 48), (48, 50, 52, 50), 0.1),
    "sphere grasp": Posture((30, -16, 12, 14), (28, 28, 30, 32), (36, 38, 38, 36), 0.7),
    "disk grasp": Posture((10, -16, 5, 8), (20, 20, 20, 22), (28, 28, 28, 28), 0.9),
    "tripod": Posture((32, -6, 20, 14), (46, 50, 52, 56), (44, 48, 62, 66), 0.0),
    "lateral key": Posture((6, 16, 20, 25), (48, 56, 62, 66), (72, 80, 84, 80), 0.0),
    "hook": Posture((0, 5, 12, 15), (6, 8, 10, 12), (80, 84, 84, 78), 0.0),
    "table": Posture((10, 5, 10, 8), (68, 70, 72, 72), (6, 6, 8, 8), 0.0),
    "claw": Posture((-2, -10, 20, 20), (0, 0, 2, 4), (52, 55, 55, 52), 0.8),
    "interlaced": Posture((-5, -8, 10, 10), (24, 24, 24, 26), (28, 28, 28, 26), 1.1),
    "mouth": Posture((25, -6, 18, 12), (50, 52, 54, 56), (22, 22, 24, 24), 0.0),
}


def posture_angles(posture: Posture) -> Float[np.ndarray, "20"]:
    """The 20 joint angles of a library posture (radians)."""
    mcp, pip = np.asarray(posture.mcp), np.asarray(posture.pip)
    fingers = np.stack((_abduction(posture.spread, mcp), mcp, pip, DIP_PER_PIP * pip), axis=1)
    return np.radians(np.concatenate((np.asarray(posture.thumb, dtype=float), fingers.ravel())))


def sample_posture(
    name: str, limits: Float[np.ndarray, "20 2"], generator: np.random.Generator, variation: float = 1.0
) -> Float[np.ndarray, "20"]:
    """One natural execution of a named posture, inside the joint limits (radians).

    All fingers share most of their flexion error; the DIP joint follows 2/3 of the PIP joint; bent fingers spread less.
    `variation` scales the deviation from the library. Raises ValueError for a name that the library lacks.
    """
    if name not in POSTURES:
        raise ValueError(f"unknown posture {name!r}: expected one of {', '.join(POSTURES)}")
    posture = POSTURES[name]
    common, single = generator.normal(0, (6, 8), 2) * variation, generator.normal(0, (3, 4), (4, 2)) * variation
    mcp = np.asarray(posture.mcp) + common[0] + single[:, 0]
    pip = np.maximum(np.asarray(posture.pip) + common[1] + single[:, 1], 0)
    dip = DIP_PER_PIP * pip + generator.normal(0, 3, 4) * variation
    spread = posture.spread + generator.normal(0, 0.2) * variation
    abduction = _abduction(spread, mcp) + generator.normal(0, 1.5, 4) * variation
    thumb = np.asarray(posture.thumb) + generator.normal(0, (5, 3, 5, 6)) * variation
    angles = np.concatenate((thumb, np.stack((abduction, mcp, pip, dip), axis=1).ravel()))
    return within(np.radians(angles), limits)


def sample_any_posture(limits: Float[np.ndarray, "20 2"], generator: np.random.Generator) -> Float[np.ndarray, "20"]:
    """A named posture, or (one time in three) a mixture of two: the in-between shapes of free motion (radians)."""
    first, second = (sample_posture(name, limits, generator) for name in generator.choice(list(POSTURES), 2))
    share = generator.uniform(0.2, 0.8) if generator.random() < 1 / 3 else 0.0
    return (1 - share) * first + share * second


def within(angles: Float[np.ndarray, "*batch 20"], limits: Float[np.ndarray, "20 2"]) -> Float[np.ndarray, "*batch 20"]:
    """The angles, clamped to the joint limits less `POSTURE_MARGIN` (radians)."""
    return np.clip(angles, limits[:, 0] + POSTURE_MARGIN, limits[:, 1] - POSTURE_MARGIN)


def _abduction(spread: float, mcp_deg: np.ndarray) -> np.ndarray:
    return spread * _SPREAD_DEG * (1 - 0.8 * np.clip(mcp_deg / 80, 0, 1))
