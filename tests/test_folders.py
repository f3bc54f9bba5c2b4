"""Folders of all layouts: what they hold, how it is named, and that all of it is tracked alike."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_recording

from lib.cli import main
from lib.errors import InputError
from lib.formats.challenge_tars import write_challenge_tar
from lib.formats.cut_clips import clips_of
from lib.formats.folders import RecordingName, files_of, find_contents, find_recordings
from lib.formats.torch_data import write_shard
from lib.recordings import read_recording
from lib.tracking import true_keypoints

FRAMES = 6


@pytest.fixture
def folder(tmp_path) -> Path:
    """One recording, in all layouts."""
    place = tmp_path / "raw_data/real/hand_hand/testing/user_05"
    place.mkdir(parents=True)
    recording = read_recording(tiny_recording(FRAMES).write(place))
    (tmp_path / "clips/test_quest3").mkdir(parents=True)
    write_challenge_tar(recording, tmp_path / "clips/test_quest3/clip-000001.tar")
    write_shard(tmp_path / "torch_data/real/hand_hand/00000/testing", clips_of(recording, 3))
    return tmp_path


VIDEO = "raw_data/real/hand_hand/testing/user_05/recording_00.mp4"
TAR = "clips/test_quest3/clip-000001.tar"
SHARD = "torch_data/real/hand_hand/00000/testing"


def test_what_a_folder_holds(folder):
    contents = find_contents(folder)
    assert str(contents) == "1 raw_data recordings, 1 clips in .tar files, 1 training shards"
    clips = [f"{SHARD}/clip_{index:06d}" for index in range(4)]
    assert find_recordings(folder) == [folder / path for path in (VIDEO, TAR, *clips)]
    assert find_recordings(folder / "torch_data") == [folder / clip for clip in clips]
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"no recordings below .*empty \(nothing\)"):
        find_recordings(folder / "empty")
    with pytest.raises(InputError, match="no folder"):
        find_recordings(folder / "missing")


def test_names(folder):
    named = {path: RecordingName.of(folder / path) for path in (VIDEO, TAR, f"{SHARD}/clip_000002")}
    assert list(named.values()) == [
        RecordingName("hand_hand", "testing", "user_05", "recording_00"),
        RecordingName("quest3", "testing", "clip-000001", "clip"),
        RecordingName("hand_hand", "testing", "00000", "clip_000002"),
    ]
    for name in ("training_hand_hand", "other", "testing", "testament"):
        (folder / name).mkdir()
        (folder / name / "some.tar.gz").touch()
    assert [
        RecordingName.of(folder / name / "some.tar.gz") for name in ("training_hand_hand", "other", "testament")
    ] == [
        RecordingName("hand_hand", "training", "some", "clip"),
        RecordingName("other", "unknown", "some", "clip"),
        RecordingName("testament", "unknown", "some", "clip"),
    ]
    with pytest.raises(InputError, match="is not in the raw_data layout"):
        RecordingName.of(Path("/recording_00.mp4"))


def test_the_files_of_recordings(folder):
    assert files_of(folder / VIDEO) == [(folder / VIDEO).with_suffix(".json"), folder / VIDEO]
    assert files_of(folder / TAR) == [folder / TAR]
    shard = [f"{stem}.torch.{suffix}" for stem in ("labels", "mono") for suffix in ("bin", "idx")]
    assert files_of(folder / SHARD / "clip_000001") == [folder / SHARD / name for name in shard]


def test_a_json_without_its_video_is_found_and_named(folder):
    (folder / VIDEO).unlink()
    assert (folder / VIDEO).with_suffix(".json") in find_recordings(folder)


@pytest.mark.parametrize("missing", ["mono.torch.bin", "labels.torch.idx"])
def test_a_broken_shard_has_one_clip_that_tells(folder, missing):
    (folder / SHARD / missing).unlink()
    (clip,) = find_recordings(folder / SHARD)
    with pytest.raises(InputError, match=f"no file .*{missing}"):
        read_recording(clip)


def test_all_layouts_have_the_same_truth(folder):
    whole = true_keypoints(read_recording(folder / VIDEO))
    np.testing.assert_allclose(true_keypoints(read_recording(folder / TAR)), whole, atol=1e-3)
    for index, (hand, start) in enumerate(((0, 0), (1, 0), (0, 3), (1, 3))):
        clip = read_recording(folder / SHARD / f"clip_{index:06d}")
        true = true_keypoints(clip)
        np.testing.assert_allclose(true[hand], whole[hand, start : start + 3], atol=1e-3)
        assert np.isnan(true[1 - hand]).all()
        assert next(clip.images()).shape == (2, 128, 128)
    with pytest.raises(InputError, match=r"holds 4 clips, there is no clip_000004"):
        read_recording(folder / SHARD / "clip_000004")


def test_all_layouts_are_evaluated(folder, weights, tmp_path, capsys):
    output = tmp_path / "evaluated"
    arguments = ["--weights", str(weights), "--output", str(output), "--workers", "1", "--skeleton", "known"]
    assert main(["evaluate", str(folder), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "6 to track: 5 hand_hand, 1 quest3" in printed
    assert "6 of 6 are tracked" in printed
    table = pd.read_csv(output / "umetrack/paper.csv")
    assert table[["protocol", "recordings"]].to_numpy().tolist() == [["hand_hand", 5], ["quest3", 1]]
    (folder / SHARD / "labels.torch.bin").write_bytes(b"")
    assert main(["evaluate", str(folder), *arguments, "--split", "testing"]) == 1
    assert "labels.torch.bin holds 0 bytes, expected" in capsys.readouterr().err


def test_a_clip_of_a_shard_is_tracked_by_its_path(folder, weights, tmp_path, capsys):
    output = tmp_path / "tracks.json"
    clip = folder / SHARD / "clip_000001"
    assert main(["track", str(clip), "--weights", str(weights), "--output", str(output), "--format", "json"]) == 0
    tracked = json.loads(output.read_text())
    assert all(tracked["right"]["landmarks"])
    assert not any(tracked["left"]["landmarks"])
    assert "tracked hand instances     3 of 6" in capsys.readouterr().out
    inside = folder / SHARD / "mono.torch.bin"
    before = inside.read_bytes()
    assert main(["track", str(clip), "--weights", str(weights), "--output", str(inside)]) == 2
    assert inside.read_bytes() == before
