"""Recordings tracked as a stream: frame by frame by a live tracker, without their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from lib.files import MM
from lib.hands import HANDS, HandModel, HandPoses
from lib.live.events import updated
from lib.live.multistage import LiveMultistageTracker
from lib.live.realtime import Play, in_order
from lib.live.tracker import LiveTracker
from lib.recordings import Recording
from lib.tracking import Tracks, true_keypoints

LiveTrackerOf = Callable[..., LiveTracker | LiveMultistageTracker]
"""Makes a live tracker, of mounting angles and a hand_model, or a generic hand and how it is calibrated."""


class StreamTracker:
    """Tracks recordings with crops of its own, as they are played, by a live tracker for each. Holds no state between
    calls."""

    def __init__(self, make: LiveTrackerOf, play: Play = in_order):
        self.make, self.play = make, play

    def track_known(self, recording: Recording, model: HandModel) -> Tracks:
        """Track with a known skeleton."""
        return self._track(recording, self.make(recording.mounting_angles, hand_model=model))

    def track_unknown(self, recording: Recording, generic: HandModel, *samples: int) -> Tracks:
        """Track while the scale of the generic hand is found, without a second pass; `samples` are `LiveTracker`'s."""
        return self._track(recording, self.make(recording.mounting_angles, None, generic, *samples))

    def _track(self, recording: Recording, tracker: LiveTracker | LiveMultistageTracker) -> Tracks:
        """Frames in which the headset has no pose are skipped; no hand is tracked in frames that are not shown."""
        state, everyone = tracker.start(), torch.arange(HANDS)
        poses = HandPoses.untracked(tracker.model(state), len(recording))
        landmarks = torch.zeros(HANDS, len(recording), 21, 3).double()
        pinches = ()
        for frame, images in self.play(recording):
            time = frame / recording.frames_per_second
            if recording.posed is not None and not recording.posed[frame]:
                state = tracker.skip(state)
                pinches = updated(pinches, state.pinching, time)
                continue
            hands, state = tracker.step(images, recording.cameras(frame), time, state)
            found = everyone[hands.tracked]
            poses.put(frame, found, hands.joint_angles[found], hands.world_from_wrist[found], hands.confidence[found])
            landmarks[:, frame] = hands.landmarks
            pinches = updated(pinches, hands.pinching, time)
        poses = replace(poses, model=tracker.model(state).to("cpu", torch.float64))
        tracks = Tracks.of(landmarks.numpy() * MM, true_keypoints(recording), poses.confidence.numpy() > 0, poses)
        return replace(tracks, scale=tracker.scale(state), pinches=pinches)
