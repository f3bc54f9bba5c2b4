"""The size of an unknown hand: one scale of the generic hand that explains many frames, each with a pose of its own.

Source: MEgATrack, Scale calibration.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lib.compiled import compiled
from lib.hands import NUM_FINGER_JOINTS, HandModel
from lib.multistage.descent import (
    CONVERGED,
    FIRST_DAMPING,
    LESS_DAMPING,
    MORE_DAMPING,
    damp,
    factorise,
    moved,
    solve_factorised,
)
from lib.multistage.energy import FitInput, total_energy
from lib.multistage.fit import FIT_WEIGHTS, HandPose, Observation, one_hand
from lib.multistage.kinematics import NUM_PARAMETERS, NUM_POSE, FitSkeleton

CALIBRATION_ITERATIONS = 30


def fit_scale(
    observations: Sequence[Observation],
    model: HandModel,
    starts: Sequence[HandPose],
) -> float | None:
    """The scale of `model` that, with the hands' poses, minimises the energy of all observed hands together.

    `starts` holds the poses that the descent begins with, one batch for each of `observations`. Every hand counts that
    two views show; both hands of a user may be given together. The Hessian is an arrow, one block per pose and a border
    for the scale: eliminating the poses (Schur complement) leaves one equation. None if no hand counts.
    Source: MEgATrack, Scale calibration.
    Deviation: E_2D + w1 E_dist instead of E_2D alone, which noise makes overestimate: independent errors of the
    keypoints lengthen bones (1.5 px over 100 frames: by 0.5 %, against 0.1 % with relative distances off by 3 mm).
    """
    fit_inputs = [observation.fit_input() for observation in observations]
    shown = [(fit_input.confidence > 0).any(axis=2).all(axis=1) for fit_input in fit_inputs]
    if not any(chosen.any() for chosen in shown):
        return None

    def joined(batches: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate([batch[chosen] for batch, chosen in zip(batches, shown, strict=True)])

    angles = joined(start.joint_angles.numpy()[:, :NUM_FINGER_JOINTS] for start in starts)
    wrists = joined(start.world_from_wrist.numpy() for start in starts)
    chosen = FitInput(*(joined(fields) for fields in zip(*fit_inputs, strict=True)))
    return float(_fit_scale(FitSkeleton.of(model), chosen, FIT_WEIGHTS, angles, wrists))


@compiled
def _fit_scale(skeleton, fit_inputs, weights, angles, wrists):
    gradients, hessians = (
        np.empty((len(angles), NUM_PARAMETERS)),
        np.empty((len(angles), NUM_PARAMETERS, NUM_PARAMETERS)),
    )
    new_angles, new_wrists = np.empty_like(angles), np.empty_like(wrists)
    scale, damping = 1.0, FIRST_DAMPING
    energy = _linearise_all(skeleton, fit_inputs, weights, angles, wrists, scale, gradients, hessians)
    for _ in range(CALIBRATION_ITERATIONS):
        new_scale = scale + _step(skeleton, angles, wrists, gradients, hessians, damping, new_angles, new_wrists)
        new_energy = np.inf
        if new_scale > 0.0:
            new_gradients, new_hessians = np.empty_like(gradients), np.empty_like(hessians)
            new_energy = _linearise_all(
                skeleton, fit_inputs, weights, new_angles, new_wrists, new_scale, new_gradients, new_hessians
            )
        if new_energy < energy:
            gain, scale, energy, damping = energy - new_energy, new_scale, new_energy, damping * LESS_DAMPING
            angles[:], wrists[:] = new_angles, new_wrists
            gradients, hessians = new_gradients, new_hessians
            if gain < CONVERGED * energy:
                break
        else:
            damping *= MORE_DAMPING
    return scale


@compiled
def _linearise_all(skeleton, fit_inputs, weights, angles, wrists, scale, gradients, hessians):
    energy = 0.0
    for hand in range(len(angles)):
        pose = angles[hand], wrists[hand]
        energy += total_energy(
            skeleton, one_hand(fit_inputs, hand), weights, pose, pose, 0.0, scale, gradients[hand], hessians[hand]
        )
    return energy


@compiled
def _step(skeleton, angles, wrists, gradients, hessians, damping, new_angles, new_wrists):
    """Write the poses after one step and return the step of the scale."""
    steps, borders = np.empty((len(angles), NUM_POSE)), np.empty((len(angles), NUM_POSE))
    slope, curvature = 0.0, 0.0
    for hand in range(len(angles)):
        factor, steps[hand] = hessians[hand].copy(), -gradients[hand, :NUM_POSE]
        damp(skeleton, angles[hand], steps[hand], factor, damping)
        border = factor[NUM_POSE, :NUM_POSE]
        borders[hand] = border
        factorise(factor, NUM_POSE)
        solve_factorised(factor, steps[hand], NUM_POSE)
        solve_factorised(factor, borders[hand], NUM_POSE)
        slope += gradients[hand, NUM_POSE] + (border * steps[hand]).sum()
        curvature += hessians[hand, NUM_POSE, NUM_POSE] - (border * borders[hand]).sum()
    step = -slope / curvature
    for hand in range(len(angles)):
        new_angles[hand], new_wrists[hand] = moved(
            skeleton, (angles[hand], wrists[hand]), steps[hand] - step * borders[hand]
        )
    return step
