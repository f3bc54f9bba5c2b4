"""Places around the user: rooms with furniture, shelves, pictures, windows and clutter, and streets under a sky.

Room axes: y up, the floor at y = 0, the eye of the seated user at the origin of the floor plan, looking
about along +z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lib.rendered.surfaces import (
    BOOKS,
    BRICK,
    CLOTH,
    FOLIAGE,
    PAGE,
    PICTURE,
    PLAIN,
    PLANKS,
    PLASTER,
    SKY,
    STRIPES,
    TILES,
    WINDOW,
)

EYE_HEIGHT = 1.2


@dataclass(frozen=True)
class Place:
    """A box with boxes and capsules in it, their materials and the lamps that light them."""

    room: Float[np.ndarray, "6"]
    """Lower and upper corner of the walls."""
    boxes: Float[np.ndarray, "boxes 6"]
    capsules: Float[np.ndarray, "capsules 7"]
    """Two ends and a radius."""
    materials: Float[np.ndarray, "things 6"]
    """Kind of surface, dark and bright albedo, scale (m), seed, emission; of the six walls, then boxes and capsules."""
    lamps: Float[np.ndarray, "lamps 4"]
    """Position and power; only the first one casts shadows."""
    ambient: float
    room_from_world: Float[np.ndarray, "3 3"]

    @property
    def eye(self) -> Float[np.ndarray, "3"]:
        return np.array([0.0, EYE_HEIGHT, 0.0])


class _Builder:
    """Collects things and their materials while a place is sampled."""

    def __init__(self, generator: np.random.Generator, forward: np.ndarray):
        self.generator = generator
        heading = np.arctan2(forward[0], forward[2]) + generator.uniform(-0.4, 0.4)
        sine, cosine = np.sin(heading), np.cos(heading)
        self.room_from_world = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
        self.boxes, self.box_materials = [], []
        self.capsules, self.capsule_materials = [], []

    def material(
        self, kinds: tuple[int, ...], scale: tuple[float, float], emission: float = 0.0
    ) -> Float[np.ndarray, "6"]:
        """A material of one of some kinds with random albedos, more or less contrast, and scale."""
        g = self.generator
        middle, spread = g.uniform(0.06, 0.8), g.uniform(0.1, 0.75)
        dark, bright = np.clip([middle - spread / 2, middle + spread / 2], 0.03, 0.92)
        return np.array([g.choice(kinds), dark, bright, g.uniform(*scale), g.integers(1 << 30), emission])

    def box(self, center, half, material) -> None:
        center, half = np.asarray(center, float), np.asarray(half, float)
        self.boxes.append(np.concatenate((center - half, center + half)))
        self.box_materials.append(material)

    def capsule(self, start, end, radius: float, material) -> None:
        self.capsules.append([*start, *(np.asarray(end) + 1e-6), radius])
        self.capsule_materials.append(material)

    def place(self, room, walls, lamps, ambient: float) -> Place:
        return Place(
            np.asarray(room, float), np.array(self.boxes), np.array(self.capsules),
            np.array([*walls, *self.box_materials, *self.capsule_materials], float),
            np.array(lamps, float), ambient, self.room_from_world,
        )  # fmt: skip


def sample_place(generator: np.random.Generator, forward: Float[np.ndarray, "3"]) -> Place:
    """A room four times out of five, else a place outdoors, around a user who looks along `forward` (world)."""
    build = _Builder(generator, forward)
    return _sample_room(build) if generator.random() < 0.8 else _sample_outdoors(build)


def _sample_room(build: _Builder) -> Place:
    g = build.generator
    low = np.array([-g.uniform(0.9, 3.5), 0, -g.uniform(0.9, 3.5)])
    high = np.array([g.uniform(0.9, 3.5), g.uniform(2.3, 3.3), g.uniform(0.9, 3.5)])
    wall = build.material((PLASTER, PLASTER, PLASTER, PLAIN, PLAIN, STRIPES, BRICK), (0.07, 0.3))
    accent = build.material((PLASTER, BRICK, PLANKS, TILES, STRIPES, CLOTH), (0.08, 0.3))
    ceiling = [PLAIN, 0.6, 0.85, 0.5, 7, 0.0] if g.random() < 0.7 else build.material((TILES, PLANKS), (0.2, 0.6))
    floor = build.material((PLANKS, TILES, PLASTER, PLANKS), (0.1, 0.4))
    walls = [accent if g.random() < 0.3 else wall for _ in range(6)]
    walls[2], walls[3] = floor, ceiling
    for _ in range(g.integers(3, 8)):
        _hang_on_wall(build, low, high)
    for _ in range(g.integers(4, 9)):
        _stand_at_wall(build, low, high)
    _lay_on_floor(build, low, high)
    if g.random() < 0.6:
        _set_desk(build)
    _seat_user(build)
    lamps = _hang_lamps(build, low, high)
    return build.place((*low, *high), walls, lamps, ambient=np.exp(g.uniform(np.log(0.05), np.log(0.35))))


def _hang_on_wall(build: _Builder, low: np.ndarray, high: np.ndarray) -> None:
    """A picture, poster, window or board on one of the walls."""
    g = build.generator
    axis, side = g.choice((0, 2)), g.integers(2)
    half = np.array([g.uniform(0.15, 0.7), g.uniform(0.2, 0.6), g.uniform(0.15, 0.7)])
    center = g.uniform(low + half, np.maximum(high - half, low + half + 0.01))
    center[1] = g.uniform(1.2, 1.8)
    center[axis], half[axis] = (low, high)[side][axis], 0.02
    if g.random() < 0.3:
        build.box(center, half, build.material((WINDOW,), (0.4, 0.9), emission=np.exp(g.uniform(-0.7, 1.2))))
    else:
        build.box(center, half, build.material((PICTURE, PICTURE, PAGE, STRIPES, PLAIN, BOOKS), (0.15, 0.5)))


def _stand_at_wall(build: _Builder, low: np.ndarray, high: np.ndarray) -> None:
    """A cupboard, shelf, sofa, curtain or column along a wall, sometimes with something on top."""
    g = build.generator
    axis, side = g.choice((0, 2)), g.integers(2)
    half = np.array([g.uniform(0.2, 0.9), g.choice((0.2, 0.4, 0.6, 1.0)) * g.uniform(0.7, 1.1), g.uniform(0.2, 0.9)])
    half[axis] = g.uniform(0.1, 0.3)
    center = g.uniform(low, high)
    center[1] = half[1]
    center[axis] = (low[axis] + half[axis]) if side == 0 else (high[axis] - half[axis])
    if np.all(np.abs(center) - half < (0.7, 9, 0.7)):
        return
    build.box(center, half, build.material((BOOKS, BOOKS, PLANKS, PLAIN, CLOTH, STRIPES, PLASTER), (0.2, 0.4)))
    if half[1] < 0.7 and g.random() < 0.7:
        item = g.uniform((0.05, 0.05, 0.05), (0.25, 0.3, 0.25))
        top = center + np.array((0, half[1] + item[1], 0))
        build.box(top, item, build.material((PICTURE, PLAIN, PAGE, CLOTH), (0.1, 0.4)))


def _lay_on_floor(build: _Builder, low: np.ndarray, high: np.ndarray) -> None:
    """A rug, and things that lie or stand about."""
    g = build.generator
    if g.random() < 0.6:
        build.box((*g.uniform((-0.6, 0, -0.6), (0.6, 0.001, 0.6)),), g.uniform((0.6, 0.01, 0.6), (1.6, 0.015, 1.6)),
                  build.material((STRIPES, CLOTH, TILES, PICTURE), (0.1, 0.5)))  # fmt: skip
    for _ in range(g.integers(2, 7)):
        angle, distance, size = g.uniform(0, 2 * np.pi), g.uniform(0.8, 2.5), g.uniform(0.06, 0.3, 3)
        center = np.clip((distance * np.cos(angle), size[1], distance * np.sin(angle)), low, high)
        if g.random() < 0.5:
            build.box(center, size, build.material((PICTURE, PLAIN, PLANKS, CLOTH, PAGE), (0.1, 0.4)))
        else:
            build.capsule(
                center,
                center + np.array((0, 1.5 * size[1], 0)),
                size[0],
                build.material((PLAIN, CLOTH, STRIPES), (0.1, 0.3)),
            )


def _set_desk(build: _Builder) -> None:
    """A desk before the user with a screen, cups, papers and boxes on it."""
    g = build.generator
    height, depth = g.uniform(0.65, 0.78), g.uniform(0.25, 0.45)
    middle = np.array([g.uniform(-0.3, 0.3), height, 0.35 + depth])
    build.box(middle, (g.uniform(0.5, 1.0), 0.02, depth), build.material((PLANKS, PLAIN, PLASTER), (0.1, 0.3)))
    if g.random() < 0.6:
        half = np.array([g.uniform(0.2, 0.38), g.uniform(0.13, 0.22), 0.015])
        lit = g.uniform(0.0, 1.0)
        build.box(
            middle + np.array((g.uniform(-0.2, 0.2), half[1] + 0.1, 0.1)),
            half,
            build.material((PAGE, PICTURE), (0.2, 0.5), lit),
        )
    for _ in range(g.integers(2, 8)):
        spot = middle + g.uniform((-0.5, 0.02, -depth), (0.5, 0.02, depth))
        if g.random() < 0.4:
            radius = g.uniform(0.025, 0.05)
            build.capsule(
                spot,
                spot + np.array((0, g.uniform(0.05, 0.16), 0)),
                radius,
                build.material((PLAIN, STRIPES, PICTURE), (0.03, 0.1)),
            )
        else:
            build.box(spot, g.uniform((0.03, 0.004, 0.03), (0.15, 0.06, 0.12)),
                      build.material((PAGE, PLAIN, PICTURE, STRIPES), (0.04, 0.25)))  # fmt: skip


def _seat_user(build: _Builder) -> None:
    """Body, thighs, shins and the seat, as the user sees them when looking down."""
    trousers, shoes = build.material((CLOTH, PLAIN), (0.05, 0.15)), build.material((PLAIN,), (0.1, 0.2))
    spread = build.generator.uniform(0.08, 0.16)
    for side in (-1, 1):
        hip, knee = np.array([0.09 * side, 0.5, -0.1]), np.array([spread * side, 0.52, 0.36])
        ankle = knee + np.array((0.02 * side, -0.42, build.generator.uniform(-0.15, 0.15)))
        build.capsule(hip, knee, 0.075, trousers)
        build.capsule(knee, ankle, 0.055, trousers)
        build.capsule(ankle, ankle + np.array((0.02 * side, -0.05, 0.16)), 0.045, shoes)
    shirt = build.material((CLOTH, PLAIN, STRIPES), (0.05, 0.15))
    build.capsule((-0.08, 0.58, -0.17), (0.08, 0.58, -0.17), 0.14, shirt)
    build.capsule((0, 0.6, -0.19), (0, 0.95, -0.22), 0.15, shirt)
    build.box((0, 0.25, -0.1), (0.3, 0.2, 0.28), build.material((CLOTH, PLAIN), (0.1, 0.3)))


def _hang_lamps(build: _Builder, low: np.ndarray, high: np.ndarray) -> list[list[float]]:
    """One to three lamps: bright spheres or ceiling panels, and the light they give."""
    g = build.generator
    lamps = []
    for _ in range(g.integers(1, 4)):
        spot = g.uniform(0.8 * low, 0.8 * high)
        spot[1] = high[1] - 0.03
        glow = [PLAIN, 0.9, 1.0, 1.0, 1, g.uniform(1.0, 3.0)]
        if g.random() < 0.5:
            build.box(spot, (g.uniform(0.1, 0.6), 0.02, g.uniform(0.05, 0.3)), glow)
        else:
            spot[1] = g.uniform(1.4, high[1] - 0.2)
            build.capsule(spot, spot + np.array((0, 0.1, 0)), g.uniform(0.05, 0.14), glow)
        lamps.append([*(spot - np.array((0, 0.08, 0))), np.exp(g.uniform(np.log(0.15), np.log(1.6)))])
    return lamps


def _sample_outdoors(build: _Builder) -> Place:
    g = build.generator
    far = 40.0
    sky = [SKY, g.uniform(0.2, 0.6), g.uniform(0.6, 1.0), g.uniform(0.5, 2.0), g.integers(1 << 30), g.uniform(0.4, 1.1)]
    ground = build.material((PLASTER, TILES, FOLIAGE, PLANKS, BRICK), (0.2, 0.8))
    walls = [sky, sky, ground, sky, sky, sky]
    for _ in range(g.integers(8, 18)):
        angle, distance = g.uniform(0, 2 * np.pi), g.uniform(3, 22)
        half = g.uniform((0.4, 0.4, 0.4), (3.5, 5.0, 3.5)) * (0.25 + distance / 22)
        center = (distance * np.cos(angle), half[1], distance * np.sin(angle))
        if np.hypot(center[0], center[2]) > np.hypot(half[0], half[2]) + 0.8:
            build.box(center, half, build.material((BRICK, WINDOW, FOLIAGE, PLASTER, TILES, PLANKS), (0.3, 1.2)))
    for _ in range(g.integers(2, 10)):
        angle, distance, radius = g.uniform(0, 2 * np.pi), g.uniform(2.5, 15), g.uniform(0.05, 0.9)
        foot = np.array([distance * np.cos(angle), 0, distance * np.sin(angle)])
        top = foot + np.array((0, g.uniform(0.5, 4), 0))
        build.capsule(foot, top, min(radius, 0.15), build.material((PLANKS, PLAIN), (0.1, 0.3)))
        build.capsule(top, top + np.array((0, radius, 0)), radius, build.material((FOLIAGE,), (0.1, 0.4)))
    if g.random() < 0.5:
        _set_desk(build)
    _seat_user(build)
    azimuth, elevation = g.uniform(0, 2 * np.pi), g.uniform(0.3, 1.3)
    sun = 30 * np.array([np.cos(azimuth) * np.cos(elevation), np.sin(elevation), np.sin(azimuth) * np.cos(elevation)])
    return build.place((-far, 0, -far, far, far, far), walls, [[*sun, g.uniform(0, 1200)]], g.uniform(0.3, 0.7))
