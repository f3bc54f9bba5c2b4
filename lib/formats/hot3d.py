"""HOT3D: clips (one tar of the hand tracking toolkit's layout each) and recordings (a folder of JSON and CSV files).

Both give poses and hand in the public hand format and cameras with their true lenses. Metres, radians, float64.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lib.cameras import Camera, Fisheye44, Fisheye62, Fisheye624, Pinhole, PosedCamera
from lib.errors import InputError
from lib.files import describing, read_json, read_text
from lib.formats import checks
from lib.formats.archives import read_members
from lib.formats.checks import MAX_SIDE, Json, json_array, whole_number
from lib.formats.hand_files import hand_from_json, read_hand
from lib.hands import HAND_NAMES, NUM_FINGER_JOINTS, NUM_JOINTS, HandModel
from lib.transforms import homogeneous, quaternion_rotation

CALIBRATED_MODELS = {
    "FISHEYE624": Fisheye624,
    "OCULUSVISIONFISHEYE624": Fisheye624,
    "OCULUSVISIONFISHEYE62": Fisheye62,
    "OCULUSVISIONFISHEYE": Fisheye44,
    "PINHOLEPLANE": Pinhole,
}
"""By the name of the model in calibrations, in capitals. Source: hand tracking toolkit."""
STORED_ORDER = {"OCULUSVISIONFISHEYE62": (0, 1, 2, 3, 6, 7, 4, 5)}
"""Where a calibration holds our distortion parameters, unless in our order: it has k1..k4 p1 p2 k5 k6."""
NO_POSE = torch.full((4, 4), torch.nan, dtype=torch.float64)
_CLIP = re.compile(r"__hand_shapes\.json__|\d{1,9}\.(cameras\.json|hands\.json|image_.+\.(jpg|png))")
"""Names of the members of a clip that are read."""


@dataclass(frozen=True)
class Hot3dClip:
    """A sequence of labelled frames seen by named cameras (streams); see `recordings.Recording` for the labels.

    `encoded` holds the pictures of a clip as stored, by (frame, stream); recordings keep theirs elsewhere. Frames in
    which the headset has no pose, or that did not pass the quality check of HOT3D, have no labels.
    """

    camera: Mapping[str, Camera]
    world_from_camera: Mapping[str, Float[Tensor, "frames 4 4"]]
    hand_model: HandModel
    joint_angles: Float[Tensor, "frames 2 22"]
    world_from_wrist: Float[Tensor, "frames 2 4 4"]
    labelled: Bool[Tensor, "frames 2"]
    headset_tracked: Bool[Tensor, "frames"]
    passed_quality_check: Bool[Tensor, "frames"]
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
        camera = self.camera[stream]
        try:
            picture = cv2.imdecode(np.frombuffer(self.encoded[frame, stream], np.uint8), cv2.IMREAD_GRAYSCALE)
        except cv2.error:
            picture = None
        if picture is None:
            raise InputError(f"the picture of stream {stream} in frame {frame} is broken")
        if picture.shape != (camera.height, camera.width):
            raise InputError(
                f"the picture of stream {stream} in frame {frame} has {picture.shape[1]}x{picture.shape[0]} pixels, "
                f"its camera {camera.width}x{camera.height}"
            )
        return picture


def read_hot3d(path: Path) -> Hot3dClip:
    """The clip of a .tar file, or the recording of a folder. Raises InputError."""
    return _read_folder(path) if path.is_dir() else _read_tar(path)


def _read_tar(path: Path) -> Hot3dClip:
    """Frames are numbered from 0, in the order of their names. Each has cameras, and hands unless no frame has any."""
    members = read_members(path, _CLIP)
    with describing(path):
        frames = sorted({name.split(".")[0] for name in members if name[0].isdigit()}, key=int)
        if not any(f"{frame}.cameras.json" in members for frame in frames):
            raise InputError("no NNNNNN.cameras.json inside: expected a clip of the hand tracking toolkit's layout")
        cameras = [_parsed(members, f"{frame}.cameras.json") for frame in frames]
        has_hands = any(name.endswith(".hands.json") for name in members)
        hands = [_parsed(members, f"{frame}.hands.json") if has_hands else {} for frame in frames]
        with describing(f"{frames[0]}.cameras.json"):
            lenses = {s: camera_from_calibration(checks.field(entry, "calibration")) for s, entry in cameras[0].items()}
        number = {frame: index for index, frame in enumerate(frames)}
        encoded = {
            (number[match[1]], match[2]): content
            for name, content in members.items()
            if (match := re.fullmatch(r"(\d+)\.image_(.+)\.(?:jpg|png)", name))
        }
        shapes = _parsed(members, "__hand_shapes.json__")
        with describing("__hand_shapes.json__"):
            hand_model = hand_from_json(checks.field(shapes, "umetrack"))
        return _checked_clip(
            lenses,
            torch.stack(
                [_camera_poses(f"{n}.cameras.json", c, list(lenses)) for n, c in zip(frames, cameras, strict=True)]
            ),
            hand_model,
            [_poses_of_clip(f"{n}.hands.json", h) for n, h in zip(frames, hands, strict=True)],
            encoded=encoded,
        )


def _parsed(members: Mapping[str, bytes], name: str) -> dict:
    """The object of a JSON member."""
    if name not in members:
        raise InputError(f"the member {name} is missing")
    with describing(name):
        content = json.loads(members[name])
        if not isinstance(content, dict):
            raise InputError(f"not in the expected form: expected an object, got a {type(content).__name__}")
        return content


def _camera_poses(member: str, cameras: Json, streams: Sequence[str]) -> Float[Tensor, "cameras 4 4"]:
    """world_from_camera of the streams in a frame; NaN where it is null."""
    with describing(member):
        missing = [stream for stream in streams if stream not in cameras]
        if missing:
            raise InputError(f"the stream {missing[0]} of the first frame is missing")
        return torch.stack([_pose(checks.field(cameras[stream], "T_world_from_camera")) for stream in streams])


_HandPair = tuple[Float[Tensor, "2 22"], Float[Tensor, "2 4 4"]]
"""Joint angles and wrists of both hands in a frame, NaN where absent."""


def _poses_of_clip(member: str, hands: Json) -> _HandPair:
    with describing(member):
        return _both([(hands.get(name) or {}).get("umetrack_pose") for name in HAND_NAMES], "T_world_from_wrist")


def _poses_of_recording(line: Json) -> _HandPair:
    """A hand without confidence is absent."""
    poses = [checks.field(line, "hand_poses").get(hand) for hand in "01"]
    poses = [
        pose if pose is not None and json_array(pose, "hand_confidence", (), absent=1) > 0 else None for pose in poses
    ]
    return _both(poses, "wrist_xform", "q_wxyz", "t_xyz")


def _both(poses: Sequence[Json], wrist: str, *names: str) -> _HandPair:
    """Of two stored hands. Angles may leave out the two joints of the wrist."""
    angles, wrists = torch.full((2, NUM_JOINTS), torch.nan, dtype=torch.float64), NO_POSE.repeat(2, 1, 1)
    for hand, pose in enumerate(poses):
        if pose is not None:
            stored = json_array(pose, "joint_angles", (None,), absent=1)
            if len(stored) not in (NUM_FINGER_JOINTS, NUM_JOINTS):
                raise InputError(f"joint_angles of the {HAND_NAMES[hand]} hand are {len(stored)}, expected 20 or 22")
            angles[hand] = torch.nn.functional.pad(stored, (0, NUM_JOINTS - len(stored)))
            wrists[hand] = _pose(checks.field(pose, wrist), *names)
    return angles, wrists


def _pose(
    stored: Json, quaternion: str = "quaternion_wxyz", translation: str = "translation_xyz"
) -> Float[Tensor, "4 4"]:
    """The transform of a quaternion (real part first) and a translation (m); NaN where it is null or not finite."""
    if stored is None:
        return NO_POSE
    wxyz, xyz = json_array(stored, quaternion, (4,), absent=1), json_array(stored, translation, (3,), absent=1)
    checks.check_rotation(quaternion, wxyz)
    pose = homogeneous(quaternion_rotation(wxyz), xyz)
    return pose if pose.isfinite().all() else NO_POSE


def _checked_clip(
    lenses: Mapping[str, Camera],
    poses: Float[Tensor, "frames cameras 4 4"],
    hand_model: HandModel,
    hands: Sequence[_HandPair],
    passed: Bool[Tensor, "frames"] | None = None,
    **more,
) -> Hot3dClip:
    """A clip whose values can be; NaN poses are absent ones."""
    angles, wrists = (torch.stack(part) for part in zip(*hands, strict=True))
    tracked = poses.isfinite().all(-1).all(-1).all(-1)
    passed = torch.ones_like(tracked) if passed is None else passed
    labelled = angles.isfinite().all(-1) & wrists.isfinite().all(-1).all(-1) & (tracked & passed)[:, None]
    poses = torch.where(tracked[:, None, None, None], poses, torch.eye(4).to(poses))
    wrists = torch.where(labelled[..., None, None], wrists, torch.eye(4).to(wrists))
    checks.check_joint_angles("joint_angles", angles, labelled)
    checks.check_rig("T_world_from_camera", list(lenses), poses, tracked)
    checks.check_wrists(("T_world_from_camera", "wrist"), list(lenses.values()), poses, wrists, labelled)
    angles = torch.where(labelled[..., None], angles, 0.0)
    world_from_camera = dict(zip(lenses, poses.unbind(1), strict=True))
    return Hot3dClip(lenses, world_from_camera, hand_model, angles, wrists, labelled, tracked, passed, **more)


def _read_folder(folder: Path) -> Hot3dClip:
    trajectory = folder / "umetrack_hand_pose_trajectory.jsonl"
    if not trajectory.is_file():
        raise InputError(f"no file {trajectory}: expected a folder of a HOT3D recording")
    timestamps, hands = _read_trajectory(trajectory)
    calibrations = read_json(folder / "camera_models.json")
    world_from_headset = _headset_path(folder / "headset_trajectory.csv", timestamps)
    hand_model = read_hand(folder / "umetrack_hand_user_profile.json")
    with describing(folder / "camera_models.json"):
        if not isinstance(calibrations, list) or not calibrations:
            raise InputError("not in the expected form: expected a list of cameras")
        streams = [str(checks.field(calibration, "stream_id")) for calibration in calibrations]
        lenses = {s: camera_from_calibration(c) for s, c in zip(streams, calibrations, strict=True)}
        headset_from_camera = torch.stack([_pose(checks.field(c, "T_Device_Camera")) for c in calibrations])
        if not headset_from_camera.isfinite().all():
            raise InputError("T_Device_Camera of a camera is null or not finite")
    poses = world_from_headset[:, None] @ headset_from_camera
    with describing(folder):
        return _checked_clip(
            lenses, poses, hand_model, hands, _passed(folder / "masks" / "mask_qa_pass.csv", timestamps)
        )


def _read_trajectory(path: Path) -> tuple[list[int], list[_HandPair]]:
    """Timestamps (ns) and hands of all lines."""
    timestamps, hands = [], []
    for number, line in enumerate(read_text(path).splitlines()):
        with describing(path), describing(f"line {number + 1}"):
            stored = json.loads(line)
            time = checks.field(stored, "timestamp_ns")
            if not isinstance(time, int) or (timestamps and time <= timestamps[-1]):
                raise InputError(f"timestamp_ns is {time}, expected a whole number above that of the line before")
            timestamps.append(time)
            hands.append(_poses_of_recording(stored))
    if not hands:
        raise InputError(f"{path} is empty, expected a line per frame")
    return timestamps, hands


def camera_from_calibration(calibration: Json) -> Camera:
    """The camera of a calibration entry, in the spelling of clips or of recordings.

    Raises InputError for a model that is not in `CALIBRATED_MODELS`, a wrong number of parameters or impossible values.
    """
    clip = "projection_model_type" in calibration
    named = str(calibration["projection_model_type" if clip else "projectionModelType"])
    model = CALIBRATED_MODELS.get(key := named.split(".")[-1].upper())
    if model is None:
        raise InputError(f"unknown camera model {named}: known are {', '.join(CALIBRATED_MODELS)}")
    parameters = json_array(calibration, "projection_params" if clip else "projectionParams", (None,))
    if model is Fisheye624 and len(parameters) == model.num_distortion + 3:
        parameters = torch.cat((parameters[:1], parameters))  # one focal length for both axes, as Aria stores it
    if len(parameters) != model.num_distortion + 4:
        raise InputError(f"{named} takes {model.num_distortion + 4} projection parameters, got {len(parameters)}")
    names = ("image_width", "image_height") if clip else ("imageWidth", "imageHeight")
    order = [4 + index for index in STORED_ORDER.get(key, range(model.num_distortion))]
    size = [whole_number(calibration, name, 1, MAX_SIDE) for name in names]
    camera = model(*size, parameters[:2], parameters[2:4], parameters[order])
    checks.check_lens(camera)
    return camera


def _read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with the given columns among others."""
    with describing(path):
        reader = csv.DictReader(read_text(path).splitlines())
        try:
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"the column {missing[0]} is missing; there are {', '.join(reader.fieldnames or ())}")
            return list(reader)
        except csv.Error as error:
            raise InputError(f"not in the expected form: {error}") from error


def _headset_path(path: Path, timestamps: Sequence[int]) -> Float[Tensor, "frames 4 4"]:
    """world_from_headset at the timestamps of the labels; NaN where the file gives none."""
    if not path.is_file():
        raise InputError(f"no file {path}: expected the headset's path beside the hand poses")
    names = [f"q_wo_{a}" for a in "wxyz"], [f"t_wo_{a}[m]" for a in "xyz"]
    rows = _read_csv(path, ["timestamp[ns]", *names[0], *names[1]])
    poses = dict.fromkeys(timestamps, NO_POSE)
    with describing(path):
        for row in rows:
            time = int(row["timestamp[ns]"])
            if time in poses:
                with describing(f"at {time} ns"):
                    quaternion, translation = ([float(row[name]) for name in part] for part in names)
                    poses[time] = _pose({"quaternion_wxyz": quaternion, "translation_xyz": translation})
        path = torch.stack(list(poses.values()))
        if not path.isfinite().any():
            raise InputError(f"no headset pose at any of {len(timestamps)} labelled times: of another recording?")
        return path


def _passed(path: Path, timestamps: Sequence[int]) -> Bool[Tensor, "frames"]:
    """Which frames passed the manual quality check, in all streams that it lists at their time; all without the file.

    Source: HOT3D, "mask files".
    """
    if not path.is_file():
        return torch.ones(len(timestamps), dtype=torch.bool)
    marks: dict[int, bool] = {}
    rows = _read_csv(path, ["timestamp[ns]", "stream_id", "mask"])
    with describing(path):
        for row in rows:
            if row["mask"] not in ("True", "False"):
                raise InputError(f"mask is {row['mask']} at {row['timestamp[ns]']} ns, expected True or False")
            time = int(row["timestamp[ns]"])
            marks[time] = marks.get(time, True) and row["mask"] == "True"
        if not any(time in marks for time in timestamps):
            raise InputError("lists none of the labelled times: of another recording?")
    return torch.tensor([marks.get(time, False) for time in timestamps])
