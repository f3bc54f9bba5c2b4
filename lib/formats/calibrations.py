"""Calibrations of one's own rig: Kalibr camchains, Basalt's JSON, OpenCV's or ROS's YAML, one file a camera.

What comes out is the part of a recording's .json that describes the rig: cameras, mounting angles and, once, where the
cameras are. The world is what the file calls the rig: its first camera, or the IMU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from lib.cameras import Camera, Pinhole, RadialTangential
from lib.crops import upright_angles
from lib.errors import InputError
from lib.files import describing, read_text
from lib.formats.checks import MAX_SIDE, Json, check_lens, check_rig, check_rotation, field, json_array, whole_number
from lib.recordings import CAMERA_MODELS, as_one
from lib.transforms import homogeneous, invert, quaternion_rotation


@dataclass(frozen=True)
class CalibratedRig:
    """Cameras of any sizes and models, and where they are (m)."""

    cameras: tuple[Camera, ...]
    rig_from_camera: Float[Tensor, "cameras 4 4"]

    def mounting_angles(self) -> Float[Tensor, "cameras"]:
        """By how much each camera is turned about its optical axis from upright (rad), if the first one is upright."""
        return upright_angles((invert(self.rig_from_camera[:1]) @ self.rig_from_camera)[:, :3, :3])

    def as_one(self) -> Camera:
        """All cameras as one batch. Raises InputError for models that no recording holds together."""
        cameras = self.cameras
        if {type(camera) for camera in cameras} == {Pinhole, RadialTangential}:
            cameras = [RadialTangential(c.width, c.height, c.focal_px, c.center_px, _padded(c)) for c in cameras]
        models = sorted({type(camera).__name__ for camera in cameras})
        if len(models) > 1:
            raise InputError(f"the cameras of a recording must be of one model, got {', '.join(models)}")
        return as_one(cameras)


def _padded(camera: Camera) -> Tensor:
    """Its distortion as that of a radial-tangential lens, of whose terms it may have none."""
    return torch.nn.functional.pad(camera.distortion, (0, RadialTangential.num_distortion - camera.num_distortion))


def read_rig(paths: Sequence[Path]) -> CalibratedRig:
    """The rig of one Kalibr or Basalt file, or of one OpenCV or ROS file a camera. Raises InputError.

    A camera of several OpenCV files needs its place, `rig_from_camera` (4 x 4, m), but for the first.
    """
    stored = [_read(path) for path in paths]
    if len(stored) == 1 and isinstance(stored[0], Mapping) and "cam0" in stored[0]:
        with describing(paths[0]):
            rig = _kalibr(stored[0])
    elif len(stored) == 1 and isinstance(stored[0], Mapping) and "T_imu_cam" in str(stored[0].get("value0", "")):
        with describing(paths[0]):
            rig = _basalt(stored[0]["value0"])
    else:
        cameras, poses = [], []
        for path, content in zip(paths, stored, strict=True):
            with describing(path):
                cameras.append(_opencv(content))
                poses.append(_matrix(content, "rig_from_camera") if poses or "rig_from_camera" in content else _STILL)
        rig = CalibratedRig(tuple(cameras), torch.stack(poses))
    with describing(paths[0]):
        for camera in rig.cameras:
            check_lens(camera)
        names = [f"camera {index}" for index in range(len(rig.cameras))]
        check_rig("the places of the cameras", names, rig.rig_from_camera[None], torch.ones(1, dtype=torch.bool))
    return rig


_STILL = torch.eye(4, dtype=torch.float64)


def _read(path: Path) -> Json:
    """The content of a YAML or JSON file; OpenCV's header and tags are understood."""
    text = read_text(path)
    lines = [line for line in text.splitlines() if not line.startswith("%YAML")]
    with describing(path):
        try:
            return yaml.load("\n".join(lines), Loader=_Loader)
        except (yaml.YAMLError, RecursionError) as error:
            raise InputError(f"not valid YAML or JSON: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """Plain data alone, and OpenCV's matrices."""


def _opencv_matrix(loader: _Loader, node: yaml.Node) -> dict:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:opencv-matrix", _opencv_matrix)


def _kalibr(stored: Json) -> CalibratedRig:
    """`camN` one after the other, each placed relative to the one before (`T_cn_cnm1`)."""
    cameras, poses = [], [_STILL]
    for index in range(len(stored)):
        with describing(f"cam{index}"):
            entry = field(stored, f"cam{index}")
            if field(entry, "camera_model") != "pinhole":
                raise InputError(f"camera_model is {entry['camera_model']}, expected pinhole")
            model = {"equidistant": "KannalaBrandt", "radtan": "RadialTangential", "none": "Pinhole"}.get(
                field(entry, "distortion_model")
            )
            if model is None:
                raise InputError(f"distortion_model is {entry['distortion_model']}, expected equidistant, radtan, none")
            intrinsics = json_array(entry, "intrinsics", (4,))
            lens = json_array(entry, "distortion_coeffs", (0 if model == "Pinhole" else 4,))
            cameras.append(_camera(model, json_array(entry, "resolution", (2,)), intrinsics, lens))
            if index:
                poses.append(poses[-1] @ invert(_matrix(entry, "T_cn_cnm1")))
    return CalibratedRig(tuple(cameras), torch.stack(poses))


def _basalt(stored: Json) -> CalibratedRig:
    cameras = []
    sizes = json_array(stored, "resolution", (None, 2))
    entries, places = field(stored, "intrinsics"), field(stored, "T_imu_cam")
    if not len(entries) == len(places) == len(sizes):
        counts = f"{len(entries)} intrinsics, {len(places)} T_imu_cam, {len(sizes)} resolution"
        raise InputError(f"{counts}: expected equally many")
    for index, (entry, size) in enumerate(zip(entries, sizes, strict=True)):
        with describing(f"intrinsics[{index}]"):
            kind = str(field(entry, "camera_type"))
            model = {"kb4": "KannalaBrandt", "pinhole-radtan8": "RadialTangential", "pinhole": "Pinhole"}.get(kind)
            if model is None:
                raise InputError(f"camera_type is {kind}, expected kb4, pinhole-radtan8 or pinhole")
            values = field(entry, "intrinsics")
            read = [json_array(values, name, ()) for name in ("fx", "fy", "cx", "cy", *CAMERA_MODELS[model][1])]
            cameras.append(_camera(model, size, torch.stack(read[:4]), torch.tensor(read[4:], dtype=torch.float64)))
    poses = []
    for index, place in enumerate(places):
        with describing(f"T_imu_cam[{index}]"):
            quaternion = torch.stack([json_array(place, name, ()) for name in ("qw", "qx", "qy", "qz")])
            check_rotation("qw qx qy qz", quaternion)
            position = torch.stack([json_array(place, name, ()) for name in ("px", "py", "pz")])
            poses.append(homogeneous(quaternion_rotation(quaternion), position))
    return CalibratedRig(tuple(cameras), torch.stack(poses))


def _opencv(stored: Json) -> Camera:
    """One camera as OpenCV's calibration sample or ROS writes it."""
    names = {key.lower().replace("_", ""): key for key in stored} if isinstance(stored, Mapping) else {}

    def value(*options: str) -> Json:
        for option in options:
            if option in names:
                found = stored[names[option]]
                return found["data"] if isinstance(found, Mapping) and "data" in found else found
        raise InputError(f"no {options[0]}: expected a Kalibr, Basalt, OpenCV or ROS calibration")

    size = {"size": [value("imagewidth"), value("imageheight")]}
    matrix = _flat({"camera matrix": value("cameramatrix", "k", "cameramatrix1")}, "camera matrix")
    stored_lens = value("distortioncoefficients", "d", "distcoeffs")
    lens = _flat({"distortion coefficients": stored_lens}, "distortion coefficients")
    if len(matrix) != 9:
        raise InputError(f"the camera matrix has {len(matrix)} numbers, expected 9")
    named = str(value("distortionmodel")) if "distortionmodel" in names else "plumb_bob"
    fisheye = named in ("fisheye", "equidistant")
    if named not in ("plumb_bob", "rational_polynomial", "fisheye", "equidistant"):
        known = "plumb_bob, rational_polynomial, fisheye or equidistant"
        raise InputError(f"distortion_model is {named}, expected {known}")
    if len(lens) not in ((4,) if fisheye else (4, 5, 8)):
        raise InputError(f"{len(lens)} distortion coefficients, expected {'4' if fisheye else '4, 5 or 8'}")
    return _camera(
        "KannalaBrandt" if fisheye else "RadialTangential", json_array(size, "size", (2,)), matrix[[0, 4, 2, 5]], lens
    )


def _flat(stored: Json, name: str) -> Float[Tensor, "numbers"]:
    """Numbers, in rows or not."""
    rows = stored[name]
    nested = isinstance(rows, list) and rows and isinstance(rows[0], list)
    return json_array(stored, name, (None, None)).flatten() if nested else json_array(stored, name, (None,))


def _camera(model: str, size: Tensor, intrinsics: Tensor, lens: Tensor) -> Camera:
    """A camera of fx fy cx cy, and its distortion in OpenCV's order, of which the last terms may be left out."""
    width, height = (whole_number({"size": float(side)}, "size", 1, MAX_SIDE) for side in size)
    camera = CAMERA_MODELS[model][0]
    lens = torch.nn.functional.pad(lens, (0, camera.num_distortion - len(lens)))
    return camera(width, height, intrinsics[:2], intrinsics[2:], lens)


def _matrix(stored: Json, name: str) -> Float[Tensor, "4 4"]:
    return json_array(stored, name, (4, 4))
