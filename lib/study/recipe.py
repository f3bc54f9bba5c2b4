"""The search for a recipe: what §5.1 leaves open, one setting changed at a time, the same number of crops for each.

Every row is judged on validation users, never on test users.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from lib.checkpoints import load_network
from lib.clip_training import ClipLearner, ClipTraining, ClipTrainingConfig, Pretrained
from lib.clips import NO_AUGMENTATION, TRUE_SKELETON, Augmentation, SkeletonNoise
from lib.errors import InputError
from lib.files import sha256_of, working_in
from lib.hands import HandModel
from lib.machines import Precision, commit, machine
from lib.rendered.index import training_files
from lib.study.experiments import (
    EXPERIMENTS,
    FIRST_PHASES,
    REFERENCE_NETWORK,
    SINGLE_FRAMES,
    load_clips,
    pretrained_path,
    read_pretrained,
)
from lib.study.results import results_folder, save_table
from lib.study.settings import differences
from lib.training import Run


@dataclass(frozen=True)
class Recipe:
    """The two phases of a training; without the first, the second begins with random weights."""

    first: ClipTrainingConfig | None
    second: ClipTrainingConfig

    @property
    def phases(self) -> list[ClipTrainingConfig]:
        """The phases that there are."""
        return [phase for phase in (self.first, self.second) if phase is not None]

    def in_both(self, **changes: object) -> Recipe:
        """The recipe with the same changes in both phases."""
        return Recipe(replace(self.first, **changes), replace(self.second, **changes))

    def in_first(self, **changes: object) -> Recipe:
        """The recipe with changes in the first phase."""
        return replace(self, first=replace(self.first, **changes))

    def in_second(self, **changes: object) -> Recipe:
        """The recipe with changes in the second phase."""
        return replace(self, second=replace(self.second, **changes))

    def augmented(self, strength: float = 1.0, **changes: float) -> Recipe:
        """The recipe with both phases augmented more or less strongly, or otherwise changed alike."""

        def changed(one: Augmentation) -> Augmentation:
            names = ("look_at", "roll", "focal_scale", "gain", "world_scale")
            return replace(one, **{name: strength * getattr(one, name) for name in names} | changes)

        first, second = (changed(phase.augmentation) for phase in (self.first, self.second))
        return self.in_first(augmentation=first).in_second(augmentation=second)

    def weighing_unknown(self, weight: float) -> Recipe:
        """The recipe with another weight of regressor U."""
        first, second = (replace(phase.weights, unknown=weight) for phase in (self.first, self.second))
        return self.in_first(weights=first).in_second(weights=second)

    def in_one(self) -> Recipe:
        """The second phase alone, which begins as the first would."""
        alike = {name: getattr(self.first, name) for name in ("pretrained", "learning_rate", "keep_batch_norms")}
        return Recipe(None, replace(self.second, **alike))

    def from_random(self, *widths: int) -> Recipe:
        """The recipe with random weights to begin with, in another backbone, if any."""
        network = replace(REFERENCE_NETWORK, widths=widths) if widths else REFERENCE_NETWORK
        first = {"pretrained": None, "network": replace(network, temporal_module=False)}
        return self.in_first(**first).in_second(network=network)


BASE = Recipe(FIRST_PHASES[SINGLE_FRAMES], EXPERIMENTS["full_temporal_loss"])
_VERSION = 3
"""Of how a brief training is made of the whole one."""
VARIANTS: dict[str, Recipe] = {
    "base": BASE,
    "encoder from random weights": BASE.from_random(),
    "learning rate x0.5": BASE.in_first(learning_rate=BASE.first.learning_rate / 2),
    "learning rate x2": BASE.in_first(learning_rate=BASE.first.learning_rate * 2),
    "Adam instead of Muon": BASE.in_both(optimizer="adam"),
    "constant learning rate": BASE.in_both(schedule="constant"),
    "batch x0.5": BASE.in_both(hands=BASE.first.hands // 2),
    "batch x2": BASE.in_both(hands=BASE.first.hands * 2),
    "clips of 2 frames at first": BASE.in_first(clip_frames=2),
    "clips of 8 frames throughout": BASE.in_first(clip_frames=BASE.second.clip_frames),
    "clips of 4 frames at the end": BASE.in_second(clip_frames=BASE.second.clip_frames // 2),
    "clips of 16 frames at the end": BASE.in_second(clip_frames=2 * BASE.second.clip_frames),
    "all losses from the start": BASE.in_one(),
    "second phase at the rate of the first": BASE.in_second(learning_rate=BASE.first.learning_rate),
    "second phase at 2e-4": BASE.in_second(learning_rate=2e-4),
    "second phase augmented as the first": BASE.in_second(augmentation=BASE.first.augmentation),
    "no augmentation": BASE.in_both(augmentation=NO_AUGMENTATION),
    "half the augmentation": BASE.augmented(0.5),
    "twice the augmentation": BASE.augmented(2.0),
    "no size augmentation": BASE.augmented(world_scale=0.0),
    "exact skeletons": BASE.in_both(skeleton_noise=TRUE_SKELETON),
    "perturbed size only": BASE.in_both(skeleton_noise=replace(TRUE_SKELETON, scale=BASE.first.skeleton_noise.scale)),
    "skeletons perturbed twice as much": BASE.in_both(
        skeleton_noise=SkeletonNoise(*(2 * value for value in astuple(BASE.first.skeleton_noise)))
    ),
    "no occluders": BASE.in_second(occluded=0.0),
    "no pinch oversampling": BASE.in_both(pinch_copies=1),
    "two views always": BASE.augmented(single_view=0.0),
    "single view in 60 % of clips": BASE.augmented(single_view=0.6),
    "U weighs 0.3": BASE.weighing_unknown(0.3),
    "U weighs 0": BASE.weighing_unknown(0.0),
    "encoder from random weights, 24, 48, 96 channels": BASE.from_random(24, 48, 96),
    "encoder from random weights, 48, 96, 160 channels": BASE.from_random(48, 96, 160),
}


def about_variant(name: str) -> str:
    """What a variant changes: the settings of its phases that differ from the base's."""
    variant = VARIANTS[name]
    if variant.first is None:
        return "no first phase"
    pairs = zip(BASE.phases, variant.phases, strict=True)
    first, second = ({"=".join(change) for change in differences(*pair).items()} for pair in pairs)
    groups = {"both phases": first & second, "first": first - second, "second": second - first}
    changes = [f"{phases}: {', '.join(sorted(settings))}" for phases, settings in groups.items() if settings]
    return "; ".join(changes) or "what the others change"


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
    begins_as = pretrained_path(VARIANTS[name].phases[0], profile)
    sources = training_files(data_folder, "crops"), begins_as and sha256_of(begins_as)
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
    data, phases = _loaded_once(data_folder, device), VARIANTS[name].phases
    begins_as = read_pretrained(phases[0], profile)
    crops_per_step = len(ClipTraining(phases[0], data, generic_hand).batch(0, 0, 1))
    of_both, runs = sum(phase.steps for phase in BASE.phases), []
    for number, phase in enumerate(phases, start=1):
        share = phase.steps / of_both if len(phases) > 1 else 1.0
        brief = phase.with_steps(int(share * crops / crops_per_step))
        run = Run(folder / f"phase {number}", ClipTraining(brief, data, generic_hand, begins_as), device, precision)
        weights = folder / f"phase {number}.safetensors"
        runs.append(run)
        network = run.train(weights)
        begins_as = Pretrained(load_network(weights).state_dict(), sha256_of(weights))
    learner = ClipLearner(network.eval(), generic_hand.to(device))
    judged, errors = ClipTraining(BASE.second, data, generic_hand), {}
    for prefix, users in (("", data.validation), ("train_", data.train)):
        with torch.no_grad():
            terms = judged.validate(learner, users).terms
        errors |= {prefix + name: round(float(terms[name]), 2) for name in ("known_mpjpe_mm", "unknown_mpjpe_mm")}
    return {
        "variant": name,
        "crops_asked": crops,
        "crops": sum(run.log[-1]["crops"] for run in runs),
        "steps": sum(run.step for run in runs),
        "minutes": round(sum(run.seconds for run in runs) / 60, 1),
        **errors,
        "machine": machine(run.device)["device"],
        "precision": run.precision,
        "commit": commit(),
    }
