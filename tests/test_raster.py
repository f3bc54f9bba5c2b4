"""The renderer's fast path: against the reference, against the lens, and pixel by pixel."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import raster_reference
import torch

from lib.cameras import Fisheye62
from lib.rendered.backgrounds import SIZE, Environment
from lib.rendered.bodies import Mesh
from lib.rendered.lighting import Lighting
from lib.rendered.motion import sample_motion
from lib.rendered.raster import pose_frame, render_frame, render_view
from lib.rendered.scene import Rig, Scene, nominal_rig, sample_rig, sample_scene
from lib.rendered.sensor import Sensor
from lib.rendered.shape import user_hand, vertex_albedo

IDEAL = Sensor(shutter=0.1, vignetting=0.0, shot_noise=0.0, read_noise=1e-9, contrast=0.0)
FRONT_LEFT, FRONT_RIGHT = 1, 2


@cache
def hands(protocol: str = "hand_hand", seed: int = 3) -> Scene:
    """A sampled scene of hands, views of a quarter of the size."""
    generator = np.random.default_rng(seed)
    hand, rig = user_hand(5), small(sample_rig(generator))
    return sample_scene(sample_motion(protocol, hand, generator, 30), hand, vertex_albedo(), rig, generator)


def small(rig: Rig) -> Rig:
    camera = rig.camera
    return replace(rig, camera=Fisheye62(159, 120, camera.focal_px / 4, camera.center_px / 4, camera.distortion))


def sphere(center: np.ndarray, radius: float, rings: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and outward triangles of a sphere."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, 2 * rings), indexing="ij")
    vertices = np.stack((np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)), axis=-1)
    i, j = np.mgrid[0 : rings - 1, 0 : 2 * rings - 1]
    a = i * 2 * rings + j
    triangles = np.concatenate(
        (np.stack((a, a + 2 * rings, a + 1), -1), np.stack((a + 1, a + 2 * rings, a + 2 * rings + 1), -1))
    )
    return center + radius * vertices.reshape(-1, 3), triangles.reshape(-1, 3)


def spheres(
    *balls: tuple[np.ndarray, float, float], speed: float = 0.0, background: int = 0, rig: Rig | None = None
) -> Scene:
    """White light on spheres (centre in the headset's frame, radius, albedo) before an even background, ideal sensor.

    The headset stands upright at the world's origin; the spheres move along x by `speed` per frame.
    """
    rig = nominal_rig() if rig is None else rig
    parts = [sphere(*ball[:2]) for ball in balls]
    offsets = np.cumsum([0, *(len(vertices) for vertices, _ in parts)])
    count = offsets[-1]
    mesh = Mesh(
        rest_positions=np.concatenate([vertices for vertices, _ in parts]),
        bone_indices=np.zeros((count, 5), int), bone_weights=np.tile([1.0, 0, 0, 0, 0], (count, 1)),
        triangles=np.concatenate([triangles + first for (_, triangles), first in zip(parts, offsets, strict=False)]),
        albedo=np.repeat([ball[2] for ball in balls], np.diff(offsets)), gloss=np.zeros(count),
        texture_coordinates=np.zeros((count, 3)), texture_index=np.zeros(count, int), texture_strength=np.zeros(count),
        vertex_offsets=offsets, triangle_offsets=np.cumsum([0, *(len(triangles) for _, triangles in parts)]),
    )  # fmt: skip
    bones = np.tile(np.eye(4)[:3], (3, 39, 1, 1))
    bones[:, :, 0, 3] = speed * np.arange(-1, 2)[:, None]
    every_way = np.concatenate((np.eye(3), -np.eye(3)))
    return Scene(
        rig, mesh, Environment(np.full((SIZE + 2, SIZE + 2), background, np.uint8)),
        Lighting(np.tile(every_way, (3, 1, 1)), np.full((3, 6), np.pi)), IDEAL, np.zeros((1, 64, 64, 64), np.int8),
        bones, np.ones((3, len(balls)), bool),
        torch.linalg.inv(rig.headset_from_camera)[:, :3].expand(3, 4, 3, 4).contiguous().numpy(),
        np.full(3, 1.0), seed=1,
    )  # fmt: skip


def render(scene: Scene, camera: int = FRONT_LEFT, frame: int = 1, **options) -> np.ndarray:
    return render_view(scene, pose_frame(scene, frame), camera, **options)


@pytest.mark.parametrize("protocol", ["hand_hand", "occlusion"])
def test_agrees_with_the_reference_within_one_grey_level(protocol):
    scene = hands(protocol)
    frame = int(np.argmax(scene.drawn.sum(axis=1)))  # one with the occluder
    fast, slow = render(scene, FRONT_RIGHT, frame), raster_reference.render_view(scene, frame, FRONT_RIGHT)
    assert np.abs(fast.astype(int) - slow).max() <= 1
    assert (fast == slow).mean() > 0.999


def test_a_region_is_the_crop_of_the_view():
    scene = hands()
    view = render(scene)
    for x0, y0, x1, y1 in ((0, 0, 159, 120), (50, 40, 110, 90), (3, 7, 4, 8), (97, 0, 159, 33)):
        assert np.array_equal(render(scene, region=(x0, y0, x1, y1)), view[y0:y1, x0:x1])


@pytest.mark.parametrize("region", [(0, 0, 160, 10), (-1, 0, 10, 10), (5, 5, 5, 10)])
def test_a_region_outside_the_view_is_refused(region):
    with pytest.raises(ValueError, match="must be"):
        render(hands(), region=region)


def test_a_frame_is_its_four_views_and_repeats_bit_by_bit():
    scene = hands()
    views = render_frame(scene, 4)
    assert views.shape == (4, 120, 159)
    assert views.dtype == np.uint8
    assert np.array_equal(views, [render(scene, camera, 4) for camera in range(4)])


def test_every_frame_and_camera_has_its_own_noise():
    scene = replace(
        spheres((np.array([0, 0, -1.0]), 0.01, 1.0), background=100), sensor=replace(IDEAL, shot_noise=0.05)
    )
    first, second, other = (render(scene, *view).astype(float) for view in ((1, 1), (1, 2), (2, 1)))
    assert 0.04 < first.std() / 255 < 0.06
    for different in (second, other):
        assert abs(np.corrcoef(first.ravel(), different.ravel())[0, 1]) < 0.02


def test_markers_appear_where_the_lens_projects_them():
    rng = np.random.default_rng(0)
    rig = sample_rig(rng)
    cameras = rig.posed(torch.eye(4, dtype=torch.float64))
    found = 0
    for _ in range(12):
        center = rng.uniform((-0.3, -0.2, 0.15), (0.3, 0.3, 0.5))
        scene = spheres((center, 0.006, 1.0), rig=rig)
        expected = cameras.project(torch.from_numpy(center)[None].expand(4, 1, 3))[:, 0].numpy()
        for camera in range(4):
            if np.all((expected[camera] > 20) & (expected[camera] < (616, 460))):
                light = (render(scene, camera) / 255.0) ** 2
                y, x = np.mgrid[0:480, 0:636]
                measured = np.array([(light * x).sum(), (light * y).sum()]) / light.sum()
                assert np.abs(measured - expected[camera]).max() < 0.2
                found += 1
    assert found > 12


def test_a_closed_surface_has_no_cracks():
    view = render(spheres((np.array([-0.02, 0.2, 0.2]), 0.06, 0.9)))
    assert 5000 < (view > 0).sum() < 20000
    for line in (*view, *view.T):
        lit = np.nonzero(line)[0]
        assert len(lit) == 0 or (line[lit[0] + 1 : lit[-1]] > 150).all()


def test_the_nearer_of_two_things_hides_the_other():
    direction = np.array([-0.05, 0.25, 0.3])
    near, far = (direction, 0.03, 0.1), (1.5 * direction, 0.03, 0.9)
    for balls in ((near, far), (far, near)):
        view = render(spheres(*balls))
        x, y = (
            nominal_rig()
            .posed(torch.eye(4).double())
            .project(torch.tensor(direction).expand(4, 1, 3))[FRONT_LEFT, 0]
            .round()
            .int()
        )
        assert view[y, x] < 120
        assert (view > 150).any()


def test_fast_things_blur_and_edges_are_smooth():
    ball = (np.array([0, 0.25, 0.3]), 0.02, 0.9)
    still, moving = render(spheres(ball)), render(spheres(ball, speed=0.2))
    assert (moving > 0).sum() > 1.1 * (still > 0).sum()
    edge = (still > 0) & (still < 0.7 * np.median(still[still > 0]))
    assert 10 < edge.sum() < 0.3 * (still > 0).sum()


def test_more_light_and_longer_exposure_give_brighter_hands_and_nothing_drawn_gives_the_background():
    scene = spheres((np.array([0, 0.25, 0.3]), 0.05, 0.3), background=60)
    brighter = replace(scene, lighting=replace(scene.lighting, irradiance=2 * scene.lighting.irradiance))
    ball = render(scene) != 60
    assert 1.3 < render(brighter)[ball].mean() / render(scene)[ball].mean() < 1.5
    assert np.median(render(replace(scene, exposure=4 * scene.exposure))) == 120
    assert (render(replace(scene, drawn=np.zeros((3, 1), bool))) == 60).all()


def test_things_cast_shadows_on_each_other():
    ball, screen = (np.array([0, 0.25, 0.35]), 0.05, 0.8), (np.array([0, 0.15, 0.35]), 0.03, 0.8)
    lamp = Lighting(np.tile([[[0.0, -1.0, 0.0]]], (3, 1, 1)), np.full((3, 1), np.pi))
    alone, shaded = (replace(spheres(*balls), lighting=lamp) for balls in ((ball,), (ball, screen)))
    top = np.argmin(alone.mesh.rest_positions[:, 1])
    assert pose_frame(shaded, 1).radiance[top] < 0.1 * pose_frame(alone, 1).radiance[top]
