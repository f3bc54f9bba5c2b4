"""The report on live trackers: tables by protocol and by condition, and whether targets are met. Beyond the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from lib.files import fingerprint
from lib.machines import processor
from lib.recordings import FRAMES_PER_SECOND
from lib.study.live_conditions import AS_RENDERED, BLACKOUT, CONDITIONS
from lib.study.live_metrics import METRICS, measure_live, reliability_table
from lib.study.live_runs import NO_HANDS, LiveRun, LiveRuns, live_methods, live_provenance, live_runs
from lib.study.methods import predict_multistage
from lib.study.predictions import Predictions, predict
from lib.study.results import results_folder, save_table
from lib.study.tables import BASELINE

PROTOCOLS, HARDER, TARGETS, RELIABILITY = "live_protocols", "live_conditions", "live_targets", "live_confidence"
"""The names of the tables."""
ALL, OCCLUDER = "all", "occlusion recordings"


@dataclass(frozen=True)
class LiveStudy:
    """What a live tracker makes of the test split, what the same network makes of ground-truth crops, and an
    identifier of what this was made from."""

    runs: LiveRuns
    labelled: Predictions
    source: str


def live_study(profile: str, data_folder: Path) -> dict[str, LiveStudy]:
    """The study of every live tracker, by method; known skeletons. Raises InputError if weights or data are missing."""
    studies = {}
    for method in live_methods(profile):
        predict_method = predict_multistage if method.name == BASELINE else partial(predict, method.name)
        labelled = predict_method(profile, data_folder)["known"]
        source = fingerprint({name: str(value) for name, value in live_provenance(method, data_folder).items()})
        studies[method.name] = LiveStudy(live_runs(profile, data_folder, method), labelled, source)
    return studies


def by_protocol(runs: LiveRuns) -> dict[str, list[LiveRun]]:
    """The recordings as rendered, by what they show, and all of them."""
    rendered = runs[AS_RENDERED]
    motions = sorted({run.motion for run in rendered})
    return {motion: [run for run in rendered if run.motion == motion] for motion in motions} | {ALL: [*rendered]}


def by_condition(runs: LiveRuns) -> dict[str, list[LiveRun]]:
    """The recordings that are followed under all conditions, as rendered and by condition; the occlusion recordings."""
    rendered, some = runs[AS_RENDERED], {run.name for run in runs[BLACKOUT]}
    cases = {AS_RENDERED: [run for run in rendered if run.name in some]}
    cases[OCCLUDER] = [run for run in rendered if run.motion == "occlusion"]
    cases |= {name: [*runs[name]] for name in (*CONDITIONS, NO_HANDS) if name not in cases}
    return {name: chosen for name, chosen in cases.items() if chosen}


def protocols_table(studies: Mapping[str, LiveStudy]) -> pd.DataFrame:
    """Every metric by protocol, self-tracked and with ground-truth crops.

    Columns: method, case, recordings, minutes, metric, value, low, high (95 % bootstrap interval over recordings),
    source (what it was made from). A metric that nothing was measured of is NaN.
    """
    return _table(studies, lambda study: (by_protocol(study.runs), study.labelled))


def conditions_table(studies: Mapping[str, LiveStudy]) -> pd.DataFrame:
    """Every metric by condition, without ground-truth crops. Columns as of `protocols_table`."""
    return _table(studies, lambda study: (by_condition(study.runs), None))


def _table(studies: Mapping[str, LiveStudy], cases_of) -> pd.DataFrame:
    rows = []
    for method, study in studies.items():
        cases, labelled = cases_of(study)
        for case, runs in cases.items():
            minutes = sum(int(run.shown.sum()) for run in runs) / FRAMES_PER_SECOND / 60
            about = {"method": method, "case": case, "recordings": len(runs), "minutes": minutes}
            for metric, found in measure_live(runs, labelled).items():
                rows.append(about | {"metric": metric, **vars(found), "source": study.source})
    return pd.DataFrame(rows)


def confidence_table(studies: Mapping[str, LiveStudy]) -> pd.DataFrame:
    """`reliability_table` of every method, in all recordings as rendered; its columns after method, and source."""
    tables = [
        reliability_table(study.runs[AS_RENDERED]).assign(method=method, source=study.source)
        for method, study in studies.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[["method", *table.columns.drop("method")]]


@dataclass(frozen=True)
class Target:
    """What a metric of a case of a table should be: `at_most` a limit, or at least."""

    text: str
    table: str
    case: str
    metric: str
    at_most: bool
    limit: float

    def met(self, value: float) -> bool:
        """Whether a value is as it should be."""
        return bool(value <= self.limit if self.at_most else value >= self.limit)


AIMS = (
    Target("MPJPE above ground-truth crops, all recordings (%)", PROTOCOLS, ALL, "more_error_percent", True, 15.0),
    Target("visible instances tracked, gestures (%)", PROTOCOLS, "separate_hand", "tracked_percent", False, 97.0),
    Target("visible instances tracked, hand-hand (%)", PROTOCOLS, "hand_hand", "tracked_percent", False, 95.0),
    Target(f"recovery after {BLACKOUT}, median (s)", HARDER, BLACKOUT, "recovery_median_s", True, 0.3),
    Target("hand-hand recordings without a swap (%)", PROTOCOLS, "hand_hand", "unswapped_percent", False, 95.0),
    Target("false hands per minute of empty rooms", HARDER, NO_HANDS, "false_hands_per_minute", True, 1.0),
)


def targets_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Whether each method meets each target. Columns: method, target, aim, value, low, high, source, and verdict:
    met, missed or, where there is no value, not measured."""
    rows = []
    for method in tables[PROTOCOLS].method.unique():
        for aim in AIMS:
            table = tables[aim.table]
            chosen = table[(table.method == method) & (table.case == aim.case) & (table.metric == aim.metric)].iloc[0]
            verdict = "not measured" if pd.isna(chosen.value) else "met" if aim.met(chosen.value) else "missed"
            row = {"method": method, "target": aim.text, "aim": f"{'≤' if aim.at_most else '≥'} {aim.limit:g}"}
            rows.append(row | dict(chosen[["value", "low", "high", "source"]]) | {"verdict": verdict})
    return pd.DataFrame(rows)


def write_live_tables(profile: str, studies: Mapping[str, LiveStudy]) -> dict[str, pd.DataFrame]:
    """Write tables/live_*, and return them by name as they are then there.

    When a hand is detected depends on rounding, so those that another processor made from the same are kept.
    """
    tables = {PROTOCOLS: protocols_table(studies), HARDER: conditions_table(studies)}
    tables |= {TARGETS: targets_table(tables), RELIABILITY: confidence_table(studies)}
    written = {}
    for name, table in tables.items():
        path = results_folder(profile) / "tables" / f"{name}.csv"
        table = table.assign(processor=processor(torch.device("cpu")))
        save_table(table, profile, name, once=path.is_file() and _made_elsewhere(pd.read_csv(path), table))
        written[name] = pd.read_csv(path)
    return written


def _made_elsewhere(released: pd.DataFrame, table: pd.DataFrame) -> bool:
    """Whether a released table has the same rows, made from the same, on another processor."""
    same = [c for c in ("method", "case", "target", "metric", "from", "source") if c in table]
    alike = set(released) == set(table) and released[same].equals(table[same])
    return alike and list(released.processor) != list(table.processor)


def answer(targets: pd.DataFrame) -> str:
    """What a reader should know first, in bold Markdown: a paragraph for each method."""
    paragraphs = []
    for method, rows in targets.groupby("method", sort=False):
        met = int((rows.verdict == "met").sum())
        parts = [f"Without labels, `{method}` meets {met} of {len(rows)} targets."]
        for verdict, some in rows.groupby("verdict", sort=True):
            parts.append(f"{verdict.capitalize()}: {'; '.join(_clause(row) for row in some.itertuples())}.")
        paragraphs.append(f"**{' '.join(parts)}**")
    return "\n\n".join(paragraphs)


_BETTER = {"tracked_percent": 1, "mpjpe_mm": -1, "far_percent": -1, "losses_per_minute": -1}
"""Whether more or less of a metric is better."""


def missed_in_parts(table: pd.DataFrame) -> str:
    """Of `protocols_table`, as a list in Markdown: the protocols that miss a target set for all recordings."""
    lines = []
    for aim in (aim for aim in AIMS if aim.case == ALL):
        for row in table[(table.metric == aim.metric) & (table.case != ALL)].itertuples():
            if not pd.isna(row.value) and not aim.met(row.value):
                lines.append(f"- `{row.method}`, {METRICS[aim.metric].title}; {row.case} alone {_text(row)}.")
    return "\n".join(lines) or "Each protocol alone meets what all recordings together have to."


def worse_conditions(table: pd.DataFrame) -> str:
    """Of `conditions_table`, as a list in Markdown: where a metric is worse than all of its interval as rendered."""
    lines = []
    for (method, metric), rows in table[table.metric.isin(_BETTER)].groupby(["method", "metric"], sort=False):
        rendered = rows[rows.case == AS_RENDERED].iloc[0]
        beyond = rows.value < rendered.low if _BETTER[metric] > 0 else rows.value > rendered.high
        worse = [f"{row.case} {_text(row)}" for row in rows[beyond].itertuples()]
        if worse:
            about = f"- `{method}`, {METRICS[metric].title}; {AS_RENDERED} {_text(rendered)}"
            lines.append(f"{about}: {'; '.join(worse)}.")
    return "\n".join(lines) or "Under no condition is a metric worse than its interval as rendered."


def readable(table: pd.DataFrame, method: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Some metrics of a method as text, `value [low, high]`: a row for each case, a column for each metric."""
    chosen = table[(table.method == method) & table.metric.isin(metrics)]
    cells = chosen.assign(text=[_text(row) for row in chosen.itertuples()])
    wide = cells.pivot(index="case", columns="metric", values="text").loc[chosen.case.unique(), list(metrics)]
    titles = {metric: METRICS[metric].title for metric in metrics}
    return wide.rename(columns=titles).rename_axis(index=None, columns=None)


def _text(row) -> str:
    if pd.isna(row.value):
        return "-"
    value, low, high = (_number(number, METRICS[row.metric].digits) for number in (row.value, row.low, row.high))
    return f"{value} [{low}, {high}]"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _clause(row) -> str:
    measured = "" if pd.isna(row.value) else f" {row.value:.3g},"
    return f"{row.target}{measured} target {row.aim}"
