"""What is known of trainings that have ended: an experiment's two phases, where it has two, as one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from lib.errors import InputError
from lib.files import read_json
from lib.study.experiments import FIRST_PHASES, experiment_and_seed
from lib.study.results import results_folder


def phases(profile: str, run: str) -> list[str]:
    """A run, after the first phase that it began with, if it did."""
    first = training_config(profile, run).get("pretrained")
    return [first, run] if first and experiment_and_seed(first)[0] in FIRST_PHASES else [run]


def phase_steps(profile: str, run: str) -> list[int]:
    """The steps of each phase of a run."""
    return [training_config(profile, phase)["steps"] for phase in phases(profile, run)]


def training_curves(profile: str, runs: Collection[str]) -> dict[str, pd.DataFrame]:
    """The thinned logs, of all phases, of those of some runs of a profile that have ended.

    Raises InputError if there are none.
    """
    listed = sorted(run for run in runs if _curve(profile, run).is_file())
    curves = {run: _whole_curve(profile, run) for run in listed}
    ended = {run: log for run, log in curves.items() if log.step.iloc[-1] + 1 == sum(phase_steps(profile, run))}
    if not ended:
        folder = results_folder(profile) / "runs"
        raise InputError(f"no training has left a whole curve.csv below {folder}: run make train PROFILE={profile}")
    return ended


def training_config(profile: str, run: str) -> dict[str, object]:
    """The configuration a run was trained with."""
    return _about(profile, run)["training"]


def training_effort(profile: str, run: str) -> dict[str, object]:
    """How much a network was trained, where, and by which code: steps, crops, minutes, machine, seed, commit.

    A training of several phases or sessions names all machines and commits.
    """
    last = _whole_curve(profile, run).iloc[-1]
    sessions = [session for phase in phases(profile, run) for session in _about(profile, phase)["sessions"]]
    threads: dict[str, dict[str, None]] = {}
    for one in sessions:
        device = f"{one['machine']['device']}, {one['precision']}"
        threads.setdefault(device, {})[str(one["machine"]["threads"])] = None
    return {
        "steps": sum(phase_steps(profile, run)),
        "crops": int(last.crops),
        "minutes": round(last.seconds / 60),
        "machine": "; ".join(f"{device}, threads: {' then '.join(used)}" for device, used in threads.items()),
        "seed": training_config(profile, run)["seed"],
        "commit": " ".join(dict.fromkeys(one["commit"] for one in sessions)),
    }


def _about(profile: str, run: str) -> dict:
    return read_json(results_folder(profile) / "runs" / run / "config.json")


def _curve(profile: str, run: str) -> Path:
    return results_folder(profile) / "runs" / run / "curve.csv"


def _whole_curve(profile: str, run: str) -> pd.DataFrame:
    """The logs of all phases as one, in which steps, crops and seconds go on."""
    whole, *others = [pd.read_csv(_curve(profile, phase)) for phase in phases(profile, run)]
    for log in others:
        last = whole.iloc[-1]
        ends = {"step": int(last.step) + 1, "crops": int(last.crops), "seconds": last.seconds}
        later = log.assign(**{name: log[name] + end for name, end in ends.items()})
        whole = pd.concat((whole, later), ignore_index=True)
    return whole
