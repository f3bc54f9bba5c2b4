"""Figures show what they are given, and say what they show."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_up_data import tiny_dataset
from made_up_predictions import FRAMES, PINCHED, made_up, of, pinching, study, tracked

from lib.hands import INDEX_TIP
from lib.metrics import PCK_THRESHOLDS_MM
from lib.recordings import read_recording
from lib.study.experiments import END_TO_END
from lib.study.figures.plots import (
    METHOD_COLORS,
    METHOD_NAMES,
    error_spectrum,
    jitter_figure,
    joint_error_figure,
    pck_figure,
    pinch_distance_figure,
    precision_recall_figure,
    scale_figure,
    training_figure,
)
from lib.study.figures.qualitative import occlusion_figure, picture_of, qualitative_figure, with_hands, with_truth
from lib.study.figures.style import use_style
from lib.study.predictions import Predictions
from lib.study.sequences import load_sequences
from lib.study.tables import BASELINE, METHODS


@pytest.fixture(autouse=True)
def drawn(tmp_path):
    """Every figure of a test is drawn to the end, and closed."""
    use_style()
    plt.switch_backend("agg")
    yield
    for number in plt.get_fignums():
        plt.figure(number).savefig(tmp_path / "figure.svg")
    plt.close("all")


def lines(axes) -> dict:
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_every_method_has_a_name_and_a_color():
    assert METHOD_NAMES.keys() == METHOD_COLORS.keys() == {*END_TO_END, "full_one_euro", BASELINE, "official"}


def test_scales_stand_over_those_that_fit():
    figure = scale_figure([study()[method, "unknown"] for method in METHODS])
    drawn = lines(figure.axes[0])
    for method in METHODS:
        line = drawn[METHOD_NAMES[method]]
        np.testing.assert_allclose(line.get_xdata(), 1.1, atol=0.01)
        np.testing.assert_array_equal(line.get_ydata(), 1.0)


def test_the_baseline_may_be_missing_from_the_curves():
    predictions = {case: p for case, p in study().items() if case[0] != "multistage"}
    assert len(lines(pck_figure(predictions).axes[0])) == 2 * (len(METHODS) - 1)


def test_pck_curves_carry_their_area():
    predictions = study(multistage=made_up(10.0, 0.0, unknown=15.0, spread=0.0))
    separate, _ = pck_figure(predictions).axes
    drawn = lines(separate)
    assert [label.rsplit(",", 1)[1] for label in drawn][:2] == [" 79.5", " 49.5"]
    curve = drawn["multi-stage (K), 79.5"].get_ydata()
    np.testing.assert_array_equal(curve, 100 * (PCK_THRESHOLDS_MM > 10))
    assert len(drawn) == 2 * len(METHODS)


def test_training_curves():
    log = pd.DataFrame({"step": np.arange(100, 1100, 100), "known_mpjpe_mm": np.linspace(50, 20, 10)})
    log["validation_known_mpjpe_mm"] = [np.nan] * 4 + [30.0] + [np.nan] * 4 + [25.0]
    log["train_known_mpjpe_mm"] = log.validation_known_mpjpe_mm - 5.0
    figure = training_figure(
        {"full": log, "full_seed1": log, "no_ftl": log + 90.0, "no_occluders": log}, second_phase=600
    )
    assert lines(figure.axes[0]).keys() == {"full", "no FTL", "no_occluders"}
    assert len(figure.axes[0].get_lines()) == 7  # training and validation users of three runs, where a phase begins
    line = lines(figure.axes[0])["full"]
    np.testing.assert_allclose(line.get_xdata(), [500, 1000])
    np.testing.assert_allclose(line.get_ydata(), [30.0, 25.0])
    assert line.get_linewidth() > figure.axes[0].get_lines()[0].get_linewidth()
    np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_ydata(), [25.0, 20.0])
    np.testing.assert_allclose(lines(figure.axes[1])["full"].get_ydata(), [25.0])
    low, high = figure.axes[1].get_ylim()
    assert low == pytest.approx(19.0)
    assert high == pytest.approx(26.25)  # not stretched by the one that is far off


def test_pinch_distance_breaks_where_the_hand_is_lost(rng):
    sequence = pinching(rng, np.where(PINCHED, 4.0, 40.0))
    sequence.valid[0, 15] = False
    predictions = Predictions("full", "known", (sequence,))
    drawn = lines(pinch_distance_figure([predictions], sequence.name, hand=0).axes[0])
    distance = drawn["full"].get_ydata()
    assert np.isnan(distance).nonzero()[0].tolist() == [15]
    np.testing.assert_allclose(distance[PINCHED], 4.0)
    np.testing.assert_allclose(drawn["ground truth"].get_ydata()[PINCHED], 5.0)


def test_precision_recall_marks_the_threshold(rng):
    predictions = Predictions("full", "known", (pinching(rng, np.where(PINCHED, 8.0, 40.0)),))
    (axes,) = precision_recall_figure([predictions]).axes
    mark = axes.get_lines()[1]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (100.0, 100.0)


def test_spectrum_of_a_tremor(rng):
    """An error of 6 Hz along one axis: all power there, as much as its variance."""
    sequence = tracked(rng, frames=90, valid=np.ones((2, 90), bool))
    wave = 2.0 * np.sin(2 * np.pi * 6 * np.arange(90) / 30)
    found = sequence.gt_keypoints.copy()
    found[..., 0] += wave[:, None].astype(np.float32)
    frequency, power = error_spectrum(
        of(tracked(rng, frames=90, tracked_keypoints=found, gt_keypoints=sequence.gt_keypoints, valid=sequence.valid))
    )
    assert frequency[power.argmax()] == 6.0
    assert np.trapezoid(power, frequency) == pytest.approx(wave.var(), rel=0.01)


def test_jitter_figure(rng):
    sequence = tracked(rng, frames=40, valid=np.ones((2, 40), bool))
    noise = rng.normal(size=sequence.gt_keypoints.shape).astype(np.float32)
    full, filtered = (
        Predictions(name, "known", (replace(sequence, tracked_keypoints=sequence.gt_keypoints + size * noise),))
        for name, size in (("full", 5), ("full_one_euro", 10))
    )
    absolute, relative = jitter_figure(full, [filtered]).axes
    assert list(lines(absolute)) == ["full"]
    assert list(lines(relative)) == ["full", "full, One-Euro"]
    np.testing.assert_allclose(lines(relative)["full, One-Euro"].get_ydata(), 400.0, rtol=1e-3)


def test_error_of_each_joint_stands_beside_its_name(rng):
    sequence = pinching(rng, np.full(FRAMES, 30.0))
    found = sequence.gt_keypoints.copy()
    found[:, :, INDEX_TIP, 1] += 7.0
    predictions = Predictions(
        "full", "known", (tracked(rng, frames=FRAMES, tracked_keypoints=found, gt_keypoints=sequence.gt_keypoints),)
    )
    (axes,) = joint_error_figure([predictions]).axes
    line = lines(axes)["full"]
    at = {label.get_text(): tick for label, tick in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)}
    assert line.get_xdata()[line.get_ydata() == at["index tip"]] == pytest.approx([7.0])
    assert line.get_xdata().sum() == pytest.approx(7.0)


@pytest.fixture(scope="module")
def on_tiny_data(tmp_path_factory):
    """A dataset, and predictions by which every hand is where it is; 20 mm off behind occluders without the module."""
    folder = tiny_dataset(tmp_path_factory.mktemp("data"), motions=("separate_hand", "hand_hand", "occlusion"))
    rng, made = np.random.default_rng(0), {}
    for method, error in (("full_temporal_loss", 0.0), ("no_temporal_temporal_loss", 20.0)):
        sequences = []
        for s in load_sequences(folder, "test", workers=1):
            true = s.true_keypoints().astype(np.float32)
            found = true + error * s.occluder[:, None, None].astype(np.float32) * np.float32([1, 0, 0])
            valid = s.crops.views.T > 0
            sequences.append(
                tracked(
                    rng,
                    s.name,
                    s.motion,
                    len(s.crops),
                    tracked_keypoints=found,
                    gt_keypoints=true,
                    valid=valid,
                    occluder=s.occluder,
                )
            )
        made[method, "known"] = Predictions(method, "known", tuple(sequences))
    return folder, made


def test_occlusion_figure(on_tiny_data):
    folder, made = on_tiny_data
    figure = occlusion_figure(made, folder)
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == 10
    example, mean = figure.axes[-2:]
    with_module, without = (line.get_ydata() for line in example.get_lines()[:2])
    np.testing.assert_allclose(with_module, 0.0, atol=1e-4)
    np.testing.assert_allclose(without[[2, 3]], 20.0, rtol=1e-4)
    assert mean.get_title() == "mean of 2 recordings"
    around = mean.get_lines()[1]
    assert around.get_ydata()[around.get_xdata() == 0] == pytest.approx([20.0], rel=1e-4)


def test_pictures_show_the_hand_in_the_middle(on_tiny_data):
    folder, made = on_tiny_data
    sequence = made["full_temporal_loss", "known"].sequences[0]
    recording = read_recording(next(folder.glob(f"**/{sequence.protocol}/testing/{sequence.user}/*.mp4")))
    picture, camera = picture_of(recording, next(recording.images()), sequence, frame=0, hand=1)
    pixels = camera.project(camera.world_from_camera.new_tensor(sequence.gt_keypoints[1, 0] / 1000)).numpy()
    assert np.abs(pixels - 119.5).max() == pytest.approx(0.5 * 119.5, rel=0.01)
    changed = (with_hands(picture, camera, sequence, 0) != picture[..., None]).any(axis=-1)
    x, y = pixels.round().astype(int).T
    assert changed[y, x].all()
    assert changed.mean() < 0.3
    beside = replace(sequence, tracked_keypoints=sequence.tracked_keypoints + np.float32([0, 0, 60]))
    green = with_truth(picture, camera, beside, 0, hand=1, color="#E69F00")[y, x].astype(int)
    assert np.median(green[:, 1] - green[:, 0]) > 100


def test_qualitative_figure(on_tiny_data):
    folder, made = on_tiny_data
    figure = qualitative_figure(made["full_temporal_loss", "known"], folder, columns=3)
    assert len(figure.axes) == 12
    for above, below in ((figure.axes[k], figure.axes[k + 3]) for k in (0, 1, 2, 6, 7, 8)):
        assert above.images[0].get_array().shape == (240, 240, 3)
        assert below.images[0].get_array().shape == (240, 240)
