"""Made-up recordings, crops, keypoints and datasets, and changes of labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
from conftest import tiny_recording

from lib.crop_cache import CropSequence, Region, crop_sequence
from lib.multistage.keypoints import Keypoints
from lib.multistage.sources import KeypointRequest, KeypointSource, labelled_keypoints
from lib.recordings import Recording

FRAMES = 6
MOTIONS = ("hand_hand", "occlusion", "pinch", "separate_hand")


def tiny_dataset(folder: Path, motions: Sequence[str] = MOTIONS, users: Sequence[int] = (44, 45)) -> Path:
    """A test split of tiny recordings of several lengths; the left hand is unlabelled in frame 2 of every other one."""
    sequences, files = [], {}
    for user in users:
        for index, motion in enumerate(motions):
            frames = FRAMES + index % 3
            tiny = tiny_recording(frames)
            tiny.labels["hand_confidences"][2][0] = float(index % 2)
            tiny.labels["pinch"] = [[0, int(motion == "pinch" and 1 < t < 4)] for t in range(frames)]
            tiny.labels["near_miss"] = [[int(t == 0), 0] for t in range(frames)]
            tiny.labels["sheet"] = [int(t in (2, 3)) for t in range(frames)] if motion == "occlusion" else []
            protocol = "separate_hand" if motion == "pinch" else motion
            parts = ("raw_data/synthetic", protocol, "testing", f"user_{user}", f"recording_{index:02d}.mp4")
            video = folder.joinpath(*parts)
            video.parent.mkdir(parents=True, exist_ok=True)
            written = tiny.write(video.parent)
            for path in (written, written.with_suffix(".json")):
                path.rename(video.with_suffix(path.suffix))
                files[str(video.with_suffix(path.suffix).relative_to(folder))] = "hash"
            sequences.append({"user": user, "index": index, "protocol": motion})
    index = {"fingerprint": "tiny", "sequences": sequences, "sha256": files}
    (folder / "testing.json").write_text(json.dumps(index))
    return folder


def reindex(folder: Path, **changes) -> None:
    """Change the index of a test split."""
    path = folder / "testing.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def changed(change: Callable[[KeypointRequest, Keypoints], Keypoints]) -> KeypointSource:
    """True keypoints, changed."""
    return lambda requests: list(map(change, requests, labelled_keypoints(requests)))


def cached(recording: Recording) -> CropSequence:
    """The crops of a recording as the training cache keeps them."""
    images = list(recording.images())

    def picture(frame: int, camera: int, region: Region) -> np.ndarray:
        x0, y0, x1, y1 = region
        return images[frame][camera, y0:y1, x0:x1]

    return crop_sequence(recording, picture)


def put(*path_and_value):
    """A change of labels: `put("cameras", 1, "fx", 3.0)` sets labels["cameras"][1]["fx"] = 3.0."""
    *path, last, value = path_and_value

    def change(labels: dict) -> None:
        reduce(getitem, path, labels)[last] = value

    return change


def drop(*path):
    """A change of labels that deletes an entry."""

    def change(labels: dict) -> None:
        del reduce(getitem, path[:-1], labels)[path[-1]]

    return change
