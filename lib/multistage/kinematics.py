"""The posed hand and the lenses with their derivatives, compiled: what the pose fit evaluates thousands of times.

The same functions as `lib.hands.HandModel.landmarks` and `lib.cameras.Camera.project`, which the tests hold them to.
Derivatives are analytic; all arrays are float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lib.cameras import Camera, Fisheye62, KannalaBrandt, Pinhole, RadialTangential
from lib.compiled import compiled
from lib.errors import InputError
from lib.hands import NUM_BONES, NUM_FINGER_JOINTS, NUM_LANDMARKS, HandModel

NUM_WRIST = 6
NUM_POSE = NUM_WRIST + NUM_FINGER_JOINTS
"""Parameters of a pose: shift of the wrist (m, world), its turn about world axes (rad), 20 joint angles."""
NUM_PARAMETERS = NUM_POSE + 1
"""The pose, then the scale of the hand."""
LIMIT_MARGIN = np.radians(5.0)
"""Real labels exceed the joint limits by as much."""
NUM_LENS = 17
_PINHOLE = 16  # index of the flag among the numbers of a lens


class FitSkeleton(NamedTuple):
    """A resting left hand and the bounds of its joint angles, which are the limits widened by `LIMIT_MARGIN`."""

    axes: Float[np.ndarray, "20 3"]
    pivots: Float[np.ndarray, "20 3"]
    landmarks: Float[np.ndarray, "21 3"]
    bone_weights: Float[np.ndarray, "21 17"]
    lowest: Float[np.ndarray, "20"]
    highest: Float[np.ndarray, "20"]

    @classmethod
    def of(cls, model: HandModel) -> FitSkeleton:
        """The skeleton of a single hand model."""
        model = model.to("cpu")
        fingers = slice(NUM_FINGER_JOINTS)
        fields = (
            model.joint_rotation_axes[fingers],
            model.joint_rest_positions[fingers],
            model.landmark_rest_positions,
            model.landmark_bone_weights,
            model.joint_limits[fingers, 0] - LIMIT_MARGIN,
            model.joint_limits[fingers, 1] + LIMIT_MARGIN,
        )
        return cls(*(np.ascontiguousarray(field.numpy(), np.float64) for field in fields))


@compiled
def pose_landmarks(skeleton, angles, landmarks, derivative):
    """Write the landmarks (21, 3) of the posed hand in the frame of its wrist and their derivative (21, 3, 20)."""
    axes, pivots = np.empty((NUM_FINGER_JOINTS, 3)), np.empty((NUM_FINGER_JOINTS, 3))
    rotations, shifts = np.zeros((NUM_BONES, 3, 3)), np.zeros((NUM_BONES, 3))
    for bone in range(2):
        for row in range(3):
            rotations[bone, row, row] = 1.0
    turn, rotation, product, shift = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3)), np.empty(3)
    for joint in range(NUM_FINGER_JOINTS):
        finger, place = joint // 4, joint % 4
        if place == 0:
            rotation[:], shift[:] = rotations[0], 0.0
        axis, pivot = skeleton.axes[joint], skeleton.pivots[joint]
        rodrigues(axis, angles[joint], turn)
        for row in range(3):
            axes[joint, row] = dot(rotation[row], axis)
            pivots[joint, row] = dot(rotation[row], pivot) + shift[row]
        multiply(rotation, turn, product)
        rotation[:] = product
        for row in range(3):
            shift[row] = pivots[joint, row] - dot(rotation[row], pivot)
        if place > 0:
            rotations[1 + 3 * finger + place] = rotation
            shifts[1 + 3 * finger + place] = shift
    _skin(skeleton, rotations, shifts, axes, pivots, landmarks, derivative)


@compiled
def _skin(skeleton, rotations, shifts, axes, pivots, landmarks, derivative):
    landmarks[:] = 0.0
    derivative[:] = 0.0
    point = np.empty(3)
    for landmark in range(NUM_LANDMARKS):
        for bone in range(NUM_BONES):
            weight = skeleton.bone_weights[landmark, bone]
            if weight == 0.0:
                continue
            for row in range(3):
                point[row] = dot(rotations[bone, row], skeleton.landmarks[landmark]) + shifts[bone, row]
                landmarks[landmark, row] += weight * point[row]
            if bone < 2:
                continue
            first = 4 * ((bone - 2) // 3)
            for joint in range(first, first + (bone - 2) % 3 + 2):
                axis, pivot = axes[joint], pivots[joint]
                x, y, z = point[0] - pivot[0], point[1] - pivot[1], point[2] - pivot[2]
                derivative[landmark, 0, joint] += weight * (axis[1] * z - axis[2] * y)
                derivative[landmark, 1, joint] += weight * (axis[2] * x - axis[0] * z)
                derivative[landmark, 2, joint] += weight * (axis[0] * y - axis[1] * x)


@compiled
def dot(a, b):
    """Scalar product of two vectors of the space."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@compiled
def multiply(a, b, product):
    """Write the product of two 3x3 matrices."""
    for row in range(3):
        for column in range(3):
            product[row, column] = a[row, 0] * b[0, column] + a[row, 1] * b[1, column] + a[row, 2] * b[2, column]


@compiled
def rodrigues(axis, angle, rotation):
    """Write the rotation by `angle` about a unit axis."""
    sine, cosine = np.sin(angle), np.cos(angle)
    x, y, z = axis
    rotation[0, 0], rotation[1, 1], rotation[2, 2] = cosine, cosine, cosine
    rotation[0, 1], rotation[1, 0] = -sine * z, sine * z
    rotation[0, 2], rotation[2, 0] = sine * y, -sine * y
    rotation[1, 2], rotation[2, 1] = -sine * x, sine * x
    for row in range(3):
        for column in range(3):
            rotation[row, column] += (1.0 - cosine) * axis[row] * axis[column]


def fitted_camera(camera: Camera) -> Camera:
    """The camera in whose pixels the fit compares: for a radial-tangential lens the pinhole that it bends."""
    if not isinstance(camera, RadialTangential):
        return camera
    nothing = camera.distortion[..., :0]
    return Pinhole(camera.width, camera.height, camera.focal_px, camera.center_px, nothing, camera.extent_px)


def lens_of(camera: Camera) -> Float[np.ndarray, "*batch 17"]:
    """fx fy cx cy k1..k6 p1 p2 s1..s4 of cameras, and 1 for a pinhole, 0 for a fisheye.

    Raises InputError for a camera model without compiled projection.
    """
    if not isinstance(camera, Pinhole | KannalaBrandt | Fisheye62):
        raise InputError(
            f"the baseline's fit has no projection for {type(camera).__name__}: track with --method umetrack, or add "
            "one to `project_point`, or let `fitted_camera` stand for it"
        )
    lens = np.zeros((*camera.focal_px.shape[:-1], NUM_LENS))
    lens[..., :2], lens[..., 2:4] = camera.focal_px, camera.center_px
    lens[..., 4 : 4 + camera.num_distortion] = camera.distortion
    lens[..., _PINHOLE] = isinstance(camera, Pinhole)
    return lens


@compiled
def project_point(lens, point, pixel, derivative):
    """Write the pixel (2) of a point in camera coordinates and its derivative (2, 3)."""
    x, y, z = point
    if lens[_PINHOLE]:
        u, v = x / z, y / z
        derivative[0, 0], derivative[0, 1], derivative[0, 2] = 1.0 / z, 0.0, -u / z
        derivative[1, 0], derivative[1, 1], derivative[1, 2] = 0.0, 1.0 / z, -v / z
    else:
        square = max(x * x + y * y, 1e-24)
        radius, distance2 = np.sqrt(square), square + z * z
        stretch = np.arctan2(radius, z) / radius
        bend = (z / distance2 - stretch) / square
        u, v, a, b, c, d = bent(lens, x * stretch, y * stretch)
        xx, xy, yy = stretch + bend * x * x, bend * x * y, stretch + bend * y * y
        xz, yz = -x / distance2, -y / distance2
        derivative[0, 0], derivative[0, 1], derivative[0, 2] = a * xx + b * xy, a * xy + b * yy, a * xz + b * yz
        derivative[1, 0], derivative[1, 1], derivative[1, 2] = c * xx + d * xy, c * xy + d * yy, c * xz + d * yz
    pixel[0], pixel[1] = u * lens[0] + lens[2], v * lens[1] + lens[3]
    for column in range(3):
        derivative[0, column] *= lens[0]
        derivative[1, column] *= lens[1]


@compiled
def bent(lens, x, y):
    """A point of the equidistant plane after the terms of the lens (u, v) and du/dx du/dy dv/dx dv/dy."""
    rho2 = min(x * x + y * y, np.pi**2)
    radial, slope = 0.0, 0.0
    for order in range(9, 3, -1):
        slope = slope * rho2 + radial
        radial = radial * rho2 + lens[order]
    factor = 1.0 + radial * rho2
    slope = 2.0 * (slope * rho2 + radial) if rho2 < np.pi**2 else 0.0
    xx, xy, yy = factor + slope * x * x, slope * x * y, factor + slope * y * y
    x, y = x * factor, y * factor
    s2, p1, p2 = x * x + y * y, lens[10], lens[11]
    u = x + 2.0 * p2 * x * y + p1 * (s2 + 2.0 * x * x) + lens[12] * s2 + lens[13] * s2 * s2
    v = y + 2.0 * p1 * x * y + p2 * (s2 + 2.0 * y * y) + lens[14] * s2 + lens[15] * s2 * s2
    prism_u, prism_v = 2.0 * (lens[12] + 2.0 * lens[13] * s2), 2.0 * (lens[14] + 2.0 * lens[15] * s2)
    a, b = 1.0 + 2.0 * p2 * y + 6.0 * p1 * x + prism_u * x, 2.0 * p2 * x + 2.0 * p1 * y + prism_u * y
    c, d = 2.0 * p1 * y + 2.0 * p2 * x + prism_v * x, 1.0 + 2.0 * p1 * x + 6.0 * p2 * y + prism_v * y
    return u, v, a * xx + b * xy, a * xy + b * yy, c * xx + d * xy, c * xy + d * yy


@compiled
def unproject(lens, pixel, ray):
    """Write the unit ray (3) in camera coordinates whose projection is `pixel`; NaN where Newton finds none."""
    u, v = (pixel[0] - lens[2]) / lens[0], (pixel[1] - lens[3]) / lens[1]
    if lens[_PINHOLE]:
        length = np.sqrt(u * u + v * v + 1.0)
        ray[0], ray[1], ray[2] = u / length, v / length, 1.0 / length
        return
    x, y, error = u, v, np.inf
    for _ in range(30):
        bent_u, bent_v, a, b, c, d = bent(lens, x, y)
        off_u, off_v = bent_u - u, bent_v - v
        error = abs(off_u) + abs(off_v)
        if error < 1e-10:
            break
        determinant = a * d - b * c
        step_x, step_y = (d * off_u - b * off_v) / determinant, (a * off_v - c * off_u) / determinant
        share = min(1.0, 0.2 / np.sqrt(step_x * step_x + step_y * step_y))
        x, y = x - share * step_x, y - share * step_y
    angle = np.sqrt(x * x + y * y)
    if not (error < 1e-6 and angle < np.pi):
        ray[:] = np.nan
        return
    sine = np.sin(angle) / angle if angle > 1e-12 else 1.0
    ray[0], ray[1], ray[2] = x * sine, y * sine, np.cos(angle)
