"""The renderer's fast path: one skinned mesh, lit per vertex, drawn through the true lens over an environment.

A frame is made in two steps. `pose_frame` skins the mesh at the opening and the closing of the shutter and lights its
vertices: every light, the sky included, casts shadows through a height field along its direction. `render_view` then
projects the vertices through the lens, keeps the nearest face at four samples per pixel, each at its own instant of
the exposure (so edges are smooth and fast hands blurred), shades, looks the background up along the true ray of each
pixel and adds the sensor's noise. A pixel depends on its own coordinates only: a region equals the crop of the view.

Radiance is linear; the background, the sensor and the image are encoded by a square root, which makes shot noise
constant. Source: spec synthetic_data.md, "Picture". `raster_reference` says the same in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from lib.compiled import compiled, inlined
from lib.rendered.lighting import illuminate, shade, vertex_normals
from lib.rendered.scene import Scene
from lib.rendered.sensor import expose, noise_key, turn_grid

SAMPLES = np.array([[-3, -1, 1], [1, -3, 5], [3, 1, 7], [-1, 3, 3]]) / 8.0
"""Per sample of a pixel: offset x, y in pixels; instant, 0 at the opening and 1 at the closing of the shutter."""
SUBPIXELS = 256.0
"""Screen positions are multiples of 1/256 px, so that edge functions are exact and meshes have no cracks."""
MAX_ANGLE = 1.9
"""Vertices further from the optical axis than this (rad) are not drawn; the corner of the image is at about 1.65."""
ONE_SURFACE = np.float32(0.008)
"""Samples of a pixel closer together in depth than this (m) see one surface."""
NO_FACE = -1
TILE = 16

Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class FrameState:
    """The posed and lit mesh of one frame, shared by its views."""

    index: int
    vertices: Float[np.ndarray, "2 vertices 3"]
    """World positions (m) at the opening and the closing of the shutter."""
    normals: Float[np.ndarray, "vertices 3"]
    radiance: Float[np.ndarray, "vertices"]
    """Diffuse light that leaves the vertex."""
    highlight: Float[np.ndarray, "vertices"]
    """Unshadowed part of the key light times the gloss of the vertex."""


def pose_frame(scene: Scene, frame: int) -> FrameState:
    """Skin and light the mesh of `scene` at `frame`."""
    mesh, light = scene.mesh, scene.lighting
    half = 0.5 * scene.sensor.shutter * scene.bone_velocity[frame]
    drawn = scene.drawn[frame]
    opening = skin_vertices(mesh.rest_positions, mesh.bone_indices, mesh.bone_weights, scene.bones[frame] - half)
    closing = skin_vertices(mesh.rest_positions, mesh.bone_indices, mesh.bone_weights, scene.bones[frame] + half)
    middle = 0.5 * (opening + closing)
    normals = vertex_normals(middle, mesh.triangles)
    present = np.repeat(drawn, np.diff(mesh.vertex_offsets))
    irradiance, key = illuminate(middle, normals, present, light.directions[frame], light.irradiance[frame])
    return FrameState(frame, np.stack((opening, closing)), normals, mesh.albedo * irradiance / np.pi, mesh.gloss * key)


def render_view(
    scene: Scene, state: FrameState, camera: int, region: Window | None = None
) -> UInt8[np.ndarray, "height width"]:
    """The picture of one camera, or its part `region` = (x0, y0, x1, y1), x1 and y1 exclusive.

    Raises ValueError if the region is empty or leaves the image.
    """
    width, height = scene.rig.camera.width, scene.rig.camera.height
    x0, y0, x1, y1 = region = (0, 0, width, height) if region is None else region
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"region {region} must be (x0, y0, x1, y1) inside the {width}x{height} image; x1, y1 exclusive"
        )
    mesh, frame, sensor = scene.mesh, state.index, scene.sensor
    pose = scene.camera_from_world[frame, camera]
    half = 0.5 * sensor.shutter * scene.camera_velocity[frame, camera]
    screen, distance = project(state.vertices, pose - half, pose + half, scene.lens[camera])
    faces = visible_triangles(mesh.triangles, mesh.triangle_offsets, scene.drawn[frame], screen, distance, region)
    box = bounding_box(faces, mesh.triangles, screen, region)
    tiles = touched_tiles(faces, mesh.triangles, screen, box)
    depth, face = rasterise(faces, mesh.triangles, screen, distance, box, tiles)
    value = shade(state.vertices, state.normals, state.radiance, state.highlight, pose,
                  scene.lighting.directions[frame, 0], distance)  # fmt: skip
    layer, coverage = resolve(depth, face, box, tiles, mesh.triangles, screen, value, mesh.texture_coordinates,
                              mesh.texture_index, mesh.texture_strength, scene.textures)  # fmt: skip
    grid, key = turn_grid(scene.ray_grid[camera], pose), noise_key(scene.seed, frame, camera)
    return expose(region, grid, scene.environment.quads, layer, coverage, box, scene.exposure[frame],
                  sensor.shot_noise, sensor.read_noise, sensor.contrast, key, width)  # fmt: skip


def render_frame(scene: Scene, frame: int) -> UInt8[np.ndarray, "4 height width"]:
    """All four views of one frame."""
    state = pose_frame(scene, frame)
    return np.stack([render_view(scene, state, camera) for camera in range(4)])


@compiled
def skin_vertices(rest_positions, bone_indices, bone_weights, bones):
    """World positions (V, 3) of vertices that follow up to five bones (B, 3, 4) each."""
    points = np.empty_like(rest_positions)
    for v in range(len(rest_positions)):
        rest_x, rest_y, rest_z = rest_positions[v]
        x, y, z = 0.0, 0.0, 0.0
        for k in range(bone_indices.shape[1]):
            weight = bone_weights[v, k]
            if weight > 0.0:
                bone = bones[bone_indices[v, k]]
                x += weight * (bone[0, 0] * rest_x + bone[0, 1] * rest_y + bone[0, 2] * rest_z + bone[0, 3])
                y += weight * (bone[1, 0] * rest_x + bone[1, 1] * rest_y + bone[1, 2] * rest_z + bone[1, 3])
                z += weight * (bone[2, 0] * rest_x + bone[2, 1] * rest_y + bone[2, 2] * rest_z + bone[2, 3])
        points[v] = x, y, z
    return points


@compiled
def project(vertices, camera_from_world_opening, camera_from_world_closing, lens):
    """Screen positions (V, 4: x, y at the opening, x, y at the closing) and distances (V), negative where not drawn.

    `lens` is fx fy cx cy k1..k6 p1 p2 of a `Fisheye62`.
    """
    screen, distance = np.empty((vertices.shape[1], 4)), np.zeros(vertices.shape[1])
    for instant in range(2):
        pose = camera_from_world_closing if instant else camera_from_world_opening
        for v in range(vertices.shape[1]):
            px, py, pz = vertices[instant, v]
            x = pose[0, 0] * px + pose[0, 1] * py + pose[0, 2] * pz + pose[0, 3]
            y = pose[1, 0] * px + pose[1, 1] * py + pose[1, 2] * pz + pose[1, 3]
            z = pose[2, 0] * px + pose[2, 1] * py + pose[2, 2] * pz + pose[2, 3]
            radius = np.sqrt(x * x + y * y) + 1e-12
            angle = np.arctan2(radius, z)
            u, w = _distort(x * angle / radius, y * angle / radius, lens)
            screen[v, 2 * instant] = np.floor(u * SUBPIXELS + 0.5) / SUBPIXELS
            screen[v, 2 * instant + 1] = np.floor(w * SUBPIXELS + 0.5) / SUBPIXELS
            visible = angle < MAX_ANGLE and distance[v] >= 0.0
            distance[v] = distance[v] + 0.5 * np.sqrt(radius * radius + z * z) if visible else -1.0
    return screen, distance


@compiled
def _distort(x, y, lens):
    """Pixel of a point of the equidistant plane (as `lib.cameras.Fisheye62`)."""
    rho2 = x * x + y * y
    radial = lens[9]
    for k in (8, 7, 6, 5, 4):
        radial = radial * rho2 + lens[k]
    bent = 1.0 + radial * rho2
    x, y = x * bent, y * bent
    s2, p1, p2 = x * x + y * y, lens[10], lens[11]
    u = x + 2.0 * p2 * x * y + p1 * (s2 + 2.0 * x * x)
    w = y + 2.0 * p1 * x * y + p2 * (s2 + 2.0 * y * y)
    return u * lens[0] + lens[2], w * lens[1] + lens[3]


@compiled
def visible_triangles(triangles, triangle_offsets, drawn, screen, distance, region):
    """Indices of the triangles of drawn objects that face the camera and touch the region."""
    faces = np.empty(len(triangles), np.int32)
    count = 0
    for part in range(len(drawn)):
        if not drawn[part]:
            continue
        for face in range(triangle_offsets[part], triangle_offsets[part + 1]):
            a, b, c = _corners(triangles, face)
            if distance[a] < 0.0 or distance[b] < 0.0 or distance[c] < 0.0:
                continue
            x0, y0, x1, y1 = _extent(screen, a, b, c)
            if x1 < region[0] - 1 or x0 > region[2] or y1 < region[1] - 1 or y0 > region[3]:
                continue
            if _front(screen, a, b, c, 0) or _front(screen, a, b, c, 2):
                faces[count] = face
                count += 1
    return faces[:count]


@compiled
def _front(screen, a, b, c, instant):
    """Whether a triangle shows its outer side: clockwise on the screen, whose y axis points down."""
    ax, ay = screen[a, instant], screen[a, instant + 1]
    bx, by = screen[b, instant] - ax, screen[b, instant + 1] - ay
    cx, cy = screen[c, instant] - ax, screen[c, instant + 1] - ay
    return bx * cy - by * cx < 0.0


@compiled
def _extent(screen, a, b, c):
    """Least and largest x and y (x0, y0, x1, y1) of a triangle during the exposure."""
    x0 = min(screen[a, 0], screen[b, 0], screen[c, 0], screen[a, 2], screen[b, 2], screen[c, 2])
    x1 = max(screen[a, 0], screen[b, 0], screen[c, 0], screen[a, 2], screen[b, 2], screen[c, 2])
    y0 = min(screen[a, 1], screen[b, 1], screen[c, 1], screen[a, 3], screen[b, 3], screen[c, 3])
    y1 = max(screen[a, 1], screen[b, 1], screen[c, 1], screen[a, 3], screen[b, 3], screen[c, 3])
    return x0, y0, x1, y1


@compiled
def bounding_box(faces, triangles, screen, region):
    """The part (x0, y0, x1, y1) of the region that the triangles may cover; empty without triangles."""
    x0, y0, x1, y1 = 1e9, 1e9, -1e9, -1e9
    for face in faces:
        a, b, c = _corners(triangles, face)
        left, top, right, bottom = _extent(screen, a, b, c)
        x0, y0, x1, y1 = min(x0, left), min(y0, top), max(x1, right), max(y1, bottom)
    left, top = max(region[0], int(np.floor(x0))), max(region[1], int(np.floor(y0)))
    return left, top, max(left, min(region[2], int(np.ceil(x1)) + 1)), max(top, min(region[3], int(np.ceil(y1)) + 1))


@compiled
def touched_tiles(faces, triangles, screen, box):
    """Which squares of `TILE` pixels of the box the triangles may cover; only these are cleared and resolved."""
    tiles = np.zeros((-((box[1] - box[3]) // TILE), -((box[0] - box[2]) // TILE)), np.bool_)
    for face in faces:
        a, b, c = _corners(triangles, face)
        x0, y0, x1, y1 = _extent(screen, a, b, c)
        left, top = max(int(np.floor(x0)) - box[0], 0) // TILE, max(int(np.floor(y0)) - box[1], 0) // TILE
        right, bottom = int(np.ceil(x1)) - box[0], int(np.ceil(y1)) - box[1]
        tiles[top : max(bottom // TILE + 1, 0), left : max(right // TILE + 1, 0)] = True
    return tiles


@compiled
def rasterise(faces, triangles, screen, distance, box, tiles):
    """Distance and index of the nearest face at each sample of the pixels of `box`, (4, h, w), valid in the tiles."""
    x0, y0, x1, y1 = box
    depth = np.empty((len(SAMPLES), y1 - y0, x1 - x0), np.float32)
    nearest = np.empty(depth.shape, np.int32)
    for row, column in np.argwhere(tiles) * TILE:
        depth[:, row : row + TILE, column : column + TILE] = np.inf
        nearest[:, row : row + TILE, column : column + TILE] = NO_FACE
    for face in faces:
        a, b, c = _corners(triangles, face)
        for s in range(len(SAMPLES)):
            dx, dy, instant = SAMPLES[s]
            ax, ay = _at(screen, a, instant)
            bx, by = _at(screen, b, instant)
            cx, cy = _at(screen, c, instant)
            area = (cx - ax) * (by - ay) - (cy - ay) * (bx - ax)
            if area <= 0.0:
                continue
            left, right = max(int(np.ceil(min(ax, bx, cx) - dx)), x0), min(int(np.floor(max(ax, bx, cx) - dx)) + 1, x1)
            top, bottom = max(int(np.ceil(min(ay, by, cy) - dy)), y0), min(int(np.floor(max(ay, by, cy) - dy)) + 1, y1)
            if left >= right or top >= bottom:
                continue
            za, zb, zc = distance[a] / area, distance[b] / area, distance[c] / area
            for y in range(top, bottom):
                wa = (left + dx - bx) * (cy - by) - (y + dy - by) * (cx - bx)
                wb = (left + dx - cx) * (ay - cy) - (y + dy - cy) * (ax - cx)
                wc = (left + dx - ax) * (by - ay) - (y + dy - ay) * (bx - ax)
                row_depth = depth[s, y - y0, left - x0 : right - x0]
                row_nearest = nearest[s, y - y0, left - x0 : right - x0]
                for i in range(right - left):  # vectorised, since no pixel needs the one before it
                    ea, eb, ec = wa + i * (cy - by), wb + i * (ay - cy), wc + i * (by - ay)
                    if (ea >= 0.0) & (eb >= 0.0) & (ec >= 0.0):
                        z = np.float32(ea * za + eb * zb + ec * zc)
                        if z < row_depth[i]:
                            row_depth[i], row_nearest[i] = z, face
    return depth, nearest


@compiled
def resolve(
    depth, nearest, box, tiles, triangles, screen, value, texture_coordinates, texture_index, texture_strength, textures
):
    """Mean radiance of the covered samples of each pixel of `box` and how many of the four are covered.

    A pixel whose samples see one surface is shaded once, at its centre; any other is shaded sample by sample.
    """
    height, width = depth.shape[1:]
    radiance = np.zeros((height, width), np.float32)
    coverage = np.zeros((height, width), np.uint8)
    for top, left in np.argwhere(tiles) * TILE:
        for row in range(top, min(top + TILE, height)):
            for column in range(left, min(left + TILE, width)):
                total, covered = 0.0, 0
                low, high = np.float32(np.inf), np.float32(0.0)
                for s in range(len(SAMPLES)):
                    if nearest[s, row, column] != NO_FACE:
                        covered += 1
                        low, high = min(low, depth[s, row, column]), max(high, depth[s, row, column])
                x, y = column + box[0], row + box[1]
                if covered == len(SAMPLES) and high - low < ONE_SURFACE:
                    total = _texel(nearest[0, row, column], x, y, 0.5, triangles, screen, value,
                                   texture_coordinates, texture_index, texture_strength, textures)  # fmt: skip
                    total *= len(SAMPLES)
                elif covered:
                    for s in range(len(SAMPLES)):
                        if nearest[s, row, column] != NO_FACE:
                            dx, dy, instant = SAMPLES[s]
                            total += _texel(nearest[s, row, column], x + dx, y + dy, instant, triangles, screen, value,
                                            texture_coordinates, texture_index, texture_strength, textures)  # fmt: skip
                if covered:
                    radiance[row, column] = total / covered
                    coverage[row, column] = covered
    return radiance, coverage


@compiled
def _at(screen, v, instant):
    """Position of a vertex on the screen at an instant of the exposure."""
    return (
        screen[v, 0] + instant * (screen[v, 2] - screen[v, 0]),
        screen[v, 1] + instant * (screen[v, 3] - screen[v, 1]),
    )


@inlined
def _corners(triangles, face):
    """The vertices of a triangle, unsigned, since an index that may be negative costs a check at every use."""
    a, b, c = triangles[np.uint64(face)]
    return np.uint64(a), np.uint64(b), np.uint64(c)


@inlined
def _texel(
    face, px, py, instant, triangles, screen, value, texture_coordinates, texture_index, texture_strength, textures
):
    """Radiance of a face at a point of the screen: interpolated from its corners, times its texture."""
    a, b, c = _corners(triangles, face)
    ax, ay = _at(screen, a, instant)
    bx, by = _at(screen, b, instant)
    cx, cy = _at(screen, c, instant)
    wa = max((px - bx) * (cy - by) - (py - by) * (cx - bx), 0.0) + 1e-9
    wb = max((px - cx) * (ay - cy) - (py - cy) * (ax - cx), 0.0) + 1e-9
    wc = max((px - ax) * (by - ay) - (py - ay) * (bx - ax), 0.0) + 1e-9
    total = wa + wb + wc
    wa, wb, wc = wa / total, wb / total, wc / total
    ta, tb, tc = texture_coordinates[a], texture_coordinates[b], texture_coordinates[c]
    detail = _trilinear(
        textures, texture_index[a],
        wa * ta[0] + wb * tb[0] + wc * tc[0],
        wa * ta[1] + wb * tb[1] + wc * tc[1],
        wa * ta[2] + wb * tb[2] + wc * tc[2],
    )  # fmt: skip
    strength = wa * texture_strength[a] + wb * texture_strength[b] + wc * texture_strength[c]
    return (wa * value[a] + wb * value[b] + wc * value[c]) * (1.0 + strength * detail)


@inlined
def _trilinear(textures, index, x, y, z):
    """Value in -1..1 of a solid texture, which repeats, at a position in texels."""
    left, top, front = np.floor(x), np.floor(y), np.floor(z)
    fx, fy, fz = x - left, y - top, z - front
    mask = textures.shape[1] - 1
    x0, y0, z0 = np.uint64(int(left) & mask), np.uint64(int(top) & mask), np.uint64(int(front) & mask)
    x1, y1, z1 = np.uint64(int(left) + 1 & mask), np.uint64(int(top) + 1 & mask), np.uint64(int(front) + 1 & mask)
    t = textures[index]
    near = (t[x0, y0, z0] * (1.0 - fx) + t[x1, y0, z0] * fx) * (1.0 - fy) + (
        t[x0, y1, z0] * (1.0 - fx) + t[x1, y1, z0] * fx
    ) * fy
    far = (t[x0, y0, z1] * (1.0 - fx) + t[x1, y0, z1] * fx) * (1.0 - fy) + (
        t[x0, y1, z1] * (1.0 - fx) + t[x1, y1, z1] * fx
    ) * fy
    return (near * (1.0 - fz) + far * fz) / 127.0
