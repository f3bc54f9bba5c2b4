"""The multi-stage tracker of a stream, one step per frame: what it does in a frame is what it does in a recording."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.cameras import PosedCamera
from lib.hands import HANDS, HandModel, HandPoses
from lib.live.hands import Detect, LiveHands, check_frame, pinching
from lib.multistage.hand_crops import Frame
from lib.multistage.sources import KeypointSource
from lib.multistage.tracker import CALIBRATION_FRAMES, FrameFit, Memory, MultistageTracker, scale_of


@dataclass(frozen=True)
class LiveMultistageState:
    """What the tracker knows after a frame. A value: the caller keeps it, and may go back to an earlier one."""

    memory: Memory
    pinching: Bool[Tensor, "2"]
    seen: tuple[FrameFit, ...] = ()
    """Of the generic hand, until its scale is fitted."""
    scale: float | None = None
    frame: int = 0
    time: float | None = None


class LiveMultistageTracker:
    """Follows both hands through frames. Holds no state between steps.

    With a `hand_model` the skeleton is known. Without, the `generic` hand is tracked as it is, until as many frames as
    `CALIBRATION_FRAMES` have shown a hand to two cameras; then its scale is fitted to these, and it goes on scaled.
    Deviation: the source goes through those frames again.
    """

    def __init__(
        self,
        keypoints: KeypointSource,
        detect: Detect,
        mounting_angles: Float[Tensor, "cameras"],
        hand_model: HandModel | None = None,
        generic: HandModel | None = None,
    ):
        if hand_model is None and generic is None:
            raise ValueError("a tracker needs the user's hand_model, or a generic hand to scale")
        self.tracker = MultistageTracker(keypoints, lambda frame, camera: detect(frame.view(camera)))
        self.mounting_angles, self.hand_model, self.generic = mounting_angles, hand_model, generic

    def start(self) -> LiveMultistageState:
        """Nothing is known yet."""
        return LiveMultistageState(Memory.empty(), torch.zeros(HANDS, dtype=torch.bool))

    def model(self, state: LiveMultistageState) -> HandModel:
        """The hand as it is known: the user's, or the generic one, scaled once its scale is fitted."""
        return self.hand_model or (self.generic if state.scale is None else self.generic.scaled(state.scale))

    def scale(self, state: LiveMultistageState) -> float | None:
        """The scale of the generic hand; None of a known skeleton, and until it is fitted."""
        return state.scale

    @torch.inference_mode()
    def step(
        self, images: np.ndarray, cameras: PosedCamera, time: float, state: LiveMultistageState
    ) -> tuple[LiveHands, LiveMultistageState]:
        """The hands in a frame, and the state after it; takes and refuses what `LiveTracker.step` does.

        A hand's confidence is the mean of its keypoints'.
        """
        check_frame(images, cameras, len(self.mounting_angles), time, state.time)
        model, frame = self.model(state), Frame(images, cameras, self.mounting_angles, state.frame)
        ((memory, fit),) = self.tracker.drive([self.tracker.in_frame(frame, model, state.memory)])
        hands = _live_hands(fit, model, state.pinching)
        after = replace(state, memory=memory, pinching=hands.pinching, frame=state.frame + 1, time=time)
        return hands, after if fit is None else self._calibrated(after, fit)

    def skip(self, state: LiveMultistageState) -> LiveMultistageState:
        """The state after a frame in which the headset has no pose: its hands were not seen."""
        nothing = torch.zeros_like(state.pinching)
        memory = state.memory.unseen(self.tracker.patience)
        return replace(state, memory=memory, pinching=nothing, frame=state.frame + 1)

    def _calibrated(self, state: LiveMultistageState, fit: FrameFit) -> LiveMultistageState:
        """The state with what a frame tells of the scale, as long as it is not known."""
        seen = fit.observation[fit.fitted.found].confidence > 0
        if self.hand_model is not None or state.scale is not None or not seen.any(dim=-1).all(dim=-1).any():
            return state
        fits = (*state.seen, fit)
        if len(fits) < CALIBRATION_FRAMES:
            return replace(state, seen=fits)
        return replace(state, seen=(), scale=scale_of(self.generic, fits))


def _live_hands(fit: FrameFit | None, model: HandModel, pinching_before: Bool[Tensor, "2"]) -> LiveHands:
    poses = HandPoses.untracked(model, 1)
    if fit is not None:
        fit.put_into(poses, 0)
    confidence, landmarks = poses.confidence[:, 0], poses.landmarks()[:, 0]
    tracked = confidence > 0
    pose = poses.joint_angles[:, 0], poses.world_from_wrist[:, 0]
    return LiveHands(tracked, confidence, *pose, landmarks, pinching(landmarks, tracked, pinching_before))
