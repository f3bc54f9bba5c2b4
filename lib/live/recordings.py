"""Recordings tracked as a stream: frame by frame by the live tracker, without their labels."""

from __future__ import annotations

from dataclasses import replace

import torch

from lib.files import MM
from lib.hands import HANDS, HandModel, HandPoses
from lib.live.confidence import Confidence
from lib.live.tracker import Detect, LiveTracker
from lib.network import UmeTrack
from lib.recordings import Recording
from lib.tracking import CALIBRATION_SAMPLES, Tracks, true_keypoints


class StreamTracker:
    """Tracks recordings with crops of its own. Holds no state between calls."""

    def __init__(self, network: UmeTrack, detect: Detect, confidence: Confidence, device: torch.device | str = "cpu"):
        self.network, self.detect, self.confidence, self.device = network, detect, confidence, device

    def track_known(self, recording: Recording, model: HandModel) -> Tracks:
        """Track with a known skeleton."""
        return self._track(recording, self._tracker(recording, hand_model=model))

    def track_unknown(self, recording: Recording, generic: HandModel, samples: int = CALIBRATION_SAMPLES) -> Tracks:
        """Track while the scale of the generic hand is found, without a second pass."""
        return self._track(recording, self._tracker(recording, generic=generic, samples=samples))

    def _tracker(self, recording: Recording, **model) -> LiveTracker:
        angles = recording.mounting_angles
        return LiveTracker(self.network, self.detect, self.confidence, angles, device=self.device, **model)

    def _track(self, recording: Recording, tracker: LiveTracker) -> Tracks:
        """Where the headset has no pose, nothing is followed."""
        state, everyone = tracker.start(), torch.arange(HANDS)
        poses, landmarks = HandPoses.untracked(tracker.model(state), len(recording)), []
        for frame, images in enumerate(recording.images()):
            if recording.posed is not None and not recording.posed[frame]:
                state = tracker.start()
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
