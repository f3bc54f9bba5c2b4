"""The sensor: background along the rays of the pixels, exposure, vignetting, noise and encoding of a view.

Source: spec synthetic_data.md, "Picture".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from lib.cameras import Fisheye62
from lib.compiled import compiled

GRID_PX = 8
"""Rays and vignetting are interpolated between nodes this far apart, within 0.03 px of the exact ray."""
MEAN_BYTES, DEVIATION_BYTES = 510.0, 147.8
"""Mean and standard deviation of the sum of four random bytes, which is close to a normal distribution."""


@dataclass(frozen=True)
class Sensor:
    """How a sequence's cameras turn light into grey levels; signal and noise are square roots, 1 is white."""

    shutter: float
    """Exposure time as a share of the frame's period."""
    vignetting: float
    """Loss of signal per squared radian from the optical axis."""
    shot_noise: float
    """Standard deviation of the noise at any brightness."""
    read_noise: float
    """Standard deviation of the noise at black."""
    contrast: float
    """Bend of the tone curve, -0.4..0.4; positive lifts the middle tones."""


def sample_sensor(generator: np.random.Generator) -> Sensor:
    """A sensor from a clean one in good light to a noisy one in a dim room."""
    return Sensor(
        shutter=generator.uniform(0.02, 0.15),
        vignetting=generator.uniform(0.04, 0.14),
        shot_noise=np.exp(generator.uniform(np.log(0.002), np.log(0.009))),
        read_noise=np.exp(generator.uniform(np.log(0.004), np.log(0.018))),
        contrast=generator.uniform(-0.25, 0.3),
    )


def ray_grid(camera: Fisheye62, vignetting: float) -> Float[np.ndarray, "cameras rows columns 4"]:
    """Unit ray in camera axes and remaining signal at every `GRID_PX`-th pixel of each of a batch of cameras.

    Raises ValueError if the lens leaves a pixel of the image without a ray.
    """
    rows, columns = np.mgrid[0 : camera.height + GRID_PX : GRID_PX, 0 : camera.width + GRID_PX : GRID_PX]
    pixels = torch.tensor(np.stack((columns, rows), axis=-1), dtype=camera.focal_px.dtype)
    rays = camera[:, None, None].unproject(pixels).numpy()
    if np.isnan(rays).any():
        raise ValueError(f"expected a lens with a ray for every pixel, got distortion {camera.distortion.tolist()}")
    angle = np.arccos(np.clip(rays[..., 2], -1, 1))
    signal = np.clip(1 - vignetting * angle**2, 0.05, 1)
    return np.concatenate((rays, signal[..., None]), axis=-1)


@compiled
def turn_grid(grid, camera_from_world):
    """One camera's grid (rows, columns, 4) with its rays in world axes, as float32, channels first."""
    turned = np.empty((4, *grid.shape[:2]), np.float32)
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            x, y, z, signal = grid[row, column]
            for k in range(3):
                turned[k, row, column] = (
                    camera_from_world[0, k] * x + camera_from_world[1, k] * y + camera_from_world[2, k] * z
                )
            turned[3, row, column] = signal
    return turned


def noise_key(seed: int, frame: int, camera: int) -> np.uint32:
    """What distinguishes the noise of one view of one frame from all others."""
    return np.uint32(np.random.SeedSequence((seed, frame, camera)).generate_state(1)[0])


@compiled
def expose(region, grid, quads, radiance, coverage, box, exposure, shot_noise, read_noise, contrast, key, width):
    """The uint8 picture of `region`: the drawn layer, which covers `box`, over the environment, seen by the sensor.

    `radiance` is the layer's mean over its covered samples, of four, which `coverage` counts.
    """
    x0, y0, x1, y1 = region
    first, last = x0 // GRID_PX, (x1 - 1) // GRID_PX + 1
    count = (last - first) * GRID_PX
    u, v = np.empty(count, np.float32), np.empty(count, np.float32)
    signal, background = np.empty(count, np.float32), np.empty(count, np.float32)
    skip = x0 - first * GRID_PX
    picture = np.empty((y1 - y0, x1 - x0), np.uint8)
    for y in range(y0, y1):
        _octahedral_row(grid, y, first, last, np.float32(quads.shape[0] - 1), u, v, signal)
        _look_up(quads, u, v, background)
        if box[1] <= y < box[3]:
            for x in range(box[0], box[2]):
                if coverage[y - box[1], x - box[0]]:
                    covered = np.float32(coverage[y - box[1], x - box[0]]) * np.float32(0.25)
                    i = x - first * GRID_PX
                    behind = background[i] * background[i]
                    background[i] = np.sqrt(behind + covered * (radiance[y - box[1], x - box[0]] - behind))
        start = np.uint32(y * width + first * GRID_PX)
        _sense(background, signal, np.float32(np.sqrt(exposure)), np.float32(shot_noise), np.float32(read_noise),
               np.float32(contrast), key, start)  # fmt: skip
        for x in range(x1 - x0):
            picture[y - y0, x] = np.uint8(background[x + skip])
    return picture


@compiled
def _octahedral_row(grid, y, first, last, size, u, v, signal):
    """Texel coordinates on the octahedral environment map, and the remaining signal, of a row of pixels."""
    row, fy = y // GRID_PX, np.float32(y % GRID_PX) / np.float32(GRID_PX)
    half, one = np.float32(0.5), np.float32(1)
    rays = np.empty((4, len(u)), np.float32)
    for channel in range(4):
        above, below, along = grid[channel, row], grid[channel, row + 1], rays[channel]
        a = above[first] + fy * (below[first] - above[first])
        for node in range(first, last):
            b = above[node + 1] + fy * (below[node + 1] - above[node + 1])
            step = b - a
            for k in range(GRID_PX):
                along[(node - first) * GRID_PX + k] = a + np.float32(k / GRID_PX) * step
            a = b
    x, up, z = rays[0], rays[1], rays[2]
    signal[:] = rays[3]
    for i in range(len(u)):
        scale = one / (abs(x[i]) + abs(up[i]) + abs(z[i]))
        p, q = x[i] * scale, z[i] * scale
        folded_p, folded_q = math.copysign(one - abs(q), p), math.copysign(one - abs(p), q)
        p, q = (p, q) if up[i] >= 0 else (folded_p, folded_q)
        u[i] = (p * half + half) * size + half
        v[i] = (q * half + half) * size + half


@compiled
def _look_up(quads, u, v, background):
    """Interpolated texels of the environment, 0..1, at texel coordinates; `quads` as in `Environment`."""
    byte, texels = np.uint32(255), np.empty(len(u), np.uint32)
    for i in range(len(u)):
        texels[i] = quads[np.uint64(v[i]), np.uint64(u[i])]
    for i in range(len(u)):
        fx, fy = u[i] - np.floor(u[i]), v[i] - np.floor(v[i])
        a, b = np.float32(texels[i] & byte), np.float32(texels[i] >> np.uint32(8) & byte)
        c, d = np.float32(texels[i] >> np.uint32(16) & byte), np.float32(texels[i] >> np.uint32(24))
        top, bottom = a + fx * (b - a), c + fx * (d - c)
        background[i] = (top + fy * (bottom - top)) * np.float32(1 / 255)


@compiled
def _sense(value, signal, gain, shot_noise, read_noise, contrast, key, start):
    """Turn a row of root radiances into grey levels, in place; pixel i of the row draws noise number `start` + i."""
    one = np.float32(1)
    for i in range(len(value)):
        h = np.uint32(np.uint32(np.uint32(start + np.uint32(i)) * np.uint32(0x9E3779B9)) ^ key)
        h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
        h = np.uint32(np.uint32(h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
        h = np.uint32(h ^ (h >> np.uint32(16)))
        total = np.uint32(
            (h & np.uint32(255))
            + ((h >> np.uint32(8)) & np.uint32(255))
            + ((h >> np.uint32(16)) & np.uint32(255))
            + (h >> np.uint32(24))
        )
        noise = (np.float32(total) - np.float32(MEAN_BYTES)) / np.float32(DEVIATION_BYTES)
        s = value[i] * signal[i] * gain
        s += noise * (shot_noise + read_noise * read_noise / (read_noise + s))
        s = min(max(s, np.float32(0)), one)
        s += contrast * s * (one - s)
        value[i] = s * np.float32(255) + np.float32(0.5)
