from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import normal, random_angles, random_poses, tiny_recording
from made_up_data import cached, changed

from lib.cameras import Fisheye624, KannalaBrandt, RadialTangential
from lib.crops import roll
from lib.errors import InputError
from lib.hands import LEFT, RIGHT, for_hand
from lib.metrics import landmark_errors
from lib.multistage.detection import Circles, DetNet, DetNetConfig
from lib.multistage.energy import FitWeights
from lib.multistage.fit import FitResult, HandPose
from lib.multistage.hand_crops import (
    CachedRecording,
    Frame,
    detected_crops,
    expected_crops,
    ground_truth_crops,
    labelled_crops,
    take_pictures,
)
from lib.multistage.keypoints import KeyNet, KeyNetConfig, Keypoints, predict_keypoints
from lib.multistage.sources import (
    KeypointRequest,
    KeypointSource,
    labelled_circles,
    labelled_keypoints,
    network_circles,
    network_keypoints,
)
from lib.multistage.tracker import MIN_CONFIDENCE, Memory, MultistageTracker
from lib.recordings import Recording, read_recording
from lib.rendered.shape import generic_hand
from lib.study.baseline_budget import budget_table, track_case
from lib.study.baseline_tuning import search_weights
from lib.study.benchmarks import benchmark_multistage
from lib.transforms import homogeneous, invert

FRAMES = 6


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    """Small movements, whatever the pictures show; the views have a tenth of the usual resolution."""
    tiny = tiny_recording(FRAMES)
    angles = np.array(tiny.labels["joint_angles"])
    tiny.labels["joint_angles"] = (angles[:1] + 0.05 * (angles - angles[:1])).tolist()
    return read_recording(tiny.write(tmp_path_factory.mktemp("recording")))


def noisy(deviation_px: float) -> KeypointSource:
    """A source of keypoints off by noise, and by 2 mm in distance."""
    rng = np.random.default_rng(0)
    return changed(
        lambda _, true: replace(
            true,
            pixels=true.pixels + deviation_px * normal(rng, *true.pixels.shape),
            relative_distance=true.relative_distance + 0.002 * normal(rng, *true.relative_distance.shape),
        )
    )


def blind_from(frame: int) -> KeypointSource:
    """A source that finds nothing from a frame on."""
    return changed(lambda request, true: replace(true, confidence=true.confidence * (request.frame.number < frame)))


def first_frame(recording: Recording) -> Frame:
    return next(CachedRecording(recording).frames())


def of(recording: Recording, frame: Frame) -> Frame:
    """A frame with the labels of a recording."""
    return replace(frame, of=CachedRecording(recording))


def errors_mm(tracks) -> np.ndarray:
    return landmark_errors(tracks.tracked_keypoints, tracks.gt_keypoints)[tracks.valid_tracking]


def test_true_keypoints_in_labelled_crops_give_the_true_hands(recording):
    tracks = MultistageTracker(labelled_keypoints).track_known(recording, recording.hand_model)
    assert tracks.valid_tracking.all()
    assert np.median(errors_mm(tracks)) < 0.5
    assert tracks.scale is None


LENSES = {
    KannalaBrandt: [-0.02, 0.09, -0.06, 0.001],
    RadialTangential: [-0.05, 0.01, 0.001, -0.002, 0.0, 0.0, 0.0, 0.0],
    Fisheye624: [-0.02, 0.09, -0.06, 0.0, 0.001, -0.001, 0.002, -0.002, 0.001, -0.001, 0.001, 0.0],
}


@pytest.mark.parametrize("model", LENSES, ids=lambda model: model.__name__)
@pytest.mark.parametrize("detect", [None, labelled_circles], ids=["labelled crops", "own crops"])
def test_hands_are_tracked_through_any_lens(recording, model, detect):
    camera = recording.camera
    lens = torch.tensor(LENSES[model]).double().expand(len(camera.focal_px), -1)
    seen = replace(recording, camera=model(camera.width, camera.height, camera.focal_px, camera.center_px, lens))
    tracks = MultistageTracker(labelled_keypoints, detect).track_known(seen, recording.hand_model)
    assert tracks.valid_tracking.sum() >= 2 * FRAMES - 4
    assert np.median(errors_mm(tracks)) < 1.0


def test_noisy_keypoints_give_hands_nearby(recording):
    tracks = MultistageTracker(noisy(1.0)).track_known(recording, recording.hand_model)
    assert tracks.valid_tracking.all()
    assert 0.5 < np.median(errors_mm(tracks)) < 8.0


def test_own_crops_follow_the_detected_hands(recording):
    """A detector looks at one view in turn, the side view first: hands are found when a front view has its turn."""
    tracks = MultistageTracker(labelled_keypoints, labelled_circles).track_known(recording, recording.hand_model)
    first = tracks.valid_tracking.argmax(axis=1)
    assert tracks.valid_tracking.sum() == 2 * FRAMES - first.sum()
    assert (first <= 2).all()
    assert np.median(errors_mm(tracks)) < 1.0


def test_unlabelled_hands_are_tracked_with_own_crops(recording):
    """As labelled ones are, without a truth beside them; where the headset was lost none is."""
    labelled = MultistageTracker(labelled_keypoints, labelled_circles).track_known(recording, recording.hand_model)
    tracker = MultistageTracker(
        lambda requests: labelled_keypoints([replace(asked, frame=of(recording, asked.frame)) for asked in requests]),
        lambda frame, camera: labelled_circles(of(recording, frame), camera),
    )
    posed, nobody = torch.arange(FRAMES) != 3, torch.zeros_like(recording.labelled)
    tracks = tracker.track_known(replace(recording, labelled=nobody, posed=posed), recording.hand_model)
    assert not tracks.valid_tracking[:, 3].any()
    assert not tracks.evaluated.any()
    assert tracks.valid_tracking[:, :3].tolist() == labelled.valid_tracking[:, :3].tolist()
    np.testing.assert_array_equal(tracks.tracked_keypoints[:, :3], labelled.tracked_keypoints[:, :3])
    assert np.isnan(tracks.gt_keypoints[tracks.valid_tracking]).all()
    assert tracks.valid_tracking[:, 4:].all()  # found again at once, although the view that is searched shows no hand


def test_the_scale_of_an_unknown_hand(recording):
    smaller = recording.hand_model.scaled(1 / 1.1)
    tracks = MultistageTracker(labelled_keypoints).track_unknown(recording, smaller)
    assert tracks.scale == pytest.approx(1.1, rel=0.005)
    assert np.median(errors_mm(tracks)) < 1.0


def test_a_scale_needs_frames_with_two_views(recording):
    nobody = replace(recording, labelled=torch.zeros_like(recording.labelled))
    with pytest.raises(InputError, match=r"recording_00.*to two cameras"):
        MultistageTracker(labelled_keypoints).calibrate_scale(nobody, generic_hand())


@pytest.mark.parametrize("labels", [FRAMES - 1, FRAMES + 1])
def test_a_video_of_another_length_is_refused(recording, labels):
    frames = torch.arange(labels).clamp(max=FRAMES - 1)
    names = ("world_from_camera", "joint_angles", "world_from_wrist", "labelled", "posed")
    arrays = {name: getattr(recording, name)[frames] for name in names}
    other = replace(recording, pictures=replace(recording.pictures, frames=labels), **arrays)
    with pytest.raises(InputError, match=f"its json labels {labels}"):
        MultistageTracker(labelled_keypoints).track_known(other, recording.hand_model)


def test_a_hand_without_keypoints_is_lost(recording):
    tracks = MultistageTracker(blind_from(3)).track_known(recording, recording.hand_model)
    assert tracks.valid_tracking.tolist() == [[True] * 3 + [False] * 3] * 2
    assert (tracks.tracked_keypoints[:, 3:] == 0).all()
    assert (tracks.gt_keypoints[:, 3:] == 0).all()


def test_keypoints_are_fed_back_while_a_hand_is_tracked(recording):
    """The prior is zero at first and then says where the keypoints will be."""
    priors, answers = [], []

    def look(request: KeypointRequest, true: Keypoints) -> Keypoints:
        priors.append(request.prior)
        answers.append(true)
        return true

    MultistageTracker(changed(look)).track_known(recording, recording.hand_model)
    assert (priors[0] == 0).all()
    for prior, answer in zip(priors[1:], answers[1:], strict=True):
        expected_px = prior.unflatten(1, (21, 3))[..., :2] * 48 + 47.5
        assert (expected_px - answer.pixels).abs().max() < 6.0


def test_the_network_sees_left_hands_only(recording):
    """A right hand arrives mirrored, by cameras whose x axis is turned round."""

    def look(request: KeypointRequest, true: Keypoints) -> Keypoints:
        determinants = torch.linalg.det(request.cameras.world_from_camera[:, :3, :3])
        assert ((determinants < 0) == (request.hand == RIGHT)).all()
        assert request.images.shape[1:] == (1, 96, 96)
        return true

    MultistageTracker(changed(look)).track_known(recording, recording.hand_model)


def fitted(pose: HandPose, found: list[bool]) -> FitResult:
    nothing = torch.zeros(len(found), dtype=torch.float64)
    return FitResult(pose, nothing, nothing, torch.tensor(found))


def test_half_of_the_last_motion_goes_on(rng, hand):
    """Joint angles and shift by half; the turn about its own axis by half its angle, also of a mirrored hand."""
    hands = torch.tensor([LEFT, RIGHT])
    first = HandPose(random_angles(rng, hand, 2), for_hand(random_poses(rng, 2), hands))
    turn = roll(torch.tensor(0.4).double())
    wrist = first.world_from_wrist.clone()
    wrist[:, :3, :3] = turn @ wrist[:, :3, :3]
    wrist[:, :3, 3] += torch.tensor([0.02, 0.0, 0.0])
    second = HandPose(first.joint_angles + 0.1, wrist)
    memory = Memory.empty().after(hands, fitted(first, [True, True]))
    assert torch.equal(memory.expectation().pose.joint_angles, first.joint_angles)
    expected = memory.after(hands, fitted(second, [True, True])).expectation()
    assert expected.exists.all()
    torch.testing.assert_close(expected.pose.joint_angles, second.joint_angles + 0.05)
    torch.testing.assert_close(
        expected.pose.world_from_wrist[:, :3, 3], wrist[:, :3, 3] + torch.tensor([0.01, 0, 0]).double()
    )
    went_on = expected.pose.world_from_wrist @ invert(wrist)
    torch.testing.assert_close(
        torch.arctan2(went_on[:, 1, 0], went_on[:, 0, 0]), torch.full((2,), 0.2).double(), atol=1e-6, rtol=0
    )


def test_a_lost_hand_is_forgotten(rng, hand):
    hands = torch.tensor([LEFT, RIGHT])
    pose = HandPose(random_angles(rng, hand, 2), for_hand(random_poses(rng, 2), hands))
    memory = Memory.empty().after(hands, fitted(pose, [True, True])).after(hands, fitted(pose, [True, False]))
    assert memory.expectation().exists.tolist() == [True, False]
    again = memory.after(hands[1:], fitted(pose[1:], [True]))
    assert again.expectation().exists.tolist() == [False, True]
    torch.testing.assert_close(again.expectation().pose.world_from_wrist[1], pose.world_from_wrist[1])


def test_a_missed_hand_is_expected_at_rest_for_some_frames(rng, hand):
    """After a motion: not where it would have gone on, but where it was last."""
    hands = torch.tensor([LEFT, RIGHT])
    poses = [HandPose(random_angles(rng, hand, 2), for_hand(random_poses(rng, 2), hands)) for _ in range(2)]
    memory = Memory.empty()
    for pose in poses:
        memory = memory.after(hands, fitted(pose, [True, True]), patience=3)
    for missed in (1, 2, 3):
        memory = memory.after(hands, fitted(poses[0], [False, True]), patience=3) if missed < 3 else memory.unseen(3)
        expected = memory.expectation()
        assert expected.exists.tolist() == [True, True]
        torch.testing.assert_close(expected.pose.world_from_wrist[LEFT], poses[1].world_from_wrist[LEFT])
        torch.testing.assert_close(expected.pose.joint_angles[LEFT], poses[1].joint_angles[LEFT])
    memory = memory.unseen(patience=3)
    assert memory.expectation().exists.tolist() == [False, True]


@pytest.mark.parametrize("kind", ["no headset pose", "black picture"])
@pytest.mark.parametrize("frames", [1, 2])
def test_a_lost_frame_costs_no_more_than_itself(recording, kind, frames):
    """Although the detector shows the hands once only, and never again."""
    lost = torch.zeros(FRAMES, dtype=torch.bool)
    lost[3 : 3 + frames] = True

    def source(request: KeypointRequest, true: Keypoints) -> Keypoints:
        black = kind == "black picture" and lost[request.frame.number]
        return replace(true, confidence=true.confidence * (not black))

    def once(frame, camera) -> Circles:
        circles = labelled_circles(frame, camera)
        return replace(circles, presence=circles.presence * (frame.number <= 2))

    shown = replace(recording, posed=~lost) if kind == "no headset pose" else recording
    tracks = MultistageTracker(changed(source), once).track_known(shown, recording.hand_model)
    expected = torch.ones(2, FRAMES, dtype=torch.bool)
    expected[:, lost] = False
    assert tracks.valid_tracking[:, 2:].tolist() == expected[:, 2:].tolist()
    assert np.median(errors_mm(tracks)) < 1.0
    # Ground-truth crops need no memory of this kind, and their hands start afresh.
    labelled = MultistageTracker(changed(source)).track_known(shown, recording.hand_model)
    assert labelled.valid_tracking.tolist() == expected.tolist()


@pytest.mark.parametrize("patience", [1, 5])
def test_a_hand_missed_more_than_once_is_detected_anew(recording, monkeypatch, patience):
    """Expected where it was last or not: the detector is asked, and tells where it is."""
    monkeypatch.setattr("lib.multistage.tracker.MAX_MISSED", patience)
    asked, priors = [], []

    def circles(frame, camera) -> Circles:
        asked.append(frame.number)
        return labelled_circles(frame, camera)

    def source(request: KeypointRequest, true: Keypoints) -> Keypoints:
        if request.frame.number == 5:
            priors.append(request.prior)
        return replace(true, confidence=true.confidence * (request.frame.number not in (3, 4)))

    tracks = MultistageTracker(changed(source), circles).track_known(recording, recording.hand_model)
    assert [frame for frame in asked if frame > 2] == [5]
    assert tracks.valid_tracking[:, 5].all()
    assert (torch.cat(priors) == 0).all()


def test_crops_of_expected_hands_come_from_the_views_that_see_most(recording):
    hands = torch.arange(2)
    pose = HandPose(recording.joint_angles[0], for_hand(recording.world_from_wrist[0], hands))
    expected = Memory.empty().after(hands, fitted(pose, [True, True])).expectation()
    look, labelled = (
        expected_crops(first_frame(recording), recording.hand_model, expected),
        ground_truth_crops(recording, 0, recording.hand_model),
    )
    assert look.views.tolist() == labelled.views.tolist() == [[False, True, True, False]] * 2
    torch.testing.assert_close(look.cropped.world_from_camera, labelled.cropped.world_from_camera)
    turned = homogeneous(pose.world_from_wrist[:, :3, :3], -pose.world_from_wrist[:, :3, 3])
    away = replace(expected, pose=HandPose(pose.joint_angles, turned))
    assert len(expected_crops(first_frame(recording), recording.hand_model, away).hands) == 0


@pytest.mark.parametrize("confidence", [0.99, 1.01])
def test_doubtful_hands_are_lost_in_own_crops(recording, confidence):
    """In one frame the keypoints are right, yet their confidence is just below or above the least one; then it is 1."""
    doubtful = 3

    def source(request: KeypointRequest, true: Keypoints) -> Keypoints:
        less = torch.where(torch.tensor(request.frame.number == doubtful), confidence * MIN_CONFIDENCE, 1.0)
        return replace(true, confidence=true.confidence * less)

    own = MultistageTracker(changed(source), labelled_circles).track_known(recording, recording.hand_model)
    labelled = MultistageTracker(changed(source)).track_known(recording, recording.hand_model)
    assert labelled.valid_tracking.all()
    assert own.valid_tracking[:, doubtful - 1].all()
    assert (own.valid_tracking[:, doubtful] == (confidence > 1)).all()
    assert own.valid_tracking[:, -1].all()  # found again


def test_a_detected_circle_fills_the_crop(recording):
    """The circle around the hand, a fifth larger, touches the crop's borders; its centre is the crop's centre."""
    circles = labelled_circles(first_frame(recording), 1)
    assert circles.presence.tolist() == [1.0, 1.0]
    look = detected_crops(recording.cameras(0), recording.mounting_angles, 1, circles, torch.arange(2))
    assert look.views.tolist() == [[False, True, False, False]] * 2
    chosen, camera = look.chosen(), recording.cameras(0)[1]
    center = camera.project(chosen.world_from_camera[:, None, :3, 3] + chosen.world_from_camera[:, None, :3, 2])[:, 0]
    assert (center - circles.center_px).abs().max() < 0.3
    landmarks = recording.hand_model.landmarks(
        recording.joint_angles[0], for_hand(recording.world_from_wrist[0], torch.arange(2))
    )
    reach = (chosen.project(landmarks) - 47.5).abs().amax(dim=(1, 2))
    assert ((reach > 47.5 / 1.5) & (reach < 47.5)).all()


def test_absent_hands_are_not_cropped(recording):
    def nobody(frame, camera) -> Circles:
        return replace(labelled_circles(frame, camera), presence=torch.tensor([0.2, 0.49]))

    tracks = MultistageTracker(labelled_keypoints, nobody).track_known(recording, recording.hand_model)
    assert not tracks.valid_tracking.any()


def test_the_error_budget_swaps_stages(recording):
    cases = {
        "true": (labelled_keypoints, None), "noisy": (noisy(1.0), None), "own": (labelled_keypoints, labelled_circles)
    }  # fmt: skip
    recordings = [CachedRecording(recording)] * 2
    budget = budget_table(recordings, {n: track_case(recordings, case) for n, case in cases.items()}).set_index(
        "stages"
    )
    assert budget.mpjpe_mm["true"] < budget.mpjpe_mm["noisy"]
    assert budget.found_percent["true"] == 100 > budget.found_percent["own"]


def test_the_benchmark_times_every_stage(recording):
    table = benchmark_multistage(recording, labelled_keypoints, labelled_circles, "cpu", repeats=1)
    assert set(table.stage) == {"detector", "crops", "keypoints", "fit", "whole frame"}
    assert (table.median_ms > 0).all()


def test_cached_crops_are_those_of_the_recording(recording):
    source = CachedRecording.of(cached(recording), recording.path)
    for one, of_cache in zip(CachedRecording(recording).frames(), source.frames(), strict=True):
        kept, pictures = labelled_crops(of_cache, recording.hand_model)
        look = ground_truth_crops(recording, one.number, recording.hand_model)
        assert kept.hands.tolist() == look.hands.tolist()
        assert kept.views.tolist() == look.views.tolist()
        torch.testing.assert_close(kept.chosen().world_from_camera, look.chosen().world_from_camera, atol=1e-6, rtol=0)
        torch.testing.assert_close(kept.chosen().camera.focal_px, look.chosen().camera.focal_px, atol=1e-4, rtol=0)
        assert (pictures - take_pictures(one.images, one.cameras, look)).abs().max() <= 1.01 / 255


@pytest.mark.parametrize("with_video", [True, False])
def test_recordings_side_by_side_and_from_a_cache(recording, with_video):
    """One of them is lost on the way; the other is a training sequence, whose lens nobody knows."""
    kept = CachedRecording.of(cached(recording), recording.path if with_video else None)
    tracker = MultistageTracker(labelled_keypoints)
    short = replace(recording, labelled=recording.labelled & (torch.arange(FRAMES) < 2)[:, None])
    both = tracker.track_all([CachedRecording(short), kept], [recording.hand_model] * 2)
    assert both[0].valid_tracking.tolist() == [[True] * 2 + [False] * (FRAMES - 2)] * 2
    alone = tracker.track_known(recording, recording.hand_model)
    assert both[1].valid_tracking.all()
    np.testing.assert_allclose(both[1].tracked_keypoints, alone.tracked_keypoints, atol=1e-2 if with_video else 1.0)
    assert tracker.calibrate_all([kept], recording.hand_model) == pytest.approx([1.0], rel=0.005)


def test_untrained_networks_track_without_failing(recording):
    """They find something or nothing; each crop is answered as if it were asked alone."""
    torch.manual_seed(0)
    network = KeyNet(KeyNetConfig())
    source = network_keypoints(network)
    requests = []
    weights = FitWeights(distance=0.01, temporal=10.0, outlier_px=1.0)  # what is asked must not hang on what was tuned
    tracker = MultistageTracker(lambda asked: requests.extend(asked) or source(asked), weights=weights)
    tracker.track_known(recording, recording.hand_model)
    together = source(requests)
    for request, answer in zip(requests, together, strict=True):
        alone = predict_keypoints(network, request.images, request.prior)
        torch.testing.assert_close(answer.pixels, alone.pixels, atol=1e-3, rtol=0)
    detector = network_circles(DetNet(DetNetConfig()))
    tracks = MultistageTracker(source, detector).track_known(recording, recording.hand_model)
    assert np.isfinite(tracks.tracked_keypoints).all()


def test_the_search_of_weights_keeps_the_best(recording):
    """Where single keypoints are far off, the weights found distrust them."""
    rng = np.random.default_rng(1)

    def look(_: KeypointRequest, true: Keypoints) -> Keypoints:
        wrong = torch.from_numpy(rng.random(true.confidence.shape) < 0.1)
        return replace(true, pixels=true.pixels + 30.0 * wrong[..., None])

    start = FitWeights(outlier_px=1e6)
    best, table = search_weights([CachedRecording(recording)], changed(look), start)
    table = table.set_index(list(FitWeights._fields))
    assert table.index[0] == start
    assert table.index.is_unique
    assert best.outlier_px < 1e6
    assert table.mpjpe_mm[best] == table.mpjpe_mm.min() < table.mpjpe_mm[start]
