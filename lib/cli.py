"""The command line: `python -m lib COMMAND`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from lib.benchmarks import benchmark_tracking
from lib.checkpoints import load_network
from lib.errors import InputError
from lib.files import read_hand
from lib.metrics import auc, mpjpa, mpjpe, pck
from lib.network import UmeTrack
from lib.overlay import write_overlay
from lib.recordings import read_recording
from lib.tracking import CALIBRATION_SAMPLES, Tracker, Tracks


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code is 2 for wrong usage or input, with a message on standard error."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def track(options: argparse.Namespace) -> None:
    """Track a recording, save the result, print the metrics."""
    recording = read_recording(options.recording)
    tracker = Tracker(load_network(options.weights), options.device)
    if options.skeleton == "known":
        tracks = tracker.track_known(recording, recording.hand_model)
    else:
        if options.generic_hand is None:
            raise InputError("--skeleton unknown needs --generic-hand FILE.json, the hand whose scale is calibrated")
        tracks = tracker.track_unknown(recording, read_hand(options.generic_hand), options.calibration_samples)
    if options.overlay:
        write_overlay(recording, tracks, options.overlay)
    tracks.save(options.output)
    print(describe(tracks))


def describe(tracks: Tracks) -> str:
    """The metrics of a tracked recording, a line each."""
    tracked, true, valid = tracks.tracked_keypoints, tracks.gt_keypoints, tracks.valid_tracking
    lines = [
        f"tracked hand-frames     {valid.sum()} of {valid.size}",
        f"MPJPE                   {mpjpe(tracked, true, valid):.2f} mm",
        f"MPJPA (labels: {mpjpa(true, valid):5.2f})   {mpjpa(tracked, valid):.2f} mm/frame²",
        f"PCK-AUC (0..50 mm)      {auc(pck(tracked, true, valid)):.1f} %",
    ]
    if tracks.scale is not None:
        lines.append(f"scale of generic hand   {tracks.scale:.4f}")
    return "\n".join(lines)


def benchmark(options: argparse.Namespace) -> None:
    """Time the tracker and print a table of stages."""
    if options.threads:
        torch.set_num_threads(options.threads)
    network = load_network(options.weights) if options.weights else UmeTrack()
    table = benchmark_tracking(read_recording(options.recording), network, options.device, options.repeats)
    print(table.to_string(index=False, float_format="{:.2f}".format))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib", description="The UmeTrack study's tools.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    device = "cuda" if torch.cuda.is_available() else "cpu"

    command = commands.add_parser("track", help="track the hands of a recording and compare them with its labels")
    command.set_defaults(run=track)
    command.add_argument("recording", type=Path, help="video of four views, its .json beside it (raw_data layout)")
    command.add_argument("--weights", type=Path, required=True, help=".safetensors of this project or the published checkpoint")
    command.add_argument("--skeleton", choices=("known", "unknown"), default="known")
    command.add_argument("--generic-hand", type=Path, help="JSON of the hand whose scale is calibrated (unknown skeleton)")
    command.add_argument("--calibration-samples", type=_positive, default=CALIBRATION_SAMPLES, metavar="N")
    command.add_argument("--output", type=Path, required=True, help=".npz of tracked and true keypoints (mm, world)")
    command.add_argument("--overlay", type=Path, help=".mp4 with the tracked hands drawn on the views")
    command.add_argument("--device", default=device)

    command = commands.add_parser("benchmark", help="time the stages of the tracker")
    command.set_defaults(run=benchmark)
    command.add_argument("what", choices=("tracking",))
    command.add_argument("--recording", type=Path, required=True)
    command.add_argument("--weights", type=Path, help="default: the published network with random weights")
    command.add_argument("--repeats", type=_positive, default=5, help="passes over the recording")
    command.add_argument("--threads", type=_positive, help="CPU threads (default: as torch chooses)")
    command.add_argument("--device", default=device)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text}")
    return value
