"""The named experiments of the study: what is trained, and how long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lib.clips import ClipSource
from lib.crop_cache import CropSequence
from lib.errors import InputError
from lib.files import read_json
from lib.hands import HandModel
from lib.losses import LossWeights
from lib.network import NetworkConfig, UmeTrack
from lib.results import results_folder
from lib.training import Data, Run, TrainingConfig, fit_to_minutes

PUBLISHED_NETWORK = NetworkConfig()
REFERENCE_NETWORK = NetworkConfig(stem="unshuffle", widths=(32, 64, 128), blocks=(2, 3, 2))
"""What two CPU cores can train: another backbone, the rest as published."""

_POSE = LossWeights(temporal=0.0, pinch=0.0)
_POSE_TEMPORAL = LossWeights(pinch=0.0)
EXPERIMENTS: dict[str, TrainingConfig] = {
    "no_ftl": TrainingConfig(replace(REFERENCE_NETWORK, feature_transform=False), _POSE),
    "no_skeleton_encoder": TrainingConfig(replace(REFERENCE_NETWORK, skeleton_encoder=False), _POSE),
    "no_temporal": TrainingConfig(replace(REFERENCE_NETWORK, temporal_module=False), _POSE),
    "no_temporal_temporal_loss": TrainingConfig(replace(REFERENCE_NETWORK, temporal_module=False), _POSE_TEMPORAL),
    "full": TrainingConfig(REFERENCE_NETWORK, _POSE),
    "full_temporal_loss": TrainingConfig(REFERENCE_NETWORK, _POSE_TEMPORAL),
    "full_temporal_pinch_loss": TrainingConfig(REFERENCE_NETWORK, LossWeights()),
}
"""Rows of Tables 2 to 4 that are trained; `full_one_euro` filters the poses of `full`."""

VALIDATION_SHARE = 0.1
"""Share of the training users that are held out, to watch the training and to tune thresholds."""


def experiment(name: str, profile: str) -> TrainingConfig:
    """The configuration of an experiment. Raises InputError, listing what there is, for an unknown name or profile."""
    if name not in EXPERIMENTS:
        raise InputError(f"no experiment {name}; there are {', '.join(EXPERIMENTS)}")
    config = EXPERIMENTS[name]
    sizes = {
        "reference": {},
        "smoke": {
            "steps": 24,
            "pose_steps": 12,
            "clips": 4,
            "clip_frames": 4,
            "validation_every": 12,
            "validation_clips": 4,
        },
    }
    if profile not in sizes:
        raise InputError(f"no profile {profile}; there are {', '.join(sizes)}")
    return replace(config, **sizes[profile])


def train_experiment(
    name: str,
    profile: str,
    data_folder: Path,
    generic_hand: HandModel,
    device: str,
    minutes: float | None = None,
    resume: bool = False,
    compiled: bool | None = None,
) -> UmeTrack:
    """Train an experiment into results/PROFILE/runs/NAME, and write its weights to results/PROFILE/checkpoints.

    `minutes` replaces the number of steps by what the machine does in that time. Raises InputError if the folder holds
    a run and `resume` is not asked for.
    """
    folder = results_folder(profile) / "runs" / name
    if (folder / "checkpoint.pt").exists() and not resume:
        raise InputError(f"{folder} holds a run already: go on with --resume, or remove it")
    config = experiment(name, profile)
    if compiled is not None:
        config = replace(config, compiled=compiled)
    data = load_data(data_folder, config.clip_frames, device)
    if minutes is not None:
        config = fit_to_minutes(config, data, generic_hand, device, minutes, folder)
    run = Run(folder, config, data, generic_hand, device)
    return run.train(results_folder(profile) / "checkpoints" / f"{name}.safetensors")


def load_data(folder: Path, clip_frames: int, device: str) -> Data:
    """The crop cache of a rendered dataset, a tenth of its users (at least one) held out.

    Raises InputError if the training split is not there or not complete.
    """
    index = folder / "training.json"
    if not index.is_file():
        raise InputError(f"no training data at {index}: run python -m lib render --split train --output {folder}")
    listed = read_json(index)
    stems = sorted({str(Path(path).with_suffix("")) for path in listed["sha256"]})
    users = sorted({_user(stem) for stem in stems})
    held_out = set(users[-max(1, round(VALIDATION_SHARE * len(users))) :])
    sources = [
        ClipSource([CropSequence.load(folder / stem) for stem in stems if (_user(stem) in held_out) == held], device)
        for held in (False, True)
    ]
    return Data(*sources, *(source.clips(clip_frames) for source in sources), fingerprint=listed["fingerprint"])


def _user(stem: str) -> str:
    return Path(stem).parent.name
