from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import normal, random_angles, random_poses
from scipy.spatial.transform import Rotation
from torch.testing import assert_close

from lib.cameras import Camera, Fisheye62, Fisheye624, Pinhole, PosedCamera
from lib.errors import InputError
from lib.hands import LANDMARKS, LEFT, RIGHT, HandModel, for_hand
from lib.multistage.calibration import fit_scale
from lib.multistage.descent import moved
from lib.multistage.energy import NUM_RESIDUALS, FitWeights, linearise, total_energy, world_landmarks
from lib.multistage.fit import FIT_WEIGHTS, Expectation, HandPose, Observation, fit_pose, one_hand
from lib.multistage.kinematics import (
    LIMIT_MARGIN,
    NUM_PARAMETERS,
    NUM_POSE,
    FitSkeleton,
    lens_of,
    project_point,
    unproject,
)
from lib.rendered.scene import sample_rig
from lib.rendered.shape import user_hand
from lib.transforms import homogeneous

THUMB_TO_RING = [i for i, name in enumerate(LANDMARKS) if "pinky" not in name]


def wrists_in_front(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Wrists turned in any way, 0.25 to 0.6 m from the headset, in front of it."""
    direction = rng.normal(size=(count, 3))
    direction[:, 2] = abs(direction[:, 2])
    direction *= rng.uniform(0.25, 0.6, (count, 1)) / np.linalg.norm(direction, axis=1, keepdims=True)
    return homogeneous(torch.tensor(Rotation.random(count, rng).as_matrix()), torch.tensor(direction))


def sample(rng: np.random.Generator, model: HandModel, count: int) -> tuple[HandPose, torch.Tensor, Observation]:
    """Random poses of both hands that two cameras of a headset see, their sides, and their exact keypoints."""
    cameras = sample_rig(rng).posed(torch.eye(4, dtype=torch.float64))
    sides = torch.tensor(rng.integers(0, 2, 8 * count))
    pose = HandPose(random_angles(rng, model, 8 * count), for_hand(wrists_in_front(rng, 8 * count), sides))
    seen = cameras[None].sees(pose.landmarks(model)[:, None]).sum(dim=-1) >= 19
    chosen = (seen.sum(dim=1) >= 2).nonzero()[:count, 0]
    assert len(chosen) == count
    views = seen[chosen].double().topk(2, dim=1).indices
    return pose[chosen], sides[chosen], observe(cameras[views], model, pose[chosen])


def observe(cameras: PosedCamera, model: HandModel, pose: HandPose) -> Observation:
    landmarks = pose.landmarks(model)[:, None]
    distance = torch.linalg.vector_norm(cameras.to_camera(landmarks), dim=-1)
    relative = distance - distance.mean(dim=-1, keepdim=True)
    return Observation(cameras, cameras.project(landmarks), relative, torch.ones_like(relative))


def perturbed(rng: np.random.Generator, pose: HandPose) -> HandPose:
    """Poses about 10 mm and 5 degrees off, in the wrist and in every joint."""
    count = len(pose.joint_angles)
    turn = Rotation.from_rotvec(np.radians(5 / 3**0.5) * rng.normal(size=(count, 3))).as_matrix()
    wrists = pose.world_from_wrist.clone()
    wrists[:, :3, :3] = torch.tensor(turn) @ wrists[:, :3, :3]
    wrists[:, :3, 3] += 0.01 / 3**0.5 * normal(rng, count, 3)
    return HandPose(pose.joint_angles + np.radians(5) * normal(rng, count, 22), wrists)


def expected(pose: HandPose) -> Expectation:
    return Expectation(pose, pose, torch.ones(len(pose.joint_angles), dtype=torch.bool))


def errors_mm(model: HandModel, fitted: HandPose, true: HandPose) -> torch.Tensor:
    return 1e3 * torch.linalg.vector_norm(fitted.landmarks(model) - true.landmarks(model), dim=-1)


def only_first_view(observation: Observation) -> Observation:
    return replace(observation, confidence=observation.confidence * torch.tensor([1.0, 0.0])[:, None])


def as_arrays(pose: HandPose, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return pose.joint_angles[index, :20].numpy().copy(), pose.world_from_wrist[index].numpy().copy()


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_kinematics_are_those_of_the_hand_model(rng, hand, side):
    pose = HandPose(random_angles(rng, hand, 1), for_hand(random_poses(rng, 1), side))
    points, derivative = np.empty((21, 3)), np.zeros((21, 3, NUM_PARAMETERS))
    world_landmarks(FitSkeleton.of(hand), as_arrays(pose), 1.3, points, derivative)
    assert_close(torch.from_numpy(points), pose.landmarks(hand.scaled(1.3))[0], atol=1e-12, rtol=0)


def camera_of(kind: type, rng: np.random.Generator):
    lens = torch.tensor([[-0.02, 0.09, -0.06, 0.01, -0.004, 0.001, 0.002, -0.002, 0.003, -0.001, 0.002, 0.001]])
    focal, center = 240 + normal(rng, 1, 2), 300 + normal(rng, 1, 2)
    return kind(636, 480, focal, center, lens[:, : kind.num_distortion].double())


@pytest.mark.parametrize("kind", [Pinhole, Fisheye62, Fisheye624])
def test_projection_is_that_of_the_camera(rng, kind):
    camera = camera_of(kind, rng)
    points = normal(rng, 50, 3)
    points[:, 2] = points[:, 2].abs() + 0.2
    points[0, :2] = 0.0
    lens = lens_of(camera)[0]
    for point, expected_pixel in zip(points.numpy(), camera.project(points).numpy(), strict=True):
        pixel, derivative, ray = np.empty(2), np.empty((2, 3)), np.empty(3)
        project_point(lens, point, pixel, derivative)
        np.testing.assert_allclose(pixel, expected_pixel, atol=1e-9)
        step = 1e-6 * np.eye(3)
        numeric = (camera.project(torch.tensor(point + step)) - camera.project(torch.tensor(point - step))) / 2e-6
        np.testing.assert_allclose(derivative.T, numeric.numpy(), atol=1e-5, rtol=1e-6)
        unproject(lens, pixel, ray)
        np.testing.assert_allclose(ray, point / np.linalg.norm(point), atol=1e-9)


def test_pixels_beyond_the_lens_have_no_ray(rng):
    ray = np.empty(3)
    unproject(lens_of(camera_of(Fisheye62, rng))[0], np.array([1e7, 0.0]), ray)
    assert np.isnan(ray).all()


def test_an_unknown_camera_is_refused():
    with pytest.raises(InputError, match="no projection for Camera"):
        lens_of(object.__new__(Camera))


def energy_at(rng, hand, outlier_px: float):
    """A skeleton, what is seen of a hand, weights, and poses somewhat off it."""
    pose, _, observation = sample(rng, hand, 1)
    start, previous = as_arrays(perturbed(rng, pose)), as_arrays(perturbed(rng, pose))
    weights = FitWeights(outlier_px=outlier_px)
    return FitSkeleton.of(hand), one_hand(observation.fit_input(), 0), weights, start, previous


def stepped(skeleton: FitSkeleton, pose, scale: float, parameter: int, size: float):
    step = size * np.eye(NUM_PARAMETERS)[parameter]
    return moved(skeleton, pose, step[:NUM_POSE]), scale + step[NUM_POSE]


def test_the_jacobian_is_that_of_finite_differences(rng, hand):
    skeleton, fit_input, weights, pose, _ = energy_at(rng, hand, outlier_px=1e6)
    skeleton = skeleton._replace(lowest=np.full(20, -9.0), highest=np.full(20, 9.0))

    def residuals_at(pose, scale):
        residuals, jacobian = np.empty(NUM_RESIDUALS), np.empty((NUM_RESIDUALS, NUM_PARAMETERS))
        linearise(skeleton, fit_input, weights, pose, scale, residuals, jacobian)
        return residuals, jacobian

    _, jacobian = residuals_at(pose, 1.1)
    for parameter in range(NUM_PARAMETERS):
        after, _ = residuals_at(*stepped(skeleton, pose, 1.1, parameter, 1e-6))
        before, _ = residuals_at(*stepped(skeleton, pose, 1.1, parameter, -1e-6))
        np.testing.assert_allclose(jacobian[:, parameter], (after - before) / 2e-6, atol=1e-4, rtol=1e-6)


def test_the_gradient_is_that_of_the_energy(rng, hand):
    """With outliers and the temporal term; `gradient` is that of half the energy."""
    skeleton, fit_input, weights, pose, previous = energy_at(rng, hand, outlier_px=5.0)
    skeleton = skeleton._replace(lowest=np.full(20, -9.0), highest=np.full(20, 9.0))

    def energy_of(pose, scale):
        gradient, hessian = np.empty(NUM_PARAMETERS), np.empty((NUM_PARAMETERS, NUM_PARAMETERS))
        return total_energy(skeleton, fit_input, weights, pose, previous, 300.0, scale, gradient, hessian), gradient

    energy, gradient = energy_of(pose, 1.1)
    for parameter in range(NUM_PARAMETERS):
        after, _ = energy_of(*stepped(skeleton, pose, 1.1, parameter, 1e-5))
        before, _ = energy_of(*stepped(skeleton, pose, 1.1, parameter, -1e-5))
        np.testing.assert_allclose(2 * gradient[parameter], (after - before) / 2e-5, atol=1e-6 * energy, rtol=1e-5)


@pytest.fixture(scope="module")
def poses() -> list[tuple]:
    """500 random poses of ten users: model, poses, sides, exact keypoints in two views."""
    rng = np.random.default_rng(3)
    models = [user_hand(user).to(dtype=torch.float64) for user in range(10)]
    return [(model, *sample(rng, model, 50)) for model in models]


def test_warm_fits_of_exact_keypoints(rng, poses):
    errors, found = [], []
    for model, true, sides, observation in poses:
        fitted = fit_pose(observation, model, sides, expected(perturbed(rng, true)))
        errors.append(errors_mm(model, fitted.pose, true))
        found.append(fitted.found)
    assert torch.cat(found).all()
    assert torch.cat(errors).median() < 0.5


def test_cold_fits_of_exact_keypoints(poses):
    fits = [(fit_pose(observation, model, sides), model, true) for model, true, sides, observation in poses]
    errors = torch.cat([errors_mm(model, fitted.pose, true).mean(dim=1) for fitted, model, true in fits])
    assert (errors < 2.0).double().mean() >= 0.95
    assert torch.cat([fitted.found for fitted, _, _ in fits]).double().mean() >= 0.95


def test_one_view_and_its_distances_place_a_hand(poses):
    model, true, sides, observation = poses[0]
    fitted = fit_pose(only_first_view(observation), model, sides)
    assert (errors_mm(model, fitted.pose, true).mean(dim=1) < 2.0).double().mean() >= 0.9


def test_angles_stay_within_the_widened_limits(rng, hand):
    _, sides, observation = sample(rng, hand, 20)
    noisy = replace(observation, pixels=observation.pixels + 6 * normal(rng, 20, 2, 21, 2))
    angles = fit_pose(noisy, hand, sides).pose.joint_angles[:, :20]
    low, high = hand.joint_limits[:20].unbind(-1)
    assert ((angles > low - LIMIT_MARGIN - 1e-9) & (angles < high + LIMIT_MARGIN + 1e-9)).all()
    assert ((angles < low) | (angles > high)).any()


def test_a_mistaken_keypoint_does_not_carry_the_hand_away(rng, hand):
    true, sides, observation = sample(rng, hand, 20)
    pixels = observation.pixels.clone()
    pixels[:, 0, LANDMARKS.index("pinky tip")] += 60.0
    wrong = replace(observation, pixels=pixels)
    robust = fit_pose(wrong, hand, sides, expected(true))
    squares = fit_pose(wrong, hand, sides, expected(true), FIT_WEIGHTS._replace(outlier_px=1e6))
    robust, squares = (errors_mm(hand, fitted.pose, true)[:, THUMB_TO_RING].median() for fitted in (robust, squares))
    assert robust < 2.0
    assert squares > 3 * robust


def test_what_is_not_seen_stays_as_it_was(rng, hand):
    true, sides, observation = sample(rng, hand, 10)
    confidence = observation.confidence.clone()
    confidence[..., [i for i in range(21) if i not in THUMB_TO_RING]] = 0.0
    before = perturbed(rng, true)
    fitted = fit_pose(replace(observation, confidence=confidence), hand, sides, expected(before))
    low, high = (hand.joint_limits + torch.tensor([-LIMIT_MARGIN, LIMIT_MARGIN]))[16:20].unbind(-1)
    assert_close(fitted.pose.joint_angles[:, 16:20], before.joint_angles[:, 16:20].clamp(low, high), atol=1e-6, rtol=0)


def test_a_hand_that_is_not_where_it_was_expected_is_found_anew(rng, hand):
    true, sides, observation = sample(rng, hand, 10)
    elsewhere = HandPose(true.joint_angles.flip(0), homogeneous(true.world_from_wrist[:, :3, :3], torch.zeros(10, 3)))
    fitted = fit_pose(observation, hand, sides, expected(elsewhere))
    assert fitted.found.all()
    assert errors_mm(hand, fitted.pose, true).median() < 10.0  # its previous pose still counts


BROKEN = {
    "no keypoints": lambda o: replace(o, confidence=torch.zeros_like(o.confidence)),
    "few keypoints": lambda o: replace(o, confidence=o.confidence * (torch.arange(21) < 4)),
    "one point": lambda o: replace(o, pixels=torch.full_like(o.pixels, 200.0)),
    "not a number": lambda o: replace(o, pixels=torch.full_like(o.pixels, torch.nan)),
    "infinite": lambda o: replace(o, relative_distance=torch.full_like(o.relative_distance, torch.inf)),
    "huge pixels": lambda o: replace(o, pixels=o.pixels * 1e9),
    "huge squares": lambda o: replace(o, pixels=o.pixels * 1e300),
    "noise": lambda o: replace(o, pixels=o.pixels[..., torch.randperm(21, generator=torch.manual_seed(0)), :].flip(1)),
    "one view three times as large": lambda o: replace(o, pixels=o.pixels * torch.tensor([1.0, 3.0])[:, None, None]),
    "cameras nowhere": lambda o: replace(
        o, cameras=PosedCamera(o.cameras.camera, torch.full_like(o.cameras.world_from_camera, torch.nan))
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("start", ["cold", "warm"])
def test_broken_keypoints_lose_the_hand(rng, hand, broken, start):
    true, sides, observation = sample(rng, hand, 5)
    before = expected(perturbed(rng, true)) if start == "warm" else None
    fitted = fit_pose(BROKEN[broken](observation), hand, sides, before)
    assert not fitted.found.any()


def test_a_hand_behind_the_cameras_is_lost(rng, hand):
    """The lens has an image of it, and the fit finds it exactly."""
    true, sides, observation = sample(rng, hand, 5)
    turned = observation.cameras.world_from_camera.clone()
    turned[..., :3, [0, 2]] *= -1
    behind = observe(PosedCamera(observation.cameras.camera, turned), hand, true)
    assert behind.pixels.isfinite().all()
    assert not fit_pose(behind, hand, sides, expected(true)).found.any()


def test_a_broken_expectation_is_not_believed(rng, hand):
    true, sides, observation = sample(rng, hand, 5)
    nowhere = HandPose(torch.full_like(true.joint_angles, torch.nan), true.world_from_wrist)
    fitted = fit_pose(observation, hand, sides, expected(nowhere))
    assert fitted.found.all()
    assert errors_mm(hand, fitted.pose, true).median() < 0.5


@pytest.mark.parametrize("scale", [0.8, 1.2])
def test_the_scale_of_a_hand_from_a_hundred_noisy_frames(hand, scale):
    """Noise of 1.5 px and 3 mm."""
    rng = np.random.default_rng(5)
    _, sides, observation = sample(rng, hand.scaled(scale), 100)
    noisy = replace(
        observation,
        pixels=observation.pixels + 1.5 * normal(rng, 100, 2, 21, 2),
        relative_distance=observation.relative_distance / scale + 0.003 * normal(rng, 100, 2, 21),
    )
    start, first = fit_pose(noisy, hand, sides), torch.arange(100) < 30
    assert fit_scale([noisy[first], noisy[~first]], hand, [start.pose[first], start.pose[~first]]) == pytest.approx(
        scale, rel=0.005
    )


def test_the_scale_needs_two_views(rng, hand):
    true, _, observation = sample(rng, hand, 3)
    assert fit_scale([only_first_view(observation)], hand, [true]) is None
