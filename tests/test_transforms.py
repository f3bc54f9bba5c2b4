import pytest
import torch
from conftest import normal, random_poses
from torch.testing import assert_close

from lib.network import root_points
from lib.transforms import (
    acceleration,
    align_points,
    apply,
    axis_angle_rotation,
    cross_matrix,
    homogeneous,
    invert,
    mirror_x,
    nearest_rotation,
    quaternion_rotation,
)

EYE = torch.eye(4, dtype=torch.float64)
exactly = {"atol": 1e-14, "rtol": 0}


@pytest.mark.parametrize("change", [lambda pose: pose, mirror_x], ids=["rotation", "mirrored"])
def test_inverse_composes_to_identity(rng, change):
    poses = change(random_poses(rng, 2, 3))
    assert_close(invert(poses) @ poses, EYE.expand(2, 3, 4, 4), atol=1e-14, rtol=0)


def test_applying_composed_transforms_is_applying_one_after_the_other(rng):
    c_from_b, b_from_a, points = random_poses(rng, 5), random_poses(rng, 5), normal(rng, 5, 7, 3)
    assert_close(apply(c_from_b @ b_from_a, points), apply(c_from_b, apply(b_from_a, points)), **exactly)


def test_apply_broadcasts_one_set_of_points_over_many_transforms(rng):
    poses, points = random_poses(rng, 4), normal(rng, 7, 3)
    moved = apply(poses, points[None])
    for pose, expected in zip(poses, moved, strict=True):
        for point, image in zip(points, expected, strict=True):
            assert_close(pose[:3, :3] @ point + pose[:3, 3], image, **exactly)


def test_quarter_turn_about_each_axis():
    rotations = axis_angle_rotation(torch.eye(3), torch.full((3,), torch.pi / 2))
    following = torch.eye(3)[[1, 2, 0]]
    images = (rotations @ following[..., None])[..., 0]
    assert_close(images, torch.eye(3)[[2, 0, 1]], atol=1e-6, rtol=0)


def test_axis_angle_is_the_matrix_exponential(rng):
    axis, angle = torch.nn.functional.normalize(normal(rng, 6, 3), dim=-1), normal(rng, 6)
    exponential = torch.linalg.matrix_exp(angle[:, None, None] * cross_matrix(axis))
    assert_close(axis_angle_rotation(axis, angle), exponential, **exactly)


def test_cross_matrix_is_the_cross_product(rng):
    a, b = normal(rng, 5, 3), normal(rng, 5, 3)
    assert_close((cross_matrix(a) @ b[..., None])[..., 0], torch.linalg.cross(a, b), **exactly)


def test_quaternion_agrees_with_axis_and_angle(rng):
    axis, angle = torch.nn.functional.normalize(normal(rng, 6, 3), dim=-1), normal(rng, 6)
    quaternion = torch.cat((torch.cos(angle / 2)[:, None], torch.sin(angle / 2)[:, None] * axis), dim=1)
    for length in (1.0, -1.0, 3.0):
        assert_close(quaternion_rotation(length * quaternion), axis_angle_rotation(axis, angle), **exactly)


def test_mirroring_twice_is_identity_and_once_is_left_handed(rng):
    poses = random_poses(rng, 4)
    assert torch.equal(mirror_x(mirror_x(poses)), poses)
    assert_close(torch.linalg.det(mirror_x(poses)), -torch.ones(4, dtype=torch.float64))


def test_alignment_recovers_a_rigid_transform(rng):
    points, poses = normal(rng, 5, 7, 3), random_poses(rng, 5)
    assert_close(align_points(points, apply(poses, points)), poses, atol=1e-13, rtol=0)


def test_alignment_is_the_least_squares_optimum(rng):
    """No small motion brings the points closer."""
    source, target = normal(rng, 7, 3), normal(rng, 7, 3)
    best = align_points(source, target)
    residual = (apply(best, source) - target).square().sum()
    for motion in (*0.01 * torch.eye(6, dtype=torch.float64), *-0.01 * torch.eye(6, dtype=torch.float64)):
        nearby = homogeneous(torch.linalg.matrix_exp(cross_matrix(motion[:3])), motion[3:]) @ best
        assert (apply(nearby, source) - target).square().sum() > residual


def test_alignment_never_reflects(rng):
    points = normal(rng, 20, 7, 3)
    mirrored = points * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    for target in (mirrored, normal(rng, 20, 7, 3)):
        rotation = align_points(points, target)[:, :3, :3]
        assert_close(torch.linalg.det(rotation), torch.ones(20, dtype=torch.float64))
        assert_close(rotation @ rotation.mT, EYE[:3, :3].expand(20, 3, 3), atol=1e-13, rtol=0)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_alignment_of_degenerate_points_is_a_rigid_transform_with_finite_gradient(rng, rank):
    """All points equal, on a line, in a plane."""
    source = normal(rng, 7, 3)
    target = (source * (torch.arange(3) < rank)).requires_grad_()
    aligned = align_points(source, target)
    aligned.square().sum().backward()
    assert_close(torch.linalg.det(aligned[:3, :3]), torch.tensor(1.0, dtype=torch.float64))
    assert target.grad.isfinite().all()


def moments_of_root_points() -> torch.Tensor:
    """What the decoder of the wrist aligns at identity: two of its singular values are equal."""
    points = 10 * root_points().double()
    centered = points - points.mean(dim=0)
    return centered.mT @ centered


def test_moments_of_root_points_are_symmetric_under_exchange_of_axes():
    singular = torch.linalg.svdvals(moments_of_root_points())
    assert_close(singular[1], singular[2], atol=1e-6, rtol=0)  # the points are float32


@pytest.mark.parametrize(
    "matrix",
    [
        EYE[:3, :3],
        moments_of_root_points(),
        torch.diag(torch.tensor([3.0, 2.0, -1.0], dtype=torch.float64)),
        torch.tensor([[0.2, 1.0, 0.1], [0.5, -0.3, 2.0], [1.0, 0.4, 0.6]], dtype=torch.float64),
    ],
    ids=["identity", "root points", "reflection", "any"],
)
def test_gradient_of_the_nearest_rotation(matrix):
    assert torch.autograd.gradcheck(nearest_rotation, matrix.clone().requires_grad_())


def test_gradient_of_alignment_at_identity_and_elsewhere(rng):
    points = root_points().double()
    for target in (points, apply(random_poses(rng), points) + 0.01 * normal(rng, 7, 3)):
        assert torch.autograd.gradcheck(
            align_points, (points.clone().requires_grad_(), target.clone().requires_grad_())
        )


@pytest.mark.parametrize("dim", [0, 1])
def test_acceleration_of_a_parabola_is_constant(dim):
    time = torch.arange(6.0)
    signal = torch.stack((3 + 2 * time, time**2, -0.5 * time**2), dim=1 - dim)
    expected = torch.tensor([0.0, 2.0, -1.0]).expand(4, 3)
    assert_close(acceleration(signal, dim), expected if dim == 0 else expected.T)
