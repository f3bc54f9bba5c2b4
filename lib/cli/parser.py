"""The commands: their arguments, and examples of each.

Nothing here imports torch, so that `--help` and `--version` answer at once. What runs a command is named as
"module:function" of `lib.cli`, and imported when it runs. Names and defaults of modules that are slow to import are
repeated here; `tests/test_parser.py` compares them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lib import __version__
from lib.cli.arguments import (
    above_zero,
    add_calibration,
    add_device,
    add_method,
    add_precision,
    add_profile,
    add_shard,
    add_workers,
    positive,
)

EXAMPLE = "  umetrack "
"""What every line with an example begins with."""
_RECORDING = "data/reference/raw_data/synthetic/separate_hand/testing/user_44/recording_00.mp4"
_FOLDER = "recordings, clips (.tar) or training shards, at any depth"


def parser() -> argparse.ArgumentParser:
    """What reads the command line; `run` of what it returns names the function to call with it."""
    whole = argparse.ArgumentParser(
        prog="umetrack",
        description="The UmeTrack study's tools: track hands, evaluate, render data, train.",
        epilog=_shown("COMMAND --help", f"track {_RECORDING} --output out.npz"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    return whole


def _shown(*examples: str) -> str:
    return "\n".join(("examples:", *(EXAMPLE + example for example in examples)))


def _command(commands, name: str, run: str, about: str, *examples: str) -> argparse.ArgumentParser:
    """A new command; examples are given without its name."""
    command = commands.add_parser(
        name,
        help=about,
        description=about,
        epilog=_shown(*(f"{name} {example}".rstrip() for example in examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_track(commands) -> None:
    command = _command(
        commands,
        "track",
        "track:run_track",
        "track the hands of a recording and compare them with its labels",
        f"{_RECORDING} --output out.npz --overlay out.mp4",
        "recording_00.mp4 --crops own --realtime --smooth 1 0.005 --output out.json --format json",
    )
    command.add_argument(
        "recording",
        type=Path,
        help="video with its .json beside it (raw_data layout), .json that names its videos, clip (.tar), or "
        "clip of a training shard (SHARD/clip_000000)",
    )
    add_method(command)
    command.add_argument(
        "--weights",
        type=Path,
        help=".safetensors of this project or the published checkpoint; multistage: folder of keynet and detnet "
        "(default: the released ones, of results/reference/checkpoints)",
    )
    command.add_argument("--skeleton", choices=("known", "unknown"), default="known")
    add_calibration(command)
    command.add_argument("--output", type=Path, required=True, help="file of poses and keypoints (mm, rad, world)")
    command.add_argument(
        "--format", choices=("npz", "json", "csv", "raw_data"), default="npz", help="of the output (default: npz)"
    )
    command.add_argument("--overlay", type=Path, help=".mp4 with the tracked hands drawn on the views")
    command.add_argument(
        "--smooth",
        type=float,
        nargs=2,
        metavar=("MIN_CUTOFF", "BETA"),
        help="filter the landmarks (One-Euro: Hz, Hz per mm/s); poses are left as they are",
    )
    command.add_argument(
        "--realtime",
        action="store_true",
        help="with --crops own: play the recording at its own rate, skip what the tracker is too slow for, and print "
        "how late poses are",
    )
    add_device(command)


def _add_evaluate(commands) -> None:
    command = _command(
        commands,
        "evaluate",
        "evaluate:run_evaluate",
        "track all recordings of a folder and print the paper's table",
        "data/reference/raw_data",
        "data/reference/raw_data --method multistage --metrics challenge --shard 3/20",
    )
    command.add_argument("folder", type=Path, help=_FOLDER)
    add_method(command, choices=("umetrack", "multistage", "all"))
    command.add_argument(
        "--weights",
        type=Path,
        help="as of track (default: the released ones); of all methods: a folder like results/reference/checkpoints",
    )
    command.add_argument("--official", type=Path, metavar="FILE", help="the published weights, as one more method")
    command.add_argument("--skeleton", choices=("known", "unknown", "both"), default="both")
    add_calibration(command)
    command.add_argument("--split", choices=("training", "testing"), help="only recordings in folders of this name")
    command.add_argument("--metrics", choices=("paper", "challenge"), default="paper")
    command.add_argument("--output", type=Path, help="folder of tracks and tables (default: results/evaluation)")
    add_shard(command)
    add_workers(command)
    add_device(command)


def _add_survey(commands) -> None:
    command = _command(
        commands,
        "survey",
        "own_data:run_survey",
        "say what a folder offers the study, and what is missing in it",
        "data/reference/raw_data",
    )
    command.add_argument("folder", type=Path, help=_FOLDER)


def _add_import(commands) -> None:
    command = _command(
        commands,
        "import",
        "own_data:run_import",
        "make a training cache, data/NAME, of the recordings of a folder",
        "/data/umetrack --name public",
    )
    command.add_argument("folder", type=Path, help=_FOLDER)
    command.add_argument("--name", help="of the folder in data and in results (default: that of the folder)")
    add_workers(command)


def _add_export(commands) -> None:
    command = _command(
        commands,
        "export",
        "own_data:run_export",
        "write recordings or a training cache in another public layout, a network as ONNX",
        "data/reference/crops --format torch_data --output shards",
        "data/reference/raw_data --format challenge --without-labels --output clips",
        "results/reference/checkpoints/full_temporal_loss.safetensors --format onnx --output network.onnx",
    )
    command.add_argument(
        "source", type=Path, help="recordings of any layout, or a rendered dataset's crops; onnx: file of weights"
    )
    command.add_argument("--format", choices=("torch_data", "challenge", "onnx"), required=True)
    command.add_argument("--output", type=Path, required=True, help="folder of what is written; onnx: file")
    command.add_argument("--frames", type=positive, default=64, help="of a clip of a shard (default: %(default)s)")
    command.add_argument("--without-labels", action="store_true", help="challenge: as the sequences of its test split")
    add_shard(command)
    add_workers(command)


def _add_import_calibration(commands) -> None:
    command = _command(
        commands,
        "import-calibration",
        "calibration:import_calibration",
        "write the rig part of a recording's .json from a Kalibr, Basalt, OpenCV file",
        "camchain.yaml --output recording_00.json",
        "left.yaml right.yaml --angles 0 180 --output recording_00.json",
    )
    command.add_argument("calibration", type=Path, nargs="+", help="one file of all cameras; of OpenCV or ROS one each")
    command.add_argument("--output", type=Path, required=True, help=".json beside the video, of the same name")
    command.add_argument(
        "--angles",
        type=float,
        nargs="+",
        metavar="DEG",
        help="by how much each camera is turned from upright (default: as if the first one were upright)",
    )


def _add_render(commands) -> None:
    command = _command(
        commands,
        "render",
        "study:render",
        "render the dataset: test recordings and the training cache",
        "--split test --output data/reference",
        "--profile smoke --output data/smoke",
    )
    command.add_argument("--profile", default="reference", help="smoke or reference")
    command.add_argument(
        "--output", type=Path, required=True, help="folder of the dataset; what it holds already is kept"
    )
    command.add_argument("--split", choices=("train", "test"), help="default: both")
    add_workers(command)
    command.add_argument(
        "--scale", type=above_zero, default=1.0, help="sequences per user, as a multiple of the profile's"
    )
    add_shard(command)


def _add_train(commands) -> None:
    command = _command(
        commands,
        "train",
        "study:train",
        "train an experiment; several processes by torchrun",
        "full_temporal_loss --seed 3 --minutes 120",
        "full --set weights.pinch=0.4 --name mine",
    )
    command.add_argument("experiment", help="one of those that the command experiments lists")
    add_profile(command)
    command.add_argument(
        "--minutes",
        type=above_zero,
        help="train each phase as long as this takes, instead of the profile's steps",
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
    add_precision(command)
    add_device(command)


def _add_experiments(commands) -> None:
    command = _command(
        commands,
        "experiments",
        "study:list_experiments",
        "list the experiments, and what each is; what they begin with is trained when it is needed",
        "",
        "--profile public",
    )
    add_profile(command)


def _add_predict(commands) -> None:
    command = _command(
        commands,
        "predict",
        "study:run_predict",
        "track the test split by every method, where that is not done yet",
        "--workers 2",
    )
    add_profile(command)
    add_workers(command)
    add_device(command)


def _add_search(commands) -> None:
    command = _command(
        commands,
        "search",
        "study:run_search",
        "train variants of the recipe, briefly; adds to tables/recipe.csv",
        "--list",
        "'learning rate x2' 'batch x0.5' --crops 120000",
    )
    command.add_argument("variants", nargs="*", help="default: all of them")
    command.add_argument("--list", action="store_true", help="list the variants, and what each changes; train nothing")
    command.add_argument("--crops", type=positive, default=200_000, help="how many crops each of them sees")
    add_precision(command)
    add_profile(command)
    add_device(command)


def _add_tune(commands) -> None:
    command = _command(
        commands, "tune", "study:run_tune", "tune hyperparameters on validation users", "one_euro pinch_thresholds"
    )
    command.add_argument(
        "names", nargs="*", help="one_euro, fit_weights, hand_confidence, pinch_thresholds (default: all)"
    )
    add_profile(command)
    add_device(command)


def _add_fit_confidence(commands) -> None:
    command = _command(
        commands,
        "fit-confidence",
        "study:run_fit_confidence",
        "fit how sure a network's predictions are, which track --crops own needs of it",
        "--weights results/reference/checkpoints/full.safetensors",
    )
    command.add_argument("--weights", type=Path, required=True, help="of the network; the result is written beside")
    add_profile(command)
    add_workers(command)


def _add_results(commands) -> None:
    command = _command(
        commands,
        "results",
        "study:results",
        "write the tables of README.md and results/README.md",
        "--profile reference",
    )
    command.add_argument("--profile", default="reference", help="smoke or reference")


def _add_report(commands) -> None:
    command = _command(
        commands,
        "report",
        "study:report",
        "make a book, to be read from disk, of notebooks and pages",
        "--profile smoke",
    )
    command.add_argument("--profile", default="reference", help="smoke or reference")


def _add_benchmark(commands) -> None:
    command = _command(
        commands,
        "benchmark",
        "study:benchmark",
        "time tracking, live tracking, training, reading of data or rendering",
        "tracking --recording recording_00.mp4 --threads 1",
        "live --recording recording_00.mp4 --onnx network.onnx",
        "training",
    )
    command.add_argument("what", choices=("tracking", "live", "soak", "training", "data", "rendering"))
    command.add_argument("--recording", type=Path, help="what is tracked or, by data, read")
    command.add_argument(
        "--onnx", type=Path, help="live, soak: the network as `export` writes it, in the place of torch"
    )
    command.add_argument("--frames", type=positive, default=100_000, help="soak: how many (default: %(default)s)")
    add_method(command)
    command.add_argument(
        "--weights", type=Path, help="as of track (default: published network, random weights; multistage: released)"
    )
    command.add_argument("--repeats", type=positive, default=5, help="how often everything is measured")
    add_workers(command)
    command.add_argument("--threads", type=positive, help="CPU threads (default: one per free core)")
    add_precision(command)
    add_device(command)


def _add_viewer(commands) -> None:
    command = _command(
        commands,
        "viewer",
        "pages:run_viewer",
        "write a page that shows tracked hands in 3D, beside their crops and errors",
        "--output results/reference/report/hands.html",
        f"--recording {_RECORDING} --tracks out.npz --output out.html",
    )
    command.add_argument("--output", type=Path, required=True, help="the page, .html")
    command.add_argument(
        "--recording", type=Path, help="one of your own, with --tracks (default: some of the test split)"
    )
    command.add_argument("--tracks", type=Path, nargs="+", default=[], help="what track --output wrote of it, .npz")
    add_profile(command)


def _add_loop(commands) -> None:
    command = _command(
        commands,
        "loop",
        "pages:run_loop",
        "write an animated picture of tracked hands",
        "--output results/reference/figures/tracked_hands.webp",
    )
    command.add_argument("--output", type=Path, required=True, help="the picture, .webp")
    add_profile(command)


_COMMANDS = (
    _add_track, _add_evaluate, _add_survey, _add_import, _add_export, _add_import_calibration, _add_render, _add_train,
    _add_experiments, _add_predict, _add_search, _add_tune, _add_fit_confidence, _add_benchmark,
    _add_results, _add_report, _add_viewer, _add_loop,
)  # fmt: skip
"""What adds each command, in the order of `--help`."""
