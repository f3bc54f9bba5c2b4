"""The arm of a seated user: which wrist positions it reaches, and how the hand hangs on the forearm there.

All in the body frame (x right, y down, z forward, origin at the resting headset), for a left arm.
"""

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from lib.hands import HandModel
from lib.rendered.bodies import FOREARM, UPPER_ARM
from lib.rendered.shape import unit

_HAND_LENGTH = 0.185
_SHOULDER = np.array([-0.17, 0.27, -0.10])
_BOX = np.array([[-0.36, 0.0], [-0.10, 0.40], [0.14, 0.50]])
"""Where hands work: from beyond the shoulder to across the body's middle, from eye level to the lap."""
_AWAY = np.array([[-0.60, -0.25], [0.05, 0.60], [-0.30, 0.10]])
"""Where they rest, out of most views."""
_SWIVELS = (0.0, 0.45, 0.9)
"""Comfortable turns of the elbow about the line from shoulder to wrist: from hanging to held out (radians)."""
HEADSET_DISTANCE = (0.24, 0.62)
"""Wrists are sampled at these distances from the resting headset (metres)."""


def arm_scale(hand: HandModel) -> float:
    """The size of the user's arm against the average, as that of the hand."""
    return float(hand.landmark_rest_positions[..., 2, 0]) / _HAND_LENGTH


def sample_position(scale: float, generator: np.random.Generator, away: bool = False) -> Float[np.ndarray, "3"]:
    """A wrist position within reach of the left arm, in front of the user or (`away`) beside the body."""
    box = _AWAY if away else _BOX
    positions = generator.uniform(box[:, 0], box[:, 1], (200, 3))
    from_shoulder = np.linalg.norm(positions - scale * _SHOULDER, axis=1) / (scale * (UPPER_ARM + FOREARM))
    from_headset = np.linalg.norm(positions, axis=1)
    reachable = (from_shoulder > 0.35) & (from_shoulder < 0.95)
    reachable &= (HEADSET_DISTANCE[0] < from_headset) & (from_headset < HEADSET_DISTANCE[1])
    assert reachable.any(), "the sampling box misses the arm's reach"
    return positions[reachable.argmax()]


def sample_wrist(
    position: Float[np.ndarray, "3"], scale: float, generator: np.random.Generator
) -> Float[np.ndarray, "4 4"]:
    """body_from_wrist of a left hand at `position`, within the range of elbow, forearm and wrist.

    The forearm points to the elbow of a two-bone arm; pronation (0 thumb up, positive palm down), flexion and deviation
    follow the comfortable range.
    """
    swivel = generator.uniform(_SWIVELS[0], _SWIVELS[-1])
    pronation = np.clip(np.radians(generator.normal(35, 42)), np.radians(-85), np.radians(85))
    flexion = np.clip(np.radians(generator.normal(-8, 20)), np.radians(-50), np.radians(50))
    deviation = np.clip(np.radians(generator.normal(-5, 9)), np.radians(-28), np.radians(15))
    wrist = np.eye(4)
    bend = Rotation.from_euler("XZY", [pronation, -flexion, deviation])
    wrist[:3, :3] = _forearm(position, scale, swivel) @ bend.as_matrix()
    wrist[:3, 3] = position
    return wrist


def wrist_bend(body_from_wrist: Float[np.ndarray, "4 4"], scale: float) -> float:
    """The angle (radians) between a left hand and its forearm, at the elbow position that bends the wrist least."""
    wrist, hand = body_from_wrist[:3, 3], body_from_wrist[:3, 0]
    return float(np.arccos(np.clip(max(_forearm(wrist, scale, swivel)[:, 0] @ hand for swivel in _SWIVELS), -1, 1)))


def mirrored(body_from_wrist: Float[np.ndarray, "*batch 4 4"]) -> Float[np.ndarray, "*batch 4 4"]:
    """The right wrist that is the mirror image of a left one in the body frame, and the reverse; a proper rotation."""
    flip = np.array([-1.0, 1.0, 1.0, 1.0])
    return body_from_wrist * flip[:, None] * flip


def _forearm(wrist: np.ndarray, scale: float, swivel: float) -> np.ndarray:
    """Axes of a straight left hand with its thumb up: x along the forearm, z to the upper arm, y to the outside."""
    shoulder, upper, fore = scale * _SHOULDER, scale * UPPER_ARM, scale * FOREARM
    reach = min(np.linalg.norm(wrist - shoulder), 0.999 * (upper + fore))
    axis = unit(wrist - shoulder)
    along = (reach**2 + upper**2 - fore**2) / (2 * reach)
    hanging = unit(np.array([0.0, 1.0, 0.0]) - axis[1] * axis)
    sideways = np.cross(axis, hanging)
    height = np.sqrt(max(upper**2 - along**2, 0.0))
    elbow = shoulder + along * axis + height * (np.cos(swivel) * hanging + np.sin(swivel) * sideways)
    forward = unit(wrist - elbow)
    thumb = unit((shoulder - elbow) - ((shoulder - elbow) @ forward) * forward)
    return np.stack((forward, np.cross(thumb, forward), thumb), axis=1)
