import math

import cv2
import numpy as np
import pytest
import torch
from conftest import headset, normal, random_poses
from torch.testing import assert_close

from lib.cameras import (
    Camera,
    Fisheye,
    Fisheye44,
    Fisheye62,
    Fisheye624,
    KannalaBrandt,
    Pinhole,
    PosedCamera,
    RadialTangential,
)
from lib.formats.hot3d import camera_from_calibration
from lib.rendered.scene import sample_rig


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def calibrated(model: str, width: int, height: int, *parameters: float) -> Camera:
    return camera_from_calibration(
        {"projection_model_type": model, "image_width": width, "image_height": height, "projection_params": parameters}
    )


NO_PRISM = (0.0, 0.0, 0.0, 0.0)
CAMERAS = {
    "pinhole": Pinhole(640, 480, values(420, 425), values(318.2, 241.7), values()),
    "radial-tangential": RadialTangential(
        640, 480, values(420, 425), values(318.2, 241.7), values(-0.28, 0.07, 0.001, -0.0005, -0.008, 0.0, 0.0, 0.0)
    ),
    "rational": RadialTangential(
        640, 480, values(300, 301), values(322.0, 239.0), values(2.1, 0.9, 0.0002, 0.0003, 0.04, 2.4, 1.4, 0.2)
    ),
    "Kannala-Brandt": KannalaBrandt(640, 480, values(240, 241), values(320, 240), values(-0.02, 0.05, -0.02, 0.003)),
    "headset": headset(636)[1].camera,
    "quest3": calibrated(
        "CameraModelType.FISHEYE624", 1280, 1024,
        503.2, 503.2, 637.0, 511.8, 0.0434, -0.0461, 0.0229, -0.0185, 0.0070, -0.0011, -0.00003, 0.00016, *NO_PRISM,
    ),
    "aria": calibrated(
        "CameraModelType.FISHEYE624", 640, 480,
        241.6, 317.9, 239.8, -0.026, 0.098, -0.068, 0.013, 0.0022, -0.0007,
        0.0005, -0.0002, 0.0004, -0.0001, 0.0006, -0.0002,
    ),
    "growing tangential terms": Fisheye44(
        640, 480, values(240, 241), values(320, 240), values(-0.02, 0.05, -0.02, 0.001, 0.001, -0.002, -0.05, 0.0007)
    ),
    "thin prism": Fisheye624(
        640, 480, values(240, 241), values(320, 240),
        values(-0.02, 0.05, -0.02, 0.001, 0, 0, 0.001, -0.002, 0.003, -0.001, -0.002, 0.001)
    ),
}  # fmt: skip
every_camera = pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS.keys())
FISHEYES = {name: camera for name, camera in CAMERAS.items() if isinstance(camera, Fisheye)}
every_fisheye = pytest.mark.parametrize("camera", FISHEYES.values(), ids=FISHEYES.keys())


def rays_in_view(camera: Camera) -> torch.Tensor:
    """Unit rays in 24 directions about the optical axis, as far out as the lens spreads them and the image reaches."""
    angle = torch.linspace(0.0, 3.0, 301, dtype=torch.float64)[1:]
    azimuth = torch.arange(24, dtype=torch.float64)[:, None] * torch.pi / 12
    x, y, z = torch.broadcast_tensors(torch.cos(azimuth) * angle.sin(), torch.sin(azimuth) * angle.sin(), angle.cos())
    rays = torch.stack((x, y, z), dim=-1)
    pixels = camera.project(rays)
    distance = torch.linalg.vector_norm(pixels - camera.center_px, dim=-1)
    spreads = distance[:, 1:] > distance[:, :-1] + 0.002 * camera.focal_px.mean()
    inside = (spreads & camera.contains(pixels)[:, 1:]).cumprod(dim=1).bool()
    return rays[:, 1:][inside]


def image_pixels(camera: Camera) -> torch.Tensor:
    """A grid over the whole picture, its borders included."""
    x = torch.linspace(0, camera.width - 1, 40, dtype=torch.float64)
    y = torch.linspace(0, camera.height - 1, 30, dtype=torch.float64)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


@every_camera
def test_round_trip_within_the_field_of_view(camera, rng):
    rays = rays_in_view(camera)
    assert len(rays) > 500
    pixels = camera.project(rays * (0.1 + torch.from_numpy(rng.random((len(rays), 1)))))
    assert_close(camera.unproject(pixels), rays, atol=1e-10, rtol=0)
    assert_close(camera.project(camera.unproject(pixels)), pixels, atol=1e-9, rtol=0)


@every_camera
def test_a_pixel_has_the_ray_that_projects_to_it_or_none(camera):
    """The corners of a picture may lie outside the image circle of the lens."""
    pixels = image_pixels(camera)
    rays = camera.unproject(pixels)
    found = rays.isfinite().all(dim=-1)
    assert found.float().mean() > 0.7
    assert_close(torch.linalg.vector_norm(rays[found], dim=-1), torch.ones(int(found.sum()), dtype=torch.float64))
    assert_close(camera.project(rays[found]), pixels[found], atol=1e-9, rtol=0)
    same_side = (rays[found][:, :2] * (pixels[found] - camera.center_px)).sum(dim=-1) > 0
    assert same_side.all()


@every_camera
def test_optical_axis(camera):
    axis = values(0, 0, 1)
    assert_close(camera.project(2.5 * axis), camera.center_px, atol=1e-12, rtol=0)
    assert_close(camera.unproject(camera.center_px), axis, atol=1e-12, rtol=0)
    beside = camera.project(values(1e-9, 0, 1)) - camera.center_px  # the focal length is the scale at the centre
    assert_close(beside, 1e-9 * values(float(camera.focal_px[0]), 0), atol=1e-12, rtol=0)


@every_camera
def test_projection_has_a_finite_gradient_on_the_optical_axis(camera):
    def project(point: torch.Tensor) -> torch.Tensor:
        return camera.project(point)

    assert torch.autograd.gradcheck(project, values(0, 0, 0.7).requires_grad_(), eps=1e-5)


@every_camera
@pytest.mark.parametrize("shape", [(), (6,), (2, 3, 6)], ids=str)
def test_batches_of_points_equal_single_points(camera, rng, shape):
    points = normal(rng, *shape, 3) * values(0.1, 0.1, 0.1) + values(0, 0, 0.5)
    pixels = camera.project(points)
    rays = camera.unproject(pixels)
    assert pixels.shape == (*shape, 2)
    assert_close(camera.project(rays), pixels, atol=1e-9, rtol=0)
    for point, pixel, ray in zip(points.reshape(-1, 3), pixels.reshape(-1, 2), rays.reshape(-1, 3), strict=True):
        assert_close(camera.project(point), pixel, atol=1e-12, rtol=0)
        assert_close(camera.unproject(pixel), ray, atol=1e-12, rtol=0)


def test_batches_of_cameras_equal_single_cameras(rng):
    cameras = headset().camera
    points = normal(rng, 4, 6, 3) * 0.1 + values(0, 0, 0.5)
    pixels = cameras[:, None].project(points)
    rays = cameras[:, None].unproject(pixels)
    assert_close(cameras[:, None].project(rays), pixels, atol=1e-9, rtol=0)
    for index in range(4):
        assert_close(pixels[index], cameras[index].project(points[index]), atol=1e-12, rtol=0)
        assert_close(rays[index], cameras[index].unproject(pixels[index]), atol=1e-12, rtol=0)


@every_camera
def test_float32_stays_float32_and_within_a_thousandth_of_a_pixel(camera):
    rays, single = rays_in_view(camera), camera.to(dtype=torch.float32)
    pixels = single.project(rays.float())
    assert_close(pixels.double(), camera.project(rays), atol=1e-3, rtol=0)
    back = single.unproject(pixels)
    assert back.dtype == torch.float32
    assert_close(single.project(back), pixels, atol=1e-3, rtol=0)


@every_fisheye
def test_pixels_outside_the_range_of_the_lens_have_no_ray(camera):
    """A ray that exists has the pixel as its image; far out there is none."""
    pixels = camera.center_px + 1e5 * torch.nn.functional.normalize(values(1, 2, -3, 1, 0, -1).reshape(3, 2), dim=-1)
    assert camera.unproject(pixels).isnan().all()


def test_ideal_fisheye_sees_all_directions_but_one():
    camera = Fisheye62(700, 700, values(100, 100), values(349.5, 349.5), torch.zeros(8, dtype=torch.float64))
    radius = values(0, 1, 2, 3.14, 3.15) * 100
    rays = camera.unproject(torch.stack((radius + 349.5, torch.full_like(radius, 349.5)), dim=-1))
    assert_close(torch.atan2(rays[:4, 0], rays[:4, 2]), values(0, 1, 2, 3.14))
    assert rays[4].isnan().all()


def opencv_pixels(camera: Camera, rays: torch.Tensor) -> np.ndarray:
    """What OpenCV's own functions project rays to."""
    k = Pinhole(camera.width, camera.height, camera.focal_px, camera.center_px, values()).matrix.numpy()
    points, origin, lens = rays.numpy()[:, None], np.zeros(3), camera.distortion.numpy()
    project = cv2.fisheye.projectPoints if isinstance(camera, KannalaBrandt) else cv2.projectPoints
    return project(points, origin, origin, k, lens)[0][:, 0]


@pytest.mark.parametrize("name", ["radial-tangential", "rational", "Kannala-Brandt"])
def test_lenses_are_those_of_opencv(name):
    camera = CAMERAS[name]
    rays = rays_in_view(camera)
    rays = rays[rays[:, 2] > 0.01]  # OpenCV divides by z
    np.testing.assert_allclose(camera.project(rays), opencv_pixels(camera, rays), atol=1e-9, rtol=0)


def test_a_lens_that_folds_over_sees_nothing_beyond():
    """Where the radius in the picture shrinks again, pixels have two rays: only the inner one is seen and found."""
    lens = torch.zeros(8, dtype=torch.float64)
    lens[0] = -0.3  # r (1 - 0.3 r²) is largest at r = 1.054
    camera = RadialTangential(640, 480, values(300, 300), values(319.5, 239.5), lens)
    tangents = values(0.5, 1.0, 1.04, 1.07, 1.5)
    rays = torch.stack((tangents, torch.zeros(5), torch.ones(5)), dim=-1).double()
    assert camera.contains(camera.project(rays)).all()
    assert camera.sees(rays).tolist() == [True, True, True, False, False]
    beyond = camera.unproject(camera.project(rays[4]))
    assert beyond.isnan().all() or float(beyond[0] / beyond[2]) < 1.06


def test_visibility():
    camera = Pinhole(100, 80, values(50, 50), values(49.5, 39.5), values())
    corners = camera.unproject(values(0, 0, 99, 79, 99.1, 40, 50, -0.1).reshape(4, 2))
    assert camera.sees(corners).tolist() == [True, True, False, False]
    assert camera.sees(-corners).tolist() == [False] * 4
    assert camera.contains(values(0, 79, 0, 79.5).reshape(2, 2)).tolist() == [True, False]


def test_posed_fisheye_does_not_see_behind_its_image_plane():
    camera = Fisheye62(700, 700, values(100, 100), values(349.5, 349.5), torch.zeros(8, dtype=torch.float64))
    posed = PosedCamera(camera, torch.eye(4, dtype=torch.float64))
    sideways = values(1, 0, 0.01, 1, 0, -0.01).reshape(2, 3)
    assert camera.sees(sideways).tolist() == [True, True]
    assert posed.sees(sideways).tolist() == [True, False]


def test_the_camera_moves_with_its_pose(rng):
    camera, pose, points = CAMERAS["quest3"], random_poses(rng), normal(rng, 5, 3) * 0.1 + values(0, 0, 0.5)
    posed = PosedCamera(camera, pose)
    in_world = points @ pose[:3, :3].mT + pose[:3, 3]
    assert_close(posed.to_camera(in_world), points, atol=1e-14, rtol=0)
    assert_close(posed.project(in_world), camera.project(points), atol=1e-10, rtol=0)


def test_posed_cameras_index_like_arrays(rng):
    cameras, points = headset(), normal(rng, 5, 3) * 0.05 + values(0, 0.1, 0.3)
    pixels = cameras.project(points[None].expand(4, 5, 3))
    assert_close(cameras[[2, 0]].project(points[None].expand(2, 5, 3)), pixels[[2, 0]])
    assert_close(cameras[:, None].project(points.expand(4, 2, 5, 3))[:, 1], pixels)
    assert_close(cameras[1].project(points), pixels[1])


@pytest.mark.parametrize("angle", [0.5, 2.0])
def test_fisheye_follows_the_formula(angle):
    k, p1, p2 = (0.1, -0.02, 0.003, 0.005, -0.001, 0.0002), 0.004, 0.007
    camera = Fisheye62(640, 480, values(200, 300), values(320, 240), values(*k, p1, p2))
    radial = angle * (1 + sum(coefficient * angle ** (2 * order) for order, coefficient in enumerate(k, start=1)))
    x, y = 0.6 * radial, -0.8 * radial
    expected = values(
        200 * (x + 2 * p2 * x * y + p1 * (radial**2 + 2 * x**2)) + 320,
        300 * (y + 2 * p1 * x * y + p2 * (radial**2 + 2 * y**2)) + 240,
    )
    point = values(0.6 * math.sin(angle), -0.8 * math.sin(angle), math.cos(angle))
    assert_close(camera.project(3 * point), expected)


def test_thin_prism_follows_the_formula():
    plain = Fisheye62(640, 480, values(200, 300), values(320, 240), values(0.1, 0, 0, 0, 0, 0, 0, 0))
    prism = Fisheye624(
        640, 480, plain.focal_px, plain.center_px, torch.cat((plain.distortion, values(0.01, 0.02, -0.03, 0.04)))
    )
    point = values(0.3, -0.2, 1.0)
    t2 = ((plain.project(point) - plain.center_px) / plain.focal_px).square().sum()
    shift = plain.focal_px * torch.stack((0.01 * t2 + 0.02 * t2**2, -0.03 * t2 + 0.04 * t2**2))
    assert_close(prism.project(point) - plain.project(point), shift)


def test_pinhole_matrix_is_its_projection(rng):
    camera, points = CAMERAS["pinhole"], normal(rng, 5, 3) + values(0, 0, 6)
    homogeneous = points @ camera.matrix.mT
    assert_close(homogeneous[:, :2] / homogeneous[:, 2:], camera.project(points))


@pytest.mark.parametrize(("model", "count"), [(Pinhole, 1), (Fisheye62, 12), (Fisheye624, 8)])
def test_wrong_number_of_distortion_parameters(model, count):
    with pytest.raises(
        ValueError, match=f"{model.__name__} expects {model.num_distortion} distortion parameters, got {count}"
    ):
        model(640, 480, values(240, 240), values(320, 240), torch.zeros(count, dtype=torch.float64))


def test_corner_pixels_have_rays_where_the_lens_folds_over_just_beyond_them():
    """Newton steps from outside must not leap across the turning point: every pixel of many devices has its ray."""
    generator = np.random.default_rng(0)
    corners = torch.tensor([[0.0, 0], [635, 0], [635, 479], [0, 479]], dtype=torch.float64)
    for _ in range(100):
        camera = sample_rig(generator).camera[:, None]
        rays = camera.unproject(corners)
        assert not rays.isnan().any()
        assert (camera.project(rays) - corners).abs().max() < 1e-6
