"""The end-to-end tracker of a stream: pictures in, hands out, frame by frame, without labels.

A hand that is followed is cropped where its last motion lets expect it. Where a hand is lost, or its confidence low, a
detector looks for it in one camera, another one in each frame: the crop around its circle gives a first pose, and that
the crops of the same frame. The pose of the greater confidence is followed. The paper leaves start, loss and recovery
to others (§3.3 takes crops for granted); all of this is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.cameras import PosedCamera
from lib.crops import Crops, take_crops
from lib.hands import HANDS, HandModel, PosedHands, for_hand
from lib.live.confidence import Confidence, signs
from lib.live.crops import PreparedHand, crop_hands
from lib.live.engines import Engine, torch_engine
from lib.live.hands import Detect, LiveHands, check_frame, pinching
from lib.multistage.detection import PRESENCE_THRESHOLD
from lib.multistage.fit import HandPose
from lib.multistage.hand_crops import detected_crops
from lib.multistage.tracker import Memory
from lib.network import TemporalState, UmeTrack
from lib.tracking import CALIBRATION_SAMPLES, prepare_for_inference

TRUSTED, FOLLOWED, BEGINS = 2.2, -2.0, 0.0
"""Logarithms of the odds that a hand is right: above which it is tracked; above which it is still followed, though not
reported, and sought where the detector sees it; and above which a hand that is begun there is followed."""
REACH = 0.05, 1.5
"""Distances from the cameras at which hands are believed (m)."""
MAX_JUMP = 0.2
"""How far a hand may be from where it is expected, in the mean of its landmarks (m)."""
SAME_PLACE = 0.03
"""Two hands whose landmarks are nearer than this, in the mean, are one (m)."""


@dataclass(frozen=True)
class LiveState:
    """What the tracker knows after a frame. A value: the caller keeps it, and may go back to an earlier one."""

    memory: Memory
    temporal: TemporalState
    pinching: Bool[Tensor, "2"]
    scales: tuple[float, ...] = ()
    """Of the generic hand, as regressor U has predicted so far."""
    frame: int = 0
    time: float | None = None


@dataclass(frozen=True)
class _Hand:
    """A hand model, as crops ask for it, and as the network does."""

    model: HandModel
    prepared: PreparedHand
    on_device: HandModel


@dataclass(frozen=True)
class _Seen:
    """Hands as the network sees them in crops, the odds that each is right, and what is remembered of it."""

    hands: PosedHands
    landmarks: Float[Tensor, "2 21 3"]
    logit: Float[Tensor, "2"]
    """Minus infinity where there is no hand."""
    moved: Float[Tensor, "2"]
    """How far they are from where they were expected, in the mean of their landmarks (m)."""
    temporal: TemporalState
    scales: tuple[float, ...] = ()

    def exchanged(self, other: _Seen, hands: Bool[Tensor, "2"]) -> _Seen:
        """Some of the hands as seen otherwise."""
        pose, chosen = _replaced(_pose(self.hands), _pose(other.hands), hands), hands.nonzero()[:, 0]
        return _Seen(
            _posed(self.hands.model, pose),
            torch.where(hands[:, None, None], other.landmarks, self.landmarks),
            torch.where(hands, other.logit, self.logit),
            torch.where(hands, other.moved, self.moved),
            self.temporal.update(chosen, other.temporal[chosen]),
            self.scales,
        )


class LiveTracker:
    """Follows both hands through frames. Holds no state between steps.

    With a `hand_model` the skeleton is known; without, the scale of the `generic` hand is found while tracking: the
    mean of what regressor U says of hands that two cameras see, until there are so many `samples` (§5.3). Deviation:
    poses are those of regressor K from the first frame on, with the hand as scaled so far. An `engine` with the weights
    of the network does its work, but for regressor U (default: the network itself).
    """

    def __init__(
        self,
        network: UmeTrack,
        detect: Detect,
        confidence: Confidence,
        mounting_angles: Float[Tensor, "cameras"],
        hand_model: HandModel | None = None,
        generic: HandModel | None = None,
        samples: int = CALIBRATION_SAMPLES,
        device: torch.device | str = "cpu",
        engine: Engine | None = None,
    ):
        if hand_model is None and generic is None:
            raise ValueError("a tracker needs the user's hand_model, or a generic hand to scale")
        self.network = prepare_for_inference(network).to(device)
        self.engine = engine or torch_engine(self.network)
        self.detect, self.confidence = detect, confidence
        self.mounting_angles, self.device = mounting_angles, torch.device(device)
        self.hand_model, self.generic, self.samples = hand_model, generic, samples
        self._hand = lru_cache(maxsize=2)(self._hand_of_scale)

    def start(self) -> LiveState:
        """Nothing is known yet."""
        nothing = torch.zeros(HANDS, dtype=torch.bool)
        return LiveState(Memory.empty(), TemporalState.untracked(HANDS, self.device), nothing)

    def model(self, state: LiveState) -> HandModel:
        """The hand as it is known: the user's, or the generic one at the scale found so far."""
        return self._hand(self.scale(state)).model

    def scale(self, state: LiveState) -> float | None:
        """The scale of the generic hand, as found so far; None of a known skeleton, and before the first sample."""
        return float(np.mean(state.scales)) if state.scales else None

    @torch.inference_mode()
    def step(
        self, images: np.ndarray, cameras: PosedCamera, time: float, state: LiveState
    ) -> tuple[LiveHands, LiveState]:
        """The hands in a frame, and the state after it.

        `images` are grey pictures, uint8 (cameras, height, width), of `cameras` as they are placed in this frame.
        Raises InputError for pictures of another size, type or number than the cameras, for cameras without a pose, and
        for a `time` (s) that is not after that of the frame before.
        """
        check_frame(images, cameras, len(self.mounting_angles), time, state.time)
        hand, memory = self._hand(self.scale(state)), state.memory
        expected = memory.expectation().pose
        seen = self._see(images, cameras, hand, expected, memory.known, state.temporal)
        seen = replace(seen, logit=seen.logit.where(seen.moved < MAX_JUMP, -math.inf))
        if (sought := seen.logit < TRUSTED).any():
            begun = self._begin(images, cameras, sought, hand, state)
            seen = seen.exchanged(begun, sought & (begun.logit > seen.logit.clamp(min=BEGINS)))
        followed = _one_hand_each(seen.logit > FOLLOWED, seen)
        tracked = followed & (seen.logit > TRUSTED)
        confidence = torch.where(followed, seen.logit.sigmoid(), 0.0)
        posed = seen.hands.joint_angles, seen.hands.world_from_wrist
        pinches = pinching(seen.landmarks, tracked, state.pinching)
        hands = LiveHands(tracked, confidence, *posed, seen.landmarks, pinches)
        scales = (state.scales + seen.scales)[: self.samples]
        after = replace(state, temporal=seen.temporal, pinching=pinches, scales=scales)
        return hands, self._after(after, _pose(seen.hands), followed, time)

    def skip(self, state: LiveState) -> LiveState:
        """The state after a frame in which the headset has no pose: nothing is known any more."""
        return self.start()

    def _see(
        self,
        images: np.ndarray,
        cameras: PosedCamera,
        hand: _Hand,
        pose: HandPose,
        exists: Bool[Tensor, "2"],
        before: TemporalState,
    ) -> _Seen:
        """The hands that exist, in crops around a pose."""
        hands, crops = self._crops(images, cameras, hand, replace(_posed(hand.model, pose), exists=exists))
        return self._predict(crops, hands, hand, pose, cameras, before)

    def _crops(
        self, images: np.ndarray, cameras: PosedCamera, hand: _Hand, posed: PosedHands
    ) -> tuple[Int[Tensor, "tracked"], Crops]:
        """The hands that a camera sees, and their crops."""
        return crop_hands(images, cameras, self.mounting_angles, posed, hand.prepared)

    def _begin(
        self,
        images: np.ndarray,
        cameras: PosedCamera,
        sought: Bool[Tensor, "2"],
        hand: _Hand,
        state: LiveState,
    ) -> _Seen:
        """The hands sought as they begin where the detector sees them, in one camera."""
        camera, unknown = state.frame % len(images), TemporalState.untracked(HANDS, self.device)
        circles = self.detect(cameras.camera.view(images, camera))
        found = (sought & (circles.presence > PRESENCE_THRESHOLD)).nonzero()[:, 0]
        detected = detected_crops(cameras, self.mounting_angles, camera, circles, found)
        crops = take_crops(images, cameras, detected.hands, detected.views, detected.cropped)
        nowhere = _pose(_nobody(hand.model))
        first = self._predict(crops, detected.hands, hand, nowhere, cameras, unknown)
        return self._see(images, cameras, hand, _pose(first.hands), first.hands.exists, unknown)

    def _predict(
        self,
        crops: Crops,
        hands: Int[Tensor, "tracked"],
        hand: _Hand,
        expected: HandPose,
        cameras: PosedCamera,
        before: TemporalState,
    ) -> _Seen:
        """What regressor K says of the `hands` in crops around an expected pose."""
        found, scales = _nobody(hand.model), ()
        expected_landmarks, logit = hand.prepared.landmarks(expected), torch.full((HANDS,), -math.inf).double()
        if not len(hands):
            return _Seen(found, expected_landmarks, logit, torch.zeros(HANDS).double(), before)
        crops = crops.to(self.device)
        output = self.engine(crops, hands, hand.on_device, before)
        found.joint_angles[hands] = output.known.joint_angles.double().cpu()
        found.world_from_wrist[hands] = output.known.world_from_wrist.double().cpu()
        landmarks = hand.prepared.landmarks(_pose(found))
        shift = landmarks - expected_landmarks
        logit[hands] = self.confidence.logit(signs(output.extracted, crops, shift[hands].to(self.device))).cpu()
        exists = _within_reach(landmarks, cameras) & logit.isfinite()
        if self.hand_model is None and (good := crops.two_views & (logit[hands] > BEGINS).to(self.device)).any():
            scales = tuple(self.network.unknown(output.features[good], crops[good]).scale.tolist())
        moved, logit = shift.norm(dim=-1).mean(dim=-1), logit.where(exists, -math.inf)
        return _Seen(replace(found, exists=exists), landmarks, logit, moved, output.after, scales)

    def _hand_of_scale(self, scale: float | None) -> _Hand:
        """The user's hand, or the generic one at a scale."""
        model = self.hand_model or (self.generic if scale is None else self.generic.scaled(scale))
        return _Hand(model, PreparedHand.of(model), model.to(self.device, torch.float32))

    def _after(self, state: LiveState, pose: HandPose, found: Bool[Tensor, "2"], time: float) -> LiveState:
        """The state one frame later, in which the hands that were `found` have this pose."""
        last = state.memory.last
        memory = Memory(
            _replaced(last, pose, found), last, found, state.memory.known, torch.zeros(HANDS, dtype=torch.long)
        )
        return replace(
            state,
            memory=memory,
            temporal=state.temporal.lose(~found.to(self.device)),
            pinching=state.pinching & found,
            frame=state.frame + 1,
            time=time,
        )


def _nobody(model: HandModel) -> PosedHands:
    """Neither hand."""
    pose = torch.zeros(HANDS, 22).double(), torch.eye(4).double().repeat(HANDS, 1, 1)
    return PosedHands(model, *pose, torch.zeros(HANDS, dtype=torch.bool))


def _replaced(pose: HandPose, other: HandPose, hands: Bool[Tensor, "2"]) -> HandPose:
    """A pose in which some of the hands have another one."""
    return HandPose(
        torch.where(hands[:, None], other.joint_angles, pose.joint_angles),
        torch.where(hands[:, None, None], other.world_from_wrist, pose.world_from_wrist),
    )


def _pose(hands: PosedHands) -> HandPose:
    return HandPose(hands.joint_angles, hands.wrists)


def _posed(model: HandModel, pose: HandPose) -> PosedHands:
    """Both hands, stored unmirrored."""
    wrists = for_hand(pose.world_from_wrist, torch.arange(HANDS))
    return PosedHands(model, pose.joint_angles, wrists, torch.ones(HANDS, dtype=torch.bool))


def _within_reach(landmarks: Float[Tensor, "2 21 3"], cameras: PosedCamera) -> Bool[Tensor, "2"]:
    """Whether hands are finite, and as far from a camera as hands can be."""
    distance = torch.cdist(landmarks.mean(dim=1), cameras.world_from_camera[:, :3, 3]).amin(dim=1)
    return landmarks.isfinite().flatten(1).all(-1) & (distance > REACH[0]) & (distance < REACH[1])


def _one_hand_each(tracked: Bool[Tensor, "2"], seen: _Seen) -> Bool[Tensor, "2"]:
    """Without the less likely of two hands in one place."""
    apart = (seen.landmarks[0] - seen.landmarks[1]).norm(dim=-1).mean()
    if not tracked.all() or apart > SAME_PLACE:
        return tracked
    return torch.arange(HANDS) == seen.logit.argmax()
