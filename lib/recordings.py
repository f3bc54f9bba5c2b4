"""Recordings: cameras, hand, labels and pictures, read from any of the public layouts, in metres.

`raw_data`: a video of one to eight views side by side (the public ones have four), or one video per camera, and a JSON
file beside it with cameras, hand and labels. Challenge tars and HOT3D clips: `lib.formats.hot3d`. Clips of training
shards: `lib.formats.torch_data`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lib.cameras import Camera, Fisheye44, Fisheye62, Fisheye624, KannalaBrandt, Pinhole, PosedCamera, RadialTangential
from lib.errors import InputError
from lib.files import MM, describing, read_json
from lib.formats.checks import (
    MAX_SIDE,
    Json,
    check_joint_angles,
    check_lens,
    check_mounting_angles,
    check_rig,
    check_wrists,
    field,
    float64,
    json_array,
    whole_number,
)
from lib.formats.hand_files import hand_from_json, hand_to_json
from lib.formats.hot3d import Hot3dClip, is_hot3d_recording, is_tar, read_hot3d
from lib.formats.torch_data import ShardClip, is_shard_clip, read_shard_clip
from lib.formats.videos import FRAMES_PER_SECOND, Videos, count_all_frames, other_length, padded
from lib.hands import HANDS, NUM_JOINTS, HandModel, PosedHands
from lib.transforms import in_other_unit

MAX_CAMERAS = 8
PicturesFrom = Callable[[int], Iterator[UInt8[np.ndarray, "cameras height width"]]]
"""The views of every frame from the given one on."""


@dataclass(frozen=True)
class Recording:
    """Cameras, hand and labels of a recording; the pictures stay in its files. Metres, radians, float64.

    `path` is what it was read from. Cameras of several sizes share one batch (`Camera.extent_px`); where pictures were
    resampled, each frame has lenses of its own, a batch (frames, cameras). A frame whose headset was not tracked is not
    `posed` (None: all are), and has no labels. `world_from_wrist` holds stored, unmirrored transforms: pose the right
    hand through `hands.for_hand`. There may be no `hand_model`, and then no ground truth of landmarks. `pinch` exists
    in recordings of this project and in training shards only.
    """

    path: Path
    camera: Camera
    mounting_angles: Float[Tensor, "cameras"]
    world_from_camera: Float[Tensor, "frames cameras 4 4"]
    hand_model: HandModel | None
    joint_angles: Float[Tensor, "frames 2 22"]
    world_from_wrist: Float[Tensor, "frames 2 4 4"]
    labelled: Bool[Tensor, "frames 2"]
    pinch: Bool[Tensor, "frames 2"] | None = None
    posed: Bool[Tensor, "frames"] | None = None
    frames_per_second: float = float(FRAMES_PER_SECOND)
    pictures: PicturesFrom | None = None

    def __len__(self) -> int:
        return len(self.joint_angles)

    def cameras(self, frame: int) -> PosedCamera:
        """The cameras as placed in a frame."""
        camera = self.camera if self.camera.focal_px.ndim == 2 else self.camera[frame]
        return PosedCamera(camera, self.world_from_camera[frame])

    def hands(self, frame: int, model: HandModel | None = None) -> PosedHands:
        """Both hands as labelled in a frame; `model` is used where the recording has no hand of its own."""
        return PosedHands(
            self.hand_model or model, self.joint_angles[frame], self.world_from_wrist[frame], self.labelled[frame]
        )

    def images(self, start: int = 0) -> Iterator[UInt8[np.ndarray, "cameras height width"]]:
        """The views of every frame from `start` on, in order, decoded one at a time.

        Raises InputError if they are broken, of another size than the cameras, or of another number than the labels.
        """
        if self.pictures is None:
            raise InputError(f"{self.path} holds no pictures that can be read: of HOT3D its clips (.tar) do")
        return self.pictures(start)


def read_recording(path: Path) -> Recording:
    """The recording at a path, in any of the layouts.

    A .tar is a clip of the hand tracking challenge or of HOT3D, a folder a recording of HOT3D, of which there are no
    pictures, and SHARD/clip_NNNNNN a clip of a training shard. Other files are of the `raw_data` layout. Raises
    InputError.
    """
    if is_shard_clip(path):
        return _of_shard_clip(read_shard_clip(path), path)
    if is_tar(path) or is_hot3d_recording(path):
        return _of_clip(read_hot3d(path), path)
    return _read_raw_data(path)


def _of_clip(clip: Hot3dClip, path: Path) -> Recording:
    """A clip as a recording; it tells no frame rate."""
    streams = clip.streams()
    if len(streams) > MAX_CAMERAS:
        raise InputError(f"{path} shows {len(streams)} cameras, expected at most {MAX_CAMERAS}")
    return Recording(
        path,
        as_one([clip.camera[stream] for stream in streams]),
        clip.mounting_angles(streams),
        torch.stack([clip.world_from_camera[stream] for stream in streams], dim=1),
        clip.hand_model,
        clip.joint_angles,
        clip.world_from_wrist,
        clip.labelled,
        posed=clip.headset_tracked,
        pictures=partial(_pictures_of_clip, clip, path) if clip.encoded else None,
    )


def _of_shard_clip(clip: ShardClip, path: Path) -> Recording:
    """A clip of one hand as a recording by two upright cameras, or by one if the second repeats it."""
    hand, frames, of_all = clip.hand, len(clip), clip.cameras
    centers = of_all.world_from_camera[..., :3, 3]
    views = 1 if torch.equal(centers[:, 0], centers[:, 1]) else 2
    angles, pinch = torch.zeros(frames, HANDS, NUM_JOINTS).double(), torch.zeros(frames, HANDS, dtype=torch.bool)
    wrists = torch.eye(4).double().repeat(frames, HANDS, 1, 1)
    angles[:, hand], wrists[:, hand], pinch[:, hand] = clip.joint_angles, clip.world_from_wrist, clip.pinch
    return Recording(
        path,
        of_all.camera[:, :views],
        torch.zeros(views).double(),
        of_all.world_from_camera[:, :views],
        clip.hand_model,
        angles,
        wrists,
        (torch.arange(HANDS) == hand).expand(frames, HANDS),
        pinch=pinch,
        pictures=lambda start: iter(clip.images[start:, :views]),
    )


def _pictures_of_clip(clip: Hot3dClip, path: Path, start: int) -> Iterator[UInt8[np.ndarray, "cameras height width"]]:
    streams = clip.streams()
    with describing(path):
        for frame in range(start, len(clip)):
            yield padded([clip.image(stream, frame) for stream in streams])


def _read_raw_data(path: Path) -> Recording:
    """The recording of a video and the JSON file of the same name beside it.

    The JSON may name `videos`, one per camera, in its folder. Raises InputError for a missing or malformed file, an
    unknown camera model, a wrong number of cameras, arrays or videos whose lengths differ, and values that cannot be
    (`lib.formats.checks`). Hands that are null or NaN, and frames whose camera matrices are null, NaN or all zero,
    count as unlabelled. There may be no labels at all, and no hand model.
    """
    labels_path = path.with_suffix(".json")
    _require(labels_path)
    labels = read_json(labels_path)
    with describing(labels_path):
        with describing("cameras"):
            camera = _read_cameras(labels)
        sizes = tuple(tuple(size) for size in camera.size_px.int().tolist())
        files = _video_files(labels, path, len(sizes))
        hand_model = None
        if field(labels, "hand_model", None) is not None:
            with describing("hand_model"):
                hand_model = hand_from_json(labels["hand_model"])
        why = f": there are {len(sizes)} cameras"
        mounting_angles = json_array(labels, "camera_angles", (len(sizes),), -360.0, 360.0, why=why)
        check_mounting_angles("camera_angles", mounting_angles)
        still = _stands_still(field(labels, _CAMERA_POSES))
        poses = _read_poses(labels, camera, count_all_frames(files, 0)[0] if still else None)
        pinch = {"pinch": json_array(labels, "pinch", (len(poses["labelled"]), 2)) > 0} if "pinch" in labels else {}
    frames = len(poses["labelled"])
    count, rate = count_all_frames(files, frames)
    if count != frames:
        raise other_length(files[0], count, frames)
    return Recording(
        files[0] if len(files) == 1 else labels_path,
        camera,
        torch.deg2rad(mounting_angles),
        hand_model=hand_model,
        frames_per_second=rate,
        pictures=Videos(files, sizes, frames),
        **poses,
        **pinch,
    )


def _require(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"no file {path}: a recording is a video and a .json of the same name beside it")


def _video_files(labels: Json, path: Path, cameras: int) -> tuple[Path, ...]:
    """The videos of a recording: those that its JSON names, one per camera, or the one that lies beside it."""
    names = field(labels, "videos", None)
    if names is None:
        video = path.with_suffix(".mp4") if path.suffix == ".json" else path
        _require(video)
        return (video,)
    if not isinstance(names, list) or len(names) != cameras or len({*map(str, names)}) != cameras:
        raise InputError(f"videos is {names!s:.200}, expected the names of {cameras} files, one per camera")
    files = tuple(path.parent / str(name) for name in names)
    for name, file in zip(names, files, strict=True):
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"videos names {name!s:.200}, expected a file in the folder of the .json")
        if not file.is_file():
            raise InputError(f"no file {file}, which videos names")
    return files


_CAMERA_POSES, _WRISTS = "camera_to_world_transforms", "wrist_transforms"


def _read_poses(labels: Json, camera: Camera, of_fixed_rig: int | None) -> dict[str, Tensor]:
    """The fields of a recording that are given per frame but `pinch`: checked, in metres.

    A hand or frame that is null, not finite or all zeros has no pose. Cameras that are given once (cameras x 4 x 4)
    stand still for all frames of the video, `of_fixed_rig`.
    """
    angles, wrists, confidences = _read_hands(labels)
    count, frames = len(camera.focal_px), None if angles is None else len(angles)
    why = "" if frames is None else f": joint_angles has {frames} frames"
    if of_fixed_rig is None:
        why += f", and there are {count} cameras"
        cameras = json_array(labels, _CAMERA_POSES, (frames, count, 4, 4), absent=2, why=why)
    else:
        cameras = json_array(labels, _CAMERA_POSES, (count, 4, 4), why=f": there are {count} cameras")
        cameras = cameras.expand(frames or of_fixed_rig, count, 4, 4).clone()
    if angles is None:
        angles, wrists, confidences = (torch.zeros(len(cameras), *shape).double() for shape in _HAND_SHAPES)
    given = cameras.isfinite().all(-1).all(-1) & (cameras.abs().amax((-2, -1)) > 0)
    posed = given.all(dim=1)
    labelled = (confidences > 0) & posed[:, None] & angles.isfinite().all(-1)
    labelled &= wrists.isfinite().all(-1).all(-1) & (wrists.abs().amax((-2, -1)) > 0)
    cameras = in_other_unit(_identity_where(cameras, ~given), 1 / MM)
    wrists = in_other_unit(_identity_where(wrists, ~labelled), 1 / MM)
    check_joint_angles("joint_angles", angles, labelled)
    check_rig(_CAMERA_POSES, [f"camera {index}" for index in range(count)], cameras, posed)
    check_wrists((_CAMERA_POSES, _WRISTS), [camera[i] for i in range(count)], cameras, wrists, labelled)
    return {
        "world_from_camera": cameras,
        "joint_angles": torch.where(labelled[..., None], angles, 0.0),
        "world_from_wrist": wrists,
        "labelled": labelled,
        "posed": posed,
    }


def _stands_still(stored: Json) -> bool:
    """Whether camera poses are given once, not for each frame: numbers where else rows of matrices are."""
    for _ in range(3):
        stored = stored[0] if isinstance(stored, list) and stored else None
    return isinstance(stored, int | float)


_HAND_SHAPES = ((2, NUM_JOINTS), (2, 4, 4), (2,))


def _read_hands(labels: Json) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
    """Joint angles, wrists (mm) and confidences of all frames; nothing where the file has none of the three."""
    names = "joint_angles", _WRISTS, "hand_confidences"
    if not any(name in labels for name in names):
        return None, None, None
    angles = json_array(labels, names[0], (None, *_HAND_SHAPES[0]), absent=2)
    why = f": joint_angles has {len(angles)} frames"
    others = [
        json_array(labels, name, (len(angles), *shape), absent=2, why=why)
        for name, shape in zip(names[1:], _HAND_SHAPES[1:], strict=True)
    ]
    return angles, *others


def labels_to_json(recording: Recording) -> dict:
    """The labels of a recording in the `raw_data` layout (mm, degrees); the inverse of what `read_recording` reads."""
    labels = {
        **rig_to_json(recording.camera, recording.mounting_angles, recording.world_from_camera),
        **({} if recording.hand_model is None else {"hand_model": hand_to_json(recording.hand_model)}),
        "joint_angles": recording.joint_angles.tolist(),
        "wrist_transforms": in_other_unit(recording.world_from_wrist, MM).tolist(),
        "hand_confidences": recording.labelled.double().tolist(),
    }
    return labels if recording.pinch is None else labels | {"pinch": recording.pinch.int().tolist()}


def rig_to_json(
    camera: Camera, mounting_angles: Float[Tensor, "cameras"], world_from_camera: Float[Tensor, "*frames cameras 4 4"]
) -> dict:
    """The part of the labels about cameras; a rig without `frames` stands still."""
    model, distortion = next((name, of[1]) for name, of in CAMERA_MODELS.items() if type(camera) is of[0])
    names = ("ImageSizeX", "ImageSizeY", "fx", "fy", "cx", "cy", *distortion)
    parameters = torch.cat((camera.focal_px, camera.center_px, camera.distortion), dim=1).tolist()
    rows = [size + row for size, row in zip(camera.size_px.int().tolist(), parameters, strict=True)]
    return {
        "cameras": [dict(zip(names, row, strict=True)) | {"DistortionModel": model} for row in rows],
        "camera_angles": torch.rad2deg(mounting_angles).tolist(),
        "camera_to_world_transforms": in_other_unit(world_from_camera, MM).tolist(),
    }


CAMERA_MODELS: dict[str, tuple[type[Camera], tuple[str, ...]]] = {
    "FishEye62": (Fisheye62, ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")),
    "FishEye44": (Fisheye44, ("k1", "k2", "k3", "k4", "p1", "p2", "p3", "p4")),
    "FishEye624": (Fisheye624, ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "s1", "s2", "s3", "s4")),
    "KannalaBrandt": (KannalaBrandt, ("k1", "k2", "k3", "k4")),
    "RadialTangential": (RadialTangential, ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")),
    "Pinhole": (Pinhole, ()),
}
"""By their `DistortionModel`, with the names of their parameters. The public recordings have the first; the others are
for recordings of one's own."""


def _read_cameras(labels: Json) -> Camera:
    """The cameras of a recording as one batch. k5 and k6 are zero where the file carries p3 and p4 in their place."""
    stored = field(labels, "cameras")
    if not isinstance(stored, list) or not 1 <= len(stored) <= MAX_CAMERAS:
        got = len(stored) if isinstance(stored, list) else f"a {type(stored).__name__}"
        raise InputError(f"expected 1 to {MAX_CAMERAS} cameras, got {got}")
    models = {str(field(camera, "DistortionModel")) for camera in stored}
    if len(models) > 1 or not models <= CAMERA_MODELS.keys():
        raise InputError(
            f"camera models {', '.join(sorted(models))}: expected one for all cameras, of {', '.join(CAMERA_MODELS)}"
        )
    model, names = CAMERA_MODELS[models.pop()]
    sizes = float64([[whole_number(c, name, 1, MAX_SIDE) for name in ("ImageSizeX", "ImageSizeY")] for c in stored])

    def column(*names: str) -> Tensor:
        rows = [[_lens_parameter(camera, name) for name in names] for camera in stored]
        return torch.tensor(rows, dtype=torch.float64)

    camera = model(
        *sizes.amax(dim=0).int().tolist(), column("fx", "fy"), column("cx", "cy"), column(*names), own_extents(sizes)
    )
    check_lens(camera)
    return camera


def _lens_parameter(camera: Json, name: str) -> Float[Tensor, ""]:
    if name in ("k5", "k6") and name not in camera and {"p3", "p4"} <= camera.keys():
        return float64(0.0)
    return json_array(camera, name, ())


def own_extents(sizes: Float[Tensor, "cameras 2"]) -> Float[Tensor, "cameras 2"] | None:
    """`Camera.extent_px` of a batch of cameras of these sizes."""
    return None if bool((sizes == sizes[0]).all()) else sizes


def as_one(cameras: Sequence[Camera]) -> Camera:
    """Cameras of one model, of any sizes, as one batch."""
    names = ("focal_px", "center_px", "distortion", "size_px")
    *parameters, sizes = (torch.stack([getattr(camera, name) for camera in cameras]) for name in names)
    return type(cameras[0])(*sizes.amax(dim=0).int().tolist(), *parameters, own_extents(sizes))


def _identity_where(
    transforms: Float[Tensor, "*batch 4 4"], mask: Bool[Tensor, "*batch"]
) -> Float[Tensor, "*batch 4 4"]:
    return torch.where(mask[..., None, None], torch.eye(4, dtype=transforms.dtype), transforms)
