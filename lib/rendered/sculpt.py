"""The mesh around the generic skeleton: makes the asset `hand.npz` (`python -m lib.rendered.sculpt`).

The mesh is a grid of quads laid out like a glove: 36 columns run around the palm and on into the forearm, each finger
is a tube of 12 columns on the end of the palm, the thumb one on a hole in its side. Finger vertices are placed on
`flesh.Tube`; palm and webs are shrunk onto the implicit surface `flesh.distance`. Rings of vertices lie where a finger
bends and where a nail begins and ends, so that fewer than 4,000 triangles suffice.

Everything here is in millimetres of the mean hand, in the rest frame of `lib.rendered.shape`; the asset is in metres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array, diags_array

from lib.hands import NUM_BONES
from lib.rendered.flesh import RING, Tube, distance, finger_tubes, gradient, smoothstep, unit
from lib.rendered.shape import ASSET, generic_skeleton

_ACROSS = 4  # edges over the back of a finger; as many on the palm side, two on each side
_DORSAL, _AROUND = 4 * _ACROSS, 8 * _ACROSS + 4  # edges over the back of the hand, and all around
_PALM_ROWS, _FOREARM_ROWS, _FOREARM_LENGTH = 12, 6, 80.0
_HOLE_ROW, _HOLE_COLUMNS = 5, (33, 34, 35, 0)  # 3x3 quads of the palm's side that the thumb replaces
_CREASES = (  # of the palm: head, heart and life line, and the wrist
    ((70, 30), (66, 14), (56, -4), (46, -22)),
    ((90, 6), (80, -2), (72, -18), (66, -36)),
    ((70, 30), (58, 16), (42, 4), (24, 0), (10, 2)),
    ((2, -26), (4, 0), (2, 26)),
)
_ALBEDO = {"below": 0.94, "crease": 0.76, "knuckle": 0.81, "fold": 0.75, "nail": 0.98}


def sculpt() -> dict[str, np.ndarray]:
    """The arrays of the asset: vertices (V, 3) in metres, triangles (T, 3), bone_weights (V, 17), albedo (V)."""
    tubes = finger_tubes(generic_skeleton())
    grid = _Grid.laid_out(tubes)
    vertices = _shrunk(_first_guess(grid, tubes), grid, tubes)
    triangles = _triangles(vertices, grid.quads)
    return {
        "vertices": (vertices / 1000).astype(np.float32),
        "triangles": triangles.astype(np.int16),
        "bone_weights": _bone_weights(vertices, grid, tubes).astype(np.float32),
        "albedo": _albedo(vertices, grid, tubes).astype(np.float32),
    }


@dataclass(frozen=True)
class _Grid:
    """Which vertices make up the glove, and its quads.

    palm: rows of 36 vertices from the finger roots to the forearm's end. rings: per finger its first ring, which the
    palm shares, and its own. webs: the middles of the three webs. caps: the inner vertices of the closed ends.
    """

    palm: Int[np.ndarray, "rows 36"]
    rings: list[Int[np.ndarray, "_ 12"]]
    webs: Int[np.ndarray, "3"]
    tips: Int[np.ndarray, "5 3"]
    end: Int[np.ndarray, "inner"]
    quads: Int[np.ndarray, "quads 4"]
    size: int

    @classmethod
    def laid_out(cls, tubes: list[Tube]) -> _Grid:
        rows = np.arange(_PALM_ROWS + _FOREARM_ROWS + 1)
        hole = np.zeros((len(rows), _AROUND), bool)
        hole[_HOLE_ROW + 1 : _HOLE_ROW + 3, list(_HOLE_COLUMNS[1:3])] = True
        palm = np.where(hole, -1, np.cumsum(~hole).reshape(hole.shape) - 1)
        count = int((~hole).sum())

        def fresh(*shape: int) -> np.ndarray:
            nonlocal count
            count += int(np.prod(shape))
            return np.arange(count - int(np.prod(shape)), count).reshape(shape)

        webs = fresh(3)
        side = np.concatenate((palm[0, [_AROUND - 1]], webs, palm[0, [_DORSAL + 1]]))
        roots = [_thumb_root(palm)]
        for f in range(4):
            dorsal = np.arange(_ACROSS * f, _ACROSS * (f + 1) + 1)
            roots.append(
                np.concatenate((palm[0, dorsal], side[[f + 1]], palm[0, 2 * _DORSAL + 2 - dorsal[::-1]], side[[f]]))
            )
        rings = [
            np.concatenate((root[None], fresh(len(tube.rings), RING))) for tube, root in zip(tubes, roots, strict=True)
        ]
        tips, end = fresh(5, 3), fresh(_DORSAL - 1)
        quads = [_strip(palm), *(_strip(ring[::-1]) for ring in rings)]
        quads += [_lid(ring[-1], tip) for ring, tip in zip(rings, tips, strict=True)] + [_lid(palm[-1], end)[:, ::-1]]
        return cls(palm, rings, webs, tips, end, np.concatenate(quads), count)


def _thumb_root(palm: np.ndarray) -> np.ndarray:
    """The rim of the hole in the palm's side, in the order of a ring around the thumb, its back first."""
    top, bottom = _HOLE_ROW, _HOLE_ROW + 3
    a, b, c, d = _HOLE_COLUMNS
    rim = [(top, d), (top, c), (top, b), (top, a), (top + 1, a), (top + 2, a)]
    rim += [(bottom, a), (bottom, b), (bottom, c), (bottom, d), (top + 2, d), (top + 1, d)]
    return np.roll(np.array([palm[place] for place in rim]), -5)


def _strip(rows: np.ndarray) -> np.ndarray:
    """Quads between successive closed rows; those that touch a removed vertex (-1) are left out."""
    following = np.roll(rows, -1, axis=1)
    quads = np.stack((rows[:-1], following[:-1], following[1:], rows[1:]), axis=-1).reshape(-1, 4)
    return quads[(quads >= 0).all(axis=1)]


def _lid(ring: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Quads that close a ring with one inner row between its back and its palm side."""
    across = len(inner) + 1
    back, below = ring[: across + 1], ring[across + 2 : 2 * across + 3][::-1]
    middle = np.concatenate((ring[[-1]], inner, ring[[across + 1]]))
    rows = np.stack((below, middle, back))
    return np.stack((rows[:-1, :-1], rows[:-1, 1:], rows[1:, 1:], rows[1:, :-1]), axis=-1).reshape(-1, 4)


def _first_guess(grid: _Grid, tubes: list[Tube]) -> np.ndarray:
    """Vertices before they are shrunk: tubes in place, the palm spanned between their roots and the wrist."""
    vertices, seen = np.zeros((grid.size, 3)), np.zeros((grid.size, 1))
    for tube, rings in zip(tubes, grid.rings, strict=True):
        root = replace(tube, rings=tube.rings[:1] - 0.12)
        np.add.at(vertices, rings[0], root.surface()[0])
        np.add.at(seen, rings[0], 1)
    roots = vertices / np.maximum(seen, 1)
    angle = np.deg2rad(
        np.concatenate((np.linspace(12, 168, _DORSAL + 1), [180], np.linspace(192, 348, _DORSAL + 1), [360]))
    )
    section = np.stack((0 * angle, 20 * np.sin(angle), 29 * np.cos(angle)), axis=1)
    for row, places in enumerate(grid.palm):
        share, beyond = min(row / _PALM_ROWS, 1), max(row - _PALM_ROWS, 0) / _FOREARM_ROWS
        guess = (
            (1 - share) * roots[grid.palm[0]] + share * section * (1 + 0.25 * beyond) - [_FOREARM_LENGTH * beyond, 0, 0]
        )
        vertices[places[places >= 0]] = guess[places >= 0]
    for tube, rings, tip in zip(tubes, grid.rings, grid.tips, strict=True):
        vertices[rings[1:]], vertices[tip] = tube.surface(), tube.cap()
    fixed = seen > 0
    fixed[
        [
            *grid.palm[_PALM_ROWS:].ravel(),
            *np.concatenate([rings[1:].ravel() for rings in grid.rings]),
            *grid.tips.ravel(),
        ]
    ] = True
    average = _neighbour_average(grid)
    for _ in range(15):
        vertices = np.where(fixed, np.where(seen > 0, roots, vertices), average @ vertices)
    return vertices


def _shrunk(vertices: np.ndarray, grid: _Grid, tubes: list[Tube]) -> np.ndarray:
    """The vertices of the palm, the webs and the finger roots relaxed on the implicit surface; the rest stays."""
    free = np.zeros(grid.size, bool)
    free[grid.palm[grid.palm >= 0]] = free[grid.webs] = True
    for tube, rings in zip(tubes, grid.rings, strict=True):
        free[rings[1:][tube.rings < (0.75 if tube is not tubes[0] else 1.2)]] = True
    average = _neighbour_average(grid)
    for _ in range(60):
        points = vertices[free]
        normal = unit(gradient(points, tubes))
        step = 0.5 * ((average @ vertices)[free] - points)
        points = points + step - normal * (step * normal).sum(-1, keepdims=True)
        slope = gradient(points, tubes)
        move = -distance(points, tubes)[:, None] * slope / (slope**2).sum(-1, keepdims=True)
        vertices = vertices.copy()
        vertices[free] = points + move.clip(-3, 3)
        vertices[grid.palm[-1], 0] = -_FOREARM_LENGTH
    centre = vertices[grid.palm[-1]].mean(axis=0)
    vertices[grid.palm[-1]] = centre + 0.86 * (vertices[grid.palm[-1]] - centre)  # a rounded rim
    vertices[grid.palm[-2], 0] = 3.0 - _FOREARM_LENGTH
    ulnar, radial = vertices[grid.palm[-1, [_DORSAL + 1, -1]]]
    vertices[grid.end] = np.linspace(radial, ulnar, _DORSAL + 1)[1:-1]
    return vertices


def _triangles(vertices: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Each quad split along its shorter diagonal, wound outwards."""
    a, b, c, d = (vertices[quads[:, k]] for k in range(4))
    first = np.linalg.norm(a - c, axis=1) < np.linalg.norm(b - d, axis=1) + 1e-3  # no tie hangs on rounding
    splits = np.where(first[:, None, None], quads[:, [[0, 1, 2], [0, 2, 3]]], quads[:, [[0, 1, 3], [1, 2, 3]]])
    return splits.reshape(-1, 3)


def _bone_weights(vertices: np.ndarray, grid: _Grid, tubes: list[Tube]) -> np.ndarray:
    """Skinning weights: a smooth step at every joint of a finger, shared by distance and smoothed on the palm."""
    owner = np.full(grid.size, -1)
    for finger, (rings, tip) in enumerate(zip(grid.rings, grid.tips, strict=True)):
        owner[rings[1:]], owner[tip] = finger, finger
    weights = np.zeros((grid.size, NUM_BONES))
    reach = np.stack([_segment_distance(vertices, tube.chain[0], tube.chain[1]) for tube in tubes[1:]], axis=1)
    share = np.exp(-(reach - reach.min(axis=1, keepdims=True)) / 3.0)
    share /= share.sum(axis=1, keepdims=True)
    for finger, tube in enumerate(tubes):
        own = owner == finger
        if finger:
            first = np.where(owner < 0, share[:, finger - 1], own) * _knuckle_step(vertices, tube)
        else:
            first = (own | (owner < 0)) * _thumb_step(vertices, tube)
        second, third = (own * _joint_step(vertices, tube, joint) for joint in (1, 2))
        steps = np.stack((first * (1 - second), first * second * (1 - third), first * second * third), axis=1)
        weights[:, 2 + 3 * finger : 5 + 3 * finger] = steps
    average, soft = _neighbour_average(grid), (owner < 0)[:, None]
    for rings in grid.rings:
        soft[rings[1]] = True
    for _ in range(8):
        weights = np.where(soft, 0.5 * weights + 0.5 * (average @ weights), weights)
    weights[weights < 0.004] = 0
    weights[:, 1] = 1 - weights.sum(axis=1)
    return weights


def _joint_step(points: np.ndarray, tube: Tube, joint: int) -> np.ndarray:
    """0 before a joint, 1 after it; the back follows late, so that the knuckle keeps its volume."""
    along = unit(tube.chain[joint + 1] - tube.chain[joint - 1])
    offset = points - tube.chain[joint]
    height = offset @ unit(tube.dorsal[joint - 1] + tube.dorsal[joint])
    radius = tube.section(np.array([float(joint)]))[1, 0]
    return smoothstep(0.5 + (offset @ along - 0.35 * height.clip(0)) / (1.5 * radius))


def _knuckle_step(points: np.ndarray, tube: Tube) -> np.ndarray:
    offset = points - tube.chain[0]
    height = offset @ tube.dorsal[0]
    return smoothstep(0.5 + (offset @ unit(tube.chain[1] - tube.chain[0]) - 3.0 - 0.2 * height.clip(0)) / 22.0)


def _thumb_step(points: np.ndarray, tube: Tube) -> np.ndarray:
    """Share of the thumb's metacarpal: grows along it and fades away from it."""
    along = tube.chain[1] - tube.chain[0]
    place = (points - tube.chain[0]) @ along / (along @ along)
    away = _segment_distance(points, tube.chain[0], tube.chain[3])
    return smoothstep((place + 0.15) / 0.75) * smoothstep(1 - (away - 13.0) / 20.0)


def _albedo(vertices: np.ndarray, grid: _Grid, tubes: list[Tube]) -> np.ndarray:
    """Brightness of the skin: light palm and nails, dark creases, knuckles and rims of nails, a little mottling."""
    albedo = np.full(grid.size, 0.86)
    palm_side = grid.palm[:_PALM_ROWS, _DORSAL + 2 : 2 * _DORSAL + 3]
    palm_side = palm_side[palm_side >= 0]
    albedo[palm_side] = 0.94
    for line in _CREASES:
        steps = np.linspace(0, len(line) - 1, 60)
        path = np.stack([np.interp(steps, np.arange(len(line)), axis) for axis in np.array(line).T], axis=-1)
        nearest = np.linalg.norm(vertices[palm_side][:, None, [0, 2]] - path, axis=-1).argmin(axis=0)
        albedo[palm_side[nearest]] = 0.84
    for tube, rings, tip in zip(tubes, grid.rings, grid.tips, strict=True):
        region = tube.regions()
        for name, value in _ALBEDO.items():
            albedo[rings[1:][region[name]]] = value
        albedo[tip] = 0.92
        knuckle = tube.chain[0] + 11.0 * tube.dorsal[0]
        albedo -= 0.09 * (tube is not tubes[0]) * np.exp(-(((vertices - knuckle) / 8.0) ** 2).sum(-1))
    mottling = np.prod(np.sin(vertices / [9.0, 7.0, 8.0] + [0.3, 1.1, 2.0]), axis=1)
    return albedo * (1 + 0.03 * mottling).clip(max=1 / albedo)


def _neighbour_average(grid: _Grid) -> csr_array:
    """The matrix that replaces each vertex by the mean of those that share an edge of a quad with it."""
    start, end = grid.quads.ravel(), np.roll(grid.quads, -1, axis=1).ravel()  # each edge once in either direction
    adjacent = csr_array((np.ones(len(start)), (start, end)), shape=(grid.size, grid.size))
    return diags_array(1 / adjacent.sum(axis=1)) @ adjacent


def _segment_distance(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    along = end - start
    share = np.clip((points - start) @ along / (along @ along), 0, 1)
    return np.linalg.norm(points - start - share[:, None] * along, axis=1)


if __name__ == "__main__":
    np.savez_compressed(ASSET, **sculpt())
