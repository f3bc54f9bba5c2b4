"""The pose fit: the pose of a hand model that explains keypoints in one or two views.

Levenberg-Marquardt over the wrist and 20 joint angles, from the expected pose while a hand is tracked, and from the
palm, aligned in several ways, where it is not. Poses are those that pose the left model (`hands.for_hand`), mirrored
for a right hand, in all of `lib.multistage`: only the alignment of the palm asks which hand it is.

Source: MEgATrack (Han et al. 2020), Pose fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.cameras import PosedCamera
from lib.compiled import compiled
from lib.crops import MAX_VIEWS
from lib.hands import LANDMARKS, NUM_FINGER_JOINTS, NUM_LANDMARKS, RIGHT, HandModel
from lib.multistage.descent import minimise
from lib.multistage.energy import FitInput, FitWeights, is_shown, world_landmarks
from lib.multistage.kinematics import (
    NUM_PARAMETERS,
    FitSkeleton,
    dot,
    lens_of,
    multiply,
    pose_landmarks,
    project_point,
    unproject,
)

ITERATIONS = (10, 10, 30)
"""From where a hand is expected; of each cold start; of the best of these afterwards."""
MIN_KEYPOINTS = 8
"""Keypoints that at least one view must show."""
MAX_RESIDUAL_PX = 12.0
"""Mean distance of the keypoints from the fitted hand beyond which the hand is lost."""
MAX_DISTANCE = 1.5
"""From a camera (m), along its axis: no arm reaches as far."""
FIT_WEIGHTS = FitWeights()
_DEPTHS = np.geomspace(0.08, 1.2, 64)
_MAX_RELATIVE_DISTANCE = 0.2
_ON_PALM = np.array([name in ("wrist", "palm") or name.endswith("proximal") for name in LANDMARKS])
_FINGER_WEIGHT = 0.02  # of landmarks beside the palm when it is aligned


@dataclass(frozen=True)
class HandPose:
    """Poses of hands. `world_from_wrist` poses the left model (`hands.for_hand`); float64."""

    joint_angles: Float[Tensor, "*hands 22"]
    world_from_wrist: Float[Tensor, "*hands 4 4"]

    def __getitem__(self, index) -> HandPose:
        """Some of the hands."""
        return HandPose(self.joint_angles[index], self.world_from_wrist[index])

    def landmarks(self, model: HandModel) -> Float[Tensor, "*hands 21 3"]:
        """The landmarks of the posed hands, metres in the world."""
        return model.landmarks(self.joint_angles, self.world_from_wrist)


@dataclass(frozen=True)
class Expectation:
    """Where hands are expected: the pose to start from, the pose of the previous frame; neither unless `exists`."""

    pose: HandPose
    previous: HandPose
    exists: Bool[Tensor, "*hands"]

    def __getitem__(self, index) -> Expectation:
        """Some of the hands."""
        return Expectation(self.pose[index], self.previous[index], self.exists[index])


@dataclass(frozen=True)
class Observation:
    """Keypoints of hands in up to two views each; what is not finite or has confidence 0 is missing.

    `pixels` are those of the picture, through the lens of its camera; `relative_distance` is the distance from the
    camera's centre less its mean over the 21 keypoints, in metres if the hand is as large as the model. Float64.
    """

    cameras: PosedCamera
    pixels: Float[Tensor, "hands 2 21 2"]
    relative_distance: Float[Tensor, "hands 2 21"]
    confidence: Float[Tensor, "hands 2 21"]

    def __getitem__(self, hands: Bool[Tensor, "hands"]) -> Observation:
        """Some of the hands."""
        seen = self.pixels[hands], self.relative_distance[hands], self.confidence[hands]
        return Observation(self.cameras[hands], *seen)

    def mean_confidence(self) -> Float[Tensor, "hands"]:
        """Over the keypoints of a hand that are not missing; zero if all are."""
        return self.confidence.sum(dim=(1, 2)) / (self.confidence > 0).sum(dim=(1, 2)).clamp(min=1)

    def fit_input(self) -> FitInput:
        """The observation as the compiled functions read it, with zeros for what is missing."""
        finite = self.pixels.isfinite().all(dim=-1) & self.relative_distance.isfinite() & (self.confidence > 0)
        finite &= self.cameras.world_from_camera.isfinite().all(dim=-1).all(dim=-1, keepdim=True)
        fields = (
            self.cameras.camera_from_world,
            self.pixels.where(finite[..., None], 0.0),
            self.relative_distance.where(finite, 0.0),
            self.confidence.where(finite, 0.0),
        )
        return FitInput(lens_of(self.cameras.camera), *(np.ascontiguousarray(field.numpy()) for field in fields))


@dataclass(frozen=True)
class FitResult:
    """Fitted poses; where not `found`, the hand is lost and its pose means nothing.

    `residual_px` is the mean distance between keypoints and their projections, weighted by confidence.
    """

    pose: HandPose
    energy: Float[Tensor, "hands"]
    residual_px: Float[Tensor, "hands"]
    found: Bool[Tensor, "hands"]


def fit_pose(
    observation: Observation,
    model: HandModel,
    hand: Int[Tensor, "hands"],
    expected: Expectation | None = None,
    weights: FitWeights = FIT_WEIGHTS,
) -> FitResult:
    """Fit the pose of every observed hand, of the side `hand`, with one hand model.

    A hand that is expected starts warm, in its expected pose; any other, and one not found from there, starts cold.
    """
    fit_input, hands = observation.fit_input(), len(hand)
    angles, wrists = np.zeros((2, hands, 20)), np.zeros((2, hands, 4, 4))
    exists = np.zeros(hands, bool)
    if expected is not None:
        exists = expected.exists.numpy()
        for index, pose in enumerate((expected.pose, expected.previous)):
            angles[index], wrists[index] = pose.joint_angles[:, :20], pose.world_from_wrist
    outcome = np.zeros((hands, 3))
    right = hand.numpy() == RIGHT
    _fit_hands(FitSkeleton.of(model), fit_input, weights, ITERATIONS, right, exists, angles, wrists, outcome)
    joint_angles = torch.nn.functional.pad(torch.from_numpy(angles[0]), (0, 2))
    energy, residual_px, found = torch.from_numpy(outcome).unbind(dim=-1)
    return FitResult(HandPose(joint_angles, torch.from_numpy(wrists[0])), energy, residual_px, found > 0)


@compiled
def one_hand(fit_input, hand):
    """What is seen of one of a batch of hands."""
    return FitInput(
        fit_input.lenses[hand],
        fit_input.camera_from_world[hand],
        fit_input.pixels[hand],
        fit_input.relative_distance[hand],
        fit_input.confidence[hand],
    )


@compiled
def _fit_hands(skeleton, fit_inputs, weights, iterations, right, exists, angles, wrists, outcome):
    for hand in range(len(right)):
        fit_input = one_hand(fit_inputs, hand)
        if _count(fit_input.confidence[0], fit_input.confidence[1]) < MIN_KEYPOINTS:
            outcome[hand, 0], outcome[hand, 1] = np.inf, np.inf
            continue
        found = False
        if exists[hand]:
            start, previous = (angles[0, hand], wrists[0, hand]), (angles[1, hand], wrists[1, hand])
            pose, energy = minimise(skeleton, fit_input, weights, start, previous, weights.temporal, iterations[0])
            residual_px, found = _judge(skeleton, fit_input, pose, energy)
        if not found:
            pose, energy = _cold_start(skeleton, fit_input, weights, iterations, right[hand])
            residual_px, found = _judge(skeleton, fit_input, pose, energy)
        angles[0, hand], wrists[0, hand] = pose
        outcome[hand, 0], outcome[hand, 1], outcome[hand, 2] = energy, residual_px, found


@compiled
def _count(confidence, other):
    count = 0
    for landmark in range(NUM_LANDMARKS):
        count += confidence[landmark] > 0.0 or other[landmark] > 0.0
    return count


@compiled
def _judge(skeleton, fit_input, pose, energy):
    """Mean residual of a fitted pose (px) and whether it may stand."""
    points, derivative = np.empty((NUM_LANDMARKS, 3)), np.zeros((NUM_LANDMARKS, 3, NUM_PARAMETERS))
    world_landmarks(skeleton, pose, 1.0, points, derivative)
    seen, pixel, by_point = np.empty(3), np.empty(2), np.empty((2, 3))
    total, residual, plausible = 0.0, 0.0, np.isfinite(energy)
    for view in range(MAX_VIEWS):
        if not is_shown(fit_input, view):
            continue
        depth = 0.0
        for landmark in range(NUM_LANDMARKS):
            _to_camera(fit_input.camera_from_world[view], points[landmark], seen)
            project_point(fit_input.lenses[view], seen, pixel, by_point)
            depth += seen[2] / NUM_LANDMARKS
            weight = fit_input.confidence[view, landmark]
            x, y = pixel[0] - fit_input.pixels[view, landmark, 0], pixel[1] - fit_input.pixels[view, landmark, 1]
            residual += weight * np.sqrt(x * x + y * y)
            total += weight
        plausible = plausible and depth > 0.0 and depth < MAX_DISTANCE
    residual /= total
    return residual, plausible and residual <= MAX_RESIDUAL_PX


@compiled
def _to_camera(camera_from_world, point, seen):
    for axis in range(3):
        seen[axis] = dot(camera_from_world[axis], point) + camera_from_world[axis, 3]


@compiled
def _cold_start(skeleton, fit_input, weights, iterations, right):
    """The best pose from the palm, placed by each view and by both, with straight, half bent and bent fingers."""
    targets, target_weights = np.zeros((MAX_VIEWS + 1, NUM_LANDMARKS, 3)), np.zeros((MAX_VIEWS + 1, NUM_LANDMARKS))
    _place_keypoints(skeleton, fit_input, targets, target_weights)
    best, best_energy = (np.zeros(NUM_FINGER_JOINTS), np.eye(4)), np.inf
    local, derivative = np.empty((NUM_LANDMARKS, 3)), np.empty((NUM_LANDMARKS, 3, NUM_FINGER_JOINTS))
    for source in range(MAX_VIEWS + 1):
        if _count(target_weights[source], target_weights[source]) < MIN_KEYPOINTS:
            continue
        for bend in (0.0, 0.4, 0.8):
            angles = bend * np.maximum(skeleton.highest, 0.0)
            angles[::4] = 0.0
            pose_landmarks(skeleton, angles, local, derivative)
            start = (angles, _aligned(local, targets[source], target_weights[source], right))
            pose, energy = minimise(skeleton, fit_input, weights, start, start, 0.0, iterations[1])
            if energy < best_energy:
                best, best_energy = pose, energy
    return minimise(skeleton, fit_input, weights, best, best, 0.0, iterations[2])


@compiled
def _place_keypoints(skeleton, fit_input, targets, target_weights):
    """Write where each view alone, then both together, see the keypoints in the world, and weights for alignment."""
    rays, centers = np.zeros((MAX_VIEWS, NUM_LANDMARKS, 3)), np.zeros((MAX_VIEWS, 3))
    ray = np.empty(3)
    for view in range(MAX_VIEWS):
        pose = fit_input.camera_from_world[view]
        for axis in range(3):
            centers[view, axis] = -(
                pose[0, axis] * pose[0, 3] + pose[1, axis] * pose[1, 3] + pose[2, axis] * pose[2, 3]
            )
        for landmark in range(NUM_LANDMARKS):
            if fit_input.confidence[view, landmark] > 0.0:
                unproject(fit_input.lenses[view], fit_input.pixels[view, landmark], ray)
                for axis in range(3):
                    rays[view, landmark, axis] = dot(pose[:3, axis], ray)
                if np.isfinite(ray[0]):
                    share = 1.0 if _ON_PALM[landmark] else _FINGER_WEIGHT
                    target_weights[view, landmark] = share * fit_input.confidence[view, landmark]
        _by_size(
            skeleton, rays[view], centers[view], fit_input.relative_distance[view], targets[view], target_weights[view]
        )
    for landmark in range(NUM_LANDMARKS):
        both = np.sqrt(target_weights[0, landmark] * target_weights[1, landmark])
        if both > 0.0 and _meet(centers, rays[:, landmark], targets[MAX_VIEWS, landmark]):
            target_weights[MAX_VIEWS, landmark] = both


@compiled
def _by_size(skeleton, rays, center, relative_distance, targets, weights):
    """Write keypoints along their rays, at the distance at which the palm has its size."""
    best = np.inf
    candidate = np.empty((NUM_LANDMARKS, 3))
    for depth in _DEPTHS:
        for landmark in range(NUM_LANDMARKS):
            relative = min(max(relative_distance[landmark], -_MAX_RELATIVE_DISTANCE), _MAX_RELATIVE_DISTANCE)
            candidate[landmark] = center + rays[landmark] * max(depth + relative, _DEPTHS[0] / 2)
        misfit = 0.0
        for a in range(NUM_LANDMARKS):
            for b in range(a):
                if weights[a] > 0.0 and weights[b] > 0.0 and _ON_PALM[a] and _ON_PALM[b]:
                    seen, true = candidate[a] - candidate[b], skeleton.landmarks[a] - skeleton.landmarks[b]
                    misfit += (np.sqrt(dot(seen, seen)) - np.sqrt(dot(true, true))) ** 2
        if misfit < best:
            best = misfit
            targets[:] = candidate


@compiled
def _meet(centers, rays, target):
    """Write the point nearest to two rays; whether they meet before both cameras."""
    between = centers[1] - centers[0]
    cosine = dot(rays[0], rays[1])
    sine2 = 1.0 - cosine * cosine
    first = (dot(between, rays[0]) - cosine * dot(between, rays[1])) / sine2
    second = (cosine * dot(between, rays[0]) - dot(between, rays[1])) / sine2
    target[:] = 0.5 * (centers[0] + first * rays[0] + centers[1] + second * rays[1])
    return 0.0 < first < MAX_DISTANCE and 0.0 < second < MAX_DISTANCE


@compiled
def _aligned(local, targets, weights, right):
    """The wrist (4, 4) that brings landmarks in its frame closest to their targets; a mirrored one for a right hand.

    Source: Sorkine-Hornung & Rabinovich 2016.
    """
    total, center, target_center = 0.0, np.zeros(3), np.zeros(3)
    for landmark in range(NUM_LANDMARKS):
        if weights[landmark] > 0.0:
            total += weights[landmark]
            for row in range(3):
                center[row] += weights[landmark] * local[landmark, row]
                target_center[row] += weights[landmark] * targets[landmark, row]
    center, target_center, covariance = center / total, target_center / total, np.zeros((3, 3))
    for landmark in range(NUM_LANDMARKS):
        if weights[landmark] > 0.0:
            for row in range(3):
                off = weights[landmark] * (targets[landmark, row] - target_center[row])
                for column in range(3):
                    covariance[row, column] += off * (local[landmark, column] - center[column])
    left, _, right_t = np.linalg.svd(covariance)
    wrist, side = np.eye(4), -1.0 if right else 1.0
    multiply(left, right_t, wrist)
    determinant = 0.0
    for k in range(3):
        determinant += wrist[0, k] * wrist[1, (k + 1) % 3] * wrist[2, (k + 2) % 3]
        determinant -= wrist[0, k] * wrist[1, (k + 2) % 3] * wrist[2, (k + 1) % 3]
    if determinant * side < 0.0:
        left[:, 2] = -left[:, 2]
        multiply(left, right_t, wrist)
    for row in range(3):
        wrist[row, 3] = target_center[row] - dot(wrist[row], center)
    return wrist
