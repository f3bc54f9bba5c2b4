"""Recordings tracked as a stream: frame by frame by a live tracker, without their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from lib.files import MM
from lib.hands import HANDS, HandModel, HandPoses
from lib.live.multistage import LiveMultistageTracker
from lib.live.tracker import LiveTracker
from lib.recordings import Recording
from lib.tracking import Tracks, true_keypoints

LiveTrackerOf = Callable[..., LiveTracker | LiveMultistageTracker]
"""Makes a live tracker, of mounting angles and a hand_model, or a generic hand and how it is calibrated."""


class StreamTracker:
    """Tracks recordings with crops of its own, by a live tracker for each. Holds no state between calls."""

    def __init__(self, make: LiveTrackerOf):
        self.make = make

    def track_known(self, recording: Recording, model: HandModel) -> Tracks:
        """Track with a known skeleton."""
        return self._track(recording, self.make(recording.mounting_angles, hand_model=model))

    def track_unknown(self, recording: Recording, generic: HandModel, *samples: int) -> Tracks:
        """Track while the scale of the generic hand is found, without a second pass; `samples` are `LiveTracker`'s."""
        return self._track(recording, self.make(recording.mounting_angles, None, generic, *samples))

    def _track(self, recording: Recording, tracker: LiveTracker | LiveMultistageTracker) -> Tracks:
        """Frames in which the headset has no pose are skipped."""
        state, everyone = tracker.start(), torch.arange(HANDS)
        poses, landmarks = HandPoses.untracked(tracker.model(state), len(recording)), []
        for frame, images in enumerate(recording.images()):
            if recording.posed is not None and not recording.posed[frame]:
                state = tracker.skip(state)
                landmarks.append(torch.zeros(HANDS, 21, 3).double())
                continue
            time = frame / recording.frames_per_second
            hands, state = tracker.step(images, recording.cameras(frame), time, state)
            found = everyone[hands.tracked]
            poses.put(frame, found, hands.joint_angles[found], hands.world_from_wrist[found], hands.confidence[found])
            landmarks.append(hands.landmarks)
        poses = replace(poses, model=tracker.model(state).to("cpu", torch.float64))
        shown = torch.stack(landmarks, dim=1).numpy() * MM
        tracks = Tracks.of(shown, true_keypoints(recording), poses.confidence.numpy() > 0, poses)
        scale = tracker.scale(state)
        return tracks if scale is None else replace(tracks, scale=scale)
