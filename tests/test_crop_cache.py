"""The training cache of crops: what is cut out of which part of a picture, and its files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyRecording, tiny_recording

from lib.crop_cache import CACHE_SIZE, CropSequence, crop_sequence
from lib.crops import CROP_SIZE, make_crops
from lib.errors import InputError
from lib.recordings import Recording, read_recording

MARGIN = (CACHE_SIZE - CROP_SIZE) // 2


@pytest.fixture
def tiny() -> TinyRecording:
    return tiny_recording(2)


@pytest.fixture
def recording(tiny: TinyRecording, tmp_path: Path) -> Recording:
    return read_recording(tiny.write(tmp_path))


def cached(recording: Recording, images: np.ndarray) -> CropSequence:
    return crop_sequence(
        recording, lambda frame, camera, region: images[frame, camera, region[1] : region[3], region[0] : region[2]]
    )


def test_the_middle_is_what_the_tracker_sees(recording: Recording, tiny: TinyRecording):
    crops = cached(recording, tiny.images)
    for frame in range(2):
        cameras = recording.cameras(frame)
        hands, expected = make_crops(tiny.images[frame], cameras, recording.mounting_angles, recording.hands(frame), 1)
        assert hands.tolist() == [0, 1]
        assert crops.views[frame].tolist() == [2, 2]
        middle = crops.images[frame, :, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
        np.testing.assert_allclose(middle, 255 * expected.images.numpy(), atol=1.001)
        np.testing.assert_allclose(crops.focal_px[frame], expected.focal_px, rtol=1e-6)
        np.testing.assert_allclose(
            crops.world_from_crop[frame], torch.linalg.inv(expected.camera_from_world), atol=1e-6
        )


def test_only_the_part_that_is_sampled_is_asked_for(recording: Recording, tiny: TinyRecording):
    regions = []

    def picture(frame, camera, region):
        regions.append(region)
        x0, y0, x1, y1 = region
        return tiny.images[frame, camera, y0:y1, x0:x1]

    small = crop_sequence(recording, picture)
    np.testing.assert_array_equal(small.images, cached(recording, tiny.images).images)
    assert len(regions) == small.views.sum()
    height, width = tiny.images.shape[2:]
    for x0, y0, x1, y1 in regions:
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
    assert np.mean([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in regions]) < 0.8 * width * height


def test_unlabelled_and_unseen_hands_have_no_crops(recording: Recording, tiny: TinyRecording):
    wrists = recording.world_from_wrist.clone()
    wrists[1, 1, 2, 3] = -3.0  # behind the headset
    labelled = torch.tensor([[False, True], [True, True]])
    crops = cached(replace(recording, labelled=labelled, world_from_wrist=wrists), tiny.images)
    assert crops.views.tolist() == [[0, 2], [2, 0]]
    assert not crops.images[crops.views == 0].any()
    np.testing.assert_array_equal(crops.world_from_crop[0, 0], np.tile(np.eye(4), (2, 1, 1)))


def test_a_frame_without_any_hand_is_empty(recording: Recording, tiny: TinyRecording):
    crops = cached(replace(recording, labelled=torch.zeros(2, 2, dtype=torch.bool)), tiny.images)
    assert not crops.views.any()
    assert not crops.images.any()
    assert not crops.pinch.any()


def test_files_come_back_as_they_were(recording: Recording, tiny: TinyRecording, tmp_path: Path):
    pinch = torch.tensor([[True, False], [False, True]])
    crops = cached(replace(recording, pinch=pinch), tiny.images)
    crops.save(tmp_path / "deep" / "sequence")
    loaded = CropSequence.load(tmp_path / "deep" / "sequence")
    for name in ("images", "views", "focal_px", "world_from_crop", "joint_angles", "world_from_wrist", "pinch"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(crops, name))
        assert getattr(loaded, name).dtype == getattr(crops, name).dtype
    torch.testing.assert_close(loaded.hand_model.skeleton_feature, recording.hand_model.skeleton_feature.float())
    assert isinstance(loaded.images, np.memmap)
    assert not loaded.images.flags.writeable
    assert len(loaded) == 2


@pytest.fixture
def saved(recording: Recording, tiny: TinyRecording, tmp_path: Path) -> Path:
    cached(recording, tiny.images).save(tmp_path / "sequence")
    return tmp_path / "sequence"


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("length", [None, 0, 60, -1])
def test_a_missing_or_truncated_file_is_named(saved: Path, suffix: str, length: int | None):
    path = saved.with_suffix(suffix)
    content = path.read_bytes()
    path.unlink()
    if length is not None:
        path.write_bytes(content[:length])
    with pytest.raises(InputError, match=f"{saved}.npy and .npz are not a complete sequence of crops.*render it again"):
        CropSequence.load(saved)


def test_pictures_of_another_sequence_are_refused(saved: Path):
    np.save(saved.with_suffix(".npy"), np.zeros((5, 2, 2, CACHE_SIZE, CACHE_SIZE), np.uint8))
    with pytest.raises(InputError, match=r"has shape \(5, 2, 2, 128, 128\), expected \(2, 2, 2\) pictures"):
        CropSequence.load(saved)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("views", np.zeros((2, 3), np.int64), "views is int64"),
        ("pinch", np.zeros((1, 2), bool), "pinch is bool"),
        ("joint_angles", np.zeros((2, 2, 22), np.float64), "joint_angles is float64"),
        ("focal_px", np.full((2, 2, 2), np.nan, np.float32), "focal_px holds values that are not finite"),
        ("landmark_bone_weights", np.zeros((20, 17), np.float32), r"landmark_bone_weights is float32 \(20, 17\)"),
        ("views", np.full((2, 2), 3), r"views outside 0\.\.2"),
        ("focal_px", np.zeros((2, 2, 2), np.float32), "focal lengths that are not positive"),
        ("views", np.array([[object()] * 2] * 2), "Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_cannot_be(saved: Path, name: str, value: np.ndarray, message: str):
    with np.load(saved.with_suffix(".npz")) as stored:
        arrays = dict(stored) | {name: value}
    np.savez(saved.with_suffix(".npz"), **arrays)
    with pytest.raises(InputError, match=message):
        CropSequence.load(saved)


def test_pictures_that_would_be_unpickled(saved: Path):
    np.save(saved.with_suffix(".npy"), np.array([object()]))
    with pytest.raises(InputError, match="are not a complete sequence of crops"):
        CropSequence.load(saved)


def test_arrays_that_would_fill_the_memory(saved: Path, monkeypatch):
    """A limit of 64 MB stands for the real one; the file is a thousandth of it."""
    monkeypatch.setattr("lib.files.MAX_ARRAYS", 1 << 26)
    with np.load(saved.with_suffix(".npz")) as stored:
        arrays = dict(stored) | {"views": np.zeros(1 << 24, np.int64)}
    np.savez_compressed(saved.with_suffix(".npz"), **arrays)
    assert saved.with_suffix(".npz").stat().st_size < 1 << 18
    with pytest.raises(InputError, match=rf"its arrays take \d+ bytes, expected at most {1 << 26}"):
        CropSequence.load(saved)


def test_a_git_lfs_pointer_is_named(saved: Path):
    saved.with_suffix(".npz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(InputError, match="is a Git LFS pointer"):
        CropSequence.load(saved)
