"""`track`, and the tracking that others time."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lib.checkpoints import load_network
from lib.cli.arguments import add_device, add_method, positive
from lib.errors import InputError
from lib.files import refuse_overwriting
from lib.formats.hand_files import read_hand
from lib.hands import HandModel
from lib.metrics import auc, mpjpa, mpjpe, pck
from lib.multistage.networks import detector, keypoint_source
from lib.multistage.sources import Detector, KeypointSource
from lib.multistage.tracker import MultistageTracker
from lib.overlay import write_overlay
from lib.recordings import Recording, read_recording
from lib.rendered.shape import generic_hand
from lib.tracking import CALIBRATION_SAMPLES, Tracker, Tracks


def add_track(commands) -> None:
    """Add `track`."""
    command = commands.add_parser("track", help="track the hands of a recording and compare them with its labels")
    command.set_defaults(run=track)
    command.add_argument("recording", type=Path, help="video of four views, its .json beside it (raw_data layout)")
    add_method(command)
    command.add_argument(
        "--weights",
        type=Path,
        required=True,
        help=".safetensors of this project or the published checkpoint; multistage: folder of keynet and detnet",
    )
    command.add_argument("--skeleton", choices=("known", "unknown"), default="known")
    command.add_argument(
        "--generic-hand", type=Path, help="JSON of the hand whose scale is calibrated (default: this study's own)"
    )
    command.add_argument(
        "--calibration-samples",
        type=positive,
        default=CALIBRATION_SAMPLES,
        metavar="N",
        help="scales that umetrack averages (default: %(default)s)",
    )
    command.add_argument("--output", type=Path, required=True, help=".npz of tracked and true keypoints (mm, world)")
    command.add_argument("--overlay", type=Path, help=".mp4 with the tracked hands drawn on the views")
    add_device(command)


def track(options: argparse.Namespace) -> None:
    """Track a recording, save the result, print the metrics."""
    refuse_overwriting({"--output": options.output, "--overlay": options.overlay}, _tracked_files(options))
    recording = read_recording(options.recording)
    check_trackable(options, recording)
    generic = read_hand(options.generic_hand) if options.generic_hand else generic_hand().to(dtype=torch.float64)
    if is_multistage(options):
        tracks = _track_multistage(options, recording, generic)
    else:
        tracker = Tracker(load_network(options.weights), options.device)
        if options.skeleton == "known":
            tracks = tracker.track_known(recording, recording.hand_model)
        else:
            tracks = tracker.track_unknown(recording, generic, options.calibration_samples)
    if not tracks.valid_tracking.any():
        raise InputError(f"{options.recording}: nothing was tracked: {_NOTHING[options.crops]}")
    tracks.save(options.output)
    print(describe(tracks))
    if options.overlay:
        write_overlay(recording, tracks, options.overlay)


_NOTHING = {
    "labelled": "no camera sees 19 of the 21 landmarks of a labelled hand: are they of this recording?",
    "own": "the detector found no hand whose keypoints are sure enough in any frame",
}


def _tracked_files(options: argparse.Namespace) -> dict[str, Path]:
    """What `track` reads, by the names that its messages give them."""
    files = {
        "the recording's video": options.recording,
        "the recording's .json": options.recording.with_suffix(".json"),
        "the generic hand": options.generic_hand,
    }
    for path in [options.weights, *(options.weights.glob("*.safetensors") if options.weights.is_dir() else ())]:
        files[f"of the weights, {path.name}"] = path
    return {name: path for name, path in files.items() if path is not None}


def check_trackable(options: argparse.Namespace, recording: Recording) -> None:
    """Raise InputError where nothing can be tracked, which would take long to find out."""
    labels = options.recording.with_suffix(".json")
    if recording.posed is not None and not recording.posed.any():
        raise InputError(f"{labels}: camera_to_world_transforms holds no headset pose, in no frame")
    if options.crops == "labelled" and not recording.labelled.any():
        raise InputError(
            f"{labels} labels no hand: in no frame are its hand_confidences above 0, its wrist_transforms a pose and "
            "its joint_angles numbers. Crops are taken around labelled hands, so track with crops of its own "
            "(--method multistage --crops own)"
        )
    if getattr(options, "skeleton", "known") == "known" and recording.hand_model is None:
        raise InputError(f"{labels} has no hand_model: add the user's, or track with --skeleton unknown")


def is_multistage(options: argparse.Namespace) -> bool:
    """Whether the baseline is asked for. Raises InputError for crops that the other tracker cannot make."""
    if options.method == "umetrack" and options.crops == "own":
        raise InputError("--crops own needs --method multistage: the end-to-end tracker has no detector")
    return options.method == "multistage"


def _track_multistage(options: argparse.Namespace, recording: Recording, generic: HandModel) -> Tracks:
    tracker = MultistageTracker(*stages(options))
    if options.skeleton == "known":
        return tracker.track_known(recording, recording.hand_model)
    return tracker.track_unknown(recording, generic)


def stages(options: argparse.Namespace) -> tuple[KeypointSource, Detector | None]:
    """The networks in the folder of weights; no detector where the crops are the labelled ones."""
    own = options.crops == "own"
    keypoints = keypoint_source(options.weights / "keynet.safetensors", options.device)
    return keypoints, detector(options.weights / "detnet.safetensors", options.device) if own else None


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
    if tracks.scale is not None:
        lines.append(f"scale of generic hand   {tracks.scale:.4f}")
    return "\n".join(lines)
