"""Challenge tars: recordings written in the layout that the hand tracking toolkit reads.

`lib.formats.hot3d` reads them. Metres and radians in the files, too; the hand alone is in millimetres.

Source: `dataset.py` and `camera.py` of the hand tracking toolkit.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.spatial.transform import Rotation
from torch import Tensor

from lib.cameras import Camera, Fisheye44, Fisheye62, Fisheye624, Pinhole, PosedCamera
from lib.crops import choose_views
from lib.errors import InputError
from lib.files import write_atomically
from lib.formats.hand_files import hand_to_json
from lib.formats.hot3d import STORED_ORDER
from lib.hands import HAND_NAMES, RIGHT, PosedHands
from lib.recordings import Recording
from lib.transforms import mirror_x

WRITTEN_MODELS: dict[type[Camera], str] = {
    Fisheye624: "CameraModelType.FISHEYE624",
    Fisheye62: "OculusVisionFishEye62",
    Fisheye44: "OculusVisionFishEye",
    Pinhole: "PinholePlane",
}
"""What calibrations call the models that can be written. Source: `model_by_name` of the toolkit."""
JPEG_QUALITY = 95
NO_MANO_SHAPE = [0.0] * 10
"""This project has no MANO hand. The toolkit asks for ten numbers: these are those of MANO's mean hand."""
_HAND_SHAPES = "__hand_shapes.json__"


def write_challenge_tar(recording: Recording, path: Path, labels: bool = True) -> None:
    """Write a recording frame by frame; equal recordings give equal bytes, and `path` is replaced once all is written.

    Without `labels` there are no poses of hands, as in test sequences; crop cameras, of up to two cameras a hand, and
    the hand remain. Rotations become quaternions, orthonormal up to rounding. Frames in which the headset has no pose
    have null in place of camera poses, which `read_hot3d` reads and the toolkit does not. There are no MANO poses, and
    no MANO shape (`NO_MANO_SHAPE`). `read_hot3d` refuses a file beyond the limits of `archives`; the toolkit has none.

    Raises InputError for a camera model that is not in `WRITTEN_MODELS`, a recording without a hand model and broken
    pictures; then nothing is left behind.
    """
    model = type(recording.camera)
    if model not in WRITTEN_MODELS:
        known = ", ".join(written.__name__ for written in WRITTEN_MODELS)
        raise InputError(f"{recording.path}: the camera model {model.__name__} cannot be written, only {known} can")
    if recording.hand_model is None:
        raise InputError(f"{recording.path} has no hand model, which a challenge tar holds")
    write_atomically(path, lambda temporary: _write(recording, temporary, labels))


def _write(recording: Recording, path: Path, labels: bool) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for frame, images in zip(range(len(recording)), recording.images(), strict=True):
            for name, content in _members_of_frame(recording, frame, images, labels):
                _add(tar, f"{frame:06d}.{name}", content)
            tar.members.clear()  # tarfile keeps the headers of all that it has written
        _add(tar, _HAND_SHAPES, _json({"mano": NO_MANO_SHAPE, "umetrack": hand_to_json(recording.hand_model)}))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A member without time and owner."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _json(content: dict) -> bytes:
    return json.dumps(content, sort_keys=True, allow_nan=False).encode()


def _members_of_frame(
    recording: Recording, frame: int, images: UInt8[np.ndarray, "cameras height width"], labels: bool
) -> Iterator[tuple[str, bytes]]:
    """What a frame holds: names after its number, and contents."""
    cameras, hands = recording.cameras(frame), recording.hands(frame)
    posed = recording.posed is None or bool(recording.posed[frame])
    streams = [f"1201-{number}" for number in range(1, len(images) + 1)]
    sizes = cameras.camera.size_px.int().tolist()
    for stream, image, (columns, rows) in zip(streams, images, sizes, strict=True):
        yield f"image_{stream}.jpg", _jpeg(image[:rows, :columns])
    stored = {
        stream: {
            "calibration": calibration_to_json(cameras.camera[index], f"camera-{index + 1}"),
            "T_world_from_camera": _pose_to_json(cameras.world_from_camera[index]) if posed else None,
        }
        for index, stream in enumerate(streams)
    }
    yield "cameras.json", _json(stored)
    if labels:
        yield "hands.json", _json(_hands_to_json(hands))
    views, crop = choose_views(cameras, recording.mounting_angles, hands)
    crops = {
        name: {stream: _crop_to_json(crop[hand, index], hand) for index, stream in enumerate(streams) if seen[index]}
        for hand, (name, seen) in enumerate(zip(HAND_NAMES, views.tolist(), strict=True))
    }
    yield "hand_crops.json", _json({name: seen or None for name, seen in crops.items()})


def _jpeg(image: UInt8[np.ndarray, "height width"]) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def calibration_to_json(camera: Camera, label: str) -> dict:
    """The calibration entry of one camera, of a model in `WRITTEN_MODELS`; `hot3d.camera_from_calibration` reads it."""
    name = WRITTEN_MODELS[type(camera)]
    order = STORED_ORDER.get(name.split(".")[-1].upper(), range(camera.num_distortion))
    distortion = torch.empty_like(camera.distortion)
    distortion[list(order)] = camera.distortion
    width, height = camera.size_px.int().tolist()
    return {
        "image_width": width,
        "image_height": height,
        "projection_model_type": name,
        "projection_params": torch.cat((camera.focal_px, camera.center_px, distortion)).tolist(),
        "label": label,
        "serial_number": "",
    }


def _hands_to_json(hands: PosedHands) -> dict:
    """Poses of both hands, null where there is none. The toolkit fails at a `mano_pose` of null: there is none."""
    stored = {}
    for hand, name in enumerate(HAND_NAMES):
        wrist, angles = hands.world_from_wrist[hand], hands.joint_angles[hand].tolist()
        pose = {"joint_angles": angles, "T_world_from_wrist": _pose_to_json(wrist)} if hands.exists[hand] else None
        stored[name] = pose and {"umetrack_pose": pose}
    return stored


def _pose_to_json(world_from_part: Float[Tensor, "4 4"]) -> dict:
    wxyz = Rotation.from_matrix(world_from_part[:3, :3].numpy()).as_quat(canonical=True, scalar_first=True)
    return {"quaternion_wxyz": wxyz.tolist(), "translation_xyz": world_from_part[:3, 3].tolist()}


def _crop_to_json(crop: PosedCamera, hand: int) -> dict:
    """A crop camera as stored: not mirrored, its focal length as a field of view, which fits crops of any size."""
    world_from_crop = mirror_x(crop.world_from_camera) if hand == RIGHT else crop.world_from_camera
    fov = 2 * math.atan(crop.camera.width / 2 / float(crop.camera.focal_px[0]))
    return {"crop_camera_fov": fov, "T_world_from_crop_camera": _pose_to_json(world_from_crop)}
