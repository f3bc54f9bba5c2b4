"""The rig, the bodies, the surroundings and the light of a sampled scene."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.crops import roll
from lib.hands import LEFT, NUM_BONES, RIGHT
from lib.rendered.backgrounds import SIZE, Environment, _with_border, sample_environment, texel_directions
from lib.rendered.bodies import FOREARM, FOREARM_BONES, UPPER_ARM, UPPER_ARM_BONES, Look, assemble, sample_look
from lib.rendered.lighting import illuminate, sky_directions
from lib.rendered.motion import sample_motion
from lib.rendered.raster import render_frame, skin_vertices
from lib.rendered.scene import nominal_rig, sample_rig, sample_scene
from lib.rendered.sensor import sample_sensor
from lib.rendered.shape import generic_hand, user_hand, vertex_albedo

FORWARD = np.array([0.0, 0.0, -1.0])


@pytest.fixture(scope="module")
def scene():
    return sampled(0)


def sampled(seed: int):
    generator, hand = np.random.default_rng(seed), user_hand(seed)
    motion = sample_motion("separate_hand", hand, generator, 30)
    return sample_scene(motion, hand, vertex_albedo(), sample_rig(generator), generator)


def test_the_rig_looks_where_the_conventions_say():
    pose = nominal_rig().headset_from_camera
    assert torch.allclose(pose[:, :3, :3] @ pose[:, :3, :3].mT, torch.eye(3).double(), atol=1e-12)
    assert torch.allclose(torch.linalg.det(pose), torch.ones(4).double())
    axes = torch.tensor([[-0.77, -0.55, 0.34], [-0.18, 0.55, 0.82], [0.18, 0.55, 0.82], [0.77, -0.55, 0.34]]).double()
    assert torch.rad2deg(torch.acos((pose[:, :3, 2] * axes).sum(-1) / axes.norm(dim=-1))).max() < 1


def test_views_rolled_by_their_mounting_angles_are_upright():
    rig = nominal_rig()
    down = rig.headset_from_camera[:, :3, :3].mT @ torch.tensor([0.0, 1.0, 0.0]).double()
    upright = roll(torch.deg2rad(torch.tensor(rig.camera_angles_deg).double())).mT @ down[..., None]
    assert (upright[1:3, 1, 0] > 0.75).all()
    assert (upright[:, 1, 0] > 0.3).all()


def test_devices_differ_by_a_percent_or_two():
    rigs = [sample_rig(np.random.default_rng(seed)) for seed in range(20)]
    nominal = nominal_rig()
    for rig in rigs:
        assert ((rig.camera.focal_px / nominal.camera.focal_px - 1).abs() < 0.025).all()
        assert ((rig.headset_from_camera - nominal.headset_from_camera)[:, :3, 3].abs() < 0.0025).all()
    assert torch.stack([rig.camera.focal_px for rig in rigs]).std(dim=0).min() > 0.5


def test_every_pixel_of_every_device_has_a_ray():
    for seed in range(10):
        camera = sample_rig(np.random.default_rng(seed)).camera
        rows, columns = torch.meshgrid(torch.arange(0, 481, 40), torch.arange(0, 641, 40), indexing="ij")
        pixels = torch.stack((columns, rows), dim=-1).double()
        assert not camera[:, None, None].unproject(pixels.expand(4, *pixels.shape)).isnan().any()


def test_a_scene_is_a_pure_function_of_its_generator(scene):
    again = sampled(0)
    assert np.array_equal(render_frame(scene, 3), render_frame(again, 3))
    assert not np.array_equal(scene.environment.texture, sampled(1).environment.texture)


def test_arms_hang_together(scene):
    wrist = np.stack([scene.bones[:, side * NUM_BONES, :, 3] for side in (LEFT, RIGHT)], axis=1)
    elbow_of = lambda bones: scene.bones[:, list(bones)] @ np.array([-FOREARM, 0, 0, 1])  # noqa: E731
    assert np.allclose(scene.bones[:, list(FOREARM_BONES)][..., 3], wrist)
    assert np.allclose(elbow_of(FOREARM_BONES), elbow_of(UPPER_ARM_BONES))


def test_the_elbow_is_below_the_wrist_line_and_outside_the_body(scene):
    shoulder = scene.bones[:, list(UPPER_ARM_BONES)] @ np.array([-FOREARM - UPPER_ARM, 0, 0, 1])
    elbow = scene.bones[:, list(UPPER_ARM_BONES)] @ np.array([-FOREARM, 0, 0, 1])
    drawn = scene.drawn[:, :2]
    assert (elbow[drawn][:, 1] < shoulder[drawn][:, 1] + 0.1).mean() > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_surfaces_face_outwards_and_sleeves_lie_around_arms(seed):
    look = sample_look(np.random.default_rng(seed))
    mesh = assemble(generic_hand(), vertex_albedo(), look, (0.2, 0.3))
    corners = mesh.rest_positions[mesh.triangles]
    volumes = np.einsum("ti,ti->t", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    for part, mirrored in ((0, 1), (1, -1), (4, 1), (5, -1)):
        assert mirrored * volumes[mesh.triangle_offsets[part] : mesh.triangle_offsets[part + 1]].sum() > 1e-4
    arm, sleeve = (mesh.rest_positions[mesh.vertex_offsets[part] : mesh.vertex_offsets[part + 1]] for part in (2, 4))
    hidden, over = arm[arm[:, 0] < look.cuff - 0.005], sleeve[sleeve[:, 0] < look.cuff - 0.026]
    center = arm[:24, 1:].mean(axis=0)
    for point in hidden:
        around = over[np.abs(over[:, 0] - point[0]) < 0.013]
        angle = np.arctan2(*(point[1:] - center)) - np.arctan2(*(around[:, 1:] - center).T)
        outside = around[np.abs(np.angle(np.exp(1j * angle))) < 0.2]
        if len(outside) and np.linalg.norm(point[1:] - center) > 0.005:
            assert np.linalg.norm(outside[:, 1:] - center, axis=1).max() > np.linalg.norm(point[1:] - center)


def test_the_arm_continues_the_hand_without_a_step():
    look = sample_look(np.random.default_rng(0))
    mesh = assemble(generic_hand(), vertex_albedo(), look, None)
    hand, arm = (mesh.rest_positions[mesh.vertex_offsets[part] : mesh.vertex_offsets[part + 1]] for part in (0, 2))
    near = hand[(hand[:, 0] > -0.03) & (hand[:, 0] < -0.015), 1:]
    assert np.linalg.norm(near[:, None] - arm[None, :24, 1:], axis=-1).min(axis=1).max() < 0.004


def test_bones_carry_the_mesh_of_the_hand_model(scene):
    mesh = scene.mesh
    weights = mesh.bone_weights.sum(axis=1)
    assert np.allclose(weights, 1, atol=2e-3)
    assert (mesh.bone_weights >= 0).all()
    hand = user_hand(0).to(dtype=torch.float64)
    posed = skin_vertices(mesh.rest_positions, mesh.bone_indices, mesh.bone_weights, scene.bones[7])[
        : mesh.vertex_offsets[1]
    ]
    fingers = hand.mesh_vertices[:, 0].numpy() > 0.02
    bones = torch.from_numpy(
        np.concatenate((scene.bones[7, :NUM_BONES], np.tile([[[0, 0, 0, 1.0]]], (NUM_BONES, 1, 1))), axis=1)
    )
    blended = torch.einsum("vb,bij->vij", hand.mesh_bone_weights, bones)[:, :3]
    expected = torch.einsum("vij,vj->vi", blended[..., :3], hand.mesh_vertices) + blended[..., 3]
    assert np.abs(posed - expected.numpy())[fingers].max() < 5e-4


def test_the_environment_continues_across_the_edges_of_its_map():
    directions = texel_directions(SIZE)
    smooth = _with_border(directions @ np.array([0.3, 0.5, -0.4]))
    assert np.abs(np.diff(smooth, axis=0)).max() < 6 / SIZE
    assert np.abs(np.diff(smooth, axis=1)).max() < 6 / SIZE


def test_an_environment_gives_the_light_that_its_map_shows():
    directions = texel_directions(SIZE)
    lamp = np.array([0.6, 0.64, -0.48])
    spot = directions @ lamp > 0.98
    environment = Environment(_with_border(np.where(spot, 255, 51).astype(np.uint8)))
    assert environment.brightest() @ lamp > 0.95
    towards, away = environment.radiance(np.stack((lamp, -lamp)), 4.0)
    assert away == pytest.approx(0.04, rel=1e-6)
    assert 0.06 < towards < 0.5


def test_surroundings_have_contrast_and_differ():
    maps = [sample_environment(np.random.default_rng(seed), FORWARD).texture for seed in range(4)]
    for first, second in itertools.pairwise(maps):
        assert first.std() > 15
        assert 40 < first.mean() < 230
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.8


def test_even_light_from_everywhere_is_pi_on_a_lone_point():
    directions = sky_directions()
    normals = texel_directions(6).reshape(-1, 3)
    even = np.full(len(directions), 4 * np.pi / len(directions))
    points = 0.5 * normals  # far from each other: no shadows
    total, _ = illuminate(points, normals, np.ones(len(points), bool), directions, even)
    assert np.pi < total.mean() < 1.3 * np.pi
    assert total.std() < 0.25 * total.mean()


def test_hands_are_neither_black_nor_white_in_most_scenes():
    levels = []
    for seed in range(4):
        scene = sampled(seed)
        without = render_frame(replace(scene, drawn=np.zeros_like(scene.drawn)), 10)
        hands = np.abs(render_frame(scene, 10).astype(int) - without) > 20
        levels.append(render_frame(scene, 10)[hands].mean())
    assert min(levels) > 25
    assert max(levels) < 235


def test_sensors_stay_within_reason():
    for seed in range(50):
        sensor = sample_sensor(np.random.default_rng(seed))
        assert 0 < sensor.shutter < 0.25
        assert 0 < sensor.shot_noise < 0.02
        assert abs(sensor.contrast) < 0.4


def test_looks_cover_dark_and_light_skin_long_and_short_sleeves():
    looks: list[Look] = [sample_look(np.random.default_rng(seed)) for seed in range(60)]
    albedos = [look.skin_albedo for look in looks]
    assert min(albedos) < 0.4
    assert max(albedos) > 0.7
    cuffs = np.array([look.cuff for look in looks])
    assert (cuffs > -0.19).sum() > 20
    assert (cuffs < -FOREARM).sum() > 10
