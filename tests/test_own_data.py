"""Data of one's own: what a folder offers, its import as a training cache, and its export in other layouts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_recording
from test_folders import FRAMES

from lib.cli import main
from lib.crop_cache import CropSequence
from lib.errors import InputError
from lib.formats.folders import find_contents, find_recordings
from lib.formats.torch_data import Shard
from lib.recordings import read_recording
from lib.study import experiments, own_data
from lib.study.experiments import EXPERIMENTS, configuration, load_clips, load_views
from lib.study.own_data import can_be_trained, import_training, missing, read_own, survey
from lib.study.sequences import crops_of_recording
from lib.tracking import true_keypoints


@pytest.fixture
def folder(tmp_path) -> Path:
    """Recordings of two users to train on and of one to test on."""
    for split, user in (("training", 1), ("training", 2), ("testing", 3)):
        place = tmp_path / "mine/raw_data/real/hand_hand" / split / f"user_{user:02d}"
        place.mkdir(parents=True)
        tiny_recording(FRAMES).write(place)
    return tmp_path / "mine"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A project of its own, whose jobs run in this process."""
    for module in (own_data, experiments):
        monkeypatch.setattr(module, "ROOT", tmp_path / "project")
    for module in ("lib.study.own_data", "lib.cli.own_data"):
        monkeypatch.setattr(f"{module}.in_processes", lambda jobs, *others: {n: job() for n, job in jobs.items()})
    return tmp_path / "project"


def test_what_a_folder_offers(folder):
    offered = survey(folder)
    assert offered[["layout", "protocol", "split", "recordings", "cameras", "size"]].to_numpy().tolist() == [
        ["raw_data", "hand_hand", "testing", 1, 4, "64x48"],
        ["raw_data", "hand_hand", "training", 2, 4, "64x48"],
    ]
    assert list(missing(offered)) == ["pinch"]


def without(*names: str):
    def change(labels: dict) -> None:
        for name in names:
            del labels[name]

    return change


def one_camera(labels: dict) -> None:
    labels["cameras"], labels["camera_angles"] = labels["cameras"][1:2], labels["camera_angles"][1:2]
    labels["camera_to_world_transforms"] = [poses[1:2] for poses in labels["camera_to_world_transforms"]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("hand_model"), {"hand_model"}),
        (without("joint_angles", "wrist_transforms", "hand_confidences"), {"labels"}),
        (lambda labels: labels.update(pinch=[[0, 0]] * FRAMES), set()),
        (one_camera, {"two cameras"}),
        (lambda labels: labels.update(cameras=[]), set()),
    ],
)
def test_what_is_missing(tmp_path, change, expected, capsys):
    place = tmp_path / "raw_data/real/hand_hand/testing/user_01"
    place.mkdir(parents=True)
    video = tiny_recording(FRAMES).write(place)
    labels = json.loads(video.with_suffix(".json").read_text())
    change(labels)
    video.with_suffix(".json").write_text(json.dumps(labels))
    lacks = set(missing(survey(tmp_path)))
    assert lacks == expected | {"training"} | (set() if "pinch" in labels or not labels["cameras"] else {"pinch"})
    assert main(["survey", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(f"no {name.replace('_', ' ')}: " in printed for name in lacks)
    assert ("expected 1 to 8 cameras, got 0" in printed) == (labels["cameras"] == [])


def test_an_imported_folder_is_trained_from(folder, root):
    assert import_training(folder, "mine", 1) == {}
    stem = root / "data/mine/crops/hand_hand/training/user_01/recording_00"
    expected = crops_of_recording(read_recording(next(folder.rglob("training/user_01/*.mp4"))))
    np.testing.assert_array_equal(CropSequence.load(stem).images, expected.images)
    data = load_clips(root / "data/mine", "cpu")
    assert len(data.train.clips(3)) == len(data.validation.clips(3)) == 2 * (FRAMES - 2)
    assert configuration("full", "mine") == configuration("full", "reference")
    own = read_own(root / "data/mine")
    possible = [name for name, config in EXPERIMENTS.items() if can_be_trained(config, own)]
    assert not own["views"], "DetNet does not learn from views of 64 columns"
    assert "detnet" not in possible
    assert "full_temporal_loss" in possible
    assert "full_temporal_pinch_loss" not in possible
    with pytest.raises(InputError, match="no views"):
        load_views(root / "data/mine", "cpu")
    with pytest.raises(InputError, match=r"no profile other; there are smoke, reference and imported folders"):
        configuration("full", "other")


def test_what_is_imported_is_not_imported_again(folder, root, monkeypatch, capsys):
    broken = next(folder.rglob("training/user_02/*.mp4"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:600])
    assert main(["import", str(folder), "--name", "mine"]) == 1
    printed = capsys.readouterr()
    assert "not imported: " in printed.err
    assert "user_02" in printed.err
    broken.write_bytes(whole)
    made = (root / "data/mine/crops/hand_hand/training/user_01/recording_00.npz").stat().st_mtime_ns
    assert main(["import", str(folder), "--name", "mine"]) == 0
    assert (root / "data/mine/crops/hand_hand/training/user_01/recording_00.npz").stat().st_mtime_ns == made
    assert len(load_clips(root / "data/mine", "cpu").train.clips(3)) == 2 * (FRAMES - 2)


def test_shards_are_trained_from_where_they_are(folder, root, tmp_path, capsys):
    shards = tmp_path / "shards"
    export = ["export", str(folder), "--format", "torch_data", "--frames", "3", "--output", str(shards)]
    assert main(export) == 0
    assert "3 of 3 are written" in capsys.readouterr().out
    assert import_training(shards, "shards", 1) == {}
    data = load_clips(root / "data/shards", "cpu")
    assert [shard.folder.parts[-3:] for shard, _ in data.train.stored[:1]] == [("hand_hand", "00001", "training")]
    assert [shard.folder.parts[-3:] for shard, _ in data.validation.stored[:1]] == [("hand_hand", "00002", "training")]
    again = load_clips(root / "data/shards", "cpu")
    assert again.fingerprint == data.fingerprint
    shutil.rmtree(shards / "hand_hand/00001/training")
    assert main(export) == 0
    (shards / "hand_hand/00002/training/labels.torch.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"labels\.torch\.bin holds 0 bytes"):
        load_clips(root / "data/shards", "cpu")


@pytest.mark.parametrize("labels", [True, False])
def test_export_as_challenge_tars(folder, root, tmp_path, capsys, labels):
    output = tmp_path / "tars"
    arguments = ["export", str(folder), "--format", "challenge", "--output", str(output)]
    assert main(arguments + ([] if labels else ["--without-labels"])) == 0
    tars = find_recordings(output)
    assert [path.relative_to(output).as_posix() for path in tars] == [
        "testing_hand_hand/user_03_recording_00.tar",
        "training_hand_hand/user_01_recording_00.tar",
        "training_hand_hand/user_02_recording_00.tar",
    ]
    original, written = (read_recording(p) for p in (next(folder.rglob("testing/*/*.mp4")), tars[0]))
    assert bool(written.labelled.any()) == labels
    if labels:
        np.testing.assert_allclose(true_keypoints(written), true_keypoints(original), atol=1e-3)
    assert len(list(written.images())) == FRAMES
    before = {path: path.stat().st_mtime_ns for path in tars}
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in tars} == before


def test_a_training_cache_is_exported(folder, root, tmp_path):
    import_training(folder, "mine", 1)
    arguments = ["--format", "torch_data", "--frames", "3", "--output", str(tmp_path / "shards")]
    assert main(["export", str(root / "data/mine/crops"), *arguments]) == 0
    (_, shard) = find_contents(tmp_path / "shards").shards
    assert shard == tmp_path / "shards/hand_hand/00002/training"
    assert len(Shard(shard)) == 2 * FRAMES // 3
    assert main(["export", str(folder), *arguments[:-1], str(tmp_path / "others")]) == 0
    one, other = (Shard(tmp_path / name / "hand_hand/00001/training")[0] for name in ("shards", "others"))
    assert np.abs(one.images.astype(int) - other.images).max() <= 1


def test_parts_of_an_export(folder, root, tmp_path, capsys):
    arguments = ["export", str(folder), "--format", "challenge", "--output", str(tmp_path / "tars"), "--shard"]
    assert main([*arguments, "1/2"]) == 0
    assert "2 of 2 are written" in capsys.readouterr().out
    assert main([*arguments, "2/2"]) == 0
    assert len(find_recordings(tmp_path / "tars")) == 3


def test_what_cannot_be_imported(folder, root, tmp_path, capsys):
    assert main(["import", str(folder), "--name", "reference"]) == 2
    assert "reference is the name of a dataset of the study" in capsys.readouterr().err
    shutil.rmtree(folder / "raw_data/real/hand_hand/training")
    assert main(["import", str(folder)]) == 2
    assert "holds nothing to train on" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["survey", str(tmp_path / "empty")]) == 2
    assert "holds no recordings, clips" in capsys.readouterr().err
    assert not (root / "data/mine").exists()
