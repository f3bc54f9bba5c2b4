import numpy as np
import pytest
import torch
from conftest import hand_in_front, headset, normal, random_angles, random_poses
from torch.testing import assert_close

from lib.cameras import Pinhole, PosedCamera
from lib.crops import FILL, aim, crop_cameras, crop_points, perturb, roll, sees_hand, select_views, warp
from lib.hands import LEFT, RIGHT, for_hand
from lib.transforms import apply, homogeneous, invert

CENTER = 47.5
no_roll = torch.zeros(1, dtype=torch.float64)


def pinhole(size: int = 96, focal_px: float = 100.0) -> PosedCamera:
    """One camera, as a batch, at the origin of the world."""
    focal = torch.tensor([focal_px], dtype=torch.float64)
    return PosedCamera(Pinhole.create(size, focal), torch.eye(4, dtype=torch.float64)[None])


def points_around(center: torch.Tensor, radius: float) -> torch.Tensor:
    """The corners of a cube, (1, 8, 3)."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    return center + radius * signs[None]


def centroid(picture: np.ndarray) -> torch.Tensor:
    """The centre of a picture's light, pixels (x, y)."""
    y, x = np.indices(picture.shape)
    return torch.tensor([(picture * x).sum(), (picture * y).sum()], dtype=torch.float64) / picture.sum()


def lit_pixel(camera: PosedCamera, pixel: tuple[int, int], depth: float) -> tuple[np.ndarray, torch.Tensor]:
    """A black picture with one lit pixel, and a world point that projects to it."""
    picture = np.zeros((camera.camera.height, camera.camera.width), np.uint8)
    picture[pixel[1], pixel[0]] = 255
    ray = camera.camera.unproject(torch.tensor(pixel, dtype=torch.float64))
    return picture, apply(camera.world_from_camera, depth * ray)[0, 0]


LIT_PIXELS = ((1, (300, 200)), (0, (120, 90)), (2, (401, 380)), (3, (490, 260)))
"""By camera."""


@pytest.mark.parametrize(
    ("index", "pixel", "mounting_deg", "hand", "moved"),
    [  # every pair of values of two of them
        (*LIT_PIXELS[i], mounting_deg, (LEFT, RIGHT)[(i + j) % 2], (i // 2 + j // 2) % 2 == 1)
        for i in range(4)
        for j, mounting_deg in enumerate((0, 90, 180, 33))
    ],
)
def test_one_lit_pixel_lands_where_its_point_projects(index, pixel, mounting_deg, hand, moved):
    """Through fisheye, crop camera and mirror, up to half a pixel: the spot is a lit pixel magnified."""
    camera = headset(636)[[index]]
    picture, point = lit_pixel(camera, pixel, depth=0.35)
    around = points_around(point + 0.006 * torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64), radius=0.015)
    mounting = torch.deg2rad(torch.tensor([mounting_deg], dtype=torch.float64))
    crop = crop_cameras(camera, around, torch.tensor([hand]), mounting)[0][0]
    if moved:
        crop = perturb(
            crop, torch.tensor([[0.02, -0.025]]).double(), torch.tensor([0.4]).double(), torch.tensor([0.8]).double()
        )
    seen = warp(picture[None], camera, crop)[0]
    expected = crop.project(point[None, None])[0, 0]
    assert (expected - CENTER).norm() > 3
    assert seen.max() > 128
    assert_close(centroid(seen), expected, atol=0.1, rtol=0)


@pytest.mark.parametrize("hand", [LEFT, RIGHT])
def test_crop_holds_its_points_and_no_more(hand, rng):
    model_points = points_around(torch.tensor([0.05, 0.1, 0.35], dtype=torch.float64), 0.08) + 0.01 * normal(
        rng, 1, 8, 3
    )
    cameras = headset(636)[[1, 2]]
    crop, exists = crop_cameras(
        cameras, model_points, torch.tensor([hand]), torch.deg2rad(torch.tensor([90.0, 90.0]).double())
    )
    assert exists.all()
    offsets = (crop.project(model_points[:, None].expand(1, 2, 8, 3)) - CENTER).abs().amax(dim=(-2, -1))
    assert_close(offsets, torch.full_like(offsets, FILL * CENTER))


def test_crop_camera_stays_at_the_real_cameras_centre():
    cameras = headset(636)
    points = points_around(torch.tensor([0.0, 0.1, 0.35], dtype=torch.float64), 0.05)
    crop, _ = crop_cameras(cameras, points, torch.tensor([LEFT]), torch.zeros(4, dtype=torch.float64))
    assert torch.equal(crop.world_from_camera[0, :, :3, 3], cameras.world_from_camera[:, :3, 3])


def test_the_mounting_angle_makes_crops_upright():
    """However a camera is rolled about its axis, its crop looks the same."""
    angles = torch.deg2rad(torch.tensor([0.0, 90.0, 180.0, 33.0], dtype=torch.float64))
    front = headset(636)[[1]]
    upright = front.world_from_camera @ homogeneous(
        roll(torch.deg2rad(torch.tensor([90.0]).double())), torch.zeros(1, 3).double()
    )
    rolled = upright @ homogeneous(roll(-angles), torch.zeros(4, 3, dtype=torch.float64))
    points = points_around(torch.tensor([0.0, 0.15, 0.35], dtype=torch.float64), 0.05)
    crop, _ = crop_cameras(PosedCamera(headset(636).camera, rolled), points, torch.tensor([LEFT]), angles)
    assert_close(crop.world_from_camera, crop.world_from_camera[:, :1].expand(1, 4, 4, 4), atol=1e-14, rtol=0)
    down = apply(crop.camera_from_world[0, :1], points)[0, :, 1]
    assert down[points[0, :, 1] > 0.15].min() > down[points[0, :, 1] < 0.15].max()


def test_a_right_hand_looks_like_the_left_hand_it_mirrors(hand, rng):
    angles, camera = random_angles(rng, hand)[None], pinhole()
    left = hand_in_front(-0.06)[None]
    across = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    crops = []
    for side, wrist in ((LEFT, left), (RIGHT, across @ left)):
        points = hand.landmarks(angles, wrist)
        crop, _ = crop_cameras(camera, points, torch.tensor([side]), no_roll)
        crops.append(crop[0].project(points))
    assert_close(*crops, atol=1e-10, rtol=0)


def test_aim_is_the_smallest_rotation_to_the_target(rng):
    target = torch.nn.functional.normalize(normal(rng, 50, 3), dim=-1)
    rotation = aim(3 * target)
    assert_close(rotation[..., 2], target, atol=1e-12, rtol=0)
    assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(50, 3, 3), atol=1e-12, rtol=0)
    cosine = (rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    assert_close(cosine, target[:, 2], atol=1e-12, rtol=0)


def test_crop_points_are_three_postures_of_one_wrist(hand, rng):
    angles, wrists = random_angles(rng, hand, 2), random_poses(rng, 2)
    points = crop_points(hand, angles, wrists)
    open_hand = torch.zeros(2, 22, dtype=torch.float64)
    for start, posture in ((0, angles), (21, hand.mid_range_angles.expand(2, 22)), (42, open_hand)):
        assert_close(points[:, start : start + 21], hand.landmarks(posture, wrists), atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    ("center", "radius", "exists"),
    [
        ((0.0, 0.0, 0.5), 0.1, True),
        ((0.0, 0.0, 0.05), 0.1, False),  # a point lies behind the camera
        ((0.0, 0.0, -0.5), 0.1, False),
        (
            (0.3, 0.0, -0.5),
            0.1,
            True,
        ),  # the crop camera may look backwards; whether the real camera sees is asked elsewhere
        ((0.0, 0.0, 1.0), 0.89, True),  # half of 95 px * 0.95 / (0.89 / 0.11) = 5.6 px
        ((0.0, 0.0, 1.0), 0.91, False),  # 4.5 px
    ],
)
def test_crop_cameras_that_do_not_exist(center, radius, exists):
    points = points_around(torch.tensor(center, dtype=torch.float64), radius)
    assert bool(crop_cameras(pinhole(), points, torch.tensor([LEFT]), no_roll)[1]) is exists


def test_no_perturbation_changes_nothing(rng):
    crop = PosedCamera(Pinhole.create(96, torch.tensor([150.0, 200.0]).double()), random_poses(rng, 2))
    zero = torch.zeros(2, dtype=torch.float64)
    same = perturb(crop, torch.zeros(2, 2, dtype=torch.float64), zero, zero + 1)
    assert_close(same.world_from_camera, crop.world_from_camera, atol=1e-15, rtol=0)
    assert torch.equal(same.camera.focal_px, crop.camera.focal_px)


def test_perturbation_looks_aside_rolls_and_zooms():
    crop = pinhole(focal_px=200.0)
    look, turn, zoom = (
        torch.tensor([[0.1, -0.05]]).double(),
        torch.tensor([torch.pi / 2], dtype=torch.float64),
        torch.tensor([1.5]).double(),
    )
    moved = perturb(crop, look, turn, zoom)
    assert torch.equal(moved.camera.focal_px, crop.camera.focal_px * 1.5)
    aimed_at = torch.tensor([[[np.tan(0.1), np.tan(-0.05), 1.0]]], dtype=torch.float64)
    assert_close(moved.project(aimed_at)[0, 0], torch.tensor([CENTER, CENTER], dtype=torch.float64))
    straight = perturb(crop, look, torch.zeros(1, dtype=torch.float64), zoom)
    assert_close(moved.world_from_camera[0, :3, 1], -straight.world_from_camera[0, :3, 0], atol=1e-14, rtol=0)


def test_select_views_takes_the_first_two():
    seen = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]], dtype=torch.bool)
    chosen = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]], dtype=torch.bool)
    assert torch.equal(select_views(seen), chosen)


@pytest.mark.parametrize(("outside", "sees"), [(0, True), (2, True), (3, False)])
@pytest.mark.parametrize("stray", [(5.0, 0.0, 1.0), (0.0, 0.0, -1.0)], ids=["beside", "behind"])
def test_a_camera_sees_a_hand_with_19_of_its_21_landmarks(outside, sees, stray):
    landmarks = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).repeat(1, 21, 1)
    landmarks[:, :outside] = torch.tensor(stray, dtype=torch.float64)
    assert bool(sees_hand(pinhole(), landmarks)) is sees


def test_a_crop_that_equals_the_source_camera_copies_the_picture(rng):
    picture = rng.integers(0, 256, (1, 96, 96), dtype=np.uint8)
    np.testing.assert_array_equal(warp(picture, pinhole(), pinhole()), picture)


def test_mirrored_crop_flips_the_picture(rng):
    picture = rng.integers(0, 256, (1, 96, 96), dtype=np.uint8)
    crop = PosedCamera(pinhole().camera, torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))[None])
    np.testing.assert_array_equal(warp(picture, pinhole(), crop), picture[:, :, ::-1])


def test_black_outside_the_picture_and_behind_the_camera():
    white = np.full((1, 96, 96), 255, np.uint8)
    wide = warp(white, pinhole(), pinhole(focal_px=25.0))[0]
    assert wide[48, 48] == 255
    assert not wide[:, :30].any()
    backwards = PosedCamera(pinhole().camera, torch.diag(torch.tensor([-1.0, 1, -1, 1], dtype=torch.float64))[None])
    assert not warp(white, pinhole(), backwards).any()


def test_each_crop_has_its_own_source():
    grays = [np.full((96, 96), level, np.uint8) for level in (50, 200)]
    both = PosedCamera(pinhole().camera[[0, 0]], pinhole().world_from_camera.repeat(2, 1, 1))
    assert warp(grays, both, both)[:, 48, 48].tolist() == [50, 200]


def test_hands_of_the_tiny_recording_project_into_their_crops(hand):
    """For both hands, in the front cameras of a headset."""
    cameras, hands = headset(636), torch.tensor([LEFT, RIGHT])
    wrists = for_hand(torch.stack((hand_in_front(-0.08), hand_in_front(0.08))), hands)
    points = crop_points(hand, torch.zeros(2, 22, dtype=torch.float64), wrists)
    crop, exists = crop_cameras(cameras, points, hands, torch.deg2rad(torch.tensor([0.0, 90, 90, 180]).double()))
    pixels = crop.project(points[:, None].expand(2, 4, 63, 3))
    inside = crop.camera[..., None].contains(pixels).all(dim=-1)
    assert inside[exists].all()
    assert (exists & sees_hand(cameras, points[:, :21]))[:, 1:3].all()
    assert_close(invert(crop.world_from_camera), crop.camera_from_world)
