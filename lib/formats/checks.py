"""Whether what was read can be: numbers, shapes, ranges, hands, lenses and poses. All readers check here.

Every check raises InputError, which names entry and frame (counted from 0), what was expected, what came and, where
there is one, the likely cause. Limits are wide: no headset, hand or label comes near them, errors of unit or
convention exceed them. Metres and radians, unless a message states the unit of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.cameras import Camera
from lib.errors import InputError
from lib.hands import HAND_NAMES, NUM_FINGER_JOINTS, HandModel
from lib.transforms import apply, invert

Json = Any
"""What a JSON file holds where an object is expected: anything."""
HAND_REACH = 0.05, 0.5
"""How far the landmark that is farthest from the wrist may lie from it (m)."""
RIG_SIZE = 0.005, 1.0
"""The largest distance between two cameras of a headset (m)."""
ARM, MAX_WRIST_DISTANCE = 1.0, 3.0
"""What an arm reaches, and the limit for a labelled wrist: distances from the nearest camera (m)."""
MAX_POSITION = 10_000.0
"""Distance of anything from the origin of the world (m)."""
MAX_JOINT_ANGLE = math.pi
"""Of a labelled joint (rad)."""
MAX_SIDE = 16_384
"""Of a picture (px)."""
MAX_SHEAR = 2e-3
"""Of R R^T from the identity: matrices rounded to three decimals pass, a scale of 1.002 does not."""
RIG_MOVES = 0.02, 0.1
"""How far a camera may move within its headset over time (m, and as an entry of a rotation matrix)."""
LIKELY, UNLIKELY, MIN_WRISTS = 0.5, 0.05, 5
"""Shares of the labelled wrists in view and reach: poses are refused where they give less than the second, and more
than the first once inverted. Of fewer wrists nothing is concluded."""
QUARTER_TURN_MARGIN = 1e-3
"""Of a quarter turn: multiples of 1.5708 are not degrees."""


def json_array(
    stored: Json,
    name: str,
    shape: tuple[int | None, ...],
    low: float = -math.inf,
    high: float = math.inf,
    absent: int = 0,
    why: str = "",
) -> Float[Tensor, "..."]:
    """A float64 field whose shape must fit (None: any length), its numbers finite and within low..high.

    `absent`: null may stand for an entry of up to that many leading dimensions; it becomes NaN, and numbers that are
    not finite pass. `why` explains the expected shape.
    """
    value = field(stored, name)
    try:
        tensor = float64(_fill_null(value, shape, absent) if absent else value)
    except (TypeError, ValueError, OverflowError, RuntimeError, RecursionError) as error:
        raise InputError(f"{name} is not an array of numbers with equal rows: {error}") from error
    expected = tuple("any" if length is None else length for length in shape)
    if tensor.ndim != len(shape) or any(e not in ("any", a) for e, a in zip(expected, tensor.shape, strict=True)):
        raise InputError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}{why}")
    if not absent:
        refuse(~torch.isfinite(tensor), f"{name}{{place}} is {{value}}, expected a finite number", tensor)
    refuse((tensor < low) | (tensor > high), f"{name}{{place}} is {{value}}, expected {low:g} to {high:g}", tensor)
    return tensor


REQUIRED = object()


def field(stored: Json, name: str, default: object = REQUIRED):
    """A field of a JSON object. KeyError if it is missing and has no default, InputError if there is no object."""
    if not isinstance(stored, Mapping):
        raise InputError(
            f"not in the expected form: an object with the field '{name}' was expected, got a {type(stored).__name__}"
        )
    return stored[name] if default is REQUIRED else stored.get(name, default)


def whole_number(stored: Json, name: str, low: int, high: int) -> int:
    """A whole number within low..high, which may be written with a point."""
    value = float(json_array(stored, name, (), float(low), float(high)))
    if value != int(value):
        raise InputError(f"{name} is {value}, expected a whole number")
    return int(value)


def whole_numbers(stored: Json, name: str, shape: tuple[int | None, ...], high: int) -> Int[Tensor, "..."]:
    """Indices from 0 to `high`, which may be written with a point."""
    values = json_array(stored, name, shape)
    if values.min() < 0 or values.max() > high or not torch.equal(values, values.round()):
        raise InputError(
            f"{name} must lie in 0..{high}, whole numbers; they reach from {values.min()} to {values.max()}"
        )
    return values.long()


def _fill_null(value: Json, shape: tuple[int | None, ...], depth: int):
    """`value` with NaN in place of null in its first `depth` dimensions below the outermost."""
    if not isinstance(value, list) or depth == 0:
        return value
    inner = shape[1:]
    nan = torch.full([length or 0 for length in inner], torch.nan).tolist()
    return [nan if part is None else _fill_null(part, inner, depth - 1) for part in value]


def float64(values) -> Float[Tensor, "..."]:
    return torch.tensor(values, dtype=torch.float64)


def refuse(wrong: Bool[Tensor, "..."], message: str, values: Tensor) -> None:
    """Raise InputError for the first of the entries that are wrong; the message may show its {place} and {value}."""
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        raise InputError(message.format(place="".join(f"[{i}]" for i in place), value=f"{values[place]:.6g}"))


def check_hand(model: HandModel) -> None:
    """Unit axes, limits in order, weights that sum to one, a hand's size."""
    axes = torch.linalg.vector_norm(model.joint_rotation_axes, dim=-1)
    wrist = torch.arange(len(axes)) >= NUM_FINGER_JOINTS  # may have no axis: nothing turns about it
    wrong = ((axes - 1).abs() > 0.02) & ~(wrist & (axes == 0))
    refuse(wrong, "joint_rotation_axes{place} has length {value}, expected 1", axes)
    low, high = model.joint_limits.unbind(-1)
    refuse(low > high, "joint_limits{place} begins at {value} rad, above its end: expected [low, high]", low)
    names = {"landmark_rest_bone_weights": model.landmark_bone_weights, "dense_bone_weights": model.mesh_bone_weights}
    for name, weights in names.items():
        if weights is not None:
            total = weights.sum(dim=-1)
            refuse((total - 1).abs() > 0.01, f"{name}{{place}} sums to {{value}}, expected 1", total)
    reach = float(torch.linalg.vector_norm(model.landmark_rest_positions, dim=-1).amax())
    if not HAND_REACH[0] <= reach <= HAND_REACH[1]:
        raise InputError(
            f"landmark_rest_positions reach {1000 * reach:.4g} mm from the wrist, expected {1000 * HAND_REACH[0]:g} to "
            f"{1000 * HAND_REACH[1]:g} mm: in metres instead of mm, or a wrong hand_scale?"
        )
    names = {"joint_rest_positions": model.joint_rest_positions, "mesh_vertices": model.mesh_vertices}
    for name, points in names.items():
        farthest = 0.0 if points is None else float(torch.linalg.vector_norm(points, dim=-1).amax())
        if points is not None and not reach / 4 <= farthest <= 4 * reach:
            raise InputError(
                f"{name} reach {1000 * farthest:.4g} mm from the wrist, the landmarks {1000 * reach:.4g} mm: "
                "in another unit than they?"
            )


def check_lens(camera: Camera) -> None:
    """Focal lengths, principal point and distortion fit the picture."""
    size, focal, center = camera.size_px, camera.focal_px, camera.center_px
    image = f"{camera.width}x{camera.height}" if camera.extent_px is None else "own size"
    expected = f"expected 0.05 to 50 times the image's {image}: negative, or not in pixels?"
    refuse(~((focal > 0.05 * size) & (focal < 50 * size)), f"focal length{{place}} is {{value}} px, {expected}", focal)
    outside = ~((center > -0.5 * size) & (center < 1.5 * size))
    refuse(outside, f"principal point{{place}} is {{value}} px, far outside the image's {image}", center)
    distortion = camera.distortion
    refuse(~(distortion.abs() <= 100), "distortion{place} is {value}, expected -100 to 100", distortion)


def check_rigid(
    name: str, parts: Sequence[str], poses: Float[Tensor, "frames parts 4 4"], used: Bool[Tensor, "frames parts"]
) -> None:
    """Rotation and translation alone, not too far away. `parts` name what is posed, in the message."""
    rotation, position, last = poses[..., :3, :3], poses[..., :3, 3], poses[..., 3, :]
    shear = (rotation @ rotation.mT - torch.eye(3, dtype=poses.dtype)).abs().amax((-2, -1))
    rigid = (shear <= MAX_SHEAR) & (torch.linalg.det(rotation) > 0)
    rigid &= (last - float64([0, 0, 0, 1])).abs().amax(-1) <= MAX_SHEAR
    bad = used & ~(rigid & (position.abs().amax(-1) <= MAX_POSITION))
    if bad.any():
        frame, part = bad.nonzero()[0].tolist()
        raise InputError(
            f"{name} of frame {frame}, {parts[part]}, is no rigid motion: expected an orthonormal rotation, a position "
            f"within {MAX_POSITION / 1000:g} km and the last row 0 0 0 1{_cause(poses[frame, part])}"
        )


def _cause(pose: Float[Tensor, "4 4"]) -> str:
    """Why a pose may be no rigid motion, to be added to a message."""
    rotation = pose[:3, :3]
    scale = float((rotation @ rotation.mT).diagonal().mean().sqrt())
    if pose[3, :3].abs().amax() > MAX_SHEAR:
        return "; transposed?"
    if torch.linalg.det(rotation) < 0:
        return "; mirrored? (right hands are stored unmirrored)"
    if abs(scale - 1) > MAX_SHEAR / 2 and (rotation / scale @ (rotation / scale).mT - torch.eye(3)).abs().amax() < 0.01:
        return f"; scaled by {scale:.4g}?"
    return ""


def check_rotation(name: str, quaternion_wxyz: Float[Tensor, "4"]) -> None:
    """A unit quaternion; NaN, which marks an absent pose, passes."""
    length = float(torch.linalg.vector_norm(quaternion_wxyz))
    if abs(length - 1) > 0.01:
        raise InputError(f"{name} has length {length:.4g}, expected a unit quaternion, real part first")


def check_rig(
    name: str,
    streams: Sequence[str],
    world_from_camera: Float[Tensor, "frames cameras 4 4"],
    posed: Bool[Tensor, "frames"],
) -> None:
    """Rigid poses of cameras that belong to one headset: near one another, and always placed alike."""
    check_rigid(name, streams, world_from_camera, posed[:, None].expand(-1, len(streams)))
    if len(streams) < 2 or not posed.any():
        return
    moved, size = _within_rig(world_from_camera[posed])
    given = f"{name}, expected world_from_camera"
    swapped = "; inverted (camera_from_world)?" if _is_headset(*_within_rig(invert(world_from_camera[posed]))) else ""
    if 1e-6 < size < RIG_SIZE[0]:
        raise InputError(f"{given}: all cameras lie within {size * 1000:.3g} mm; in metres instead of mm?")
    if size > RIG_SIZE[1]:
        cause = swapped or "; in another unit, or inverted?"
        raise InputError(
            f"{given}: two cameras lie {size:.4g} m apart, expected a headset of up to {RIG_SIZE[1]:g} m{cause}"
        )
    if moved.any():
        index, part = moved.nonzero()[0].tolist()
        frame = int(posed.nonzero()[index])
        raise InputError(
            f"{given}: in frame {frame}, {streams[part]} stands elsewhere in the headset than in most; "
            f"expected cameras that keep their places{swapped}"
        )


def _within_rig(poses: Float[Tensor, "frames cameras 4 4"]) -> tuple[Bool[Tensor, "frames cameras"], float]:
    """Which cameras stand elsewhere, relative to the first one, than in most frames; the size of the rig (m)."""
    relative = invert(poses[:, :1]) @ poses
    change = (relative - relative.median(dim=0).values).abs()
    moved = (change[..., :3, 3].amax(-1) > RIG_MOVES[0]) | (change[..., :3, :3].amax((-2, -1)) > RIG_MOVES[1])
    centers = relative[..., :3, 3].median(dim=0).values
    return moved, float(torch.cdist(centers, centers).amax())


def _is_headset(moved: Bool[Tensor, "frames cameras"], size: float) -> bool:
    return not moved.any() and RIG_SIZE[0] <= size <= RIG_SIZE[1]


def check_wrists(
    names: tuple[str, str],
    cameras: Sequence[Camera],
    world_from_camera: Float[Tensor, "frames cameras 4 4"],
    world_from_wrist: Float[Tensor, "frames 2 4 4"],
    labelled: Bool[Tensor, "frames 2"],
) -> None:
    """Rigid labelled wrists near the headset, and not in its view and reach only if one of the poses is inverted.

    `names` are those of the fields of cameras and wrists. Hands may be out of view: poses are refused only if less than
    a twentieth of the labelled wrists is in view and reach as they stand, and more than half once one is inverted.
    """
    check_rigid(names[1], HAND_NAMES, world_from_wrist, labelled)
    frame, hand = labelled.nonzero(as_tuple=True)
    if not len(frame):
        return
    cameras_from, wrists = world_from_camera[frame], world_from_wrist[frame, hand]
    distance = torch.linalg.vector_norm(cameras_from[..., :3, 3] - wrists[:, None, :3, 3], dim=-1).amin(dim=1)
    far = int(distance.argmax())
    if distance[far] > MAX_WRIST_DISTANCE:
        raise InputError(
            f"{names[1]} of frame {frame[far]}, {HAND_NAMES[hand[far]]}, lies {distance[far]:.4g} m from any camera, "
            f"expected at most {MAX_WRIST_DISTANCE:g} m: in another unit than {names[0]}?"
        )
    if torch.linalg.vector_norm(wrists[:, :3, 3], dim=-1).amax() < RIG_SIZE[0]:
        raise InputError(f"{names[1]}: all wrists lie within 5 mm of the origin; in metres instead of mm?")
    if len(wrists) >= MIN_WRISTS and _share_in_reach(cameras, cameras_from, wrists) < UNLIKELY:
        others = {names[0]: (invert(cameras_from), wrists), names[1]: (cameras_from, invert(wrists))}
        likely = [name for name, poses in others.items() if _share_in_reach(cameras, *poses) > LIKELY]
        if likely:
            raise InputError(
                "the labelled wrists are out of view or reach, and would not be if "
                f"{' or '.join(likely)} were inverted: are they?"
            )


def _share_in_reach(
    cameras: Sequence[Camera],
    world_from_camera: Float[Tensor, "hands cameras 4 4"],
    world_from_wrist: Float[Tensor, "hands 4 4"],
) -> float:
    """The share of wrists in front of and in the picture of at least one camera, and no farther than an arm."""
    points = apply(invert(world_from_camera), world_from_wrist[:, None, None, :3, 3])[..., 0, :]
    seen = [camera.sees(part) & (part[:, 2] > 0) for camera, part in zip(cameras, points.unbind(1), strict=True)]
    near = torch.linalg.vector_norm(points, dim=-1).amin(dim=1) < ARM
    return float((torch.stack(seen).any(dim=0) & near).double().mean())


def check_joint_angles(
    name: str, joint_angles: Float[Tensor, "frames 2 22"], labelled: Bool[Tensor, "frames 2"]
) -> None:
    """Labelled angles below half a turn. Real labels exceed the joints' limits by some degrees."""
    wrong = (joint_angles.abs() > MAX_JOINT_ANGLE) & labelled[..., None]
    refuse(wrong, f"{name}{{place}} is {{value}} rad, expected at most half a turn: in degrees?", joint_angles)


def check_mounting_angles(name: str, degrees: Float[Tensor, "cameras"]) -> None:
    """Degrees, not multiples of 1.5708."""
    quarters = degrees / (math.pi / 2)
    radians = (
        (quarters.round() != 0) & (quarters.abs() < 4.1) & ((quarters - quarters.round()).abs() < QUARTER_TURN_MARGIN)
    )
    refuse(radians, f"{name}{{place}} is {{value}}, expected degrees: in radians?", degrees)
