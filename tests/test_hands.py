from dataclasses import replace

import pytest
import torch
from conftest import hand_in_front, random_angles, random_poses
from torch.testing import assert_close

from lib.hands import (
    FINGERS,
    FINGERTIPS,
    LANDMARKS,
    LEFT,
    NUM_JOINTS,
    NUM_LANDMARKS,
    PALM,
    RIGHT,
    SKELETON_EDGES,
    WRIST,
    HandModel,
    for_hand,
)
from lib.transforms import apply, cross_matrix, mirror_x

EYE = torch.eye(4, dtype=torch.float64)
REST = torch.zeros(NUM_JOINTS, dtype=torch.float64)


def translation(vector: torch.Tensor) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = vector
    return matrix


def rotation(axis: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.linalg.matrix_exp(angle * cross_matrix(axis))
    return matrix


def slow_bones(hand: HandModel, angles: torch.Tensor, world_from_wrist: torch.Tensor) -> list[torch.Tensor]:
    """Root, wrist, then three bones a finger, from Translate(p) Rotate(axis, angle) Translate(-p) one by one."""
    bones = [world_from_wrist, world_from_wrist]
    for finger in range(5):
        bone = world_from_wrist
        for k in range(4):
            joint = 4 * finger + k
            position = hand.joint_rest_positions[joint]
            turn = rotation(hand.joint_rotation_axes[joint], angles[joint])
            bone = bone @ translation(position) @ turn @ translation(-position)
            if k > 0:
                bones.append(bone)
    return bones


def slow_skin(points: torch.Tensor, weights: torch.Tensor, bones: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(
        [
            sum(w * (bone[:3, :3] @ p + bone[:3, 3]) for w, bone in zip(row, bones, strict=True))
            for p, row in zip(points, weights, strict=True)
        ]
    )


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_landmarks_equal_a_slow_loop(hand, rng, side):
    angles, wrist = random_angles(rng, hand), for_hand(random_poses(rng), side)
    bones = slow_bones(hand, angles, wrist)
    assert_close(hand.bones(angles, wrist), torch.stack(bones), atol=1e-13, rtol=0)
    expected = slow_skin(hand.landmark_rest_positions, hand.landmark_bone_weights, bones)
    assert_close(hand.landmarks(angles, wrist), expected, atol=1e-13, rtol=0)


def test_mesh_equals_a_slow_loop(hand, rng):
    few = replace(hand, mesh_vertices=hand.mesh_vertices[::100], mesh_bone_weights=hand.mesh_bone_weights[::100])
    angles, wrist = random_angles(rng, hand), random_poses(rng)
    expected = slow_skin(few.mesh_vertices, few.mesh_bone_weights, slow_bones(few, angles, wrist))
    assert_close(few.mesh(angles, wrist), expected, atol=1e-13, rtol=0)


def test_resting_hand_is_as_stored(hand):
    assert_close(hand.landmarks(REST, EYE), hand.landmark_rest_positions, atol=1e-15, rtol=0)
    assert_close(hand.mesh(REST, EYE), hand.mesh_vertices, atol=1e-6, rtol=0)


@pytest.mark.parametrize("joint", range(20))
def test_a_joint_moves_its_finger_beyond_itself_and_nothing_else(hand, joint):
    angles = REST.clone()
    angles[joint] = 0.4
    moved = (hand.landmarks(angles, EYE) - hand.landmark_rest_positions).norm(dim=-1) > 1e-9
    finger, k = divmod(joint, 4)
    own = [LANDMARKS.index(name) for name in LANDMARKS if name.startswith(FINGERS[finger])]
    others = [index for index in range(NUM_LANDMARKS) if index not in (*own, PALM)]
    assert moved[FINGERTIPS[finger]]
    assert not moved[others].any()
    distal = LANDMARKS.index(f"{FINGERS[finger]} distal")
    assert bool(moved[distal]) == (k < 3)


@pytest.mark.parametrize("joint", [20, 21])
def test_wrist_joints_are_ignored(hand, rng, joint):
    angles, wrist = random_angles(rng, hand), random_poses(rng)
    expected = hand.landmarks(angles, wrist)
    angles[joint] = 1.0
    assert torch.equal(hand.landmarks(angles, wrist), expected)


def test_landmarks_move_with_the_wrist(hand, rng):
    angles, wrist = random_angles(rng, hand), random_poses(rng)
    assert_close(hand.landmarks(angles, wrist), apply(wrist, hand.landmarks(angles, EYE)), atol=1e-14, rtol=0)
    assert_close(hand.landmarks(angles, wrist)[WRIST], apply(wrist, hand.landmark_rest_positions)[WRIST])


def test_scaling_enlarges_about_the_wrist(hand, rng):
    angles, wrist = random_angles(rng, hand), random_poses(rng)
    grown = hand.scaled(1.3)
    for posed in (HandModel.landmarks, HandModel.mesh):
        from_wrist = posed(hand, angles, wrist) - wrist[:3, 3]
        assert_close(posed(grown, angles, wrist), wrist[:3, 3] + 1.3 * from_wrist, atol=1e-14, rtol=0)


def test_a_batch_of_hands_equals_single_ones(hand, rng):
    scales = torch.tensor([0.8, 1.0, 1.2], dtype=torch.float64)
    angles, wrists = random_angles(rng, hand, 3), random_poses(rng, 3)
    batch = hand.scaled(scales)
    for index, scale in enumerate(scales):
        single = hand.scaled(scale)
        for posed in (HandModel.landmarks, HandModel.mesh):
            assert_close(
                posed(batch, angles, wrists)[index], posed(single, angles[index], wrists[index]), atol=1e-14, rtol=0
            )
        assert_close(batch.skeleton_feature[index], single.skeleton_feature)


def test_one_hand_in_many_poses_equals_single_poses(hand, rng):
    angles, wrists = random_angles(rng, hand, 2, 3), random_poses(rng, 2, 3)
    landmarks = hand.landmarks(angles, wrists)
    for index in ((0, 0), (1, 2)):
        assert_close(landmarks[index], hand.landmarks(angles[index], wrists[index]), atol=1e-14, rtol=0)


def test_skeleton_feature_lists_axis_and_position_joint_by_joint(hand):
    feature = hand.skeleton_feature.reshape(22, 6)
    assert torch.equal(feature[7, :3], hand.joint_rotation_axes[7])
    assert torch.equal(feature[7, 3:], hand.joint_rest_positions[7])


def test_mid_range_angles(hand):
    expected = hand.joint_limits.mean(dim=1) * (torch.arange(NUM_JOINTS) < 20)
    assert torch.equal(hand.mid_range_angles, expected)


def test_drawn_lines_join_each_finger_to_the_wrist():
    assert len(SKELETON_EDGES) == 20 - 1
    assert {landmark for edge in SKELETON_EDGES for landmark in edge} == set(range(NUM_LANDMARKS)) - {PALM}
    assert all(LANDMARKS[end].split()[0] in (*FINGERS,) for _, end in SKELETON_EDGES)


def signed_volume(vertices: torch.Tensor, triangles: torch.Tensor) -> float:
    a, b, c = vertices[triangles].unbind(1)
    return float((torch.linalg.cross(a, b) * c).sum() / 6)


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_triangles_face_outwards_on_both_hands(hand, side):
    mesh = hand.mesh(REST, for_hand(hand_in_front(0.1), side))
    assert 1e-4 < signed_volume(mesh - mesh.mean(dim=0), hand.triangles(side)) < 1e-3


def test_the_right_hand_is_the_mirror_image_of_the_left(hand, rng):
    angles, mirror = random_angles(rng, hand), torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    for posed in (HandModel.landmarks, HandModel.mesh):
        assert_close(posed(hand, angles, for_hand(EYE, RIGHT)), posed(hand, angles, EYE) * mirror, atol=1e-15, rtol=0)


def test_mirroring_twice_is_identity_mesh_included(hand, rng):
    angles, wrist = random_angles(rng, hand), random_poses(rng)
    twice = for_hand(for_hand(wrist, RIGHT), RIGHT)
    assert torch.equal(hand.mesh(angles, twice), hand.mesh(angles, wrist))
    assert torch.equal(replace(hand, mesh_triangles=hand.triangles(RIGHT)).triangles(RIGHT), hand.triangles(LEFT))


def test_for_hand_mirrors_right_hands_of_a_batch_only(rng):
    wrists = random_poses(rng, 3, 2)
    posed = for_hand(wrists, torch.tensor([0, 1]).expand(3, 2))
    assert torch.equal(posed[:, 0], wrists[:, 0])
    assert torch.equal(posed[:, 1], mirror_x(wrists[:, 1]))


@pytest.mark.parametrize("pose", ["rest", "random"])
def test_gradients_of_bones_and_landmarks(hand, rng, pose):
    angles = REST.clone() if pose == "rest" else random_angles(rng, hand)
    wrist = EYE.clone() if pose == "rest" else random_poses(rng)
    assert torch.autograd.gradcheck(hand.bones, (angles.requires_grad_(), wrist.requires_grad_()))
    assert torch.autograd.gradcheck(hand.landmarks, (angles, wrist))


def test_gradient_of_landmarks_in_scale_and_skeleton(hand, rng):
    angles, wrist = random_angles(rng, hand), random_poses(rng)

    def landmarks(scale: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return replace(hand, joint_rest_positions=positions).scaled(scale).landmarks(angles, wrist)

    scale = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(landmarks, (scale, hand.joint_rest_positions.clone().requires_grad_()))


def test_the_hand_changes_type_as_a_whole(hand, rng):
    single = hand.to(dtype=torch.float32)
    assert single.mesh_triangles.dtype == torch.int64
    landmarks = single.landmarks(random_angles(rng, hand).float(), random_poses(rng).float())
    assert landmarks.dtype == torch.float32


def test_a_hand_without_mesh_says_so(hand):
    bare = replace(hand, mesh_vertices=None, mesh_triangles=None, mesh_bone_weights=None)
    with pytest.raises(ValueError, match="no mesh"):
        bare.mesh(REST, EYE)
    with pytest.raises(ValueError, match="no mesh_triangles"):
        bare.triangles(RIGHT)
    assert bare.scaled(2.0).mesh_vertices is None
