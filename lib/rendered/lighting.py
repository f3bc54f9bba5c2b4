"""Light on the drawn mesh, all with shadows: a key light, a weak one from the headset, the glow of the surroundings.

Radiance and irradiance are relative: 1 is the radiance of a white texel of the environment.
Source: spec synthetic_data.md, "Picture": new lighting per frame within a slowly varying setting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d

from lib.compiled import compiled
from lib.rendered.backgrounds import Environment
from lib.rendered.shape import unit

TEXEL, FIELD = 0.005, 256
"""Cell size (m) and cells per side of the height fields; they repeat, every 1.28 m."""
LIFT = 0.004
"""Shadows are looked up this far above the surface (m)."""
PENUMBRA = 0.012
"""Something this much higher than a vertex (m) hides the light entirely."""
WRAP = 0.2
"""How far light reaches behind the terminator, a stand-in for light that scatters in the skin."""
NEARNESS = (7.0, 18.0)
"""How much brighter the light is at the hands than in the surroundings, which lie further from lamps and windows and
reflect less of the near infrared, to which such sensors respond."""
SKY_LIGHTS = 14
"""Directions that stand for the light of the surroundings."""


@dataclass(frozen=True)
class Lighting:
    """The lights of every frame: the key light first, then the headset's, then the surroundings."""

    directions: Float[np.ndarray, "frames lights 3"]
    """Unit vectors towards the lights, world axes."""
    irradiance: Float[np.ndarray, "frames lights"]
    """What a surface that faces the light receives."""


def sample_lighting(
    environment: Environment, from_hands_to_headset: Float[np.ndarray, "frames 3"], generator: np.random.Generator
) -> Lighting:
    """Lights that fit the environment; strengths and the key's direction drift slowly and flicker a little."""
    frames = len(from_hands_to_headset)
    sky = sky_directions()
    nearness = np.exp(generator.uniform(*np.log(NEARNESS)))
    ambient = nearness * np.pi * 4 / SKY_LIGHTS * environment.radiance(sky, 4.0)
    level = ambient.sum() / 4
    key = environment.brightest() if generator.random() < 0.6 else unit(generator.normal((0, 0.6, 0), 0.6, 3))
    strengths = level * np.exp(generator.uniform(np.log((0.25, 0.25)), np.log((1.2, 1.0))))
    key = unit(key + 0.15 * light_drift(frames, 3, generator) + 0.02 * generator.normal(size=(frames, 3)))
    directions = np.stack((key, from_hands_to_headset, *np.broadcast_to(sky[:, None], (SKY_LIGHTS, frames, 3))), axis=1)
    changes = 0.2 * light_drift(frames, 2 + SKY_LIGHTS, generator) + 0.04 * generator.normal(
        size=(frames, 2 + SKY_LIGHTS)
    )
    return Lighting(directions, np.concatenate((strengths, ambient)) * np.exp(changes))


def sky_directions() -> Float[np.ndarray, "lights 3"]:
    """Unit directions spread evenly over the sphere (a Fibonacci lattice)."""
    step = np.arange(SKY_LIGHTS)
    height, turn = 1 - (2 * step + 1) / SKY_LIGHTS, np.pi * (3 - np.sqrt(5)) * step
    radius = np.sqrt(1 - height**2)
    return np.stack((radius * np.cos(turn), height, radius * np.sin(turn)), axis=-1)


def light_drift(frames: int, channels: int, generator: np.random.Generator) -> Float[np.ndarray, "frames channels"]:
    """Smooth random curves of about unit size that change over half a second."""
    noise = generator.normal(size=(frames, channels))
    return gaussian_filter1d(noise, 8.0, axis=0, mode="wrap") * np.sqrt(2 * np.sqrt(np.pi) * 8.0)


@compiled
def vertex_normals(points, triangles):
    """Outward unit normals (V, 3): the sum of the normals of the faces around a vertex, weighted by their areas."""
    normals = np.zeros_like(points)
    for face in range(len(triangles)):
        a, b, c = triangles[face]
        ux, uy, uz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        vx, vy, vz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for v in (a, b, c):
            normals[v, 0] += nx
            normals[v, 1] += ny
            normals[v, 2] += nz
    for v in range(len(points)):
        x, y, z = normals[v]
        length = np.sqrt(x * x + y * y + z * z) + 1e-30
        normals[v] = x / length, y / length, z / length
    return normals


@compiled
def illuminate(points, normals, present, directions, irradiance):
    """Irradiance at each vertex from all lights with their shadows, and that of the key light (the first) alone."""
    total, key = np.zeros(len(points)), np.zeros(len(points))
    field = np.empty((FIELD, FIELD), np.float32)
    for light in range(len(directions)):
        direction = directions[light]
        across, along = perpendicular(direction)
        _raise_field(field, points, present, direction, across, along)
        for v in range(len(points)):
            cosine = normals[v, 0] * direction[0] + normals[v, 1] * direction[1] + normals[v, 2] * direction[2]
            lit = (cosine + WRAP) / (1.0 + WRAP)
            if present[v] and lit > 0.0:
                received = (
                    irradiance[light]
                    * lit
                    * _visibility(field, points[v], normals[v], cosine, direction, across, along)
                )
                total[v] += received
                if light == 0:
                    key[v] = received
    return total, key


@compiled
def perpendicular(direction):
    """Two unit vectors that span the plane across `direction`."""
    x, y, z = direction
    if abs(y) < 0.9:
        across = np.array((z, 0.0, -x)) / np.sqrt(x * x + z * z)
    else:
        across = np.array((0.0, -z, y)) / np.sqrt(y * y + z * z)
    along = np.array((
        y * across[2] - z * across[1],
        z * across[0] - x * across[2],
        x * across[1] - y * across[0],
    ))  # fmt: skip
    return across, along


@compiled
def _raise_field(field, points, present, direction, across, along):
    """Fill the height field: per cell the largest height along `direction` of the vertices within a cell of it."""
    field[:] = -1e9
    for v in range(len(points)):
        if present[v]:
            x, y, z = points[v]
            column = int(np.floor((x * across[0] + y * across[1] + z * across[2]) / TEXEL))
            row = int(np.floor((x * along[0] + y * along[1] + z * along[2]) / TEXEL))
            height = np.float32(x * direction[0] + y * direction[1] + z * direction[2])
            for i in range(2):
                for j in range(2):
                    cell_row, cell_column = (row + i) & (FIELD - 1), (column + j) & (FIELD - 1)
                    field[cell_row, cell_column] = max(field[cell_row, cell_column], height)


@compiled
def _visibility(field, point, normal, cosine, direction, across, along):
    """Share of a light that reaches a vertex: soft comparisons with the four nearest cells, interpolated."""
    tangent = np.sqrt(max(0.0, 1.0 - cosine * cosine)) / max(cosine, 0.25)
    bias = TEXEL * (0.6 + 1.5 * min(tangent, 2.5))
    x, y, z = point[0] + LIFT * normal[0], point[1] + LIFT * normal[1], point[2] + LIFT * normal[2]
    column = (x * across[0] + y * across[1] + z * across[2]) / TEXEL
    row = (x * along[0] + y * along[1] + z * along[2]) / TEXEL
    height = x * direction[0] + y * direction[1] + z * direction[2] + bias
    left, top = np.floor(column), np.floor(row)
    fx, fy = column - left, row - top
    visible = 0.0
    for i in range(2):
        for j in range(2):
            above = field[(int(top) + i) & (FIELD - 1), (int(left) + j) & (FIELD - 1)] - height
            share = min(max(1.0 - above / PENUMBRA, 0.0), 1.0)
            visible += share * (fy if i else 1.0 - fy) * (fx if j else 1.0 - fx)
    return visible


@compiled
def shade(vertices, normals, radiance, highlight, camera_from_world, key_direction, distance):
    """Radiance (V) of the vertices towards the camera: the diffuse light and a broad highlight of the key light."""
    rotation, translation = camera_from_world[:, :3], camera_from_world[:, 3]
    value = np.zeros(len(radiance))
    for v in range(len(radiance)):
        if distance[v] > 0.0:
            aligned, length2 = 0.0, 1e-12
            for k in range(3):
                eye = -(
                    rotation[0, k] * translation[0] + rotation[1, k] * translation[1] + rotation[2, k] * translation[2]
                )
                half = (eye - vertices[0, v, k]) / distance[v] + key_direction[k]
                aligned += half * normals[v, k]
                length2 += half * half
            value[v] = radiance[v] + highlight[v] * _power(max(aligned, 0.0) / np.sqrt(length2))
    return value


@compiled
def _power(cosine):
    """cosine ** 14, the shape of the highlight on skin."""
    square = cosine * cosine
    fourth = square * square
    return fourth * fourth * fourth * square
