"""The claims of the paper's text that our data can test, and whether they hold (claims.csv).

A claim compares two methods on the same sequences. It holds if the 95 % bootstrap interval of the paired difference
lies on the claimed side: of zero, or, where the paper speaks of a small cost, of `SMALL_COST` of what it is compared
with. It is contradicted if the interval lies on the other side, else the recordings are inconclusive.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
import pandas as pd

from lib.metrics import PCK_THRESHOLDS_MM, landmark_errors
from lib.study import paper
from lib.study.predictions import AllPredictions, Predictions
from lib.study.statistics import Interval, Pooled, combined, difference
from lib.study.tables import (
    ABLATION,
    BASELINE,
    CASES,
    MAIN_PROTOCOLS,
    MPJPA,
    MPJPE,
    MULTISTAGE,
    PINCH,
    TEMPORAL,
    WITH_PINCH,
    Cell,
    Cells,
    methods_of,
)

SMALL_COST = 0.03
"""The paper's costs called small are of 0 to 2 %."""
UNITS = {MPJPE: "mm", MPJPA: "mm/frame²", "precision_percent": "%", "recall_percent": "%"}
Verdict = Literal["holds", "contradicted", "inconclusive"]
Than = Literal["lower", "higher", "hardly higher"]
OCCLUDED = ("full_temporal_loss", "no_temporal_temporal_loss")
"""With and without the temporal module, trained with the same losses."""


@dataclass(frozen=True)
class Claim:
    """A claim, what the paper and we measure, and the verdict of our data."""

    claim: str
    paper: str
    ours: str
    verdict: Verdict


def claims_table(predictions: AllPredictions, cells: Cells) -> pd.DataFrame:
    """All claims, in the order of the paper; those about the baseline only if it has made predictions."""
    parts = ablation_claims(cells), [occlusion_claim(predictions)], multistage_claims(predictions, cells)
    return to_table([*itertools.chain(*parts), *pinch_claims(cells)])


def to_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """Claims as rows of claims.csv, with the column `holds` that says yes or no."""
    table = pd.DataFrame([vars(claim) for claim in claims], columns=[field.name for field in fields(Claim)])
    table.insert(table.columns.get_loc("verdict"), "holds", table.verdict == "holds")
    return table


def to_text(claims: pd.DataFrame) -> str:
    """Claims as text, their verdicts in front, what the paper and we measure in a line of its own."""
    lines = []
    for row in claims.itertuples():
        lines.append(f"{row.verdict:>12}  {row.claim}")
        lines += [f"{'':14}{name}: {text}" for name, text in (("paper", row.paper), ("ours ", row.ours))]
    return "\n".join(lines)


def summary(claims: pd.DataFrame) -> str:
    """How many claims hold, are contradicted, or neither."""
    count = claims.verdict.value_counts().reindex(get_args(Verdict), fill_value=0)
    return (
        f"{count['holds']} of {len(claims)} claims hold, {count['contradicted']} are contradicted, "
        f"{count['inconclusive']} are inconclusive"
    )


def ablation_claims(cells: Cells) -> list[Claim]:
    """§5.2: what each module, L_temp and the One-Euro filter do."""

    def claim(text: str, first: str, second: str, metric: str, than: Than = "lower") -> Claim:
        numbers = [paper.TABLE_2[row][1 if metric == MPJPE else 2] for row in (first, second)]
        return compare(cells, text, numbers, *(Cell(ABLATION, row, metric) for row in (first, second)), than)

    smooth = "no_temporal_temporal_loss"
    return [
        claim("the feature transform lowers the error", "full", "no_ftl", MPJPE),
        claim("the skeleton encoder lowers the error", "full", "no_skeleton_encoder", MPJPE),
        claim("the temporal module lowers the error", "full", "no_temporal", MPJPE),
        claim("the temporal module lowers the jitter", "full", "no_temporal", MPJPA),
        claim("without the temporal module L_temp lowers the jitter", smooth, "no_temporal", MPJPA),
        claim("without the temporal module L_temp raises the error", smooth, "no_temporal", MPJPE, "higher"),
        claim("in the full model L_temp lowers the jitter", TEMPORAL, "full", MPJPA),
        claim("in the full model L_temp costs little error", TEMPORAL, "full", MPJPE, "hardly higher"),
        claim("L_temp has less error than a One-Euro filter tuned to its jitter", TEMPORAL, "full_one_euro", MPJPE),
    ]


def multistage_claims(predictions: AllPredictions, cells: Cells) -> list[Claim]:
    """§5.3: the end-to-end model against the multi-stage one."""
    if BASELINE not in methods_of(predictions):
        return []
    claims = []
    for column, (metric, name) in enumerate(((MPJPE, "error"), (MPJPA, "jitter"))):
        for case, (skeleton, protocol) in enumerate(CASES):
            numbers = [paper.TABLE_3[method][case][column] for method in (TEMPORAL, BASELINE)]
            first, second = (_case(method, skeleton, protocol, metric) for method in (TEMPORAL, BASELINE))
            text = f"end-to-end has less {name} than multi-stage ({skeleton} skeleton, {protocol})"
            claims.append(compare(cells, text, numbers, first, second))
    claims += [_unknown_claim(cells, protocol) for protocol in MAIN_PROTOCOLS]
    return claims + [_crossing_claim(predictions, protocol) for protocol in MAIN_PROTOCOLS]


def _unknown_claim(cells: Cells, protocol: str) -> Claim:
    order = [(BASELINE, "unknown"), (TEMPORAL, "unknown"), (BASELINE, "known"), (TEMPORAL, "known")]
    lead = combined(lambda a, b, c, d: (a - b) - (c - d), *(cells[_case(m, s, protocol, MPJPE)] for m, s in order))
    unknown, known = (
        difference(*(cells[_case(method, skeleton, protocol, MPJPE)] for method in (BASELINE, TEMPORAL)))
        for skeleton in ("unknown", "known")
    )
    theirs = [paper.TABLE_3[m][CASES.index((s, protocol))][0] for m, s in order]
    return _judge(
        f"the lead over multi-stage is larger where the skeleton is unknown ({protocol})",
        f"{theirs[0] - theirs[1]:.1f} against {theirs[2] - theirs[3]:.1f} mm",
        f"lead {unknown.value:.2f} mm unknown, {known.value:.2f} mm known: {lead} mm",
        lead,
        above=True,
    )


def pinch_claims(cells: Cells) -> list[Claim]:
    """§5.4: pinch detection with and without L_pinch, and what L_pinch costs."""
    claims = _detection_claims(cells) if Cell(PINCH, BASELINE, "recall_percent") in cells else []
    for case, (skeleton, protocol) in enumerate(CASES):
        numbers = [paper.TABLE_3[method][case][0] for method in (WITH_PINCH, TEMPORAL)]
        first, second = (_case(method, skeleton, protocol, MPJPE) for method in (WITH_PINCH, TEMPORAL))
        text = f"L_pinch costs little error ({skeleton} skeleton, {protocol})"
        claims.append(compare(cells, text, numbers, first, second, "hardly higher"))
    return claims


def _detection_claims(cells: Cells) -> list[Claim]:
    claims = []
    for column, metric in enumerate(("precision_percent", "recall_percent")):
        for beginning, method, than in (
            ("without L_pinch end-to-end falls behind", TEMPORAL, "lower"),
            ("with L_pinch end-to-end is ahead of", WITH_PINCH, "higher"),
        ):
            text = f"{beginning} multi-stage in pinch {metric.removesuffix('_percent')}"
            numbers = [paper.TABLE_4[name][column] for name in (method, BASELINE)]
            claims.append(compare(cells, text, numbers, *(Cell(PINCH, m, metric) for m in (method, BASELINE)), than))
    return claims


def _case(method: str, skeleton: str, protocol: str, metric: str) -> Cell:
    return Cell(MULTISTAGE, method, metric, skeleton, protocol)


def compare(
    cells: Cells, claim: str, printed: Sequence[float], first: Cell, second: Cell, than: Than = "lower"
) -> Claim:
    """The claim that `first` is lower or higher than `second`, or higher by a small cost at most.

    `printed` holds the paper's numbers for the two.
    """
    unit, change = UNITS[first.metric], difference(cells[first], cells[second])
    limit = SMALL_COST * cells[second].mean if than == "hardly higher" else 0.0
    names = ", ".join(f"{cell.method} {cells[cell].mean:.2f}" for cell in (first, second))
    relative = f", {100 * change.value / cells[second].mean:+.0f} %" if cells[second].mean else ""
    return _judge(
        claim,
        f"{printed[0]} against {printed[1]} {unit}",
        f"{names} {unit}: {change} {unit}{relative}",
        change,
        limit,
        above=than == "higher",
    )


def _judge(claim: str, theirs: str, ours: str, change: Interval, limit: float = 0.0, above: bool = False) -> Claim:
    """Whether the whole interval lies below a limit, or above it; if on neither side, the text says so."""
    below, beyond = change.high < limit, change.low > limit
    holds, contradicted = (beyond, below) if above else (below, beyond)
    if holds or contradicted:
        return Claim(claim, theirs, ours, "holds" if holds else "contradicted")
    why = f"the interval contains {limit:.2g}" if np.isfinite(change.value) else "there is nothing to compare"
    return Claim(claim, theirs, f"{ours}; {why}", "inconclusive")


def _crossing_claim(predictions: AllPredictions, protocol: str) -> Claim:
    """§5.3, Figure 7: the end-to-end model has fewer outliers and localises less precisely."""
    ours, theirs = (pck_of(predictions[method, "known"].only(protocol=protocol)) for method in (TEMPORAL, BASELINE))
    lead = [difference(first, second) for first, second in zip(ours, theirs, strict=True)]
    low, high = np.array([(change.low, change.high) for change in lead]).T
    behind = np.flatnonzero(high < 0)
    ahead = np.flatnonzero(low > 0)
    values = [change.value for change in lead]
    extremes = {"lowest": np.argmin(values), "then": -1}
    shown = ", ".join(f"{name} {lead[k]} % at {PCK_THRESHOLDS_MM[k]:g} mm" for name, k in extremes.items())
    if len(behind) and len(ahead):
        crosses = behind[0] < ahead[-1]
        verdict, why = ("holds", "") if crosses else ("contradicted", "; they cross the other way")
    else:
        why = "; no crossing: " + ("never behind" if not len(behind) else "not ahead at larger thresholds")
        verdict = "inconclusive"
    return Claim(
        f"fewer outliers, less precise localisation than multi-stage ({protocol})",
        "the PCK curves cross" + (" at 9.5 mm" if protocol == "separate_hand" else ""),
        f"PCK of end-to-end minus multi-stage: {shown}{why}",
        verdict,
    )


def pck_of(predictions: Predictions) -> list[Pooled]:
    """Percent of hand instances below each of `PCK_THRESHOLDS_MM`."""
    errors = [
        landmark_errors(s.tracked_keypoints, s.gt_keypoints).mean(axis=-1)[s.valid] for s in predictions.sequences
    ]
    return [Pooled.of([100.0 * (error < threshold) for error in errors]) for threshold in PCK_THRESHOLDS_MM]


def errors_behind_occluder(predictions: Predictions) -> Pooled:
    """MPJPE of the occlusion sequences while an occluder passes, mm."""
    return Pooled.of(
        [
            landmark_errors(s.tracked_keypoints, s.gt_keypoints).mean(axis=-1)[s.valid & s.occluder]
            for s in predictions.only(protocol="occlusion").sequences
        ]
    )


def occlusion_claim(predictions: AllPredictions) -> Claim:
    """§5.2, Figure 6."""
    with_module, without = (errors_behind_occluder(predictions[method, "known"]) for method in OCCLUDED)
    change = difference(with_module, without)
    return _judge(
        "the temporal module helps through an occlusion",
        "a plausible pose with it, complete failure without (Figure 6)",
        f"while an occluder passes {with_module.mean:.1f} mm with, {without.mean:.1f} mm without: {change} mm",
        change,
    )
