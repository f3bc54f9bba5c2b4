"""Tables, pinches and claims on predictions whose errors are known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_predictions import FRAMES, PINCHED, made_up, of, pinching, study

from lib.study import paper
from lib.study.claims import (
    SMALL_COST,
    Claim,
    claims_table,
    compare,
    errors_behind_occluder,
    summary,
    to_table,
    to_text,
)
from lib.study.pinch_detection import (
    detection_latency,
    latency_table,
    most_pinched,
    precision_and_recall,
    precision_recall_curve,
    thresholds_table,
    tuned_threshold,
)
from lib.study.tables import (
    CASES,
    METHODS,
    SMOOTHED,
    Cell,
    ablation_table,
    by_case,
    intervals_table,
    measure,
    multistage_table,
    pinch_table,
    readable_intervals,
    readable_smoothing,
    scale_table,
    seeds_table,
    smoothing_by_motion_table,
    smoothing_table,
)


def test_table_2():
    table = ablation_table(measure(study()))
    assert table.columns.tolist() == [
        "model", "losses", "mpjpe_mm", "mpjpa_mm_per_frame2", "mpjpe_mm_paper", "mpjpa_mm_per_frame2_paper"
    ]  # fmt: skip
    assert table.model.tolist() == list(paper.TABLE_2)
    full = table[table.model == "full"].iloc[0]
    assert full.mpjpe_mm == pytest.approx(np.hypot(9.0, 0.9), abs=0.2)
    assert (full.mpjpe_mm_paper, full.mpjpa_mm_per_frame2_paper) == (9.3, 3.52)
    assert table.mpjpa_mm_per_frame2.argmax() == 0


def test_occlusion_sequences_are_in_neither_protocol():
    """Only they show the occluder, where the error is 40 mm more."""
    calm, hidden = measure(study()), measure(study(full=made_up(9.0, 3.5, occluder=40.0)))
    assert calm.keys() == hidden.keys()
    assert all(calm[cell].mean == hidden[cell].mean for cell in calm)


def test_table_3():
    table = multistage_table(measure(study()))
    numbers = ["mpjpe_mm", "mpjpa_mm_per_frame2"]
    assert table.columns.tolist() == [
        "method", "skeleton", "protocol", *numbers, *(f"{n}_{s}" for s in ("paper", "official") for n in numbers)
    ]  # fmt: skip
    expected = [(m, *case) for m in METHODS for case in CASES]
    assert list(table[["method", "skeleton", "protocol"]].itertuples(index=False, name=None)) == expected
    assert table.mpjpe_mm[2] - table.mpjpe_mm[0] == pytest.approx(3.0, abs=0.1)
    assert table.mpjpe_mm_official.notna().sum() == 8


def test_table_3_by_case():
    table = multistage_table(measure(study()))
    wide, first = by_case(table), table.iloc[0]
    assert wide.index.tolist() == list(METHODS)
    assert wide.columns.tolist()[:2] == ["known, separate-hand", "known, hand-hand"]
    assert wide.iloc[0, 0] == f"{first.mpjpe_mm:.1f} / {first.mpjpa_mm_per_frame2:.2f}"
    assert by_case(table, "_official").loc["multistage", "unknown, hand-hand"] == "13.6 / 4.17"
    assert by_case(table, "_official").loc["full_temporal_loss", "known, hand-hand"] == ""


def test_the_published_network_is_a_row_where_it_is_brought():
    """Beside the others, whose numbers stay."""
    brought = {("official", skeleton): study()["full_temporal_loss", skeleton] for skeleton in ("known", "unknown")}
    alone, table = (multistage_table(measure(of)) for of in (study(), study() | brought))
    assert table.method.unique().tolist() == [*METHODS, "official"]
    pd.testing.assert_frame_equal(table[:12], alone)
    assert table.mpjpe_mm[12:].tolist() == alone[alone.method == "full_temporal_loss"].mpjpe_mm.tolist()
    assert pinch_table(measure(study() | brought)).method.tolist() == [*METHODS, "official"]


def test_table_4():
    table = pinch_table(measure(study()))
    assert table.columns.tolist() == [
        "method", "precision_percent", "recall_percent", "precision_percent_paper", "recall_percent_paper"
    ]  # fmt: skip
    assert table.method.tolist() == list(METHODS)
    assert (table[["precision_percent", "recall_percent"]] == 100).all(axis=None)


def test_every_number_has_its_interval():
    cells = measure(study())
    table = intervals_table(cells)
    assert table.columns.tolist() == ["table", "row", "metric", "low", "high"]
    assert len(table) == 7 * 2 + 12 * 2 + 3 * 2
    assert table.row[table.table == "table3_multistage"].str.count("/").eq(2).all()
    means = np.array([pooled.mean for pooled in cells.values()])
    assert ((table.low <= means + 1e-6) & (means <= table.high + 1e-6)).all()
    ablations, first = readable_intervals(cells, "table2_ablation"), table.iloc[0]
    assert ablations.columns.tolist() == ["row", "mpjpe_mm", "mpjpa_mm_per_frame2"]
    assert ablations.iloc[0].tolist()[:2] == [first.row, f"{first.low:.2f} to {first.high:.2f}"]


def test_smoothing_is_told_relative_to_the_network_that_is_not_smoothed():
    """A filter that adds 3 mm to an error of 10 mm and takes away 3 of 5 mm/frame² of jitter."""
    stronger = {"full_tenfold_temporal_loss": made_up(10.0, 1.0), "full_one_euro_tenfold": made_up(13.0, 2.0)}
    made = study(full=made_up(10.0, 5.0), **stronger)
    table = smoothing_table(made, clip_frames=8).set_index("model")
    assert table.index.tolist() == ["ground_truth", "full", *SMOOTHED]
    assert table.loc["full", ["error_percent", "jitter_percent", "excess_percent"]].tolist() == [0.0, 0.0, 0.0]
    assert table.loc["ground_truth", "mpjpe_mm"] == 0.0
    filtered = table.loc["full_one_euro_tenfold"]
    before, after = (made[name, "known"].only(protocol="separate_hand") for name in ("full", filtered.name))
    assert filtered.jitter_percent == pytest.approx(100 * (after.jitter().mean / before.jitter().mean - 1))
    assert filtered.error_percent == pytest.approx(100 * (after.errors().mean / before.errors().mean - 1))
    first = np.concatenate([s.tracked_keypoints[0, :8] - s.gt_keypoints[0, :8] for s in after.sequences])  # one hand
    assert filtered.early_mpjpe_mm == pytest.approx(np.linalg.norm(first, axis=-1).mean(), rel=1e-5)
    true = table.loc["ground_truth", "mpjpa_mm_per_frame2"]
    excess = (after.jitter().mean - true) / (before.jitter().mean - true)
    assert filtered.excess_percent == pytest.approx(100 * (excess - 1))
    assert true > 0.1
    assert -65 < filtered.jitter_low <= filtered.jitter_percent <= filtered.jitter_high < -50
    assert 20 < filtered.error_low <= filtered.error_percent <= filtered.error_high < 35
    readable = readable_smoothing(table.reset_index()).set_index("model")
    assert readable.loc["full", "error (%)"] == "+0 [+0, +0]"
    assert readable.loc["ground_truth", "excess (%)"] == ""
    low, high = filtered.jitter_low, filtered.jitter_high
    assert readable.loc[filtered.name, "jitter (%)"] == f"{filtered.jitter_percent:+.0f} [{low:+.0f}, {high:+.0f}]"


def swinging(made: dict) -> dict:
    """The same predictions of hands that swing ever faster, 20 mm to and fro: every method follows."""

    def swung(sequence):
        swing = np.zeros((FRAMES, 1, 3), np.float32)
        swing[:, 0, 2] = 20 * np.sin(0.005 * np.arange(FRAMES) ** 2)
        tracked, true = sequence.tracked_keypoints + swing, sequence.gt_keypoints + swing
        return replace(sequence, tracked_keypoints=tracked, gt_keypoints=true)

    return {key: replace(p, sequences=tuple(map(swung, p.sequences))) for key, p in made.items()}


def test_smoothing_is_compared_in_quarters_of_true_motion():
    """Where the truth accelerates most a network errs 5 mm more; elsewhere it is as good as `full`."""
    made = swinging(study(full_temporal_loss=made_up(9.0, 7.0)))
    before = made["full", "known"].only(protocol="separate_hand").sequences
    true = [np.linalg.norm(np.diff(s.gt_keypoints, 2, axis=1), axis=-1).mean(-1) for s in before]
    fastest = np.quantile(np.concatenate([a.ravel() for a in true]), 0.75)

    def lagging(sequence):
        true = np.linalg.norm(np.diff(sequence.gt_keypoints, 2, axis=1), axis=-1).mean(-1)
        found = sequence.tracked_keypoints.copy()
        found[:, 1:-1][true > fastest] += np.float32([5.0, 0.0, 0.0])
        return replace(sequence, tracked_keypoints=found)

    temporal = made["full_temporal_loss", "known"]
    made["full_temporal_loss", "known"] = replace(temporal, sequences=tuple(map(lagging, temporal.sequences)))
    table = smoothing_by_motion_table(made)
    assert list(zip(table.quarter, table.model, strict=True)) == [
        (quarter, model) for quarter in (1, 2, 3, 4) for model in ("full", "full_temporal_loss", "full_one_euro")
    ]
    ours, full = (table[table.model == name].set_index("quarter") for name in ("full_temporal_loss", "full"))
    assert full.true_mpjpa.is_monotonic_increasing
    assert full.true_mpjpa.mean() == pytest.approx(np.concatenate([a.ravel() for a in true]).mean(), rel=0.05)
    assert (full.error_percent == 0).all()
    more = ours.mpjpe_mm - full.mpjpe_mm
    assert more[4] == pytest.approx(5.0, abs=0.8)
    assert more[[1, 2, 3]].abs().max() < 0.8
    assert ours.error_percent[4] == pytest.approx(100 * more[4] / full.mpjpe_mm[4])
    assert ours.error_low[4] <= ours.error_percent[4] <= ours.error_high[4]
    assert (ours.jitter_low > 0).all()


def test_frames_without_valid_neighbours_are_in_no_quarter():
    """A frame that is not valid has zero keypoints, half a metre from those beside it."""

    def hidden(sequence):
        valid, true, found = sequence.valid.copy(), sequence.gt_keypoints.copy(), sequence.tracked_keypoints.copy()
        valid[:, 7], true[:, 7], found[:, 7] = False, 0.0, 0.0
        return replace(sequence, valid=valid, gt_keypoints=true, tracked_keypoints=found)

    made = swinging(study())
    gapped = {key: replace(p, sequences=tuple(map(hidden, p.sequences))) for key, p in made.items()}
    whole, rest = smoothing_by_motion_table(made), smoothing_by_motion_table(gapped)
    assert rest.true_mpjpa.max() == pytest.approx(whole.true_mpjpa.max(), rel=0.2)
    assert rest.mpjpe_mm.max() == pytest.approx(whole.mpjpe_mm.max(), rel=0.2)


def write_run(folder: Path, run: str, steps: int, errors: list[tuple], pretrained: str | None = None) -> None:
    """A run that has ended, by its errors of validation users after some steps."""
    folder = folder / "results" / "tiny" / "runs" / run
    folder.mkdir(parents=True)
    training = {"steps": steps, "pretrained": pretrained}
    (folder / "config.json").write_text(json.dumps({"training": training}))
    curve = pd.DataFrame(errors, columns=["step", "validation_known_mpjpe_mm"])
    curve.assign(crops=curve.step, seconds=0.5).to_csv(folder / "curve.csv", index=False)


def test_seeds_are_read_off_the_curves(tmp_path, monkeypatch):
    """The error where the first phase ends, and at the end; of test users where there are weights."""
    monkeypatch.setattr("lib.study.results.ROOT", tmp_path)
    first_phases = {"": 12.0, "_seed1": 12.5}
    for seed, error in first_phases.items():
        write_run(tmp_path, f"single_frames{seed}", 70, [(49, 20.0), (60, None), (69, error)])
    for name, seed, error in (("full", "", 13.0), ("full", "_seed1", 11.0), ("no_ftl", "", 41.0)):
        write_run(tmp_path, name + seed, 30, [(10, None), (29, error)], f"single_frames{seed}")
    made = made_up(9.0, 3.5)["known"]
    table = seeds_table("tiny", {"full": made})
    assert table.experiment.tolist() == ["full", "full"]
    assert table.seed.tolist() == [0, 1]
    assert table.steps.tolist() == [100, 100]
    assert table.first_phase_validation_mm.tolist() == [12.0, 12.5]
    assert table.validation_mm.tolist() == [13.0, 11.0]
    assert table.mpjpe_mm[0] == made.only(protocol="separate_hand").errors().mean
    assert table.mpjpe_mm.isna().tolist() == [False, True]


def test_scale_of_each_user():
    table = scale_table([made_up(9.0, 3.0)["unknown"]])
    assert table.user.tolist() == ["user_44", "user_45", "user_46", "user_47"]
    np.testing.assert_allclose(table.error_percent, 100 * (1.0 / 1.1 - 1))


def test_precision_and_recall_by_hand(rng):
    """Found: two of six pinched frames and two others; the hand that is not valid does not count."""
    found = np.isin(np.arange(FRAMES), [8, 9, 30, 31])
    precision, recall = precision_and_recall(of(pinching(rng, np.where(found, 9.9, 10.1))))
    assert (precision.mean, recall.mean) == (pytest.approx(50.0), pytest.approx(100 / 3))


def test_each_method_at_its_threshold(rng):
    made = of(pinching(rng, np.where(PINCHED, 12.0, 40.0)))
    assert thresholds_table([made]).recall_percent.tolist() == [0.0]
    (row,) = thresholds_table([made], {made.method: 15.0}).itertuples()
    assert (row.method, row.threshold_mm, row.precision_percent, row.recall_percent) == (made.method, 15.0, 100, 100)
    assert row.mpjpe_mm == pytest.approx(made.errors().mean)


def test_the_threshold_is_tuned_to_both(rng):
    distance = np.where(PINCHED, 14.2, 25.0)
    curve = precision_recall_curve(of(pinching(rng, distance)))
    assert curve.recall_percent.is_monotonic_increasing
    assert curve.recall_percent[curve.threshold_mm <= 14].max() == 0
    assert curve.precision_percent.iloc[-1] == pytest.approx(100 * 6 / FRAMES)
    assert tuned_threshold(of(pinching(rng, distance))) == 14.5


@pytest.mark.parametrize(
    ("fires", "latencies"),
    [
        ([8, 20], [0, 0]),
        ([10, 21, 22], [2, 1]),
        ([6, 7, 8, 9, 22], [-2, 2]),
        ([6, 8, 9], [0, np.nan]),
        ([30], [np.nan, np.nan]),
        ([*range(8, 23)], [0, -9]),
    ],
)
def test_latency(rng, fires, latencies):
    """Two pinches, from frames 8 and 20; the last detector never lets go in between."""
    distance = np.where(np.isin(np.arange(FRAMES), fires), 5.0, 20.0)
    table = detection_latency(of(pinching(rng, distance)))
    assert table.frame.tolist() == [8, 20]
    np.testing.assert_array_equal(table.latency_frames, latencies)
    np.testing.assert_allclose(table.latency_ms, np.array(latencies) * 1000 / 30)


def test_pinches_whose_beginning_is_not_seen_have_no_latency(rng):
    sequence = pinching(rng, np.where(PINCHED, 5.0, 20.0))
    valid = sequence.valid.copy()
    valid[0, [5, 6, 7]] = False
    assert detection_latency(of(replace(sequence, valid=valid))).frame.tolist() == [20]


def verdicts(predictions) -> dict:
    table = claims_table(predictions, measure(predictions))
    assert table.columns.tolist() == ["claim", "paper", "ours", "holds", "verdict"]
    assert table.claim.is_unique
    return {row.claim: row for row in table.itertuples()}


def test_claims_hold_where_the_differences_are_clear():
    claims = verdicts(study())
    pinches = [name for name in claims if "in pinch" in name]
    crossing = [name for name in claims if "outliers" in name]
    assert (len(pinches), len(crossing)) == (4, 2)
    assert {name for name, row in claims.items() if not row.holds} == {*pinches, *crossing}
    assert {claims[name].verdict for name in (*pinches, *crossing)} == {"inconclusive"}
    assert all("never behind" in claims[name].ours for name in crossing)


def test_claims_are_contradicted_where_the_interval_lies_on_the_other_side():
    row = verdicts(study(no_ftl=made_up(5.0, 6.0)))["the feature transform lowers the error"]
    assert not row.holds
    assert row.verdict == "contradicted"
    assert row.paper == "9.3 against 49.8 mm"


def test_claims_are_inconclusive_where_sequences_disagree():
    row = verdicts(study(no_temporal=made_up(9.1, 5.0, spread=3.0)))["the temporal module lowers the error"]
    assert not row.holds
    assert row.verdict == "inconclusive"
    assert row.ours.endswith("; the interval contains 0")


@pytest.mark.parametrize(("cost", "holds"), [(0.5 * SMALL_COST, True), (1.5 * SMALL_COST, False)])
def test_small_costs(cost, holds):
    changed = study(full_temporal_loss=made_up(9.0 * (1 + cost), 2.6, occluder=10.0))
    assert verdicts(changed)["in the full model L_temp costs little error"].holds == holds


def test_curves_that_cross():
    """Half of the hands much better, half worse: fewer precise hands, fewer outliers."""
    baseline = made_up(10.0, 0.0, spread=0.0)
    for skeleton, predictions in baseline.items():
        errors = np.where(np.arange(16) // 4 % 2, 4.0, 25.0)
        sequences = [
            replace(s, tracked_keypoints=s.gt_keypoints + np.float32([e, 0, 0]))
            for s, e in zip(predictions.sequences, errors, strict=True)
        ]
        baseline[skeleton] = replace(predictions, sequences=tuple(sequences))
    claims = verdicts(study(multistage=baseline))
    assert claims["fewer outliers, less precise localisation than multi-stage (separate_hand)"].holds


def without_baseline() -> dict:
    return {case: predictions for case, predictions in study().items() if case[0] != "multistage"}


def test_without_the_baseline_its_rows_and_claims_are_missing():
    predictions = without_baseline()
    cells = measure(predictions)
    rest = [method for method in METHODS if method != "multistage"]
    assert multistage_table(cells).method.unique().tolist() == pinch_table(cells).method.tolist() == rest
    with_it, without = verdicts(study()), verdicts(predictions)
    assert {name for name in with_it if "multi-stage" in name} == with_it.keys() - without.keys()
    assert all(row.ours == with_it[name].ours for name, row in without.items())


def test_claims_about_methods_that_track_nothing_are_inconclusive():
    lost = {
        skeleton: replace(p, sequences=tuple(replace(s, valid=np.zeros_like(s.valid)) for s in p.sequences))
        for skeleton, p in made_up(10.0, 3.0).items()
    }
    row = verdicts(study(multistage=lost))["end-to-end has less error than multi-stage (known skeleton, hand_hand)"]
    assert not row.holds
    assert row.verdict == "inconclusive"
    assert row.ours.endswith("; there is nothing to compare")


def test_claims_as_text():
    table = claims_table(study(), measure(study()))
    lines = to_text(table).splitlines()
    assert len(lines) == 3 * len(table)
    assert sum(line.strip().startswith("holds ") for line in lines) == table.holds.sum()
    assert all(claim in line for claim, line in zip(table.claim, lines[::3], strict=True))


def test_claims_about_nothing_are_not_relative():
    cells = measure(study())
    first, second = (Cell("table4_pinch", name, "recall_percent") for name in ("full_temporal_loss", "multistage"))
    nothing = replace(cells[first], sums=np.zeros_like(cells[first].sums))
    row = compare(cells | {first: nothing, second: nothing}, "some claim", (1.0, 2.0), first, second)
    assert row.ours.startswith("full_temporal_loss 0.00, multistage 0.00 %: +0.00 [+0.00, +0.00] %;")
    assert row.verdict == "inconclusive"


def test_no_claims():
    assert to_text(to_table([])) == ""
    assert summary(to_table([])) == "0 of 0 claims hold, 0 are contradicted, 0 are inconclusive"


def test_three_verdicts():
    claims = [Claim(verdict, "", "", verdict) for verdict in ("holds", "contradicted", "inconclusive")]
    table = to_table(claims)
    assert table.holds.tolist() == [True, False, False]
    assert summary(table) == "1 of 3 claims hold, 1 are contradicted, 1 are inconclusive"


def test_latencies_of_methods(rng):
    """Two pinches, one of them detected a frame late."""
    late = replace(of(pinching(rng, np.where(np.isin(np.arange(FRAMES), [9, 10]), 5.0, 20.0))), method="late")
    (row,) = latency_table([late]).itertuples()
    assert (row.method, row.pinches, row.missed_percent) == ("late", 2, 50.0)
    assert row.early_ms == row.median_ms == row.late_ms == pytest.approx(1000 / 30)


def test_the_most_pinched_hand(rng):
    few = pinching(rng, np.zeros(FRAMES))
    swapped = replace(few, name="separate_hand/user_45/recording_02", valid=few.valid[::-1])
    once = replace(few, pinch=few.pinch & (np.arange(FRAMES) < 15))
    assert most_pinched(of(once, swapped)) == (swapped.name, 1)
    assert most_pinched(of(few, once)) == (few.name, 0)


def test_errors_behind_the_occluder():
    assert errors_behind_occluder(made_up(9.0, 0.0, occluder=40.0)["known"]).mean == pytest.approx(49.0, abs=0.2)
