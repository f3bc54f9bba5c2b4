"""The error is taken apart along and across the ray, by condition, and by where it is worst."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_up_data import tiny_dataset
from made_up_predictions import tracked

from lib.files import MM
from lib.study.error_analysis import (
    conditions_figure,
    conditions_table,
    instance_errors,
    memory_table,
    parts_table,
    worst_clips,
    worst_clips_figure,
)
from lib.study.predictions import Predictions
from lib.study.sequences import load_sequences


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tiny_dataset(tmp_path_factory.mktemp("data"), motions=("separate_hand", "hand_hand"))
    return folder, load_sequences(folder, "test", workers=1)


def shifted(sequences, along: float = 0.0, across: float = 0.0, method: str = "full_temporal_loss") -> Predictions:
    """Every hand is moved by millimetres along the ray from its reference camera, and across it."""
    made = []
    for sequence in sequences:
        true = sequence.true_keypoints()
        camera = sequence.crops.world_from_crop[:, :, 0, :3, 3].swapaxes(0, 1) * MM
        ray = true.mean(axis=2) - camera
        ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
        sideways = np.cross(ray, [0.0, 0.0, 1.0])
        sideways /= np.linalg.norm(sideways, axis=-1, keepdims=True)
        found = true + (along * ray + across * sideways)[:, :, None]
        made.append(
            tracked(
                np.random.default_rng(0), sequence.name, sequence.motion, len(sequence.crops),
                tracked_keypoints=found.astype(np.float32), gt_keypoints=true.astype(np.float32),
                valid=sequence.crops.views.T > 0, views=sequence.crops.views.T,
            )
        )  # fmt: skip
    return Predictions(method, "known", tuple(made))


def test_a_shift_is_told_from_a_wrong_shape(data):
    _, sequences = data
    frames = instance_errors([shifted(sequences, along=-12.0, across=5.0)], sequences)
    np.testing.assert_allclose(frames.error_mm, 13.0, rtol=1e-3)
    np.testing.assert_allclose(frames.along_signed_mm, -12.0, rtol=1e-3)
    np.testing.assert_allclose(frames.across_mm, 5.0, rtol=1e-3)
    np.testing.assert_allclose(frames.shape_mm, 0.0, atol=1e-3)
    assert parts_table({"known": frames}).iloc[0].along_mm == pytest.approx(12.0, rel=1e-3)

    right = shifted(sequences)
    spread = [replace(s, tracked_keypoints=s.tracked_keypoints.copy()) for s in right.sequences]
    for sequence in spread:
        sequence.tracked_keypoints[:, :, 1, 0] += 21.0
        sequence.tracked_keypoints[:, :, 2, 0] -= 21.0
    frames = instance_errors([replace(right, sequences=tuple(spread))], sequences)
    np.testing.assert_allclose(frames.shape_mm, 2.0, rtol=1e-3)
    np.testing.assert_allclose(frames[["along_mm", "across_mm"]], 0.0, atol=1e-2)


def test_what_a_hand_instance_is_like(data):
    _, sequences = data
    frames = instance_errors([shifted(sequences)], sequences)
    there = set(zip(frames.sequence, frames.hand, frames.frame, strict=True))
    follows = [(name, hand, frame - 1) in there for name, hand, frame in sorted(there)]
    ordered = frames.sort_values(["sequence", "hand", "frame"])
    np.testing.assert_array_equal(ordered.speed_m_s.notna(), follows)
    one = sequences[0]
    moved = np.diff(one.true_keypoints()[0].mean(axis=1), axis=0)[0]
    chosen = frames[(frames.sequence == one.name) & (frames.hand == 0) & (frames.frame == 1)]
    assert float(chosen.speed_m_s.iloc[0]) == pytest.approx(np.linalg.norm(moved) * 30 / MM, rel=1e-3)
    camera = one.crops.world_from_crop[1, 0, 0, :3, 3]
    distance = np.linalg.norm(one.true_keypoints()[0, 1].mean(axis=0) / MM - camera)
    assert float(chosen.distance_m.iloc[0]) == pytest.approx(distance, rel=1e-4)


def test_conditions_share_the_instances_among_them(data):
    _, sequences = data
    near, far = (
        instance_errors([shifted(sequences, along=error, method=method)], sequences)
        for error, method in ((3.0, "full_temporal_loss"), (6.0, "multistage"))
    )
    table = conditions_table(pd.concat((near, far)))
    assert set(table.condition) == {"views", "distance_m", "speed_m_s", "motion", "user"}
    for (condition, method), chosen in table.groupby(["condition", "method"]):
        unknown = 100 * float(near.speed_m_s.isna().mean()) if condition == "speed_m_s" else 0.0
        assert chosen.share_percent.sum() == pytest.approx(100 - unknown)
        np.testing.assert_allclose(chosen.mpjpe_mm, 3.0 if method == "full_temporal_loss" else 6.0, rtol=1e-3)
        assert ((chosen.low <= chosen.mpjpe_mm + 1e-6) & (chosen.mpjpe_mm <= chosen.high + 1e-6)).all()
    plt.switch_backend("agg")
    figure = conditions_figure(table)
    figure.canvas.draw()
    users = next(axes for axes in figure.axes if axes.get_xlabel() == "test user")
    assert len(users.get_xticklabels()) == table[table.condition == "user"].case.nunique()
    plt.close(figure)


def test_the_worst_clips_come_first(data):
    folder, sequences = data
    right = shifted(sequences)
    wrong = [replace(s, tracked_keypoints=s.tracked_keypoints.copy()) for s in right.sequences]
    wrong[0].tracked_keypoints[1, 1] += np.float32([40.0, 0, 0])
    wrong[1].tracked_keypoints[0, 2:] += np.float32([10.0, 0, 0])
    predictions = replace(right, sequences=tuple(wrong))
    clips = worst_clips(predictions, count=3, frames=2)
    assert (clips[0].sequence, clips[0].hand, clips[0].worst_frame) == (wrong[0].name, 1, 1)
    assert clips[0].error_mm == pytest.approx(20.0, rel=1e-3)
    assert (clips[1].sequence, clips[1].hand) == (wrong[1].name, 0)
    assert [clip.error_mm for clip in clips] == sorted((clip.error_mm for clip in clips), reverse=True)
    plt.switch_backend("agg")
    figure = worst_clips_figure(predictions, clips, folder, columns=2)
    assert len([axes for axes in figure.axes if axes.images]) == 3
    plt.close(figure)


def test_what_a_memory_is_worth_is_a_paired_difference():
    def made(error: float) -> Predictions:
        rng = np.random.default_rng(1)
        true = rng.normal(0, 30, (2, 10, 21, 3)).astype(np.float32)
        shift = np.float32([error, 0, 0])
        sequences = [
            tracked(
                rng, f"{protocol}/user_44/recording_0{index}", protocol, 10,
                tracked_keypoints=true + shift, gt_keypoints=true, valid=np.ones((2, 10), bool),
                occluder=np.full(10, protocol == "occlusion"),
            )
            for protocol in ("separate_hand", "occlusion") for index in range(3)
        ]  # fmt: skip
        return Predictions("full", "known", tuple(sequences))

    table = memory_table(made(10.0), made(12.0))
    assert set(table.method) == {"full"}
    np.testing.assert_allclose(table.with_memory[:2], 10.0, rtol=1e-5)
    np.testing.assert_allclose(table.without_memory[:2], 12.0, rtol=1e-5)
    np.testing.assert_allclose(table[["difference", "low", "high"]][:2], -2.0, rtol=1e-4)
    np.testing.assert_allclose(table.difference[2], 0.0, atol=1e-4)
