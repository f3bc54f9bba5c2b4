"""Tracked hands in every form they are written in: poses, landmarks and hand come back."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_angles, random_poses, tiny_recording
from scipy.spatial.transform import Rotation

from lib.errors import InputError
from lib.files import MM
from lib.formats.tracked_files import write_tracks
from lib.hands import HAND_NAMES, RIGHT, HandPoses, for_hand
from lib.recordings import Recording, read_recording
from lib.tracking import Tracks, read_tracks, true_keypoints

FRAMES = 4


@pytest.fixture
def recording(tmp_path) -> Recording:
    return read_recording(tiny_recording(FRAMES).write(tmp_path))


@pytest.fixture
def tracks(recording, rng) -> Tracks:
    """Random poses of a hand that is not the recording's; the right one is lost in frame 2."""
    model = recording.hand_model.scaled(1.1)
    poses = HandPoses.untracked(model, FRAMES)
    for frame in range(FRAMES):
        hands = torch.tensor([0] if frame == 2 else [0, 1])
        angles, wrists = random_angles(rng, model, len(hands)), random_poses(rng, len(hands))
        poses.put(frame, hands, angles, wrists, torch.full((len(hands),), 0.5 + 0.1 * frame))
    return replace(Tracks.of_poses(poses, true_keypoints(recording)), scale=1.1)


def test_landmarks_are_those_of_the_poses(tracks):
    assert tracks.valid_tracking.tolist() == [[True] * 4, [True, True, False, True]]
    poses = tracks.poses
    for hand, frame in np.argwhere(tracks.valid_tracking).tolist():
        posed = poses.model.landmarks(
            poses.joint_angles[hand, frame], for_hand(poses.world_from_wrist[hand, frame], hand)
        )
        np.testing.assert_allclose(tracks.tracked_keypoints[hand, frame], posed * MM, atol=1e-9)


def test_a_pose_that_is_not_finite_is_none(hand):
    poses = HandPoses.untracked(hand, 1)
    wrists = torch.eye(4).repeat(2, 1, 1)
    wrists[RIGHT, 0, 3] = torch.nan
    poses.put(0, torch.tensor([0, 1]), torch.zeros(2, 22), wrists)
    assert poses.confidence.tolist() == [[1.0], [0.0]]
    assert poses.world_from_wrist.isfinite().all()


def test_an_npz_comes_back(recording, tracks, tmp_path):
    write_tracks(tracks, recording, tmp_path / "tracks.npz")
    read = read_tracks(tmp_path / "tracks.npz")
    for name in ("tracked_keypoints", "gt_keypoints", "valid_tracking", "labelled"):
        np.testing.assert_array_equal(getattr(read, name), getattr(tracks, name))
    assert read.scale == tracks.scale
    torch.testing.assert_close(read.poses.joint_angles, tracks.poses.joint_angles)
    torch.testing.assert_close(read.poses.world_from_wrist, tracks.poses.world_from_wrist)
    np.testing.assert_array_equal(read.poses.confidence, np.where(tracks.valid_tracking, tracks.poses.confidence, 0.0))
    with np.load(tmp_path / "tracks.npz", allow_pickle=False) as stored:
        np.testing.assert_allclose(stored["timestamps"], np.arange(FRAMES) / 30)
        np.testing.assert_allclose(
            stored["world_from_wrist"][0, 1, :3, 3], tracks.poses.world_from_wrist[0, 1, :3, 3] * MM
        )


def test_the_mesh_is_posed(tracks):
    """The landmarks lie within the hand, so near its mesh."""
    for hand in (0, 1):
        vertices, triangles = tracks.poses.mesh(hand, 0)
        assert triangles.max() < len(vertices)
        landmarks = torch.from_numpy(tracks.tracked_keypoints[hand, 0]) / MM
        assert torch.cdist(landmarks, vertices).amin(dim=1).max() < 0.03
        a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
        volume = (a * torch.linalg.cross(b, c)).sum() / 6
        assert 1e-5 < volume < 1e-3, "outward winding, a hand's volume in m³"


def test_json_has_null_where_a_hand_is_lost(recording, tracks, tmp_path):
    write_tracks(tracks, recording, tmp_path / "tracks.json", "json")
    content = json.loads((tmp_path / "tracks.json").read_text())
    assert content.keys() == {"timestamps", "hand_model", "scale", "left", "right"}
    for hand, name in enumerate(HAND_NAMES):
        for field, expected in (("landmarks", tracks.tracked_keypoints), ("joint_angles", tracks.poses.joint_angles)):
            for frame, values in enumerate(content[name][field]):
                if tracks.valid_tracking[hand, frame]:
                    np.testing.assert_allclose(values, expected[hand, frame], atol=1e-9)
                else:
                    assert values is None


def test_csv_has_a_row_for_each_tracked_hand(recording, tracks, tmp_path):
    write_tracks(tracks, recording, tmp_path / "tracks.csv", "csv")
    with (tmp_path / "tracks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["frame"]), row["hand"]) for row in rows] == [
        (frame, HAND_NAMES[hand]) for frame in range(FRAMES) for hand in (0, 1) if tracks.valid_tracking[hand, frame]
    ]
    for row in rows:
        place = HAND_NAMES.index(row["hand"]), int(row["frame"])
        tip = [float(row[f"index_tip_{axis}"]) for axis in "xyz"]
        np.testing.assert_allclose(tip, tracks.tracked_keypoints[place][1], atol=1e-5)
        quaternion = [float(row[f"wrist_q{part}"]) for part in "wxyz"]
        rotation = Rotation.from_quat(quaternion, scalar_first=True).as_matrix()
        np.testing.assert_allclose(rotation, tracks.poses.world_from_wrist[place][:3, :3], atol=1e-5)


def test_raw_data_is_read_back_as_labels(recording, tracks, tmp_path):
    folder = tmp_path / "tracked"
    folder.mkdir()
    shutil.copy(recording.path, folder)
    near = replace(tracks.poses, world_from_wrist=recording.world_from_wrist.transpose(0, 1).clone())
    tracks = Tracks.of_poses(near, true_keypoints(recording))
    write_tracks(tracks, recording, folder / "recording_00.json", "raw_data")
    read = read_recording(folder / "recording_00.mp4")
    np.testing.assert_array_equal(read.labelled.T, tracks.valid_tracking)
    expected = np.where(tracks.valid_tracking[..., None, None], tracks.tracked_keypoints, np.nan)
    np.testing.assert_allclose(true_keypoints(read), expected, atol=1e-6)


@pytest.mark.parametrize("broken", ["missing", "truncated", "without poses"])
def test_what_is_no_file_of_tracks_is_refused(recording, tracks, tmp_path, broken):
    path = tmp_path / "tracks.npz"
    if broken != "missing":
        (replace(tracks, poses=None) if broken == "without poses" else tracks).save(path, 30.0)
    if broken == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"tracks\.npz is not a file of tracked hands with their poses"):
        read_tracks(path)
