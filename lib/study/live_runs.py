"""What live trackers make of the test recordings and of the same under conditions: computed once, kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from lib.cameras import PosedCamera
from lib.checkpoints import load_network
from lib.cores import available_cores
from lib.crops import sees_hand
from lib.errors import InputError
from lib.files import BROKEN_ARRAYS, MM, load_arrays, save_arrays, sha256_of
from lib.live.confidence import Confidence, confidence_path, read_confidence
from lib.live.hands import Detect, LiveHands
from lib.live.tracker import LiveTracker
from lib.machines import commit, in_processes
from lib.multistage.detection import detect
from lib.multistage.networks import detnet
from lib.network import UmeTrack
from lib.recordings import FRAMES_PER_SECOND, Recording, read_recording
from lib.rendered.dataset import SequenceKey
from lib.rendered.index import read_index
from lib.study.live_conditions import AS_RENDERED, CONDITIONS, StreamFrame, empty_recording, stream_of
from lib.study.predictions import provenance, trained_weights
from lib.study.results import results_folder
from lib.study.sequences import SequenceName, named_sequences
from lib.study.tables import TEMPORAL
from lib.tracking import true_keypoints

LIVE_VERSION = 1
"""Raised whenever the same weights and data no longer give the same live tracks: live trackers and conditions."""
NO_HANDS = "no hands"
"""The condition of an empty room."""


@runtime_checkable
class Stepping(Protocol):
    """A live tracker, as the study drives it."""

    def start(self) -> object:
        """The state before the first frame."""

    def step(self, images: np.ndarray, cameras: PosedCamera, time: float, state: object) -> tuple[LiveHands, object]:
        """The hands in a frame, and the state after it."""


@dataclass(frozen=True)
class LiveMethod:
    """A live tracker under the name of its predictions from ground-truth crops: `begin` makes it of its weights, for
    the rig and the hand of a recording."""

    name: str
    weights: tuple[Path, ...]
    begin: Callable[[tuple[Path, ...], Recording], Stepping]


def live_methods(profile: str) -> list[LiveMethod]:
    """The live trackers of the study, with known skeletons. Raises InputError if weights are missing."""
    network, detector = (trained_weights(profile, name) for name in (TEMPORAL, "detnet"))
    read_confidence(network)  # says what to do where there is none
    return [LiveMethod(TEMPORAL, (network, detector, confidence_path(network)), _end_to_end)]


def _end_to_end(weights: tuple[Path, ...], recording: Recording) -> LiveTracker:
    return LiveTracker(*_networks(*weights[:2]), recording.mounting_angles, recording.hand_model)


@cache
def _networks(network: Path, detector: Path) -> tuple[UmeTrack, Detect, Confidence]:
    """Read once in each process."""
    return load_network(network), partial(detect, detnet(detector, "cpu")), read_confidence(network)


@dataclass(frozen=True)
class LiveRun(SequenceName):
    """A stream as a live tracker followed it, by time at `FRAMES_PER_SECOND`; keypoints in mm in the world.

    A hand that is followed has a `confidence` above 0, and is `tracked` if that is high.

    Only frames that are `shown` reached the tracker, as frame `source` of the recording. A hand that is `present` has
    labels; it is `visible` where a camera that shows something sees it (`crops.sees_hand`), hidden or not. Tracked
    keypoints are zero where it is not followed, true ones where it is not present.
    """

    tracked_keypoints: Float[np.ndarray, "2 frames 21 3"]
    gt_keypoints: Float[np.ndarray, "2 frames 21 3"]
    confidence: Float[np.ndarray, "2 frames"]
    tracked: Bool[np.ndarray, "2 frames"]
    present: Bool[np.ndarray, "2 frames"]
    visible: Bool[np.ndarray, "2 frames"]
    shown: Bool[np.ndarray, "frames"]
    source: Int[np.ndarray, "frames"]


LiveRuns = Mapping[str, tuple[LiveRun, ...]]
"""By condition."""


def follow(about: SequenceName, tracker: Stepping, recording: Recording, stream: Iterable[StreamFrame]) -> LiveRun:
    """Drive a tracker through the stream of a recording."""
    truth, state = true_keypoints(recording), tracker.start()
    frames: dict[int, dict[str, np.ndarray | int | bool]] = {}
    for frame in stream:
        hands, state = tracker.step(frame.images, frame.cameras, frame.time, state)
        followed, true = hands.confidence.numpy() > 0, truth[:, frame.source]
        present = np.isfinite(true).all(axis=(-2, -1))
        seen = sees_hand(recording.cameras(frame.source), torch.from_numpy(true) / MM).numpy()
        frames[round(frame.time * FRAMES_PER_SECOND)] = {
            "tracked_keypoints": np.where(followed[:, None, None], hands.landmarks.numpy() * MM, 0),
            "gt_keypoints": np.where(present[:, None, None], true, 0),
            "confidence": hands.confidence.numpy(),
            "tracked": hands.tracked.numpy(),
            "present": present,
            "visible": (seen & frame.on).any(axis=-1) & present,
            "shown": True,
            "source": frame.source,
        }
    return LiveRun(about.name, about.motion, **_by_time(frames))


def _by_time(frames: Mapping[int, Mapping[str, np.ndarray | int | bool]]) -> dict[str, np.ndarray]:
    """Arrays over all frames up to the last; zero where there is none."""
    places, first = list(frames), next(iter(frames.values()))
    arrays = {}
    for name, value in first.items():
        values = np.array([frame[name] for frame in frames.values()])
        values = values.astype(np.float32) if values.dtype.kind == "f" else values
        whole = np.zeros((max(places) + 1, *values.shape[1:]), values.dtype)
        whole[places] = values
        arrays[name] = whole.swapaxes(0, 1) if np.ndim(value) else whole
    return arrays


def live_runs(profile: str, data_folder: Path, method: LiveMethod, workers: int | None = None) -> LiveRuns:
    """What a live tracker makes of the test split, from its file or, if that is outdated, anew, in processes.

    All recordings as rendered; under each other condition, and in the empty rooms, those of `one_of_each_user`. The
    file is results/PROFILE/predictions/live_METHOD.npz. Raises InputError if weights or data are missing.
    """
    path = results_folder(profile) / "predictions" / f"live_{method.name}.npz"
    made_from = live_provenance(method, data_folder)
    stored = _read(path, made_from)
    if stored is None:
        jobs = {}
        for condition, index, (about, opened) in _planned(data_folder):
            jobs[condition, about] = partial(_track, method, about, opened, condition, index)
        title = f"live, {method.name}"
        made = in_processes(jobs, workers or available_cores(), title, "stream")
        stored = [(condition, run) for (condition, _), run in made.items()]
        _save(path, made_from, stored)
    runs: dict[str, list[LiveRun]] = {}
    for condition, run in stored:
        runs.setdefault(condition, []).append(run)
    return {condition: tuple(several) for condition, several in runs.items()}


def live_provenance(method: LiveMethod, data_folder: Path) -> dict[str, str | int]:
    """What the runs of a method are made from. Raises InputError if data are missing."""
    weights = hashlib.sha256(" ".join(map(sha256_of, method.weights)).encode()).hexdigest()
    return provenance(weights, data_folder, "test") | {"method": method.name, "live": LIVE_VERSION}


def one_of_each_user(sequences: Sequence[SequenceName]) -> list[SequenceName]:
    """A recording of each user, of separate hands and of hand-hand in turn."""
    chosen = []
    for index, user in enumerate(sorted({about.user for about in sequences})):
        own = [about for about in sequences if about.user == user]
        motion = ("separate_hand", "hand_hand")[index % 2]
        chosen.append(next((about for about in own if about.motion == motion), own[0]))
    return chosen


_Planned = tuple[str, int, tuple[SequenceName, Callable[[], Recording]]]


def _planned(data_folder: Path) -> list[_Planned]:
    """Which streams there are: the condition, a seed, and the recording."""
    sequences = dict(named_sequences(data_folder, "test"))
    some = one_of_each_user(list(sequences))
    keys = {(s["user"], s["index"]): s for s in read_index(data_folder, "test")["sequences"]}
    planned = []
    for condition in CONDITIONS:
        for index, about in enumerate(sequences if condition == AS_RENDERED else some):
            opened = partial(read_recording, sequences[about].with_suffix(".mp4"))
            planned.append((condition, index, (about, opened)))
    for index, about in enumerate(some):
        key = keys[int(about.user.removeprefix("user_")), int(about.name.rpartition("_")[2])]
        planned.append((NO_HANDS, index, (about, partial(empty_recording, SequenceKey(**key)))))
    return planned


def _track(
    method: LiveMethod, about: SequenceName, opened: Callable[[], Recording], condition: str, seed: int
) -> LiveRun:
    recording = opened()
    stream = CONDITIONS.get(condition, CONDITIONS[AS_RENDERED])(stream_of(recording), seed)
    return follow(about, method.begin(method.weights, recording), recording, stream)


_ARRAYS = tuple(field.name for field in fields(LiveRun) if field.name not in ("name", "motion"))


def _save(path: Path, made_from: Mapping, runs: Sequence[tuple[str, LiveRun]]) -> None:
    listed = [(condition, run.name, run.motion) for condition, run in runs]
    manifest = {"made_from": made_from, "commit": commit(), "runs": listed}
    arrays = {"manifest": np.array(json.dumps(manifest))}
    for index, (_, run) in enumerate(runs):
        arrays |= {f"{index:04d}/{name}": getattr(run, name) for name in _ARRAYS}
    save_arrays(path, arrays)


def _read(path: Path, made_from: Mapping) -> list[tuple[str, LiveRun]] | None:
    """The runs of a file; None if there is none, or it was made from something else. Raises InputError if broken."""
    if not path.is_file():
        return None
    try:
        manifest = json.loads(str(load_arrays(path, ["manifest"])["manifest"]))
        if manifest["made_from"] != made_from:
            return None
        stored = load_arrays(path)
        return [
            (condition, LiveRun(name, motion, **{field: stored[f"{index:04d}/{field}"] for field in _ARRAYS}))
            for index, (condition, name, motion) in enumerate(manifest["runs"])
        ]
    except BROKEN_ARRAYS as error:
        raise InputError(f"{path} is not a complete file of live runs: {error}; delete it to make it again") from error
