"""Metrics of live trackers on hand-made streams, and the tables, verdicts and files that are made of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_here, tiny_recording
from made_up_data import reindex, tiny_dataset
from scipy.stats import CensoredData, ecdf

from lib.files import MM
from lib.recordings import read_recording
from lib.study import live_runs, live_tracking
from lib.study.figures.live import conditions_figure, most_missed, reliability_figure, stream_figure
from lib.study.live_conditions import AS_RENDERED, BLACKOUT, CONDITIONS, sped_up, stream_of
from lib.study.live_metrics import (
    METRICS,
    Wait,
    false_hands,
    losses,
    measure_live,
    quantile_of_waits,
    reliability_table,
    swapped,
    waits,
)  # fmt: skip
from lib.study.live_runs import NO_HANDS, LiveMethod, LiveRun, follow, one_of_each_user
from lib.study.live_tracking import (
    AIMS,
    ALL,
    HARDER,
    OCCLUDER,
    PROTOCOLS,
    TARGETS,
    LiveStudy,
    answer,
    missed_in_parts,
    readable,
    worse_conditions,
    write_live_tables,
)  # fmt: skip
from lib.study.predictions import Predictions, TrackedSequence
from lib.study.results import results_folder
from lib.study.sequences import SequenceName
from lib.tracking import true_keypoints

NAME = SequenceName("separate_hand/user_44/recording_00", "separate_hand")


def steps(text: str) -> np.ndarray:
    """`1` where something is the case."""
    return np.array([letter == "1" for letter in text])


@pytest.mark.parametrize(
    ("found", "visible", "expected"),
    [
        ("0011", "1111", [(2, True, True)]),  # start-up
        ("1111", "1111", [(0, True, True)]),
        ("0001", "0011", [(1, True, True)]),
        ("1001", "1111", [(0, True, True), (2, True, False)]),  # lost in view
        ("100001", "100011", [(0, True, True), (1, True, False)]),  # lost out of view: from where it is back
        ("100011", "100011", [(0, True, True), (0, True, False)]),  # found at once
        ("111111", "110011", [(0, True, True)]),  # followed out of view and back
        ("1000", "1111", [(0, True, True), (2, False, False)]),  # the stream ends
        ("100000", "111001", [(0, True, True), (2, False, False), (0, False, False)]),  # it leaves
        ("0000", "0000", []),
        ("0110", "0000", []),
    ],
)
def test_waits(found, visible, expected):
    waited = waits(steps(found), steps(visible), np.arange(len(found)) / 1.0)
    assert waited == [Wait(float(seconds), ended, first) for seconds, ended, first in expected]


def test_losses_are_of_hands_in_view():
    assert losses(steps("1101001"), steps("1111111")) == 2
    assert losses(steps("1101001"), steps("1101111")) == 1
    assert losses(steps("0001111"), steps("1111111")) == 0


def test_false_hands_are_counted_once():
    assert false_hands(steps("1101110"), steps("0000000")) == 2
    assert false_hands(steps("1101110"), steps("1111111")) == 0


def test_quantiles_of_waits_know_that_some_were_not_watched_to_the_end(rng):
    seconds, ended = rng.integers(1, 9, 40).astype(float), rng.random(40) < 0.6
    waited = [[Wait(s, e, False)] for s, e in zip(seconds, ended.tolist(), strict=True)]
    survival = ecdf(CensoredData(uncensored=seconds[ended], right=seconds[~ended])).sf
    for share in (0.2, 0.5):
        below = survival.quantiles[survival.probabilities <= 1 - share]
        found = quantile_of_waits(waited, share)
        assert found.value == below[0]
        assert found.low <= found.value <= found.high
    assert quantile_of_waits([[Wait(1.0, False, False)], []], 0.5).value == np.inf
    assert np.isnan(quantile_of_waits([[], []], 0.5).value)


def a_run(found: str = "0" * 2 + "1" * 58, error_mm: float = 3.0, about: SequenceName = NAME, **changes) -> LiveRun:
    """Two hands 300 mm apart in view for two seconds; the left is tracked as said, the right always."""
    frames = len(found)
    true = np.zeros((2, frames, 21, 3), np.float32)
    true[1, ..., 0], true[..., 1] = 300.0, np.arange(21)
    tracked, everywhere = np.stack((steps(found), np.ones(frames, bool))), np.ones((2, frames), bool)
    keypoints = np.where(tracked[..., None, None], true + np.float32([0, 0, error_mm]), 0)
    arrays = (keypoints, true, 0.95 * tracked, tracked, everywhere, everywhere, everywhere[0], np.arange(frames))
    return replace(LiveRun(about.name, about.motion, *arrays), **changes)


def labelled(runs, error_mm: float = 2.0) -> Predictions:
    """The same hands from ground-truth crops, all of them."""
    sequences = []
    for run in runs:
        none, found = np.zeros_like(run.present), run.gt_keypoints + np.float32([0, error_mm, 0])
        about = (run.name, run.motion, found, run.gt_keypoints, run.visible)
        sequences.append(TrackedSequence(*about, 2 * run.visible.astype(int), none, none, none[0], np.nan, 1.0))
    return Predictions("full_temporal_loss", "known", tuple(sequences))


def test_metrics_of_a_stream():
    run = a_run("00" + "1" * 28 + "000" + "1" * 27)
    found = {name: value.value for name, value in measure_live([run], labelled([run])).items()}
    assert list(found) == list(METRICS)
    assert found["tracked_percent"] == pytest.approx(100 * 115 / 120)
    assert (found["mpjpe_mm"], found["labelled_mpjpe_mm"], found["more_error_percent"]) == pytest.approx((3, 2, 50))
    assert found["losses_per_minute"] == pytest.approx(60 / (120 / 30))
    assert found["recovery_median_s"] == pytest.approx(3 / 30)
    assert found["start_median_s"] == 0, "the right hand is there at once"
    assert found["start_p95_s"] == pytest.approx(2 / 30)
    assert found["far_percent"] == 0
    assert found["mpjpa_mm_per_frame2"] == pytest.approx(0, abs=1e-4)
    assert found["unswapped_percent"] == 100
    assert np.isnan(found["false_hands_per_minute"]), "no hand is missing"


def test_a_hand_far_off_is_not_found():
    run = a_run("1" * 60)
    run.tracked_keypoints[0, 30:42, :, 2] += 80.0
    found = measure_live([run])
    assert "labelled_mpjpe_mm" not in found
    assert found["tracked_percent"].value == 100
    assert found["far_percent"].value == pytest.approx(10)
    assert found["losses_per_minute"].value == pytest.approx(60 / (120 / 30))
    assert found["recovery_median_s"].value == pytest.approx(12 / 30)


def test_swaps_are_nearer_to_the_other_hand():
    run = a_run("1" * 60)
    assert not swapped(run).any()
    run.tracked_keypoints[0, 7] = run.gt_keypoints[1, 7] + np.float32([-149.0, 0, 0])
    assert np.argwhere(swapped(run)).tolist() == [[0, 7]]
    assert measure_live([run, a_run()])["unswapped_percent"].value == 50
    alone = replace(run, present=np.stack((steps("1" * 60), steps("0" * 60))))
    assert not swapped(alone).any()
    assert np.isnan(measure_live([alone])["unswapped_percent"].value), "one hand cannot be swapped"


def test_frames_that_did_not_arrive_are_no_losses():
    shown = np.arange(60) % 3 != 1
    run = a_run("1" * 60, shown=shown)
    run = replace(run, tracked=run.tracked & shown, visible=run.visible & shown)
    found = measure_live([run])
    assert found["losses_per_minute"].value == 0
    assert found["tracked_percent"].value == 100
    assert np.isnan(found["recovery_median_s"].value)


def test_hands_in_an_empty_room_are_false():
    none = np.zeros((2, 60), bool)
    found = measure_live([a_run("0" * 30 + "1" * 10 + "0" * 10 + "1" * 10, present=none, visible=none)])
    assert found["false_hands_per_minute"].value == pytest.approx(3 * 60 / 2)
    assert np.isnan(found["tracked_percent"].value)


class Knowing:
    """A tracker that finds the left hand from its second step on, where it is in the first frame; it notes times."""

    def __init__(self, recording):
        self.landmarks = torch.from_numpy(true_keypoints(recording)[:, 0]) / MM
        self.times = []

    def start(self):
        return 0

    def step(self, images, cameras, time, state):
        self.times.append(time)
        tracked = torch.tensor([state > 0, False])
        return SimpleNamespace(tracked=tracked, confidence=0.95 * tracked, landmarks=self.landmarks), state + 1


def test_a_stream_is_followed(tmp_path):
    recording = read_recording(tiny_recording(8).write(tmp_path))
    recording.labelled[3, 1] = False
    tracker = Knowing(recording)
    run = follow(NAME, tracker, recording, sped_up(2, stream_of(recording), 0))
    np.testing.assert_allclose(tracker.times, np.arange(4) / 30)
    assert run.source.tolist() == [0, 2, 4, 6]
    assert run.tracked.tolist() == [[False, True, True, True], [False] * 4]
    assert (run.tracked_keypoints[~run.tracked] == 0).all()
    truth = true_keypoints(recording)[:, ::2].astype(np.float32)
    np.testing.assert_array_equal(run.gt_keypoints, truth)
    assert run.visible.all()
    off = (replace(frame, on=frame.on & (frame.source != 4)) for frame in stream_of(recording))
    late = follow(NAME, Knowing(recording), recording, (frame for frame in off if frame.source not in (1, 7)))
    assert late.shown.tolist() == [True, False, True, True, True, True, True]
    assert late.visible.tolist() == [[True, False, True, True, False, True, True],
                                     [True, False, True, False, False, True, True]]  # fmt: skip
    assert late.present[1].tolist() == [True, False, True, False, True, True, True]


def test_each_user_gives_a_recording():
    names = [
        SequenceName(f"{m}/user_{u}/recording_00", m) for u in (44, 45, 46) for m in ("hand_hand", "separate_hand")
    ]
    chosen = one_of_each_user([*names, SequenceName("occlusion/user_47/recording_07", "occlusion")])
    assert [(one.user, one.motion) for one in chosen] == [
        ("user_44", "separate_hand"), ("user_45", "hand_hand"), ("user_46", "separate_hand"), ("user_47", "occlusion"),
    ]  # fmt: skip


def begin(weights, recording):
    return Knowing(recording)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.study.results.ROOT", tmp_path)
    monkeypatch.setattr(live_runs, "in_processes", run_here)
    folder = tiny_dataset(tmp_path / "data", motions=("separate_hand", "hand_hand"))
    sequences = [{"split": "test", "user": u, "protocol": m, "index": i, "frames": 30}
                 for u in (44, 45) for i, m in enumerate(("separate_hand", "hand_hand"))]  # fmt: skip
    reindex(folder, sequences=sequences)
    monkeypatch.setattr(live_runs, "empty_recording", lambda key: read_recording(next(folder.glob("**/*_00.mp4"))))
    return folder


def test_runs_are_kept_until_something_changes(data, tmp_path, monkeypatch):
    (tmp_path / "weights").write_text("1")
    method = LiveMethod("method", (tmp_path / "weights",), begin)
    runs = live_runs.live_runs("tiny", data, method)
    assert list(runs) == [*CONDITIONS, NO_HANDS]
    assert [len(some) for some in runs.values()] == [4] + [2] * len(CONDITIONS)
    assert {run.motion for run in runs[BLACKOUT]} == {"separate_hand", "hand_hand"}
    kept = tmp_path / "results" / "tiny" / "predictions" / "live_method.npz"
    before = kept.read_bytes()
    again = live_runs.live_runs("tiny", data, method)
    assert kept.read_bytes() == before
    for one, other in zip(runs[AS_RENDERED], again[AS_RENDERED], strict=True):
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))
    made = []
    monkeypatch.setattr(live_runs, "_track", lambda *about: made.append(about) or runs[AS_RENDERED][0])
    for change in (lambda: (tmp_path / "weights").write_text("2"), lambda: reindex(data, fingerprint="other"),
                   lambda: monkeypatch.setattr(live_runs, "LIVE_VERSION", 99)):  # fmt: skip
        change()
        made.clear()
        live_runs.live_runs("tiny", data, method)
        assert len(made) == 4 + 2 * len(CONDITIONS)


def a_study(found: str = "0" * 2 + "1" * 58, source: str = "one") -> LiveStudy:
    runs = [a_run(found, about=SequenceName(f"{m}/user_44/recording_0{i}", m))
            for i, m in enumerate(("hand_hand", "occlusion", "separate_hand"))]  # fmt: skip
    none = np.zeros((2, len(found)), bool)
    harder = {name: (runs[0],) for name in CONDITIONS if name != AS_RENDERED}
    empty = replace(runs[0], present=none, visible=none, tracked=none)
    return LiveStudy({AS_RENDERED: tuple(runs), **harder, NO_HANDS: (empty,)}, labelled(runs), source)


def test_tables_and_the_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.study.results.ROOT", tmp_path)
    tables = write_live_tables("tiny", {"full_temporal_loss": a_study()})
    assert list(tables[PROTOCOLS].case.unique()) == ["hand_hand", "occlusion", "separate_hand", ALL]
    cases = [AS_RENDERED, OCCLUDER, *(name for name in CONDITIONS if name != AS_RENDERED), NO_HANDS]
    assert list(tables[HARDER].case.unique()) == cases
    verdicts = tables[TARGETS].set_index("target").verdict
    assert list(verdicts.index) == [aim.text for aim in AIMS]
    assert verdicts.tolist() == ["missed", "met", "met", "not measured", "met", "met"]
    text = answer(tables[TARGETS])
    assert text.startswith("**Without labels, `full_temporal_loss` meets 4 of 6 targets. Met: visible")
    assert "Missed: MPJPE above ground-truth crops, all recordings (%) 50, target ≤ 15." in text
    parts = missed_in_parts(tables[PROTOCOLS]).splitlines()
    assert [part.partition("; ")[2] for part in parts] == [
        f"{case} alone 50.0 [50.0, 50.0]." for case in ("hand_hand", "occlusion", "separate_hand")
    ]
    assert missed_in_parts(tables[PROTOCOLS].assign(value=14.0)).startswith("Each protocol alone meets")
    shown = readable(tables[HARDER], "full_temporal_loss", ["tracked_percent", "recovery_median_s"])
    assert shown.loc[AS_RENDERED].tolist() == ["98.3 [98.3, 98.3]", "-"]
    figure = conditions_figure(tables[HARDER])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == cases[:-1]


def test_what_is_worse_than_as_rendered_is_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.study.results.ROOT", tmp_path)
    study, slow = a_study("1" * 60), "twice as fast"
    far = a_run("0" * 30 + "1" * 30, error_mm=5.0, about=SequenceName("hand_hand/user_44/recording_00", "hand_hand"))
    worse = replace(study, runs={**study.runs, slow: (far,)})
    none, text = (
        worse_conditions(write_live_tables("tiny", {"full_temporal_loss": one})[HARDER]) for one in (study, worse)
    )
    assert none == "Under no condition is a metric worse than its interval as rendered."
    lines = text.splitlines()
    assert len(lines) == 2, "tracked less and worse, but not lost"
    assert lines[0].endswith(f"as rendered 100.0 [100.0, 100.0]: {slow} 75.0 [75.0, 75.0].")
    assert "MPJPE, self-tracked (mm); as rendered 3.0 [3.0, 3.0]" in lines[1]


def test_tables_of_another_processor_are_kept_if_made_from_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.study.results.ROOT", tmp_path)

    def tracked(study: LiveStudy, processor: str) -> float:
        monkeypatch.setattr(live_tracking, "processor", lambda device: processor)
        return write_live_tables("tiny", {"full_temporal_loss": study})[PROTOCOLS].value[0]

    other = a_study("0" * 4 + "1" * 56)
    first = tracked(a_study(), "A")
    assert tracked(other, "B") == first
    assert tracked(other, "A") < first, "on the same processor it is made anew"
    assert tracked(a_study(source="two"), "B") == first, "and so it is from something else"
    assert set(pd.read_csv(results_folder("tiny") / "tables" / f"{TARGETS}.csv").processor) == {"B"}


def test_a_stream_is_drawn():
    missed, other = a_run("0" * 20 + "1" * 40), a_run("1" * 60)
    assert most_missed([other, missed]) is missed
    figure = stream_figure(missed, labelled([missed]).sequences[0])
    truth, own, marks = figure.axes[0].get_lines()
    np.testing.assert_allclose(truth.get_ydata(), 2.0)
    assert np.isnan(own.get_ydata()).sum() == len(marks.get_xdata()) == 20
    np.testing.assert_allclose(own.get_ydata()[20:], 3.0)


def test_confidence_is_compared_with_what_is_right():
    """Of four seconds of two hands half are followed with 0.5, half of those are right."""
    run = a_run("0" * 30 + "1" * 30)
    confidence = np.where(run.tracked, 0.5, 0.97)
    wrong = run.tracked_keypoints + np.where(np.arange(60) % 2, 0, 41)[None, :, None, None].astype(np.float32)
    wrong[~run.tracked] += 1000
    table = reliability_table([replace(run, confidence=confidence, tracked_keypoints=wrong)])
    rows = table.set_index("from").dropna(subset="right_percent")
    assert rows.hands.tolist() == [90, 30]
    assert rows.confidence_percent.tolist() == pytest.approx([50, 97])
    assert rows.right_percent[0.4] == pytest.approx(50)
    assert rows.right_percent[0.95] == 0
    figure = reliability_figure(table)
    dots = figure.axes[0].get_lines()[1]
    np.testing.assert_allclose(dots.get_xydata(), [[50, 50], [97, 0]])
