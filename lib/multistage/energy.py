"""The energy of a pose of one hand and its derivatives, compiled.

E = E_2D + w1 E_dist + w2 |θ - θ(t-1)|². Source: MEgATrack, Pose fit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lib.compiled import compiled
from lib.crops import MAX_VIEWS
from lib.hands import NUM_FINGER_JOINTS, NUM_LANDMARKS
from lib.multistage.kinematics import NUM_PARAMETERS, NUM_POSE, NUM_WRIST, dot, pose_landmarks, project_point

NUM_RESIDUALS = MAX_VIEWS * NUM_LANDMARKS * 3
_MM, _DM = 1e3, 10.0


class FitWeights(NamedTuple):
    """What the terms of the energy count, in px².

    Source: MEgATrack; weights open, found on validation users by `tuning.search_weights`. Deviation: residuals
    beyond `outlier_px` count linearly (Huber), so that one mistaken keypoint cannot carry a hand away.
    """

    distance: float = 0.04
    """Of squared relative distances in mm²."""
    temporal: float = 10.0
    """Of the squared change of the pose since the previous frame in rad² and dm²."""
    outlier_px: float = 2.0


class FitInput(NamedTuple):
    """What up to two views tell of one hand; `confidence` 0 marks what is missing."""

    lenses: Float[np.ndarray, "2 17"]
    camera_from_world: Float[np.ndarray, "2 4 4"]
    pixels: Float[np.ndarray, "2 21 2"]
    relative_distance: Float[np.ndarray, "2 21"]
    confidence: Float[np.ndarray, "2 21"]


@compiled
def is_shown(fit_input, view):
    """Whether a view shows any keypoint."""
    return fit_input.confidence[view].max() > 0.0


@compiled
def linearise(skeleton, fit_input, weights, pose, scale, residuals, jacobian):
    """Write residuals (126) and their derivative (126, 27), weighted and made robust; return E_2D + w1 E_dist.

    Three rows for each keypoint in each view: x, y, and distance from the camera less the mean of those that are seen.

    `pose` is (joint angles, wrist), which pose the left model of the hand, enlarged by `scale`.
    """
    points, derivative = np.empty((NUM_LANDMARKS, 3)), np.zeros((NUM_LANDMARKS, 3, NUM_PARAMETERS))
    world_landmarks(skeleton, pose, scale, points, derivative)
    residuals[:], jacobian[:] = 0.0, 0.0
    millimetre = _MM * np.sqrt(weights.distance)
    pixel, by_point, by_world = np.empty(2), np.empty((2, 3)), np.empty((3, 3))
    seen, energy = np.empty(3), 0.0
    for view in range(MAX_VIEWS):
        first = view * NUM_LANDMARKS * 3
        last = first + NUM_LANDMARKS * 3
        if not is_shown(fit_input, view):
            continue
        camera = fit_input.camera_from_world[view]
        for landmark in range(NUM_LANDMARKS):
            row = first + 3 * landmark
            for axis in range(3):
                seen[axis] = dot(camera[axis], points[landmark]) + camera[axis, 3]
            distance = np.sqrt(dot(seen, seen))
            project_point(fit_input.lenses[view], seen, pixel, by_point)
            residuals[row] = pixel[0] - fit_input.pixels[view, landmark, 0]
            residuals[row + 1] = pixel[1] - fit_input.pixels[view, landmark, 1]
            residuals[row + 2] = millimetre * (distance - scale * fit_input.relative_distance[view, landmark])
            for axis in range(3):
                by_world[0, axis] = dot(by_point[0], camera[:, axis])
                by_world[1, axis] = dot(by_point[1], camera[:, axis])
                by_world[2, axis] = millimetre * dot(seen, camera[:, axis]) / distance
                for index in range(3):
                    for k in range(NUM_PARAMETERS):
                        jacobian[row + index, k] += by_world[index, axis] * derivative[landmark, axis, k]
            jacobian[row + 2, NUM_POSE] -= millimetre * fit_input.relative_distance[view, landmark]
        _subtract_mean(residuals[first:last], jacobian[first:last], fit_input.confidence[view])
        for landmark in range(NUM_LANDMARKS):
            row, weight = first + 3 * landmark, fit_input.confidence[view, landmark]
            energy += _robust(residuals, jacobian, row, row + 2, weight, weights.outlier_px)
            energy += _robust(residuals, jacobian, row + 2, row + 3, weight, weights.outlier_px)
    return energy


@compiled
def _subtract_mean(residuals, jacobian, confidence):
    """Make the distances, every third row, free of their mean over what is seen."""
    total, mean, mean_slope = 0.0, 0.0, np.zeros(NUM_PARAMETERS)
    for landmark in range(NUM_LANDMARKS):
        weight, row = confidence[landmark], 3 * landmark + 2
        total += weight
        mean += weight * residuals[row]
        for k in range(NUM_PARAMETERS):
            mean_slope[k] += weight * jacobian[row, k]
    for row in range(2, 3 * NUM_LANDMARKS, 3):
        residuals[row] -= mean / total
        for k in range(NUM_PARAMETERS):
            jacobian[row, k] -= mean_slope[k] / total


@compiled
def world_landmarks(skeleton, pose, scale, points, derivative):
    """Write the landmarks (21, 3) in the world and their derivative (21, 3, 27)."""
    angles, wrist = pose
    local, by_angle = np.empty((NUM_LANDMARKS, 3)), np.empty((NUM_LANDMARKS, 3, NUM_FINGER_JOINTS))
    pose_landmarks(skeleton, angles, local, by_angle)
    for landmark in range(NUM_LANDMARKS):
        x, y, z = dot(wrist[0], local[landmark]), dot(wrist[1], local[landmark]), dot(wrist[2], local[landmark])
        derivative[landmark, 0, NUM_POSE] = x
        derivative[landmark, 1, NUM_POSE] = y
        derivative[landmark, 2, NUM_POSE] = z
        x, y, z = scale * x, scale * y, scale * z
        derivative[landmark, 0, 4], derivative[landmark, 0, 5] = z, -y
        derivative[landmark, 1, 3], derivative[landmark, 1, 5] = -z, x
        derivative[landmark, 2, 3], derivative[landmark, 2, 4] = y, -x
        points[landmark, 0], points[landmark, 1], points[landmark, 2] = (
            wrist[0, 3] + x,
            wrist[1, 3] + y,
            wrist[2, 3] + z,
        )
        for axis in range(3):
            derivative[landmark, axis, axis] = 1.0
            for joint in range(NUM_FINGER_JOINTS):
                derivative[landmark, axis, NUM_WRIST + joint] = scale * (
                    wrist[axis, 0] * by_angle[landmark, 0, joint]
                    + wrist[axis, 1] * by_angle[landmark, 1, joint]
                    + wrist[axis, 2] * by_angle[landmark, 2, joint]
                )


@compiled
def _robust(residuals, jacobian, first, last, weight, outlier):
    """Weight the rows of one residual as Huber's norm does, and return its share of the energy."""
    square = 0.0
    for row in range(first, last):
        square += residuals[row] * residuals[row]
    size = np.sqrt(square)
    factor = np.sqrt(weight if size <= outlier else weight * outlier / size)
    for row in range(first, last):
        residuals[row] *= factor
        for k in range(NUM_PARAMETERS):
            jacobian[row, k] *= factor
    return weight * (square if size <= outlier else outlier * (2.0 * size - outlier))


@compiled
def add_temporal(weight, pose, previous, gradient, hessian):
    """Add the temporal term to the gradient (27) and Hessian (27, 27) of half the energy; the term.

    The turn counts 3 - tr(R R(t-1)^T), which is its squared angle where small.
    """
    (angles, wrist), (previous_angles, previous_wrist) = pose, previous
    energy = 0.0
    for joint in range(NUM_FINGER_JOINTS):
        change = angles[joint] - previous_angles[joint]
        gradient[NUM_WRIST + joint] += weight * change
        hessian[NUM_WRIST + joint, NUM_WRIST + joint] += weight
        energy += weight * change * change
    for axis in range(3):
        change = _DM * (wrist[axis, 3] - previous_wrist[axis, 3])
        gradient[axis] += weight * _DM * change
        hessian[axis, axis] += weight * _DM * _DM
        energy += weight * change * change
        before, after = previous_wrist[:3, axis], wrist[:3, axis]
        gradient[3] += 0.5 * weight * (before[1] * after[2] - before[2] * after[1])
        gradient[4] += 0.5 * weight * (before[2] * after[0] - before[0] * after[2])
        gradient[5] += 0.5 * weight * (before[0] * after[1] - before[1] * after[0])
        hessian[3 + axis, 3 + axis] += weight
        energy += weight * (1.0 - dot(before, after))
    return energy


@compiled
def normal_equations(residuals, jacobian, gradient, hessian):
    """Write J^T r and the lower triangle of J^T J."""
    gradient[:], hessian[:] = 0.0, 0.0
    for row in range(len(residuals)):
        for i in range(NUM_PARAMETERS):
            slope = jacobian[row, i]
            if slope != 0.0:
                gradient[i] += slope * residuals[row]
                for j in range(i + 1):
                    hessian[i, j] += slope * jacobian[row, j]


@compiled
def total_energy(skeleton, fit_input, weights, pose, previous, temporal, scale, gradient, hessian):
    """The energy of a pose (joint angles, wrist); write gradient and Hessian of its half, by Gauss and Newton.

    `temporal` is the weight of the pose `previous`, of the same form.
    """
    residuals, jacobian = np.empty(NUM_RESIDUALS), np.empty((NUM_RESIDUALS, NUM_PARAMETERS))
    energy = linearise(skeleton, fit_input, weights, pose, scale, residuals, jacobian)
    normal_equations(residuals, jacobian, gradient, hessian)
    return energy + add_temporal(temporal, pose, previous, gradient, hessian)
