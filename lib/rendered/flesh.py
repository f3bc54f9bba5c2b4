"""The form of the resting hand: fingers as tubes of given sections, the palm as a smooth union of capsules.

Everything here is in millimetres of the mean hand, in the rest frame of `lib.rendered.shape`; the proportions are ours.
A place on a finger is a number from 0 to 3: 0, 1 and 2 at its joints, 3 at its tip.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float
from scipy.interpolate import PchipInterpolator

from lib.rendered.shape import Skeleton, unit

RING = 12  # vertices around a finger: five over the back, one on the little finger's side, five below, one on the side
NAIL = (2.39, 2.90)  # from the cuticle to the free edge
_HALF_WIDTHS = np.array([10.4, 8.9, 9.0, 8.5, 7.4])  # thumb to pinky, at the joint after the first bone
# Place; half-width, height of the back and depth of the palm side in units of the finger's half-width.
_FINGER_PROFILE = np.array(
    [
        [0.00, 1.10, 0.90, 1.25],
        [0.40, 1.06, 0.88, 1.14],
        [0.75, 0.96, 0.80, 0.97],
        [0.90, 0.98, 0.83, 0.90],
        [1.00, 1.00, 0.86, 0.82],
        [1.10, 0.98, 0.82, 0.87],
        [1.45, 0.89, 0.73, 0.93],
        [1.80, 0.875, 0.71, 0.84],
        [2.00, 0.885, 0.73, 0.75],
        [2.15, 0.865, 0.69, 0.82],
        [2.50, 0.815, 0.58, 0.85],
        [3.00, 0.74, 0.48, 0.76],
    ]
)
_THUMB_PROFILE = np.array(
    [
        [0.00, 1.30, 1.20, 1.20],
        [0.60, 1.15, 0.98, 1.15],
        [1.00, 1.04, 0.92, 1.00],
        [1.45, 0.92, 0.78, 0.93],
        [1.85, 0.97, 0.78, 0.86],
        [2.00, 1.00, 0.80, 0.78],
        [2.20, 1.00, 0.74, 0.86],
        [2.50, 0.96, 0.62, 0.92],
        [3.00, 0.84, 0.48, 0.78],
    ]
)
_FINGER_RINGS = np.array(
    [
        0.5,
        0.6,
        0.71,
        0.82,
        0.9,
        0.95,
        1.0,
        1.07,
        1.18,
        1.36,
        1.58,
        1.78,
        1.91,
        2.0,
        2.1,
        2.24,
        2.36,
        2.42,
        2.58,
        2.75,
        2.87,
        2.96,
    ]
)
_THUMB_RINGS = np.array(
    [0.72, 0.86, 1, 1.13, 1.3, 1.5, 1.7, 1.84, 1.93, 2, 2.08, 2.2, 2.34, 2.4, 2.56, 2.73, 2.87, 2.96]
)
_ROUNDING_START = 2.5  # where the fingertip begins to close
_PLAIN_ANGLES_DEG = np.arange(-60.0, 300.0, 30.0)  # of the ring's vertices, from the back to the little finger's side
_NAIL_ANGLES_DEG = np.array([-53.0, -38, 0, 38, 53, 90, 120, 150, 180, 210, 240, 270])


@dataclass(frozen=True)
class Tube:
    """One finger as a bent tube: its bones, its sections by place, and the places of its rings of vertices."""

    chain: Float[np.ndarray, "4 3"]
    dorsal: Float[np.ndarray, "3 3"]
    profile: Float[np.ndarray, "stations 4"]
    rings: Float[np.ndarray, "rings"]

    def frame(self, place: Float[np.ndarray, "n"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre, unit vector out of the back, and unit vector to the little finger's side, each (n, 3)."""
        bone, steps = np.clip(place.astype(int), 0, 2), np.diff(self.chain, axis=0)
        centre = self.chain[bone] + (place - bone)[:, None] * steps[bone]
        turned = np.clip((place[:, None] - [1.0, 2.0]) / 0.4 + 0.5, 0, 1)  # the direction turns about each joint
        share = np.stack((1 - turned[:, 0], turned[:, 0] - turned[:, 1], turned[:, 1]), axis=1)
        along, dorsal = unit(share @ unit(steps)), share @ self.dorsal
        dorsal = unit(dorsal - along * (dorsal * along).sum(-1, keepdims=True))
        return centre, dorsal, np.cross(dorsal, along)

    def section(self, place: Float[np.ndarray, "n"]) -> Float[np.ndarray, "3 n"]:
        """Half-width, height of the back and depth of the palm side, with the rounding of the fingertip."""
        closing = np.clip((place - _ROUNDING_START) / (3 - _ROUNDING_START), 0, 1)
        table = PchipInterpolator(self.profile[:, 0], self.profile[:, 1:])(np.clip(place, 0, 3))
        return table.T * np.sqrt(1 - closing**2.4)

    def regions(self) -> dict[str, Bool[np.ndarray, "rings 12"]]:
        """Which vertices of the rings lie on the nail, on the fold of skin around it, on creases and on knuckles."""
        column, place = np.arange(RING), self.rings[:, None]
        at_joint = np.abs(place - 1.0), np.abs(place - 2.0)
        below, back = (column >= 6) & (column < 11), (column >= 1) & (column < 4)
        nail = back & (place > NAIL[0]) & (place < NAIL[1])
        fold = (column < 5) & (place > NAIL[0] - 0.06) & (place < NAIL[1]) & ~nail
        crease = below & (np.minimum(*at_joint) < 0.01)
        return {
            "nail": nail,
            "fold": fold,
            "crease": crease,
            "knuckle": back & (np.minimum(*at_joint) < 0.08),
            "below": below & ~crease,
        }

    def surface(self) -> Float[np.ndarray, "rings 12 3"]:
        """The vertices of all rings, with nail and creases."""
        on_nail = smoothstep((self.rings - NAIL[0] + 0.2) / 0.16)[:, None]
        angle = np.deg2rad(_PLAIN_ANGLES_DEG + on_nail * (_NAIL_ANGLES_DEG - _PLAIN_ANGLES_DEG))
        width, back, depth = self.section(self.rings)[..., None]
        centre, dorsal, side = (axis[:, None] for axis in self.frame(self.rings))
        region, above = self.regions(), np.cos(angle)
        height = above * np.where(above > 0, back, depth)
        plate = (
            np.interp(self.rings, (2.3, 2.9), self.section(np.array([2.3, 2.79]))[1])[:, None] * above.clip(0) ** 0.8
        )
        height = np.where(region["nail"], np.maximum(height, plate + 0.25), height)
        height = height - 0.35 * region["fold"] + 0.07 * depth * region["crease"]
        return centre + dorsal * height[..., None] + side * (width * np.sin(angle))[..., None]

    def cap(self) -> Float[np.ndarray, "3 3"]:
        """The three vertices that close the fingertip; the middle one is the tip of the skeleton."""
        centre, _, side = self.frame(np.array([3.0]))
        return centre + side * (self.section(np.array([2.93]))[0] * np.array([-0.3, 0.0, 0.3]))[:, None]

    def distance(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        """About the signed distance to the tube's skin, negative inside."""
        steps = np.diff(self.chain, axis=0)
        share = np.einsum("nkd,kd->nk", points[:, None] - self.chain[:3], steps) / (steps**2).sum(-1)
        share = np.clip(share, 0, 1)
        bone = np.linalg.norm(points[:, None] - self.chain[:3] - share[..., None] * steps, axis=-1).argmin(axis=1)
        place = bone + np.take_along_axis(share, bone[:, None], 1)[:, 0]
        width, back, depth = self.section(np.minimum(place, 2.9))
        centre, dorsal, side = self.frame(place)
        offset = points - centre
        up, across = (offset * dorsal).sum(-1), (offset * side).sum(-1)
        beyond = np.sqrt(np.maximum((offset**2).sum(-1) - up**2 - across**2, 0))
        radius = np.sqrt((across / width) ** 2 + (up / np.where(up > 0, back, depth)) ** 2 + (beyond / width) ** 2)
        return (radius - 1) * np.minimum(width, back)


@dataclass(frozen=True)
class Capsule:
    """A tapered capsule, `flatness` times as high (along y) as wide."""

    start: tuple[float | int, ...]
    end: tuple[float | int, ...]
    radii: tuple[float | int, float | int]
    flatness: float = 1.0

    def distance(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        """About the signed distance to the surface, negative inside."""
        start, along = np.array(self.start), np.subtract(self.end, self.start)
        share = np.clip((points - start) @ along / (along @ along), 0, 1)
        offset = points - start - share[:, None] * along
        radius = self.radii[0] + share * (self.radii[1] - self.radii[0])
        return (np.linalg.norm(offset / [1, self.flatness, 1], axis=-1) - radius) * min(1.0, self.flatness)


_PALM = (
    Capsule((-120, 3, 0), (2, 0, 0), (33, 25), 0.77),  # forearm
    Capsule((2, 0, 0), (26, -1.5, 1), (25, 26), 0.70),  # carpus
    Capsule((20, -2, 11), (84, -2.0, 21.0), (12, 11), 0.98),  # metacarpals
    Capsule((20, 0, 2), (86, 0.0, 2), (12, 11), 1.00),
    Capsule((20, -1, -7), (77, -4.0, -15), (12, 10.5), 1.0),
    Capsule((18, -3, -14), (69, -9.0, -28.5), (12, 10), 0.98),
    Capsule((82, 1.5, 22), (87, 1.5, 22), (8.8, 8.8)),  # knuckles
    Capsule((83, 4.5, 2), (88, 4.5, 2), (8.8, 8.8)),
    Capsule((75, 0.0, -16), (80, 0.0, -16.5), (8.4, 8.4)),
    Capsule((66, -6, -30), (71, -6, -31), (7.6, 7.6)),
    Capsule((24, -13, 12), (42, -23, 30), (13.5, 13.5)),  # thenar
    Capsule((30, -17, 15), (38, -20, 20), (14, 12)),
    Capsule((20, -11, -14), (60, -12.5, -27), (12.5, 9.5)),  # hypothenar
    Capsule((86, -6.5, 18), (74, -9.5, -22), (9, 9)),  # pads under the knuckles and the hollow of the hand
    Capsule((66, -5.5, 12), (52, -6.0, -14), (11, 11)),
    Capsule((34, -4, 14), (60, -3, 24), (11, 9)),  # muscle and web between thumb and index finger
    Capsule((38, -14, 30), (66, -4, 24), (9, 7)),
)


def finger_tubes(skeleton: Skeleton) -> list[Tube]:
    """The five fingers on the skeleton's bones."""
    tubes = []
    for finger, half_width in enumerate(_HALF_WIDTHS):
        profile, rings = (_FINGER_PROFILE, _FINGER_RINGS) if finger else (_THUMB_PROFILE, _THUMB_RINGS)
        profile = profile * [1, half_width, half_width, half_width]
        tubes.append(Tube(skeleton.chains[finger] * 1000, skeleton.dorsal[finger], profile, rings))
    return tubes


def distance(points: Float[np.ndarray, "n 3"], tubes: list[Tube]) -> Float[np.ndarray, "n"]:
    """About the signed distance to the skin: the parts of the palm flow together, the fingers only into the palm."""
    palm = _PALM[0].distance(points)
    for part in (*_PALM[1:], *_webs(tubes)):
        palm = _smooth_minimum(palm, part.distance(points), 11.0)
    fingers = np.min([tube.distance(points) for tube in tubes], axis=0)
    return _smooth_minimum(palm, fingers, 5.0)


def gradient(points: Float[np.ndarray, "n 3"], tubes: list[Tube]) -> Float[np.ndarray, "n 3"]:
    """The gradient of `distance`, by central differences."""
    steps = 0.05 * np.eye(3)
    return np.stack([(distance(points + h, tubes) - distance(points - h, tubes)) / 0.1 for h in steps], axis=-1)


def _webs(tubes: list[Tube]) -> list[Capsule]:
    """The skin between the roots of neighbouring fingers."""
    places = [tube.frame(np.array([0.27])) for tube in tubes[1:]]
    centres = [tuple((centre - 2.0 * dorsal)[0]) for centre, dorsal, _ in places]
    return [Capsule(a, b, (4.6, 4.6)) for a, b in pairwise(centres)]


def _smooth_minimum(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """The smaller of two distances, rounded where they differ by less than `radius`."""
    near = np.maximum(radius - np.abs(a - b), 0) / radius
    return np.minimum(a, b) - near**3 * radius / 6


def smoothstep(share: np.ndarray) -> np.ndarray:
    """From 0 to 1 with level ends, as `share` goes from 0 to 1."""
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)
