"""The commands that make the study: rendering, training, predictions, tables of times."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lib.checkpoints import load_network
from lib.cli.arguments import (
    above_zero,
    add_device,
    add_method,
    add_precision,
    add_profile,
    add_shard,
    add_workers,
    positive,
)
from lib.cli.track import Method, check_trackable
from lib.errors import InputError
from lib.machines import process_group
from lib.network import UmeTrack
from lib.recordings import read_recording
from lib.rendered.dataset import PROFILES, render_dataset, render_shard
from lib.rendered.shape import generic_hand
from lib.study.benchmarks import (
    benchmark_data,
    benchmark_multistage,
    benchmark_rendering,
    benchmark_tracking,
    benchmark_training,
)
from lib.study.experiments import EXPERIMENTS, PUBLISHED_NETWORK, REFERENCE_NETWORK, train_experiment
from lib.study.live_confidence import fit_confidence
from lib.study.methods import make_predictions
from lib.study.methods import tune as tune_methods
from lib.study.own_data import can_be_trained, read_own
from lib.study.recipe import VARIANTS
from lib.study.recipe import search as search_recipe
from lib.study.results import ROOT
from lib.study.results_pages import write_results
from lib.study.settings import read_settings


def _add_render(commands) -> None:
    command = commands.add_parser("render", help="render the dataset: test recordings and the training cache")
    command.set_defaults(run=render)
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


def render(options: argparse.Namespace) -> None:
    """Render a split of the dataset, or what is missing of it."""
    if options.profile not in PROFILES:
        raise InputError(f"no profile {options.profile}; there are {', '.join(PROFILES)}")
    for split in ("train", "test") if options.split is None else (options.split,):
        about = PROFILES[options.profile], split, options.output, options.workers
        if options.shard[1] > 1:
            render_shard(*about, options.shard, options.scale)
            print("when all parts are rendered, run this without --shard: it checks them and writes the index")
        else:
            print(render_dataset(*about, options.scale))


def _add_train(commands) -> None:
    command = commands.add_parser("train", help="train an experiment; several processes by torchrun")
    command.set_defaults(run=train)
    command.add_argument("experiment", help=f"one of {', '.join(EXPERIMENTS)}")
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


def train(options: argparse.Namespace) -> None:
    """Train an experiment, or go on with it."""
    with process_group(options.device):
        train_experiment(
            options.experiment,
            options.profile,
            _data(options),
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


def _add_experiments(commands) -> None:
    command = commands.add_parser(
        "experiments", help="list the experiments; what they begin with is trained when it is needed"
    )
    command.set_defaults(run=list_experiments)
    add_profile(command)


def list_experiments(options: argparse.Namespace) -> None:
    """Print the names of what there is to train; of data of one's own, of what they allow."""
    own = read_own(_data(options))
    print(*(name for name, config in EXPERIMENTS.items() if can_be_trained(config, own)), sep="\n")


def _add_predict(commands) -> None:
    command = commands.add_parser("predict", help="track the test split by every method, where that is not done yet")
    command.set_defaults(run=run_predict)
    add_profile(command)
    add_workers(command)
    add_device(command)


def run_predict(options: argparse.Namespace) -> None:
    """Make what is missing of the predictions that tables and figures are made of."""
    workers = 1 if options.device.startswith("cuda") else options.workers
    make_predictions(options.profile, _data(options), workers, options.device)


def _add_search(commands) -> None:
    command = commands.add_parser("search", help="train variants of the recipe, briefly; adds to tables/recipe.csv")
    command.set_defaults(run=run_search)
    command.add_argument("variants", nargs="*", help="default: all of them")
    command.add_argument("--crops", type=positive, default=200_000, help="how many crops each of them sees")
    add_precision(command)
    add_profile(command)
    add_device(command)


def run_search(options: argparse.Namespace) -> None:
    """Compare training recipes and print the table."""
    data = _data(options)
    names = options.variants or list(VARIANTS)
    table = search_recipe(
        options.profile, data, generic_hand(), options.device, options.crops, names, options.precision
    )
    print(table.to_string(index=False))


def _add_tune(commands) -> None:
    command = commands.add_parser("tune", help="tune hyperparameters on validation users")
    command.set_defaults(run=run_tune)
    command.add_argument(
        "names", nargs="*", help="one_euro, fit_weights, hand_confidence, pinch_thresholds (default: all)"
    )
    add_profile(command)
    add_device(command)


def run_tune(options: argparse.Namespace) -> None:
    """Tune hyperparameters on validation users, and print the tables."""
    data = _data(options)
    tables = tune_methods(options.profile, data, options.device, options.names)
    for table in tables.values():
        print(table.drop(columns=table.filter(like="sha256")).to_string(index=False), end="\n\n")


def _add_fit_confidence(commands) -> None:
    command = commands.add_parser(
        "fit-confidence", help="fit how sure a network's predictions are, which track --crops own needs of it"
    )
    command.set_defaults(run=run_fit_confidence)
    command.add_argument("--weights", type=Path, required=True, help="of the network; the result is written beside")
    add_profile(command)
    add_workers(command)


def run_fit_confidence(options: argparse.Namespace) -> None:
    """Fit the confidence of a network, and say where it is."""
    print(fit_confidence(options.weights, options.profile, _data(options), options.workers))


def _add_results(commands) -> None:
    command = commands.add_parser("results", help="write the tables of README.md and results/README.md")
    command.set_defaults(run=results)
    command.add_argument("--profile", default="reference", help="smoke or reference")


def results(options: argparse.Namespace) -> None:
    """Write the results into the pages that show them."""
    write_results(options.profile, ROOT)


def _add_report(commands) -> None:
    command = commands.add_parser("report", help="make a book, to be read from disk, of notebooks and pages")
    command.set_defaults(run=report)
    command.add_argument("--profile", default="reference", help="smoke or reference")


def report(options: argparse.Namespace) -> None:
    """Make the book."""
    from lib.study.book import make_book  # here: Sphinx takes a second to import

    print(make_book(ROOT, options.profile))


def _add_benchmark(commands) -> None:
    command = commands.add_parser("benchmark", help="time tracking, training, reading of data or rendering")
    command.set_defaults(run=benchmark)
    command.add_argument("what", choices=("tracking", "training", "data", "rendering"))
    command.add_argument("--recording", type=Path, help="what is tracked or, by data, read")
    add_method(command)
    command.add_argument("--weights", type=Path, help="as of track (default: published network, random weights)")
    command.add_argument("--repeats", type=positive, default=5, help="how often everything is measured")
    add_workers(command)
    command.add_argument("--threads", type=positive, help="CPU threads (default: one per free core)")
    add_precision(command)
    add_device(command)


def benchmark(options: argparse.Namespace) -> None:
    """Time tracking, training, reading or rendering and print a table."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.what == "tracking":
        if options.recording is None:
            raise InputError("benchmark tracking needs --recording FILE.mp4")
        recording = read_recording(options.recording)
        check_trackable(recording, options.crops, skeleton="known")
        if options.method == "multistage":
            if options.weights is None:
                raise InputError("benchmark tracking --method multistage needs --weights FOLDER")
            tracker = Method("multistage", options.weights, options.crops, options.device).tracker()
            stages = tracker.keypoints, tracker.detector
            table = benchmark_multistage(recording, *stages, options.device, options.repeats)
        else:
            network = load_network(options.weights) if options.weights else UmeTrack()
            table = benchmark_tracking(recording, network, options.device, options.repeats)
    elif options.what == "training":
        networks = {"published": PUBLISHED_NETWORK, "reference": REFERENCE_NETWORK}
        table = benchmark_training(networks, options.device, 4 * options.repeats, options.precision)
    elif options.what == "data":
        if options.recording is None:
            raise InputError("benchmark data needs --recording FILE.mp4, with labels and a hand_model")
        table = benchmark_data(read_recording(options.recording), options.device)
    else:
        table = benchmark_rendering(options.workers, options.repeats)
    print(table.to_string(index=False, float_format="{:.2f}".format, na_rep=""))


def _data(options: argparse.Namespace) -> Path:
    return options.data or ROOT / "data" / options.profile


ADD_COMMANDS = (
    _add_render, _add_train, _add_experiments, _add_predict, _add_search, _add_tune, _add_fit_confidence,
    _add_results, _add_report, _add_benchmark,
)  # fmt: skip
"""What adds each of these commands to the parser."""
