"""HOT3D: clips (one tar of the hand tracking toolkit's layout each) and recordings (a folder of JSON and CSV files).

Both give poses and hand in the public hand format and cameras with their true lenses. Metres, radians, float64.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from lib.cameras import Camera, Fisheye44, Fisheye62, Fisheye624, Pinhole, PosedCamera
from lib.crops import roll_of, upright_angles
from lib.errors import InputError
from lib.files import describing, read_json, read_text
from lib.formats import checks
from lib.formats.archives import StoredMember, read_members
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
_PICTURE = re.compile(r"(\d{1,9})\.image_(.+)\.(?:jpg|png)")
_CLIP = re.compile(rf"__hand_shapes\.json__|\d{{1,9}}\.(cameras|hands|hand_crops)\.json|{_PICTURE.pattern}")
"""Names of the members of a clip that are read."""


Members = Mapping[str, bytes | StoredMember]
"""Of a clip, by name; pictures may still lie in it."""


@dataclass(frozen=True)
class Hot3dClip:
    """A sequence of labelled frames seen by named cameras (streams); see `recordings.Recording` for the labels.

    `label` says what each camera is, "camera-slam-left". `encoded` holds the pictures of a clip as stored, by (frame,
    stream); recordings keep theirs elsewhere. `crop_rolls` are the angles between cameras and the crop cameras that a
    clip brings (rad), by stream. Frames in which the headset has no pose, or that did not pass the quality check of
    HOT3D, have no labels; clips of a test split may have no hand model.
    """

    camera: Mapping[str, Camera]
    label: Mapping[str, str]
    world_from_camera: Mapping[str, Float[Tensor, "frames 4 4"]]
    hand_model: HandModel | None
    joint_angles: Float[Tensor, "frames 2 22"]
    world_from_wrist: Float[Tensor, "frames 2 4 4"]
    labelled: Bool[Tensor, "frames 2"]
    headset_tracked: Bool[Tensor, "frames"]
    passed_quality_check: Bool[Tensor, "frames"]
    encoded: Mapping[tuple[int, str], bytes | StoredMember] = field(default_factory=dict, repr=False)
    crop_rolls: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.joint_angles)

    def posed(self, stream: str, frame: int) -> PosedCamera:
        """The camera of a stream as placed in a frame."""
        return PosedCamera(self.camera[stream], self.world_from_camera[stream][frame])

    def image(self, stream: str, frame: int) -> UInt8[np.ndarray, "height width"]:
        """The grey picture of a stream. Raises InputError if the clip has none or it is broken."""
        if (frame, stream) not in self.encoded:
            raise InputError(f"no picture of stream {stream} in frame {frame}; streams: {', '.join(self.camera)}")
        camera, stored = self.camera[stream], self.encoded[frame, stream]
        content = stored if isinstance(stored, bytes) else stored.read()
        try:
            picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
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

    def streams(self) -> list[str]:
        """The cameras that hands are tracked with: grey ones of one model that have pictures, if any has."""
        shown = {stream for _, stream in self.encoded} or self.camera.keys()
        grey = [s for s in self.camera if s in shown and "rgb" not in self.label[s]] or list(shown)
        models = Counter(type(self.camera[stream]) for stream in grey)
        return [stream for stream in grey if type(self.camera[stream]) is models.most_common(1)[0][0]]

    def mounting_angles(self, streams: Sequence[str]) -> Float[Tensor, "cameras"]:
        """By how much cameras are turned from upright (rad): as their crop cameras say, or else as the cameras lie.

        For the latter the line through two cameras is horizontal, from the one with "left" in its label to that with
        "right", or else so that hands are below the headset, not above.
        """
        upright = self._upright(streams).tolist()
        angles = [self.crop_rolls.get(stream, angle) for stream, angle in zip(streams, upright, strict=True)]
        return torch.tensor(angles).double()

    def _upright(self, streams: Sequence[str]) -> Float[Tensor, "cameras"]:
        """Mounting angles as the cameras lie to each other; zeros for a single one."""
        if len(streams) < 2 or not self.headset_tracked.any():
            return torch.zeros(len(streams)).double()
        frame = int(self.headset_tracked.nonzero()[0])
        world_from_camera = torch.stack([self.world_from_camera[stream][frame] for stream in streams])
        ends = [[i for i, s in enumerate(streams) if side in self.label[s]] for side in ("left", "right")]
        named = all(ends)
        left, right = (end[0] for end in ends) if named else (0, len(streams) - 1)
        across = normalize(world_from_camera[right, :3, 3] - world_from_camera[left, :3, 3], dim=0)
        ahead = world_from_camera[:, :3, 2].sum(dim=0)
        ahead = normalize(ahead - (ahead @ across) * across, dim=0)
        down = torch.linalg.cross(ahead, across)
        hands = self.world_from_wrist[frame, self.labelled[frame], :3, 3] - world_from_camera[left, :3, 3]
        if not named and len(hands) and hands.mean(dim=0) @ down < 0:
            across, down = -across, -down
        world_from_headset = torch.stack((across, down, ahead), dim=1)
        return upright_angles(world_from_headset.mT @ world_from_camera[:, :3, :3])


TRAJECTORY = "umetrack_hand_pose_trajectory.jsonl"


def is_tar(path: Path) -> bool:
    """Whether a path looks like that of a clip: .tar, or .tar with what compressed it."""
    return path.is_file() and ".tar" in path.suffixes[-2:]


def is_hot3d_recording(path: Path) -> bool:
    """Whether a folder is a recording of HOT3D."""
    return (path / TRAJECTORY).is_file()


def read_hot3d(path: Path) -> Hot3dClip:
    """The clip of a .tar file, or the recording of a folder. Raises InputError."""
    return _read_folder(path) if path.is_dir() else _read_tar(path)


def _read_tar(path: Path) -> Hot3dClip:
    """Frames are numbered from 0, in the order of their names. Each has cameras, and hands unless no frame has any."""
    members = read_members(path, _CLIP, later=_PICTURE)
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
            if (match := _PICTURE.fullmatch(name)) and match[2] in lenses
        }
        poses = [_camera_poses(f"{n}.cameras.json", c, list(lenses)) for n, c in zip(frames, cameras, strict=True)]
        return _checked_clip(
            lenses,
            {stream: str(entry["calibration"].get("label", "")) for stream, entry in cameras[0].items()},
            torch.stack(poses),
            _hand_of_clip(members),
            [_poses_of_clip(f"{n}.hands.json", h) for n, h in zip(frames, hands, strict=True)],
            encoded=encoded,
            crop_rolls=_crop_rolls(members, frames, dict(zip(lenses, torch.stack(poses, dim=1), strict=True))),
        )


def _hand_of_clip(members: Members) -> HandModel | None:
    if "__hand_shapes.json__" not in members and not any(name.endswith(".hands.json") for name in members):
        return None
    shapes = _parsed(members, "__hand_shapes.json__")
    with describing("__hand_shapes.json__"):
        return hand_from_json(checks.field(shapes, "umetrack"))


def _crop_rolls(
    members: Members, frames: Sequence[str], world_from_camera: Mapping[str, Float[Tensor, "frames 4 4"]]
) -> dict[str, float]:
    """By how much the crop cameras of each stream are rolled (rad), in the mean of those that a clip has."""
    rolls: dict[str, list[Tensor]] = {}
    for index, frame in enumerate(frames):
        name = f"{frame}.hand_crops.json"
        stored = _parsed(members, name) if name in members else {}
        with describing(name):
            for crops in (stored.get(hand) or {} for hand in HAND_NAMES):
                for stream in crops.keys() & world_from_camera.keys():
                    world_from_crop = _pose(checks.field(crops[stream], "T_world_from_crop_camera"))
                    camera_from_crop = world_from_camera[stream][index, :3, :3].mT @ world_from_crop[:3, :3]
                    rolls.setdefault(stream, []).append(roll_of(camera_from_crop))
    return {stream: _mean_angle(torch.stack(angles)) for stream, angles in rolls.items()}


def _mean_angle(angles: Float[Tensor, "angles"]) -> float:
    known = angles[angles.isfinite()]
    return float(torch.atan2(known.sin().sum(), known.cos().sum()))


def _parsed(members: Members, name: str) -> dict:
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
    labels: Mapping[str, str],
    poses: Float[Tensor, "frames cameras 4 4"],
    hand_model: HandModel | None,
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
    return Hot3dClip(lenses, labels, world_from_camera, hand_model, angles, wrists, labelled, tracked, passed, **more)


def _read_folder(folder: Path) -> Hot3dClip:
    trajectory = folder / TRAJECTORY
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
        labels = {stream: str(c.get("label", "")) for stream, c in zip(streams, calibrations, strict=True)}
        passed = _passed(folder / "masks" / "mask_qa_pass.csv", timestamps)
        return _checked_clip(lenses, labels, poses, hand_model, hands, passed)


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
