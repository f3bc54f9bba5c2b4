"""HOT3D: clips (one tar of the hand tracking toolkit's layout each) and recordings (a folder of JSON and CSV files).

Both give poses and hand in the public hand format and cameras with their true lenses. Metres, radians, float64.
"""

from __future__ import annotations

import csv
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lib.cameras import Camera, Fisheye62, Fisheye624, Pinhole, PosedCamera
from lib.errors import InputError
from lib.files import describing, float64, hand_from_json, read_hand, read_json
from lib.hands import HAND_NAMES, NUM_JOINTS, HandModel
from lib.transforms import homogeneous, quaternion_rotation

CAMERA_MODELS = {"FISHEYE624": Fisheye624, "OCULUSVISIONFISHEYE62": Fisheye62, "PINHOLEPLANE": Pinhole}


@dataclass(frozen=True)
class Hot3dClip:
    """A sequence of labelled frames seen by named cameras (streams); see `recordings.Recording` for the labels.

    `encoded` holds the pictures of a clip as stored, by (frame, stream); recordings keep theirs elsewhere.
    """

    camera: Mapping[str, Camera]
    world_from_camera: Mapping[str, Float[Tensor, "frames 4 4"]]
    hand_model: HandModel
    joint_angles: Float[Tensor, "frames 2 22"]
    world_from_wrist: Float[Tensor, "frames 2 4 4"]
    labelled: Bool[Tensor, "frames 2"]
    encoded: Mapping[tuple[int, str], bytes] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.joint_angles)

    def posed(self, stream: str, frame: int) -> PosedCamera:
        """The camera of a stream as placed in a frame."""
        return PosedCamera(self.camera[stream], self.world_from_camera[stream][frame])

    def image(self, stream: str, frame: int) -> UInt8[np.ndarray, "height width"]:
        """The grey picture of a stream. Raises InputError if the clip has none or it is broken."""
        if (frame, stream) not in self.encoded:
            raise InputError(f"no picture of stream {stream} in frame {frame}; streams: {', '.join(self.camera)}")
        picture = cv2.imdecode(np.frombuffer(self.encoded[frame, stream], np.uint8), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise InputError(f"the picture of stream {stream} in frame {frame} is broken")
        return picture


def read_hot3d(path: Path) -> Hot3dClip:
    """The clip of a .tar file, or the recording of a folder. Raises InputError."""
    return _read_folder(path) if path.is_dir() else _read_tar(path)


def _read_tar(path: Path) -> Hot3dClip:
    """Members are read in memory by the names they must have; nothing is extracted."""
    try:
        with tarfile.open(path) as tar:
            members = {m.name.removeprefix("./"): tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(f"{path} is not a clip that can be read (a .tar of frames): {error}") from error
    with describing(path):
        frames = sorted(name.split(".")[0] for name in members if re.fullmatch(r"\d+\.cameras\.json", name))
        if not frames:
            raise InputError("no NNNNNN.cameras.json inside: expected a clip of the hand tracking toolkit's layout")
        cameras = [json.loads(members[f"{frame}.cameras.json"]) for frame in frames]
        poses = [_umetrack_poses(json.loads(members.get(f"{frame}.hands.json", b"{}"))) for frame in frames]
        encoded = {
            (frames.index(match[1]), match[2]): content
            for name, content in members.items()
            if (match := re.fullmatch(r"(\d+)\.image_(.+)\.(?:jpg|png)", name)) and match[1] in frames
        }
        return Hot3dClip(
            camera={stream: camera_from_calibration(entry["calibration"]) for stream, entry in cameras[0].items()},
            world_from_camera={s: _poses([c[s]["T_world_from_camera"] for c in cameras]) for s in cameras[0]},
            hand_model=hand_from_json(json.loads(members["__hand_shapes.json__"])["umetrack"]),
            encoded=encoded,
            **_labels(poses),
        )


def _umetrack_poses(hands: Mapping) -> list[Mapping | None]:
    return [(hands.get(name) or {}).get("umetrack_pose") for name in HAND_NAMES]


def _read_folder(folder: Path) -> Hot3dClip:
    trajectory = folder / "umetrack_hand_pose_trajectory.jsonl"
    if not trajectory.is_file():
        raise InputError(f"no file {trajectory}: expected a folder of a HOT3D recording")
    with describing(trajectory):
        lines = [json.loads(line) for line in trajectory.read_text().splitlines()]
        labels = _labels([[_pose_of_recording(line["hand_poses"].get(hand)) for hand in "01"] for line in lines])
        timestamps = [line["timestamp_ns"] for line in lines]
    calibrations = read_json(folder / "camera_models.json")
    world_from_headset = _headset_path(folder / "headset_trajectory.csv", timestamps)
    hand_model = read_hand(folder / "umetrack_hand_user_profile.json")
    with describing(folder / "camera_models.json"):
        headset_from_camera = _poses([calibration["T_Device_Camera"] for calibration in calibrations])
        streams = [calibration["stream_id"] for calibration in calibrations]
        return Hot3dClip(
            camera={s: camera_from_calibration(c) for s, c in zip(streams, calibrations, strict=True)},
            world_from_camera={
                s: world_from_headset @ pose for s, pose in zip(streams, headset_from_camera, strict=True)
            },
            hand_model=hand_model,
            **labels,
        )


def _pose_of_recording(stored: Mapping | None) -> Mapping | None:
    """A hand of a recording in the form of a clip; None if it is not tracked."""
    if stored is None or not stored["hand_confidence"] > 0:
        return None
    wrist = stored["wrist_xform"]
    pose = {"quaternion_wxyz": wrist["q_wxyz"], "translation_xyz": wrist["t_xyz"]}
    return {"joint_angles": stored["joint_angles"], "T_world_from_wrist": pose}


def _labels(poses: Sequence[Sequence[Mapping | None]]) -> dict[str, Tensor]:
    """Joint angles, wrists and validity; an absent or non-finite pose is unlabelled."""
    absent = {
        "joint_angles": [0.0] * NUM_JOINTS,
        "T_world_from_wrist": {"quaternion_wxyz": [1.0, 0, 0, 0], "translation_xyz": [0.0] * 3},
    }
    flat = [pose or absent for pair in poses for pose in pair]
    angles = float64([[*p["joint_angles"], 0.0, 0.0][:NUM_JOINTS] for p in flat]).unflatten(0, (-1, 2))
    wrists = _poses([p["T_world_from_wrist"] for p in flat]).unflatten(0, (-1, 2))
    given = torch.tensor([pose is not None for pair in poses for pose in pair]).unflatten(0, (-1, 2))
    labelled = given & angles.isfinite().all(-1) & wrists.isfinite().all(-1).all(-1)
    return {
        "joint_angles": torch.where(labelled[..., None], angles, 0.0),
        "world_from_wrist": torch.where(labelled[..., None, None], wrists, torch.eye(4).to(wrists)),
        "labelled": labelled,
    }


def camera_from_calibration(calibration: Mapping) -> Camera:
    """The camera of a calibration entry, in the spelling of clips or of recordings.

    Raises InputError for a model that is not in `CAMERA_MODELS` or a wrong number of parameters.
    """
    named = calibration.get("projection_model_type") or calibration["projectionModelType"]
    model = CAMERA_MODELS.get(named.split(".")[-1].upper())
    if model is None:
        raise InputError(f"unknown camera model {named}: known are {', '.join(CAMERA_MODELS)}")
    parameters = list(calibration.get("projection_params") or calibration["projectionParams"])
    if len(parameters) == model.num_distortion + 3:
        parameters.insert(0, parameters[0])  # one focal length for both axes, as Aria stores it
    if len(parameters) != model.num_distortion + 4:
        raise InputError(f"{named} takes {model.num_distortion + 4} projection parameters, got {len(parameters)}")
    width = calibration.get("image_width") or calibration["imageWidth"]
    height = calibration.get("image_height") or calibration["imageHeight"]
    values = float64(parameters)
    return model(int(width), int(height), values[:2], values[2:4], values[4:])


def _headset_path(path: Path, timestamps: Sequence[int]) -> Float[Tensor, "frames 4 4"]:
    """world_from_headset at the timestamps of the labels."""
    if not path.is_file():
        raise InputError(f"no file {path}: expected the headset's path beside the hand poses")
    with describing(path):
        rows = {int(row["timestamp[ns]"]): row for row in csv.DictReader(path.read_text().splitlines())}
        missing = [time for time in timestamps if time not in rows]
        if missing:
            raise InputError(
                f"no headset pose at {len(missing)} of {len(timestamps)} labelled times, first {missing[0]} ns"
            )
        chosen = [rows[time] for time in timestamps]
        rotation = quaternion_rotation(float64([[float(row[f"q_wo_{a}"]) for a in "wxyz"] for row in chosen]))
        return homogeneous(rotation, float64([[float(row[f"t_wo_{a}[m]"]) for a in "xyz"] for row in chosen]))


def _poses(stored: Sequence[Mapping]) -> Float[Tensor, "poses 4 4"]:
    """4x4 transforms from quaternions (real part first) and translations."""
    quaternions, translations = (
        float64([pose[name] for pose in stored]) for name in ("quaternion_wxyz", "translation_xyz")
    )
    return homogeneous(quaternion_rotation(quaternions), translations)
