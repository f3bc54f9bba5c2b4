"""The sequences that methods are judged on: test recordings, and the validation users of the training split.

The crops of the test split are the same for every method that takes its crops from the labelled pose, so they are cut
out of the videos once and kept in the form of the training cache, whose middle is what the tracker sees.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from lib.crop_cache import CropSequence, Region, ViewSequence, crop_sequence, view_sequence
from lib.files import MM, fingerprint, read_json
from lib.formats.folders import RecordingName
from lib.hands import HANDS, for_hand
from lib.machines import in_processes, without_result
from lib.recordings import Recording, read_recording
from lib.rendered.index import read_index, split_users, training_files

EvaluatedSplit = Literal["test", "validation"]
CROPS_VERSION = 1
"""Raised whenever the same recording no longer gives the same crops."""


@dataclass(frozen=True)
class SequenceName:
    """`name` is PROTOCOL/user_NN/recording_NN; `motion` is the protocol, or `pinch`, which is part of separate-hand."""

    name: str
    motion: str

    @property
    def protocol(self) -> str:
        """separate_hand, hand_hand or occlusion."""
        return self.name.split("/")[0]

    @property
    def user(self) -> str:
        """user_NN"""
        return self.name.split("/")[1]


@dataclass(frozen=True)
class LabelledSequence(SequenceName):
    """Crops and labels of a sequence, and its video, which the training split has not.

    `near_miss` marks hands that nearly pinch, `sheet` the frames in which one passes before a hand; both are all False
    in the training split.
    """

    crops: CropSequence
    near_miss: Bool[np.ndarray, "frames 2"]
    occluder: Bool[np.ndarray, "frames"]
    video: Path | None = None

    def true_keypoints(self) -> Float[np.ndarray, "2 frames 21 3"]:
        """The labelled landmarks, mm in the world; they mean nothing where no camera sees the hand."""
        crops = self.crops
        angles, wrists = (
            torch.from_numpy(values).double().transpose(0, 1) for values in (crops.joint_angles, crops.world_from_wrist)
        )
        wrists = for_hand(wrists, torch.arange(HANDS)[:, None].expand(wrists.shape[:2]))
        return crops.hand_model.to(dtype=torch.float64).landmarks(angles, wrists).numpy() * MM


def split_fingerprint(folder: Path, split: EvaluatedSplit) -> str:
    """Identifies the data of a split. Raises InputError if the split is not there or not complete."""
    if split == "validation":
        return fingerprint(training_files(folder, "crops"))
    return read_index(folder, split)["fingerprint"]


def load_sequences(folder: Path, split: EvaluatedSplit, workers: int = 2) -> list[LabelledSequence]:
    """All sequences of a split, by protocol, user and recording, loaded by `workers` threads.

    Crops of test recordings are taken the first time, and kept below `folder`/test_crops under the fingerprint of the
    recordings. Raises InputError if anything is missing or broken.
    """
    loads = _loads(folder, split)
    with ThreadPoolExecutor(workers) as pool:
        loaded = pool.map(lambda load: load(), loads)
        return list(tqdm(loaded, f"crops of the {split} split", len(loads), unit="sequence"))


def keep_test_crops(folder: Path, workers: int) -> None:
    """Take the crops of all test recordings, in processes, so that they need but be loaded. Raises InputError."""
    jobs = {index: partial(without_result, load) for index, load in enumerate(_loads(folder, "test"))}
    in_processes(jobs, workers, "crops of the test split", "sequence")


def named_sequences(folder: Path, split: EvaluatedSplit) -> list[tuple[SequenceName, Path]]:
    """The sequences of a split, by protocol, user and recording: names, and paths without suffix. Raises InputError."""
    index = read_index(folder, "train" if split == "validation" else split)
    if split == "validation":
        _, stems = split_users(folder, training_files(folder, "crops"))
    else:
        stems = sorted({(folder / path).with_suffix("") for path in index["sha256"]})
    motions = {(s["user"], s["index"]): s["protocol"] for s in index["sequences"]}
    sequences = []
    for stem in stems:
        name = RecordingName.of(stem)
        motion = motions[int(name.user.removeprefix("user_")), int(name.recording.removeprefix("recording_"))]
        sequences.append((SequenceName(f"{name.protocol}/{name.user}/{name.recording}", motion), stem))
    return sequences


def _loads(folder: Path, split: EvaluatedSplit) -> list[Callable[[], LabelledSequence]]:
    """What loads each sequence of a split."""
    sequences = named_sequences(folder, split)
    if split == "validation":
        return [partial(_load_validation, about, stem) for about, stem in sequences]
    kept = folder / "test_crops" / f"{split_fingerprint(folder, split)}-{CROPS_VERSION}"
    return [partial(_load_test, about, stem, kept) for about, stem in sequences]


def _load_validation(about: SequenceName, path: Path) -> LabelledSequence:
    crops = CropSequence.load(path)
    none = np.zeros((len(crops), HANDS), bool)
    return LabelledSequence(about.name, about.motion, crops, near_miss=none, occluder=none[:, 0])


def _load_test(about: SequenceName, path: Path, kept: Path) -> LabelledSequence:
    video = path.with_suffix(".mp4")
    if (kept / about.name).with_suffix(".npz").is_file():
        crops = CropSequence.load(kept / about.name)
    else:
        crops = crops_of_recording(read_recording(video))
        with suppress(OSError):  # a dataset that may only be read: they are cut again next time
            crops.save(kept / about.name)
    labels = read_json(video.with_suffix(".json"))
    occluder = np.array(labels["sheet"] or np.zeros(len(crops)), bool)
    return LabelledSequence(about.name, about.motion, crops, np.array(labels["near_miss"], bool), occluder, video)


def crops_of_recording(recording: Recording) -> CropSequence:
    """The crops of a recording, its video decoded once. Raises InputError if the video is broken."""
    shown = Playing(recording)

    def picture(frame: int, camera: int, region: Region) -> UInt8[np.ndarray, "height width"]:
        x0, y0, x1, y1 = region
        return shown(frame)[camera, y0:y1, x0:x1]

    crops = crop_sequence(recording, picture)
    shown.end()
    return crops


def views_of_recording(recording: Recording) -> ViewSequence:
    """What DetNet learns from a recording, its video decoded once. Raises InputError if the video is broken."""
    shown = Playing(recording)
    views = view_sequence(recording, shown)
    shown.end()
    return views


class Playing:
    """The views of a recording by frame, asked for in order."""

    def __init__(self, recording: Recording):
        self.images = enumerate(recording.images())
        self.now = next(self.images)

    def __call__(self, frame: int) -> UInt8[np.ndarray, "cameras height width"]:
        """The views of a frame that is not before the last one asked for."""
        while self.now[0] < frame:
            self.now = next(self.images)
        return self.now[1]

    def end(self) -> None:
        """Decode the rest: it raises if there are too few frames."""
        for _ in self.images:
            pass
