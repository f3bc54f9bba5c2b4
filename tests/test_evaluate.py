"""Folders of recordings: all that can be tracked is, the rest is named, and what is there is not tracked again."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_recording

from lib.cli import main
from lib.formats.folders import RecordingName
from lib.metrics import mpjpa, mpjpe
from lib.study.evaluation import CHALLENGE_LANDMARKS, challenge_table, evaluation_table
from lib.tracking import Tracks


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three recordings of two protocols, one of which has a damaged video."""
    root = tmp_path / "raw_data" / "real"
    for protocol, user in (("separate_hand", "user_05"), ("separate_hand", "user_06"), ("hand_hand", "user_05")):
        place = root / protocol / "testing" / user
        place.mkdir(parents=True)
        tiny_recording(4).write(place)
    video = root / "hand_hand/testing/user_05/recording_00.mp4"
    video.write_bytes(video.read_bytes()[:500])
    return root


def evaluate(folder: Path, weights: Path, output: Path, *more: str) -> int:
    arguments = ["--weights", str(weights), "--output", str(output), "--workers", "1", "--device", "cpu", *more]
    return main(["evaluate", str(folder), *arguments])


def test_one_broken_recording_does_not_stop_the_rest(folder, weights, tmp_path, capsys):
    output = tmp_path / "evaluated"
    assert evaluate(folder, weights, output) == 1
    printed = capsys.readouterr()
    assert ": 3 raw_data recordings" in printed.out
    assert "1 hand_hand, 2 separate_hand" in printed.out
    assert "4 of 6 are tracked" in printed.out
    assert printed.err.count("not tracked: hand_hand/testing/user_05/recording_00") == 2
    table = pd.read_csv(output / "umetrack/paper.csv")
    assert table[["skeleton", "protocol", "recordings"]].to_numpy().tolist() == [
        ["known", "separate_hand", 2], ["unknown", "separate_hand", 2]
    ]  # fmt: skip
    assert table.mpjpe_mm_paper.tolist() == [9.4, 11.2]
    assert table.mpjpa_mm_per_frame2_official.tolist() == [3.92, 3.86]
    assert (output / "umetrack/known/separate_hand/testing/user_06/recording_00.npz").is_file()


def test_what_is_tracked_is_not_tracked_again(folder, weights, tmp_path, capsys, monkeypatch):
    shutil.rmtree(folder / "hand_hand")
    output, asked = tmp_path / "evaluated", ("--skeleton", "known")
    monkeypatch.setattr("lib.cli.evaluate.in_processes", lambda jobs, *others: {n: job() for n, job in jobs.items()})
    assert evaluate(folder, weights, output, *asked) == 0
    first = capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in output.rglob("*.npz")}
    monkeypatch.setattr("lib.cli.track.Method.track", lambda *arguments: pytest.fail("tracked again"))
    assert evaluate(folder, weights, output, *asked) == 0
    assert capsys.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.npz")} == made
    monkeypatch.undo()
    monkeypatch.setattr("lib.cli.evaluate.in_processes", lambda jobs, *others: {n: job() for n, job in jobs.items()})
    changed = folder / "separate_hand/testing/user_06/recording_00.json"
    changed.write_text(changed.read_text() + "\n")
    assert evaluate(folder, weights, output, *asked) == 0
    renewed = {path: path.stat().st_mtime_ns for path in output.rglob("*.npz")}
    assert [path.parent.name for path in made if made[path] != renewed[path]] == ["user_06"]


def test_methods_side_by_side(folder, weights, tmp_path, capsys):
    """The published network, say, is one more row."""
    shutil.rmtree(folder / "hand_hand")
    output = tmp_path / "evaluated"
    assert evaluate(folder, weights, output, "--skeleton", "known", "--official", str(weights)) == 0
    table = pd.read_csv(output / "paper.csv")
    assert table.method.tolist() == ["umetrack", "official"]
    assert table.mpjpe_mm[0] == table.mpjpe_mm[1]
    assert table.mpjpe_mm_paper.tolist() == [9.4, 9.4]
    assert evaluate(folder, tmp_path, output, "--method", "all") == 2
    assert "give those of umetrack by --weights" in capsys.readouterr().err


def test_shards_share_the_work_and_the_last_has_the_table(folder, weights, tmp_path, capsys, monkeypatch):
    shutil.rmtree(folder / "hand_hand")
    monkeypatch.setattr("lib.cli.evaluate.in_processes", lambda jobs, *others: {n: job() for n, job in jobs.items()})
    for part, tracked in (("1/2", "1 of 2 are tracked"), ("2/2", "2 of 2 are tracked")):
        assert evaluate(folder, weights, tmp_path / "out", "--skeleton", "known", "--shard", part) == 0
        assert tracked in capsys.readouterr().out


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_shard_that_cannot_be_is_refused(folder, weights, tmp_path, capsys, shard):
    with pytest.raises(SystemExit):
        evaluate(folder, weights, tmp_path / "out", "--shard", shard)
    assert "expected K/N with 1 <= K <= N" in capsys.readouterr().err


def test_nothing_to_evaluate(folder, weights, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert evaluate(tmp_path / "empty", weights, tmp_path / "out") == 2
    assert "no recordings below" in capsys.readouterr().err
    assert evaluate(folder, weights, tmp_path / "out", "--split", "training") == 2
    assert "no recordings in folders named training below" in capsys.readouterr().err
    assert evaluate(folder, tmp_path / "missing.safetensors", tmp_path / "out") == 2
    assert "missing.safetensors: give those of umetrack by --weights" in capsys.readouterr().err


def tracked(
    rng: np.random.Generator, protocol: str, user: int, found: float = 1.0
) -> tuple[RecordingName, str, Tracks]:
    true = 100 * rng.normal(size=(2, 30, 21, 3))
    wrong = true + 5 * rng.normal(size=true.shape)
    return (
        RecordingName(protocol, "testing", f"user_{user}", "recording_00"),
        "known",
        Tracks.of(wrong, true, rng.random((2, 30)) < found),
    )


def test_the_table_is_the_metrics_over_all_recordings_of_a_protocol(rng):
    cases = [tracked(rng, "hand_hand", 1), tracked(rng, "separate_hand", 1, 0.8), tracked(rng, "separate_hand", 2, 0.9)]
    table = evaluation_table("umetrack", cases)
    assert table.protocol.tolist() == ["separate_hand", "hand_hand"], "in the paper's order"
    chosen = [tracks for name, _, tracks in cases if name.protocol == "separate_hand"]
    whole = [
        np.concatenate([getattr(t, n) for t in chosen], axis=1)
        for n in ("tracked_keypoints", "gt_keypoints", "evaluated")
    ]
    assert table.mpjpe_mm[0] == pytest.approx(mpjpe(*whole), rel=1e-5)
    assert table.mpjpa_mm_per_frame2[1] == pytest.approx(
        mpjpa(cases[0][2].tracked_keypoints, cases[0][2].evaluated), rel=1e-5
    )
    assert table.tracked_percent.tolist() == pytest.approx([100 * whole[2].mean(), 100.0])
    assert (table.mpjpe_mm_low < table.mpjpe_mm)[0]


def test_the_challenge_leaves_out_wrist_and_palm(rng):
    name, skeleton, tracks = tracked(rng, "hand_hand", 1)
    assert len(CHALLENGE_LANDMARKS) == 19
    far = tracks.tracked_keypoints.copy()
    far[..., [5, 20], :] += 1000.0
    moved = Tracks.of(far, tracks.gt_keypoints, tracks.valid_tracking)
    pd.testing.assert_frame_equal(*(challenge_table([(name, skeleton, one)]) for one in (tracks, moved)))
    perfect = Tracks.of(tracks.gt_keypoints, tracks.gt_keypoints, tracks.valid_tracking)
    row = challenge_table([(name, skeleton, perfect)]).iloc[0]
    assert (row.mpjpe_19_mm, row.pck_auc_percent, row.fingertip_auc_percent) == (0.0, 99.5, 99.5)
