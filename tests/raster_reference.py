"""The renderer once more in plain NumPy: slow, to be read and to test `lib.rendered.raster` against.

Both give the same grey levels, up to one where rounding of float32 and float64 falls to different sides.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8

from lib.rendered import lighting
from lib.rendered.lighting import FIELD, LIFT, TEXEL, WRAP
from lib.rendered.raster import MAX_ANGLE, NO_FACE, ONE_SURFACE, SAMPLES, SUBPIXELS
from lib.rendered.scene import Scene
from lib.rendered.sensor import DEVIATION_BYTES, GRID_PX, MEAN_BYTES, noise_key


def render_view(scene: Scene, frame: int, camera: int) -> UInt8[np.ndarray, "height width"]:
    """The picture of one camera, as `lib.rendered.raster.render_view`."""
    half = 0.5 * scene.sensor.shutter
    opening, closing = (_skin(scene, scene.bones[frame] + side * half * scene.bone_velocity[frame]) for side in (-1, 1))
    radiance, highlight, normals = _light(scene, frame, (opening + closing) / 2)
    pose, change = scene.camera_from_world[frame, camera], half * scene.camera_velocity[frame, camera]
    screen_opening, distance_opening = _project(scene, camera, _move(pose - change, opening))
    screen_closing, distance_closing = _project(scene, camera, _move(pose + change, closing))
    screen, distance = np.stack((screen_opening, screen_closing)), (distance_opening + distance_closing) / 2
    eye = -pose[:, :3].T @ pose[:, 3]
    middle = _unit((eye - opening) / distance[:, None] + scene.lighting.directions[frame, 0])
    value = radiance + highlight * np.maximum((middle * normals).sum(axis=1), 0) ** 14
    depth, face = _rasterise(scene, frame, screen, distance)
    layer, coverage = _resolve(scene, depth, face, screen, value)
    behind = _background(scene, camera, pose) ** 2
    seen = np.sqrt(behind + coverage * (layer - behind))
    return _sense(scene, frame, camera, seen)


def _skin(scene: Scene, bones: np.ndarray) -> Float[np.ndarray, "vertices 3"]:
    mesh = scene.mesh
    blended = (mesh.bone_weights[..., None, None] * bones[mesh.bone_indices]).sum(axis=1)
    return _move_each(blended, mesh.rest_positions)


def _move(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ pose[:, :3].T + pose[:, 3]


def _move_each(poses: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.einsum("vij,vj->vi", poses[..., :3], points) + poses[..., 3]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _light(scene: Scene, frame: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Diffuse radiance, highlight and normal of each vertex."""
    mesh = scene.mesh
    corners = points[mesh.triangles]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(points)
    for corner in range(3):
        np.add.at(normals, mesh.triangles[:, corner], face_normals)
    normals = _unit(normals)
    present = np.repeat(scene.drawn[frame], np.diff(mesh.vertex_offsets))
    received = [
        strength
        * np.maximum((normals @ direction + WRAP) / (1 + WRAP), 0)
        * _visibility(points, normals, present, direction)
        for direction, strength in zip(scene.lighting.directions[frame], scene.lighting.irradiance[frame], strict=True)
    ]
    return mesh.albedo * np.sum(received, axis=0) / np.pi, mesh.gloss * received[0], normals


def _visibility(points: np.ndarray, normals: np.ndarray, present: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Share of a light that reaches each vertex past the others, from a height field along the light's direction."""
    plane = np.stack(lighting.perpendicular(direction), axis=-1)
    field = np.full((FIELD, FIELD), -1e9, np.float32)
    cells = np.floor(points[present] @ plane / TEXEL).astype(int)
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        column, row = ((cells + step) % FIELD).T
        np.maximum.at(field, (row, column), (points[present] @ direction).astype(np.float32))
    cosine = normals @ direction
    tangent = np.sqrt(np.maximum(1 - cosine**2, 0)) / np.maximum(cosine, 0.25)
    lifted = points + LIFT * normals
    height = lifted @ direction + TEXEL * (0.6 + 1.5 * np.minimum(tangent, 2.5))
    cells, shares = np.floor(lifted @ plane / TEXEL), np.modf(lifted @ plane / TEXEL)[0] % 1
    visible = 0
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        column, row = ((cells.astype(int) + step) % FIELD).T
        unblocked = np.clip(1 - (field[row, column] - height) / lighting.PENUMBRA, 0, 1)
        visible = visible + unblocked * np.where(step, shares, 1 - shares).prod(axis=1)
    return np.where(present, visible, 0)


def _project(scene: Scene, camera: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Screen positions, rounded, and distances of points in camera axes; the distance is NaN beyond `MAX_ANGLE`."""
    pixels = scene.rig.camera[camera].project(torch.from_numpy(points)).numpy()
    angle = np.arctan2(np.hypot(points[:, 0], points[:, 1]), points[:, 2])
    distance = np.where(angle < MAX_ANGLE, np.linalg.norm(points, axis=1), np.nan)
    return np.floor(pixels * SUBPIXELS + 0.5) / SUBPIXELS, distance


def _rasterise(scene: Scene, frame: int, screen: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance and index of the nearest face at each sample of each pixel (height, width, samples)."""
    size = (scene.rig.camera.height, scene.rig.camera.width)
    depth, nearest = np.full((*size, len(SAMPLES)), np.float32(np.inf)), np.full((*size, len(SAMPLES)), NO_FACE)
    drawn = np.repeat(scene.drawn[frame], np.diff(scene.mesh.triangle_offsets))
    drawn &= ~np.isnan(distance[scene.mesh.triangles]).any(axis=1)
    _, areas = _edge_functions(screen[:, scene.mesh.triangles], np.zeros(1), np.zeros(1))
    for face in np.nonzero(drawn & (areas > 0).any(axis=0))[0]:
        corners = scene.mesh.triangles[face]
        for s, (dx, dy, instant) in enumerate(SAMPLES):
            positions = screen[0, corners] + instant * (screen[1, corners] - screen[0, corners]) - (dx, dy)
            low = np.maximum(np.ceil(positions.min(axis=0)), 0).astype(int)
            high = np.minimum(np.floor(positions.max(axis=0)) + 1, size[::-1]).astype(int)
            if (low >= high).any():
                continue
            y, x = np.mgrid[low[1] : high[1], low[0] : high[0]]
            weights, area = _edge_functions(positions, x, y)
            if area <= 0:
                continue
            z = (weights * distance[corners] / area).sum(axis=-1).astype(np.float32)
            window = np.s_[low[1] : high[1], low[0] : high[0], s]
            closer = (weights >= 0).all(axis=-1) & (z < depth[window])
            depth[window], nearest[window] = np.where(closer, z, depth[window]), np.where(closer, face, nearest[window])
    return depth, nearest


def _edge_functions(corners: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray | np.float64]:
    """Twice the areas that points (x, y) span with the sides opposite to the corners (..., 3, 2), and of the whole."""
    weights = []
    for first, second in ((1, 2), (2, 0), (0, 1)):
        start, side = corners[..., first, :], corners[..., second, :] - corners[..., first, :]
        weights.append((x - start[..., 0]) * side[..., 1] - (y - start[..., 1]) * side[..., 0])
    b, c = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    return np.stack(weights, axis=-1), c[..., 0] * b[..., 1] - c[..., 1] * b[..., 0]


def _resolve(scene: Scene, depth: np.ndarray, face: np.ndarray, screen: np.ndarray, value: np.ndarray):
    """Mean radiance and share of the covered samples of each pixel."""
    covered = face != NO_FACE
    row, column = np.mgrid[0 : depth.shape[0], 0 : depth.shape[1]]
    one_surface = covered.all(axis=-1)
    one_surface[one_surface] = np.ptp(depth[one_surface], axis=-1) < ONE_SURFACE
    radiance = np.zeros(depth.shape[:2])
    radiance[one_surface] = _texel(
        scene, face[one_surface][:, 0], column[one_surface], row[one_surface], 0.5, screen, value
    )
    for s, (dx, dy, instant) in enumerate(SAMPLES):
        chosen = covered[..., s] & ~one_surface
        shaded = _texel(scene, face[chosen][:, s], column[chosen] + dx, row[chosen] + dy, instant, screen, value)
        radiance[chosen] += shaded / covered[chosen].sum(axis=-1)
    return radiance, covered.mean(axis=-1)


def _texel(
    scene: Scene, face: np.ndarray, x: np.ndarray, y: np.ndarray, instant: float, screen: np.ndarray, value: np.ndarray
):
    """Radiance of faces at points of the screen: interpolated from the corners, times the texture."""
    mesh = scene.mesh
    corners = mesh.triangles[face]
    weights, _ = _edge_functions(screen[0, corners] + instant * (screen[1, corners] - screen[0, corners]), x, y)
    weights = np.maximum(weights, 0) + 1e-9
    weights /= weights.sum(axis=-1, keepdims=True)
    place = (weights[..., None] * mesh.texture_coordinates[corners]).sum(axis=1)
    cell, share = np.floor(place).astype(int), place - np.floor(place)
    detail = 0
    for step in np.ndindex(2, 2, 2):
        i, j, k = ((cell + step) % scene.textures.shape[1]).T
        detail = detail + scene.textures[mesh.texture_index[corners[:, 0]], i, j, k] * np.where(
            step, share, 1 - share
        ).prod(axis=1)
    strength = (weights * mesh.texture_strength[corners]).sum(axis=1)
    return (weights * value[corners]).sum(axis=1) * (1 + strength * detail / 127)


def _background(scene: Scene, camera: int, pose: np.ndarray) -> Float[np.ndarray, "height width"]:
    """Root radiance of the environment along the ray of every pixel."""
    x, y, z = np.moveaxis(_interpolated_grid(scene, camera)[..., :3] @ pose[:, :3], -1, 0)
    scale = np.abs(x) + np.abs(y) + np.abs(z)
    p, q = x / scale, z / scale
    p, q = np.where(y >= 0, p, np.copysign(1 - np.abs(q), p)), np.where(y >= 0, q, np.copysign(1 - np.abs(p), q))
    texture = scene.environment.texture / 255
    column, row = ((side / 2 + 0.5) * (len(texture) - 2) + 0.5 for side in (p, q))
    j, i = np.floor(column).astype(int), np.floor(row).astype(int)
    fx, fy = column - j, row - i
    upper = texture[i, j] + fx * (texture[i, j + 1] - texture[i, j])
    lower = texture[i + 1, j] + fx * (texture[i + 1, j + 1] - texture[i + 1, j])
    return upper + fy * (lower - upper)


def _interpolated_grid(scene: Scene, camera: int) -> Float[np.ndarray, "height width 4"]:
    """Rays in camera axes and remaining signal of all pixels."""
    grid = scene.ray_grid[camera]
    row, column = np.mgrid[0 : scene.rig.camera.height, 0 : scene.rig.camera.width]
    i, j, fy, fx = row // GRID_PX, column // GRID_PX, row % GRID_PX / GRID_PX, column % GRID_PX / GRID_PX
    left = grid[i, j] + fy[..., None] * (grid[i + 1, j] - grid[i, j])
    right = grid[i, j + 1] + fy[..., None] * (grid[i + 1, j + 1] - grid[i, j + 1])
    return left + fx[..., None] * (right - left)


def _sense(scene: Scene, frame: int, camera: int, seen: np.ndarray) -> UInt8[np.ndarray, "height width"]:
    """Grey levels of root radiances: exposure, vignetting, noise, tone curve."""
    sensor = scene.sensor
    signal = seen * _interpolated_grid(scene, camera)[..., 3] * np.sqrt(scene.exposure[frame])
    h = np.arange(seen.size, dtype=np.uint32).reshape(seen.shape) * np.uint32(0x9E3779B9) ^ noise_key(
        scene.seed, frame, camera
    )
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
    h = h ^ (h >> np.uint32(16))
    total = sum((h >> np.uint32(shift)) & np.uint32(255) for shift in (0, 8, 16, 24))
    noise = (total - MEAN_BYTES) / DEVIATION_BYTES
    signal = np.clip(signal + noise * (sensor.shot_noise + sensor.read_noise**2 / (sensor.read_noise + signal)), 0, 1)
    return (255 * (signal + sensor.contrast * signal * (1 - signal)) + 0.5).astype(np.uint8)
