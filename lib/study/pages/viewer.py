"""The viewer: one page that shows the hands of recordings in 3D, tracked and true, and what the network saw of them.

The page opens from disk and loads nothing. It holds joint angles, wrists and hand models, and poses the meshes itself:
`viewer.js` repeats `HandModel.bones` and `hands.skin`.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lib.checkpoints import load_network
from lib.crops import CROP_SIZE, MAX_VIEWS, make_crops
from lib.errors import InputError
from lib.files import write_atomically
from lib.hands import HANDS, SKELETON_EDGES, HandModel, HandPoses, PosedHands
from lib.metrics import landmark_errors
from lib.multistage.networks import keypoint_source
from lib.multistage.tracker import MultistageTracker
from lib.recordings import Recording, read_recording
from lib.study.figures.qualitative import video_of
from lib.study.methods import KEYPOINTS
from lib.study.pages.stage import frusta, stage_from_world
from lib.study.predictions import trained_weights
from lib.study.results import ROOT
from lib.study.tables import BASELINE, TEMPORAL
from lib.tracking import Tracker, Tracks
from lib.transforms import invert

RECORDINGS = {
    "separate_hand/user_44/recording_00": "Separate hands",
    "hand_hand/user_44/recording_01": "Two hands together",
    "separate_hand/user_44/recording_02": "Pinches",
    "occlusion/user_44/recording_07": "Behind an occluder",
    "separate_hand/user_45/recording_03": "Separate hands, another user",
    "hand_hand/user_45/recording_04": "Two hands together, another user",
}
"""What is shown by default: the first of each kind of two test users, in every profile."""
METHODS = {TEMPORAL: "End-to-end network", BASELINE: "Multi-stage baseline"}
_SHEET_FRAMES = 120
"""Crops of so many frames share a picture: no side of a WebP picture has more than 16,383 pixels."""
_WEBP_QUALITY = 70


@dataclass(frozen=True)
class TrackedRecording:
    """A recording and its tracks with poses, by what they are called on the page; the first crops unlabelled hands."""

    title: str
    recording: Recording
    tracks: Mapping[str, Tracks]


def write_viewer(
    path: Path, recordings: Sequence[str], methods: Sequence[str], profile: str, data_folder: Path | None = None
) -> None:
    """Track recordings of the test split, PROTOCOL/user_NN/recording_NN, with known skeletons, and write the page.

    Methods are experiments or `multistage`. Raises InputError if weights or recordings are missing.
    """
    data_folder = data_folder or ROOT / "data" / profile
    read = [read_recording(video_of(data_folder, name)) for name in recordings]
    tracks = {METHODS.get(name, name): track(name, profile, read) for name in methods}
    write_page(
        path,
        [
            TrackedRecording(RECORDINGS.get(name, name), recording, {m: of[i] for m, of in tracks.items()})
            for i, (name, recording) in enumerate(zip(recordings, read, strict=True))
        ],
    )


def track(method: str, profile: str, recordings: Sequence[Recording]) -> list[Tracks]:
    """The tracks of recordings with known skeletons, by an experiment or `multistage`.

    Raises InputError if weights are missing.
    """
    if method == BASELINE:
        tracker = MultistageTracker(keypoint_source(trained_weights(profile, KEYPOINTS), "cpu"))
    else:
        tracker = Tracker(load_network(trained_weights(profile, method)))
    return [tracker.track_known(recording, recording.hand_model) for recording in recordings]


def write_page(path: Path, recordings: Sequence[TrackedRecording]) -> None:
    """Write the page of tracked recordings. Raises InputError for tracks without poses or of another length."""
    hands: list[dict] = []
    shown = [_recording_to_json(one, hands) for one in recordings]
    about = {"cropSize": CROP_SIZE, "sheetFrames": _SHEET_FRAMES, "edges": SKELETON_EDGES}
    data = {**about, "hands": hands, "recordings": shown}
    write_atomically(path, lambda temporary: temporary.write_text(_page(data), encoding="utf-8"))


def _page(data: Mapping) -> str:
    folder = Path(__file__).parent
    page = (folder / "viewer.html").read_text(encoding="utf-8")
    parts = {name: (folder / name).read_text(encoding="utf-8") for name in ("viewer.css", "viewer.js")}
    parts["data"] = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    for name, part in parts.items():
        page = page.replace(f"{{{{ {name} }}}}", part)
    return page


def _recording_to_json(shown: TrackedRecording, hands: list[dict]) -> dict:
    """All that the page knows of a recording; adds the hands that it poses to `hands`."""
    recording = shown.recording
    for name, tracks in shown.tracks.items():
        if tracks.poses is None or tracks.valid_tracking.shape[1] != len(recording):
            raise InputError(
                f"tracks of {name}: expected the poses of {len(recording)} frames, as {recording.path} has"
            )
    first = next(iter(shown.tracks.values())).poses
    poses = {name: tracks.poses for name, tracks in shown.tracks.items()}
    truth = _true_poses(recording)
    stage = stage_from_world(recording, first if truth is None else truth)
    return {
        "title": shown.title,
        "frames": len(recording),
        "framesPerSecond": recording.frames_per_second,
        "cameras": packed((stage @ recording.world_from_camera)[..., :3, :]),
        "frusta": packed(frusta(recording)),
        "crops": _crops_to_json(recording, first, stage),
        "truth": None if truth is None else _poses_to_json(truth, stage, hands),
        "methods": [
            {"name": name, "errors": _errors(shown.tracks[name]), **_poses_to_json(of, stage, hands)}
            for name, of in poses.items()
        ],
    }


def _true_poses(recording: Recording) -> HandPoses | None:
    """The labelled hands; None where there are none, or it is not known whose they are."""
    if recording.hand_model is None or not recording.labelled.any():
        return None
    angles, wrists, labelled = (
        value.transpose(0, 1) for value in (recording.joint_angles, recording.world_from_wrist, recording.labelled)
    )
    return HandPoses(recording.hand_model, angles, wrists, labelled.double())


def _crops_to_json(recording: Recording, poses: HandPoses, stage: Float[Tensor, "4 4"]) -> dict:
    """The crops around the labelled hands or, if none is labelled, around the tracked ones, and their cameras."""
    frames, size = len(recording), CROP_SIZE
    pictures = np.zeros((frames, HANDS, MAX_VIEWS, size, size), np.uint8)
    focal_px, crop_from_stage = torch.ones(frames, HANDS, MAX_VIEWS), torch.zeros(frames, HANDS, MAX_VIEWS, 3, 4)
    views = torch.zeros(frames, HANDS, dtype=torch.int64)
    labelled = bool(recording.labelled.any())
    for frame, images in enumerate(recording.images()):
        hands = recording.hands(frame, poses.model) if labelled else _hands_of(poses, frame)
        chosen, crops = make_crops(images, recording.cameras(frame), recording.mounting_angles, hands, min_views=1)
        pictures[frame, chosen] = (crops.images * 255).round().byte().numpy()
        focal_px[frame, chosen] = crops.focal_px
        crop_from_stage[frame, chosen] = (crops.camera_from_world.double() @ invert(stage))[..., :3, :].float()
        views[frame, chosen] = 1 + crops.two_views.long()
    pictures[views.numpy() < MAX_VIEWS, 1] = 0
    return {
        "views": views.tolist(),
        "focal": packed(focal_px),
        "cameras": packed(crop_from_stage),
        "sheets": [_sheet(pictures[start : start + _SHEET_FRAMES]) for start in range(0, frames, _SHEET_FRAMES)],
    }


def _hands_of(poses: HandPoses, frame: int) -> PosedHands:
    return PosedHands(
        poses.model, poses.joint_angles[:, frame], poses.world_from_wrist[:, frame], poses.confidence[:, frame] > 0
    )


def _sheet(pictures: UInt8[np.ndarray, "frames 2 2 size size"]) -> str:
    """A picture with a row per frame, as a data URI."""
    frames, size = len(pictures), pictures.shape[-1]
    sheet = pictures.reshape(frames, -1, size, size).swapaxes(1, 2).reshape(frames * size, -1)
    encoded = cv2.imencode(".webp", sheet, [cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY])[1]
    return f"data:image/webp;base64,{b64encode(encoded).decode()}"


def _poses_to_json(poses: HandPoses, stage: Float[Tensor, "4 4"], hands: list[dict]) -> dict:
    """Poses of both hands; wrists pose the left model as either hand."""
    return {
        "hand": _index_of(poses.model, hands),
        "angles": packed(poses.joint_angles),
        "wrists": packed((stage @ poses.wrists)[..., :3, :]),
        "shown": (poses.confidence > 0).int().tolist(),
    }


def _index_of(hand: HandModel, hands: list[dict]) -> int:
    """Where the hand lies in `hands`, to which it is added if it is new."""
    stored = _hand_to_json(hand)
    if stored not in hands:
        hands.append(stored)
    return hands.index(stored)


def _hand_to_json(hand: HandModel) -> dict:
    """A hand at rest; without a mesh its skeleton is drawn."""
    parts = {
        "axes": packed(hand.joint_rotation_axes),
        "joints": packed(hand.joint_rest_positions),
        "landmarks": packed(hand.landmark_rest_positions),
        "landmarkWeights": packed(hand.landmark_bone_weights),
    }
    if hand.mesh_vertices is None:
        return parts
    return parts | {
        "vertices": packed(hand.mesh_vertices),
        "weights": packed(hand.mesh_bone_weights),
        "triangles": b64encode(hand.mesh_triangles.numpy().astype("<u4").tobytes()).decode(),
    }


def _errors(tracks: Tracks) -> list[list[float | None]]:
    """The mean error of the landmarks by hand and frame, mm; None where a hand is not tracked or not labelled."""
    errors = np.where(tracks.evaluated, landmark_errors(tracks.tracked_keypoints, tracks.gt_keypoints).mean(-1), np.nan)
    return [[None if np.isnan(error) else round(error, 1) for error in hand] for hand in errors.tolist()]


def packed(values: Float[Tensor, "..."] | Iterable) -> dict:
    """Numbers as 16-bit integers: `scale` times what `int16` holds, in rows, little-endian."""
    array = np.asarray(values, np.float64)
    scale = max(np.abs(array).max(initial=0.0), 1e-9) / 32767
    return {
        "shape": array.shape,
        "scale": scale,
        "int16": b64encode((array / scale).round().astype("<i2").tobytes()).decode(),
    }
