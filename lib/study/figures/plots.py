"""Figures of results, drawn from predictions and logs; style and colours are those of `lib.study.figures.style`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.signal import welch

from lib.errors import InputError
from lib.hands import LANDMARKS
from lib.metrics import PCK_THRESHOLDS_MM, auc, error_per_landmark, landmark_errors, pinch_distance
from lib.recordings import FRAMES_PER_SECOND
from lib.study.claims import pck_of
from lib.study.experiments import experiment_and_seed
from lib.study.figures.style import COLUMN_WIDTH, PAGE_WIDTH, use_log_scale
from lib.study.pinch_detection import THRESHOLD_MM, precision_recall_curve, stretches
from lib.study.predictions import AllPredictions, Predictions, TrackedSequence
from lib.study.tables import methods_of

METHOD_NAMES = {
    "no_ftl": "no FTL",
    "no_skeleton_encoder": "no skeleton encoder",
    "no_temporal": "no temporal module",
    "no_temporal_temporal_loss": r"no temporal module, $L_{temp}$",
    "full": "full",
    "full_one_euro": "full, One-Euro",
    "full_temporal_loss": r"full, $L_{temp}$",
    "full_temporal_pinch_loss": r"full, $L_{temp}+L_{pinch}$",
    "full_tenfold_temporal_loss": r"full, $10\,L_{temp}$",
    "full_temporal_tenfold_pinch_loss": r"full, $L_{temp}+10\,L_{pinch}$",
    "multistage": "multi-stage",
    "official": "published weights",
}
METHOD_COLORS = {
    "no_ftl": "#999999",
    "no_skeleton_encoder": "#E69F00",
    "no_temporal": "#CC79A7",
    "no_temporal_temporal_loss": "#CC79A7",
    "full": "#56B4E9",
    "full_one_euro": "#E69F00",
    "full_temporal_loss": "#0072B2",
    "full_temporal_pinch_loss": "#009E73",
    "full_tenfold_temporal_loss": "#0072B2",
    "full_temporal_tenfold_pinch_loss": "#000000",
    "multistage": "#D55E00",
    "official": "#CC79A7",
}
"""Okabe & Ito's colours for the colour-blind."""
MOTION_NAMES = {"separate_hand": "gestures", "hand_hand": "hand-hand"}
"""Of what recordings show; separate hands as a protocol are gestures and pinches."""
PROTOCOL_NAMES = {"separate_hand": "separate hands", "hand_hand": "hand-hand"}
_DASHED = ("no_temporal_temporal_loss", "full_tenfold_temporal_loss")
"""Methods that share the colour of another."""
_LINES = {"known": "-", "unknown": "--"}


def pck_figure(predictions: AllPredictions) -> Figure:
    """Figure 7: PCK curves of both protocols, known (K) and unknown (U) skeletons, with the area under each."""
    figure, grid = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.8), sharey=True)
    for axes, (protocol, title) in zip(grid, PROTOCOL_NAMES.items(), strict=True):
        for method in methods_of(predictions):
            for skeleton, style in _LINES.items():
                curve = np.array(
                    [share.mean for share in pck_of(predictions[method, skeleton].only(protocol=protocol))]
                )
                label = f"{METHOD_NAMES[method]} ({skeleton[0].upper()}), {auc(curve):.1f}"
                axes.plot(PCK_THRESHOLDS_MM, curve, style, color=METHOD_COLORS[method], lw=1.2, label=label)
        axes.set(title=title, xlabel="threshold on the mean landmark error (mm)", xlim=(0, 50), ylim=(0, 100))
        axes.legend(title="AUC (%)", loc="lower right", frameon=False)
    grid[0].set_ylabel("hand instances below the threshold (%)")
    return figure


def training_figure(logs: Mapping[str, pd.DataFrame], second_phase: int) -> Figure:
    """The error on validation users and, faint, on training users, over the steps, of `curve.csv` files.

    Left the whole training, right what follows the step at which the second phase begins. Runs with other seeds are
    left out: what they end with is in the table of seeds. Experiments without a name of their own in `METHOD_NAMES`, a
    reader's say, are there by the one they have.
    """
    figure, (whole, end) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 3.0))
    for order, (run, log) in enumerate(logs.items()):
        name, seed = experiment_and_seed(run)
        if seed or "known_mpjpe_mm" not in log:  # the baseline's networks are judged otherwise
            continue
        color, dashes = METHOD_COLORS.get(name, "0.3"), "--" if name in _DASHED else "-"
        style = {"linestyle": dashes, "zorder": 3 - order / len(logs)}  # of those that share a phase the first is seen
        faint = 0.6 + 0.4 * np.array(to_rgb(color))  # not by alpha: those that lie on each other would add up
        for axes, part in ((whole, log), (end, log[log.step >= second_phase])):
            train, validation = (part.dropna(subset=f"{users}_known_mpjpe_mm") for users in ("train", "validation"))
            axes.plot(train.step, train.train_known_mpjpe_mm, lw=0.8, color=faint, **style)
            label = METHOD_NAMES.get(name, name)
            axes.plot(validation.step, validation.validation_known_mpjpe_mm, lw=1.2, color=color, label=label, **style)
    whole.axvline(second_phase, color="0.4", lw=0.7, ls=":")
    whole.set(title="whole training (dotted: second phase begins)", ylabel="MPJPE, regressor K (mm)")
    end.set(title="second phase", ylim=_around_most(end))
    use_log_scale(whole)
    for axes in (whole, end):
        axes.set_xlabel("step")
    key = "thick: validation users, faint: training users"
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, title=key)
    return figure


def _around_most(axes: Axes) -> tuple[float, float]:
    """Limits that show all lines but those twice as high as the middle one (*no_ftl*)."""
    heights = [line.get_ydata() for line in axes.get_lines() if len(line.get_ydata())]
    if not heights:
        return 0.0, 1.0
    typical = np.median(np.concatenate(heights))
    shown = np.concatenate([height for height in heights if np.median(height) < 2 * typical])
    return 0.95 * shown.min(), 1.05 * shown.max()


def pinch_distance_figure(methods: Sequence[Predictions], sequence: str, hand: int) -> Figure:
    """Tracked and true distance of thumb tip and index tip through a pinch sequence; labelled pinches are shaded."""
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH, 2.4))
    for predictions in methods:
        tracked = named(predictions, sequence)
        distance = with_gaps(pinch_distance(tracked.tracked_keypoints)[hand], tracked.valid[hand])
        name = predictions.method
        axes.plot(seconds(distance), distance, color=METHOD_COLORS[name], lw=1.1, label=METHOD_NAMES[name])
    distance = with_gaps(pinch_distance(tracked.gt_keypoints)[hand], tracked.valid[hand])
    axes.plot(seconds(distance), distance, color="black", lw=0.9, label="ground truth")
    axes.axhline(THRESHOLD_MM, color="0.4", lw=0.7, ls=":", label="threshold")
    shade_spans(axes, tracked.pinch[hand], "labelled pinch")
    axes.set(xlabel="time (s)", ylabel="thumb tip to index tip (mm)", ylim=(0, None), xlim=(0, seconds(distance)[-1]))
    axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.3))
    return figure


def precision_recall_figure(methods: Sequence[Predictions]) -> Figure:
    """Precision over recall as the threshold on the distance moves; the marks are at the threshold of Table 4."""
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.8))
    for predictions in methods:
        curve, name = precision_recall_curve(predictions), predictions.method
        axes.plot(curve.recall_percent, curve.precision_percent, color=METHOD_COLORS[name], label=METHOD_NAMES[name])
        mark = curve[curve.threshold_mm == THRESHOLD_MM]
        axes.plot(mark.recall_percent, mark.precision_percent, "o", color=METHOD_COLORS[name], ms=4)
    axes.set(xlabel="recall (%)", ylabel="precision (%)", xlim=(None, 101), ylim=(None, 101))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, title=f"marks: threshold {THRESHOLD_MM:g} mm")
    return figure


def jitter_figure(reference: Predictions, methods: Sequence[Predictions]) -> Figure:
    """The spectrum of the landmark error over time: of one method, and that of others in percent of it.

    Errors that vary slowly are misplacement, those that vary fast jitter. The lowest and the highest frequency are left
    out: there the window and the sampling shape the spectrum, not the method.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.5))
    frequency, of_reference = (values[1:-1] for values in error_spectrum(reference))
    name = METHOD_NAMES[reference.method]
    left.plot(frequency, of_reference, color=METHOD_COLORS[reference.method], lw=1.2, label=name)
    spectra = {reference.method: of_reference} | {made.method: error_spectrum(made)[1][1:-1] for made in methods}
    for method, power in spectra.items():
        relative = 100 * power / of_reference
        right.plot(frequency, relative, color=METHOD_COLORS[method], lw=1.2, label=METHOD_NAMES[method])
    left.set(title=f"error of {name}", xlabel="frequency (Hz)", ylabel="power (mm²/Hz)", yscale="log")
    right.set(title=f"relative to {name}", xlabel="frequency (Hz)", ylabel="power (%)")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


WINDOW = 30
"""Frames whose spectrum is taken at once."""


def error_spectrum(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in Hz, and the mean power spectral density of a landmark's error in mm²/Hz (Welch), without its mean.

    Over every stretch of `WINDOW` or more frames in which a hand is tracked. Raises InputError if there is none.
    """
    spectra, weights = [], []
    for sequence in predictions.sequences:
        error = sequence.tracked_keypoints - sequence.gt_keypoints
        for hand, valid in enumerate(sequence.valid):
            for start, end in stretches(valid):
                if end - start >= WINDOW:
                    frequency, power = welch(error[hand, start:end], FRAMES_PER_SECOND, nperseg=WINDOW, axis=0)
                    spectra.append(power.sum(axis=-1).mean(axis=-1))
                    weights.append(end - start)
    if not spectra:
        raise InputError(f"{predictions.method} tracks no hand through {WINDOW} frames: there is no spectrum to draw")
    return frequency, np.average(spectra, axis=0, weights=weights)


def joint_error_figure(methods: Sequence[Predictions]) -> Figure:
    """The mean error of every landmark, by method."""
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 3.8))
    order = np.argsort([_LANDMARK_ORDER.index(name) for name in LANDMARKS])
    rows = np.arange(len(LANDMARKS))[::-1]
    for index, predictions in enumerate(methods):
        tracked, true, valid = (
            np.concatenate([getattr(s, name) for s in predictions.sequences], axis=1)
            for name in ("tracked_keypoints", "gt_keypoints", "valid")
        )
        name = predictions.method
        error = error_per_landmark(tracked, true, valid)[order]
        apart = 0.18 * ((len(methods) - 1) / 2 - index)
        axes.plot(error, rows + apart, "o", color=METHOD_COLORS[name], ms=3.5, label=METHOD_NAMES[name])
    axes.set(yticks=rows, yticklabels=_LANDMARK_ORDER, xlabel="mean error (mm)", xlim=(0, None), ylim=(-0.7, 20.7))
    axes.grid(axis="y", color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


_LANDMARK_ORDER = (
    "wrist", "palm", "thumb intermediate", "thumb distal", "thumb tip",
    *(f"{finger} {part}" for finger in ("index", "middle", "ring", "pinky")
      for part in ("proximal", "intermediate", "distal", "tip")),
)  # fmt: skip


def scale_figure(methods: Sequence[Predictions]) -> Figure:
    """The scale calibrated for each recording over the one that fits the user's hand best, a little apart by method."""
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.8))
    for index, predictions in enumerate(methods):
        fitted, scale = np.array([(s.fitted_scale, s.scale) for s in predictions.sequences]).T
        shifted, name = fitted + 0.004 * (index - (len(methods) - 1) / 2), predictions.method
        axes.plot(shifted, scale, "o", color=METHOD_COLORS[name], ms=3, alpha=0.7, mew=0, label=METHOD_NAMES[name])
    axes.axline((1, 1), slope=1, color="0.4", lw=0.7, ls=":", label="ideal")
    axes.set(xlabel="scale that fits the user's hand", ylabel="calibrated scale", aspect="equal")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def named(predictions: Predictions, sequence: str) -> TrackedSequence:
    """The sequence of a name."""
    return next(s for s in predictions.sequences if s.name == sequence)


def error_over_time(sequence: TrackedSequence, hand: int) -> Float[np.ndarray, "frames"]:
    """Mean landmark error per frame, mm, NaN where the hand is not tracked."""
    return with_gaps(
        landmark_errors(sequence.tracked_keypoints, sequence.gt_keypoints).mean(axis=-1)[hand], sequence.valid[hand]
    )


def with_gaps(values: Float[np.ndarray, "frames"], valid: np.ndarray) -> Float[np.ndarray, "frames"]:
    """Values, NaN where they mean nothing, so that lines break there."""
    return np.where(valid, values, np.nan)


def seconds(values: np.ndarray) -> np.ndarray:
    """The time of each frame."""
    return np.arange(len(values)) / FRAMES_PER_SECOND


def shade_spans(axes: Axes, active: np.ndarray, label: str) -> None:
    """Shade the frames in which something is the case."""
    for index, frames in enumerate(stretches(active)):
        low, high = (np.array(frames) - 0.5) / FRAMES_PER_SECOND
        axes.axvspan(low, high, color="0.9", zorder=0, lw=0, label=label if index == 0 else None)
