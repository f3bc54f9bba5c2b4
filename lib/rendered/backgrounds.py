"""Surroundings of a sequence: procedural rooms and streets, ray-cast once into an octahedral map of all directions.

A place is a box (a room, or ground and sky) with boxes and capsules in it: furniture, pictures, windows, lamps,
clutter on a desk, the legs of the user. World axes with y up; the eye is at the height of a seated user's headset.
Texels hold the square root of radiance. Source: spec synthetic_data.md, "Picture".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, UInt8, UInt32
from scipy.ndimage import maximum_filter, minimum_filter

from lib.compiled import compiled
from lib.rendered.places import Place, sample_place
from lib.rendered.surfaces import SKY, surface_value

SIZE = 576
"""Texels along a side of the octahedral map, without its border; one covers 1.5 pixels of a view on average."""

EDGE = 0.2
"""Texels whose neighbours differ by more than this in root radiance are cast again, in quarters."""
WHITE = 0.75
"""Radiance of the brightest surfaces; lamps and windows, some 3 % of the directions, may exceed it up to 1."""


@dataclass(frozen=True)
class Environment:
    """The light that arrives from every direction, constant over a sequence.

    Direction (x, y, z) with |x| + |y| + |z| = 1 lies at row (z + 1) / 2 and column (x + 1) / 2 of the map, 0..1; the
    lower half of the sphere (y < 0) is folded out into the corners: the octahedral map of
    Engelhardt & Dachsbacher 2008.
    """

    texture: UInt8[np.ndarray, "rows columns"]
    """Root radiance, 255 is white, with a border of one texel that continues the map beyond its edges."""

    @cached_property
    def quads(self) -> UInt32[np.ndarray, "rows columns"]:
        """Every texel with its neighbours right, below and right below, a byte each, the lowest first: one look-up."""
        texture = self.texture.astype(np.uint32)
        return texture[:-1, :-1] | texture[:-1, 1:] << 8 | texture[1:, :-1] << 16 | texture[1:, 1:] << 24

    def radiance(self, directions: Float[np.ndarray, "lights 3"], sharpness: float) -> Float[np.ndarray, "lights"]:
        """Mean radiance around unit directions, weighted by the cosine to them raised to `sharpness`."""
        coarse = SIZE // 18
        blocks = (self.texture[1:-1, 1:-1] / 255.0) ** 2
        blocks = blocks.reshape(coarse, 18, coarse, 18).mean(axis=(1, 3)).ravel()
        rays = texel_directions(coarse).reshape(-1, 3)
        lobes = np.clip((directions[:, None] * rays).sum(axis=-1), 0, None) ** sharpness
        lobes *= np.abs(rays).sum(axis=-1) ** 3  # solid angle of a texel
        return (lobes * blocks).sum(axis=1) / lobes.sum(axis=1)

    def brightest(self) -> Float[np.ndarray, "3"]:
        """Unit direction of the brightest part of the upper half: a lamp, a window, the sun."""
        rays = texel_directions(24).reshape(-1, 3)
        rays = rays[rays[:, 1] > 0.1]
        return rays[self.radiance(rays, 60.0).argmax()]


def sample_environment(generator: np.random.Generator, forward: Float[np.ndarray, "3"]) -> Environment:
    """Surroundings, a room mostly or a street, of a user who sits looking along the world direction `forward`."""
    place = sample_place(generator, forward)
    light = _trace(place, texel_directions(SIZE))
    white = np.quantile(light, 0.97) / WHITE
    root = np.sqrt(np.clip(light / white, 0, 1))
    edges = np.nonzero(maximum_filter(root, 3) - minimum_filter(root, 3) > EDGE)
    quarter_q, quarter_p = (
        np.stack(edges)[:, None] + np.array([[0.25, 0.25, 0.75, 0.75], [0.25, 0.75, 0.25, 0.75]])[..., None]
    )
    finer = _trace(place, _unfold(2 * quarter_p / SIZE - 1, 2 * quarter_q / SIZE - 1))
    root[edges] = np.sqrt(np.clip(finer / white, 0, 1)).mean(axis=0)
    blurred = _blur(_with_border(root))
    return Environment(_with_border(np.floor(255 * blurred + 0.5).astype(np.uint8)))


def _trace(place: Place, directions: Float[np.ndarray, "rows columns 3"]) -> Float[np.ndarray, "rows columns"]:
    """Radiance that arrives from world directions."""
    rays = directions @ place.room_from_world.T + 1e-9  # no component may be zero
    return _cast(rays, place.eye, place.room, place.boxes, place.capsules, place.materials, place.lamps, place.ambient)


def texel_directions(size: int) -> Float[np.ndarray, "rows columns 3"]:
    """Unit directions of the texel centres of an octahedral map."""
    return _unfold(*np.meshgrid(*2 * [2 * (np.arange(size) + 0.5) / size - 1]))


def _unfold(p: np.ndarray, q: np.ndarray) -> Float[np.ndarray, "*shape 3"]:
    """Unit directions of points -1..1 of the map, p along the rows, q along the columns."""
    up = 1 - np.abs(p) - np.abs(q)
    x = np.where(up < 0, np.copysign(1 - np.abs(q), p), p)
    z = np.where(up < 0, np.copysign(1 - np.abs(p), q), q)
    rays = np.stack((x, up, z), axis=-1)
    return rays / np.sqrt((rays**2).sum(axis=-1, keepdims=True))


def _with_border(inner: np.ndarray) -> np.ndarray:
    """The map with one texel more on each side; beyond an edge it continues reversed, corners meet opposite ones."""
    padded = np.pad(inner, 1)
    padded[0, 1:-1], padded[-1, 1:-1] = inner[0, ::-1], inner[-1, ::-1]
    padded[1:-1, 0], padded[1:-1, -1] = inner[::-1, 0], inner[::-1, -1]
    padded[0, 0], padded[0, -1] = inner[-1, -1], inner[-1, 0]
    padded[-1, 0], padded[-1, -1] = inner[0, -1], inner[0, 0]
    return padded


def _blur(padded: np.ndarray) -> np.ndarray:
    """Binomial 3x3 filter, the optics' blur; removes the border."""
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16


@compiled
def _cast(rays, eye, room, boxes, capsules, materials, lamps, ambient):
    """Radiance (rows, columns) that arrives at the eye along each ray of the room. See `Place` for the arguments."""
    radiance = np.empty(rays.shape[:2])
    origin = (eye[0], eye[1], eye[2])
    for row in range(rays.shape[0]):
        for column in range(rays.shape[1]):
            ray = (rays[row, column, 0], rays[row, column, 1], rays[row, column, 2])
            distance, face, thing = _nearest(origin, ray, room, boxes, capsules)
            point = (eye[0] + distance * ray[0], eye[1] + distance * ray[1], eye[2] + distance * ray[2])
            normal, u, v = _surface(point, face, thing, capsules, len(boxes))
            kind, dark, bright, scale, seed, emission = materials[face if thing < 0 else 6 + thing]
            if kind == SKY:
                u, v = ray[0] / (abs(ray[1]) + 0.1), ray[2] / (abs(ray[1]) + 0.1)
            albedo = dark + (bright - dark) * surface_value(int(kind), u / scale, v / scale, int(seed))
            received = 0.0 if kind == SKY else ambient * (0.8 + 0.2 * normal[1]) * _corner(point, room, thing)
            for lamp in range(0 if kind == SKY else len(lamps)):
                received += _lamp_light(point, normal, lamps[lamp], boxes, capsules, lamp == 0)
            radiance[row, column] = albedo * (received + emission)
    return radiance


@compiled
def _nearest(eye, ray, room, boxes, capsules):
    """Distance, face 0..5 (-x +x -y +y -z +z) and index of the thing hit: -1 the room, then boxes, then capsules."""
    distance, face, thing = 1e9, 0, -1
    inverse = (1.0 / ray[0], 1.0 / ray[1], 1.0 / ray[2])
    for axis in range(3):
        side = 1 if ray[axis] > 0.0 else 0
        step = (room[3 * side + axis] - eye[axis]) * inverse[axis]
        if step < distance:
            distance, face = step, 2 * axis + side
    for i in range(len(boxes)):
        entry, entry_face = _enter_box(eye, inverse, boxes[i])
        if 0.0 < entry < distance:
            distance, face, thing = entry, entry_face, i
    for i in range(len(capsules)):
        entry = _enter_capsule(eye, ray, capsules[i])
        if 0.0 < entry < distance:
            distance, face, thing = entry, 0, len(boxes) + i
    return distance, face, thing


@compiled
def _enter_box(eye, inverse, box):
    """Distance at which a ray (the inverses of its components) enters a box, and the face; -1 where it misses."""
    x0, x1 = (box[0] - eye[0]) * inverse[0], (box[3] - eye[0]) * inverse[0]
    y0, y1 = (box[1] - eye[1]) * inverse[1], (box[4] - eye[1]) * inverse[1]
    z0, z1 = (box[2] - eye[2]) * inverse[2], (box[5] - eye[2]) * inverse[2]
    x, y, z = min(x0, x1), min(y0, y1), min(z0, z1)
    entry, leave = max(x, y, z), min(max(x0, x1), max(y0, y1), max(z0, z1))
    if entry > leave:
        return -1.0, 0
    if entry == x:
        return entry, 0 if x0 < x1 else 1
    if entry == y:
        return entry, 2 if y0 < y1 else 3
    return entry, 4 if z0 < z1 else 5


@compiled
def _enter_capsule(eye, ray, capsule):
    """Distance at which a ray enters a capsule (end, end, radius); -1 where it misses. Source: I. Quilez."""
    ax, ay, az = capsule[3] - capsule[0], capsule[4] - capsule[1], capsule[5] - capsule[2]
    ox, oy, oz = eye[0] - capsule[0], eye[1] - capsule[1], eye[2] - capsule[2]
    aa, ad = ax * ax + ay * ay + az * az, ax * ray[0] + ay * ray[1] + az * ray[2]
    ao, do = ax * ox + ay * oy + az * oz, ray[0] * ox + ray[1] * oy + ray[2] * oz
    oo = ox * ox + oy * oy + oz * oz - capsule[6] ** 2
    a, b, c = aa - ad * ad, aa * do - ao * ad, aa * oo - ao * ao
    root = b * b - a * c
    if root < 0.0:
        return -1.0
    step = (-b - np.sqrt(root)) / a
    along = ao + step * ad
    if 0.0 < along < aa:
        return step
    if along > 0.0:
        do, oo = do - ad, oo - 2.0 * ao + aa
    root = do * do - oo
    return -do - np.sqrt(root) if root > 0.0 else -1.0


@compiled
def _surface(point, face, thing, capsules, num_boxes):
    """Normal at the point that was hit and its texture coordinates, metres."""
    if thing < num_boxes:
        outward = 1.0 if (face % 2 == 1) != (thing < 0) else -1.0
        if face < 2:
            return (outward, 0.0, 0.0), point[2], point[1]
        if face < 4:
            return (0.0, outward, 0.0), point[0], point[2]
        return (0.0, 0.0, outward), point[0], point[1]
    capsule = capsules[thing - num_boxes]
    ax, ay, az = capsule[3] - capsule[0], capsule[4] - capsule[1], capsule[5] - capsule[2]
    ox, oy, oz = point[0] - capsule[0], point[1] - capsule[1], point[2] - capsule[2]
    along = min(max((ox * ax + oy * ay + oz * az) / (ax * ax + ay * ay + az * az), 0.0), 1.0)
    normal = ((ox - along * ax) / capsule[6], (oy - along * ay) / capsule[6], (oz - along * az) / capsule[6])
    return normal, point[0] + point[2], point[1]


@compiled
def _corner(point, room, thing):
    """Ambient light that is left near the edges of the room."""
    open_share = 1.0
    if thing < 0:
        for axis in range(3):
            gap = min(point[axis] - room[axis], room[3 + axis] - point[axis])
            if gap > 1e-6:
                open_share *= 1.0 - 0.4 * np.exp(-gap / 0.3)
    return open_share


@compiled
def _lamp_light(point, normal, lamp, boxes, capsules, shadows):
    """Light received from a lamp (position, power); the boxes and capsules cast shadows if asked."""
    tx, ty, tz = lamp[0] - point[0], lamp[1] - point[1], lamp[2] - point[2]
    distance = np.sqrt(tx * tx + ty * ty + tz * tz)
    cosine = (normal[0] * tx + normal[1] * ty + normal[2] * tz) / distance
    if cosine <= 0.0:
        return 0.0
    if shadows:
        origin = (point[0] + 1e-4 * normal[0], point[1] + 1e-4 * normal[1], point[2] + 1e-4 * normal[2])
        ray = (tx / distance, ty / distance, tz / distance)
        inverse = (1.0 / ray[0], 1.0 / ray[1], 1.0 / ray[2])
        for i in range(len(boxes)):
            if 0.0 < _enter_box(origin, inverse, boxes[i])[0] < distance - 0.3:
                return 0.0
        for i in range(len(capsules)):
            if 0.0 < _enter_capsule(origin, ray, capsules[i]) < distance - 0.3:
                return 0.0
    return lamp[3] * cosine / (distance * distance + 0.3)
