"""Predictions are computed once, kept with what they were made from, and made again when that has changed."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_here, tiny_network
from made_up_data import reindex, tiny_dataset
from made_up_predictions import CountingMethod, tracked

from lib.checkpoints import load_network, save_network
from lib.errors import InputError
from lib.filters import OneEuroFilter
from lib.metrics import mpjpa, mpjpe
from lib.recordings import read_recording
from lib.rendered.shape import generic_hand
from lib.study.experiments import END_TO_END
from lib.study.methods import WITHOUT_MEMORY, make_predictions
from lib.study.predictions import (
    Predictions,
    TrackedSequence,
    fitted_scale,
    load_or_predict,
    predict,
    read_manifest,
    read_predictions,
)
from lib.tracking import Tracker


@pytest.fixture
def predictions(rng) -> Predictions:
    other = tracked(rng, "hand_hand/user_45/recording_01", "hand_hand", frames=5, scale=0.9)
    return Predictions("method", "unknown", (tracked(rng), other))


@pytest.fixture
def dataset(tmp_path) -> Path:
    return tiny_dataset(tmp_path / "data", motions=("separate_hand", "hand_hand"), users=(44,))


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """Results go to a folder of the test."""
    monkeypatch.setattr("lib.study.results.ROOT", tmp_path)
    return tmp_path / "results" / "tiny"


def test_files_give_back_what_was_saved(tmp_path, predictions):
    path = tmp_path / "method_unknown.npz"
    predictions.save(path, {"method": "method", "skeleton": "unknown", "sequences": 2, "source": "x"})
    read = read_predictions(path)
    assert (read.method, read.skeleton, len(read.sequences)) == ("method", "unknown", 2)
    for before, after in zip(predictions.sequences, read.sequences, strict=True):
        for field in fields(TrackedSequence):
            np.testing.assert_array_equal(getattr(after, field.name), getattr(before, field.name))
    assert read_manifest(path)["source"] == "x"


def test_metrics_are_those_of_all_sequences(predictions):
    joined = [
        np.concatenate([getattr(s, name) for s in predictions.sequences], axis=1)
        for name in ("tracked_keypoints", "gt_keypoints", "valid")
    ]
    assert predictions.errors().mean == pytest.approx(3.0, rel=1e-5)
    assert predictions.errors().mean == pytest.approx(mpjpe(*joined))
    parts = [mpjpa(s.tracked_keypoints, s.valid) for s in predictions.sequences]
    assert min(parts) < predictions.jitter().mean < max(parts)


def test_coverage_counts_hands_that_can_be_seen(predictions):
    """The left hand is lost in frame 3 of both sequences; in the first no camera shows it there."""
    first, second = predictions.sequences
    lost = replace(predictions, sequences=(first, replace(second, views=np.ones((2, 5), int))))
    assert predictions.coverage().mean == 100.0
    assert lost.coverage().mean == pytest.approx(100 * (15 + 9) / (15 + 10))


def test_subsets(predictions):
    assert [s.user for s in predictions.only(protocol="hand_hand").sequences] == ["user_45"]
    assert [s.user for s in predictions.only(motion="pinch").sequences] == ["user_44"]
    assert predictions.only(protocol="separate_hand").sequences == predictions.only(motion="pinch").sequences
    with pytest.raises(InputError, match=r"hold no sequence with .*occlusion"):
        predictions.only(protocol="occlusion")


def test_filtering_keeps_the_labels(predictions):
    smooth = predictions.filtered(OneEuroFilter(0.5, 0.0), "smooth")
    assert smooth.method == "smooth"
    assert smooth.jitter().mean < 0.5 * predictions.jitter().mean
    for before, after in zip(predictions.sequences, smooth.sequences, strict=True):
        assert after.gt_keypoints is before.gt_keypoints
        np.testing.assert_array_equal(after.tracked_keypoints[0, 3], before.tracked_keypoints[0, 3])


def test_fitted_scale():
    generic = generic_hand()
    assert fitted_scale(generic.scaled(1.2), generic) == pytest.approx(1.2)


def test_predicted_once(dataset, results):
    method = CountingMethod()
    first, again = (load_or_predict(("method",), "tiny", dataset, "weights", method) for _ in range(2))
    assert method.calls == 1
    assert sorted(path.name for path in (results / "predictions").iterdir()) == [
        "method_known.npz", "method_unknown.npz"
    ]  # fmt: skip
    for skeleton, scale in (("known", np.nan), ("unknown", 1.25)):
        assert first["method", skeleton].errors().mean == pytest.approx(0.0, abs=1e-3)
        np.testing.assert_array_equal([s.scale for s in again["method", skeleton].sequences], [scale, scale])


@pytest.mark.parametrize("change", ["weights", "data", "version", "missing"])
def test_predicted_again_after_a_change(dataset, results, monkeypatch, change):
    method = CountingMethod()
    load_or_predict(("method",), "tiny", dataset, "weights", method)
    if change == "data":
        reindex(dataset, fingerprint="changed")
    elif change == "version":
        monkeypatch.setattr("lib.study.predictions.PREDICTIONS_VERSION", -1)
    elif change == "missing":
        (results / "predictions" / "method_unknown.npz").unlink()
    load_or_predict(("method",), "tiny", dataset, "other weights" if change == "weights" else "weights", method)
    assert method.calls == 2


def test_a_broken_file_is_refused_and_kept(dataset, results):
    method = CountingMethod()
    load_or_predict(("method",), "tiny", dataset, "weights", method)
    path = results / "predictions" / "method_known.npz"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"PK nonsense"):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"method_known\.npz is not a complete file of predictions"):
            load_or_predict(("method",), "tiny", dataset, "weights", method)
        assert path.read_bytes() == broken
    assert method.calls == 1


def test_missing_weights_name_the_command(dataset, results):
    with pytest.raises(InputError, match=r"no weights at .*: run python -m lib train full --profile tiny"):
        predict("full", "tiny", dataset)


def test_a_trained_network_predicts_as_the_tracker_does(dataset, results):
    weights = results / "checkpoints" / "full.safetensors"
    save_network(tiny_network(), weights)
    batched = predict("full", "tiny", dataset)
    tracker, generic = Tracker(load_network(weights)), generic_hand().to(dtype=torch.float64)

    def track(sequences):
        recordings = [read_recording(sequence.video) for sequence in sequences]
        return {
            ("baseline", "known"): [tracker.track_known(recording, recording.hand_model) for recording in recordings],
            ("baseline", "unknown"): [tracker.track_unknown(recording, generic) for recording in recordings],
        }

    one_by_one = load_or_predict(("baseline",), "tiny", dataset, "settings", track)
    for skeleton, predictions in batched.items():
        for ours, theirs in zip(predictions.sequences, one_by_one["baseline", skeleton].sequences, strict=True):
            shown = theirs.valid
            np.testing.assert_allclose(ours.tracked_keypoints[shown], theirs.tracked_keypoints[shown], atol=3e-3)


def test_all_predictions_are_made_at_once(dataset, results, monkeypatch):
    """Of all networks, known and unknown, and those without temporal state."""
    for module in ("methods", "sequences"):
        monkeypatch.setattr(f"lib.study.{module}.in_processes", run_here)
    for name in END_TO_END:
        save_network(tiny_network(), results / "checkpoints" / f"{name}.safetensors")
    save_network(tiny_network(seed=1), results / "checkpoints" / "full_seed1.safetensors")
    make_predictions("tiny", dataset, workers=2)
    made = {path.name for path in (results / "predictions").iterdir()}
    runs = (*END_TO_END, "full_seed1", *(f"{name}_without_memory" for name in WITHOUT_MEMORY))
    assert made == {f"{run}_{skeleton}.npz" for run in runs for skeleton in ("known", "unknown")}
