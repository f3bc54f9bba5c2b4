"""The commands that make the study: rendering, training, predictions, tables of times."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from lib.checkpoints import load_network
from lib.cli.track import DETECTOR, Method, check_trackable, released_weights
from lib.errors import InputError
from lib.live.confidence import read_confidence
from lib.live.engines import onnx_engine
from lib.live.onnx_files import open_session
from lib.live.tracker import LiveTracker
from lib.machines import process_group
from lib.multistage.detection import detect
from lib.multistage.networks import detnet
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
from lib.study.experiments import EXPERIMENTS, PUBLISHED_NETWORK, REFERENCE_NETWORK, about_experiment, train_experiment
from lib.study.live_benchmarks import PlainTracker, benchmark_live, soak
from lib.study.live_confidence import fit_confidence
from lib.study.methods import make_predictions
from lib.study.methods import tune as tune_methods
from lib.study.own_data import can_be_trained, read_own
from lib.study.recipe import VARIANTS, about_variant
from lib.study.recipe import search as search_recipe
from lib.study.results import ROOT
from lib.study.results_pages import write_results
from lib.study.settings import read_settings


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


def list_experiments(options: argparse.Namespace) -> None:
    """Print what there is to train, a line each that begins with its name; of data of one's own, what they allow."""
    own = read_own(_data(options))
    _print_names({n: about_experiment(n) for n, config in EXPERIMENTS.items() if can_be_trained(config, own)})


def _print_names(described: Mapping[str, str]) -> None:
    """Print names, and what they name."""
    width = max(map(len, described), default=0)
    for name, about in described.items():
        print(f"{name:{width}}  {about}")


def run_predict(options: argparse.Namespace) -> None:
    """Make what is missing of the predictions that tables and figures are made of."""
    workers = 1 if options.device.startswith("cuda") else options.workers
    make_predictions(options.profile, _data(options), workers, options.device)


def run_search(options: argparse.Namespace) -> None:
    """Compare training recipes and print the table, or list them."""
    if options.list:
        _print_names({name: about_variant(name) for name in VARIANTS})
        return
    data = _data(options)
    names = options.variants or list(VARIANTS)
    table = search_recipe(
        options.profile, data, generic_hand(), options.device, options.crops, names, options.precision
    )
    print(table.to_string(index=False))


def run_tune(options: argparse.Namespace) -> None:
    """Tune hyperparameters on validation users, and print the tables."""
    data = _data(options)
    tables = tune_methods(options.profile, data, options.device, options.names)
    for table in tables.values():
        print(table.drop(columns=table.filter(like="sha256")).to_string(index=False), end="\n\n")


def run_fit_confidence(options: argparse.Namespace) -> None:
    """Fit the confidence of a network, and say where it is."""
    print(fit_confidence(options.weights, options.profile, _data(options), options.workers))


def results(options: argparse.Namespace) -> None:
    """Write the results into the pages that show them."""
    write_results(options.profile, ROOT)


def report(options: argparse.Namespace) -> None:
    """Make the book."""
    from lib.study.book import make_book  # here: Sphinx takes a second to import

    print(make_book(ROOT, options.profile))


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
            weights = options.weights or released_weights("multistage")
            tracker = Method("multistage", weights, options.crops, options.device).tracker()
            stages = tracker.keypoints, tracker.detector
            table = benchmark_multistage(recording, *stages, options.device, options.repeats)
        else:
            network = load_network(options.weights) if options.weights else UmeTrack()
            table = benchmark_tracking(recording, network, options.device, options.repeats)
    elif options.what in ("live", "soak"):
        table = _benchmark_live(options)
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


def _benchmark_live(options: argparse.Namespace) -> pd.DataFrame:
    if options.recording is None:
        raise InputError(f"benchmark {options.what} needs --recording FILE.mp4, with a hand_model")
    recording = read_recording(options.recording)
    check_trackable(recording, "own", skeleton="known")
    weights = options.weights or released_weights("umetrack")
    look = partial(detect, detnet(released_weights("multistage") / DETECTOR, "cpu"))
    about = look, read_confidence(weights), recording.mounting_angles, recording.hand_model
    engine = onnx_engine(open_session(options.onnx)) if options.onnx else None
    if options.what == "soak":
        return soak(recording, LiveTracker(load_network(weights), *about, engine=engine), options.frames)
    trackers = {"plain crops": PlainTracker(load_network(weights), *about)}
    trackers["compiled crops"] = LiveTracker(load_network(weights), *about)
    if engine:
        trackers["compiled crops, ONNX"] = LiveTracker(load_network(weights), *about, engine=engine)
    return benchmark_live(recording, trackers, options.repeats)


def _data(options: argparse.Namespace) -> Path:
    return options.data or ROOT / "data" / options.profile
