"""The named experiments of the study: what is trained, and how long."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from torch import nn

from lib.checkpoints import check_names_and_shapes, load_network, read_metadata
from lib.clip_training import ClipData, ClipTraining, ClipTrainingConfig, Pretrained
from lib.clips import MILD_AUGMENTATION, ClipSource
from lib.crop_cache import CropSequence, ViewSequence
from lib.errors import InputError
from lib.files import fingerprint, sha256_of, working_in
from lib.formats.shard_source import ShardSource, shards_fingerprint, split_shards
from lib.hands import HandModel
from lib.losses import LossWeights
from lib.machines import Precision
from lib.multistage.detection_training import DetectionTraining, DetectionTrainingConfig, ViewData, ViewSource
from lib.multistage.keypoint_training import KeypointTraining, KeypointTrainingConfig
from lib.multistage.keypoints import KeyNet, KeyNetConfig, pretrain
from lib.network import NetworkConfig, UmeTrack
from lib.rendered.index import split_users, training_files
from lib.study.own_data import read_own
from lib.study.results import ROOT, results_folder
from lib.study.settings import differences, with_settings
from lib.training import Run, Task, TrainingConfig, fit_to_minutes

PUBLISHED_NETWORK = NetworkConfig()
REFERENCE_NETWORK = NetworkConfig(stem="unshuffle", widths=(32, 64, 128), blocks=(2, 3, 2))
"""What two CPU cores can train: another backbone, the rest as published."""
REFERENCE_KEYNET = KeyNetConfig(blocks="residual")
"""The baseline sees through the same backbone."""

PRETRAINING = "keynet_image_only"
"""The image encoders of all end-to-end networks begin as that of this one: what recognises keypoints in a picture need
not be learnt again by each."""
SINGLE_FRAMES = "single_frames"
"""The first phase of all end-to-end networks, but for those that lack a part which it trains. What they have in common
need not be learnt again by each."""

_POSE = LossWeights(temporal=0.0, pinch=0.0)
_POSE_TEMPORAL = LossWeights(pinch=0.0)


def _single_frames(network: NetworkConfig) -> ClipTrainingConfig:
    """The first phase: L_pose alone, on single frames, where there is nothing to remember."""
    without_memory = replace(network, temporal_module=False)
    return ClipTrainingConfig(without_memory, _POSE, PRETRAINING, optimizer="muon", steps=16_000, clip_frames=1)


def _clips(network: NetworkConfig, weights: LossWeights, begins_as: str = SINGLE_FRAMES) -> ClipTrainingConfig:
    """The second phase: all losses, on clips, with a memory.

    Deviation: the paper has one phase. So few clips are in a batch, and their frames so alike, that their mean and
    variance say little, and that the network forgets at the rate of the first phase: the statistics are kept, the rate
    is lower, and the augmentation milder.
    """
    schedule = {"optimizer": "muon", "learning_rate": 5e-4, "steps": 4_500}
    kept = {"augmentation": MILD_AUGMENTATION, "keep_batch_norms": True, "occluded": 0.25}
    return ClipTrainingConfig(network, weights, begins_as, **schedule, **kept)


def _crops(network: KeyNetConfig, steps: int) -> KeypointTrainingConfig:
    return KeypointTrainingConfig(network, optimizer="muon", hands=48, steps=steps)


NO_FTL = replace(REFERENCE_NETWORK, feature_transform=False)
NO_SKELETON_ENCODER = replace(REFERENCE_NETWORK, skeleton_encoder=False)
NO_TEMPORAL = replace(REFERENCE_NETWORK, temporal_module=False)
FIRST_PHASES: dict[str, TrainingConfig] = {
    SINGLE_FRAMES: _single_frames(REFERENCE_NETWORK),
    f"{SINGLE_FRAMES}_no_ftl": _single_frames(NO_FTL),
    f"{SINGLE_FRAMES}_no_skeleton_encoder": _single_frames(NO_SKELETON_ENCODER),
}
"""What end-to-end experiments begin with: trained when one of them needs it."""
EXPERIMENTS: dict[str, TrainingConfig] = {
    "keynet_image_only": _crops(replace(REFERENCE_KEYNET, keypoint_input=False), steps=5_600),
    "no_ftl": _clips(NO_FTL, _POSE, f"{SINGLE_FRAMES}_no_ftl"),
    "no_skeleton_encoder": _clips(NO_SKELETON_ENCODER, _POSE, f"{SINGLE_FRAMES}_no_skeleton_encoder"),
    "no_temporal": _clips(NO_TEMPORAL, _POSE),
    "no_temporal_temporal_loss": _clips(NO_TEMPORAL, _POSE_TEMPORAL),
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
fault; the multi-stage baseline. Each takes about two hours at most on one CPU core, the first phase included.

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
_BRIEF = {"steps": 12, "warmup_steps": 2, "validation_every": 6}
SMOKE: dict[type[TrainingConfig], dict[str, int]] = {
    ClipTrainingConfig: {**_BRIEF, "hands": 16, "validation_hands": 16},
    KeypointTrainingConfig: {**_BRIEF, "hands": 4, "validation_hands": 8},
    DetectionTrainingConfig: {**_BRIEF, "views": 4, "validation_views": 8},
}
"""What the smoke profile changes; the reference profile is what the configurations say."""
PROFILE_NAMES = ("smoke", "reference")
OFFICIAL, OFFICIAL_WEIGHTS = "official", "UMETRACK_WEIGHTS"
"""The published network among the methods, and the environment variable that names its weights."""


def configuration(name: str, profile: str, seed: int = 0) -> TrainingConfig:
    """The configuration of an experiment, or of a first phase.

    A second phase begins with the first one of the same seed. Raises InputError, listing what there is, for an
    unknown name or profile.
    """
    known = FIRST_PHASES | EXPERIMENTS
    if name not in known:
        raise InputError(f"no experiment {name}; there are {', '.join(known)}")
    if profile not in PROFILE_NAMES and read_own(ROOT / "data" / profile) is None:
        raise InputError(f"no profile {profile}; there are {', '.join(PROFILE_NAMES)} and imported folders data/NAME")
    config = replace(known[name], seed=seed)
    if isinstance(config, ClipTrainingConfig) and config.pretrained in FIRST_PHASES:
        config = replace(config, pretrained=run_name(config.pretrained, seed))
    return replace(config, **SMOKE[type(config)]) if profile == "smoke" else config


def experiment_and_seed(run: str) -> tuple[str, int]:
    """What `train_experiment` made a run's name of."""
    name, _, seed = run.partition(_SEED)
    return name, int(seed or 0)


_BASES = {
    "full": "end-to-end network, L_pose alone",
    "keynet": "keypoints of the multi-stage baseline",
    "detnet": "detector of the baseline, and of --crops own",
}
"""What the others of the same kind are compared with."""


def about_experiment(name: str) -> str:
    """What an experiment is, in words or by the settings that change another one."""
    if name in _BASES:
        return _BASES[name]
    base = next(base for base in _BASES if type(EXPERIMENTS[base]) is type(EXPERIMENTS[name]))
    return f"{base} with {', '.join(map('='.join, differences(EXPERIMENTS[base], EXPERIMENTS[name]).items()))}"


def is_experiment(name: str) -> bool:
    """Whether something is an experiment of the study, or a first phase."""
    return name in FIRST_PHASES | EXPERIMENTS


def run_name(experiment: str, seed: int) -> str:
    """What a run of an experiment is called: EXPERIMENT or EXPERIMENT_seedN."""
    return f"{experiment}{_SEED}{seed}" if seed else experiment


def name_of_own_run(name: str | None) -> str:
    """The name of a training that is no experiment of the study.

    Raises InputError if there is none, if an experiment has it, or if it is no plain word.
    """
    if name is None:
        raise InputError("with --set the training is another one: give it a --name of its own")
    if is_experiment(experiment_and_seed(name)[0]):
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
    wait: bool = False,
) -> nn.Module:
    """Train an experiment into results/PROFILE/runs/NAME, and write its weights to results/PROFILE/checkpoints.

    The experiment that it begins with is trained before it, if its weights are not there. A configuration in place of
    an experiment's name, or `settings` that change some of its fields, need a `name` of their own; tables and figures
    are not about them. `minutes` replaces the number of steps of each training by what the machine does in that time.
    With another `seed`, of the first weights and of all that is drawn in training, the name ends in `_seedN`. Raises
    InputError if the folder holds a run and `resume` is not asked for, if the weights are there and would be replaced,
    or if another process trains it, unless to `wait` for its end is asked for.
    """
    named = isinstance(experiment, str)
    config = configuration(experiment, profile, seed) if named else replace(experiment, seed=seed)
    run = run_name(experiment, seed) if named and not settings and name is None else name_of_own_run(name)
    config = with_settings(config, settings or {})
    folder, weights = results_folder(profile) / "runs" / run, trained_weights_path(profile, run)
    with _alone_in(folder, wait):
        _refuse_to_replace(folder, weights, resume)
        if isinstance(config, ClipTrainingConfig) and config.pretrained is not None:
            first, first_seed = experiment_and_seed(config.pretrained)
            if is_experiment(first) and not trained_weights_path(profile, config.pretrained).exists():
                shared = {"resume": True, "compiled": compiled, "seed": first_seed, "precision": precision}
                alone = not dist.is_initialized()
                train_experiment(first, profile, data_folder, generic_hand, device, minutes, **shared, wait=alone)
        task = load_task(config, profile, data_folder, generic_hand, device)
        if minutes is not None:
            task = replace(task, config=fit_to_minutes(task, device, minutes, folder, precision, compiled))
        return Run(folder, task, device, precision, compiled).train(weights)


def _alone_in(folder: Path, wait: bool) -> AbstractContextManager[None]:
    """The lock of a run's folder. All processes of a run are one user of it."""
    first = not dist.is_initialized() or dist.get_rank() == 0
    return working_in(folder, wait=wait) if first else nullcontext()


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
        return ClipTraining(config, load_clips(folder, device), generic_hand, read_pretrained(config, profile))
    if isinstance(config, KeypointTrainingConfig):
        return KeypointTraining(config, load_clips(folder, device))
    return DetectionTraining(config, load_views(folder, device))


def pretrained_path(config: ClipTrainingConfig, profile: str) -> Path | None:
    """The weights with which a training begins, if with any. Raises InputError if they are not there."""
    if config.pretrained is None:
        return None
    path = trained_weights_path(profile, config.pretrained)
    if not path.is_file():
        raise InputError(
            f"{path}, with which this training begins, is not there: "
            f"run python -m lib train {config.pretrained} --profile {profile} first"
        )
    return path


def read_pretrained(config: ClipTrainingConfig, profile: str) -> Pretrained | None:
    """What a training begins with, if with anything: the image encoder of a KeyNet, or another network without memory.

    Raises InputError if it is not trained yet, or has not the layers of the network to be trained.
    """
    path = pretrained_path(config, profile)
    if path is None:
        return None
    network = UmeTrack(config.network)
    try:
        if read_metadata(path).get("class") == KeyNet.__name__:
            pretrain(network.backbone, path)
            seen = network.backbone.state_dict().items()
            weights = {f"backbone.{name}": value for name, value in seen if not name.startswith("head.")}
        else:
            weights = load_network(path).state_dict()
            new = {n: w for n, w in network.state_dict().items() if n in weights or not n.startswith("temporal.")}
            check_names_and_shapes(weights, new, path)
    except InputError as error:
        raise InputError(f"this training cannot begin as {config.pretrained}: {error}") from error
    return Pretrained(weights, sha256_of(path))


def load_clips(folder: Path, device: str) -> ClipData:
    """The crops of the training split, or those of the shards that an imported folder names.

    Raises InputError if they are not there or not complete.
    """
    own = read_own(folder)
    if own is not None and own["shards"]:
        folders = [Path(shard) for shard in own["shards"]]
        parts = split_shards(folders)
        return ClipData(*(ShardSource(part, device) for part in parts), fingerprint=shards_fingerprint(folders))
    listed = training_files(folder, "crops")
    sources = [ClipSource([CropSequence.load(stem) for stem in stems], device) for stems in split_users(folder, listed)]
    return ClipData(*sources, fingerprint=fingerprint(listed))


def load_views(folder: Path, device: str) -> ViewData:
    """The views of the training split. Raises InputError if they are not there or not complete."""
    listed = training_files(folder, "views")
    sources = [ViewSource([ViewSequence.load(stem) for stem in stems], device) for stems in split_users(folder, listed)]
    return ViewData(*sources, fingerprint=fingerprint(listed))


def trained_weights_path(profile: str, run: str) -> Path:
    """Where the weights of a run lie once it has ended; the published ones lie where the environment says."""
    if run == OFFICIAL:
        return Path(os.environ.get(OFFICIAL_WEIGHTS) or f"${OFFICIAL_WEIGHTS}")
    return results_folder(profile) / "checkpoints" / f"{run}.safetensors"


def official_is_given() -> bool:
    """Whether the user brings the published weights, to be one more row of Tables 3 and 4."""
    return bool(os.environ.get(OFFICIAL_WEIGHTS))
