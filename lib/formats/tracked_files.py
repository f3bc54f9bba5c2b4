"""Tracked hands in the forms that other programs read: JSON, CSV and the labels of the `raw_data` layout."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from lib.files import write_atomically
from lib.hands import HAND_NAMES, LANDMARKS, NUM_JOINTS
from lib.recordings import Recording, labels_to_json
from lib.tracking import Tracks


def write_tracks(tracks: Tracks, recording: Recording, path: Path, form: str = "npz") -> None:
    """Write the tracks of a recording, with their poses, under the final name only when complete.

    mm, rad and seconds since the first frame in all of them. `raw_data` is a .json that `read_recording` and the public
    code read as labels, if it lies beside the video under its name.
    """
    if form == "npz":
        tracks.save(path, recording.frames_per_second)
        return
    text = TEXTS[form](tracks, recording)
    write_atomically(path, lambda temporary: temporary.write_text(text))


def _json(tracks: Tracks, recording: Recording) -> str:
    """An object with one entry per hand, each an object of arrays by frame; null where the hand was not tracked."""
    arrays = tracks.arrays(recording.frames_per_second)
    content = {"timestamps": arrays["timestamps"].tolist(), "hand_model": json.loads(str(arrays["hand_model"]))}
    if tracks.scale is not None:
        content["scale"] = tracks.scale
    for hand, name in enumerate(HAND_NAMES):
        valid = arrays["valid_tracking"][hand]
        content[name] = {"confidence": arrays["confidence"][hand].tolist()}
        if tracks.pinches is not None:
            content[name]["pinches"] = [{"begin": p.begin, "end": p.end} for p in tracks.pinches if p.hand == hand]
        for field, stored in (("joint_angles",) * 2, ("world_from_wrist",) * 2, ("landmarks", "tracked_keypoints")):
            content[name][field] = [
                v if ok else None for v, ok in zip(arrays[stored][hand].tolist(), valid, strict=True)
            ]
    return json.dumps(content)


def _csv(tracks: Tracks, recording: Recording) -> str:
    """A row for each tracked hand in each frame; of a live tracker, 1 where it pinches."""
    arrays = tracks.arrays(recording.frames_per_second)
    angles = [f"joint_angle_{joint}" for joint in range(NUM_JOINTS)]
    points = [f"{name.replace(' ', '_')}_{axis}" for name in LANDMARKS for axis in "xyz"]
    wrist = [f"wrist_{axis}" for axis in ("x", "y", "z", "qw", "qx", "qy", "qz")]
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    pinching = [] if tracks.pinches is None else ["pinching"]
    rows.writerow(["frame", "timestamp", "hand", "confidence", *pinching, *wrist, *angles, *points])
    for frame, hand in np.argwhere(tracks.valid_tracking.T).tolist():
        pose = arrays["world_from_wrist"][hand, frame]
        rotation = Rotation.from_matrix(pose[:3, :3]).as_quat(scalar_first=True)
        numbers = (pose[:3, 3], rotation, arrays["joint_angles"][hand, frame], arrays["tracked_keypoints"][hand, frame])
        time = arrays["timestamps"][frame]
        before = [frame, f"{time:.6f}", HAND_NAMES[hand], f"{arrays['confidence'][hand, frame]:.4f}"]
        before += [int(_pinches(tracks, hand, time))] if pinching else []
        rows.writerow([*before, *(f"{value:.6f}" for value in np.concatenate([part.ravel() for part in numbers]))])
    return text.getvalue()


def _pinches(tracks: Tracks, hand: int, time: float) -> bool:
    """Whether a hand pinches: from the frame in which that begins to the one before that in which it ends."""
    return any(p.hand == hand and p.begin <= time and (p.end is None or time < p.end) for p in tracks.pinches)


def _raw_data(tracks: Tracks, recording: Recording) -> str:
    """The labels of the recording, with what was tracked in place of what was labelled."""
    poses, valid = tracks.poses, torch.from_numpy(tracks.valid_tracking)
    frames = {"joint_angles": poses.joint_angles, "world_from_wrist": poses.world_from_wrist, "labelled": valid}
    tracked = {name: values.transpose(0, 1).contiguous() for name, values in frames.items()}
    return json.dumps(labels_to_json(replace(recording, hand_model=poses.model, pinch=None, **tracked)))


TEXTS = {"json": _json, "csv": _csv, "raw_data": _raw_data}
"""What writes each form but npz."""
