"""Levenberg-Marquardt over the 26 parameters of a pose, compiled."""

from __future__ import annotations

import numpy as np

from lib.compiled import compiled
from lib.hands import NUM_FINGER_JOINTS
from lib.multistage.energy import total_energy
from lib.multistage.kinematics import NUM_PARAMETERS, NUM_POSE, NUM_WRIST, dot, multiply, rodrigues

CONVERGED = 1e-6
"""Relative decrease of the energy below which the descent ends."""
FIRST_DAMPING, LESS_DAMPING, MORE_DAMPING = 1e-3, 0.2, 8.0


@compiled
def minimise(skeleton, fit_input, weights, start, previous, temporal, iterations):
    """The pose (joint angles, wrist) of least energy that is found from `start`, and its energy."""
    gradient, hessian = np.empty(NUM_PARAMETERS), np.empty((NUM_PARAMETERS, NUM_PARAMETERS))
    new_gradient, new_hessian = np.empty_like(gradient), np.empty_like(hessian)
    pose = moved(skeleton, start, np.zeros(NUM_POSE))
    energy = total_energy(skeleton, fit_input, weights, pose, previous, temporal, 1.0, gradient, hessian)
    damping = FIRST_DAMPING
    for _ in range(iterations):
        step, factor = -gradient, hessian.copy()
        damp(skeleton, pose[0], step, factor, damping)
        if not factorise(factor, NUM_POSE):
            break
        solve_factorised(factor, step, NUM_POSE)
        candidate = moved(skeleton, pose, step)
        new_energy = total_energy(
            skeleton, fit_input, weights, candidate, previous, temporal, 1.0, new_gradient, new_hessian
        )
        if new_energy < energy:
            gain, pose, energy, damping = energy - new_energy, candidate, new_energy, damping * LESS_DAMPING
            gradient[:], hessian[:] = new_gradient, new_hessian
            if gain < CONVERGED * energy:
                break
        else:
            damping *= MORE_DAMPING
    return pose, energy


@compiled
def factorise(matrix, size):
    """Turn the lower triangle of a positive definite matrix into its Cholesky factor, in place; whether it is one."""
    for i in range(size):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            if i == j:
                if not total > 0.0:
                    return False
                matrix[i, i] = np.sqrt(total)
            else:
                matrix[i, j] = total / matrix[j, j]
    return True


@compiled
def solve_factorised(factor, vector, size):
    """Solve L L^T x = vector in place."""
    for i in range(size):
        for k in range(i):
            vector[i] -= factor[i, k] * vector[k]
        vector[i] /= factor[i, i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            vector[i] -= factor[k, i] * vector[k]
        vector[i] /= factor[i, i]


@compiled
def damp(skeleton, angles, descent, hessian, damping):
    """Add Marquardt's damping, and hold the angles that rest at a bound and would leave it. In place."""
    for i in range(NUM_POSE):
        hessian[i, i] += damping * (hessian[i, i] + 1.0)
    for joint in range(NUM_FINGER_JOINTS):
        i = NUM_WRIST + joint
        below = angles[joint] <= skeleton.lowest[joint] and descent[i] < 0.0
        if below or (angles[joint] >= skeleton.highest[joint] and descent[i] > 0.0):
            descent[i], hessian[i, :i], hessian[i + 1 :, i], hessian[i, i] = 0.0, 0.0, 0.0, 1.0


@compiled
def moved(skeleton, pose, step):
    """The pose (joint angles, wrist) after a step of its 26 parameters, its angles clamped to their bounds."""
    angles, wrist = pose
    new_wrist, turn, product = wrist.copy(), np.empty((3, 3)), np.empty((3, 3))
    angle = np.sqrt(dot(step[3:NUM_WRIST], step[3:NUM_WRIST]))
    if angle > 0.0:
        axis = np.empty(3)
        for row in range(3):
            axis[row] = step[3 + row] / angle
        rodrigues(axis, angle, turn)
        multiply(turn, wrist, product)
        new_wrist[:3, :3] = product
    for row in range(3):
        new_wrist[row, 3] += step[row]
    new_angles = np.empty(NUM_FINGER_JOINTS)
    for joint in range(NUM_FINGER_JOINTS):
        angle = angles[joint] + step[NUM_WRIST + joint]
        new_angles[joint] = min(max(angle, skeleton.lowest[joint]), skeleton.highest[joint])
    return new_angles, new_wrist
