"""The tracker of a stream: how it starts, follows, loses and finds again, with a network that knows the truth."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY, hand_in_front, headset, random_angles, tiny_recording

from lib.cameras import PosedCamera
from lib.crop_cache import hand_circles
from lib.errors import InputError
from lib.hands import HandModel, PosedHands, for_hand
from lib.live.confidence import SIGNS, Confidence
from lib.live.hands import PINCH_BEGINS, PINCH_ENDS, LiveHands
from lib.live.recordings import StreamTracker
from lib.live.tracker import FOLLOWED, TRUSTED, LiveState, LiveTracker
from lib.multistage.detection import Circles
from lib.network import FEATURE_CHANNELS, HandPrediction, UmeTrack
from lib.recordings import read_recording
from lib.rendered.shape import generic_hand
from lib.tracking import true_keypoints

SIGN = torch.arange(SIGNS)
SURE = Confidence((SIGN == 0).double() - 3.0 * (SIGN == SIGNS - 1), 3.0 * math.log(1e-3))
"""The mean of the first feature, less 9 where the hand is 2 cm from where it is expected."""
ANGLES = torch.deg2rad(torch.tensor([0.0, 90.0, 90.0, 180.0]).double())


class World(UmeTrack):
    """Two hands before a headset; the network that sees them truly, and the detector.

    `wrists` are where the hands are; `hidden` ones are not detected, and the network says `guess` of them. It is as
    `sure` of each hand as is said here, less what the crop is off.
    """

    def __init__(self, model: HandModel):
        super().__init__(TINY)
        self.model, self.rig = model, headset()
        self.wrists = torch.stack([hand_in_front(-0.08), hand_in_front(0.08)])
        self.angles = torch.zeros(2, 22).double()
        self.hidden = torch.zeros(2, dtype=torch.bool)
        self.guess = self.wrists.clone()
        self.sure = torch.tensor([5.0, 5.0])
        self.scale_of_u = 1.1
        self.looks = 0

    def extract(self, crops):
        return self.sure[crops.hand, None, None, None].expand(-1, FEATURE_CHANNELS, 6, 6)

    def remember(self, features, crops, state):
        return features, replace(state, tracked=torch.ones_like(state.tracked))

    def known(self, features, crops, model):
        wrists = torch.where(self.hidden[:, None, None], self.guess, self.wrists)[crops.hand]
        sigma = torch.ones(len(features), 21)
        return HandPrediction(self.angles[crops.hand].float(), wrists.float(), sigma)

    def unknown(self, features, crops):
        count = len(features)
        known = self.known(features, crops, None)
        return replace(known, scale=torch.full((count,), self.scale_of_u))

    def hands(self) -> PosedHands:
        return PosedHands(self.model, self.angles, self.wrists, torch.ones(2, dtype=torch.bool))

    def tracker(self, **changes) -> LiveTracker:
        return LiveTracker(self, self.detect, SURE, ANGLES, **({"hand_model": self.model} | changes))

    def detect(self, picture) -> Circles:
        """The circles in the camera that took a picture, which is as bright as its number."""
        self.looks += 1
        camera = int(picture[0, 0])
        around, _ = hand_circles(self.rig[[camera]], self.hands().landmarks())
        seen = (around[0, :, 2] > 0) & ~self.hidden
        return Circles(around[0, :, :2].float(), around[0, :, 2].float(), seen.float())

    def run(self, tracker: LiveTracker, state: LiveState, frames: int) -> tuple[list[LiveHands], LiveState]:
        pictures = np.stack([np.full((48, 64), camera, np.uint8) for camera in range(4)])
        seen = []
        for _ in range(frames):
            hands, state = tracker.step(pictures, self.rig, state.frame / 30 + 1.0, state)
            seen.append(hands)
        return seen, state


@pytest.fixture
def world(hand) -> World:
    return World(hand)


def test_hands_are_found_and_followed(world):
    """A camera after the other is searched; two of the four see the hands."""
    tracker = world.tracker()
    seen, state = world.run(tracker, tracker.start(), 12)
    assert [hands.tracked.all().item() for hands in seen] == [False] + [True] * 11
    for hands in seen[1:]:
        torch.testing.assert_close(hands.landmarks, world.hands().landmarks(), atol=1e-5, rtol=0)
        torch.testing.assert_close(hands.world_from_wrist, world.wrists, atol=1e-6, rtol=0)
        torch.testing.assert_close(hands.confidence, torch.tensor([5.0, 5.0]).double().sigmoid(), atol=1e-2, rtol=0)
    assert world.looks == 2, "then nothing is sought"
    assert state.frame == 12


def test_a_hand_that_goes_is_lost_and_found_again(world):
    tracker = world.tracker()
    _, state = world.run(tracker, tracker.start(), 12)
    world.hidden[1], world.sure[1] = True, FOLLOWED - 1
    seen, state = world.run(tracker, state, 5)
    assert not any(hands.tracked[1] or hands.confidence[1] for hands in seen)
    assert all(hands.tracked[0] for hands in seen)
    world.sure[1] = 5.0
    world.hidden[1] = False
    seen, _ = world.run(tracker, state, 8)
    assert seen[-1].tracked.all()
    assert torch.equal(seen[-1].landmarks[0], seen[0].landmarks[0])


def test_a_hand_in_doubt_is_followed_and_not_reported(world):
    tracker = world.tracker()
    _, state = world.run(tracker, tracker.start(), 12)
    world.sure[1] = (FOLLOWED + TRUSTED) / 2
    looks = world.looks
    seen, state = world.run(tracker, state, 3)
    assert [hands.tracked.tolist() for hands in seen] == [[True, False]] * 3
    assert all(0 < hands.confidence[1] < 0.9 for hands in seen)
    assert world.looks == looks + 3, "it is sought"
    world.sure[1] = 5.0
    seen, _ = world.run(tracker, state, 1)
    assert seen[0].tracked.all()
    assert world.looks == looks + 3


def test_a_hand_in_doubt_begins_anew_where_the_detector_sees_it(world):
    """Both hands are followed 19 cm from where they are."""
    tracker = world.tracker()
    _, state = world.run(tracker, tracker.start(), 12)
    last = state.memory.last
    away = last.world_from_wrist.clone()
    away[:, 2, 3] += 0.19
    moved = replace(state, memory=replace(state.memory, last=replace(last, world_from_wrist=away)), frame=1)
    moved = replace(moved, memory=replace(moved.memory, before=moved.memory.last), time=None)
    world.sure[:] = 15.0
    seen, _ = world.run(tracker, moved, 1)
    assert seen[0].tracked.all()
    assert (seen[0].confidence > 0.999).all(), "the crops are where the hands are"


def test_looks_through_cameras_that_do_not_show_the_hand_say_nothing(world):
    tracker = world.tracker()
    _, state = world.run(tracker, tracker.start(), 12)
    world.rig = world.rig[[0, 0, 3, 3]]  # none of which sees a hand
    tracker.mounting_angles = ANGLES[[0, 0, 3, 3]]
    seen, _ = world.run(tracker, state, 1)
    assert not seen[0].tracked.any(), "a hand that no camera sees has no crop"


def test_two_hands_are_never_the_same(world):
    """The right hand's crop shows the left one: the less likely of the two is dropped."""
    tracker = world.tracker()
    _, state = world.run(tracker, tracker.start(), 12)
    world.hidden[1] = True
    mirrored = for_hand(world.hands().wrists[[0]], 1)[0]
    world.guess[1] = mirrored
    world.sure = torch.tensor([25.0, 20.0])
    both, _ = world.run(tracker, state, 1)
    apart = (both[0].landmarks[0] - both[0].landmarks[1]).norm(dim=-1).mean()
    assert apart < 0.03
    assert both[0].tracked.tolist() == [True, False]


@pytest.mark.parametrize("wrong", ["far", "jump", "nan"])
def test_what_cannot_be_is_lost(world, wrong):
    tracker = world.tracker()
    _, state = world.run(tracker, tracker.start(), 12)
    world.hidden[0] = True
    world.guess[0, 2, 3] += {"far": 3.0, "jump": 0.25, "nan": float("nan")}[wrong]
    seen, _ = world.run(tracker, state, 1)
    assert seen[0].tracked.tolist() == [False, True]
    assert seen[0].confidence[0] == 0


def test_a_state_is_a_value(world):
    """The same step from the same state gives the same, whatever was done in between."""
    tracker = world.tracker()
    _, state = world.run(tracker, tracker.start(), 7)
    first, _ = world.run(tracker, state, 5)
    world.run(world.tracker(), tracker.start(), 3)
    again, _ = world.run(world.tracker(), state, 5)
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_the_scale_is_found_while_tracking(world):
    tracker = world.tracker(hand_model=None, generic=world.model.scaled(1 / 1.1), samples=12)
    seen, state = world.run(tracker, tracker.start(), 5)
    assert len(state.scales) == 6
    assert tracker.scale(state) == pytest.approx(1.1)
    torch.testing.assert_close(seen[-1].landmarks, world.hands().landmarks(), atol=1e-5, rtol=0)
    world.scale_of_u = 3.0
    _, state = world.run(tracker, state, 10)
    assert state.scales[6:] == (3.0,) * 6, "then it stays"


def test_pinches_begin_and_end_at_their_own_distances(world, hand):
    """Closing and opening the thumb, in small steps; the states in between depend on where it came from."""
    tracker = world.tracker()
    _, state = world.run(tracker, tracker.start(), 4)
    steps = [0.0, *np.linspace(0, 1, 40), *np.linspace(1, 0, 40)]
    closed = random_angles(np.random.default_rng(0), hand, 4000)
    tips = hand.landmarks(closed, torch.eye(4).double())[:, [0, 1]]
    closed = closed[(tips[:, 0] - tips[:, 1]).norm(dim=-1).argmin()]
    seen = []
    for step in steps:
        world.angles[0] = step * closed
        hands, state = world.run(tracker, state, 1)
        distance = (hands[0].landmarks[0, 0] - hands[0].landmarks[0, 1]).norm().item()
        seen.append((distance, hands[0].pinching[0].item()))
    assert min(d for d, _ in seen) < PINCH_BEGINS
    assert all(pinching for d, pinching in seen if d < PINCH_BEGINS - 1e-6)
    assert not any(pinching for d, pinching in seen if d > PINCH_ENDS + 1e-6)
    between = [pinching for d, pinching in seen if PINCH_BEGINS < d < PINCH_ENDS]
    assert between == sorted(between), "closing it is none, opening it is one"
    assert 0 < sum(between) < len(between)


def test_bad_frames_are_refused(world):
    tracker = world.tracker()
    state = tracker.start()
    pictures = np.zeros((4, 48, 64), np.uint8)
    _, after = tracker.step(pictures, world.rig, 1.0, state)
    for images, cameras, message in (
        (pictures[:3], world.rig, r"pictures of shape \(3, 48, 64\), uint8, by 4 cameras"),
        (pictures, world.rig[:3], "by 3 cameras"),
        (pictures[:, :40], world.rig, r"expected \(4, 48, 64\) of uint8"),
        (pictures.astype(np.float32), world.rig, "float32"),
    ):
        with pytest.raises(InputError, match=message):
            tracker.step(images, cameras, 2.0, after)
    for time in (1.0, 0.5, float("nan")):
        with pytest.raises(InputError, match=r"after one at 1\.0 s: expected a later one"):
            tracker.step(pictures, world.rig, time, after)
    nowhere = PosedCamera(world.rig.camera, world.rig.world_from_camera * float("nan"))
    with pytest.raises(InputError, match="a camera's pose is not finite"):
        tracker.step(pictures, nowhere, 2.0, after)
    with pytest.raises(ValueError, match="needs the user's hand_model, or a generic hand"):
        LiveTracker(world, world.detect, SURE, ANGLES)


@pytest.mark.parametrize("kind", ["black", "white", "noise"])
def test_any_pictures_give_finite_hands_or_none(hand, kind, rng):
    """A network that knows nothing, and a detector that sees hands everywhere."""
    everywhere = Circles(torch.tensor([[20.0, 20.0], [40.0, 20.0]]), torch.tensor([9.0, 9.0]), torch.ones(2))
    certain = Confidence(torch.zeros(SIGNS).double(), 5.0)
    tracker = LiveTracker(UmeTrack(TINY), lambda picture: everywhere, certain, ANGLES, hand)
    state, rig = tracker.start(), headset()
    for frame in range(20):
        pictures = {"black": 0, "white": 255, "noise": rng.integers(0, 256, (4, 48, 64))}[kind]
        images = np.broadcast_to(np.asarray(pictures, np.uint8), (4, 48, 64)).copy()
        hands, state = tracker.step(images, rig, float(frame), state)
        assert hands.landmarks[hands.tracked].isfinite().all()
        assert hands.confidence.isfinite().all()
        assert (hands.confidence[~hands.tracked] == 0).all()


@pytest.fixture
def recording(tmp_path):
    tiny = tiny_recording(10)
    tiny.images[:] = np.arange(4, dtype=np.uint8)[:, None, None]
    poses = tiny.labels["camera_to_world_transforms"]
    tiny.labels["camera_to_world_transforms"] = poses[:1] * 10
    for name in ("joint_angles", "wrist_transforms"):
        tiny.labels[name] = tiny.labels[name][:1] * 10
    return read_recording(tiny.write(tmp_path))


def world_of(recording) -> World:
    world = World(recording.hand_model)
    world.rig, world.wrists, world.angles = (
        recording.cameras(0),
        recording.world_from_wrist[0],
        recording.joint_angles[0],
    )
    return world


def stream_tracker(world: World) -> StreamTracker:
    return StreamTracker(partial(LiveTracker, world, world.detect, SURE))


def test_a_recording_is_tracked_without_its_labels(recording):
    """Step by step and as a whole the same."""
    world = world_of(recording)
    nobody = replace(recording, labelled=torch.zeros_like(recording.labelled))
    tracks = stream_tracker(world).track_known(nobody, recording.hand_model)
    assert tracks.valid_tracking[:, 1:].all()
    assert not tracks.evaluated.any()
    np.testing.assert_allclose(tracks.tracked_keypoints[:, 1:], true_keypoints(recording)[:, 1:], atol=0.1)
    tracker = LiveTracker(world, world.detect, SURE, recording.mounting_angles, recording.hand_model)
    state = tracker.start()
    for frame, images in enumerate(recording.images()):
        hands, state = tracker.step(images, recording.cameras(frame), frame / 30, state)
        shown = hands.tracked[:, None, None] * hands.landmarks * 1000.0
        np.testing.assert_array_equal(tracks.tracked_keypoints[:, frame], shown.numpy())
        np.testing.assert_array_equal(tracks.poses.confidence[:, frame], hands.confidence)


def test_frames_without_a_headset_pose_start_anew(recording):
    world = world_of(recording)
    posed = torch.ones(10, dtype=torch.bool)
    posed[4] = False
    tracks = stream_tracker(world).track_known(replace(recording, posed=posed), recording.hand_model)
    assert tracks.valid_tracking[0].tolist() == [False, True, True, True, False, False, True, True, True, True]


def test_a_calibrated_hand_is_what_the_tracks_hold(recording):
    world = world_of(recording)
    tracks = stream_tracker(world).track_unknown(recording, recording.hand_model.scaled(1 / 1.1), 6)
    assert tracks.scale == pytest.approx(1.1)
    reach = [m.landmark_rest_positions.norm(dim=-1).max() for m in (tracks.poses.model, recording.hand_model)]
    assert float(reach[0]) == pytest.approx(float(reach[1]), rel=1e-4)


def test_the_generic_hand_is_a_hand(world):
    """A tracker of an unknown skeleton begins with the generic hand as it is."""
    tracker = world.tracker(hand_model=None, generic=generic_hand().to(dtype=torch.float64))
    assert tracker.scale(tracker.start()) is None
    assert tracker.model(tracker.start()) is tracker.generic
