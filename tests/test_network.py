from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, random_crops, random_poses, tiny_network
from torch.testing import assert_close

from lib.crops import CROP_SIZE, Crops
from lib.hands import for_hand
from lib.network import (
    BACKBONE_FOCAL_PX,
    FEATURE_CHANNELS,
    MIN_SIGMA,
    HandPrediction,
    NetworkConfig,
    TemporalState,
    UmeTrack,
    feature_transform,
    root_points,
)
from lib.study.experiments import REFERENCE_NETWORK
from lib.transforms import apply, invert

MIXED = (True, False, True, False, False)


@pytest.fixture(scope="module")
def network() -> UmeTrack:
    return tiny_network().requires_grad_(False)


@pytest.fixture
def skeleton(hand):
    return hand.to(dtype=torch.float32)


def random_state(rng: np.random.Generator, tracked: tuple[bool, ...]) -> TemporalState:
    hands = len(tracked)
    memory = torch.from_numpy(rng.normal(size=(hands, 18, 6, 6))).float()
    return TemporalState(memory, random_poses(rng, hands).float(), torch.tensor(tracked))


def run(
    network: UmeTrack, crops: Crops, state: TemporalState, skeleton
) -> tuple[HandPrediction, HandPrediction, TemporalState]:
    """Regressor K, regressor U and the state after this frame."""
    features, after = network.features(crops, state)
    return network.known(features, crops, skeleton), network.unknown(features, crops), after


def tensors_of(*things) -> dict[str, torch.Tensor]:
    return {
        f"{i} {name}": value
        for i, thing in enumerate(things)
        for name, value in vars(thing).items()
        if value is not None
    }


def assert_same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        assert_close(value, expected[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def choose(crops: Crops, hands: list[int]) -> Crops:
    return crops[torch.tensor(hands)]


def test_feature_transform_moves_channels_as_points(rng):
    """A third of the channels each for x, y and z: channel c, row and column make up a point."""
    features, poses = torch.from_numpy(rng.normal(size=(2, 72, 6, 6))), random_poses(rng, 2)
    moved = feature_transform(features, poses)
    for hand, channel, row, column in ((0, 0, 0, 0), (1, 23, 5, 2), (0, 7, 3, 4)):
        places = [(hand, channel + 24 * axis, row, column) for axis in range(3)]
        point = torch.stack([features[place] for place in places])
        expected = apply(poses[hand], point[None])[0]
        assert_close(torch.stack([moved[place] for place in places]), expected, atol=1e-14, rtol=0)


def test_feature_transforms_compose_and_invert(rng):
    features = torch.from_numpy(rng.normal(size=(2, 72, 6, 6)))
    c_from_b, b_from_a = random_poses(rng, 2), random_poses(rng, 2)
    once = feature_transform(features, c_from_b @ b_from_a)
    assert_close(once, feature_transform(feature_transform(features, b_from_a), c_from_b), atol=1e-13, rtol=0)
    assert_close(feature_transform(once, invert(c_from_b @ b_from_a)), features, atol=1e-13, rtol=0)


def test_one_view_features_are_the_backbones_with_depth_scaled_by_the_focal_length(rng, network):
    crops = random_crops(rng, (False, False))
    expected = network.backbone(crops.images[:, :1])
    expected[:, 48:] *= (crops.focal_px[:, 0] / BACKBONE_FOCAL_PX)[:, None, None, None]
    assert_close(network.extract(crops), expected, atol=1e-5, rtol=0)


def test_two_view_features_are_fused_in_the_axes_and_focal_length_of_the_reference_camera(rng, network):
    """S_0^-1 E_0 E_1^-1 S_1 takes the second view's features to the first; S_0 restores the focal length."""
    crops = random_crops(rng, (True, True))
    first, second = (network.backbone(crops.images[:, view, None]) for view in (0, 1))
    lens = torch.eye(4).repeat(2, 2, 1, 1)
    lens[:, :, 2, 2] = crops.focal_px / BACKBONE_FOCAL_PX
    reference, other = crops.camera_from_world.unbind(1)
    first_from_second = torch.linalg.inv(lens[:, 0]) @ reference @ torch.linalg.inv(other) @ lens[:, 1]
    fused = network.fusion(torch.cat((first, feature_transform(second, first_from_second)), dim=1))
    assert_close(network.extract(crops), feature_transform(fused, lens[:, 0]), atol=1e-5, rtol=0)


def test_memory_may_be_kept_in_the_axes_of_any_camera(rng, network, skeleton):
    crops, state = random_crops(rng, MIXED), random_state(rng, (True,) * 5)
    other_from_world = random_poses(rng, 5).float()
    moved = feature_transform(state.memory, other_from_world @ invert(state.camera_from_world))
    same = TemporalState(moved, other_from_world, state.tracked)
    ours, expected = (tensors_of(*run(network, crops, s, skeleton)) for s in (same, state))
    assert_same(ours, expected, atol=1e-4)


def test_root_points():
    points = root_points()
    assert_close(points.norm(dim=1), torch.tensor([0.0, *[0.1] * 6]))
    assert_close(points[1:4], 0.1 * torch.eye(3))
    assert_close(points[4:], -0.1 * (1 - torch.eye(3)).flip(0) / 2**0.5)


@pytest.mark.parametrize("hands", [[0], [1], [0, 2], [1, 4], [4, 0, 1]], ids=str)
def test_a_mixed_batch_equals_its_parts(rng, network, skeleton, hands):
    crops, state = random_crops(rng, MIXED), random_state(rng, (True, True, False, True, False))
    whole = tensors_of(*run(network, crops, state, skeleton))
    part = tensors_of(*run(network, choose(crops, hands), state[torch.tensor(hands)], skeleton))
    assert_same(part, {name: value[hands] for name, value in whole.items()})


def test_a_batch_of_skeletons_equals_single_skeletons(rng, network, skeleton):
    crops, state = random_crops(rng, (True, False)), TemporalState.untracked(2)
    features, _ = network.features(crops, state)
    scales = torch.tensor([0.8, 1.2])
    batch = network.known(features, crops, skeleton.scaled(scales))
    for index, scale in enumerate(scales):
        single = network.known(features, crops, skeleton.scaled(scale))
        assert_close(batch.joint_angles[index], single.joint_angles[index], atol=1e-5, rtol=0)
    assert not torch.equal(batch.joint_angles, network.known(features, crops, skeleton).joint_angles)


def test_the_second_view_of_a_one_view_hand_is_ignored(rng, network, skeleton):
    crops, state = random_crops(rng, MIXED), TemporalState.untracked(len(MIXED))
    other = random_crops(rng, MIXED)
    one = ~crops.two_views
    padded = Crops(**{name: value.clone() for name, value in vars(crops).items()})
    for name in ("images", "focal_px", "camera_from_world"):
        getattr(padded, name)[one, 1] = getattr(other, name)[one, 1]
    assert_same(
        tensors_of(*run(network, padded, state, skeleton)), tensors_of(*run(network, crops, state, skeleton)), atol=0
    )


def test_the_second_view_of_a_two_view_hand_matters(rng, network):
    crops = random_crops(rng, (True,))
    images = crops.images.clone()
    images[:, 1] = 0
    assert (network.extract(crops) - network.extract(replace(crops, images=images))).abs().max() > 1e-3


def test_moving_the_world_moves_the_wrist_and_nothing_else(rng, network, skeleton):
    """What the feature transforms are for: predictions do not depend on where the world's origin is."""
    crops, state = random_crops(rng, MIXED), random_state(rng, (True,) * 5)
    moved_from_world = random_poses(rng).float()
    elsewhere = replace(crops, camera_from_world=crops.camera_from_world @ invert(moved_from_world))
    state_elsewhere = replace(state, camera_from_world=state.camera_from_world @ invert(moved_from_world))
    here, there = run(network, crops, state, skeleton), run(network, elsewhere, state_elsewhere, skeleton)
    for a, b in zip(here[:2], there[:2], strict=True):
        assert_close(b.joint_angles, a.joint_angles, atol=1e-4, rtol=0)
        assert_close(b.world_from_wrist, moved_from_world @ a.world_from_wrist, atol=1e-4, rtol=0)
    assert_close(there[2].memory, here[2].memory, atol=1e-4, rtol=0)


def test_a_right_hand_is_decoded_in_its_mirrored_crop_as_a_left_hand(rng, network, skeleton, hand):
    left = replace(random_crops(rng, (True, True)), hand=torch.tensor([0, 0]))
    across = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    right = Crops(left.images, left.focal_px, left.camera_from_world @ across, torch.tensor([1, 1]), left.two_views)
    in_camera = []
    for crops in (left, right):
        prediction = run(network, crops, TemporalState.untracked(2), skeleton)[0]
        assert_close(torch.linalg.det(prediction.world_from_wrist), torch.ones(2))
        landmarks = skeleton.landmarks(prediction.joint_angles, for_hand(prediction.world_from_wrist, crops.hand))
        in_camera.append(apply(crops.camera_from_world[:, 0], landmarks))
    assert_close(*in_camera, atol=1e-5, rtol=0)


def test_predictions_have_their_form(rng, network, skeleton):
    known, unknown, after = run(network, random_crops(rng, MIXED), TemporalState.untracked(5), skeleton)
    assert known.scale is None
    assert (unknown.scale > 0).all()
    for prediction in (known, unknown):
        assert not prediction.joint_angles[:, 20:].any()
        assert (prediction.landmark_sigma >= MIN_SIGMA).all()
        assert_close(
            invert(prediction.world_from_wrist) @ prediction.world_from_wrist,
            torch.eye(4).expand(5, 4, 4),
            atol=1e-5,
            rtol=0,
        )
    assert after.tracked.all()


def test_the_network_keeps_no_state_and_changes_none(rng, network, skeleton):
    crops, state = random_crops(rng, MIXED), random_state(rng, (True,) * 5)
    before = {name: value.clone() for name, value in tensors_of(state).items()}
    first = tensors_of(*run(network, crops, state, skeleton))
    assert_same(tensors_of(state), before, atol=0)
    assert_same(tensors_of(*run(network, crops, state, skeleton)), first, atol=0)


def test_a_lost_hand_is_a_fresh_hand_and_the_others_remember(rng, network, skeleton):
    crops, state = random_crops(rng, MIXED), random_state(rng, (True,) * 5)
    lost = torch.tensor([True, False, False, True, False])
    after = tensors_of(*run(network, crops, state.lose(lost), skeleton))
    for mask, reference in ((lost, TemporalState.untracked(5)), (~lost, state)):
        expected = tensors_of(*run(network, crops, reference, skeleton))
        assert_same({n: v[mask] for n, v in after.items()}, {n: v[mask] for n, v in expected.items()}, atol=0)
    remembered, fresh = (run(network, crops, s, skeleton)[0].joint_angles for s in (state, TemporalState.untracked(5)))
    assert ((remembered - fresh).abs().amax(dim=1) > 1e-4).all()


def test_a_state_can_be_taken_apart_and_updated(rng):
    state, new = random_state(rng, (True, False, True)), random_state(rng, (False, True))
    hands = torch.tensor([2, 0])
    updated = state.update(hands, new)
    assert_same(tensors_of(updated[hands]), tensors_of(new), atol=0)
    assert_same(tensors_of(updated[torch.tensor([1])]), tensors_of(state[torch.tensor([1])]), atol=0)


def test_a_state_on_another_device_is_updated_by_indices_from_the_cpu():
    state = TemporalState.untracked(3, "meta").update(torch.tensor([2, 0]), TemporalState.untracked(2, "meta"))
    assert {value.device.type for value in tensors_of(state).values()} == {"meta"}


@pytest.mark.parametrize("option", ["feature_transform", "skeleton_encoder", "temporal_module"])
def test_each_ablation_runs_and_is_no_larger(rng, skeleton, option):
    ablated = tiny_network(**{option: False})
    crops, state = random_crops(rng, MIXED), random_state(rng, (True,) * 5)
    for prediction in run(ablated, crops, state, skeleton)[:2]:
        assert all(value.isfinite().all() for value in tensors_of(prediction).values())
    saved = sum(p.numel() for p in tiny_network().parameters()) - sum(p.numel() for p in ablated.parameters())
    layers = {"skeleton_encoder": "skeleton_encoder", "temporal_module": "temporal"}
    assert (saved > 0) == (option in layers)
    assert not any(name.startswith(f"{layers.get(option)}.") for name in ablated.state_dict())


def test_without_skeleton_encoder_the_hand_model_does_not_matter(rng, skeleton):
    crops, state = random_crops(rng, MIXED), TemporalState.untracked(5)
    for ablated, matters in ((tiny_network(skeleton_encoder=False), False), (tiny_network(), True)):
        ours, other = (run(ablated, crops, state, model)[0].joint_angles for model in (skeleton, skeleton.scaled(1.5)))
        assert torch.equal(ours, other) is not matters


def test_without_temporal_module_the_state_does_not_matter(rng, skeleton):
    ablated, crops = tiny_network(temporal_module=False), random_crops(rng, MIXED)
    states = (random_state(rng, (True,) * 5), TemporalState.untracked(5))
    ours, other = (run(ablated, crops, state, skeleton)[0].joint_angles for state in states)
    assert torch.equal(ours, other)


def test_without_feature_transform_camera_poses_reach_the_wrist_only(rng, skeleton):
    ablated, crops = tiny_network(feature_transform=False), random_crops(rng, MIXED)
    moved = replace(crops, camera_from_world=random_poses(rng, 5, 2).float(), focal_px=2 * crops.focal_px)
    state = random_state(rng, (True,) * 5)
    ours, other = run(ablated, crops, state, skeleton)[0], run(ablated, moved, state, skeleton)[0]
    assert torch.equal(ours.joint_angles, other.joint_angles)
    assert not torch.equal(ours.world_from_wrist, other.world_from_wrist)
    full = tiny_network()
    assert not torch.equal(
        run(full, crops, state, skeleton)[0].joint_angles, run(full, moved, state, skeleton)[0].joint_angles
    )


@pytest.mark.parametrize(
    "config",
    [TINY, NetworkConfig(widths=(4, 8, 8, 8), blocks=(1, 1, 2, 1)), NetworkConfig("unshuffle", (8, 12, 16), (2, 1, 1))],
    ids=str,
)
def test_stems_and_widths(rng, config):
    network = UmeTrack(config).eval()
    assert network.backbone(torch.zeros(2, 1, CROP_SIZE, CROP_SIZE)).shape == (2, FEATURE_CHANNELS, 6, 6)
    assert [stage[0].conv1.out_channels for stage in network.backbone.stages] == list(config.widths)
    assert [len(stage) for stage in network.backbone.stages] == list(config.blocks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (8, 8, 8), "blocks": (1, 1, 1)}, "convolution stem needs 4 stages"),
        ({"stem": "unshuffle"}, "unshuffle stem needs 3 stages"),
        ({"blocks": (2, 3, 5)}, r"got widths \(32, 64, 128, 256\) and blocks \(2, 3, 5\)"),
    ],
)
def test_a_configuration_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**arguments)


def test_training_reaches_every_parameter(rng, skeleton):
    network = tiny_network().train()
    crops, state = random_crops(rng, MIXED), random_state(rng, (True,) * 5)
    known, unknown, _ = run(network, crops, state, skeleton)
    sum(value.square().sum() for value in tensors_of(known, unknown).values()).backward()
    unreached = [
        n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert not unreached


def test_new_features_are_as_large_as_the_distance_between_cameras():
    torch.manual_seed(0)
    with torch.no_grad():
        features = UmeTrack(REFERENCE_NETWORK).backbone(torch.rand(16, 1, 96, 96))
    assert 0.03 < features.std() < 0.3


def test_the_temporal_module_begins_by_passing_features_on(rng):
    network, state = UmeTrack(TINY), random_state(rng, (True,) * 5)
    crops = random_crops(rng, (True,) * 5)
    features = torch.einsum("cd,nd...->nc...", torch.randn(FEATURE_CHANNELS, 45), torch.randn(5, 45, 6, 6))
    network.initialise_temporal_module(features)
    with torch.no_grad():
        passed_on, after = network.remember(features, crops, state)
    assert_close(passed_on, features, rtol=1e-3, atol=1e-3)
    assert after.memory.std() > 0.01 * features.std(), "there must be something to remember"
