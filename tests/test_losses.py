"""Each loss on a case worked out by hand, its gradient, and what switching a term off changes."""

import pytest
import torch

from lib.losses import (
    LossWeights,
    joint_angle_loss,
    keypoint_loss,
    masked_mean,
    pinch_loss,
    pose_loss,
    root_position_loss,
    temporal_loss,
)


def test_keypoint_loss_sums_coordinates():
    predicted = torch.zeros(2, 21, 3)
    true = torch.zeros(2, 21, 3)
    true[1, 4] = torch.tensor([0.1, -0.2, 0.3])
    expected = torch.zeros(2, 21)
    expected[1, 4] = 0.6
    torch.testing.assert_close(keypoint_loss(predicted, true), expected)


def test_joint_angle_loss_ignores_the_wrist_joints():
    true = torch.zeros(1, 22)
    true[0, :3] = torch.tensor([0.5, -0.25, 1.0])
    true[0, 20:] = 9.0
    torch.testing.assert_close(joint_angle_loss(torch.zeros(1, 22), true), torch.tensor([1.75]))


def test_root_position_loss_sees_the_position_only():
    true = torch.eye(4).repeat(1, 1, 1)
    true[0, :3, 3] = torch.tensor([0.1, 0.2, -0.3])
    turned = torch.eye(4).repeat(1, 1, 1)
    turned[0, :3, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    torch.testing.assert_close(root_position_loss(turned, true), torch.tensor([0.6]))


def test_pose_loss_weighs_its_parts():
    weights = LossWeights(joint_angles=0.05, root_position=0.5)
    parts = torch.full((3, 21), 0.01), torch.full((3,), 2.0), torch.full((3,), 0.2)
    torch.testing.assert_close(pose_loss(*parts, weights), torch.full((3,), 0.21 + 0.1 + 0.1))


def test_temporal_loss_of_uniform_motion_is_zero():
    frames = torch.arange(5.0)
    angles = frames[:, None].expand(5, 22) * 0.1
    poses = torch.eye(4).repeat(5, 1, 1)
    poses[:, 0, 3] = frames * 0.02
    assert temporal_loss(angles[:, None], poses[:, None]).abs().max() < 1e-6


def test_temporal_loss_of_a_jump():
    angles, poses = torch.zeros(4, 1, 22), torch.eye(4).repeat(4, 1, 1, 1)
    angles[2, 0, 7] = 0.3
    poses[2, 0, :3, 3] = torch.tensor([0.01, 0.0, -0.02])
    # acc is x(3) + x(1) - 2 x(2) at frame 2 and x(2) + x(0) - 2 x(1) at frame 1.
    torch.testing.assert_close(temporal_loss(angles, poses)[:, 0], torch.tensor([0.33, 0.66]))


@pytest.mark.parametrize(
    ("distance", "pinch", "expected"),
    [(0.004, True, 0.0), (0.013, True, 0.003), (0.013, False, 0.007), (0.004, False, 0.016), (0.025, False, 0.0)],
)
def test_pinch_loss(distance, pinch, expected):
    landmarks = torch.zeros(1, 21, 3)
    landmarks[0, 0] = torch.tensor([0.0, distance, 0.0])
    torch.testing.assert_close(pinch_loss(landmarks, torch.tensor([pinch])), torch.tensor([expected]))


def _double(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: keypoint_loss(x, torch.zeros_like(x)),
        lambda x: joint_angle_loss(x.reshape(-1)[:44].reshape(2, 22), torch.zeros(2, 22, dtype=x.dtype)),
        lambda x: root_position_loss(x.reshape(-1)[:32].reshape(2, 4, 4), torch.zeros(2, 4, 4, dtype=x.dtype)),
        lambda x: temporal_loss(x.reshape(-1)[:110].reshape(5, 22), x.reshape(-1)[:80].reshape(5, 4, 4)),
        lambda x: pinch_loss(0.01 * x, torch.tensor([True, False])),
    ],
    ids=["keypoint", "joint_angle", "root_position", "temporal", "pinch"],
)
def test_gradients(loss):
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(loss, _double(2, 21, 3))


def test_pinch_gradient_is_finite_where_the_tips_meet():
    landmarks = torch.zeros(2, 21, 3, requires_grad=True)
    pinch_loss(landmarks, torch.tensor([True, False])).sum().backward()
    assert torch.isfinite(landmarks.grad).all()


def test_a_masked_mean_is_over_the_mask():
    values = torch.tensor([1.0, 5.0, torch.nan, 3.0])
    assert masked_mean(values, torch.tensor([True, False, False, True])) == 2.0
    assert masked_mean(values, torch.zeros(4, dtype=torch.bool)) == 0.0
