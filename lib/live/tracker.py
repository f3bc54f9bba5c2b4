"""The end-to-end tracker of a stream: pictures in, hands out, frame by frame, without labels.

Where a hand is lost, a detector looks for it in one camera, another one in each frame; the crop around its circle gives
a first pose, and that the crops of the same frame. A hand that is followed is cropped where its last motion lets expect
it. Now and then the detector says whether there is such a hand where it is followed: `confidence` is how likely that
makes it. The paper leaves start, loss and recovery to others (§3.3 takes crops for granted); all of this is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lib.cameras import PosedCamera
from lib.crop_cache import hand_circles
from lib.crops import Crops, take_crops
from lib.errors import InputError
from lib.hands import HANDS, INDEX_TIP, THUMB_TIP, HandModel, PosedHands, for_hand
from lib.live.crops import PreparedHand, crop_hands
from lib.multistage.detection import PRESENCE_THRESHOLD, Circles
from lib.multistage.fit import HandPose
from lib.multistage.hand_crops import detected_crops
from lib.multistage.tracker import Memory
from lib.network import Features, TemporalState, UmeTrack
from lib.tracking import CALIBRATION_SAMPLES, advance, prepare_for_inference

Detect = Callable[[UInt8[np.ndarray, "height width"]], Circles]
"""Where a detector sees either hand in one picture."""
CHECK_EVERY = 4
"""Frames from one look of the detector to the next while both hands are followed: of 1, 2 and 4 the cheapest, and no
worse on 20 recordings of validation users."""
MATCHES = math.log(0.93 / 0.15), math.log(0.07 / 0.85)
"""What a look adds to the logarithm of the odds that the right hand is followed: where the detector sees it there, and
where it does not. Chosen, not fitted: of hands of validation users within 25 mm of the truth looks saw 99 %, of those
beyond 60 mm 71 %, so that they tell little about bad poses, and much about hands that are not there."""
MAX_ODDS, MIN_ODDS = 3.0, -1.5
"""Beyond the first, looks add nothing; below the second a hand is lost."""
REACH = 0.05, 1.5
"""Distances from the cameras at which hands are believed (m)."""
MAX_JUMP = 0.2
"""How far a hand may be from where it is expected, in the mean of its landmarks (m)."""
SAME_PLACE = 0.03
"""Two hands whose landmarks are nearer than this, in the mean, are one (m)."""
PINCH_BEGINS, PINCH_ENDS = 0.0155, 0.022
"""Distances of the tips of thumb and index finger (m). The first is the threshold tuned on validation users."""


@dataclass(frozen=True)
class LiveHands:
    """Both hands in a frame, left first; poses mean nothing where a hand is not `tracked`.

    `world_from_wrist` is stored unmirrored (`hands.for_hand`). Metres, radians.
    """

    tracked: Bool[Tensor, "2"]
    confidence: Float[Tensor, "2"]
    joint_angles: Float[Tensor, "2 22"]
    world_from_wrist: Float[Tensor, "2 4 4"]
    landmarks: Float[Tensor, "2 21 3"]
    pinching: Bool[Tensor, "2"]


@dataclass(frozen=True)
class LiveState:
    """What the tracker knows after a frame. A value: the caller keeps it, and may go back to an earlier one."""

    memory: Memory
    temporal: TemporalState
    odds: Float[Tensor, "2"]
    """Logarithms of the odds that the right hand is followed."""
    pinching: Bool[Tensor, "2"]
    scales: tuple[float, ...] = ()
    """Of the generic hand, as regressor U has predicted so far."""
    frame: int = 0
    time: float | None = None


class LiveTracker:
    """Follows both hands through frames. Holds no state between steps.

    With a `hand_model` the skeleton is known; without, the scale of the `generic` hand is found while tracking: the
    mean of what regressor U says of hands that two cameras see, until there are so many `samples` (§5.3). Deviation:
    poses are those of regressor K from the first frame on, with the hand as scaled so far.
    """

    def __init__(
        self,
        network: UmeTrack,
        detect: Detect,
        mounting_angles: Float[Tensor, "cameras"],
        hand_model: HandModel | None = None,
        generic: HandModel | None = None,
        samples: int = CALIBRATION_SAMPLES,
        device: torch.device | str = "cpu",
    ):
        if hand_model is None and generic is None:
            raise ValueError("a tracker needs the user's hand_model, or a generic hand to scale")
        self.network = prepare_for_inference(network).to(device)
        self.detect, self.mounting_angles, self.device = detect, mounting_angles, torch.device(device)
        self.hand_model, self.generic, self.samples = hand_model, generic, samples
        self._hand: tuple[HandModel, PreparedHand] | None = None

    def start(self) -> LiveState:
        """Nothing is known yet."""
        nothing = torch.zeros(HANDS, dtype=torch.bool)
        return LiveState(
            Memory.empty(), TemporalState.untracked(HANDS, self.device), torch.zeros(HANDS).double(), nothing
        )

    def model(self, state: LiveState) -> HandModel:
        """The hand as it is known: the user's, or the generic one at the scale found so far."""
        scale = self.scale(state)
        return self.hand_model or (self.generic if scale is None else self.generic.scaled(scale))

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
        self._check(images, cameras, time, state)
        model, expected = self.model(state), state.memory.expectation()
        pose, exists = expected.pose, expected.exists
        camera, circles = self._look(images, cameras, state)
        if circles is not None and (new := ~exists & (circles.presence > PRESENCE_THRESHOLD)).any():
            first, new = self._begin(images, cameras, camera, circles, new, model)
            pose, exists = _replaced(pose, first, new), exists | new
        found, temporal, scales = self._see(images, cameras, model, pose, exists, state)
        landmarks = found.landmarks()
        believed = found.exists & _plausible(landmarks, pose.landmarks(model), cameras)
        odds = torch.where(expected.exists, state.odds, 0.0)
        if circles is not None:
            odds = _updated(odds, believed, landmarks, cameras, camera, circles)
        believed = _one_hand_each(believed & (odds > MIN_ODDS), landmarks, odds)
        pinching = _pinching(landmarks, state.pinching & believed) & believed
        hands = LiveHands(
            believed, torch.where(believed, odds.sigmoid(), 0.0), found.joint_angles, found.world_from_wrist,
            landmarks, pinching,
        )  # fmt: skip
        after = replace(state, temporal=temporal, odds=odds, pinching=pinching, scales=scales)
        return hands, self._after(after, HandPose(found.joint_angles, found.wrists), believed, time)

    def _see(
        self,
        images: np.ndarray,
        cameras: PosedCamera,
        model: HandModel,
        pose: HandPose,
        exists: Bool[Tensor, "2"],
        state: LiveState,
    ) -> tuple[PosedHands, TemporalState, tuple[float, ...]]:
        """Hands as the network sees them in the crops of a pose, what it remembers, and all scales so far."""
        wrists = for_hand(pose.world_from_wrist, torch.arange(HANDS))
        posed = PosedHands(model, pose.joint_angles, wrists, exists)
        hands, crops = crop_hands(images, cameras, self.mounting_angles, posed, self._prepared(model))
        if not len(hands):
            return _nobody(model), state.temporal, state.scales
        found, temporal, crops, features = self._predict(crops, hands, model, state.temporal)
        scales = state.scales
        if self.hand_model is None and len(scales) < self.samples and crops.two_views.any():
            two = crops.two_views
            scales += tuple(self.network.unknown(features[two], crops[two]).scale.tolist())
        return found, temporal, scales[: self.samples]

    def _check(self, images: np.ndarray, cameras: PosedCamera, time: float, state: LiveState) -> None:
        shape = (len(self.mounting_angles), cameras.camera.height, cameras.camera.width)
        if images.shape != shape or images.dtype != np.uint8 or len(cameras.world_from_camera) != shape[0]:
            raise InputError(
                f"pictures of shape {images.shape}, {images.dtype}, by {len(cameras.world_from_camera)} cameras: "
                f"expected {shape} of uint8, as cameras and mounting angles say"
            )
        if not cameras.world_from_camera.isfinite().all():
            raise InputError("a camera's pose is not finite: leave out frames in which the headset is not tracked")
        if not math.isfinite(time) or (state.time is not None and time <= state.time):
            raise InputError(f"a frame at {time} s after one at {state.time} s: expected a later one")

    def _look(self, images: np.ndarray, cameras: PosedCamera, state: LiveState) -> tuple[int, Circles | None]:
        """Which camera is next, and what the detector sees in it, if it looks in this frame."""
        followed = bool(state.memory.known.all())
        camera = (state.frame // CHECK_EVERY if followed else state.frame) % len(images)
        if followed and state.frame % CHECK_EVERY:
            return camera, None
        columns, rows = cameras.camera.size_px[camera].int().tolist()
        return camera, self.detect(images[camera, :rows, :columns])

    def _begin(
        self,
        images: np.ndarray,
        cameras: PosedCamera,
        camera: int,
        circles: Circles,
        found: Bool[Tensor, "2"],
        model: HandModel,
    ) -> tuple[HandPose, Bool[Tensor, "2"]]:
        """First poses of detected hands, from the crops around their circles."""
        detected = detected_crops(cameras, self.mounting_angles, camera, circles, found.nonzero()[:, 0])
        if not len(detected.hands):
            first = _nobody(model)
            return HandPose(first.joint_angles, first.wrists), first.exists
        crops = take_crops(images, cameras, detected.hands, detected.views, detected.cropped)
        unknown = TemporalState.untracked(HANDS, self.device)
        first, _, _, _ = self._predict(crops, detected.hands, model, unknown)
        return HandPose(first.joint_angles, first.wrists), first.exists

    def _predict(
        self, crops: Crops, hands: Int[Tensor, "tracked"], model: HandModel, before: TemporalState
    ) -> tuple[PosedHands, TemporalState, Crops, Features]:
        """What regressor K says of the hands in crops, what is remembered, and the crops and features on the device."""
        crops = crops.to(self.device)
        features, temporal = advance(self.network, self.network.extract(crops), crops, hands, before)
        prediction = self.network.known(features, crops, model.to(self.device, torch.float32))
        found = _nobody(model)
        found.joint_angles[hands] = prediction.joint_angles.double().cpu()
        found.world_from_wrist[hands] = prediction.world_from_wrist.double().cpu()
        finite = found.joint_angles.isfinite().all(-1) & found.world_from_wrist.isfinite().flatten(1).all(-1)
        exists = found.exists.index_fill(0, hands, True) & finite
        return replace(found, exists=exists), temporal, crops, features

    def _prepared(self, model: HandModel) -> PreparedHand:
        """A hand as crops ask for it; made anew when the hand has changed."""
        if self._hand is None or self._hand[0] is not model:
            self._hand = model, PreparedHand.of(model)
        return self._hand[1]

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
            odds=torch.where(found, state.odds, 0.0),
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


def _plausible(
    landmarks: Float[Tensor, "2 21 3"], expected: Float[Tensor, "2 21 3"], cameras: PosedCamera
) -> Bool[Tensor, "2"]:
    """Whether hands are finite, within reach, and near where they are expected."""
    centers = cameras.world_from_camera[:, :3, 3]
    distance = torch.cdist(landmarks.mean(dim=1), centers).amin(dim=1)
    near = (landmarks - expected).norm(dim=-1).mean(dim=-1) < MAX_JUMP
    return landmarks.isfinite().flatten(1).all(-1) & (distance > REACH[0]) & (distance < REACH[1]) & near


def _updated(
    odds: Float[Tensor, "2"],
    followed: Bool[Tensor, "2"],
    landmarks: Float[Tensor, "2 21 3"],
    cameras: PosedCamera,
    camera: int,
    circles: Circles,
) -> Float[Tensor, "2"]:
    """The odds after a look of the detector through one camera, at hands that are followed and wholly in its view."""
    around, _ = hand_circles(cameras[[camera]], landmarks)
    center, radius = around[0, :, :2], around[0, :, 2]
    away = (circles.center_px.double() - center).norm(dim=-1)
    match = (circles.presence > PRESENCE_THRESHOLD) & (away < radius)
    changed = (odds + torch.where(match, *(torch.tensor(m).double() for m in MATCHES))).clamp(max=MAX_ODDS)
    return torch.where(followed & (radius > 0), changed, odds)


def _one_hand_each(
    followed: Bool[Tensor, "2"], landmarks: Float[Tensor, "2 21 3"], odds: Float[Tensor, "2"]
) -> Bool[Tensor, "2"]:
    """Without the less likely of two hands in one place."""
    apart = (landmarks[0] - landmarks[1]).norm(dim=-1).mean()
    if not followed.all() or apart > SAME_PLACE:
        return followed
    return torch.arange(HANDS) == odds.argmax()


def _pinching(landmarks: Float[Tensor, "2 21 3"], before: Bool[Tensor, "2"]) -> Bool[Tensor, "2"]:
    distance = (landmarks[:, THUMB_TIP] - landmarks[:, INDEX_TIP]).norm(dim=-1)
    return distance < torch.where(before, PINCH_ENDS, PINCH_BEGINS)
