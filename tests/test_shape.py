"""Our hand: a closed, well-skinned mesh on the published bone lengths, and users that no scaled mean hand explains."""

import numpy as np
import pytest
import torch

from lib.hands import FINGERTIPS, PALM, HandModel
from lib.rendered.flesh import distance, finger_tubes
from lib.rendered.sculpt import sculpt
from lib.rendered.shape import (
    ASSET,
    BONE_LENGTHS_MM,
    EXTRA_USERS,
    SCALE_RANGE,
    TEST_USERS,
    TRAIN_USERS,
    generic_hand,
    generic_skeleton,
    user_hand,
    vertex_albedo,
)

EVERYONE = [*TRAIN_USERS, *TEST_USERS, *EXTRA_USERS]


def bone_lengths(hand: HandModel) -> np.ndarray:
    """The three bones of every finger, (5, 3) in metres."""
    joints = hand.joint_rest_positions[:20].reshape(5, 4, 3)[:, [0, 2, 3]]
    chains = torch.cat((joints, hand.landmark_rest_positions[list(FINGERTIPS), None]), dim=1)
    return chains.diff(dim=1).norm(dim=-1).numpy()


def volume(vertices: np.ndarray, triangles: np.ndarray) -> float:
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


def posed(hand: HandModel, **angles_deg: float) -> np.ndarray:
    angles = torch.zeros(22)
    for joint, angle in angles_deg.items():
        angles[int(joint.removeprefix("joint"))] = np.deg2rad(angle)
    return hand.mesh(angles, torch.eye(4)).double().numpy()


def test_mesh_is_closed_manifold_and_wound_outwards():
    hand = generic_hand()
    vertices, triangles = hand.mesh_vertices.double().numpy(), hand.mesh_triangles.numpy()
    edges = triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    directed = set(map(tuple, edges.tolist()))
    assert len(directed) == len(edges), "an edge runs twice in the same direction"
    assert all((b, a) in directed for a, b in directed), "an edge has only one triangle"
    assert set(triangles.ravel()) == set(range(len(vertices)))
    assert len(vertices) - len(edges) // 2 + len(triangles) == 2  # one piece without handles
    assert 1500 <= len(triangles) <= 4000
    assert 0.3e-3 < volume(vertices, triangles) < 0.5e-3
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    assert np.linalg.norm(np.cross(b - a, c - a), axis=1).min() / 2 > 1e-9  # square metres: none is degenerate


def test_triangles_face_away_from_the_flesh():
    hand = generic_hand()
    vertices, triangles = hand.mesh_vertices.double().numpy() * 1000, hand.mesh_triangles.numpy()
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    centre = (a + b + c) / 3
    tubes = finger_tubes(generic_skeleton())
    outwards = distance(centre + 1.5 * normal, tubes) > distance(centre - 1.5 * normal, tubes)
    assert outwards[centre[:, 0] > -70].mean() > 0.995  # the flat end of the forearm is cut, not skin


def test_skinning_weights():
    hand = generic_hand()
    weights = hand.mesh_bone_weights
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)))
    assert (weights > 0.99).any(dim=0)[[1, 4, 7, 10, 13, 16]].all()
    tips = hand.mesh_vertices[:, 0] > hand.joint_rest_positions[6, 0] + 0.005  # beyond the index finger's PIP joint
    fingers = (weights[tips][:, 2:].unflatten(1, (5, 3)).sum(dim=-1) > 0).sum(dim=1)
    assert (fingers == 1).all(), "one finger moves the skin of another"


def test_a_bent_finger_moves_alone_and_keeps_its_volume():
    hand = generic_hand()
    triangles = hand.mesh_triangles.numpy()
    rest, bent = posed(hand), posed(hand, joint6=108, joint7=82)
    moved = np.linalg.norm(bent - rest, axis=1) > 1e-6
    assert hand.mesh_bone_weights[moved][:, 5:8].sum(dim=1).min() > 0.99
    tip = rest[:, 0] > 0.12
    assert np.ptp(bent[moved & tip][:, 1]) > 0.02
    assert volume(bent, triangles) == pytest.approx(volume(rest, triangles), rel=0.005)


@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.parametrize("joint", range(20))
def test_no_spikes_at_the_joint_limits(joint: int, limit: int):
    hand = generic_hand()
    triangles = hand.mesh_triangles.numpy()
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    vertices = posed(hand, **{f"joint{joint}": float(hand.joint_limits[joint, limit].rad2deg())})

    def length(points: np.ndarray) -> np.ndarray:
        return np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)

    assert (length(vertices) - length(posed(hand))).max() < 0.012


def test_positive_angles_flex_to_the_palm_and_abduct_to_the_thumb():
    hand = generic_hand()
    rest = hand.landmarks(torch.zeros(22), torch.eye(4))
    for finger in range(1, 5):
        for joint, direction in ((4 * finger, (0.0, 0.0, 1.0)), (4 * finger + 1, (0.0, -1.0, 0.0))):
            angles = torch.zeros(22)
            angles[joint] = 0.2
            step = hand.landmarks(angles, torch.eye(4))[finger] - rest[finger]
            assert step @ torch.tensor(direction) > 0.9 * step.norm()
    angles = torch.zeros(22)
    angles[:4] = 0.3
    opposed = hand.landmarks(angles, torch.eye(4))[0]
    assert (opposed - rest[4]).norm() < (rest[0] - rest[4]).norm() - 0.02


def test_bones_have_the_published_lengths_and_axes_are_unit():
    hand = generic_hand()
    np.testing.assert_allclose(bone_lengths(hand) * 1000, BONE_LENGTHS_MM, rtol=1e-5)
    torch.testing.assert_close(hand.joint_rotation_axes.norm(dim=-1), torch.ones(22))
    assert hand.landmark_rest_positions[2].norm() == pytest.approx(0.176, abs=0.005)  # wrist to middle fingertip
    assert (hand.joint_limits[:, 0] < hand.joint_limits[:, 1]).all()
    assert (hand.joint_limits[:, 0] <= 0).all()


@pytest.mark.parametrize("user", [None, 0, 17, 44, 52])
def test_fingertips_and_palm_lie_on_the_skin_in_every_pose(user: int | None):
    hand = generic_hand() if user is None else user_hand(user)
    for angles in (torch.zeros(22), hand.mid_range_angles):
        mesh, landmarks = hand.mesh(angles, torch.eye(4)), hand.landmarks(angles, torch.eye(4))
        nearest = torch.cdist(landmarks, mesh).min(dim=1).values
        assert nearest[list(FINGERTIPS)].max() < 1e-4
        assert nearest[PALM] < 0.006  # the palm's vertices lie up to 8 mm apart
        assert nearest[6:20].max() < 0.02
    palm = generic_hand().landmark_rest_positions[[PALM]].double().numpy() * 1000
    assert abs(distance(palm, finger_tubes(generic_skeleton()))[0]) < 0.5


def test_users_vary_in_scale_and_in_what_scale_cannot_explain():
    generic = generic_hand()
    ratios = np.stack([bone_lengths(user_hand(user)) / bone_lengths(generic) for user in EVERYONE]).reshape(-1, 15)
    assert np.all((ratios.std(axis=0) > 0.07) & (ratios.std(axis=0) < 0.18))
    proportions = ratios / np.exp(np.log(ratios).mean(axis=1, keepdims=True))
    assert np.all(proportions.std(axis=0) > 0.03)
    assert proportions.std() < ratios.mean(axis=1).std()
    np.testing.assert_allclose(ratios.mean(), 1.0, atol=0.02)
    turn = [(user_hand(user).joint_rotation_axes[:20] * generic.joint_rotation_axes[:20]).sum(-1) for user in EVERYONE]
    assert torch.stack(turn).clip(-1, 1).arccos().rad2deg().mean() > 2
    for split in (TRAIN_USERS, TEST_USERS, EXTRA_USERS):
        palms = [(user_hand(user).joint_rest_positions[[0, 5, 9, 13, 17]].norm(dim=1).mean()) for user in split]
        scale = np.array(palms) / float(generic.joint_rest_positions[[0, 5, 9, 13, 17]].norm(dim=1).mean())
        assert scale.min() < SCALE_RANGE[0] + 0.1
        assert scale.max() > SCALE_RANGE[1] - 0.1


def test_a_user_depends_on_seed_and_number_alone():
    first = user_hand(7)
    user_hand(8)
    assert torch.equal(first.mesh_vertices, user_hand(7).mesh_vertices)
    assert not torch.equal(first.mesh_vertices, user_hand(7, seed=1).mesh_vertices)
    hands = [user_hand(user).skeleton_feature for user in EVERYONE]
    closest = torch.pdist(torch.stack(hands)).min()
    assert closest > 0.05, "two users have nearly the same hand"
    with pytest.raises(ValueError, match=r"unknown user 185: expected 0\.\.184"):
        user_hand(185)


def test_user_meshes_stay_sound():
    generic = generic_hand()
    triangles = generic.mesh_triangles.numpy()

    def normals(hand: HandModel) -> np.ndarray:
        a, b, c = hand.mesh_vertices.double().numpy()[triangles].transpose(1, 0, 2)
        normal = np.cross(b - a, c - a)
        return normal / np.linalg.norm(normal, axis=1, keepdims=True)

    for user in EVERYONE:
        turned = ((normals(user_hand(user)) * normals(generic)).sum(axis=1) <= 0).sum()
        assert turned <= (2 if user in EXTRA_USERS else 0), f"user {user} has {turned} turned triangles"


def test_asset_is_what_the_code_makes():
    made = sculpt()
    with np.load(ASSET, allow_pickle=False) as stored:
        assert set(stored) == set(made)
        np.testing.assert_array_equal(stored["triangles"], made["triangles"])
        for name in ("vertices", "bone_weights", "albedo"):
            np.testing.assert_allclose(stored[name], made[name], atol=1e-5)
    assert ASSET.stat().st_size < 300_000


def test_albedo_tells_nails_from_creases():
    albedo = vertex_albedo()
    assert albedo.shape == (len(generic_hand().mesh_vertices),)
    assert 0.6 < albedo.min() < 0.8
    assert 0.95 < albedo.max() <= 1.0
