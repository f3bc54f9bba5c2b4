"""The compiled crops of the live tracker are those of lib.crops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import headset, random_angles, random_poses, tiny_recording

from lib.cameras import Fisheye62, Fisheye624, KannalaBrandt, Pinhole, PosedCamera, RadialTangential
from lib.crops import Crops, make_crops
from lib.hands import PosedHands
from lib.live.crops import PreparedHand, crop_hands
from lib.recordings import read_recording

LENSES = {
    Fisheye62: [-0.02, 0.09, -0.06, 0.0, 0.001, -0.001, 0.002, -0.002],
    Fisheye624: [-0.02, 0.09, -0.06, 0.01, 0.001, -0.001, 0.002, -0.002, 0.001, -0.0005, 0.002, 0.0003],
    KannalaBrandt: [-0.02, 0.05, -0.03, 0.01],
    Pinhole: [],
    RadialTangential: [-0.02, 0.01, 0.001, -0.001, 0.0, 0.0, 0.0, 0.0],
}


def both(images, cameras, angles, hands) -> tuple[tuple, tuple]:
    return make_crops(images, cameras, angles, hands, 1), crop_hands(
        images, cameras, angles, hands, PreparedHand.of(hands.model)
    )


def assert_alike(plain: tuple[torch.Tensor, Crops], fast: tuple[torch.Tensor, Crops]) -> None:
    (hands, one), (others, other) = plain, fast
    assert torch.equal(hands, others)
    assert torch.equal(one.two_views, other.two_views)
    assert torch.equal(one.hand, other.hand)
    torch.testing.assert_close(one.focal_px, other.focal_px, rtol=1e-6, atol=0)
    torch.testing.assert_close(one.camera_from_world, other.camera_from_world, rtol=0, atol=1e-6)
    difference = (255 * (one.images - other.images)).abs()
    assert float(difference.max()) < 8, "the table rounds otherwise: a grey level, at edges some"
    assert float(difference.mean()) < 0.05


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return read_recording(tiny_recording(8).write(tmp_path_factory.mktemp("recording")))


@pytest.mark.parametrize("model", LENSES)
def test_any_lens(recording, model, rng):
    rig = headset(636)
    distortion = torch.tensor([LENSES[model]], dtype=torch.float64).expand(4, -1)
    camera = model(636, 480, rig.camera.focal_px, rig.camera.center_px, distortion)
    images = rng.integers(0, 256, (4, 60, 80), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)[:, :480, :636]
    for frame in range(8):
        cameras = PosedCamera(camera, recording.world_from_camera[frame])
        assert_alike(*both(np.ascontiguousarray(images), cameras, recording.mounting_angles, recording.hands(frame)))


def test_any_hands(hand, rng):
    """Hands anywhere around the headset, of which cameras see one, both or none."""
    rig, angles = headset(636), torch.deg2rad(torch.tensor([0.0, 90.0, 90.0, 180.0]).double())
    images, counts = np.zeros((4, 480, 636), np.uint8), set()
    images[:] = (np.indices((480, 636)).sum(axis=0) // 3 % 256).astype(np.uint8)
    for _ in range(60):
        wrists = random_poses(rng, 2)
        wrists[:, :3, 3] = torch.from_numpy(rng.uniform([-0.4, -0.3, 0.05], [0.4, 0.4, 0.6], (2, 3)))
        exists = torch.from_numpy(rng.random(2) < 0.9)
        plain, fast = both(images, rig, angles, PosedHands(hand, random_angles(rng, hand, 2), wrists, exists))
        assert_alike(plain, fast)
        counts.add((len(plain[0]), int(plain[1].two_views.sum())))
    assert len(counts) >= 4


def test_cameras_of_several_sizes(recording):
    rig = recording.cameras(0)
    extent = torch.tensor([[64.0, 48.0], [30.0, 48.0], [64.0, 48.0], [64.0, 48.0]]).double()
    cut = PosedCamera(replace(rig.camera, extent_px=extent), rig.world_from_camera)
    images = next(recording.images())
    plain, fast = both(images, cut, recording.mounting_angles, recording.hands(0))
    assert torch.equal(plain[1].two_views, fast[1].two_views)
    assert not plain[1].two_views.all()


def test_no_hands(recording):
    hands = replace(recording.hands(0), exists=torch.zeros(2, dtype=torch.bool))
    plain, fast = both(next(recording.images()), recording.cameras(0), recording.mounting_angles, hands)
    assert len(plain[0]) == len(fast[0]) == 0
