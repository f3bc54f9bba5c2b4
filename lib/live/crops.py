"""Crops of hands, compiled: what `lib.crops` says, for a tracker that has milliseconds.

Views are chosen and crop cameras placed as there, in float64. Where a crop's pixels lie in its source comes from a
table of the lens: of the radius in its picture by the slope of the ray, linear between entries.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lib.cameras import Fisheye62, KannalaBrandt, Pinhole, PosedCamera
from lib.compiled import compiled
from lib.crops import CROP_SIZE, FILL, MAX_VIEWS, MIN_FOCAL_PX, MIN_LANDMARKS_SEEN, Crops, make_crops, sample
from lib.hands import HANDS, NUM_FINGER_JOINTS, NUM_LANDMARKS, RIGHT, HandModel, PosedHands
from lib.multistage.fit import HandPose
from lib.multistage.kinematics import FitSkeleton, dot, lens_of, pose_landmarks, project_point

ENTRIES = 1 << 13
"""Of a lens's table: enough for a thousandth of a pixel."""
BEHIND = -1e4
"""Where pixels lie whose rays point backwards."""
_POSTURES = 3
_POINTS = _POSTURES * NUM_LANDMARKS


class PreparedHand(NamedTuple):
    """What crops ask of a hand model: its skeleton, and its joint angles in mid-range."""

    skeleton: FitSkeleton
    middle: Float[np.ndarray, "20"]

    @classmethod
    def of(cls, model: HandModel) -> PreparedHand:
        """To be made once for many frames."""
        return cls(FitSkeleton.of(model), model.mid_range_angles[:NUM_FINGER_JOINTS].double().cpu().numpy())

    def landmarks(self, pose: HandPose) -> Float[Tensor, "2 21 3"]:
        """What `HandPose.landmarks` says of both hands, float64."""
        landmarks = np.empty((HANDS, NUM_LANDMARKS, 3))
        fields = pose.joint_angles, pose.world_from_wrist
        _pose_both(self.skeleton, *(np.ascontiguousarray(field.numpy()) for field in fields), landmarks)
        return torch.from_numpy(landmarks)


def crop_hands(
    images: UInt8[np.ndarray, "cameras height width"],
    cameras: PosedCamera,
    mounting_angles: Float[Tensor, "cameras"],
    hands: PosedHands,
    prepared: PreparedHand,
) -> tuple[Int[Tensor, "tracked"], Crops]:
    """`lib.crops.make_crops` of hands that one camera sees; the same function for a lens that is not compiled."""
    if not isinstance(cameras.camera, Pinhole | KannalaBrandt | Fisheye62):
        return make_crops(images, cameras, mounting_angles, hands, min_views=1)
    lens, size = lens_of(cameras.camera), cameras.camera.size_px.numpy()
    poses = np.ascontiguousarray(cameras.world_from_camera.numpy())
    angles = np.ascontiguousarray(hands.joint_angles[:, :NUM_FINGER_JOINTS].numpy())
    pose = angles, np.ascontiguousarray(hands.wrists.numpy()), hands.exists.numpy()
    sources, focal, rotations = _choose(*prepared, *pose, lens, size, poses, mounting_angles.numpy())
    tracked = (sources[:, 0] >= 0).nonzero()[0]
    pictures = np.zeros((len(tracked), MAX_VIEWS, CROP_SIZE, CROP_SIZE), np.uint8)
    pixels = np.empty((CROP_SIZE, CROP_SIZE, 2), np.float32)
    two = sources[tracked, 1] >= 0
    for row, hand in enumerate(tracked):
        for view in range(1 + int(two[row])):
            source = sources[hand, view]
            turned = poses[source, :3, :3].T @ rotations[hand, view]
            _fill(lens[source], _table(lens[source].tobytes()), turned, focal[hand, view], pixels)
            pictures[row, view] = sample(images[source], pixels)
        if not two[row]:
            pictures[row, 1] = pictures[row, 0]
    return torch.from_numpy(tracked), _crops(
        pictures, focal[tracked], rotations[tracked], poses, sources[tracked], tracked
    )


def _crops(
    pictures: UInt8[np.ndarray, "tracked 2 size size"],
    focal: Float[np.ndarray, "tracked 2"],
    rotations: Float[np.ndarray, "tracked 2 3 3"],
    poses: Float[np.ndarray, "cameras 4 4"],
    sources: Int[np.ndarray, "tracked 2"],
    tracked: Int[np.ndarray, "tracked"],
) -> Crops:
    """The network's input; a missing second view repeats the first."""
    two = sources[:, 1] >= 0
    sources = np.where(sources < 0, sources[:, :1], sources)
    one = ~two[:, None]
    focal = np.where(one * [False, True], focal[:, :1], focal)
    rotations = np.where((one * [False, True])[..., None, None], rotations[:, :1], rotations)
    back = rotations.swapaxes(-1, -2)  # the inverse of a rotation, mirrored or not
    camera_from_world = np.zeros((*sources.shape, 4, 4))
    camera_from_world[..., :3, :3], camera_from_world[..., 3, 3] = back, 1.0
    camera_from_world[..., :3, 3] = -(back @ poses[sources, :3, 3, None])[..., 0]
    return Crops(
        images=torch.from_numpy(pictures).float().div_(255),
        focal_px=torch.from_numpy(focal).float(),
        camera_from_world=torch.from_numpy(camera_from_world).float(),
        hand=torch.from_numpy(tracked),
        two_views=torch.from_numpy(two),
    )


@compiled
def _choose(skeleton, middle, angles, wrists, exists, lens, size, poses, mounting):
    """The first two cameras that see each hand (-1: none), and focal length and axes of their crop cameras."""
    cameras = len(poses)
    sources = np.full((HANDS, MAX_VIEWS), -1)
    focal, rotations = np.ones((HANDS, MAX_VIEWS)), np.zeros((HANDS, MAX_VIEWS, 3, 3))
    points, turn = np.empty((_POINTS, 3)), np.empty((3, 3))
    for hand in range(HANDS):
        if not exists[hand]:
            continue
        _crop_points(skeleton, middle, angles[hand], wrists[hand], points)
        taken = 0
        for camera in range(cameras):
            if taken == MAX_VIEWS or _seen(points, poses[camera], lens[camera], size[camera]) < MIN_LANDMARKS_SEEN:
                continue
            length = _place(points, poses[camera], mounting[camera], hand == RIGHT, turn)
            if length < MIN_FOCAL_PX:
                continue
            sources[hand, taken], focal[hand, taken], rotations[hand, taken] = camera, length, turn
            taken += 1
    return sources, focal, rotations


@compiled
def _pose_both(skeleton, angles, wrists, landmarks):
    """Write the landmarks of both hands."""
    local, unused = np.empty((NUM_LANDMARKS, 3)), np.empty((NUM_LANDMARKS, 3, NUM_FINGER_JOINTS))
    for hand in range(HANDS):
        pose_landmarks(skeleton, angles[hand], local, unused)
        for landmark in range(NUM_LANDMARKS):
            for row in range(3):
                landmarks[hand, landmark, row] = dot(wrists[hand, row], local[landmark]) + wrists[hand, row, 3]


@compiled
def _crop_points(skeleton, middle, angles, wrist, points):
    """Write the points that a crop must hold: as posed, with joints in mid-range, and open."""
    local, unused = np.empty((NUM_LANDMARKS, 3)), np.empty((NUM_LANDMARKS, 3, NUM_FINGER_JOINTS))
    for posture in range(_POSTURES):
        pose_landmarks(skeleton, angles if posture == 0 else middle if posture == 1 else 0.0 * middle, local, unused)
        for landmark in range(NUM_LANDMARKS):
            for row in range(3):
                points[posture * NUM_LANDMARKS + landmark, row] = dot(wrist[row], local[landmark]) + wrist[row, 3]


@compiled
def _seen(points, pose, lens, size):
    """How many landmarks lie before a camera and in its picture."""
    count, point, pixel, unused = 0, np.empty(3), np.empty(2), np.empty((2, 3))
    for landmark in range(NUM_LANDMARKS):
        _to_camera(pose, points[landmark], point)
        if point[2] <= 0.0:
            continue
        project_point(lens, point, pixel, unused)
        count += 0 <= pixel[0] <= size[0] - 1 and 0 <= pixel[1] <= size[1] - 1
    return count


@compiled
def _to_camera(pose, point, out):
    for row in range(3):
        out[row] = 0.0
        for axis in range(3):
            out[row] += pose[axis, row] * (point[axis] - pose[axis, 3])


@compiled
def _place(points, pose, mounting, mirrored, turn):
    """Write the axes of a crop camera in the world; its focal length, 0 if a point lies behind it. Source: §3.1."""
    center, target, local = np.empty(3), np.empty(3), np.empty((3, 3))
    for axis in range(3):
        low, high = np.inf, -np.inf
        for point in range(_POINTS):
            low, high = min(low, points[point, axis]), max(high, points[point, axis])
        center[axis] = (low + high) / 2
    _to_camera(pose, center, target)
    length = np.sqrt(dot(target, target))
    x, y, z = target[0] / length, target[1] / length, target[2] / length
    share, cosine, sine = 1 / (1 + z), np.cos(mounting), np.sin(mounting)
    aimed = ((1 - x * x * share, -x * y * share, x), (-x * y * share, 1 - y * y * share, y), (-x, -y, z))
    for row in range(3):
        local[row, 0] = aimed[row][0] * cosine + aimed[row][1] * sine
        local[row, 1] = aimed[row][1] * cosine - aimed[row][0] * sine
        local[row, 2] = aimed[row][2]
    for row in range(3):
        for column in range(3):
            turn[row, column] = (
                pose[row, 0] * local[0, column] + pose[row, 1] * local[1, column] + pose[row, 2] * local[2, column]
            )
        if mirrored:
            turn[row, 0] = -turn[row, 0]
    widest = 0.0
    for point in range(_POINTS):
        x, y, z = 0.0, 0.0, 0.0
        for axis in range(3):
            away = points[point, axis] - pose[axis, 3]
            x, y, z = x + turn[axis, 0] * away, y + turn[axis, 1] * away, z + turn[axis, 2] * away
        if not z > 0.0:
            return 0.0
        widest = max(widest, abs(x / z), abs(y / z))
    return FILL * (CROP_SIZE - 1) / 2 / widest


@compiled
def _fill(lens, table, turned, focal, pixels):
    """Write where the pixels of a crop lie in their source: in its picture, or far outside behind its camera."""
    middle, pinhole = (CROP_SIZE - 1) / 2, lens[16] != 0.0
    for row in range(CROP_SIZE):
        v = (row - middle) / focal
        for column in range(CROP_SIZE):
            u = (column - middle) / focal
            z = turned[2, 0] * u + turned[2, 1] * v + turned[2, 2]
            if not z > 0.0:
                pixels[row, column, 0], pixels[row, column, 1] = BEHIND, BEHIND
                continue
            x = (turned[0, 0] * u + turned[0, 1] * v + turned[0, 2]) / z
            y = (turned[1, 0] * u + turned[1, 1] * v + turned[1, 2]) / z
            if not pinhole:
                slope = np.sqrt(x * x + y * y)
                place = slope / (1.0 + slope) * ENTRIES
                entry = int(place)
                radial = table[entry] + (place - entry) * (table[entry + 1] - table[entry])
                x, y = x * radial, y * radial
                s2, p1, p2 = x * x + y * y, lens[10], lens[11]
                x, y = (
                    x + 2.0 * p2 * x * y + p1 * (s2 + 2.0 * x * x) + lens[12] * s2 + lens[13] * s2 * s2,
                    y + 2.0 * p1 * x * y + p2 * (s2 + 2.0 * y * y) + lens[14] * s2 + lens[15] * s2 * s2,
                )
            pixels[row, column, 0], pixels[row, column, 1] = x * lens[0] + lens[2], y * lens[1] + lens[3]


@lru_cache(maxsize=64)
def _table(lens: bytes) -> Float[np.ndarray, "entries"]:
    """By slope / (1 + slope) of a ray: the radius in the picture, before tangential terms, per slope."""
    numbers, share = np.frombuffer(lens), np.arange(ENTRIES + 1) / ENTRIES
    with np.errstate(divide="ignore"):
        slope = share / (1.0 - share)
    angle = np.arctan(slope)
    radial = angle * (1.0 + sum(k * angle ** (2 * order) for order, k in enumerate(numbers[4:10], start=1)))
    return np.divide(radial, slope, out=np.ones_like(slope), where=slope > 0)
