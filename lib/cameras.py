"""Camera models: pinhole, with and without radial-tangential distortion, and fisheyes; cameras placed in the world.

A camera is immutable; its parameters may carry batch dimensions, which broadcast against those of the points:
`camera[:, None].project(points)` projects points (cameras, n, 3). Camera axes are x right, y down, z forward, pixel
centres lie at integer coordinates. Geometry is computed in the type of its input; use float64 where it matters.

Source: the camera models of the public dataset and of its hand tracking toolkit; Kannala & Brandt 2006 for the fisheye
family; Brown 1966 as OpenCV writes it for radial and tangential terms.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lib.transforms import apply, invert

Points = Float[Tensor, "*#batch 3"]
Pixels = Float[Tensor, "*#batch 2"]


@dataclass(frozen=True)
class Camera:
    """What all models share: image size, focal lengths, principal point, distortion (its meaning is the model's).

    The focal length is the scale (px per rad) at the principal point. A model whose range depends on its distortion has
    a `sees` of its own. Cameras of several sizes share a batch whose pictures are as wide and high as the largest:
    `extent_px`, columns and rows, is what each of them fills, from the upper left corner; None: all of it.
    """

    width: int
    height: int
    focal_px: Float[Tensor, "*batch 2"]
    center_px: Float[Tensor, "*batch 2"]
    distortion: Float[Tensor, "*batch parameters"]
    extent_px: Float[Tensor, "*batch 2"] | None = None

    num_distortion: ClassVar[int]
    max_angle: ClassVar[float]
    """Points further than this from the optical axis have no image."""

    def __post_init__(self):
        if self.distortion.shape[-1] != self.num_distortion:
            raise ValueError(
                f"{type(self).__name__} expects {self.num_distortion} distortion parameters, "
                f"got {self.distortion.shape[-1]}"
            )

    def __getitem__(self, index) -> Camera:
        """Index the batch dimensions of the parameters, as in `camera[0]` or `camera[:, None]`."""
        index = index if isinstance(index, tuple) else (index,)
        index = index if any(part is Ellipsis for part in index) else (*index, ...)
        return self._map(lambda parameter: parameter[(*index, slice(None))])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Camera:
        """The same camera on another device or in another floating-point type."""
        return self._map(lambda parameter: parameter.to(device, dtype))

    def _map(self, change) -> Camera:
        parameters = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(value) for name, value in parameters.items() if torch.is_tensor(value)})

    @property
    def size_px(self) -> Float[Tensor, "*batch 2"]:
        """Columns and rows of each camera's own picture."""
        whole = self.focal_px.new_tensor([self.width, self.height])
        return whole.expand_as(self.focal_px) if self.extent_px is None else self.extent_px

    def view(self, images: UInt8[np.ndarray, "cameras height width"], camera: int) -> UInt8[np.ndarray, "rows columns"]:
        """The picture of one camera of a batch, without what makes all of them equally large."""
        columns, rows = self.size_px[camera].int().tolist()
        return images[camera, :rows, :columns]

    def project(self, points_camera: Points) -> Pixels:
        """Pixels of points in camera coordinates; for points without an image see `sees`."""
        return self._distort(points_camera) * self.focal_px + self.center_px

    def unproject(self, pixels: Pixels) -> Points:
        """Unit rays in camera coordinates whose projection is `pixels` to below 1e-9 px in float64.

        NaN where the solver finds no ray: the pixel lies outside the range of the lens.
        """
        return self._undistort((pixels - self.center_px) / self.focal_px)

    def contains(self, pixels: Pixels) -> Bool[Tensor, "*batch"]:
        """Whether pixels lie between the centres of the image's corner pixels."""
        x, y = pixels.unbind(-1)
        width, height = (self.width, self.height) if self.extent_px is None else self.extent_px.unbind(-1)
        return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)

    def sees(self, points_camera: Points) -> Bool[Tensor, "*batch"]:
        """Whether points have an image inside the frame: within the range of the lens, projected inside the image."""
        x, y, z = points_camera.unbind(-1)
        in_range = torch.atan2(torch.hypot(x, y), z) < self.max_angle
        return in_range & self.contains(self.project(points_camera))

    def _distort(self, points_camera: Points) -> Pixels:
        raise TypeError("Camera is abstract: use one of its models, say Pinhole or Fisheye62")

    def _undistort(self, plane: Pixels) -> Points:
        raise TypeError("Camera is abstract: use one of its models, say Pinhole or Fisheye62")


@dataclass(frozen=True)
class Pinhole(Camera):
    """An ideal perspective camera."""

    num_distortion: ClassVar[int] = 0
    max_angle: ClassVar[float] = torch.pi / 2

    @classmethod
    def create(cls, size: int, focal_px: Float[Tensor, "*batch"]) -> Pinhole:
        """A square camera of `size` pixels with its principal point at the image's centre."""
        focal = torch.stack((focal_px, focal_px), dim=-1)
        return cls(size, size, focal, torch.full_like(focal, (size - 1) / 2), focal.new_zeros(*focal.shape[:-1], 0))

    @property
    def matrix(self) -> Float[Tensor, "*batch 3 3"]:
        """The intrinsics matrix K."""
        matrix = torch.diag_embed(torch.cat((self.focal_px, torch.ones_like(self.focal_px[..., :1])), dim=-1))
        matrix[..., :2, 2] = self.center_px
        return matrix

    def _distort(self, points_camera: Points) -> Pixels:
        return points_camera[..., :2] / points_camera[..., 2:]

    def _undistort(self, plane: Pixels) -> Points:
        return torch.nn.functional.normalize(torch.cat((plane, torch.ones_like(plane[..., :1])), dim=-1), dim=-1)


@dataclass(frozen=True)
class RadialTangential(Camera):
    """A perspective camera with distortion as OpenCV has it: k1 k2 p1 p2 k3, and k4 k5 k6 of the rational model.

    Its image ends where the lens would fold over: where the radius in the image no longer grows with that of the ray.
    """

    num_distortion: ClassVar[int] = 8
    max_angle: ClassVar[float] = torch.pi / 2

    def sees(self, points_camera: Points) -> Bool[Tensor, "*batch"]:
        """Whether points have an image inside the frame: before the lens folds over, projected inside the image."""
        radius2 = (points_camera[..., :2] / points_camera[..., 2:]).square().sum(dim=-1)
        return super().sees(points_camera) & (radius2 < self._fold().square())

    def _fold(self) -> Float[Tensor, "*batch"]:
        """The tangent of the angle at which the lens folds over; infinite if it does not within `MAX_SLOPE`."""
        radius = torch.linspace(0.0, MAX_SLOPE, 1001).to(self.distortion)
        bent = radius * self._radial(radius.square())
        folds = bent.diff(dim=-1) <= 0
        first = torch.where(folds.any(dim=-1), radius[folds.int().argmax(dim=-1)], torch.inf)
        return first.to(self.distortion)

    def _radial(self, radius2: Float[Tensor, "*#batch n"]) -> Float[Tensor, "*batch n"]:
        k1, k2, _, _, k3, k4, k5, k6 = self.distortion[..., None].unbind(-2)
        above = 1 + radius2 * (k1 + radius2 * (k2 + radius2 * k3))
        return above / (1 + radius2 * (k4 + radius2 * (k5 + radius2 * k6)))

    def _lens(self, plane: Pixels) -> Pixels:
        """Distortion of a point of the plane at distance 1."""
        p1, p2 = self.distortion[..., 2:4].unbind(-1)
        x, y = plane.unbind(-1)
        radius2 = x * x + y * y
        radial = self._radial(radius2[..., None])[..., 0]
        shift_x, shift_y = 2 * p1 * x * y + p2 * (radius2 + 2 * x * x), p1 * (radius2 + 2 * y * y) + 2 * p2 * x * y
        return torch.stack((x * radial + shift_x, y * radial + shift_y), dim=-1)

    def _distort(self, points_camera: Points) -> Pixels:
        return self._lens(points_camera[..., :2] / points_camera[..., 2:])

    def _undistort(self, plane: Pixels) -> Points:
        undistorted = _invert_by_newton(self._lens, plane)
        ray = torch.nn.functional.normalize(torch.cat((undistorted, torch.ones_like(plane[..., :1])), dim=-1), dim=-1)
        folded = undistorted.square().sum(dim=-1) >= self._fold().square()
        return ray.masked_fill(folded[..., None], torch.nan)


MAX_SLOPE = 10.0
"""The tangent of 84 degrees: no lens without a fisheye's model reaches further."""


@dataclass(frozen=True)
class Fisheye(Camera):
    """What the fisheye models share: the equidistant plane, on which the angle from the optical axis is the radius."""

    max_angle: ClassVar[float] = torch.pi

    def _distort(self, points_camera: Points) -> Pixels:
        x, y, z = points_camera.unbind(-1)
        # On the optical axis, where theta and radius vanish, a tiny radius gives their limit 1 / z and its gradient.
        radius = (x * x + y * y).clamp(min=torch.finfo(x.dtype).tiny).sqrt()
        return self._lens(points_camera[..., :2] * (torch.atan2(radius, z) / radius)[..., None])

    def _undistort(self, plane: Pixels) -> Points:
        equidistant = _invert_by_newton(self._lens, plane)
        theta = torch.linalg.vector_norm(equidistant, dim=-1, keepdim=True)
        # Beyond the range of the lens its polynomial folds over, and reaches pixels from the opposite side.
        folded = (equidistant * plane).sum(dim=-1, keepdim=True) < 0
        outside = folded | (theta > self.max_angle) | theta.isnan()
        direction = equidistant * torch.where(theta < 1e-12, 1, torch.sin(theta) / theta.clamp(min=1e-12))
        return torch.cat((direction, torch.cos(theta)), dim=-1).masked_fill(outside, torch.nan)

    def _lens(self, plane: Pixels) -> Pixels:
        """Distortion of a point of the equidistant plane."""
        raise TypeError("Fisheye is abstract: use one of its models, say KannalaBrandt or Fisheye62")


def _bend(plane: Pixels, k: Float[Tensor, "*#batch terms"]) -> Pixels:
    """Points of the equidistant plane, moved along their radius: times 1 + k1 rho^2 + k2 rho^4 + ..."""
    rho2 = plane.square().sum(dim=-1).clamp(max=torch.pi**2)
    *lower, radial = k.unbind(-1)
    for term in reversed(lower):
        radial = radial * rho2 + term
    return plane * (1 + radial * rho2)[..., None]


@dataclass(frozen=True)
class KannalaBrandt(Fisheye):
    """Equidistant fisheye with four radial terms, k1..k4, as of Kalibr (equidistant), OpenCV (fisheye), Basalt (kb4).

    Source: Kannala & Brandt 2006.
    """

    num_distortion: ClassVar[int] = 4

    def _lens(self, plane: Pixels) -> Pixels:
        return _bend(plane, self.distortion)


@dataclass(frozen=True)
class Fisheye62(Fisheye):
    """Equidistant fisheye with six radial and two tangential terms, k1..k6 p1 p2."""

    num_distortion: ClassVar[int] = 8

    def _lens(self, plane: Pixels) -> Pixels:
        """Radial, tangential and thin-prism terms, applied to the point of the equidistant plane."""
        p1, p2 = self.distortion[..., 6:8].unbind(-1)
        x, y = _bend(plane, self.distortion[..., :6]).unbind(-1)
        s2 = x * x + y * y
        prism_x, prism_y = self._prism(s2)
        return torch.stack(
            (
                x + 2 * p2 * x * y + p1 * (s2 + 2 * x * x) + prism_x,
                y + 2 * p1 * x * y + p2 * (s2 + 2 * y * y) + prism_y,
            ),
            dim=-1,
        )

    def _prism(self, s2: Tensor) -> tuple[Tensor | float, Tensor | float]:
        return 0.0, 0.0


@dataclass(frozen=True)
class Fisheye624(Fisheye62):
    """Fisheye62 with four thin-prism terms, k1..k6 p1 p2 s1..s4 (HOT3D, Aria, Quest 3)."""

    num_distortion: ClassVar[int] = 12

    def _prism(self, s2: Tensor) -> tuple[Tensor, Tensor]:
        s1, s2_, s3, s4 = self.distortion[..., 8:].unbind(-1)
        return s1 * s2 + s2_ * s2 * s2, s3 * s2 + s4 * s2 * s2


@dataclass(frozen=True)
class Fisheye44(Fisheye):
    """Equidistant fisheye with four radial and four tangential terms, k1..k4 p1..p4: p3 and p4 enlarge the effect of p1
    and p2 with the distance from the centre. p1 and p2 stand for each other's axes in the other models.

    Source: `OVR44Distortion` of the hand tracking toolkit.
    """

    num_distortion: ClassVar[int] = 8

    def _lens(self, plane: Pixels) -> Pixels:
        p1, p2, p3, p4 = self.distortion[..., 4:].unbind(-1)
        x, y = _bend(plane, self.distortion[..., :4]).unbind(-1)
        s2 = x * x + y * y
        growth = 1 + p3 * s2 + p4 * s2 * s2
        shift_x, shift_y = 2 * p1 * x * y + p2 * (s2 + 2 * x * x), 2 * p2 * x * y + p1 * (s2 + 2 * y * y)
        return torch.stack((x + growth * shift_x, y + growth * shift_y), dim=-1)


MAX_ITERATIONS, MAX_STEP = 50, 0.2
"""Of the solver (steps, rad): near the angle at which a lens folds over, a longer step would leap across it."""


def _invert_by_newton(function, target: Pixels) -> Pixels:
    """Solve function(x) = target for points of the plane by damped Newton steps; NaN where it does not converge."""
    tolerance = 64 * torch.finfo(target.dtype).eps
    point, residual = target, function(target) - target
    for _ in range(MAX_ITERATIONS):
        if not bool((residual.abs().amax(dim=-1) > tolerance).any()):
            break
        step = torch.linalg.solve(_jacobian(function, point), residual[..., None])[..., 0]
        step = step * (MAX_STEP / torch.linalg.vector_norm(step, dim=-1, keepdim=True).clamp(min=MAX_STEP))
        point, residual = _backtrack(function, target, point, residual, step)
    converged = residual.abs().amax(dim=-1, keepdim=True) <= 16 * tolerance
    return point.masked_fill(~converged, torch.nan)


def _jacobian(function, point: Pixels) -> Float[Tensor, "*batch 2 2"]:
    """d function / d point, row by row."""
    _, gradient = torch.func.vjp(function, point)
    return torch.stack([gradient(unit.expand_as(point))[0] for unit in torch.eye(2).to(point)], dim=-2)


def _backtrack(function, target: Pixels, point: Pixels, residual: Pixels, step: Pixels) -> tuple[Pixels, Pixels]:
    """The longest of the halved Newton steps that shrinks the residual of each point; else the point as it was."""
    scale = torch.ones_like(point[..., :1])
    size = residual.square().sum(dim=-1, keepdim=True)
    for _ in range(12):
        candidate = point - scale * step
        candidate_residual = function(candidate) - target
        better = candidate_residual.square().sum(dim=-1, keepdim=True) < size
        if bool(better.all()):
            break
        scale = torch.where(better, scale, scale / 2)
    return torch.where(better, candidate, point), torch.where(better, candidate_residual, residual)


@dataclass(frozen=True)
class PosedCamera:
    """A camera (or a batch of them) placed in the world."""

    camera: Camera
    world_from_camera: Float[Tensor, "*batch 4 4"]

    @property
    def camera_from_world(self) -> Float[Tensor, "*batch 4 4"]:
        return invert(self.world_from_camera)

    def to_camera(self, points_world: Float[Tensor, "*#batch points 3"]) -> Float[Tensor, "*batch points 3"]:
        """World points in the axes of the camera."""
        return apply(self.camera_from_world, points_world)

    def project(self, points_world: Float[Tensor, "*#batch points 3"]) -> Float[Tensor, "*batch points 2"]:
        """Pixels of world points, one set of points per camera."""
        return self.camera[..., None].project(self.to_camera(points_world))

    def sees(self, points_world: Float[Tensor, "*#batch points 3"]) -> Bool[Tensor, "*batch points"]:
        """Whether each world point has an image inside the frame and lies in front of the camera (z > 0)."""
        points_camera = self.to_camera(points_world)
        return self.camera[..., None].sees(points_camera) & (points_camera[..., 2] > 0)

    def __getitem__(self, index) -> PosedCamera:
        """Index the batch dimensions."""
        index = index if isinstance(index, tuple) else (index,)
        index = index if any(part is Ellipsis for part in index) else (*index, ...)
        pose = self.world_from_camera[(*index, slice(None), slice(None))]
        return PosedCamera(self.camera[index], pose)
