import numpy as np
import pytest

from lib.hands import INDEX_TIP, THUMB_TIP
from lib.metrics import (
    PCK_THRESHOLDS_MM,
    Detections,
    auc,
    error_per_landmark,
    landmark_errors,
    mpjpa,
    mpjpe,
    pck,
    pinch_detections,
    pinch_distance,
)

FRAMES = 5
ALL = np.ones((2, FRAMES), bool)
NONE = ~ALL


@pytest.fixture
def keypoints(rng) -> np.ndarray:
    return 100 * rng.normal(size=(2, FRAMES, 21, 3))


def shifted(keypoints: np.ndarray, distance_mm: np.ndarray | float) -> np.ndarray:
    """Every landmark moved by a distance (hands, frames) along (2, -1, 2) / 3."""
    return keypoints + np.asarray(distance_mm)[..., None, None] * np.array([2, -1, 2]) / 3


def test_position_errors_are_distances(keypoints):
    np.testing.assert_allclose(landmark_errors(shifted(keypoints, 6.0), keypoints), 6.0)
    assert mpjpe(shifted(keypoints, 6.0), keypoints, ALL) == pytest.approx(6.0)


def test_only_valid_instances_count(keypoints):
    distance = np.zeros((2, FRAMES))
    distance[0, :2], distance[1] = (3.0, 5.0), 1000.0
    valid = distance < 100
    assert mpjpe(shifted(keypoints, distance), keypoints, valid) == pytest.approx((3 + 5) / 5)
    np.testing.assert_allclose(error_per_landmark(shifted(keypoints, distance), keypoints, valid), 8 / 5)


def test_error_per_landmark_separates_landmarks(keypoints):
    tracked = keypoints.copy()
    tracked[..., 3, 2] += 4.0
    errors = error_per_landmark(tracked, keypoints, ALL)
    assert errors[3] == pytest.approx(4.0)
    assert not np.delete(errors, 3).any()


def test_acceleration_of_a_parabola():
    """0.5 a t² moves with acceleration a; a steady shift with none."""
    time = np.arange(FRAMES, dtype=float)
    still = np.zeros((2, FRAMES, 21, 3))
    assert mpjpa(shifted(still, np.stack((0.5 * 4 * time**2, 7 * time))), ALL) == pytest.approx((4 + 0) / 2)


def test_acceleration_needs_three_valid_frames_in_a_row():
    """A jump next to an invalid frame does not count."""
    path = np.array([[0.0, 0, 0, 0, 900], [0, 1, 4, 9, 16]])
    valid = np.array([[True, True, True, False, True], [True, True, False, True, True]])
    assert mpjpa(shifted(np.zeros((2, FRAMES, 21, 3)), path), valid) == 0
    assert np.isnan(mpjpa(np.zeros((2, FRAMES, 21, 3)), valid[[1, 1]]))


def test_pck_counts_instances_below_each_threshold(keypoints):
    distance = np.full((2, FRAMES), 60.0)
    distance[0] = [0.0, 10.2, 20.2, 30.2, 49.9]
    curve = dict(zip(PCK_THRESHOLDS_MM, pck(shifted(keypoints, distance), keypoints, ALL), strict=True))
    assert [curve[threshold] for threshold in (0, 0.5, 10, 10.5, 30.5, 50)] == [0, 10, 10, 20, 40, 50]


def test_pck_averages_landmarks_within_a_hand_first(keypoints):
    tracked = keypoints.copy()
    tracked[..., 0, 0] += 210.0  # a mean of 10 mm over 21 landmarks
    curve = pck(tracked, keypoints, ALL)
    assert set(curve[PCK_THRESHOLDS_MM <= 9.5]) == {0}
    assert set(curve[PCK_THRESHOLDS_MM >= 10.5]) == {100}


def test_area_under_the_curve():
    assert auc(np.full(101, 100.0)) == pytest.approx(100)
    assert auc(np.linspace(0, 100, 101)) == pytest.approx(50)


def test_without_valid_frames_there_is_no_number(keypoints):
    for number in (mpjpe(keypoints, keypoints, NONE), mpjpa(keypoints, NONE), auc(pck(keypoints, keypoints, NONE))):
        assert np.isnan(number)
    assert np.isnan(error_per_landmark(keypoints, keypoints, NONE)).all()


def test_pinch_distance_is_between_thumb_and_index():
    keypoints = np.zeros((2, FRAMES, 21, 3))
    keypoints[1, 2, THUMB_TIP], keypoints[1, 2, INDEX_TIP] = (1, 2, 3), (4, 2, -1)
    expected = np.zeros((2, FRAMES))
    expected[1, 2] = 5
    np.testing.assert_array_equal(pinch_distance(keypoints), expected)


def test_pinch_detections():
    distance = np.array([[5.0, 15, 5, 15, 5], [9.99, 10, 0, 0, 30]])
    pinch = np.array([[True, True, False, False, True], [True, True, True, True, True]])
    valid = np.array([[True, True, True, True, False], [True, True, False, False, False]])
    detections = pinch_detections(distance, pinch, valid)
    assert detections == Detections(true_positives=2, false_positives=1, false_negatives=2)
    assert detections.precision_percent == pytest.approx(100 * 2 / 3)
    assert detections.recall_percent == pytest.approx(50)
    assert pinch_detections(distance, pinch, valid, threshold_mm=20.0) == Detections(4, 2, 0)


def test_precision_and_recall_of_nothing():
    nothing = pinch_detections(np.zeros((2, FRAMES)), ALL, NONE)
    assert np.isnan(nothing.precision_percent)
    assert np.isnan(nothing.recall_percent)
