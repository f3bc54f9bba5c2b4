"""Figures of live trackers."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.files import MM
from lib.hands import HAND_NAMES
from lib.live.confidence import CLOSE_M
from lib.metrics import landmark_errors
from lib.study.figures.plots import METHOD_COLORS, METHOD_NAMES, seconds, shade_spans, with_gaps
from lib.study.figures.style import PAGE_WIDTH, TRACKED_COLOR, TRUE_COLOR, use_log_scale
from lib.study.live_runs import LiveRun
from lib.study.predictions import TrackedSequence

_PANELS = {
    "tracked_percent": "visible instances\ntracked (%)",
    "mpjpe_mm": "MPJPE (mm)",
    "far_percent": "far off (%)",
    "losses_per_minute": "losses per minute",
}


def conditions_figure(table: pd.DataFrame) -> Figure:
    """Metrics of `live_tracking.conditions_table` under every condition, by method; bars are 95 % intervals, dotted
    lines as rendered."""
    table = table[table.metric.isin(_PANELS)].dropna(subset="value")
    cases, methods = list(table.case.unique()), list(table.method.unique())
    figure, grid = plt.subplots(1, len(_PANELS), figsize=(PAGE_WIDTH, 0.5 + 0.21 * len(cases)), sharey=True)
    for axes, (metric, title) in zip(grid, _PANELS.items(), strict=True):
        for index, method in enumerate(methods):
            rows = table[(table.method == method) & (table.metric == metric)].set_index("case").reindex(cases)
            place = np.arange(len(cases)) + 0.2 * (index - (len(methods) - 1) / 2)
            spread = np.abs(rows[["low", "high"]].to_numpy().T - rows.value.to_numpy())
            color = METHOD_COLORS[method]
            axes.errorbar(rows.value, place, xerr=spread, fmt="o", ms=3, lw=1, color=color, label=METHOD_NAMES[method])
            axes.axvline(rows.value.iloc[0], color=color, lw=0.7, ls=":")
        axes.set_title(title)
        axes.grid(axis="y", color="0.9", lw=0.6)
        axes.set_axisbelow(True)
    grid[0].set_yticks(range(len(cases)), cases)
    grid[0].invert_yaxis()
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def reliability_figure(table: pd.DataFrame) -> Figure:
    """The share of hands that are right by how likely they are said to be (`live_metrics.reliability_table`)."""
    shown = table.dropna(subset="right_percent")
    figure, axes = plt.subplots(figsize=(0.5 * PAGE_WIDTH, 0.5 * PAGE_WIDTH))
    axes.plot([0, 100], [0, 100], color="0.6", lw=0.8, ls=":")
    spread = np.abs(shown[["low", "high"]].to_numpy().T - shown.right_percent.to_numpy())
    axes.errorbar(shown.confidence_percent, shown.right_percent, yerr=spread, fmt="o", ms=4, lw=1, color=TRACKED_COLOR)
    axes.set(xlabel="confidence, mean of a bin (%)", ylabel=f"within {CLOSE_M * MM:g} mm (%)", aspect="equal")
    return figure


def most_missed(runs: Sequence[LiveRun]) -> LiveRun:
    """The stream in which most visible hand instances are not tracked."""
    return max(runs, key=lambda run: int((run.visible & ~run.tracked).sum()))


def stream_figure(run: LiveRun, labelled: TrackedSequence) -> Figure:
    """The error of both hands of a recording over time, self-tracked and with ground-truth crops, and where a hand that
    is visible is not tracked."""
    figure, grid = plt.subplots(2, 1, figsize=(PAGE_WIDTH, 3.4), sharex=True, sharey=True)
    for hand, axes in enumerate(grid):
        ways = (labelled.tracked_keypoints, labelled.valid), (run.tracked_keypoints, run.tracked & run.visible)
        names = ("ground-truth crops", TRUE_COLOR), ("self-tracked", TRACKED_COLOR)
        for (tracked, valid), (name, color) in zip(ways, names, strict=True):
            error = with_gaps(landmark_errors(tracked, run.gt_keypoints).mean(axis=-1)[hand], valid[hand])
            axes.plot(seconds(error), error, color=color, lw=1.2, label=name)
        shade_spans(axes, ~run.visible[hand], "not in view")
        _mark(axes, run.visible[hand] & ~run.tracked[hand])
        axes.set(title=f"{HAND_NAMES[hand]} hand", ylabel="error (mm)", xlim=(0, seconds(error)[-1]))
    use_log_scale(grid[0])
    grid[1].set_xlabel("time (s)")
    named = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _mark(axes: Axes, lost: np.ndarray) -> None:
    """Ticks along the lower edge."""
    times = seconds(lost)[lost]
    axes.plot(times, np.zeros(len(times)), "|", color="#D55E00", ms=7, transform=axes.get_xaxis_transform(),
              clip_on=False, label="in view, not tracked")  # fmt: skip
