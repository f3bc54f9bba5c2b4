"""Clips drawn from the cache: geometry stays true under augmentation, batches depend on seed and step alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import sequence_of

from lib.cameras import Pinhole, PosedCamera
from lib.clips import NO_AUGMENTATION, TRUE_SKELETON, Augmentation, ClipSource, SkeletonNoise, warp_pinhole
from lib.crop_cache import CACHE_SIZE
from lib.crops import CROP_SIZE, perturb
from lib.errors import InputError
from lib.hands import for_hand
from lib.training import draw_examples
from lib.transforms import apply

PAIRS = [(hand, view) for hand in (0, 1) for view in (0, 1)]


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    return [sequence_of(tmp_path_factory.mktemp("recording"), frames) for frames in (6, 9)]


def test_without_augmentation_the_crop_is_the_middle_of_the_cached_one(sequences):
    source = ClipSource(sequences)
    clips = source.clips(3)
    batch = source.batch(clips[:4], 3, NO_AUGMENTATION, torch.Generator())
    margin = (CACHE_SIZE - CROP_SIZE) // 2
    for index, (first, hand) in enumerate(clips[:4].tolist()):
        cached = sequences[0].images[first + 1, hand, 0, margin:-margin, margin:-margin]
        crop = batch.crops.images.unflatten(0, batch.shape)[1, index, 0] * 255
        assert np.abs(crop.numpy() - cached).max() < 0.01


def test_clips_stay_inside_sequences_and_tracked_stretches(sequences, tmp_path):
    broken = sequence_of(tmp_path, 5)
    broken.views[1, 0] = 0
    source = ClipSource([*sequences, broken])
    starts = {tuple(clip) for clip in source.clips(3).tolist()}
    expected = (
        {(s, h) for s in (*range(4), *range(6, 13)) for h in (0, 1)} | {(15 + s, 1) for s in range(3)} | {(17, 0)}
    )
    assert starts == expected


def test_a_lit_point_stays_where_its_camera_projects_it():
    torch.manual_seed(0)
    source = PosedCamera(Pinhole.create(CACHE_SIZE, torch.tensor([150.0])), torch.eye(4)[None])
    picture = torch.zeros(1, CACHE_SIZE, CACHE_SIZE, dtype=torch.uint8)
    picture[0, 80:83, 50:53] = 255
    point = source.camera.unproject(torch.tensor([[51.0, 81.0]])) * 0.4
    target = perturb(
        PosedCamera(Pinhole.create(CROP_SIZE, torch.tensor([150.0])), torch.eye(4)[None]),
        torch.tensor([[0.05, -0.04]]), torch.tensor([0.3]), torch.tensor([1.2]),
    )  # fmt: skip
    warped = warp_pinhole(picture, source, target)[0]
    row, column = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    center = torch.stack(((warped * column).sum(), (warped * row).sum())) / warped.sum()
    assert (center - target.project(point)[0]).norm() < 0.3


def test_every_batch_is_a_function_of_seed_and_step(sequences):
    source = ClipSource(sequences)
    starts = source.clips(3)

    def images(seed, step):
        clips, generator = draw_examples(starts, 4, seed, step)
        return source.batch(clips, 3, Augmentation(), generator).crops.images

    assert torch.equal(images(1, 7), images(1, 7))
    assert not torch.equal(images(1, 7), images(1, 8))
    assert not torch.equal(images(1, 7), images(2, 7))


def test_single_view_clips_show_either_view(sequences):
    source = ClipSource(sequences)
    starts = source.clips(3)
    batch = source.batch(starts, 3, replace(NO_AUGMENTATION, single_view=1.0), torch.Generator().manual_seed(0))
    assert not batch.crops.two_views.any()
    reference = batch.crops.camera_from_world[:, 0].unflatten(0, batch.shape)[0]
    cached = torch.linalg.inv(torch.from_numpy(sequences[0].world_from_crop[0]))
    shown = [
        [bool((pose - cached[hand, view]).abs().max() < 0.02) for pose in reference[hand::2]] for hand, view in PAIRS
    ]
    assert all(any(column) for column in shown)


def test_pictures_read_from_mapped_files_are_those_that_other_devices_load(sequences):
    mapped, loaded = ClipSource(sequences), ClipSource(sequences)
    loaded.images = loaded._load([len(sequence) for sequence in sequences])
    chosen = mapped.clips(2)[::3]
    pictures = [s.batch(chosen, 2, NO_AUGMENTATION, torch.Generator()).crops.images for s in (mapped, loaded)]
    assert float(pictures[0].std()) > 0
    assert torch.equal(*pictures)


def test_misinformed_clips_are_told_one_wrong_skeleton_each(sequences):
    source = ClipSource(sequences)
    batch = source.batch(source.clips(3)[torch.arange(300) % 4], 3, NO_AUGMENTATION, torch.Generator())
    noise = SkeletonNoise(scale=0.1, finger=0.02, axis=0.05)
    wrong = batch.with_noisy_skeletons(noise, torch.Generator().manual_seed(0))
    told, true = wrong.input_model, batch.hand_model
    factors = (told.joint_rest_positions[:, :20] / true.joint_rest_positions[:, :20]).unflatten(0, batch.shape)
    fingers = factors[..., ::4, :].mean(dim=-1).log()
    torch.testing.assert_close(factors, factors[:1, :, :, :1].expand_as(factors), rtol=1e-5, atol=1e-8)
    assert float(fingers[0].mean(dim=-1).std()) == pytest.approx((0.1**2 + 0.02**2 / 5) ** 0.5, rel=0.2)
    assert float(fingers[0].std(dim=-1).square().mean().sqrt()) == pytest.approx(0.02, rel=0.2)
    turned = torch.linalg.cross(told.joint_rotation_axes, true.joint_rotation_axes).norm(dim=-1).asin()
    assert float(turned.square().mean().sqrt()) == pytest.approx(0.05 * 2**0.5, rel=0.2)
    torch.testing.assert_close(told.joint_rotation_axes.norm(dim=-1), torch.ones(900, 22))
    torch.testing.assert_close(turned.unflatten(0, batch.shape)[0], turned.unflatten(0, batch.shape)[2])
    assert wrong.hand_model is batch.hand_model
    assert batch.with_noisy_skeletons(TRUE_SKELETON, torch.Generator()) is batch
    assert torch.equal(batch.input_model.skeleton_feature, true.skeleton_feature)


def test_clips_that_show_a_pinch_count_as_often_as_asked(sequences):
    source = ClipSource(sequences)
    source.labels["pinch"][:] = False
    source.labels["pinch"][2, 1] = True
    once, often = ([tuple(clip) for clip in source.clips(3, copies).tolist()] for copies in (1, 4))
    assert [often.count(clip) for clip in once] == [4 if clip == (1, 1) else 1 for clip in once]
    assert set(once) == set(often)


def test_an_occluder_passes_before_some_hands_and_in_all_their_views(sequences):
    source = ClipSource(sequences[1:])
    batch = source.batch(source.clips(9).repeat(100, 1), 9, NO_AUGMENTATION, torch.Generator())
    occluded = batch.occluded(0.5, torch.Generator().manual_seed(0))
    hidden = (occluded.crops.images != batch.crops.images)[batch.crops.two_views]
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    changed = (occluded.crops.images != batch.crops.images).unflatten(0, batch.shape)[:, :, 0]
    assert 0.3 < changed.any(dim=-1).any(dim=-1).any(dim=0).float().mean() < 0.6  # some occluders come after the clip
    share = changed.float().mean(dim=(-2, -1))
    assert (share == 0).any(dim=0).float().mean() > 0.5
    assert (share == 1).any()
    for picture, where in zip(occluded.crops.images[:, 0], changed.flatten(0, 1), strict=True):
        assert picture[where].unique().numel() <= 1  # plain
    assert torch.equal(batch.occluded(0.0, torch.Generator()).crops.images, batch.crops.images)


def test_a_larger_world_looks_the_same(sequences):
    source = ClipSource(sequences)
    clips = source.clips(3)[:6]
    true, large = (
        source.batch(clips, 3, replace(NO_AUGMENTATION, world_scale=size), torch.Generator().manual_seed(0))
        for size in (0.0, 0.3)
    )
    assert torch.allclose(large.crops.images, true.crops.images, atol=1e-4)
    wrist, enlarged = (batch.world_from_wrist[..., :3, 3].norm(dim=-1) for batch in (true, large))
    factor = enlarged / wrist
    assert torch.allclose(factor, factor[0].expand_as(factor))
    assert factor[0].std() > 0.1
    seen = []
    for batch in (true, large):
        poses = for_hand(batch.world_from_wrist.flatten(0, 1), batch.crops.hand)
        landmarks = batch.hand_model.landmarks(batch.joint_angles.flatten(0, 1), poses)
        seen.append(apply(batch.crops.camera_from_world, landmarks[:, None]))
    assert torch.allclose(seen[1], seen[0] * factor.flatten()[:, None, None, None], atol=1e-5)


def test_no_data_is_said_clearly(sequences):
    with pytest.raises(InputError, match="no sequences of crops"):
        ClipSource([])
    with pytest.raises(InputError, match="clips of 99 frames"):
        ClipSource(sequences).clips(99)
