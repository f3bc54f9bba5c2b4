"""The command line: `python -m lib COMMAND`."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

from lib.checkpoints import load_network
from lib.cores import available_cores, threads_to_use
from lib.errors import InputError
from lib.files import refuse_overwriting
from lib.formats.hand_files import read_hand
from lib.hands import HandModel
from lib.machines import PRECISIONS, process_group
from lib.metrics import auc, mpjpa, mpjpe, pck
from lib.multistage.networks import detector, keypoint_source
from lib.multistage.sources import Detector, KeypointSource
from lib.multistage.tracker import MultistageTracker
from lib.network import UmeTrack
from lib.overlay import write_overlay
from lib.recordings import Recording, read_recording
from lib.rendered.shape import generic_hand
from lib.study.benchmarks import benchmark_multistage, benchmark_tracking, benchmark_training
from lib.study.experiments import EXPERIMENTS, PUBLISHED_NETWORK, REFERENCE_NETWORK, train_experiment
from lib.study.methods import make_predictions
from lib.study.methods import tune as tune_methods
from lib.study.recipe import VARIANTS
from lib.study.recipe import search as search_recipe
from lib.study.report import write_report
from lib.study.results import ROOT
from lib.study.settings import read_settings
from lib.tracking import CALIBRATION_SAMPLES, Tracker, Tracks


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code is 2 for wrong usage or input, with a message on standard error."""
    options = _parser().parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False  # what is float32 shall be so on a GPU, too
    if "device" in options:  # a command that computes here; the others need not wait for the measurement
        torch.set_num_threads(threads_to_use())
    try:
        options.run(options)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def track(options: argparse.Namespace) -> None:
    """Track a recording, save the result, print the metrics."""
    refuse_overwriting({"--output": options.output, "--overlay": options.overlay}, _tracked_files(options))
    recording = read_recording(options.recording)
    _check_trackable(options, recording)
    generic = read_hand(options.generic_hand) if options.generic_hand else generic_hand().to(dtype=torch.float64)
    if _is_multistage(options):
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


def _check_trackable(options: argparse.Namespace, recording: Recording) -> None:
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


def _is_multistage(options: argparse.Namespace) -> bool:
    if options.method == "umetrack" and options.crops == "own":
        raise InputError("--crops own needs --method multistage: the end-to-end tracker has no detector")
    return options.method == "multistage"


def _track_multistage(options: argparse.Namespace, recording: Recording, generic: HandModel) -> Tracks:
    tracker = MultistageTracker(*_stages(options))
    if options.skeleton == "known":
        return tracker.track_known(recording, recording.hand_model)
    return tracker.track_unknown(recording, generic)


def _stages(options: argparse.Namespace) -> tuple[KeypointSource, Detector | None]:
    """The networks in the folder of weights; no detector where the crops are the labelled ones."""
    own = options.crops == "own"
    keypoints = keypoint_source(options.weights / "keynet.safetensors", options.device)
    return keypoints, detector(options.weights / "detnet.safetensors", options.device) if own else None


def render(options: argparse.Namespace) -> None:
    """Render a split of the dataset, or what is missing of it."""
    from lib.rendered.dataset import PROFILES, render_dataset

    if options.profile not in PROFILES:
        raise InputError(f"no profile {options.profile}; there are {', '.join(PROFILES)}")
    for split in ("train", "test") if options.split is None else (options.split,):
        print(render_dataset(PROFILES[options.profile], split, options.output, options.workers, options.scale))


def train(options: argparse.Namespace) -> None:
    """Train an experiment, or go on with it."""
    with process_group(options.device):
        train_experiment(
            options.experiment,
            options.profile,
            options.data or ROOT / "data" / options.profile,
            generic_hand(),
            options.device,
            options.minutes,
            options.resume,
            options.compile,
            options.seed,
            options.precision,
            read_settings(options.set),
            options.name,
        )


def list_experiments(options: argparse.Namespace) -> None:
    """Print the names of what there is to train."""
    print(*EXPERIMENTS, sep="\n")


def predict(options: argparse.Namespace) -> None:
    """Make what is missing of the predictions that tables and figures are made of."""
    workers = 1 if options.device.startswith("cuda") else options.workers
    make_predictions(options.profile, options.data or ROOT / "data" / options.profile, workers, options.device)


def search(options: argparse.Namespace) -> None:
    """Compare training recipes and print the table."""
    data = options.data or ROOT / "data" / options.profile
    names = options.variants or list(VARIANTS)
    table = search_recipe(
        options.profile, data, generic_hand(), options.device, options.crops, names, options.precision
    )
    print(table.to_string(index=False))


def tune(options: argparse.Namespace) -> None:
    """Tune on validation users what the methods leave open, and print the tables."""
    data = options.data or ROOT / "data" / options.profile
    tables = tune_methods(options.profile, data, options.device, options.names)
    for table in tables.values():
        print(table.drop(columns=table.filter(like="sha256")).to_string(index=False), end="\n\n")


def report(options: argparse.Namespace) -> None:
    """Write the results into the README."""
    write_report(options.profile, ROOT / "README.md")


def describe(tracks: Tracks) -> str:
    """The metrics of a tracked recording, a line each; those that need labels where hands are labelled."""
    tracked, true, valid, evaluated = (
        tracks.tracked_keypoints,
        tracks.gt_keypoints,
        tracks.valid_tracking,
        tracks.evaluated,
    )
    lines = [f"tracked hand-frames     {valid.sum()} of {valid.size}"]
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


def benchmark(options: argparse.Namespace) -> None:
    """Time tracking, training or rendering and print a table."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.what == "tracking":
        if options.recording is None:
            raise InputError("benchmark tracking needs --recording FILE.mp4")
        recording = read_recording(options.recording)
        _check_trackable(options, recording)
        if _is_multistage(options):
            if options.weights is None:
                raise InputError("benchmark tracking --method multistage needs --weights FOLDER")
            table = benchmark_multistage(recording, *_stages(options), options.device, options.repeats)
        else:
            network = load_network(options.weights) if options.weights else UmeTrack()
            table = benchmark_tracking(recording, network, options.device, options.repeats)
    elif options.what == "training":
        networks = {"published": PUBLISHED_NETWORK, "reference": REFERENCE_NETWORK}
        table = benchmark_training(networks, options.device, 4 * options.repeats, options.precision)
    else:
        from lib.study.benchmarks import benchmark_rendering

        table = benchmark_rendering(options.workers, options.repeats)
    print(table.to_string(index=False, float_format="{:.2f}".format, na_rep=""))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib", description="The UmeTrack study's tools.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_track,
        _add_render,
        _add_train,
        _add_experiments,
        _add_predict,
        _add_search,
        _add_tune,
        _add_report,
        _add_benchmark,
    ):
        add(commands)
    return parser


def _add_track(commands) -> None:
    command = commands.add_parser("track", help="track the hands of a recording and compare them with its labels")
    command.set_defaults(run=track)
    command.add_argument("recording", type=Path, help="video of four views, its .json beside it (raw_data layout)")
    _add_method(command)
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
        type=_positive,
        default=CALIBRATION_SAMPLES,
        metavar="N",
        help="scales that umetrack averages (default: %(default)s)",
    )
    command.add_argument("--output", type=Path, required=True, help=".npz of tracked and true keypoints (mm, world)")
    command.add_argument("--overlay", type=Path, help=".mp4 with the tracked hands drawn on the views")
    command.add_argument("--device", type=_device, default=_fastest_device())


def _add_render(commands) -> None:
    command = commands.add_parser("render", help="render the dataset: test recordings and the training cache")
    command.set_defaults(run=render)
    command.add_argument("--profile", default="reference", help="smoke or reference")
    command.add_argument(
        "--output", type=Path, required=True, help="folder of the dataset; what it holds already is kept"
    )
    command.add_argument("--split", choices=("train", "test"), help="default: both")
    command.add_argument(
        "--workers", type=_positive, default=available_cores(), help="processes (default: one per core)"
    )
    command.add_argument(
        "--scale", type=_above_zero, default=1.0, help="sequences per user, as a multiple of the profile's"
    )


def _add_train(commands) -> None:
    command = commands.add_parser("train", help="train an experiment; several processes by torchrun")
    command.set_defaults(run=train)
    command.add_argument("experiment", help=f"one of {', '.join(EXPERIMENTS)}")
    command.add_argument("--profile", default="reference", help="smoke or reference")
    command.add_argument("--data", type=Path, help="folder of the rendered dataset (default: data/PROFILE)")
    command.add_argument(
        "--minutes", type=_above_zero, help="train as long as this takes, instead of the profile's steps"
    )
    command.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    command.add_argument("--seed", type=int, default=0, help="another one trains EXPERIMENT_seedN")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change the configuration: weights.temporal=0.5",
    )
    command.add_argument("--name", help="of a training that is no experiment of the study: required with --set")
    command.add_argument("--compile", action="store_true", help="compile the convolutions")
    _add_precision(command)
    command.add_argument("--device", type=_device, default=_fastest_device())


def _add_experiments(commands) -> None:
    command = commands.add_parser("experiments", help="list what there is to train")
    command.set_defaults(run=list_experiments)


def _add_predict(commands) -> None:
    command = commands.add_parser("predict", help="track the test split by every method, where that is not done yet")
    command.set_defaults(run=predict)
    command.add_argument("--profile", default="reference", help="smoke or reference")
    command.add_argument("--data", type=Path, help="folder of the rendered dataset (default: data/PROFILE)")
    command.add_argument(
        "--workers", type=_positive, default=available_cores(), help="processes (default: one per core)"
    )
    command.add_argument("--device", type=_device, default=_fastest_device())


def _add_search(commands) -> None:
    command = commands.add_parser("search", help="train variants of the recipe, briefly; adds to tables/recipe.csv")
    command.set_defaults(run=search)
    command.add_argument("variants", nargs="*", help="default: all of them")
    command.add_argument("--crops", type=_positive, default=200_000, help="how many crops each of them sees")
    _add_precision(command)
    command.add_argument("--profile", default="reference", help="smoke or reference")
    command.add_argument("--data", type=Path, help="folder of the rendered dataset (default: data/PROFILE)")
    command.add_argument("--device", type=_device, default=_fastest_device())


def _add_tune(commands) -> None:
    command = commands.add_parser("tune", help="tune on validation users what the methods leave open")
    command.set_defaults(run=tune)
    command.add_argument(
        "names", nargs="*", help="one_euro, fit_weights, hand_confidence, pinch_thresholds (default: all)"
    )
    command.add_argument("--profile", default="reference", help="smoke or reference")
    command.add_argument("--data", type=Path, help="folder of the rendered dataset (default: data/PROFILE)")
    command.add_argument("--device", type=_device, default=_fastest_device())


def _add_report(commands) -> None:
    command = commands.add_parser("report", help="write the results section of README.md from the tables")
    command.set_defaults(run=report)
    command.add_argument("--profile", default="reference", help="smoke or reference")


def _add_benchmark(commands) -> None:
    command = commands.add_parser("benchmark", help="time tracking, training or rendering")
    command.set_defaults(run=benchmark)
    command.add_argument("what", choices=("tracking", "training", "rendering"))
    command.add_argument("--recording", type=Path, help="what is tracked")
    _add_method(command)
    command.add_argument("--weights", type=Path, help="as of track (default: published network, random weights)")
    command.add_argument("--repeats", type=_positive, default=5, help="how often everything is measured")
    command.add_argument("--workers", type=_positive, default=available_cores(), help="processes that render")
    command.add_argument("--threads", type=_positive, help="CPU threads (default: one per free core)")
    _add_precision(command)
    command.add_argument("--device", type=_device, default=_fastest_device())


def _add_method(command: argparse.ArgumentParser) -> None:
    command.add_argument("--method", choices=("umetrack", "multistage"), default="umetrack")
    command.add_argument(
        "--crops",
        choices=("labelled", "own"),
        default="labelled",
        help="multistage: crop around the labelled hands, or detect hands and follow them",
    )


def _add_precision(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the trained convolutions (default: what the device multiplies natively)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text}")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above zero, got {text}")
    return value


def _fastest_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _device(text: str) -> str:
    try:
        device = torch.device(text)
        if device.type != "cuda":
            torch.empty(0, device=device)
        elif (device.index or 0) >= torch.cuda.device_count():  # asked without taking memory there
            raise RuntimeError(f"there are {torch.cuda.device_count()} GPUs")
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"no device {text} here: {str(error).splitlines()[0]}") from error
    return text
