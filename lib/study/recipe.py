"""The search for a recipe: what §5.1 leaves open, one setting changed at a time, the same number of crops for each.

Every row is judged on validation users, never on test users.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, replace
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from lib.clip_training import ClipTraining, ClipTrainingConfig
from lib.clips import NO_AUGMENTATION, TRUE_SKELETON, Augmentation, SkeletonNoise
from lib.errors import InputError
from lib.files import working_in
from lib.hands import HandModel
from lib.machines import Precision, commit, machine
from lib.study.experiments import EXPERIMENTS, REFERENCE_NETWORK, listed_files, load_clips, pretrained_encoder
from lib.study.results import results_folder, save_table
from lib.training import Run

BASE = EXPERIMENTS["full_temporal_loss"]
_VERSION = 2
"""Of how a brief training is made of the whole one."""
_POSE_TEMPORAL = BASE.weights


def _augmented(strength: float = 1.0, **changes: float) -> ClipTrainingConfig:
    """The base with both phases augmented more or less strongly, or otherwise changed alike."""

    def changed(one: Augmentation) -> Augmentation:
        stronger = {n: strength * getattr(one, n) for n in ("look_at", "roll", "focal_scale", "gain", "world_scale")}
        return replace(one, **stronger | changes)

    first, second = changed(BASE.augmentation), changed(BASE.second_augmentation)
    return replace(BASE, augmentation=first, second_augmentation=second)


def _from_random(*widths: int) -> ClipTrainingConfig:
    """The base with another backbone, for which there is no encoder to begin with."""
    return replace(BASE, pretrained=None, network=replace(REFERENCE_NETWORK, widths=widths))


VARIANTS: dict[str, ClipTrainingConfig] = {
    "base": BASE,
    "encoder from random weights": replace(BASE, pretrained=None),
    "learning rate x0.5": replace(BASE, learning_rate=BASE.learning_rate / 2),
    "learning rate x2": replace(BASE, learning_rate=BASE.learning_rate * 2),
    "Adam instead of Muon": replace(BASE, optimizer="adam"),
    "constant learning rate": replace(BASE, schedule="constant"),
    "batch x0.5": replace(BASE, hands=BASE.hands // 2),
    "batch x2": replace(BASE, hands=BASE.hands * 2),
    "clips of 2 frames at first": replace(BASE, pose_clip_frames=2),
    "clips of 8 frames throughout": replace(BASE, pose_clip_frames=BASE.clip_frames),
    "clips of 4 frames at the end": replace(BASE, clip_frames=BASE.clip_frames // 2),
    "clips of 16 frames at the end": replace(BASE, clip_frames=2 * BASE.clip_frames),
    "all losses from the start": replace(BASE, pose_steps=0, second_learning_rate=BASE.learning_rate),
    "second phase at the rate of the first": replace(BASE, second_learning_rate=BASE.learning_rate),
    "second phase at 2e-4": replace(BASE, second_learning_rate=2e-4),
    "second phase augmented as the first": replace(BASE, second_augmentation=BASE.augmentation),
    "no augmentation": replace(BASE, augmentation=NO_AUGMENTATION, second_augmentation=NO_AUGMENTATION),
    "half the augmentation": _augmented(0.5),
    "twice the augmentation": _augmented(2.0),
    "no size augmentation": _augmented(world_scale=0.0),
    "exact skeletons": replace(BASE, skeleton_noise=TRUE_SKELETON),
    "perturbed size only": replace(BASE, skeleton_noise=replace(TRUE_SKELETON, scale=BASE.skeleton_noise.scale)),
    "skeletons perturbed twice as much": replace(
        BASE, skeleton_noise=SkeletonNoise(*(2 * v for v in astuple(BASE.skeleton_noise)))
    ),
    "no occluding sheets": replace(BASE, occluded=0.0),
    "no pinch oversampling": replace(BASE, pinch_copies=1),
    "two views always": _augmented(single_view=0.0),
    "single view in 60 % of clips": _augmented(single_view=0.6),
    "U weighs 0.3": replace(BASE, weights=replace(_POSE_TEMPORAL, unknown=0.3)),
    "U weighs 0": replace(BASE, weights=replace(_POSE_TEMPORAL, unknown=0.0)),
    "encoder from random weights, 24, 48, 96 channels": _from_random(24, 48, 96),
    "encoder from random weights, 48, 96, 160 channels": _from_random(48, 96, 160),
}


def search(
    profile: str,
    data_folder: Path,
    generic_hand: HandModel,
    device: str,
    crops: int,
    names: Iterable[str],
    precision: Precision | None = None,
) -> pd.DataFrame:
    """Train the named variants on `crops` crops each, and add a row for each to tables/recipe.csv, which it returns.

    Variants that are in the table already, of the same configuration and data, are not trained again; others replace
    theirs. One that was stopped goes on. Errors (mm) are those of regressors K and U on clips as long as the base's, of
    the validation users and, `train_`, of those they learn from. Raises InputError for an unknown name.
    """
    if unknown := set(names) - VARIANTS.keys():
        raise InputError(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    for name in names:
        identity = _identity(name, profile, data_folder)
        folder = results_folder(profile) / "runs" / "recipe" / f"{name} {crops} {identity}"
        with working_in(folder, wait=True):
            table = _read_table(profile)
            if (table[_is_of(table, name, crops)].identity == identity).any():
                continue
            row = _train(name, profile, folder, data_folder, generic_hand, device, crops, precision)
            _replace_row(profile, row | {"identity": identity})
    return _read_table(profile)


def _read_table(profile: str) -> pd.DataFrame:
    path = results_folder(profile) / "tables" / "recipe.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["variant", "crops_asked"])
    return table if "identity" in table else table.assign(identity=None)  # earlier versions had none


def _is_of(table: pd.DataFrame, name: str, crops: int) -> pd.Series:
    return (table.variant == name) & (table.crops_asked == crops)


def _replace_row(profile: str, row: Mapping[str, object]) -> None:
    """Put the row in place of another of the same variant and crops; other searches may be adding theirs."""
    with working_in(results_folder(profile) / "tables", wait=True):
        table = _read_table(profile)
        others = table[~_is_of(table, row["variant"], row["crops_asked"])]
        save_table(pd.concat((others, pd.DataFrame([row])), ignore_index=True), profile, "recipe")


_loaded_once = cache(load_clips)


def _identity(name: str, profile: str, data_folder: Path) -> str:
    """What a row is about: a hash of configuration, data and the weights to begin with."""
    begins = pretrained_encoder(VARIANTS[name], profile)
    sources = listed_files(data_folder, "crops"), begins and begins.sha256
    about = json.dumps([_VERSION, asdict(VARIANTS[name]), *sources])
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def _train(
    name: str,
    profile: str,
    folder: Path,
    data_folder: Path,
    generic_hand: HandModel,
    device: str,
    crops: int,
    precision: Precision | None,
) -> dict[str, object]:
    data = _loaded_once(data_folder, device)
    task = ClipTraining(VARIANTS[name], data, generic_hand, pretrained_encoder(VARIANTS[name], profile))
    task = replace(task, config=task.config.with_steps(crops // len(task.batch(0, 0, 1))))
    run = Run(folder, task, device, precision)
    run.train(folder / "weights.safetensors")
    with torch.no_grad():
        judged, errors = replace(task, config=BASE), {}
        for prefix, users in (("", data.validation), ("train_", data.train)):
            terms = judged.validate(run.module.eval(), users, BASE.steps).terms
            errors |= {prefix + name: round(float(terms[name]), 2) for name in ("known_mpjpe_mm", "unknown_mpjpe_mm")}
    return {
        "variant": name,
        "crops_asked": crops,
        "crops": run.log[-1]["crops"],
        "steps": run.step,
        "minutes": round(run.seconds / 60, 1),
        **errors,
        "machine": machine(run.device)["device"],
        "precision": run.precision,
        "commit": commit(),
    }
