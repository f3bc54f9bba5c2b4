"""The named experiments of the study: what is trained, and how long."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist
from torch import nn

from lib.clip_training import ClipData, ClipTraining, ClipTrainingConfig, PretrainedEncoder
from lib.clips import ClipSource
from lib.crop_cache import CropSequence, ViewSequence
from lib.errors import InputError
from lib.files import fingerprint, read_json, sha256_of, working_in
from lib.hands import HandModel
from lib.losses import LossWeights
from lib.machines import Precision
from lib.multistage.detection_training import DetectionTraining, DetectionTrainingConfig, ViewData, ViewSource
from lib.multistage.keypoint_training import KeypointTraining, KeypointTrainingConfig
from lib.multistage.keypoints import KeyNetConfig, pretrain
from lib.network import NetworkConfig
from lib.study.results import results_folder
from lib.study.settings import with_settings
from lib.training import Run, Task, TrainingConfig, fit_to_minutes

PUBLISHED_NETWORK = NetworkConfig()
REFERENCE_NETWORK = NetworkConfig(stem="unshuffle", widths=(32, 64, 128), blocks=(2, 3, 2))
"""What two CPU cores can train: another backbone, the rest as published."""
REFERENCE_KEYNET = KeyNetConfig(blocks="residual")
"""The baseline sees through the same backbone."""

PRETRAINING = "keynet_image_only"
"""The image encoders of all end-to-end networks begin as that of this one: what recognises keypoints in a picture need
not be learnt again by each."""


def _clips(network: NetworkConfig, weights: LossWeights) -> ClipTrainingConfig:
    return ClipTrainingConfig(network, weights, PRETRAINING, optimizer="muon", steps=20_500, pose_steps=16_000)


def _crops(network: KeyNetConfig, steps: int) -> KeypointTrainingConfig:
    return KeypointTrainingConfig(network, optimizer="muon", hands=48, steps=steps)


_POSE = LossWeights(temporal=0.0, pinch=0.0)
_POSE_TEMPORAL = LossWeights(pinch=0.0)
EXPERIMENTS: dict[str, TrainingConfig] = {
    "keynet_image_only": _crops(replace(REFERENCE_KEYNET, keypoint_input=False), steps=5_600),
    "no_ftl": _clips(replace(REFERENCE_NETWORK, feature_transform=False), _POSE),
    "no_skeleton_encoder": _clips(replace(REFERENCE_NETWORK, skeleton_encoder=False), _POSE),
    "no_temporal": _clips(replace(REFERENCE_NETWORK, temporal_module=False), _POSE),
    "no_temporal_temporal_loss": _clips(replace(REFERENCE_NETWORK, temporal_module=False), _POSE_TEMPORAL),
    "full": _clips(REFERENCE_NETWORK, _POSE),
    "full_temporal_loss": _clips(REFERENCE_NETWORK, _POSE_TEMPORAL),
    "full_temporal_pinch_loss": _clips(REFERENCE_NETWORK, LossWeights()),
    "full_tenfold_temporal_loss": _clips(REFERENCE_NETWORK, LossWeights(temporal=0.5, pinch=0.0)),
    "full_temporal_tenfold_pinch_loss": _clips(REFERENCE_NETWORK, LossWeights(pinch=4.0)),
    "detnet": DetectionTrainingConfig(steps=2_400),
    "keynet": _crops(REFERENCE_KEYNET, steps=30_250),
}
"""In this order: the image encoder that the end-to-end networks begin with; the rows of Tables 2 to 4 (`full_one_euro`
filters `full`, and is not trained); ten times the paper's L_temp and L_pinch, to see whether their weights are at
fault; the multi-stage baseline. Each takes about two hours at most on one CPU core.

One more may be added: tables and figures are of those in `RELEASED_RUNS` only."""
END_TO_END = (
    "no_ftl", "no_skeleton_encoder", "no_temporal", "no_temporal_temporal_loss", "full", "full_temporal_loss",
    "full_temporal_pinch_loss", "full_tenfold_temporal_loss", "full_temporal_tenfold_pinch_loss",
)  # fmt: skip
"""The experiments of the tables that train the network of the paper."""
REPEATED = ("no_temporal", "full", "full_temporal_loss")
"""Those of them that were trained with several seeds."""
SEEDS = (0, 1, 2)

_SEED = "_seed"  # in the name of a run with another seed, before the seed
RELEASED_RUNS = (
    PRETRAINING, *END_TO_END, *(f"{name}{_SEED}{seed}" for name in REPEATED for seed in SEEDS[1:]), "detnet", "keynet"
)  # fmt: skip
VALIDATION_SHARE = 0.1
"""Share of the training users that are held out of training as validation users, to watch it and to tune thresholds."""


_CLIPS = {"hands": 16, "pose_clip_frames": 2, "clip_frames": 4, "pose_steps": 12, "validation_hands": 16}
_BRIEF = {"warmup_steps": 2}
SMOKE: dict[type[TrainingConfig], dict[str, int]] = {
    ClipTrainingConfig: {"steps": 24, "validation_every": 12, **_BRIEF, **_CLIPS},
    KeypointTrainingConfig: {"steps": 12, "validation_every": 6, **_BRIEF, "hands": 4, "validation_hands": 8},
    DetectionTrainingConfig: {"steps": 12, "validation_every": 6, **_BRIEF, "views": 4, "validation_views": 8},
}
"""What the smoke profile changes; the reference profile is what the configurations say."""
PROFILES = ("smoke", "reference")


def configuration(name: str, profile: str) -> TrainingConfig:
    """The configuration of an experiment. Raises InputError, listing what there is, for an unknown name or profile."""
    if name not in EXPERIMENTS:
        raise InputError(f"no experiment {name}; there are {', '.join(EXPERIMENTS)}")
    if profile not in PROFILES:
        raise InputError(f"no profile {profile}; there are {', '.join(PROFILES)}")
    config = EXPERIMENTS[name]
    return replace(config, **SMOKE[type(config)]) if profile == "smoke" else config


def experiment_and_seed(run: str) -> tuple[str, int]:
    """What `train_experiment` made a run's name of."""
    name, _, seed = run.partition(_SEED)
    return name, int(seed or 0)


def run_name(experiment: str, seed: int, own: bool, name: str | None) -> str:
    """What a run is called: EXPERIMENT, EXPERIMENT_seedN, or the `name` that an `own` configuration must have.

    Raises InputError if it has none, or a name that is taken by an experiment or is no plain word.
    """
    if own and name is None:
        raise InputError("with --set the training is another one: give it a --name of its own")
    if name is None:
        return f"{experiment}{_SEED}{seed}" if seed else experiment
    if experiment_and_seed(name)[0] in EXPERIMENTS:
        raise InputError(f"{name} is the name of an experiment of the study: choose another one")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"{name!r} is no name for a folder: use letters, digits, _ and -")
    return name


def train_experiment(
    experiment: str | TrainingConfig,
    profile: str,
    data_folder: Path,
    generic_hand: HandModel,
    device: str,
    minutes: float | None = None,
    resume: bool = False,
    compiled: bool = False,
    seed: int = 0,
    precision: Precision | None = None,
    settings: Mapping[str, str] | None = None,
    name: str | None = None,
) -> nn.Module:
    """Train an experiment into results/PROFILE/runs/NAME, and write its weights to results/PROFILE/checkpoints.

    A configuration in place of an experiment's name, or `settings` that change some of its fields, need a `name` of
    their own; tables and figures are not about them. `minutes` replaces the number of steps by what the machine does in
    that time. With another `seed`, of the first weights and of all that is drawn in training, the name ends in
    `_seedN`. Raises InputError if the folder holds a run and `resume` is not asked for, if another process trains it,
    or if the weights are there and would be replaced.
    """
    settings, named = settings or {}, isinstance(experiment, str)
    config = configuration(experiment, profile) if named else experiment
    run = run_name(experiment if named else "", seed, bool(settings) or not named, name)
    folder = results_folder(profile) / "runs" / run
    weights = trained_weights_path(profile, run)
    config = with_settings(replace(config, seed=seed), settings)
    first = not dist.is_initialized() or dist.get_rank() == 0  # the processes of a run are one user of its folder
    with working_in(folder, wait=False) if first else nullcontext():
        _refuse_to_replace(folder, weights, resume)
        task = load_task(config, profile, data_folder, generic_hand, device)
        if minutes is not None:
            task = replace(task, config=fit_to_minutes(task, device, minutes, folder, precision, compiled))
        return Run(folder, task, device, precision, compiled).train(weights)


def _refuse_to_replace(folder: Path, weights: Path, resume: bool) -> None:
    if (folder / "checkpoint.pt").exists():
        if not resume:
            raise InputError(f"{folder} holds a run already: go on with --resume, or remove it")
    elif weights.exists():
        raise InputError(f"{weights} is there: remove it and {folder} to train it anew, or give another --seed")


def load_task(config: TrainingConfig, profile: str, folder: Path, generic_hand: HandModel, device: str) -> Task:
    """What a configuration trains, on the rendered dataset in `folder`.

    Raises InputError if it begins with a network that the profile has not trained yet.
    """
    if isinstance(config, ClipTrainingConfig):
        return ClipTraining(config, load_clips(folder, device), generic_hand, pretrained_encoder(config, profile))
    if isinstance(config, KeypointTrainingConfig):
        return KeypointTraining(config, load_clips(folder, device))
    return DetectionTraining(config, load_views(folder, device))


def pretrained_encoder(config: ClipTrainingConfig, profile: str) -> PretrainedEncoder | None:
    """The KeyNet that a training's image encoder begins as, if it does. Raises InputError if it is not trained yet."""
    if config.pretrained is None:
        return None
    path = trained_weights_path(profile, config.pretrained)
    if not path.is_file():
        raise InputError(
            f"{path}, with which this training begins, is not there: "
            f"run python -m lib train {config.pretrained} --profile {profile} first"
        )
    return PretrainedEncoder(partial(pretrain, weights=path), sha256_of(path))


def load_clips(folder: Path, device: str) -> ClipData:
    """The crops of the training split. Raises InputError if they are not there or not complete."""
    listed = listed_files(folder, "crops")
    sources = [ClipSource([CropSequence.load(stem) for stem in stems], device) for stems in split_users(folder, listed)]
    return ClipData(*sources, fingerprint=fingerprint(listed))


def load_views(folder: Path, device: str) -> ViewData:
    """The views of the training split. Raises InputError if they are not there or not complete."""
    listed = listed_files(folder, "views")
    sources = [ViewSource([ViewSequence.load(stem) for stem in stems], device) for stems in split_users(folder, listed)]
    return ViewData(*sources, fingerprint=fingerprint(listed))


def trained_weights_path(profile: str, run: str) -> Path:
    """Where the weights of a run lie once it has ended."""
    return results_folder(profile) / "checkpoints" / f"{run}.safetensors"


def listed_files(folder: Path, form: str) -> dict[str, str]:
    """The files of the training split below `form`, with their hashes."""
    index = folder / "training.json"
    listed = read_json(index)["sha256"] if index.is_file() else {}
    files = {path: sha256 for path, sha256 in listed.items() if Path(path).parts[0] == form}
    if not files:
        raise InputError(f"no {form} in {index}: run python -m lib render --split train --output {folder}")
    return files


def split_users(folder: Path, listed: Mapping[str, str]) -> tuple[list[Path], list[Path]]:
    """The sequences to train on, and those of validation users, who are a tenth of the users (at least one)."""
    stems = sorted({(folder / path).with_suffix("") for path in listed})
    users = sorted({stem.parent.name for stem in stems}, key=lambda name: (len(name), name))
    held_out = users[-max(1, round(VALIDATION_SHARE * len(users))) :]
    return (
        [stem for stem in stems if stem.parent.name not in held_out],
        [stem for stem in stems if stem.parent.name in held_out],
    )
