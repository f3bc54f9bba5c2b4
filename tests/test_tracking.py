from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_crops, tiny_network, tiny_recording
from torch import nn
from torch.testing import assert_close

from lib.crops import choose_crop_cameras, make_crops, take_crops, warp
from lib.errors import InputError
from lib.files import MM
from lib.hands import LEFT, RIGHT, WRIST, for_hand
from lib.network import TemporalState
from lib.overlay import HAND_COLORS, draw_hand, overlay_frames
from lib.recordings import Recording, read_recording
from lib.tracking import Tracks, prepare_for_inference, true_keypoints
from lib.transforms import apply

FRAMES = 4


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    return read_recording(tiny_recording(FRAMES).write(tmp_path_factory.mktemp("recording")))


def without(recording: Recording, *instances: tuple[int, int]) -> Recording:
    """The recording in which some (hand, frame) have no label."""
    labelled = recording.labelled.clone()
    for hand, frame in instances:
        labelled[frame, hand] = False
    return replace(recording, labelled=labelled)


@pytest.mark.parametrize(
    "changes",
    [{}, {"stem": "convolution", "widths": (8,) * 4, "blocks": (1, 2, 1, 1)}],
    ids=["unshuffle", "convolution"],
)
def test_the_network_prepared_for_inference_predicts_the_same(rng, hand, changes):
    crops, state = random_crops(rng, (True, False, True)), TemporalState.untracked(3)
    plain, prepared = tiny_network(**changes), prepare_for_inference(tiny_network(**changes).train())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.backbone.modules())
    skeleton = hand.to(dtype=torch.float32)
    with torch.inference_mode():
        for regressor in ("known", "unknown"):
            ours, expected = (
                getattr(network, regressor)(
                    network.features(crops, state)[0], crops, *([skeleton] * (regressor == "known"))
                )
                for network in (prepared, plain)
            )
            for name, value in vars(ours).items():
                assert_close(value, getattr(expected, name), atol=1e-5, rtol=0)


def test_crops_are_the_first_two_views_that_see_a_hand(recording):
    images, cameras = next(recording.images()), recording.cameras(0)
    hands, views, crop = choose_crop_cameras(cameras, recording.mounting_angles, recording.hands(0), 1)
    assert hands.tolist() == [LEFT, RIGHT]
    assert views.tolist() == [[False, True, True, False]] * 2
    crops = take_crops(images, cameras, hands, views, crop)
    assert crops.two_views.all()
    for index, camera in ((0, 1), (1, 2)):
        assert_close(crops.camera_from_world[:, index].double(), crop.camera_from_world[:, camera], atol=1e-6, rtol=0)
        expected = warp(images[[camera]], cameras[[camera]], crop[1:, camera])[0] / 255
        assert_close(crops.images[1, index].numpy(), expected.astype(np.float32))
    assert (torch.linalg.det(crops.camera_from_world)[:, 0] > 0).tolist() == [True, False]


def test_a_missing_second_view_repeats_the_first(recording):
    images, cameras = next(recording.images()), recording.cameras(0)
    hands, views, crop = choose_crop_cameras(cameras, recording.mounting_angles, recording.hands(0), 1)
    views[0, 2] = False
    crops = take_crops(images, cameras, hands, views, crop)
    assert crops.two_views.tolist() == [False, True]
    for tensor in (crops.images, crops.focal_px, crops.camera_from_world):
        assert torch.equal(tensor[0, 0], tensor[0, 1])
        assert not torch.equal(tensor[1, 0], tensor[1, 1])


@pytest.mark.parametrize(("min_views", "tracked"), [(1, [LEFT, RIGHT]), (2, [RIGHT])])
def test_hands_need_enough_views(recording, min_views, tracked):
    """The left hand reaches far out, where camera 1 alone sees it."""
    cameras = recording.cameras(0)
    wrists = recording.world_from_wrist[0].clone()
    wrists[LEFT, :3, 3] += torch.tensor([-0.25, 0.0, 0.0], dtype=torch.float64)
    posed = replace(recording.hands(0), world_from_wrist=wrists)
    hands, crops = make_crops(next(recording.images()), cameras, recording.mounting_angles, posed, min_views)
    assert hands.tolist() == tracked
    assert crops.two_views.tolist() == [hand == RIGHT for hand in tracked]


def test_tracks_of_the_tiny_recording(tiny_tracker, recording):
    tracks = tiny_tracker.track_known(recording, recording.hand_model)
    assert tracks.valid_tracking.all()
    assert tracks.scale is None
    assert np.isfinite(tracks.tracked_keypoints).all()
    np.testing.assert_array_equal(tracks.gt_keypoints, true_keypoints(recording))
    wrists = recording.world_from_wrist[:, :, :3, 3].transpose(0, 1).numpy() * MM
    np.testing.assert_allclose(tracks.gt_keypoints[:, :, 5], wrists, atol=1e-9)


@torch.inference_mode()
def test_the_first_frame_is_crops_network_and_hand_in_a_row(tiny_tracker, recording):
    """Crops come from the recording's own hand; the given one is for the network and the landmarks."""
    given, network = recording.hand_model.scaled(1.2), tiny_tracker.network
    images = next(recording.images())
    hands, crops = make_crops(images, recording.cameras(0), recording.mounting_angles, recording.hands(0), 1)
    features, _ = network.features(crops, TemporalState.untracked(2))
    prediction = network.known(features, crops, given.to(dtype=torch.float32))
    wrists = for_hand(prediction.world_from_wrist.double(), hands)
    expected = given.landmarks(prediction.joint_angles.double(), wrists).numpy() * MM
    tracks = tiny_tracker.track_known(recording, given)
    np.testing.assert_allclose(tracks.tracked_keypoints[:, 0], expected, atol=1e-6)


def test_tracking_twice_gives_the_same(tiny_tracker, recording):
    first, again = (tiny_tracker.track_known(recording, recording.hand_model) for _ in range(2))
    np.testing.assert_array_equal(first.tracked_keypoints, again.tracked_keypoints)


def test_a_hand_that_was_not_tracked_starts_afresh(tiny_tracker, recording):
    """After a gap it is tracked as if the recording began there; the other hand does not notice."""
    model = recording.hand_model
    whole = tiny_tracker.track_known(recording, model)
    gap = tiny_tracker.track_known(without(recording, (LEFT, 1)), model)
    fresh = tiny_tracker.track_known(without(recording, (LEFT, 0), (LEFT, 1)), model)
    assert gap.valid_tracking[LEFT].tolist() == [True, False, True, True]
    assert not gap.tracked_keypoints[LEFT, 1].any()
    assert not gap.gt_keypoints[LEFT, 1].any()
    np.testing.assert_array_equal(gap.tracked_keypoints[LEFT, 2:], fresh.tracked_keypoints[LEFT, 2:])
    np.testing.assert_allclose(gap.tracked_keypoints[RIGHT], whole.tracked_keypoints[RIGHT], atol=1e-2)
    assert np.abs(gap.tracked_keypoints[LEFT, 2] - whole.tracked_keypoints[LEFT, 2]).max() > 0.1


def test_without_labels_nothing_is_tracked(tiny_tracker, recording):
    blind = replace(recording, labelled=torch.zeros_like(recording.labelled))
    tracks = tiny_tracker.track_known(blind, recording.hand_model)
    assert not tracks.valid_tracking.any()
    assert not tracks.tracked_keypoints.any()
    with pytest.raises(InputError, match="no frame shows a labelled hand to two cameras"):
        tiny_tracker.calibrate_scale(blind, recording.hand_model)


@pytest.mark.parametrize("samples", [1, 2, 3, 8])
def test_calibration_averages_the_first_samples(tiny_tracker, recording, samples):
    """The same as a recording that ends after as many labelled hand instances."""
    instances = [(hand, frame) for frame in range(FRAMES) for hand in (LEFT, RIGHT)]
    shortened = without(recording, *instances[samples:])
    expected = tiny_tracker.calibrate_scale(shortened, recording.hand_model, samples=100)
    assert tiny_tracker.calibrate_scale(recording, recording.hand_model, samples) == pytest.approx(expected, rel=1e-5)
    more = without(recording, *instances[samples + 1 :]) if samples < 8 else without(recording, (RIGHT, 3))
    assert tiny_tracker.calibrate_scale(more, recording.hand_model, samples=100) != pytest.approx(expected, rel=1e-5)


def test_unknown_skeleton_tracks_from_the_start_with_the_scaled_hand(tiny_tracker, recording):
    generic = recording.hand_model.scaled(0.9)
    tracks = tiny_tracker.track_unknown(recording, generic, samples=3)
    scale = tiny_tracker.calibrate_scale(recording, generic, samples=3)
    expected = tiny_tracker.track_known(recording, generic.scaled(scale))
    assert tracks.scale == scale
    np.testing.assert_array_equal(tracks.tracked_keypoints, expected.tracked_keypoints)
    np.testing.assert_array_equal(tracks.gt_keypoints, true_keypoints(recording))


def test_a_pose_that_is_not_finite_is_not_tracked(rng):
    tracked, true = rng.normal(size=(2, 2, 3, 21, 3))
    tracked[LEFT, 1, 20, 2], tracked[RIGHT, 2, 0, 0] = np.nan, np.inf
    found = np.array([[True, True, True], [False, True, True]])
    tracks = Tracks.of(tracked, true, found)
    assert tracks.valid_tracking.tolist() == [[True, False, True], [False, True, False]]
    for kept, given in ((tracks.tracked_keypoints, tracked), (tracks.gt_keypoints, true)):
        np.testing.assert_array_equal(kept, np.where(tracks.valid_tracking[..., None, None], given, 0.0))


def test_a_recording_without_a_hand_is_cropped_around_the_generic_one(tiny_tracker, recording):
    generic, nobody = recording.hand_model, replace(recording, hand_model=None)
    tracks = tiny_tracker.track_unknown(nobody, generic)
    assert tracks.scale == tiny_tracker.calibrate_scale(recording, generic)
    calibrated = generic.scaled(tracks.scale)
    expected = tiny_tracker.track_known(replace(recording, hand_model=calibrated), calibrated)
    np.testing.assert_array_equal(tracks.tracked_keypoints, expected.tracked_keypoints)
    assert np.isnan(tracks.gt_keypoints[tracks.valid_tracking]).all()
    assert not tracks.evaluated.any()


def test_overlay_draws_hands_where_they_project(recording):
    """Landmarks in front of a camera are covered with the hand's colour, the rest of the picture stays."""
    camera, landmarks = recording.cameras(0)[1], true_keypoints(recording)[RIGHT, 0] / MM
    picture = np.zeros((48, 64, 3), np.uint8)
    draw_hand(picture, camera, landmarks, HAND_COLORS[RIGHT])
    x, y = camera.project(torch.from_numpy(landmarks)).round().int().numpy().T
    assert (picture[y, x] > 0.8 * np.array(list(bytes.fromhex(HAND_COLORS[RIGHT][1:])))).all()
    assert 0 < (picture.any(axis=-1)).mean() < 0.5


def test_overlay_draws_no_line_to_a_landmark_behind_the_camera(recording):
    camera = recording.cameras(0)[1]
    place = torch.tensor([[0.0, 0.0, 0.3], [0.3, 0.0, -0.1]], dtype=torch.float64)
    ahead, behind = apply(camera.world_from_camera, place).numpy()
    together = np.tile(ahead, (21, 1))
    pictures = np.zeros((2, 48, 64, 3), np.uint8)
    for picture, wrist in zip(pictures, (ahead, behind), strict=True):
        together[WRIST] = wrist
        draw_hand(picture, camera, together, HAND_COLORS[LEFT])
    drawn = pictures.any(axis=-1)
    assert drawn.any()
    np.testing.assert_array_equal(*drawn)


def test_overlay_frames_are_the_views_with_valid_hands_drawn(recording):
    true = true_keypoints(recording)
    valid = np.zeros((2, FRAMES), bool)
    valid[LEFT, 1] = True
    frames = list(overlay_frames(recording, Tracks(true, true, valid)))
    assert len(frames) == FRAMES
    for index, (frame, images) in enumerate(zip(frames, recording.images(), strict=True)):
        plain = np.concatenate(list(images), axis=1)[..., None].repeat(3, axis=-1)
        assert np.array_equal(frame, plain) == (index != 1)
