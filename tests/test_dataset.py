"""The rendered dataset: what it consists of, that it repeats to the byte, and what happens when something breaks."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from lib import files
from lib.cli import main
from lib.crop_cache import CACHE_SIZE, FRAME_STEP, CropSequence, ViewSequence
from lib.crops import CROP_SIZE, make_crops
from lib.errors import InputError
from lib.hands import INDEX_TIP, THUMB_TIP, for_hand
from lib.recordings import Recording, read_recording
from lib.rendered import dataset
from lib.rendered.dataset import (
    PROFILES,
    Profile,
    Sequence,
    SequenceKey,
    encode_gray,
    render_dataset,
    render_shard,
    sample_sequence,
    sequence_keys,
    write_crops,
    write_recording,
    write_views,
)
from lib.rendered.motion import FRAMES_PER_SECOND, sample_motion
from lib.rendered.raster import render_frame
from lib.rendered.shape import TRAIN_USERS, user_hand
from lib.study.results import ROOT
from lib.tracking import Tracker

TINY = Profile("tiny", 2, 0, 1, train_sequences=2, extra_sequences=2, test_sequences=2, frames=30)


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, hidden ones too."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    """The training split of the tiny profile, rendered by one worker."""
    folder = tmp_path_factory.mktemp("rendered")
    render_dataset(TINY, "train", folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def pinching(tmp_path_factory) -> Sequence:
    """A pinch sequence, its recording written."""
    folder = tmp_path_factory.mktemp("recording")
    sequence = sample_sequence(SequenceKey("test", 50, "pinch", 2, 30), folder)
    write_recording(sequence)
    return sequence


@pytest.fixture
def two_frames(monkeypatch, tmp_path: Path) -> Sequence:
    """A sequence of which only two frames are left to render."""
    sequence = sample_sequence(SequenceKey("train", 3, "hand_hand", 1, 30), tmp_path)
    recording = sequence.recording
    fields = ("world_from_camera", "joint_angles", "world_from_wrist", "labelled", "pinch")
    short = replace(recording, **{name: getattr(recording, name)[:2] for name in fields})
    return replace(sequence, recording=short, key=replace(sequence.key, frames=2))


# ---- the plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_no_user_and_no_seed_is_in_both_splits(profile: Profile, scale: float):
    train, test = (sequence_keys(profile, split, scale) for split in ("train", "test"))
    assert train
    assert test
    assert not {key.user for key in train} & {key.user for key in test}
    numbers = [tuple(key.generator.integers(1 << 62, size=2)) for key in train + test]
    assert len(set(numbers)) == len(numbers)
    assert len({key.path for key in train + test}) == len(numbers)


def test_a_sequence_depends_on_its_protocol_and_seed_too():
    key = SequenceKey("train", 3, "pinch", 1, 30)
    others = (key, replace(key, protocol="separate_hand"), replace(key, protocol="hand_hand"), replace(key, seed=1))
    assert len({int(other.generator.integers(1 << 62)) for other in others}) == len(others)


def test_the_reference_profile_has_the_required_size():
    train, test = (sequence_keys(PROFILES["reference"], split) for split in ("train", "test"))
    assert len(train) >= 440
    assert len({key.user for key in train}) == 44 + 132
    assert len(test) == 72
    assert len({key.user for key in test}) == 9
    assert {3 <= key.frames / FRAMES_PER_SECOND <= 5 for key in train + test} == {True}
    assert Counter(key.protocol for key in test)["occlusion"] == 9
    assert "occlusion" not in Counter(key.protocol for key in train)
    # Extra users pinch more: each has one sequence of every protocol.
    for keys in ([key for key in train if key.user in TRAIN_USERS], test):
        separate = [key for key in keys if key.path.parts[0] == "separate_hand"]
        assert sum(key.protocol == "pinch" for key in separate) / len(separate) == pytest.approx(0.25, abs=0.05)
        assert sum(key.protocol == "hand_hand" for key in keys) >= len(keys) / 3


def test_scale_keeps_the_sequences_and_adds_more_of_them():
    keys = [set(sequence_keys(PROFILES["reference"], "train", scale)) for scale in (1.0, 2.0)]
    assert keys[0] < keys[1]
    assert len(keys[1]) == 2 * len(keys[0])


# ---- the bytes ------------------------------------------------------------------------------------------------------


def test_interrupted_and_continued_by_two_workers_gives_the_same_bytes(rendered: Path, tmp_path: Path):
    last = sequence_keys(TINY, "train")[-1]
    in_the_way = (tmp_path / "crops" / last.path).with_suffix(".npz")
    in_the_way.mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        render_dataset(TINY, "train", tmp_path, workers=2)
    assert not (tmp_path / "training.json").exists()
    assert not list(tmp_path.rglob(".*"))
    in_the_way.rmdir()
    render_dataset(TINY, "train", tmp_path, workers=2)
    assert hashes(tmp_path) == hashes(rendered)
    assert len(hashes(tmp_path)) == 3 * 4 + 2


def test_a_sequence_gives_the_same_bytes_in_any_order(rendered: Path, tmp_path: Path):
    for key in reversed(sequence_keys(TINY, "train")[1:3]):
        write_views(sample_sequence(key, tmp_path / "views"))
        write_crops(sample_sequence(key, tmp_path / "crops"))
    mine, all_of_them = hashes(tmp_path), hashes(rendered)
    assert len(mine) == 6
    assert mine.items() <= all_of_them.items()


def test_a_finished_run_notices_other_files_and_renders_only_what_is_missing(rendered: Path):
    def times():
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in rendered.rglob("*.np?")}

    before, index = times(), (rendered / "training.json").read_bytes()
    changed = min(before)
    content = changed.read_bytes()
    changed.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{changed} is not what was rendered: delete it"):
        render_dataset(TINY, "train", rendered, workers=1)
    changed.unlink()
    render_dataset(TINY, "train", rendered, workers=1)
    assert changed.read_bytes() == content
    again = {changed, changed.with_suffix(".npz")}
    assert {path for path, time in times().items() if time != before[path]} == again
    assert (rendered / "training.json").read_bytes() == index


def test_parts_make_the_same_dataset(rendered: Path, tmp_path: Path):
    """Rendered in any order, and side by side; the index comes in the end."""
    for part in (2, 1, 3):
        render_shard(TINY, "train", tmp_path, workers=1, shard=(part, 3))
        assert not (tmp_path / "training.json").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.np?")}
    render_dataset(TINY, "train", tmp_path, workers=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.np?")} == before
    assert (tmp_path / "training.json").read_bytes() == (rendered / "training.json").read_bytes()
    assert hashes(tmp_path) == hashes(rendered)
    assert not list(tmp_path.glob("part_*"))


def test_the_index_says_what_there_is(rendered: Path):
    index = json.loads((rendered / "training.json").read_text())
    below = {path: sha for path, sha in hashes(rendered).items() if path.startswith(("crops", "views"))}
    assert index["sha256"] == below
    assert [SequenceKey(**key) for key in index["sequences"]] == sequence_keys(TINY, "train")
    for key in sequence_keys(TINY, "train"):
        crops = CropSequence.load(rendered / "crops" / key.path)
        assert len(crops) == TINY.frames
        torch.testing.assert_close(crops.hand_model.skeleton_feature, user_hand(key.user).skeleton_feature)
        assert len(ViewSequence.load(rendered / "views" / key.path)) == 4 * TINY.frames / FRAME_STEP


# ---- the content ----------------------------------------------------------------------------------------------------


def test_labels_come_back_as_they_were_sampled(pinching: Sequence):
    sampled = pinching.recording
    read = read_recording(sampled.path)
    close = {"rtol": 0, "atol": 1e-9}
    for name in ("mounting_angles", "world_from_camera", "joint_angles", "world_from_wrist"):
        torch.testing.assert_close(getattr(read, name), getattr(sampled, name), **close)
    for name in ("focal_px", "center_px", "distortion"):
        torch.testing.assert_close(getattr(read.camera, name), getattr(sampled.camera, name), **close)
    for name in ("skeleton_feature", "joint_limits", "landmark_rest_positions", "mesh_vertices", "mesh_bone_weights"):
        torch.testing.assert_close(getattr(read.hand_model, name), getattr(sampled.hand_model, name), **close)
    assert torch.equal(read.hand_model.mesh_triangles, sampled.hand_model.mesh_triangles)
    assert torch.equal(read.labelled, sampled.labelled)
    assert torch.equal(read.pinch, torch.from_numpy(pinching.motion.pinch))
    labels = json.loads(sampled.path.with_suffix(".json").read_text())
    assert labels["motion"] == "pinch"
    np.testing.assert_array_equal(np.array(labels["near_miss"], bool), pinching.motion.near_miss)


def test_the_video_shows_the_rendered_frames(pinching: Sequence):
    images = list(read_recording(pinching.recording.path).images())
    assert len(images) == 30
    difference = images[17].astype(int) - render_frame(pinching.scene, 17)
    assert np.abs(difference).mean() < 3
    assert abs(difference.mean()) < 0.3


def test_our_tracker_reads_the_recordings(pinching: Sequence, tiny_tracker: Tracker):
    recording = read_recording(pinching.recording.path)
    tracks = tiny_tracker.track_known(recording, recording.hand_model)
    seen = tracks.valid_tracking
    assert seen.any()
    assert not (seen & ~recording.labelled.T.numpy()).any()
    assert np.isfinite(tracks.tracked_keypoints).all()


def test_cached_crops_hold_what_the_tracker_sees(pinching: Sequence):
    recording = pinching.recording
    write_crops(pinching)
    cached = CropSequence.load(recording.path.with_suffix(""))
    margin = (CACHE_SIZE - CROP_SIZE) // 2
    for frame in (0, 13, 29):
        images, cameras = render_frame(pinching.scene, frame), recording.cameras(frame)
        hands, crops = make_crops(images, cameras, recording.mounting_angles, recording.hands(frame), 1)
        assert set(np.flatnonzero(cached.views[frame])) == set(hands.tolist())
        for index, hand in enumerate(hands.tolist()):
            views = cached.views[frame, hand]
            center = cached.images[frame, hand, :views, margin:-margin, margin:-margin]
            np.testing.assert_allclose(center, 255 * crops.images[index, :views].numpy(), atol=1.001)
            np.testing.assert_allclose(cached.focal_px[frame, hand, :views], crops.focal_px[index, :views], rtol=1e-6)
            world_from_crop = torch.linalg.inv(crops.camera_from_world[index, :views])
            np.testing.assert_allclose(cached.world_from_crop[frame, hand, :views], world_from_crop, atol=1e-5)


def tip_distances(recording: Recording) -> np.ndarray:
    """Distance of thumb and index fingertip, (frames, 2), metres."""
    world_from_wrist = for_hand(recording.world_from_wrist, torch.arange(2).expand(len(recording), 2))
    landmarks = recording.hand_model.landmarks(recording.joint_angles, world_from_wrist)
    return (landmarks[:, :, THUMB_TIP] - landmarks[:, :, INDEX_TIP]).norm(dim=-1).numpy()


def test_pinch_labels_are_distances_below_ten_millimetres():
    keys = [key for key in sequence_keys(PROFILES["reference"], "test") if key.protocol == "pinch"][::2]
    for key in keys:
        hand = user_hand(key.user).to(dtype=torch.float64)
        motion = sample_motion("pinch", hand, key.generator, key.frames)
        wrists = for_hand(torch.from_numpy(motion.world_from_wrist), torch.arange(2).expand(key.frames, 2))
        landmarks = hand.landmarks(torch.from_numpy(motion.joint_angles), wrists)
        distance = (landmarks[:, :, THUMB_TIP] - landmarks[:, :, INDEX_TIP]).norm(dim=-1).numpy()
        np.testing.assert_array_equal(motion.pinch[motion.present], distance[motion.present] < 0.010)
        assert not (motion.near_miss & motion.pinch).any()
        assert distance[motion.near_miss].max(initial=0.0) < 0.035
        assert motion.pinch.any(axis=1).mean() >= 0.1


# ---- what breaks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "failing_write"),
    [(write_recording, 1), (write_recording, 2), (write_crops, 1), (write_crops, 2), (write_views, 1)],
)
def test_a_full_disk_leaves_nothing_half_written(two_frames, monkeypatch, tmp_path: Path, write, failing_write: int):
    writes = []

    def full(temporary, target):
        writes.append(target)
        if len(writes) == failing_write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))
        os.rename(temporary, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(two_frames)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == writes[: failing_write - 1]
    assert not {".json", ".npz"} & {path.suffix for path in left}, "a sequence looks complete"


def test_a_failure_in_the_middle_of_a_video_leaves_nothing(two_frames, monkeypatch, tmp_path: Path):
    def broken(scene, frame):
        if frame == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return np.zeros((4, 480, 636), np.uint8)

    monkeypatch.setattr(dataset, "render_frame", broken)
    with pytest.raises(OSError, match="No space left"):
        write_recording(two_frames)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_disk_that_fills_up_ends_the_command(tmp_path: Path, split: str):
    """No file may grow beyond half a MB, those of the workers neither: as if the disk filled up as they are written."""
    command = [sys.executable, "-m", "lib", "render", "--profile=smoke", f"--split={split}", "--workers=1", "--output"]
    limited = ["bash", "-c", 'ulimit -f 512; exec "$@"', "bash", *command, str(tmp_path)]
    finished = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 2, finished.stderr
    assert "error: " in finished.stderr
    assert list(hashes(tmp_path)) == ["dataset.json"]


def render(folder: Path, *arguments: str) -> int:
    return main(["render", "--output", str(folder), *arguments])


def test_an_unwritable_folder(capsys, tmp_path: Path):
    (tmp_path / "file").touch()
    assert render(tmp_path / "file" / "data", "--profile=smoke") == 2
    assert f"Not a directory: '{tmp_path / 'file'}" in capsys.readouterr().err


def test_an_unknown_profile(capsys, tmp_path: Path):
    assert render(tmp_path, "--profile=huge") == 2
    assert "no profile huge; there are smoke, reference" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_folder_of_another_dataset_is_refused(capsys, tmp_path: Path):
    other = {"version": dataset.DATASET_VERSION, "seed": 7, "profile": "smoke", "frames": 30}
    (tmp_path / "dataset.json").write_text(json.dumps(other))
    assert render(tmp_path, "--profile=smoke") == 2
    message = capsys.readouterr().err
    assert str(other) in message
    assert str({**other, "seed": dataset.SEED}) in message
    assert hashes(tmp_path).keys() == {"dataset.json"}


@pytest.mark.parametrize("suffix", [".mp4", ".json"])
def test_a_truncated_recording_is_named(pinching: Sequence, weights: Path, capsys, tmp_path: Path, suffix: str):
    for source in (pinching.recording.path, pinching.recording.path.with_suffix(".json")):
        content = source.read_bytes()
        cut = len(content) // 2 if source.suffix == suffix else None
        (tmp_path / source.name).write_bytes(content[:cut])
    video = tmp_path / pinching.recording.path.name
    assert main(["track", str(video), "--weights", str(weights), "--output", str(tmp_path / "out.npz")]) == 2
    assert str(video.with_suffix(suffix)) in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


def test_a_single_view_is_encoded_as_it_is(tmp_path: Path):
    ramp = np.tile(np.arange(16, 240, 2, dtype=np.uint8), (4, 64, 1))
    encode_gray(tmp_path / "ramp.mp4", iter([ramp]))
    with av.open(str(tmp_path / "ramp.mp4")) as container:
        frame = next(container.decode(video=0))
        assert frame.color_range == 2, "full-range luma"
        assert np.abs(frame.to_ndarray()[:64].astype(int) - np.concatenate(ramp, axis=1)).max() <= 3
