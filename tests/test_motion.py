"""Motion of hands and headset: limits, smoothness, reach, contact, pinch labels, the occluder, determinism."""

from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch

from lib.hands import INDEX_TIP, LEFT, RIGHT, THUMB_TIP, WRIST, for_hand
from lib.rendered.arms import arm_scale, mirrored, sample_position, sample_wrist, wrist_bend
from lib.rendered.contact import (
    Capsules,
    Pairs,
    closest_points,
    cross_pairs,
    find_contacts,
    resolve_contacts,
    self_pairs,
)
from lib.rendered.encounters import ENCOUNTERS, sample_encounter
from lib.rendered.motion import (
    LEAST_PINCHED_SHARE,
    MOST_OVERLAP,
    NEAR_MISS_DISTANCE,
    PINCH_DISTANCE,
    PROTOCOLS,
    Motion,
    sample_motion,
)
from lib.rendered.pinches import fingertip_distance, solve_pinches
from lib.rendered.postures import POSTURE_MARGIN, POSTURES, posture_angles, sample_posture
from lib.rendered.shape import generic_hand, user_hand
from lib.rendered.tracks import Timeline, blend_wrists

FRAMES = 90
CASES = [(protocol, user, seed) for protocol in PROTOCOLS for user, seed in ((0, 1), (17, 2), (48, 3))]
every_motion = pytest.mark.parametrize(("protocol", "user", "seed"), CASES)


@cache
def motion_of(protocol: str, user: int, seed: int) -> Motion:
    return sample_motion(protocol, user_hand(user), np.random.default_rng(seed), FRAMES)


def landmarks_of(motion: Motion, user: int) -> np.ndarray:
    """World landmarks (frames, 2, 21, 3) in metres."""
    sides = torch.tensor([LEFT, RIGHT]).expand(motion.present.shape)
    wrists = for_hand(torch.from_numpy(motion.world_from_wrist), sides)
    return user_hand(user).to(dtype=torch.float64).landmarks(torch.from_numpy(motion.joint_angles), wrists).numpy()


def turn_angles(transforms: np.ndarray) -> np.ndarray:
    """Rotation (radians) from each frame to the next."""
    rotations = transforms[..., :3, :3]
    traces = np.einsum("f...ij,f...ij->f...", rotations[1:], rotations[:-1])
    return np.arccos(np.clip((traces - 1) / 2, -1, 1))


@every_motion
def test_angles_stay_inside_the_limits_and_rotations_are_proper(protocol, user, seed):
    motion = motion_of(protocol, user, seed)
    limits = user_hand(user).joint_limits.numpy()
    shown = motion.joint_angles[motion.present][:, :20]
    assert (shown >= limits[:20, 0] - 1e-9).all()
    assert (shown <= limits[:20, 1] + 1e-9).all()
    assert (motion.joint_angles[..., 20:] == 0).all()
    for rotations in (motion.world_from_wrist[..., :3, :3], motion.world_from_headset[:, :3, :3]):
        np.testing.assert_allclose(
            rotations @ rotations.swapaxes(-1, -2), np.broadcast_to(np.eye(3), rotations.shape), atol=1e-9
        )
        np.testing.assert_allclose(np.linalg.det(rotations), 1)


@every_motion
def test_motion_is_smooth_at_human_speeds(protocol, user, seed):
    motion = motion_of(protocol, user, seed)
    angles, positions = motion.joint_angles, motion.world_from_wrist[..., :3, 3]
    assert np.abs(np.diff(angles, axis=0)).max() * 30 < np.radians(1500)
    assert np.abs(np.diff(angles, n=2, axis=0)).max() < np.radians(40)
    assert np.linalg.norm(np.diff(positions, axis=0), axis=-1).max() * 30 < 3
    assert np.linalg.norm(np.diff(positions, n=2, axis=0), axis=-1).max() * 30**2 < 40
    assert turn_angles(motion.world_from_wrist).max() * 30 < np.radians(1200)
    assert turn_angles(motion.world_from_headset).max() * 30 < np.radians(250)
    assert np.linalg.norm(np.diff(motion.world_from_headset[:, :3, 3], axis=0), axis=-1).max() * 30 < 1


@every_motion
def test_something_moves_and_nothing_repeats(protocol, user, seed):
    motion = motion_of(protocol, user, seed)
    side = int(motion.present[0].argmax())
    angles = motion.joint_angles[:, side, :20]
    assert np.ptp(angles, axis=0).max() > np.radians(10)
    differences = np.abs(angles[:, None] - angles[None]).max(axis=-1)
    assert (differences[~np.eye(FRAMES, dtype=bool)] > 0).all()
    assert turn_angles(motion.world_from_headset).min() > 0


@every_motion
def test_wrists_are_within_the_reach_of_a_seated_user(protocol, user, seed):
    motion = motion_of(protocol, user, seed)
    headset_from_world = np.linalg.inv(motion.world_from_headset)[:, None]
    headset_from_wrist = (headset_from_world @ motion.world_from_wrist)[motion.present]
    distances = np.linalg.norm(headset_from_wrist[:, :3, 3], axis=-1)
    assert distances.min() > 0.2
    assert distances.max() < 0.7
    assert np.median(headset_from_wrist[:, 2, 3]) > 0.1, "hands are in front of the headset"
    assert (abs(motion.world_from_headset[:, 1, 3] - 1.2) < 0.3).all(), "y is up, the user sits"
    assert (motion.world_from_headset[:, 1, 1] < -0.5).all(), "y of the headset points down"


@every_motion
def test_absent_hands_take_no_part(protocol, user, seed):
    motion = motion_of(protocol, user, seed)
    assert motion.present.any(axis=1).all()
    absent = ~motion.present
    assert (motion.joint_angles[absent] == 0).all()
    assert (motion.world_from_wrist[absent] == np.eye(4)).all()
    assert not ((motion.pinch | motion.near_miss) & absent).any()


@every_motion
def test_pinch_means_fingertips_closer_than_ten_millimetres(protocol, user, seed):
    motion = motion_of(protocol, user, seed)
    tips = landmarks_of(motion, user)[:, :, (THUMB_TIP, INDEX_TIP)]
    distances = np.linalg.norm(tips[:, :, 0] - tips[:, :, 1], axis=-1)
    np.testing.assert_array_equal(motion.pinch, (distances < PINCH_DISTANCE) & motion.present)
    near = distances[motion.near_miss]
    assert ((near >= PINCH_DISTANCE) & (near < NEAR_MISS_DISTANCE)).all()


def test_pinch_sequences_hold_pinches_and_near_misses():
    motions = [motion_of(*case) for case in CASES if case[0] == "pinch"]
    assert all(motion.pinch.any(axis=1).mean() >= LEAST_PINCHED_SHARE for motion in motions)
    assert any(motion.near_miss.any() for motion in motions)
    assert not any(motion_of(*case).near_miss.any() for case in CASES if case[0] != "pinch")


@every_motion
def test_nothing_passes_through_the_hands(protocol, user, seed):
    motion = motion_of(protocol, user, seed)
    capsules = Capsules.of(user_hand(user))
    posed = capsules.pose(motion.joint_angles[..., :20], motion.world_from_wrist)
    inside = find_contacts(posed, self_pairs(capsules, 0.0))
    shown = motion.present[inside.frames, inside.first // 20]
    assert inside.overlaps[shown].max(initial=0) <= MOST_OVERLAP + 1e-6
    if motion.present.all():
        assert find_contacts(posed, cross_pairs(capsules, 0.0)).overlaps.max(initial=0) <= MOST_OVERLAP + 1e-6


def test_separate_hands_keep_two_centimetres_apart_and_meeting_hands_touch():
    gaps = {"separate_hand": 0.02, "hand_hand": 0.0}
    met = {}
    for protocol, gap in gaps.items():
        met[protocol] = []
        for case in CASES:
            motion = motion_of(*case)
            if case[0] == protocol and motion.present.all():
                capsules = Capsules.of(user_hand(case[1]))
                posed = capsules.pose(motion.joint_angles[..., :20], motion.world_from_wrist)
                met[protocol].append(len(find_contacts(posed, cross_pairs(capsules, gap)).frames))
    assert met["separate_hand"]
    assert not any(met["separate_hand"])
    assert all(met["hand_hand"])


def test_only_occlusion_has_an_occluder_and_it_hides_a_hand_from_the_headset():
    for protocol, user, seed in CASES:
        motion = motion_of(protocol, user, seed)
        assert (motion.occluder is not None) == (protocol == "occlusion")
        if motion.occluder is not None:
            active = np.nonzero(motion.occluder.active)[0]
            assert 10 <= len(active) <= 30
            assert (np.diff(active) == 1).all()
            assert ((motion.occluder.size >= 0.15) & (motion.occluder.size <= 0.3)).all()
            assert _hidden_share(motion, user)[active].max() > 0.9


def _hidden_share(motion: Motion, user: int) -> np.ndarray:
    """Share (frames,) of the landmarks of the better hidden hand that the occluder hides from the headset."""
    occluder_from_world = np.linalg.inv(motion.occluder.world_from_occluder)
    eye = np.einsum("fij,fj->fi", occluder_from_world, motion.world_from_headset[:, :, 3])[:, None, None, :3]
    points = np.einsum("fij,fhpj->fhpi", occluder_from_world[:, :3, :3], landmarks_of(motion, user))
    points += occluder_from_world[:, None, None, :3, 3]
    along = eye[..., 2] / (eye[..., 2] - points[..., 2])
    crossing = eye + along[..., None] * (points - eye)
    hidden = (along > 0) & (along < 1) & (np.abs(crossing[..., :2]) <= motion.occluder.size / 2).all(axis=-1)
    return (hidden.mean(axis=-1) * motion.present).max(axis=1)


def test_the_occluder_cuts_through_no_hand():
    for protocol, user, seed in CASES:
        motion = motion_of(protocol, user, seed)
        if protocol == "occlusion":
            occluder_from_world = np.linalg.inv(motion.occluder.world_from_occluder)
            points = np.einsum("fij,fhpj->fhpi", occluder_from_world[:, :3, :3], landmarks_of(motion, user))
            points += occluder_from_world[:, None, None, :3, 3]
            over = (np.abs(points[..., :2]) < motion.occluder.size / 2 + 0.01).all(axis=-1) & motion.present[..., None]
            assert (np.abs(points[..., 2])[over & motion.occluder.active[:, None, None]] > 0.01).all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_same_generator_gives_the_same_bits(protocol):
    first, second = (sample_motion(protocol, user_hand(5), np.random.default_rng(9), 45) for _ in range(2))
    other = sample_motion(protocol, user_hand(5), np.random.default_rng(10), 45)
    for field in fields(Motion):
        value = getattr(first, field.name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(second, field.name))
    assert not np.array_equal(first.world_from_headset, other.world_from_headset)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"unknown protocol 'waving'.*separate_hand"):
        sample_motion("waving", generic_hand(), np.random.default_rng(0), 60)
    with pytest.raises(ValueError, match="at least 30 frames, got 10"):
        sample_motion("pinch", generic_hand(), np.random.default_rng(0), 10)
    with pytest.raises(ValueError, match="mesh"):
        sample_motion("pinch", replace(generic_hand(), mesh_vertices=None), np.random.default_rng(0), 60)
    with pytest.raises(ValueError, match=r"unknown posture 'paw'.*relaxed"):
        sample_posture("paw", np.zeros((20, 2)), np.random.default_rng(0))


def test_library_postures_and_their_variations_stay_inside_the_limits():
    limits = generic_hand().joint_limits[:20].numpy().astype(float)
    generator = np.random.default_rng(0)
    for name, posture in POSTURES.items():
        angles = np.stack([sample_posture(name, limits, generator) for _ in range(20)])
        assert (angles >= limits[:, 0] + POSTURE_MARGIN - 1e-12).all(), name
        assert (angles <= limits[:, 1] - POSTURE_MARGIN + 1e-12).all(), name
        assert np.abs(np.median(angles, axis=0) - posture_angles(posture)).max() < np.radians(18), name
        pip, dip = angles[:, 6::4], angles[:, 7::4]
        assert np.abs(dip - pip * 2 / 3).mean() < np.radians(6), name


def test_variations_bend_the_fingers_together():
    limits = generic_hand().joint_limits[:20].numpy().astype(float)
    generator = np.random.default_rng(1)
    angles = np.stack([sample_posture("relaxed", limits, generator) for _ in range(300)])
    assert np.corrcoef(angles[:, 5], angles[:, 13])[0, 1] > 0.5


def test_a_minimum_jerk_move_starts_and_ends_at_rest_and_is_halfway_in_the_middle():
    timeline = Timeline(np.array([10.0]), np.array([20.0]))
    times = np.array([0.0, 10.0, 10.01, 20.0, 29.99, 30.0, 50.0])
    np.testing.assert_allclose(timeline.shares(times)[:, 1], [0, 0, 0, 0.5, 1, 1, 1], atol=1e-8)


def test_shares_of_overlapping_moves_are_a_convex_mixture():
    generator = np.random.default_rng(2)
    timeline = Timeline.sample(generator.uniform(3, 30, 12), generator.uniform(-20, 10, 12), -5.0)
    shares = timeline.part(np.full(12, 0.3), np.linspace(0.6, 1, 12)).shares(np.linspace(-10, 200, 500))
    assert shares.min() > -1e-12
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_blended_wrists_meet_their_keys():
    generator = np.random.default_rng(3)
    scale = arm_scale(generic_hand())
    keys = np.stack([sample_wrist(sample_position(scale, generator), scale, generator) for _ in range(4)])
    np.testing.assert_allclose(blend_wrists(np.eye(4), keys), keys, atol=1e-12)


def test_sampled_wrists_follow_the_forearm_and_mirror_twice_is_nothing():
    generator = np.random.default_rng(4)
    for scale in (0.8, 1.0, 1.2):
        for _ in range(30):
            wrist = sample_wrist(sample_position(scale, generator), scale, generator)
            assert wrist_bend(wrist, scale) < np.radians(75)
            assert np.linalg.det(mirrored(wrist)[:3, :3]) == pytest.approx(1)
            np.testing.assert_array_equal(mirrored(mirrored(wrist)), wrist)


def test_closest_points_of_hand_made_segments():
    crossing = np.array([[[-1.0, 0, 0], [1, 0, 0]], [[0, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
    others = np.array([[[0.0, -1, 2], [0, 1, 2]], [[3, 1, 0], [5, 1, 0]], [[0, 3, -1], [0, 3, 1]]])
    points, other_points, distances = closest_points(crossing, others)
    np.testing.assert_allclose(distances, [2, np.hypot(2, 1), 3], atol=1e-5)
    np.testing.assert_allclose(points, [[0, 0, 0], [1, 0, 0], [0, 0, 0]], atol=1e-9)
    np.testing.assert_allclose(other_points, [[0, 0, 2], [3, 1, 0], [0, 3, 0]], atol=1e-9)


@pytest.mark.parametrize("hand", [LEFT, RIGHT])
def test_contact_gradients_match_finite_differences(hand):
    capsules = Capsules.of(generic_hand())
    angles = np.zeros((1, 2, 20))
    angles[:] = posture_angles(POSTURES["fist"])
    wrists = np.tile(np.eye(4), (1, 2, 1, 1))
    wrists[0, RIGHT, 0, 3] = 1.0
    pair = Pairs(np.array([1 + 20 * hand]), np.array([7 + 20 * hand]), np.array([1.0]))
    compliance = np.tile(np.concatenate((np.full(20, 1e-9), np.zeros(3))), 2)

    def overlap(angles):
        return find_contacts(capsules.pose(angles, wrists), pair).overlaps[0]

    differences = np.zeros((2, 20))
    for side, joint in np.ndindex(2, 20):
        turned = angles.copy()
        turned[0, side, joint] += 1e-6
        differences[side, joint] = (overlap(angles) - overlap(turned)) / 1e-6
    moved = (resolve_contacts(capsules, angles, wrists, pair, compliance, 1)[0] - angles)[0]
    assert np.abs(differences[hand, :8]).max() > 0.01
    np.testing.assert_allclose(moved / np.linalg.norm(moved), differences / np.linalg.norm(differences), atol=1e-3)


def test_resolving_a_fist_moves_fingers_out_of_each_other():
    for user in (3, 15, 45):
        capsules = Capsules.of(user_hand(user))
        angles = np.tile(posture_angles(POSTURES["fist"]), (2, 2, 1))
        wrists = np.tile(np.eye(4), (2, 2, 1, 1))
        pairs = self_pairs(capsules, 0.001)
        before = find_contacts(capsules.pose(angles, wrists), pairs).overlaps.max()
        compliance = np.tile(np.concatenate((np.ones(20), np.zeros(3))), 2)
        resolved, _ = resolve_contacts(capsules, angles, wrists, pairs, compliance, 20)
        assert find_contacts(capsules.pose(resolved, wrists), pairs).overlaps.max(initial=0) < min(0.001, before / 2)


@pytest.mark.parametrize("user", [0, 21, 52])
def test_solved_pinches_touch_with_the_pulps(user):
    capsules = Capsules.of(user_hand(user))
    limits = capsules.hand.joint_limits[:20].numpy()
    generator = np.random.default_rng(user)
    prior = np.stack([sample_posture(name, limits, generator) for name in ("ring", "tripod", "relaxed", "resting")])
    wanted, touching = np.array([0.005, 0.004, 0.02, 0.03]), np.array([True, True, False, False])
    angles = solve_pinches(capsules, prior, wanted, touching)
    np.testing.assert_allclose(fingertip_distance(capsules, angles), wanted, atol=0.002)
    np.testing.assert_array_equal(angles[:, 8:], prior[:, 8:])
    wrists = np.tile(np.eye(4), (4, 2, 1, 1))
    ends = capsules.pose(np.stack((angles, angles), axis=1), wrists).ends[:, LEFT]
    gaps = closest_points(ends[:, 2], ends[:, 5])[2] - capsules.radii[2] - capsules.radii[5]
    assert (np.abs(gaps[:2] + 0.001) < 0.0015).all()
    assert (gaps[2:] > 0).all()


def test_encounters_bring_the_hands_together():
    hand = generic_hand().to(dtype=torch.float64)
    scale, generator = arm_scale(hand), np.random.default_rng(6)
    for name in ENCOUNTERS:
        angles, wrists = sample_encounter(name, hand, scale, generator)
        posed = hand.landmarks(
            torch.from_numpy(np.pad(angles, ((0, 0), (0, 2)))),
            for_hand(torch.from_numpy(wrists), torch.tensor([LEFT, RIGHT])),
        ).numpy()
        nearest = np.linalg.norm(posed[LEFT][:, None] - posed[RIGHT], axis=-1).min()
        assert nearest < 0.15, name
        assert posed[LEFT, WRIST, 0] < posed[RIGHT, WRIST, 0] + 0.1, name
