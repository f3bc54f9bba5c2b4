"""Many sequences side by side come out as the tracker tracks each of them; their crops are taken once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_network
from made_up_data import reindex, tiny_dataset

from lib.errors import InputError
from lib.network import UmeTrack
from lib.recordings import read_recording
from lib.rendered.shape import generic_hand
from lib.study.sequences import keep_test_crops, load_sequences, split_fingerprint
from lib.study.streams import ExtractedStreams, HandStreams, calibrate_scales, track_both
from lib.tracking import Tracker, prepare_for_inference, true_keypoints


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def changeable(dataset, tmp_path) -> Path:
    """A copy of the dataset, its crops taken."""
    load_sequences(dataset, "test", workers=1)
    return shutil.copytree(dataset, tmp_path / "copy")


@pytest.fixture(scope="module")
def network() -> UmeTrack:
    return prepare_for_inference(tiny_network())


def test_sequences_are_named_and_labelled(dataset):
    sequences = load_sequences(dataset, "test", workers=2)
    assert split_fingerprint(dataset, "test") == "tiny"
    assert [s.name for s in sequences[:3]] == [
        "hand_hand/user_44/recording_00", "hand_hand/user_45/recording_00", "occlusion/user_44/recording_01"
    ]  # fmt: skip
    assert {(s.protocol, s.motion) for s in sequences} == {
        ("hand_hand", "hand_hand"), ("occlusion", "occlusion"), ("separate_hand", "pinch"),
        ("separate_hand", "separate_hand"),
    }  # fmt: skip
    assert {s.user for s in sequences} == {"user_44", "user_45"}
    for s in sequences:
        recording = read_recording(s.video)
        assert np.argwhere(s.near_miss).tolist() == [[0, 0]]
        assert np.flatnonzero(s.occluder).tolist() == ([2, 3] if s.motion == "occlusion" else [])
        seen = s.crops.views.T > 0
        np.testing.assert_array_equal(seen, recording.labelled.T.numpy())
        np.testing.assert_allclose(s.true_keypoints()[seen], true_keypoints(recording)[seen], atol=1e-3)


def test_side_by_side_equals_one_after_the_other(dataset, network):
    """Known and unknown skeletons, sequences of several lengths, hands that are lost on the way."""
    sequences, generic = load_sequences(dataset, "test", workers=1), generic_hand().to(dtype=torch.float64)
    tracker = Tracker(network)
    known, unknown = track_both(ExtractedStreams(network, HandStreams(sequences)), generic)
    for sequence, ours_known, ours_unknown in zip(sequences, known, unknown, strict=True):
        recording = read_recording(sequence.video)
        theirs_known = tracker.track_known(recording, recording.hand_model)
        theirs_unknown = tracker.track_unknown(recording, generic)
        assert ours_unknown.scale == pytest.approx(theirs_unknown.scale, rel=1e-6)
        for ours, theirs in ((ours_known, theirs_known), (ours_unknown, theirs_unknown)):
            np.testing.assert_array_equal(ours.valid_tracking, theirs.valid_tracking)
            shown = theirs.valid_tracking
            np.testing.assert_allclose(ours.tracked_keypoints[shown], theirs.tracked_keypoints[shown], atol=2e-3)
            np.testing.assert_allclose(ours.gt_keypoints, theirs.gt_keypoints, atol=1e-3)


@pytest.mark.parametrize("samples", [1, 3])
def test_scales_are_means_of_the_first_samples(dataset, network, samples):
    sequences = load_sequences(dataset, "test", workers=1)[:3]
    scales = calibrate_scales(ExtractedStreams(network, HandStreams(sequences)), samples)
    tracker = Tracker(network)
    expected = [tracker.calibrate_scale(read_recording(s.video), generic_hand(), samples) for s in sequences]
    np.testing.assert_allclose(scales, expected, rtol=1e-6)


def test_without_two_views_there_is_no_scale(dataset, network):
    first = load_sequences(dataset, "test", workers=1)[0]
    once = replace(first, crops=replace(first.crops, views=first.crops.views.clip(max=1)))
    with pytest.raises(InputError, match="user_44/recording_00: no frame shows a labelled hand to two cameras"):
        calibrate_scales(ExtractedStreams(network, HandStreams([once])))


def test_crops_are_taken_once(changeable):
    before = load_sequences(changeable, "test", workers=1)
    for video in changeable.glob("**/*.mp4"):
        video.unlink()
    after = load_sequences(changeable, "test", workers=1)
    assert all(np.array_equal(a.crops.images, b.crops.images) for a, b in zip(before, after, strict=True))


def test_crops_are_taken_in_processes(changeable):
    shutil.rmtree(changeable / "test_crops")
    keep_test_crops(changeable, workers=2)
    for video in changeable.glob("**/*.mp4"):
        video.unlink()
    assert len(load_sequences(changeable, "test", workers=1)) == 8


def test_crops_of_other_recordings_are_not_used(changeable):
    next(changeable.glob("**/*.mp4")).unlink()
    reindex(changeable, fingerprint="another")
    with pytest.raises(InputError, match="no file"):
        load_sequences(changeable, "test", workers=1)


def test_half_a_dataset_is_refused(changeable, tmp_path):
    (changeable / "testing.json").unlink()
    with pytest.raises(InputError, match=r"no complete testing data at .*: run python -m lib render"):
        load_sequences(changeable, "test")
    with pytest.raises(InputError, match=r"no crops in .*training.json: run python -m lib render"):
        split_fingerprint(tmp_path, "validation")


def test_a_truncated_video_is_refused(changeable):
    """Although the frames that are missing hold no hands."""
    shutil.rmtree(changeable / "test_crops")
    video = next(changeable.glob("**/recording_00.mp4"))
    labels = json.loads(video.with_suffix(".json").read_text())
    for name, value in labels.items():
        if name not in ("cameras", "camera_angles", "hand_model", "sheet"):
            labels[name] = value + value[-1:]
    labels["hand_confidences"][-1] = [0.0, 0.0]
    video.with_suffix(".json").write_text(json.dumps(labels))
    with pytest.raises(InputError, match="holds 6 frames, but its json labels 7"):
        load_sequences(changeable, "test", workers=1)


def test_validation_users_are_the_last_of_the_training_split(dataset, tmp_path):
    crops = load_sequences(dataset, "test", workers=1)[0].crops
    users, files, sequences = range(20), {}, []
    for user in users:
        stem = f"crops/hand_hand/training/user_{user:02d}/recording_00"
        crops.save(tmp_path / stem)
        files |= {f"{stem}.{suffix}": "hash" for suffix in ("npy", "npz")}
        sequences.append({"user": user, "index": 0, "protocol": "hand_hand"})
    index = {"fingerprint": "tiny", "sequences": sequences, "sha256": files}
    (tmp_path / "training.json").write_text(json.dumps(index))
    held_out = load_sequences(tmp_path, "validation", workers=1)
    assert [s.user for s in held_out] == ["user_18", "user_19"]
    assert not any(s.occluder.any() or s.near_miss.any() for s in held_out)
    before = split_fingerprint(tmp_path, "validation")
    (tmp_path / "training.json").write_text(json.dumps(index | {"sha256": files | {"views/more.npz": "hash"}}))
    assert split_fingerprint(tmp_path, "validation") == before  # views are no part of what is judged
    (tmp_path / "training.json").write_text(json.dumps(index | {"sha256": files | {f"{stem}.npy": "changed"}}))
    assert split_fingerprint(tmp_path, "validation") != before
