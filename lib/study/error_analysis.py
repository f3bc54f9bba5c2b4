"""What limits the error: taken apart by direction, by what a hand instance is like, and by where it is worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.files import MM
from lib.metrics import landmark_errors
from lib.recordings import FRAMES_PER_SECOND, read_recording
from lib.study.claims import errors_behind_occluder
from lib.study.figures.plots import METHOD_COLORS, METHOD_NAMES, MOTION_NAMES, named
from lib.study.figures.qualitative import picture_of, video_of, with_truth
from lib.study.figures.style import PAGE_WIDTH, TRACKED_COLOR, show_picture
from lib.study.predictions import Predictions
from lib.study.sequences import LabelledSequence
from lib.study.statistics import Pooled, difference, interval

PARTS = ("along_mm", "across_mm", "shape_mm")
"""Of the error, see `instance_errors`."""
CONDITIONS = {
    "views": ("crops of the hand", (0.5, 1.5, 2.5), ("one", "two")),
    "distance_m": ("distance from the camera (m)", (0.0, 0.3, 0.4, 0.5, 2.0), ("< 0.3", "0.3-0.4", "0.4-0.5", "> 0.5")),
    "speed_m_s": ("speed of the hand (m/s)", (-0.1, 0.1, 0.3, 0.6, 99.0), ("< 0.1", "0.1-0.3", "0.3-0.6", "> 0.6")),
}
"""What is looked at: its name, where its bins end, and their names."""


def instance_errors(methods: Sequence[Predictions], sequences: Sequence[LabelledSequence]) -> pd.DataFrame:
    """One row per hand instance that a method tracked, with its error and what it is made of.

    `error_mm` is the mean distance of the landmarks from the true ones. A common shift of all landmarks has a part
    `along_mm` the ray from the reference camera to the hand and one `across_mm` it; `shape_mm` is the error that is
    left when the shift is undone. `along_signed_mm` is positive where the hand is placed too far away. Further columns:
    method, sequence, user, motion, hand, frame, views, distance_m, speed_m_s (NaN in a first frame).
    """
    crops = {sequence.name: sequence.crops for sequence in sequences}
    tables = []
    for method, tracked in ((predictions.method, s) for predictions in methods for s in predictions.sequences):
        hand, frame = np.nonzero(tracked.valid)
        true = tracked.gt_keypoints[hand, frame].astype(float)
        wrong = tracked.tracked_keypoints[hand, frame] - true
        camera = crops[tracked.name].world_from_crop[frame, hand, 0, :3, 3] * MM
        center, shift = true.mean(axis=1), wrong.mean(axis=1)
        distance = np.linalg.norm(center - camera, axis=-1)
        along = ((center - camera) * shift).sum(axis=-1) / distance
        moved = np.full(tracked.gt_keypoints.shape[:2], np.nan)
        moved[:, 1:] = np.linalg.norm(np.diff(tracked.gt_keypoints.mean(axis=2), axis=1), axis=-1)
        moved[:, 1:][~tracked.valid[:, :-1]] = np.nan
        columns = {
            "hand": hand,
            "frame": frame,
            "views": tracked.views[hand, frame],
            "distance_m": distance / MM,
            "speed_m_s": moved[hand, frame] * FRAMES_PER_SECOND / MM,
            "error_mm": np.linalg.norm(wrong, axis=-1).mean(axis=-1),
            "along_mm": np.abs(along),
            "along_signed_mm": along,
            "across_mm": np.sqrt(np.maximum((shift**2).sum(axis=-1) - along**2, 0)),
            "shape_mm": np.linalg.norm(wrong - shift[:, None], axis=-1).mean(axis=-1),
        }
        names = {"method": method, "sequence": tracked.name, "user": tracked.user, "motion": tracked.motion}
        tables.append(pd.DataFrame(columns).assign(**names))
    return pd.concat(tables, ignore_index=True)


def parts_table(instances: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The mean error of each method in mm, and the means of its parts, for each kind of skeleton.

    `instances` are by kind of skeleton what `instance_errors` returns. Parts do not add up to the error: they are
    lengths in different directions.
    """
    columns, tables = ["error_mm", *PARTS], []
    for skeleton, rows in instances.items():
        means = rows.groupby("method", sort=False)[columns].mean().reset_index()
        tables.append(means.assign(skeleton=skeleton))
    return pd.concat(tables)


def memory_table(with_memory: Predictions, without: Predictions) -> pd.DataFrame:
    """What the memory of one and the same network is worth: with it, and with every frame as if it were the first.

    Known or unknown skeletons, as the predictions are. Columns: method, metric, with_memory, without_memory,
    difference, low, high (95 % interval of the paired difference).
    """
    metrics = {
        "MPJPE, separate hands (mm)": lambda made: made.only(protocol="separate_hand").errors(),
        "MPJPE while an occluder passes (mm)": errors_behind_occluder,
        "MPJPA, separate hands (mm/frame²)": lambda made: made.only(protocol="separate_hand").jitter(),
    }
    rows = []
    for name, metric in metrics.items():
        pair = metric(with_memory), metric(without)
        change = difference(*pair)
        row = {"method": with_memory.method, "metric": name}
        row |= {"with_memory": pair[0].mean, "without_memory": pair[1].mean}
        rows.append(row | {"difference": change.value, "low": change.low, "high": change.high})
    return pd.DataFrame(rows)


def conditions_table(frames: pd.DataFrame) -> pd.DataFrame:
    """The error of each method under each condition, with its interval and the share of the hand instances it is about.

    Columns: condition, case, method, mpjpe_mm, low, high, along_mm, share_percent.
    """
    cases = frames.assign(
        **{
            name: pd.cut(frames[name], edges, labels=labels).astype(object)
            for name, (_, edges, labels) in CONDITIONS.items()
        }
    )
    rows = []
    for condition in (*CONDITIONS, "motion", "user"):
        for (case, method), chosen in cases.groupby([condition, "method"], sort=False):
            error = interval(Pooled.of([values.to_numpy() for _, values in chosen.groupby("sequence").error_mm]))
            share = 100 * len(chosen) / (cases.method == method).sum()
            row = {"condition": condition, "case": case, "method": method, "mpjpe_mm": error.value}
            row |= {"low": error.low, "high": error.high, "along_mm": chosen.along_mm.mean(), "share_percent": share}
            rows.append(row)
    return pd.DataFrame(rows)


def conditions_figure(table: pd.DataFrame) -> Figure:
    """The error under every condition of `conditions_table`, by method; bars are 95 % intervals."""
    figure, grid = plt.subplots(2, 3, figsize=(PAGE_WIDTH, 4.2), sharey=True)
    titles = {name: title for name, (title, _, _) in CONDITIONS.items()} | {"motion": "motion"}
    for axes, (condition, title) in zip(grid.flat, titles.items(), strict=False):
        chosen = table[table.condition == condition]
        cases = list(CONDITIONS[condition][2]) if condition in CONDITIONS else sorted(chosen.case.unique())
        _draw_cases(axes, chosen, cases, title)
    _draw_users(figure, grid, table[table.condition == "user"])
    for axes in grid[:, 0]:
        axes.set(ylabel="MPJPE (mm)", ylim=(0, 1.05 * table.high.max()))
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_users(figure: Figure, grid: np.ndarray, table: pd.DataFrame) -> None:
    """The users in the last two panels, made one; easiest first, as the first method finds them."""
    for axes in grid[1, 1:]:
        axes.remove()
    wide = figure.add_subplot(grid[0, 0].get_gridspec()[1, 1:], sharey=grid[0, 0])
    first = table[table.method == table.method.iloc[0]].sort_values("mpjpe_mm")
    _draw_cases(wide, table, list(first.case), "test user")
    wide.set_xticks(range(len(first)), [case.removeprefix("user_") for case in first.case])
    wide.tick_params(labelleft=False)


def _draw_cases(axes: Axes, table: pd.DataFrame, cases: Sequence[str], title: str) -> None:
    methods = list(dict.fromkeys(table.method))
    for index, method in enumerate(methods):
        rows = table[table.method == method].set_index("case").reindex(cases)
        place = np.arange(len(cases)) + 0.12 * (index - (len(methods) - 1) / 2)
        spread = np.abs(rows[["low", "high"]].to_numpy().T - rows.mpjpe_mm.to_numpy())
        axes.errorbar(
            place, rows.mpjpe_mm, spread, fmt="o", ms=3.5, lw=1.0, color=METHOD_COLORS[method],
            label=METHOD_NAMES[method],
        )  # fmt: skip
    axes.set_xticks(range(len(cases)), [MOTION_NAMES.get(case, case) for case in cases])
    axes.set(xlabel=title, xlim=(-0.5, len(cases) - 0.5))
    axes.grid(axis="y", color="0.9", lw=0.6)
    axes.set_axisbelow(True)


@dataclass(frozen=True)
class Clip:
    """A stretch of one hand in a sequence, and its mean error."""

    sequence: str
    motion: str
    hand: int
    start: int
    worst_frame: int
    error_mm: float


def worst_clips(predictions: Predictions, count: int = 20, frames: int = 30) -> list[Clip]:
    """The stretches of `frames` in which hands are tracked worst, worst first; at most one per hand and sequence."""
    clips = []
    for tracked in predictions.sequences:
        errors = landmark_errors(tracked.tracked_keypoints, tracked.gt_keypoints).mean(axis=-1)
        for hand, valid in enumerate(tracked.valid):
            whole = [
                start for start in range(0, len(valid) - frames + 1, frames) if valid[start : start + frames].all()
            ]
            if not whole:
                continue
            start = max(whole, key=lambda start: errors[hand, start : start + frames].mean())
            stretch = errors[hand, start : start + frames]
            clips.append(
                Clip(tracked.name, tracked.motion, hand, start, start + int(stretch.argmax()), float(stretch.mean()))
            )
    return sorted(clips, key=lambda clip: -clip.error_mm)[:count]


def worst_clips_figure(predictions: Predictions, clips: Sequence[Clip], data_folder: Path, columns: int = 7) -> Figure:
    """The worst frame of each clip: the hand as tracked (orange) and where it is (green)."""
    rows = -(-len(clips) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(PAGE_WIDTH, rows * (PAGE_WIDTH / columns + 0.3)), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, clip in zip(grid.flat, clips, strict=False):
        tracked, recording = named(predictions, clip.sequence), read_recording(video_of(data_folder, clip.sequence))
        images = next(recording.images(start=clip.worst_frame))
        picture, camera = picture_of(recording, images, tracked, clip.worst_frame, clip.hand)
        title = (
            f"{tracked.user.replace('_', ' ')}, {MOTION_NAMES.get(clip.motion, clip.motion)}\n{clip.error_mm:.0f} mm"
        )
        show_picture(axes, with_truth(picture, camera, tracked, clip.worst_frame, clip.hand, TRACKED_COLOR), title)
        axes.title.set_fontsize(6)
    return figure
