"""Rigid transforms and the alignment of point sets (conventions: `lib/__init__.py`)."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def homogeneous(rotation: Float[Tensor, "*#batch 3 3"], translation: Float[Tensor, "*#batch 3"]) -> Tensor:
    """The 4x4 matrix that takes x to `rotation @ x + translation`."""
    batch = np.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])  # torch's takes longer than all the rest
    matrix = rotation.new_zeros(*batch, 4, 4)
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1.0
    return matrix


def invert(b_from_a: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """The inverse `a_from_b` of an orthonormal transform; a mirrored one (determinant -1) is allowed."""
    rotation = b_from_a[..., :3, :3].mT
    return homogeneous(rotation, -(rotation @ b_from_a[..., :3, 3:])[..., 0])


def apply(b_from_a: Float[Tensor, "*#batch 4 4"], points_a: Float[Tensor, "*#batch points 3"]) -> Tensor:
    """Points of frame a, given in frame b, shape (*batch, points, 3)."""
    return points_a @ b_from_a[..., :3, :3].mT + b_from_a[..., None, :3, 3]


def axis_angle_rotation(axis: Float[Tensor, "*#batch 3"], angle: Float[Tensor, "*#batch"]) -> Tensor:
    """Rotation by `angle` about the unit vector `axis` (Rodrigues), smooth at angle zero; shape (*batch, 3, 3)."""
    cross = cross_matrix(axis)
    sine, versine = torch.sin(angle)[..., None, None], 1 - torch.cos(angle)[..., None, None]
    return torch.eye(3, dtype=axis.dtype, device=axis.device) + sine * cross + versine * (cross @ cross)


def cross_matrix(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix that takes x to `vector` x x."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))


def quaternion_rotation(quaternion_wxyz: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrix of a quaternion (real part first) of any non-zero length."""
    w, x, y, z = torch.nn.functional.normalize(quaternion_wxyz, dim=-1).unbind(-1)
    rows = (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation R (determinant +1) that maximises tr(R^T matrix); its gradient is finite wherever R is unique.

    Autograd through an SVD divides by differences of singular values, which vanish for the symmetric root points of
    the paper; the derivative of R itself only divides by their sums.

    Source: Sorkine-Hornung & Rabinovich 2016, as cited in §3.2.
    """
    return _NearestRotation.apply(matrix)


class _NearestRotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix):
        broken = ~torch.isfinite(matrix).all(dim=-1).all(dim=-1)[..., None, None]  # LAPACK refuses; pass it on as NaN
        left, singular, right_t = torch.linalg.svd(matrix.masked_fill(broken, 0.0))
        handedness = torch.linalg.det(left @ right_t).sign()
        signs = torch.ones_like(singular)
        signs[..., 2] = handedness
        rotation = (left * signs[..., None, :]) @ right_t
        rotation = rotation.masked_fill(broken, torch.nan)
        ctx.save_for_backward(rotation, right_t.mT, singular * signs)
        return rotation

    @staticmethod
    def backward(ctx, gradient):
        # R^T M = V diag(p) V^T stays symmetric, so dR = R V W V^T with skew W_ij = (A_ij - A_ji) / (p_i + p_j), where
        # A = V^T R^T dM V.
        rotation, v, p = ctx.saved_tensors
        inner = v.mT @ rotation.mT @ gradient @ v
        sums = p[..., :, None] + p[..., None, :]
        safe = torch.where(sums.abs() < torch.finfo(p.dtype).eps, torch.inf, sums)
        return rotation @ v @ ((inner - inner.mT) / safe) @ v.mT


def align_points(points_a: Float[Tensor, "*#batch points 3"], points_b: Float[Tensor, "*#batch points 3"]) -> Tensor:
    """The rigid transform `b_from_a` (*batch, 4, 4) that brings points_a closest to points_b in least squares.

    Never a reflection. Differentiable in both arguments, also where they already agree.

    Source: Sorkine-Hornung & Rabinovich 2016; used in §3.2 to decode the root transform.
    """
    center_a, center_b = points_a.mean(dim=-2, keepdim=True), points_b.mean(dim=-2, keepdim=True)
    rotation = nearest_rotation((points_b - center_b).mT @ (points_a - center_a))
    return homogeneous(rotation, (center_b - center_a @ rotation.mT)[..., 0, :])


def mirror_x(b_from_a: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """`b_from_a` with its x axis negated, b_from_a @ diag(-1, 1, 1, 1): a left-handed frame; twice is identity."""
    return b_from_a * b_from_a.new_tensor([-1.0, 1.0, 1.0, 1.0])


def acceleration(signal: Tensor, dim: int = 0) -> Tensor:
    """acc(x, t) = x(t+1) + x(t-1) - 2 x(t) along `dim`, which becomes two shorter. Source: §3.4, below Eq. 6."""
    frames = signal.shape[dim]
    before, now, after = (signal.narrow(dim, start, frames - 2) for start in (0, 1, 2))
    return after + before - 2 * now


def in_other_unit(transforms: Float[Tensor, "*batch 4 4"], factor: float) -> Float[Tensor, "*batch 4 4"]:
    """Transforms whose translations are in another unit."""
    scale = torch.ones(4, 4, dtype=transforms.dtype)
    scale[:3, 3] = factor
    return transforms * scale
