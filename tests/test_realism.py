"""Views for a hand detector: which hands count as whole and unoccluded, and what their views show."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import hand_in_front, tiny_recording

from lib.errors import InputError
from lib.hands import LEFT, RIGHT
from lib.recordings import Recording, read_recording
from lib.rendered.dataset import SequenceKey, sample_sequence, write_recording
from lib.study.realism import COLUMNS, VIEW_SIZE, detector_views, realism_table, whole_in_frame

FRONT = [1, 2]
ELBOWS = torch.tensor([[-0.2, 0.4, 0.15], [0.2, 0.4, 0.15]], dtype=torch.float64)


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    """Both hands apart before the headset, forearms coming from below."""
    return moved(read_recording(tiny_recording(1).write(tmp_path)), RIGHT, 0.08)


def moved(recording: Recording, hand: int, x: float) -> Recording:
    """The same recording with a hand elsewhere, fingers forward (stored right wrists have x from the fingers)."""
    wrists = recording.world_from_wrist.clone()
    turn = torch.diag(torch.tensor([1.0, 1, 1, 1] if hand == LEFT else [-1.0, 1, -1, 1], dtype=wrists.dtype))
    wrists[0, hand] = hand_in_front(x) @ turn
    return replace(recording, world_from_wrist=wrists)


def test_hands_apart_are_whole_in_the_front_cameras(recording: Recording):
    assert whole_in_frame(recording, 0, ELBOWS)[:, FRONT].all()


def test_unlabelled_hands_do_not_count_and_hide_nothing(recording: Recording):
    together = moved(recording, RIGHT, -0.06)
    assert not whole_in_frame(together, 0, ELBOWS)[:, FRONT].any()
    alone = replace(together, labelled=torch.tensor([[True, False]]))
    whole = whole_in_frame(alone, 0, ELBOWS)[:, FRONT]
    assert whole[LEFT].all()
    assert not whole[RIGHT].any()


def test_a_hand_that_leaves_the_picture_is_not_whole(recording: Recording):
    assert not whole_in_frame(moved(recording, LEFT, -0.9), 0, ELBOWS)[LEFT, FRONT].any()


def test_arms_hide_what_is_behind_them(recording: Recording):
    """An elbow just before the headset puts the arm before its own hand; one far to the side crosses the other hand."""
    before, across = ELBOWS.clone(), ELBOWS.clone()
    before[LEFT] = torch.tensor([-0.06, 0.06, 0.06])
    assert not whole_in_frame(recording, 0, before)[LEFT, FRONT].any()
    across[LEFT] = torch.tensor([0.25, 0.1, 0.3])
    assert not whole_in_frame(recording, 0, across)[RIGHT, FRONT].any()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Recording:
    sequence = sample_sequence(SequenceKey("test", 47, "separate_hand", 0, 30), tmp_path_factory.mktemp("rendered"))
    write_recording(sequence)
    return read_recording(sequence.recording.path)


def test_views_are_rectified_twice_as_wide_as_the_hand_and_repeat(rendered: Recording, monkeypatch):
    pictures, views = detector_views([rendered, rendered], 6, seed=3)
    assert pictures.shape == (6, VIEW_SIZE, VIEW_SIZE)
    assert tuple(views.columns) == COLUMNS
    assert set(views.protocol) == {"separate_hand"}
    assert set(views.user) == {"user_47"}
    again, _ = detector_views([rendered, rendered], 6, seed=3)
    np.testing.assert_array_equal(pictures, again)
    monkeypatch.setattr(Recording, "images", hands_only)
    for picture in detector_views([replace(rendered, labelled=rendered.labelled & left_only(rendered))], 4, seed=3)[0]:
        rows, columns = (np.flatnonzero((picture > 127).any(axis=axis)) for axis in (1, 0))
        from_center = np.abs(np.concatenate((rows, columns)) - (VIEW_SIZE - 1) / 2)
        assert from_center.max() == pytest.approx(VIEW_SIZE / 4, abs=3)


def left_only(recording: Recording) -> torch.Tensor:
    side = LEFT if recording.labelled[:, LEFT].any() else RIGHT
    return torch.arange(2) == side


def hands_only(recording: Recording):
    """White outlines of the labelled hand in black pictures."""
    beyond_wrist = recording.hand_model.mesh_vertices[:, 0] > 0
    for frame in range(len(recording)):
        images = np.zeros((4, recording.camera.height, recording.camera.width), np.uint8)
        hand = int(recording.labelled[frame].int().argmax())
        wrist = recording.world_from_wrist[frame, hand]
        wrist = wrist @ torch.diag(torch.tensor([-1.0 if hand == RIGHT else 1.0, 1, 1, 1], dtype=wrist.dtype))
        mesh = recording.hand_model.mesh(recording.joint_angles[frame, hand], wrist)[beyond_wrist]
        for image, pixels in zip(images, recording.cameras(frame).project(mesh[None]).numpy(), strict=True):
            if np.abs(pixels).max() < 5000:
                cv2.fillConvexPoly(image, cv2.convexHull(pixels.round().astype(np.int32)), 255)
        yield images


def test_no_whole_hand_is_an_error(rendered: Recording):
    with pytest.raises(InputError, match="no recording shows a whole"):
        detector_views([replace(rendered, labelled=torch.zeros_like(rendered.labelled))], 4, seed=0)


def test_detections_are_counted_by_protocol_and_overall():
    views = pd.DataFrame({"protocol": ["hand_hand", "hand_hand", "separate_hand"], "frame": [1, 2, 3]})
    table = realism_table(views, np.array([True, False, True]), "detector 1.0", 0.5).set_index("protocol")
    assert table.views.to_dict() == {"all": 3, "hand_hand": 2, "separate_hand": 1}
    assert table.detected.to_dict() == {"all": 2, "hand_hand": 1, "separate_hand": 1}
    assert table.detected_percent.to_dict() == {"all": 66.7, "hand_hand": 50.0, "separate_hand": 100.0}
    assert set(table.detector) == {"detector 1.0"}
    assert set(table.confidence) == {0.5}
