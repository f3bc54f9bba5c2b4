"""All methods predict the test split; what is tuned belongs to the weights it was tuned with."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import tiny_dataset
from made_up_predictions import CountingMethod

from lib.checkpoints import save_network
from lib.cli import main
from lib.errors import InputError
from lib.multistage.energy import FitWeights
from lib.multistage.keypoints import KeyNet, KeyNetConfig, Keypoints
from lib.multistage.sources import labelled_keypoints
from lib.study.experiments import END_TO_END, trained_weights_path
from lib.study.methods import (
    keypoint_errors,
    predict_all,
    predict_multistage,
    tune,
    tuned_one_euro,
    tuned_pinch_thresholds,
)
from lib.study.predictions import load_or_predict
from lib.study.sequences import load_sequences
from lib.study.tables import FILTERED

NOISE_MM = {"full": 5.0, "full_temporal_loss": 1.0, "full_tenfold_temporal_loss": 0.5}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("data"), users=(44,))


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """Results go to a folder of the test, in which every end-to-end experiment has weights, if only in name."""
    monkeypatch.setattr("lib.study.results.ROOT", tmp_path)
    folder = tmp_path / "results" / "tiny"
    for name in END_TO_END:
        add_weights(folder, name)
    return folder


def add_weights(results: Path, name: str, content: str = "weights") -> None:
    path = results / "checkpoints" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{name} {content}")


@pytest.fixture
def asked(monkeypatch) -> list:
    """Networks misplace hands by noise of `NOISE_MM`; the list tells which were asked about which split."""
    asked = []

    def predicted(name, profile, folder, split="test", device="cpu"):
        asked.append((name, split))
        noise = NOISE_MM.get(name, 0.0)

        def noisy(sequences):
            rng = np.random.default_rng(0)
            return {
                (name, skeleton): [
                    replace(t, tracked_keypoints=t.tracked_keypoints + noise * rng.normal(size=(2, 1, 1, 1)) +
                            noise * rng.normal(size=t.tracked_keypoints.shape))
                    for t in tracks
                ]
                for (_, skeleton), tracks in CountingMethod()(sequences).items()
            }  # fmt: skip

        made = load_or_predict((name,), profile, folder, "made up", noisy)
        return {skeleton: predictions for (_, skeleton), predictions in made.items()}

    monkeypatch.setattr("lib.study.methods.predict", predicted)
    return asked


def test_all_methods(dataset, results, asked):
    """One-Euro is tuned on validation sequences and applied to the test split; without weights there is no baseline."""
    tables = tune("tiny", dataset)
    assert set(asked) == {
        (name, "validation")
        for name in ("full", "full_temporal_loss", "full_tenfold_temporal_loss", "full_temporal_pinch_loss")
    }
    asked.clear()
    made = predict_all("tiny", dataset)
    assert asked == [(name, "test") for name in END_TO_END]
    networks = {(name, skeleton) for name in END_TO_END for skeleton in ("known", "unknown")}
    assert made.keys() == networks | {(name, "known") for name in FILTERED}
    for name, target in FILTERED.items():
        full, smooth, aim = (
            made[method, "known"].only(protocol="separate_hand").jitter().mean for method in ("full", name, target)
        )
        assert smooth == pytest.approx(aim, rel=0.01)
        assert smooth < 0.8 * full
        search = tables["one_euro"].set_index("target").loc[target]
        chosen = search[search.chosen].min_cutoff_hz.item()
        assert tuned_one_euro("tiny", target).min_cutoff_hz == pytest.approx(chosen, rel=1e-4)  # as tables are rounded
    thresholds = tables["pinch_thresholds"]
    assert tuned_pinch_thresholds("tiny") == dict(zip(thresholds.method, thresholds.threshold_mm, strict=True))


def test_the_published_weights_are_a_method_where_they_are_brought(dataset, results, asked, monkeypatch):
    tune("tiny", dataset)
    monkeypatch.setenv("UMETRACK_WEIGHTS", "somewhere.torch")
    assert ("official", "unknown") in predict_all("tiny", dataset)
    assert str(trained_weights_path("tiny", "official")) == "somewhere.torch"


def test_the_command_prints_what_it_tuned(dataset, results, asked, capsys):
    assert main(["tune", "--profile", "tiny", "--data", str(dataset)]) == 0
    printed = capsys.readouterr().out
    assert "min_cutoff_hz" in printed
    assert "threshold_mm" in printed
    assert "sha256" not in printed


def test_nothing_tuned_names_the_command(results):
    for read, name in ((tuned_one_euro, "one_euro"), (tuned_pinch_thresholds, "pinch_thresholds")):
        with pytest.raises(InputError, match=rf"no .*{name}\.csv: run python -m lib tune --profile tiny"):
            read("tiny")


def test_tuned_with_other_weights(dataset, results, asked):
    tune("tiny", dataset)
    add_weights(results, "no_ftl", "changed")
    assert tuned_one_euro("tiny")
    add_weights(results, "full_temporal_loss", "changed")
    for read in (tuned_one_euro, tuned_pinch_thresholds, lambda profile: predict_all(profile, dataset)):
        with pytest.raises(InputError, match=r"other weights of full_temporal_loss: run python -m lib tune"):
            read("tiny")


@pytest.mark.parametrize("content", ["", "beta,min_cutoff_hz\n0,1\n", '"', "\x00\x00"])
def test_broken_tables_are_refused(results, content):
    path = results / "tables" / "one_euro.csv"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(InputError, match=r"one_euro\.csv is not what tuning writes .*: run python -m lib tune"):
        tuned_one_euro("tiny")


def test_a_table_without_rows_is_refused(dataset, results, asked):
    tune("tiny", dataset)
    path = results / "tables" / "one_euro.csv"
    pd.read_csv(path).head(0).to_csv(path, index=False)
    with pytest.raises(InputError, match="not what tuning writes"):
        tuned_one_euro("tiny")


def test_the_baseline_tracks_and_calibrates(dataset, results, monkeypatch):
    """With true keypoints in place of a network's it finds pose and scale."""
    add_weights(results, "keynet")
    monkeypatch.setattr("lib.study.methods.keypoint_source", lambda weights, device: labelled_keypoints)
    made = predict_multistage("tiny", dataset)
    assert [s.name for s in made["known"].sequences] == [s.name for s in made["unknown"].sequences]
    assert made["known"].errors().mean < 3.0  # poses jump from frame to frame
    assert made["known"].coverage().mean == 100.0
    assert all(np.isnan(s.scale) for s in made["known"].sequences)
    for sequence in made["unknown"].sequences:
        assert sequence.scale == pytest.approx(sequence.fitted_scale, rel=0.01)


def test_a_baseline_that_finds_nothing_keeps_the_generic_hand(dataset, results, monkeypatch):
    def nothing(requests):
        crops = [len(request.hand) for request in requests]
        return [Keypoints(torch.full((n, 21, 2), 48.0), torch.zeros(n, 21), torch.zeros(n, 21)) for n in crops]

    add_weights(results, "keynet")
    monkeypatch.setattr("lib.study.methods.keypoint_source", lambda weights, device: nothing)
    made = predict_multistage("tiny", dataset)
    assert made["unknown"].coverage().mean == 0.0
    assert [s.scale for s in made["unknown"].sequences] == [1.0] * len(made["unknown"].sequences)


def test_the_weights_of_the_fit_are_searched_on_validation_sequences(dataset, results, monkeypatch):
    monkeypatch.setattr("lib.study.baseline_tuning.CANDIDATES", {"temporal": (0.0, 400.0)})
    with pytest.raises(InputError, match="nothing named fit_weights can be tuned; there are one_euro, pinch_thr"):
        tune("tiny", dataset, names=("fit_weights",))
    add_weights(results, "keynet")
    monkeypatch.setattr("lib.study.methods.keypoint_source", lambda weights, device: labelled_keypoints)
    monkeypatch.setattr("lib.study.methods.load_sequences", lambda folder, split: load_sequences(folder, "test"))
    table = tune("tiny", dataset, names=("fit_weights",))["fit_weights"]
    assert table.temporal.tolist() == [FitWeights().temporal, 0.0, 400.0]  # the one in use first
    assert table.best.sum() == 1
    assert table[table.best].mpjpe_mm.item() == table.mpjpe_mm.min()
    stored = pd.read_csv(results / "tables" / "fit_weights.csv")
    assert stored.found_percent.tolist() == [100.0] * 3


def test_the_confidence_of_hands_is_measured_on_validation_sequences(dataset, results, monkeypatch):
    """A source that is equally sure of all keypoints of a frame, and less so from frame to frame."""

    def fading(requests):
        answers = labelled_keypoints(requests)
        pairs = zip(answers, requests, strict=True)
        return [replace(true, confidence=0.99**request.frame.number * true.confidence) for true, request in pairs]

    add_weights(results, "keynet")
    monkeypatch.setattr("lib.study.methods.keypoint_source", lambda weights, device: fading)
    monkeypatch.setattr("lib.study.methods.load_sequences", lambda folder, split: load_sequences(folder, "test"))
    table = tune("tiny", dataset, names=("hand_confidence",))["hand_confidence"]
    assert table.confidence.is_monotonic_increasing
    assert table.confidence.between(0.05, 1.0).all()
    frames = len(load_sequences(dataset, "test")[0].crops.views)
    median = table.set_index("below_percent").confidence[50.0]
    assert median == pytest.approx(0.99 ** (frames / 2), rel=0.1)


def test_the_baseline_needs_weights(dataset, results):
    with pytest.raises(InputError, match="run python -m lib train keynet --profile tiny"):
        predict_multistage("tiny", dataset)


def test_the_baseline_is_one_of_all_methods(dataset, results, asked, monkeypatch):
    add_weights(results, "keynet")

    def predicted(profile, folder, split="test", device="cpu"):
        made = load_or_predict(("multistage",), profile, folder, "made up", CountingMethod("multistage"))
        return {skeleton: predictions for (_, skeleton), predictions in made.items()}

    monkeypatch.setattr("lib.study.methods.predict_multistage", predicted)
    tables = tune("tiny", dataset, names=("one_euro", "pinch_thresholds"))
    assert tables["pinch_thresholds"].method.tolist() == [
        "full_temporal_loss", "full_temporal_pinch_loss", "multistage"
    ]  # fmt: skip
    assert {("multistage", "known"), ("multistage", "unknown")} <= predict_all("tiny", dataset).keys()
    add_weights(results, "keynet", "changed")
    with pytest.raises(InputError, match="other weights of keynet"):
        tuned_pinch_thresholds("tiny")


def test_keypoint_errors_are_measured_once(dataset, results, monkeypatch):
    """By the baseline itself while it tracks, else when they are asked for."""
    torch.manual_seed(0)
    for name in ("keynet", "keynet_image_only"):
        network = KeyNet(KeyNetConfig(blocks="residual", keypoint_input=name == "keynet"))
        save_network(network, results / "checkpoints" / f"{name}.safetensors")
    predict_multistage("tiny", dataset)
    other = keypoint_errors("keynet_image_only", "tiny", dataset)
    monkeypatch.setattr("lib.study.methods.track_with_errors", None)
    own = keypoint_errors("keynet", "tiny", dataset)
    again = keypoint_errors("keynet_image_only", "tiny", dataset)
    assert own.errors.shape == other.errors.shape
    assert not np.array_equal(own.errors, other.errors)
    for name, values in vars(other).items():
        np.testing.assert_array_equal(getattr(again, name), values)
    save_network(KeyNet(KeyNetConfig(blocks="residual")), results / "checkpoints" / "keynet.safetensors")
    with pytest.raises(TypeError, match="not callable"):
        keypoint_errors("keynet", "tiny", dataset)


def test_the_baseline_tracks_sequences_without_videos(dataset, results, monkeypatch):
    """Those of validation users; errors of keypoints are kept of the test split only."""
    torch.manual_seed(0)
    save_network(KeyNet(KeyNetConfig(blocks="residual")), results / "checkpoints" / "keynet.safetensors")
    sequences = [replace(s, video=None) for s in load_sequences(dataset, "test")]
    monkeypatch.setattr("lib.study.predictions.load_sequences", lambda folder, split: sequences)
    monkeypatch.setattr("lib.study.predictions.split_fingerprint", lambda folder, split: split)
    made = predict_multistage("tiny", dataset, "validation")
    assert {skeleton: len(predictions.sequences) for skeleton, predictions in made.items()} == {
        "known": len(sequences), "unknown": len(sequences)
    }  # fmt: skip
    assert not list((results / "predictions").glob("keypoints_*"))
