"""The multi-stage tracker of a stream, with networks that know the truth: its step is that of the recording tracker."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import tiny_recording

from lib.errors import InputError
from lib.live.hands import LiveHands
from lib.live.multistage import LiveMultistageState, LiveMultistageTracker
from lib.live.recordings import StreamTracker
from lib.multistage.detection import Circles
from lib.multistage.hand_crops import CachedRecording, Frame
from lib.multistage.keypoints import Keypoints
from lib.multistage.sources import KeypointRequest, labelled_circles, labelled_keypoints
from lib.multistage.tracker import MAX_MISSED, MultistageTracker
from lib.recordings import Recording, read_recording

FRAMES = 12
FIRST = 1
"""Frame in which hands are found: a side view is searched first, then a front view."""


class Truth:
    """A recording whose pictures say which frame and camera they are of, and networks that read this and its labels.

    Keypoints are somewhat off, and those of a black picture missing.
    """

    def __init__(self, recording: Recording):
        self.recording, self.images = recording, list(recording.images())

    def frame(self, number: int) -> Frame:
        of = CachedRecording(self.recording)
        return Frame(self.images[number], self.recording.cameras(number), self.recording.mounting_angles, number, of)

    def keypoints(self, requests: Sequence[KeypointRequest]) -> list[Keypoints]:
        here = [replace(request, frame=self.frame(request.frame.number)) for request in requests]
        return [self._seen(*pair) for pair in zip(requests, labelled_keypoints(here), strict=True)]

    def _seen(self, request: KeypointRequest, true: Keypoints) -> Keypoints:
        off = 0.3 * torch.cos(torch.arange(42).double() + request.frame.number).unflatten(0, (21, 2))
        shown = request.images.amax(dim=(1, 2, 3))[:, None] > 0
        return replace(true, pixels=true.pixels + off, confidence=0.9 * true.confidence * shown)

    def detect(self, picture: np.ndarray) -> Circles:
        assert picture.shape == (48, 64)
        if not picture.any():
            return Circles(torch.zeros(2, 2), torch.ones(2), torch.zeros(2))
        number, camera = divmod(int(picture[0, 0]) - 1, 4)
        return labelled_circles(self.frame(number), camera)

    def tracker(self, **changes) -> LiveMultistageTracker:
        hand = {"hand_model": self.recording.hand_model} | changes
        return LiveMultistageTracker(self.keypoints, self.detect, self.recording.mounting_angles, **hand)

    def run(
        self, tracker: LiveMultistageTracker, state: LiveMultistageState, frames: int, black: Sequence[int] = ()
    ) -> tuple[list[LiveHands], LiveMultistageState]:
        """Some frames further, in which some cameras are covered."""
        seen = []
        for number in range(state.frame, state.frame + frames):
            images = self.images[number].copy()
            images[list(black)] = 0
            hands, state = tracker.step(images, self.recording.cameras(number), number / 30, state)
            seen.append(hands)
        return seen, state

    def errors_mm(self, hands: LiveHands, number: int) -> torch.Tensor:
        true = self.recording.hands(number).landmarks()
        return 1000 * (hands.landmarks - true).norm(dim=-1).mean(dim=-1)


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Truth:
    """Small movements."""
    tiny = tiny_recording(FRAMES)
    angles = np.array(tiny.labels["joint_angles"])
    tiny.labels["joint_angles"] = (angles[:1] + 0.05 * (angles - angles[:1])).tolist()
    tiny.images[:] = (1 + np.arange(4 * FRAMES, dtype=np.uint8)).reshape(FRAMES, 4, 1, 1)
    return Truth(read_recording(tiny.write(tmp_path_factory.mktemp("recording"))))


def of_stream(truth: Truth) -> StreamTracker:
    return StreamTracker(partial(LiveMultistageTracker, truth.keypoints, truth.detect))


@pytest.mark.parametrize("unposed", [[], [5, 6]], ids=["all posed", "headset lost"])
def test_step_by_step_and_as_a_whole_the_same(truth, unposed):
    """To the bit, also where frames without a pose of the headset are skipped."""
    posed = torch.ones(FRAMES, dtype=torch.bool)
    posed[unposed] = False
    recording, model = replace(truth.recording, posed=posed), truth.recording.hand_model
    detector = lambda frame, camera: truth.detect(frame.view(camera))  # noqa: E731
    whole = MultistageTracker(truth.keypoints, detector).track_known(recording, model)
    assert whole.valid_tracking[:, FIRST:].tolist() == [posed[FIRST:].tolist()] * 2
    expected, stream = whole.arrays(30.0), of_stream(truth).track_known(recording, model).arrays(30.0)
    assert stream.keys() == expected.keys() | {"pinches"}
    for name, array in expected.items():
        np.testing.assert_array_equal(stream[name], array, err_msg=name)


def test_the_scale_is_found_while_tracking(truth, monkeypatch):
    """The generic hand as it is at first; the scaled one once enough frames have shown it to two cameras.

    The frame in which it is detected shows it to one.
    """
    monkeypatch.setattr("lib.live.multistage.CALIBRATION_FRAMES", 4)
    generic, enough = truth.recording.hand_model.scaled(1 / 1.1), FIRST + 1 + 4
    tracker = truth.tracker(hand_model=None, generic=generic)
    before, state = truth.run(tracker, tracker.start(), enough - 1)
    assert [hands.tracked.all().item() for hands in before] == [False] * FIRST + [True] * 4
    assert tracker.scale(state) is None
    _, state = truth.run(tracker, state, 1)
    assert tracker.scale(state) == pytest.approx(1.1, rel=0.01)
    after, last = truth.run(tracker, state, 3)
    assert tracker.scale(last) == tracker.scale(state)
    assert truth.errors_mm(before[-1], enough - 2).min() > 2 * truth.errors_mm(after[-1], enough + 2).max()
    tracks = of_stream(truth).track_unknown(truth.recording, generic)
    assert tracks.scale == state.scale
    assert tracker.model(tracker.start()) is generic


def test_frames_that_one_camera_sees_tell_no_scale(truth, monkeypatch):
    monkeypatch.setattr("lib.live.multistage.CALIBRATION_FRAMES", 4)
    tracker = truth.tracker(hand_model=None, generic=truth.recording.hand_model)
    hands, state = truth.run(tracker, tracker.start(), FRAMES, black=[1])
    assert hands[-1].tracked.all()
    assert state.scale is None
    assert not state.seen


def test_a_covered_camera_leaves_the_other(truth):
    """With one view hands are still followed; with none they are lost, and found when they are seen again."""
    tracker = truth.tracker()
    both, state = truth.run(tracker, tracker.start(), 5)
    one, _ = truth.run(tracker, state, 3, black=[2])
    assert one[-1].tracked.all()
    assert truth.errors_mm(both[-1], 4).max() < 3
    assert truth.errors_mm(one[-1], 7).max() < 30
    none, state = truth.run(tracker, state, MAX_MISSED, black=range(4))
    assert not any(hands.tracked.any() or hands.confidence.any() or hands.pinching.any() for hands in none)
    again, _ = truth.run(tracker, state, 1)
    assert again[0].tracked.all()


def test_a_state_is_a_value(truth):
    """The same step from the same state gives the same, whatever was done in between."""
    tracker = truth.tracker(hand_model=None, generic=truth.recording.hand_model)
    _, state = truth.run(tracker, tracker.start(), 5)
    first, _ = truth.run(tracker, state, 3)
    truth.run(tracker, tracker.skip(state), 4, black=[1])
    again, _ = truth.run(tracker, state, 3)
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_a_pinch_goes_on_until_it_ends(truth, monkeypatch):
    """No distance begins one here, and none ends one."""
    monkeypatch.setattr("lib.live.hands.PINCH_BEGINS", 0.0)
    monkeypatch.setattr("lib.live.hands.PINCH_ENDS", 1.0)
    tracker = truth.tracker()
    _, state = truth.run(tracker, tracker.start(), 4)
    hands, _ = truth.run(tracker, replace(state, pinching=torch.tensor([True, False])), 3)
    assert [one.pinching.tolist() for one in hands] == [[True, False]] * 3
    assert not tracker.skip(replace(state, pinching=torch.tensor([True, False]))).pinching.any()


def test_bad_frames_are_refused(truth):
    tracker, cameras, images = truth.tracker(), truth.recording.cameras(0), truth.images[0]
    _, after = tracker.step(images, cameras, 1.0, tracker.start())
    nowhere = replace(cameras, world_from_camera=cameras.world_from_camera * float("nan"))
    for bad, time, message in (
        ((images[:3], cameras), 2.0, r"pictures of shape \(3, 48, 64\), uint8, by 4 cameras"),
        ((images, cameras[:3]), 2.0, "by 3 cameras"),
        ((images.astype(np.float32), cameras), 2.0, "float32"),
        ((images, nowhere), 2.0, "a camera's pose is not finite"),
        ((images, cameras), 1.0, r"a frame at 1\.0 s after one at 1\.0 s: expected a later one"),
    ):
        with pytest.raises(InputError, match=message):
            tracker.step(*bad, time, after)
    with pytest.raises(ValueError, match="needs the user's hand_model, or a generic hand"):
        truth.tracker(hand_model=None)
