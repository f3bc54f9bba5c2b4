"""Where the study's results go, and how they are written."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.figure import Figure

from lib.errors import InputError
from lib.files import read_json, write_atomically

ROOT = Path(__file__).resolve().parents[1]


def results_folder(profile: str) -> Path:
    """The folder that a run with this profile writes to; only that of `reference` is committed."""
    return ROOT / "results" / profile


def training_curves(profile: str) -> dict[str, pd.DataFrame]:
    """The thinned logs of the runs of a profile that have ended, by experiment. Raises InputError if there are none."""
    folder = results_folder(profile) / "runs"
    curves = {path.parent.name: pd.read_csv(path) for path in sorted(folder.glob("*/curve.csv"))}
    ended = {run: log for run, log in curves.items() if log.step.iloc[-1] + 1 == training_config(profile, run)["steps"]}
    if not ended:
        raise InputError(f"no training has left a whole curve.csv below {folder}: run make train PROFILE={profile}")
    return ended


def training_config(profile: str, run: str) -> dict[str, object]:
    """The configuration a run was trained with."""
    return read_json(results_folder(profile) / "runs" / run / "config.json")["training"]


def training_effort(profile: str, experiment: str) -> dict[str, object]:
    """How much a network was trained, where, and by which code: steps, crops, minutes, machine, seed, commit.

    A run of several sittings names all machines and commits.
    """
    folder = results_folder(profile) / "runs" / experiment
    about, last = read_json(folder / "config.json"), pd.read_csv(folder / "curve.csv").iloc[-1]
    sittings = about["sittings"]
    threads: dict[str, dict[str, None]] = {}
    for one in sittings:
        threads.setdefault(one["machine"]["device"], {})[str(one["machine"]["threads"])] = None
    return {
        "steps": about["training"]["steps"],
        "crops": int(last.crops),
        "minutes": round(last.seconds / 60),
        "machine": "; ".join(f"{device}, threads: {' then '.join(used)}" for device, used in threads.items()),
        "seed": about["training"]["seed"],
        "commit": " ".join(dict.fromkeys(one["commit"] for one in sittings)),
    }


def save_figure(figure: Figure, profile: str, name: str) -> None:
    """Write figures/<name>.png and .svg; the same figure gives the same bytes."""
    folder = results_folder(profile) / "figures"
    write_atomically(folder / f"{name}.png", lambda path: figure.savefig(path, metadata={"Software": None}))
    write_atomically(folder / f"{name}.svg", lambda path: figure.savefig(path, metadata={"Date": None}))


def save_picture(picture: UInt8[np.ndarray, "height width"], profile: str, name: str) -> Path:
    """Write figures/<name>.png with the pixels as they are, and return its path."""
    path = results_folder(profile) / "figures" / f"{name}.png"
    write_atomically(path, lambda temporary: temporary.write_bytes(cv2.imencode(".png", picture)[1].tobytes()))
    return path


def save_table(table: pd.DataFrame, profile: str, name: str) -> None:
    """Write tables/<name>.csv."""
    write_atomically(results_folder(profile) / "tables" / f"{name}.csv", lambda path: table.to_csv(path, index=False))


def commit() -> str:
    """The commit of the code that runs, `-dirty` if lib/ differs from it; 'unknown' without git or a checkout."""

    def git(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(ROOT), *command], check=False, capture_output=True, text=True)

    if shutil.which("git") is None or (head := git("rev-parse", "--short=12", "HEAD")).returncode:
        return "unknown"
    return head.stdout.strip() + ("-dirty" if git("status", "--porcelain", "lib").stdout else "")
