"""The multi-stage tracker: detect while lost, find keypoints, fit the pose, extrapolate it, and feed it back.

Keypoints are found in perspective crops (see `lib.multistage.hand_crops`) and return to the picture along exact rays.

Source: MEgATrack (Han et al. 2020).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation
from torch import Tensor
from tqdm import tqdm

from lib.cameras import PosedCamera
from lib.crops import MAX_VIEWS
from lib.errors import InputError
from lib.hands import HANDS, NUM_LANDMARKS, HandModel, HandPoses, for_hand
from lib.multistage.calibration import fit_scale
from lib.multistage.detection import PRESENCE_THRESHOLD
from lib.multistage.energy import FitWeights
from lib.multistage.fit import FIT_WEIGHTS, Expectation, FitResult, HandPose, Observation, fit_pose
from lib.multistage.hand_crops import (
    CachedRecording,
    Frame,
    HandCrops,
    Pictures,
    detected_crops,
    expected_crops,
    labelled_crops,
    take_pictures,
)
from lib.multistage.keypoints import Keypoints, hand_scale, prior, relative_distance
from lib.multistage.kinematics import fitted_camera
from lib.multistage.sources import Detector, KeypointRequest, KeypointSource
from lib.recordings import Recording
from lib.tracking import Tracks, true_keypoints
from lib.transforms import apply, homogeneous, invert

EXTRAPOLATION_GAIN = 0.5
"""Share of the last motion that is expected to go on; less than one forgives a bad pose. Source: MEgATrack."""
CALIBRATION_FRAMES = 100
"""Of which those that show a hand to two cameras calibrate its scale. Source: MEgATrack."""

MIN_CONFIDENCE = 0.69
"""Mean confidence of the keypoints below which a hand in a crop of the tracker's own is lost: 99 % of the hands of
validation users are above it (tables/hand_confidence.csv). Deviation: the source names no such test; without it
what is no hand is followed for as long as its keypoints fit one."""
MAX_MISSED = 5
"""Frames for which a hand that was not found is still expected where it was last: a sixth of a second, in which few
hands leave their crop. From the second on it is where the detector finds it, if it does. Deviation: the source forgets
at once. Detection is less sure than a crop around the last pose: after one missing frame a hand could stay lost."""
SIDE_BY_SIDE = 8
"""Recordings that are tracked together: their crops are one batch, and their videos are open at once."""


@dataclass(frozen=True)
class Memory:
    """The poses of both hands in the last two frames; a pose means nothing where the hand is not `known`.

    A hand that was not found in the last `missed` frames may be known still, at rest where it was found last.
    """

    last: HandPose
    before: HandPose
    known: Bool[Tensor, "2"]
    known_before: Bool[Tensor, "2"]
    missed: Int[Tensor, "2"]

    @staticmethod
    def empty() -> Memory:
        """Neither hand is known."""
        pose = HandPose(torch.zeros(HANDS, 22).double(), torch.eye(4).double().repeat(HANDS, 1, 1))
        nothing = torch.zeros(HANDS, dtype=torch.bool)
        return Memory(pose, pose, nothing, nothing, nothing.long())

    def expectation(self) -> Expectation:
        """Where the hands are expected: the last motion goes on with `EXTRAPOLATION_GAIN`."""
        last, known = self.last, self.known_before[:, None]
        before = HandPose(
            torch.where(known, self.before.joint_angles, last.joint_angles),
            torch.where(known[..., None], self.before.world_from_wrist, last.world_from_wrist),
        )
        turn = Rotation.from_matrix((last.world_from_wrist @ invert(before.world_from_wrist))[:, :3, :3].numpy())
        further = torch.from_numpy(Rotation.from_rotvec(EXTRAPOLATION_GAIN * turn.as_rotvec()).as_matrix())
        shift = (last.world_from_wrist - before.world_from_wrist)[:, :3, 3]
        wrist = homogeneous(
            further @ last.world_from_wrist[:, :3, :3], last.world_from_wrist[:, :3, 3] + EXTRAPOLATION_GAIN * shift
        )
        angles = last.joint_angles + EXTRAPOLATION_GAIN * (last.joint_angles - before.joint_angles)
        return Expectation(HandPose(angles, wrist), last, self.known)

    def after(self, hands: Int[Tensor, "tracked"], fitted: FitResult, patience: int = 0) -> Memory:
        """The memory one frame later; hands not found for more than `patience` frames are forgotten."""
        found = torch.zeros(HANDS, dtype=torch.bool)
        found[hands] = fitted.found
        angles, wrist = self.last.joint_angles.clone(), self.last.world_from_wrist.clone()
        kept = hands[fitted.found]
        angles[kept], wrist[kept] = fitted.pose.joint_angles[fitted.found], fitted.pose.world_from_wrist[fitted.found]
        return replace(self.unseen(patience, found), last=HandPose(angles, wrist))

    def unseen(self, patience: int, found: Bool[Tensor, "2"] | None = None) -> Memory:
        """The memory one frame later, in which no hand was seen but those that were `found`."""
        found = torch.zeros(HANDS, dtype=torch.bool) if found is None else found
        missed = torch.where(found, 0, self.missed + 1)
        return Memory(self.last, self.last, found | (self.known & (missed <= patience)), self.known, missed)


@dataclass(frozen=True)
class FrameFit:
    """What was seen and fitted of the tracked hands in a frame."""

    frame: int
    hands: Int[Tensor, "tracked"]
    observation: Observation
    fitted: FitResult

    def put_into(self, poses: HandPoses, frame: int) -> None:
        """Write down the hands that were found, as sure as their keypoints in the mean."""
        found = self.fitted.found
        hands, pose, confidence = self.hands[found], self.fitted.pose[found], self.observation.mean_confidence()[found]
        poses.put(frame, hands, pose.joint_angles, for_hand(pose.world_from_wrist, hands), confidence)


_Result = TypeVar("_Result")
Run = Generator[KeypointRequest, Keypoints, _Result]
"""A frame or a recording being tracked: it asks for the keypoints of a frame, is sent them, and so on to its end."""


class MultistageTracker:
    """Runs the stages over recordings, or over one frame. Holds no state of its own between calls.

    Without a `detector` the crops come from the labelled pose, as in the evaluation of the end-to-end tracker; with
    one, hands are detected while lost and cropped where they are expected afterwards. `stage` wraps each stage of a
    frame, to be timed.
    """

    def __init__(
        self,
        keypoints: KeypointSource,
        detector: Detector | None = None,
        weights: FitWeights = FIT_WEIGHTS,
        stage: Callable[[str], AbstractContextManager] = nullcontext,
    ):
        self.keypoints, self.detector, self.weights, self.stage = keypoints, detector, weights, stage
        self.patience = 0 if detector is None else MAX_MISSED

    def track_known(self, recording: Recording, model: HandModel) -> Tracks:
        """Track with a known skeleton, `model`; valid where a hand was found, labelled or not."""
        return self.track_all([CachedRecording(recording)], [model])[0]

    def calibrate_scale(self, recording: Recording, generic: HandModel) -> float:
        """The scale of the generic hand that explains the first `CALIBRATION_FRAMES` frames of both hands together.

        Raises InputError if none of them shows a tracked hand to two cameras.
        """
        (scale,) = self.calibrate_all([CachedRecording(recording)], generic)
        if scale is None:
            raise InputError(f"{recording.path}: no frame shows a tracked hand to two cameras; no scale fits")
        return scale

    def track_unknown(self, recording: Recording, generic: HandModel) -> Tracks:
        """Calibrate the scale of the generic hand, then track from the start with the scaled hand."""
        scale = self.calibrate_scale(recording, generic)
        return replace(self.track_known(recording, generic.scaled(scale)), scale=scale)

    def track_all(self, recordings: Sequence[CachedRecording], models: Sequence[HandModel]) -> list[Tracks]:
        """`track_known` of many recordings, `SIDE_BY_SIDE` at a time; one hand model each."""
        fits = self._fit_all(recordings, models)
        return [_tracks(one.recording, *pair) for one, *pair in zip(recordings, models, fits, strict=True)]

    def confidences(self, recordings: Sequence[CachedRecording]) -> Float[Tensor, "found"]:
        """The mean confidence of the keypoints of every hand that is found in any frame; skeletons are known."""
        fits = itertools.chain(*self._fit_all(recordings, [one.recording.hand_model for one in recordings]))
        return torch.cat([torch.zeros(0), *(fit.observation.mean_confidence()[fit.fitted.found] for fit in fits)])

    def _fit_all(self, recordings: Sequence[CachedRecording], models: Sequence[HandModel]) -> list[list[FrameFit]]:
        """Every frame of many recordings."""
        return self._together(
            [self._follow(*pair, len(pair[0].recording)) for pair in zip(recordings, models, strict=True)]
        )

    def calibrate_all(self, recordings: Sequence[CachedRecording], generic: HandModel) -> list[float | None]:
        """`calibrate_scale` of many recordings, `SIDE_BY_SIDE` at a time; None where it would raise."""
        runs = [self._follow(one, generic, min(CALIBRATION_FRAMES, len(one.recording))) for one in recordings]
        return [scale_of(generic, fits) for fits in self._together(runs)]

    def _together(self, runs: Sequence[Run[list[FrameFit]]]) -> list[list[FrameFit]]:
        """Drive runs to their ends, some at a time."""
        parts = range(0, len(runs), SIDE_BY_SIDE)
        shown = parts if len(parts) == 1 else tqdm(parts, "tracking, multistage")
        return [fits for first in shown for fits in self.drive(runs[first : first + SIDE_BY_SIDE])]

    @torch.inference_mode()
    def drive(self, runs: Sequence[Run[_Result]]) -> list[_Result]:
        """Drive runs to their ends, putting the requests of all to the source of keypoints together."""
        results: dict[int, _Result] = {}
        answers: dict[int, Keypoints | None] = dict.fromkeys(range(len(runs)))
        while answers:
            with self.stage("whole frame"):
                requests: dict[int, KeypointRequest] = {}
                for index, answer in answers.items():
                    try:
                        requests[index] = runs[index].send(answer)
                    except StopIteration as end:
                        results[index] = end.value
                with self.stage("keypoints"):
                    replies = self.keypoints(list(requests.values())) if requests else []
                answers = dict(zip(requests, replies, strict=True))
        return [results[index] for index in range(len(runs))]

    def _follow(self, cached: CachedRecording, model: HandModel, frames: int) -> Run[list[FrameFit]]:
        """Both hands through the first frames of a recording."""
        memory, posed, fits = Memory.empty(), cached.recording.posed, []
        for frame, _ in zip(cached.frames(), range(frames), strict=False):
            if posed is not None and not posed[frame.number]:
                memory = memory.unseen(self.patience)
                continue
            memory, fit = yield from self.in_frame(frame, model, memory)
            if fit is not None:
                fits.append(fit)
        return fits

    def in_frame(self, frame: Frame, model: HandModel, memory: Memory) -> Run[tuple[Memory, FrameFit | None]]:
        """Both hands in a frame, and the memory after it; asks at most once, and not where no hand is looked at."""
        with self.stage("crops"):
            crops, pictures, expected = self._look(frame, model, memory)
        if not len(crops.hands):
            return memory.unseen(self.patience), None
        hand, cropped = crops.hands[crops.views.nonzero(as_tuple=True)[0]], crops.chosen()
        scale = hand_scale(model)
        keypoints = yield KeypointRequest(frame, hand, cropped, pictures, _prior(cropped, expected[hand], model, scale))
        with self.stage("fit"):
            observation = _in_pictures(keypoints, crops, frame.cameras, scale)
            fitted = fit_pose(observation, model, crops.hands, expected[crops.hands], self.weights)
            if self.detector is not None:
                fitted = replace(fitted, found=fitted.found & (observation.mean_confidence() >= MIN_CONFIDENCE))
        fit = FrameFit(frame.number, crops.hands, observation, fitted)
        return memory.after(crops.hands, fitted, self.patience), fit

    def _look(self, frame: Frame, model: HandModel, memory: Memory) -> tuple[HandCrops, Pictures, Expectation]:
        """What is looked at, its crops, and where hands are expected: a hand that is detected is not."""
        expected = memory.expectation()
        if self.detector is None:
            return *labelled_crops(frame, model), expected
        if (sought := ~memory.known | (memory.missed > 1)).any():
            detected = self._detect(frame, sought)
            expected = replace(expected, exists=expected.exists.index_fill(0, detected.hands, False))
            crops = expected_crops(frame, model, expected).joined(detected)
        else:
            crops = expected_crops(frame, model, expected)
        return crops, take_pictures(frame.images, frame.cameras, crops), expected

    def _detect(self, frame: Frame, sought: Bool[Tensor, "2"]) -> HandCrops:
        """The hands sought that the detector finds in one camera, another one in each frame."""
        camera = frame.number % len(frame.images)
        with self.stage("detector"):
            circles = self.detector(frame, camera)
        hands = (sought & (circles.presence > PRESENCE_THRESHOLD)).nonzero()[:, 0]
        return detected_crops(frame.cameras, frame.mounting_angles, camera, circles, hands)


def scale_of(generic: HandModel, fits: Sequence[FrameFit]) -> float | None:
    """The scale of the generic hand that explains what was seen in some frames; None if no hand was, by two cameras."""
    seen = [(fit.observation[fit.fitted.found], fit.fitted.pose[fit.fitted.found]) for fit in fits]
    return fit_scale([observed for observed, _ in seen], generic, [pose for _, pose in seen])


def _prior(
    cameras: PosedCamera, expected: Expectation, model: HandModel, scale: Float[Tensor, ""]
) -> Float[Tensor, "crops 63"]:
    landmarks = expected.pose.landmarks(model)
    distance = relative_distance(cameras.to_camera(landmarks), scale)
    return prior(cameras.project(landmarks).float(), distance.float(), expected.exists)


def _in_pictures(keypoints: Keypoints, crops: HandCrops, cameras: PosedCamera, scale: Float[Tensor, ""]) -> Observation:
    """Keypoints of crops as an observation of hands in the pictures that the crops were taken from."""
    cameras = replace(cameras, camera=fitted_camera(cameras.camera))
    rows, sources = crops.views.nonzero(as_tuple=True)
    slots, cropped, hands = crops.views.cumsum(dim=1)[rows, sources] - 1, crops.chosen(), len(crops.hands)
    rays = cropped.camera[:, None].unproject(keypoints.pixels.double())
    pixels = cameras[sources].project(apply(cropped.world_from_camera, rays))
    source = torch.zeros(hands, MAX_VIEWS, dtype=torch.long)
    source[rows, slots] = sources
    observed = torch.zeros(hands, MAX_VIEWS, NUM_LANDMARKS, 4).double()
    distance, confidence = scale * keypoints.relative_distance.double(), keypoints.confidence.double()
    observed[rows, slots] = torch.cat((pixels, distance[..., None], confidence[..., None]), dim=-1)
    return Observation(cameras[source], observed[..., :2], observed[..., 2], observed[..., 3])


def _tracks(recording: Recording, model: HandModel, fits: Sequence[FrameFit]) -> Tracks:
    poses = HandPoses.untracked(model, len(recording))
    for fit in fits:
        fit.put_into(poses, fit.frame)
    return Tracks.of_poses(poses, true_keypoints(recording))
