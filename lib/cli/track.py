"""`track`, and the tracking that others time."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch

from lib.checkpoints import load_network
from lib.errors import InputError
from lib.files import refuse_overwriting, sha256_of
from lib.filters import OneEuroFilter
from lib.formats.folders import files_of
from lib.formats.hand_files import read_hand
from lib.formats.tracked_files import write_tracks
from lib.hands import HAND_NAMES
from lib.live.confidence import confidence_path, read_confidence
from lib.live.realtime import Play, RealTime, in_order
from lib.live.recordings import StreamTracker
from lib.live.tracker import LiveTracker
from lib.metrics import auc, mpjpa, mpjpe, pck
from lib.multistage.detection import detect
from lib.multistage.networks import detector, detnet, keypoint_source
from lib.multistage.tracker import MultistageTracker
from lib.overlay import write_overlay
from lib.recordings import Recording, read_recording
from lib.rendered.shape import generic_hand
from lib.study.predictions import SkeletonKind
from lib.study.results import results_folder
from lib.tracking import CALIBRATION_SAMPLES, Tracker, Tracks


def run_track(options: argparse.Namespace) -> None:
    """Track a recording, save the result, print the metrics."""
    if options.realtime and (options.crops, options.method) != ("own", "umetrack"):
        raise InputError("--realtime is for crops of the tracker's own: add --crops own, without --method multistage")
    smoothing = OneEuroFilter(*options.smooth) if options.smooth else None
    play = RealTime() if options.realtime else in_order
    method = replace(method_of(options), play=play)
    read = _tracked_files(options, method)
    refuse_overwriting({"--output": options.output, "--overlay": options.overlay}, read)
    recording = read_recording(options.recording)
    tracks = method.track(recording, options.skeleton)
    frames = play.shown if options.realtime else range(len(recording))
    if smoothing:
        tracks = smoothed(tracks, smoothing, recording, frames)
    write_tracks(tracks, recording, options.output, options.format)
    print(describe(tracks))
    if options.realtime:
        print(play.describe(recording))
    if options.overlay:
        write_overlay(recording, tracks, options.overlay)


def smoothed(tracks: Tracks, smoothing: OneEuroFilter, recording: Recording, frames: Iterable[int]) -> Tracks:
    """The tracks with filtered landmarks; other than the given `frames` were not shown. Poses are left as they are."""
    keypoints, state = tracks.tracked_keypoints.copy(), None
    for frame in frames:
        time = frame / recording.frames_per_second
        state = smoothing.smooth(keypoints[:, frame], tracks.valid_tracking[:, frame], time, state)
        keypoints[:, frame] = state.keypoints_mm
    return replace(tracks, tracked_keypoints=keypoints)


def _tracked_files(options: argparse.Namespace, method: Method) -> dict[str, Path]:
    """What `track` reads, by the names that its messages give them."""
    files = {f"of the recording, {path.name}": path for path in files_of(options.recording)}
    if options.generic_hand:
        files["the generic hand"] = options.generic_hand
    of_folder = method.weights.glob("*.safetensors") if method.weights.is_dir() else ()
    return files | {f"of the weights, {path.name}": path for path in [*method.files(), *of_folder]}


def method_of(options: argparse.Namespace) -> Method:
    """The method that is asked for."""
    weights, generic = options.weights or released_weights(options.method), options.generic_hand
    samples = options.calibration_samples
    return Method(options.method, weights, options.crops, options.device, generic, samples, options.detector)


RELEASED = {"umetrack": "full_temporal_loss.safetensors", "multistage": ""}
"""The weights of a method among the released ones: a file, or all of them."""


def released_weights(method: str) -> Path:
    """The weights of a method unless others are given."""
    return results_folder("reference") / "checkpoints" / RELEASED[method]


DETECTOR = "detnet.safetensors"
TRACKS_VERSION = 1
"""Raised whenever the same weights and recording no longer give the same tracks."""


@dataclass(frozen=True)
class Method:
    """What tracks recordings. The weights are a file, those of the baseline a folder with keynet and detnet."""

    name: Literal["umetrack", "multistage"]
    weights: Path
    crops: Literal["labelled", "own"] = "labelled"
    device: str = "cpu"
    generic: Path | None = None
    """File of the hand whose scale is calibrated; None: this study's own."""
    calibration_samples: int = CALIBRATION_SAMPLES
    detector: Path | None = None
    """Weights of the detector; None: those beside the others, or the released ones."""
    play: Play = in_order
    """How the recording is shown to a tracker with crops of its own."""

    def tracker(self) -> Tracker | StreamTracker | MultistageTracker:
        """A new tracker. Raises InputError if weights are missing."""
        if self.name == "umetrack" and self.crops == "own":
            sees = partial(detect, detnet(self._detector(), self.device))
            parts = load_network(self.weights), sees, read_confidence(self.weights)
            return StreamTracker(partial(LiveTracker, *parts, device=self.device), self.play)
        if self.name == "umetrack":
            return Tracker(load_network(self.weights), self.device)
        detects = detector(self._detector(), self.device) if self.crops == "own" else None
        return MultistageTracker(keypoint_source(self.weights / "keynet.safetensors", self.device), detects)

    def track(self, recording: Recording, skeleton: SkeletonKind) -> Tracks:
        """The tracks of a recording. Raises InputError if nothing can be tracked, and says why."""
        check_trackable(recording, self.crops, skeleton)
        tracker = _tracker_of(self, self.identity())
        if skeleton == "known":
            tracks = tracker.track_known(recording, recording.hand_model)
        else:
            generic = read_hand(self.generic) if self.generic else generic_hand().to(dtype=torch.float64)
            samples = (self.calibration_samples,) if self.name == "umetrack" else ()
            tracks = tracker.track_unknown(recording, generic, *samples)
        if not tracks.valid_tracking.any():
            raise InputError(f"{recording.path}: nothing was tracked: {_NOTHING[self.crops]}")
        return tracks

    def files(self) -> list[Path]:
        """What it is made of."""
        files = [self.weights if self.name == "umetrack" else self.weights / "keynet.safetensors"]
        if self.crops == "own":
            files += [self._detector()] + ([confidence_path(self.weights)] if self.name == "umetrack" else [])
        return files + ([self.generic] if self.generic else [])

    def _detector(self) -> Path:
        beside = (self.weights.parent if self.name == "umetrack" else self.weights) / DETECTOR
        released = results_folder("reference") / "checkpoints" / DETECTOR
        return self.detector or (beside if beside.is_file() or self.name == "multistage" else released)

    def identity(self) -> str:
        """A hash of all that decides what it finds. Raises InputError if a file is missing."""
        for path in self.files():
            if not path.is_file():
                if path == confidence_path(self.weights):
                    read_confidence(self.weights)  # says what to do
                raise InputError(f"no weights at {path}: give those of {self.name} by --weights")
        about = [TRACKS_VERSION, self.name, self.crops, self.calibration_samples, *map(sha256_of, self.files())]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


@cache
def _tracker_of(method: Method, identity: str) -> Tracker | StreamTracker | MultistageTracker:
    """The tracker of a method, as its files are now: made once in a process that tracks many recordings."""
    return method.tracker()


_NOTHING = {
    "labelled": "no camera sees 19 of the 21 landmarks of a labelled hand: are they of this recording?",
    "own": "the detector found no hand that is sure enough in any frame",
}


def check_trackable(recording: Recording, crops: str, skeleton: str) -> None:
    """Raise InputError where nothing can be tracked, which would take long to find out."""
    beside = recording.path.with_suffix(".json")
    path = beside if beside.is_file() else recording.path
    if recording.pictures is None:
        raise InputError(f"{path} holds no pictures that can be tracked: of HOT3D, give its clips (.tar)")
    if recording.posed is not None and not recording.posed.any():
        raise InputError(f"{path}: the headset has no pose in any frame (camera_to_world_transforms of raw_data)")
    if crops == "labelled" and not recording.labelled.any():
        raise InputError(
            f"{path} labels no hand: in no frame is a confidence above 0, the wrist a pose, and are joint angles "
            "numbers (hand_confidences, wrist_transforms and joint_angles of raw_data). Crops are taken around "
            "labelled hands: track with --crops own"
        )
    if skeleton == "known" and recording.hand_model is None:
        raise InputError(f"{path} has no hand_model: add the user's, or track with --skeleton unknown")


def describe(tracks: Tracks) -> str:
    """The metrics of a tracked recording, a line each; those that need labels where hands are labelled."""
    tracked, true, valid, evaluated = (
        tracks.tracked_keypoints,
        tracks.gt_keypoints,
        tracks.valid_tracking,
        tracks.evaluated,
    )
    lines = [f"tracked hand instances     {valid.sum()} of {valid.size}"]
    if evaluated.any():
        lines += [
            f"MPJPE                   {mpjpe(tracked, true, evaluated):.2f} mm",
            f"MPJPA (labels: {mpjpa(true, evaluated):5.2f})   {mpjpa(tracked, evaluated):.2f} mm/frame²",
            f"PCK-AUC (0..50 mm)      {auc(pck(tracked, true, evaluated)):.1f} %",
        ]
    else:
        lines.append("no tracked hand has ground truth (labels and hand_model): there is nothing to compare with")
    if tracks.pinches is not None:
        counts = Counter(pinch.hand for pinch in tracks.pinches)
        lines.append(f"pinches                 {', '.join(f'{n} {counts[h]}' for h, n in enumerate(HAND_NAMES))}")
    if tracks.scale is not None:
        lines.append(f"scale of generic hand   {tracks.scale:.4f}")
    return "\n".join(lines)
