"""Sequences are corrupted as their conditions say, both methods run on them, and a network can be made to forget."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from conftest import run_here, tiny_network
from made_up_data import tiny_dataset

from lib.checkpoints import save_network
from lib.multistage.keypoints import KeyNet, KeyNetConfig
from lib.multistage.sources import labelled_keypoints
from lib.study.robustness import (
    BLUR_PX,
    CORRUPTIONS,
    MISMEASURED,
    NOISE,
    TURNED_DEGREES,
    blurred,
    end_to_end,
    miscalibrated,
    multistage,
    noisy,
    robustness_table,
    seen_once,
    track_cached,
)
from lib.study.sequences import load_sequences
from lib.study.streams import ExtractedStreams, HandStreams, track_streams
from lib.tracking import prepare_for_inference


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    return load_sequences(tiny_dataset(tmp_path_factory.mktemp("data"), motions=("separate_hand",)), "test", workers=1)


def test_pictures_are_corrupted_and_labels_are_not(sequences, rng):
    crops = sequences[0].crops
    true = crops.images.astype(float)
    middle = (true > 60) & (true < 195)  # where no noise is cut off
    assert (noisy(crops, rng).images - true)[middle].std() == pytest.approx(NOISE, rel=0.02)
    sharpness = [
        np.abs(np.diff(images.astype(float), axis=-1)).mean() for images in (crops.images, blurred(crops, rng).images)
    ]
    assert BLUR_PX > 1
    assert sharpness[1] < 0.8 * sharpness[0]
    for corrupted in (noisy(crops, rng), blurred(crops, rng)):
        assert corrupted.images.dtype == np.uint8
        np.testing.assert_array_equal(corrupted.world_from_crop, crops.world_from_crop)


def test_only_the_second_camera_turns_and_stays_where_it_is(sequences, rng):
    crops = sequences[0].crops
    before, after = crops.world_from_crop, miscalibrated(crops, rng).world_from_crop
    np.testing.assert_array_equal(after[:, :, 0], before[:, :, 0])
    np.testing.assert_array_equal(after[..., :3, 3], before[..., :3, 3])
    turn = after[:, :, 1, :3, :3] @ before[:, :, 1, :3, :3].swapaxes(-1, -2)
    angle = np.arccos((np.trace(turn, axis1=-2, axis2=-1) - 1) / 2)
    np.testing.assert_allclose(np.rad2deg(angle), TURNED_DEGREES, rtol=0.05)
    assert np.ptp(turn, axis=0).max() < 1e-5
    assert seen_once(crops, rng).views.max() == 1


def test_true_keypoints_fail_with_a_wrong_skeleton(sequences, monkeypatch):
    """A fit of keypoints that are true in every crop does not look at pictures: only the skeleton can mislead it."""
    monkeypatch.setattr("lib.study.robustness.in_processes", run_here)
    fit = partial(track_cached, labelled_keypoints)
    table = robustness_table(sequences, {"fit": fit}).set_index("condition")
    assert list(table.index) == list(CORRUPTIONS)
    error = dict(zip(("rendered", "noise", "blur", "camera", "skeleton", "one"), table.mpjpe_mm, strict=True))
    assert error["noise"] == error["blur"] == error["rendered"]
    assert max(error[name] for name in error if name != "skeleton") < 1.0
    assert error["skeleton"] > 3.0
    assert MISMEASURED != 1
    assert (table.low <= table.mpjpe_mm).all()
    assert (table.mpjpe_mm <= table.high).all()


def test_without_memory_every_frame_starts_afresh(sequences):
    models = [sequence.crops.hand_model for sequence in sequences]
    plain = tiny_network()
    torch.nn.init.normal_(plain.temporal[0].weight)
    network = prepare_for_inference(plain)
    streams = HandStreams(sequences)
    remembering = track_streams(ExtractedStreams(network, streams), models)[0][0].tracked_keypoints
    frame = next(f for f in range(2, streams.frames) if (streams.views[f - 1 : f + 1] > 0).all())
    forgetting = track_streams(ExtractedStreams(network, streams), models, memory=False)[0][0].tracked_keypoints
    first = forgetting[:, 0]
    np.testing.assert_array_equal(first, remembering[:, 0])
    assert np.abs(forgetting[:, frame] - remembering[:, frame]).max() > 1.0


def test_methods_are_weights_that_processes_load(sequences, tmp_path):
    save_network(tiny_network(), tmp_path / "network.safetensors")
    torch.manual_seed(0)
    save_network(KeyNet(KeyNetConfig(blocks="residual")), tmp_path / "keynet.safetensors")
    models = [sequence.crops.hand_model for sequence in sequences]
    for method, name in ((end_to_end, "network"), (multistage, "keynet")):
        track_them = pickle.loads(pickle.dumps(method(tmp_path / f"{name}.safetensors")))
        assert len(track_them(sequences, models)) == len(sequences)
