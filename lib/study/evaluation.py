"""The paper's table of recordings that were tracked, beside its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from lib.formats.folders import RecordingName
from lib.hands import FINGERTIPS, NUM_LANDMARKS, PALM, WRIST
from lib.metrics import PCK_THRESHOLDS_MM, auc, landmark_errors, pck
from lib.study import paper
from lib.study.statistics import Pooled, error_of, interval, jitter_of
from lib.study.tables import CASES, MPJPA, MPJPE
from lib.tracking import Tracks

CHALLENGE_LANDMARKS = [landmark for landmark in range(NUM_LANDMARKS) if landmark not in (WRIST, PALM)]
"""The 19 that the hand tracking challenge compares."""
PAPER_ROWS = {
    "umetrack": ("full_temporal_loss", "full_temporal_pinch_loss"),
    "multistage": ("multistage",) * 2,
    "official": ("official",) * 2,
}
"""The rows of the paper's Table 3 that a method is put beside: as printed, and as its authors corrected them. Their one
end-to-end model has the error of the printed row with L_pinch."""


def evaluation_table(method: str, tracked: Sequence[tuple[RecordingName, str, Tracks]]) -> pd.DataFrame:
    """A row for each skeleton and protocol of recordings, in the order of the paper's Table 3.

    `tracked` holds name, kind of skeleton and tracks of each recording. Columns: skeleton, protocol, recordings,
    tracked_percent of the labelled hand instances, MPJPE and MPJPA of those that are tracked, with 95 % intervals over
    recordings, PCK-AUC, and the paper's numbers as printed and as corrected. NaN where nothing is labelled.
    """
    return _table(tracked, lambda case, chosen: _measured(chosen) | _printed(method, case))


def challenge_table(tracked: Sequence[tuple[RecordingName, str, Tracks]]) -> pd.DataFrame:
    """The metrics of the hand tracking challenge for each skeleton and protocol: MPJPE and PCK-AUC of 19 landmarks (all
    but wrist and palm), PCK-AUC of the five fingertips; mm, percent, thresholds of 0 to 50 mm."""
    return _table(tracked, lambda _, chosen: _challenge(chosen))


def _table(
    tracked: Sequence[tuple[RecordingName, str, Tracks]],
    measure: Callable[[tuple[str, str], Sequence[Tracks]], Mapping[str, float | None]],
) -> pd.DataFrame:
    """A row for each skeleton and protocol, in the order of the paper's Table 3; others follow."""
    groups: dict[tuple[str, str], list[Tracks]] = {}
    for name, skeleton, tracks in tracked:
        groups.setdefault((skeleton, name.protocol), []).append(tracks)
    rows = []
    for case in sorted(groups, key=lambda case: (CASES.index(case) if case in CASES else len(CASES), case)):
        row = {"skeleton": case[0], "protocol": case[1], "recordings": len(groups[case])}
        rows.append(row | measure(case, groups[case]))
    return pd.DataFrame(rows)


def _challenge(chosen: Sequence[Tracks]) -> dict[str, float]:
    errors = np.concatenate([landmark_errors(*_compared(t))[t.evaluated] for t in chosen])
    row = {"mpjpe_19_mm": float(errors[:, CHALLENGE_LANDMARKS].mean()) if len(errors) else np.nan}
    for name, landmarks in (("pck_auc_percent", CHALLENGE_LANDMARKS), ("fingertip_auc_percent", FINGERTIPS)):
        of_them = errors[:, list(landmarks)]
        shares = [100 * (of_them < threshold).mean() if len(errors) else np.nan for threshold in PCK_THRESHOLDS_MM]
        row[name] = auc(np.array(shares))
    return row


def _compared(tracks: Tracks) -> tuple[np.ndarray, np.ndarray]:
    """Tracked and true landmarks, in single precision as the study's predictions are."""
    return tracks.tracked_keypoints.astype(np.float32), tracks.gt_keypoints.astype(np.float32)


def _measured(chosen: Sequence[Tracks]) -> dict[str, float]:
    tracked, true = zip(*map(_compared, chosen), strict=True)
    valid = [tracks.evaluated for tracks in chosen]
    error, jitter = interval(error_of(tracked, true, valid)), interval(jitter_of(tracked, valid))
    labelled = [tracks.evaluated if tracks.labelled is None else tracks.labelled for tracks in chosen]
    found = Pooled.of([100.0 * counts[of] for counts, of in zip(valid, labelled, strict=True)])
    whole = (np.concatenate(arrays, axis=1) for arrays in (tracked, true, valid))
    row = {"tracked_percent": found.mean}
    for name, value in ((MPJPE, error), (MPJPA, jitter)):
        row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    return row | {"pck_auc_percent": auc(pck(*whole))}


def _printed(method: str, case: tuple[str, str]) -> dict[str, float | None]:
    """The paper's numbers for a skeleton and a protocol; None where it has none."""
    printed, corrected = PAPER_ROWS[method]
    numbers = {"paper": paper.TABLE_3[printed], "official": paper.CORRECTED_TABLE_3[corrected]}
    row = {}
    for metric, column in ((MPJPE, 0), (MPJPA, 1)):
        for source, table in numbers.items():
            row[f"{metric}_{source}"] = table[CASES.index(case)][column] if case in CASES else None
    return row
