"""Tables 2, 3 and 4, the paper's numbers beside ours, and the interval of each of ours.

`measure` computes every cell as a mean pooled over sequences, from which
tables, intervals and claims are made.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.metrics import KeypointsMm, Valid, landmark_accelerations, landmark_errors
from lib.study import paper
from lib.study.experiments import OFFICIAL, RELEASED_RUNS, REPEATED, experiment_and_seed
from lib.study.pinch_detection import precision_and_recall
from lib.study.predictions import AllPredictions, Predictions
from lib.study.runs import phase_steps, training_curves, training_effort
from lib.study.statistics import Interval, Pooled, combined, interval


@dataclass(frozen=True)
class Cell:
    """Which number of a table: of which method, and in Table 3 for which skeleton and protocol."""

    table: str
    method: str
    metric: str
    skeleton: str = ""
    protocol: str = ""

    @property
    def row(self) -> str:
        """The row of intervals.csv."""
        return "/".join(part for part in (self.method, self.skeleton, self.protocol) if part)


Cells = Mapping[Cell, Pooled]

MPJPE, MPJPA = "mpjpe_mm", "mpjpa_mm_per_frame2"
ABLATION, MULTISTAGE, PINCH = "table2_ablation", "table3_multistage", "table4_pinch"
BASELINE, TEMPORAL, WITH_PINCH = "multistage", "full_temporal_loss", "full_temporal_pinch_loss"
METHODS = (BASELINE, TEMPORAL, WITH_PINCH)
"""Of Tables 3 and 4, beside the published network where a user brings it."""
FILTERED = {"full_one_euro": TEMPORAL, "full_one_euro_tenfold": "full_tenfold_temporal_loss"}
"""`full` behind One-Euro filters, and whose jitter each is tuned to."""
SMOOTHED = tuple(itertools.chain(*((target, name) for name, target in FILTERED.items())))
"""Networks trained to be smooth, each before the filter tuned to its jitter."""
MAIN_PROTOCOLS = ("separate_hand", "hand_hand")
"""Those of the paper's tables."""
CASES = tuple((s, p) for s in ("known", "unknown") for p in MAIN_PROTOCOLS)
"""Skeleton and protocol of the columns of the paper's Table 3."""


def measure(predictions: AllPredictions) -> dict[Cell, Pooled]:
    """Every cell of Tables 2 to 4, from the predictions of the experiments, `full_one_euro` and `multistage`.

    Table 2 is about separate hands with known skeletons; Table 4 about the pinch sequences, known skeletons. Without
    predictions of `multistage` its cells are missing, and with them its rows and claims.
    """
    cells = {}
    for row in paper.TABLE_2:
        separate = predictions[row, "known"].only(protocol="separate_hand")
        cells[Cell(ABLATION, row, MPJPE)], cells[Cell(ABLATION, row, MPJPA)] = separate.errors(), separate.jitter()
    for method in methods_of(predictions):
        for skeleton, protocol in CASES:
            chosen = predictions[method, skeleton].only(protocol=protocol)
            cells[Cell(MULTISTAGE, method, MPJPE, skeleton, protocol)] = chosen.errors()
            cells[Cell(MULTISTAGE, method, MPJPA, skeleton, protocol)] = chosen.jitter()
        precision, recall = precision_and_recall(predictions[method, "known"])
        cells[Cell(PINCH, method, "precision_percent")], cells[Cell(PINCH, method, "recall_percent")] = (
            precision,
            recall,
        )
    return cells


def methods_of(predictions: AllPredictions) -> list[str]:
    """The methods of Tables 3 and 4 that have made predictions: the baseline may not be trained yet."""
    return [method for method in (*METHODS, OFFICIAL) if (method, "known") in predictions]


def ablation_table(cells: Cells) -> pd.DataFrame:
    """Table 2."""
    rows = [
        {"model": row, "losses": losses, **_ours(cells, (MPJPE, MPJPA), table=ABLATION, method=row)}
        | {f"{MPJPE}_paper": error, f"{MPJPA}_paper": jitter}
        for row, (losses, error, jitter) in paper.TABLE_2.items()
    ]
    return pd.DataFrame(rows)


def multistage_table(cells: Cells) -> pd.DataFrame:
    """Table 3, with the paper's numbers and its authors' corrected ones."""
    rows = []
    for method in _rows_of(cells):
        printed = zip(CASES, paper.TABLE_3[method], paper.CORRECTED_TABLE_3[method], strict=True)
        for (skeleton, protocol), theirs, corrected in printed:
            case = {"method": method, "skeleton": skeleton, "protocol": protocol}
            ours = _ours(cells, (MPJPE, MPJPA), table=MULTISTAGE, **case)
            beside = {f"{m}_paper": v for m, v in zip(ours, theirs, strict=True)}
            beside |= {f"{m}_official": v for m, v in zip(ours, corrected, strict=True)}
            rows.append(case | ours | beside)
    return pd.DataFrame(rows)


def by_case(table: pd.DataFrame, suffix: str = "") -> pd.DataFrame:
    """MPJPE / MPJPA of Table 3 as text, a row per method, a column per skeleton and protocol; ours, or with `suffix`
    the paper's (`_paper`) or those its authors corrected (`_official`)."""
    numbers = zip(table[f"{MPJPE}{suffix}"], table[f"{MPJPA}{suffix}"], strict=True)
    cells = ["" if pd.isna(error) else f"{error:.1f} / {jitter:.2f}" for error, jitter in numbers]
    columns = table.skeleton + ", " + table.protocol.str.replace("_", "-")
    wide = table.assign(cell=cells, column=columns).pivot(index="method", columns="column", values="cell")
    return wide.loc[table.method.unique(), columns.unique()].rename_axis(None, axis=1)


def pinch_table(cells: Cells) -> pd.DataFrame:
    """Table 4."""
    rows = []
    for method in _rows_of(cells):
        ours = _ours(cells, ("precision_percent", "recall_percent"), table=PINCH, method=method)
        theirs = {f"{m}_paper": v for m, v in zip(ours, paper.TABLE_4[method], strict=True)}
        rows.append({"method": method} | ours | theirs)
    return pd.DataFrame(rows)


def _rows_of(cells: Cells) -> list[str]:
    return [method for method in (*METHODS, OFFICIAL) if Cell(PINCH, method, "recall_percent") in cells]


def _ours(cells: Cells, metrics: tuple[str, ...], **case: str) -> dict[str, float]:
    return {metric: cells[Cell(metric=metric, **case)].mean for metric in metrics}


def intervals_table(cells: Cells) -> pd.DataFrame:
    """The 95 % bootstrap interval over sequences of every cell."""
    rows = []
    for cell, pooled in cells.items():
        around = interval(pooled)
        rows.append((cell.table, cell.row, cell.metric, around.low, around.high))
    return pd.DataFrame(rows, columns=["table", "row", "metric", "low", "high"])


def readable_intervals(cells: Cells, table: str) -> pd.DataFrame:
    """The intervals of a table's cells as text, a row for each of its rows, a column per metric."""
    found = intervals_table({cell: values for cell, values in cells.items() if cell.table == table})
    text = found.low.map("{:.2f}".format) + " to " + found.high.map("{:.2f}".format)
    wide = found.assign(text=text).pivot(index="row", columns="metric", values="text")
    return wide.loc[found.row.unique(), found.metric.unique()].rename_axis(None, axis=1).reset_index()


def smoothing_table(predictions: AllPredictions, clip_frames: int) -> pd.DataFrame:
    """What L_temp, at the paper's weight and at ten times it, and filters tuned to its jitter change in `full`.

    Separate hands, known skeletons. Columns: model, mpjpe_mm, early_mpjpe_mm (of a recording's first `clip_frames`),
    mpjpa_mm_per_frame2, and the changes in percent with 95 % intervals (`_percent`, `_low`, `_high`): of `error`, of
    `jitter`, and of its `excess` over that of the true hands (row `ground_truth`).
    """
    separate = {name: predictions[name, "known"].only(protocol="separate_hand") for name in ("full", *SMOOTHED)}
    full_error, full_jitter = separate["full"].errors(), separate["full"].jitter()
    true_jitter = separate["full"].ground_truth().jitter()
    rows = [{"model": "ground_truth", MPJPE: 0.0, "early_mpjpe_mm": 0.0, MPJPA: true_jitter.mean}]
    for model, made in separate.items():
        error, jitter, early = made.errors(), made.jitter(), made.first_frames(clip_frames).errors()
        row = {"model": model, MPJPE: error.mean, "early_mpjpe_mm": early.mean, MPJPA: jitter.mean}
        changes = {
            "error": combined(_percent_more, error, full_error),
            "jitter": combined(_percent_more, jitter, full_jitter),
            "excess": combined(lambda m, f, t: _percent_more(m - t, f - t), jitter, full_jitter, true_jitter),
        }
        rows.append(row | _change_columns(changes))
    return pd.DataFrame(rows)


def smoothing_by_motion_table(predictions: AllPredictions) -> pd.DataFrame:
    """What L_temp at the paper's weight, and the filter tuned to its jitter, change in `full` as hands move faster.

    Separate hands, known skeletons; hand instances in quarters of how much the true landmarks accelerate (their mean is
    `true_mpjpa`, mm/frame²). Columns: quarter, model, true_mpjpa, mpjpe_mm, mpjpa_mm_per_frame2, and the changes of
    `error` and `jitter` as in `smoothing_table`.
    """
    models = ("full", TEMPORAL, "full_one_euro")
    separate = {name: predictions[name, "known"].only(protocol="separate_hand").sequences for name in models}
    true = [_accelerations(s.gt_keypoints, s.valid) for s in separate["full"]]
    jitters = {name: [_accelerations(s.tracked_keypoints, s.valid) for s in made] for name, made in separate.items()}
    errors = {
        name: [landmark_errors(s.tracked_keypoints, s.gt_keypoints)[:, 1:-1].mean(axis=-1) for s in made]
        for name, made in separate.items()
    }
    bounds = np.nanquantile(np.concatenate([a.ravel() for a in true]), (0.25, 0.5, 0.75))
    rows = []
    for quarter in range(len(bounds) + 1):
        chosen = [np.isfinite(a) & (np.searchsorted(bounds, a) == quarter) for a in true]
        error, jitter = ({name: _over(chosen, values[name]) for name in models} for values in (errors, jitters))
        for model in models:
            row = {"quarter": quarter + 1, "model": model, "true_mpjpa": _over(chosen, true).mean}
            row |= {MPJPE: error[model].mean, MPJPA: jitter[model].mean}
            changes = {
                "error": combined(_percent_more, error[model], error["full"]),
                "jitter": combined(_percent_more, jitter[model], jitter["full"]),
            }
            rows.append(row | _change_columns(changes))
    return pd.DataFrame(rows)


def _over(chosen: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> Pooled:
    """The mean over the chosen hand instances of each sequence."""
    return Pooled.of([value[frames] for value, frames in zip(values, chosen, strict=True)])


def _accelerations(keypoints_mm: KeypointsMm, valid: Valid) -> Float[np.ndarray, "hands inner"]:
    """The mean of a hand's landmarks, mm/frame²; NaN where a neighbouring frame is not valid."""
    lengths, inner = landmark_accelerations(keypoints_mm, valid)
    return np.where(inner, lengths.mean(-1), np.nan)


def readable_smoothing(table: pd.DataFrame) -> pd.DataFrame:
    """`smoothing_table` or `smoothing_by_motion_table` with each change and its interval in one column of text."""
    changes = [column.removesuffix("_percent") for column in table if column.endswith("_percent")]
    parts = {change: [f"{change}_{part}" for part in ("percent", "low", "high")] for change in changes}
    shown = table.drop(columns=list(itertools.chain(*parts.values()))).round(2)
    for change, columns in parts.items():
        shown[f"{change} (%)"] = [
            "" if pd.isna(value) else f"{value:+.0f} [{low:+.0f}, {high:+.0f}]"
            for value, low, high in table[columns].itertuples(index=False)
        ]
    return shown


def _percent_more(mine, of_full):
    return 100 * (mine / of_full - 1)


def _change_columns(changes: Mapping[str, Interval]) -> dict[str, float]:
    columns = {}
    for name, change in changes.items():
        columns |= {f"{name}_percent": change.value, f"{name}_low": change.low, f"{name}_high": change.high}
    return columns


def seeds_table(profile: str, predictions: Mapping[str, Predictions]) -> pd.DataFrame:
    """How far training with other seeds scatters: a row for each run of `REPEATED` with a seed of its own.

    Columns: experiment, seed, steps; the error of validation users (mm, known skeleton) as last judged in the first
    phase, and at the end; and on separate hands of test users MPJPE and MPJPA, where `predictions`, by run, hold them.
    """
    rows = []
    for run, curve in training_curves(profile, RELEASED_RUNS).items():
        experiment, seed = experiment_and_seed(run)
        if experiment not in REPEATED:
            continue
        measured = curve.dropna(subset="validation_known_mpjpe_mm").set_index("step").validation_known_mpjpe_mm
        first, *others = phase_steps(profile, run)
        before = measured[measured.index < first]
        row = {"experiment": experiment, "seed": seed, "steps": first + sum(others)}
        row |= {
            "first_phase_validation_mm": before.iloc[-1] if len(before) else np.nan,
            "validation_mm": measured.iloc[-1],
        }
        if run in predictions:
            chosen = predictions[run].only(protocol="separate_hand")
            row |= {MPJPE: chosen.errors().mean, MPJPA: chosen.jitter().mean}
        rows.append(row)
    validation = ["first_phase_validation_mm", "validation_mm"]
    return pd.DataFrame(rows, columns=["experiment", "seed", "steps", *validation, MPJPE, MPJPA])


def scale_table(methods: Sequence[Predictions]) -> pd.DataFrame:
    """How well each method calibrated the scale of each user's hand, from predictions for unknown skeletons.

    The fitted scale, at which the generic hand comes closest to the user's; the mean over recordings of the calibrated
    one, its spread, and its error relative to the fitted one.
    """
    rows = [(p.method, s.user, s.fitted_scale, s.scale) for p in methods for s in p.sequences]
    by_user = pd.DataFrame(rows, columns=["method", "user", "fitted", "scale"]).groupby(["method", "user"], sort=False)
    table = by_user.agg(fitted=("fitted", "first"), calibrated=("scale", "mean"), spread=("scale", "std"))
    return table.assign(error_percent=100 * (table.calibrated / table.fitted - 1)).reset_index()


def training_table(profile: str, experiment: str, predictions: Mapping[str, Predictions]) -> pd.DataFrame:
    """What a trained network reaches on test users, with 95 % intervals, and what its training took, on what machine.

    `predictions` are by kind of skeleton.
    """
    rows = []
    for skeleton, made in predictions.items():
        for protocol in MAIN_PROTOCOLS:
            chosen, case = made.only(protocol=protocol), {"skeleton": skeleton, "protocol": protocol}
            error = interval(chosen.errors())
            case |= {MPJPE: error.value, "low": error.low, "high": error.high, MPJPA: chosen.jitter().mean}
            rows.append({"experiment": experiment} | case | training_effort(profile, experiment))
    return pd.DataFrame(rows)
