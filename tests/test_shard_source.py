"""Training from shards: their batches are those of the training cache, and are read as they are drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TinyRecording, tiny_recording
from made_up_data import cached
from tiny_runs import CONFIG, run

from lib.cameras import Pinhole, PosedCamera
from lib.clip_training import ClipData, ClipTraining
from lib.clips import NO_AUGMENTATION, Augmentation, ClipBatch, ClipSource
from lib.errors import InputError
from lib.formats.cut_clips import clips_of, clips_of_sequence
from lib.formats.shard_source import ShardSource, split_shards
from lib.formats.torch_data import Shard, ShardClip, write_shard
from lib.multistage.keypoint_training import KeypointTraining, KeypointTrainingConfig, PriorConfig, crop_batch
from lib.recordings import Recording, read_recording
from lib.rendered.shape import generic_hand
from lib.transforms import axis_angle_rotation, homogeneous

FRAMES = 12


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    """The right hand pinches in frame 5; in frame 8 the left one is seen by nobody."""
    tiny = tiny_recording(FRAMES)
    pinch = [[0, int(frame == 5)] for frame in range(FRAMES)]
    smooth = np.stack([[np.roll(smoothed(tiny), frame, axis=1)] * 4 for frame in range(FRAMES)])
    tiny = TinyRecording(tiny.labels | {"pinch": pinch}, smooth)
    tiny.labels["hand_confidences"][8][0] = 0
    return read_recording(tiny.write(tmp_path_factory.mktemp("recording")))


def smoothed(tiny: TinyRecording) -> np.ndarray:
    rows, columns = np.indices(tiny.images.shape[2:])
    return (127 + 60 * np.sin(rows / 5) + 60 * np.cos(columns / 4)).astype(np.uint8)


@pytest.fixture(scope="module")
def shard(recording, tmp_path_factory) -> Shard:
    """Twelve frames of the right hand, eight of the left."""
    folder = tmp_path_factory.mktemp("shard")
    clips = [*clips_of(recording, FRAMES), next(clips_of(recording, 8))]
    write_shard(folder, clips)
    return Shard(folder)


@pytest.fixture(scope="module")
def source(shard) -> ShardSource:
    return ShardSource([(shard, range(2))])


def matching(source: ClipSource, shards: ShardSource, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same clips in both, in the same order: by hand and first frame."""
    rows = shards.clips(frames)
    places = [(int(first), 1 if number == 0 else 0) for number, first in rows.tolist()]
    assert set(places) <= {tuple(clip) for clip in source.clips(frames).tolist()}
    return torch.tensor(places), rows


def assert_alike(one: ClipBatch, other: ClipBatch, grey_levels: float) -> None:
    torch.testing.assert_close(one.landmarks(), other.landmarks(), rtol=0, atol=1e-6)
    torch.testing.assert_close(one.crops.focal_px, other.crops.focal_px, rtol=1e-5, atol=0)
    torch.testing.assert_close(one.crops.camera_from_world, other.crops.camera_from_world, rtol=0, atol=1e-5)
    assert torch.equal(one.crops.two_views, other.crops.two_views)
    assert torch.equal(one.hand, other.hand)
    assert torch.equal(one.pinch, other.pinch)
    difference = 255 * (one.crops.images - other.crops.images).abs()
    assert float(difference.mean()) < grey_levels


@pytest.mark.parametrize("augmentation", [NO_AUGMENTATION, Augmentation()], ids=["plain", "augmented"])
def test_batches_are_those_of_the_cache(recording, source, augmentation):
    native = ClipSource([cached(recording)])
    places, rows = matching(native, source, 3)
    opened, chosen = source.opened(rows, 3)
    batches = [
        of.batch(clips, 3, augmentation, torch.Generator().manual_seed(3))
        for of, clips in ((native, places), (opened, chosen))
    ]
    assert_alike(*batches, grey_levels=0.5)
    assert batches[0].crops.images.std() > 0.1


def test_a_shard_of_the_cache_is_the_cache(recording, tmp_path):
    """Cut from the sequence instead of the video: pictures of right hands are flipped back."""
    write_shard(tmp_path / "video", clips_of(recording, 4))
    write_shard(tmp_path / "cache", clips_of_sequence(cached(recording), 4))
    video, cache = (Shard(tmp_path / name) for name in ("video", "cache"))
    assert len(video) == len(cache) == 5
    for index in range(5):
        one, other = video[index], cache[index]
        assert one.hand == other.hand
        assert np.abs(one.images.astype(int) - other.images).max() <= 1
        torch.testing.assert_close(one.landmarks(), other.landmarks(), rtol=0, atol=1e-6)
        torch.testing.assert_close(one.cameras.world_from_camera, other.cameras.world_from_camera, rtol=0, atol=1e-6)


def test_pinches_are_drawn_more_often(source):
    once, often = ([tuple(clip) for clip in source.clips(3, copies).tolist()] for copies in (1, 4))
    assert len(once) == (FRAMES - 2) + (8 - 2)
    assert {clip: often.count(clip) for clip in once} == {clip: 4 if clip == (0, 4) else 1 for clip in once}


def test_the_frames_before_a_clip_are_known(recording, source):
    """KeyNet expects hands where they were: of a clip at the start of a stored one nothing is known."""
    native = ClipSource([cached(recording)])
    config = PriorConfig(untracked=0.0, stale=0.5, stale_frames=4)
    places, rows = matching(native, source, 1)
    of_cache, of_shard = (
        crop_batch(of, clips, NO_AUGMENTATION, config, torch.Generator().manual_seed(5))
        for of, clips in ((native, places), (source, rows))
    )
    torch.testing.assert_close(of_cache.prior, of_shard.prior, rtol=0, atol=1e-3)
    torch.testing.assert_close(of_cache.pixels, of_shard.pixels, rtol=0, atol=1e-2)
    assert (of_cache.prior == 0).all(dim=1).any()


def changed(clip: ShardClip, generator: np.random.Generator) -> ShardClip:
    """The same clip, seen by pinhole cameras with other lenses that look elsewhere; the pictures are black."""
    frames = len(clip)
    axes = torch.from_numpy(generator.normal(size=(frames, 2, 3)))
    turned = homogeneous(
        axis_angle_rotation(axes / axes.norm(dim=-1, keepdim=True), torch.full((frames, 2), 0.1)), 0 * axes
    )
    focal = torch.from_numpy(generator.uniform(80, 90, (frames, 2, 2)))
    lens = Pinhole(110, 100, focal, torch.tensor([60.0, 45.0]).double().expand(frames, 2, 2), focal[..., :0])
    cameras = PosedCamera(lens, clip.cameras.world_from_camera @ turned)
    return replace(clip, cameras=cameras, images=np.zeros((frames, 2, 100, 110), np.uint8))


@pytest.mark.parametrize("hand", [0, 1])
def test_any_pinhole_camera_is_cropped(recording, tmp_path, hand):
    """A lit pixel of the picture, amid the hand, shines in the crop where its camera sees the ray."""
    clip = changed(list(clips_of(recording, 2))[hand], np.random.default_rng(2))
    pixels = clip.cameras.project(clip.landmarks()[:, None]).mean(dim=-2).round()
    images = clip.images.copy()
    for frame in range(2):
        for view in range(2):
            x, y = pixels[frame, view].int().tolist()
            images[frame, view, y, x] = 255
    write_shard(tmp_path, [replace(clip, images=images)])
    opened, rows = ShardSource([(Shard(tmp_path), range(1))]).opened(torch.tensor([[0, 0]]), 2)
    batch = opened.batch(rows, 2, NO_AUGMENTATION, torch.Generator())
    poses = clip.cameras.world_from_camera
    rays = (poses[..., :3, :3] @ clip.cameras.camera.unproject(pixels)[..., None])[..., 0]
    points = poses[..., :3, 3] + 0.3 * rays
    assert bool(batch.crops.two_views.all())
    for frame in range(2):
        for view in range(2):
            picture = batch.crops.images[frame, view].double()
            assert picture.max() > 0.05
            row, column = torch.meshgrid(torch.arange(96.0).double(), torch.arange(96.0).double(), indexing="ij")
            found = torch.stack([(column * picture).sum(), (row * picture).sum()]) / picture.sum()
            camera = PosedCamera(
                Pinhole.create(96, batch.crops.focal_px[frame, view].double()),
                torch.linalg.inv(batch.crops.camera_from_world[frame, view].double()),
            )
            torch.testing.assert_close(found, camera.project(points[frame, view][None])[0], rtol=0, atol=0.5)


def test_one_view_repeated_counts_once(recording, tmp_path):
    clip = next(clips_of(recording, 2))
    poses, images = clip.cameras.world_from_camera.clone(), clip.images.copy()
    poses[:, 1], images[:, 1] = poses[:, 0], images[:, 0]
    write_shard(tmp_path, [replace(clip, images=images, cameras=replace(clip.cameras, world_from_camera=poses))])
    opened, rows = ShardSource([(Shard(tmp_path), range(1))]).opened(torch.tensor([[0, 0]]), 2)
    assert not opened.batch(rows, 2, NO_AUGMENTATION, torch.Generator()).crops.two_views.any()


def test_training_learns_from_shards_what_it_learns_from_the_cache(recording, source, tmp_path):
    """The same clips in the same order: the curves are the same but for the rounding of pictures."""
    native = ClipSource([cached(recording)])
    places, rows = matching(native, source, CONFIG.clip_frames)
    shards = ShardSource([(source.stored[0][0], range(2))])
    native.clips, shards.clips = lambda *_: places, lambda *_: rows
    logs = []
    for name, of in (("cache", native), ("shards", shards)):
        one = run(tmp_path / name, ClipData(of, of, name))
        one.train(tmp_path / f"{name}.safetensors")
        logs.append([row["known_loss"] for row in one.log])
    assert logs[0][-1] < logs[0][0]
    assert logs[0][0] == pytest.approx(logs[1][0], rel=1e-5)
    np.testing.assert_allclose(logs[0], logs[1], rtol=0.1)  # steps enlarge what is rounded


@pytest.mark.parametrize("task", ["clips", "keypoints"])
def test_other_processes_draw_the_rest(source, task):
    """What two processes draw is what one draws."""
    data = ClipData(source, source, "shards")
    made = (
        ClipTraining(CONFIG, data, generic_hand())
        if task == "clips"
        else KeypointTraining(KeypointTrainingConfig(hands=8, augmentation=NO_AUGMENTATION), data)
    )
    assert len(made.batch(0, 0, 2)) + len(made.batch(0, 1, 2)) == len(made.batch(0, 0, 1))


def test_shards_are_held_out(recording, tmp_path):
    for number in range(3):
        write_shard(tmp_path / f"{number}", clips_of(recording, 2))
    folders = [tmp_path / f"{number}" for number in range(3)]
    train, validation = split_shards(folders)
    assert [(shard.folder, len(clips)) for shard, clips in train] == [(folder, 11) for folder in folders[:2]]
    assert [(shard.folder, len(clips)) for shard, clips in validation] == [(folders[2], 11)]
    train, validation = split_shards(folders[:1])
    assert (train[0][1], validation[0][1]) == (range(10), range(10, 11))


def test_shards_that_cannot_be_trained_from(shard, tmp_path, recording):
    with pytest.raises(InputError, match="hold no clips"):
        ShardSource([])
    with pytest.raises(InputError, match="no clip of the shards has 13 frames, the longest 12"):
        ShardSource([(shard, range(2))]).clips(13)
    clip = next(clips_of(recording, 2))
    behind = replace(
        clip, enclosing_points=2 * clip.cameras.world_from_camera[:, 0, None, :3, 3] - clip.enclosing_points
    )
    large = replace(clip, images=np.zeros((2, 2, 140, 128), np.uint8))
    write_shard(tmp_path, [clip, behind, large])
    source = ShardSource([(Shard(tmp_path), range(3))])
    with pytest.raises(InputError, match=r"clip 1: a point that a crop must hold lies behind the first camera"):
        source.opened(torch.tensor([[1, 0]]), 1)
    with pytest.raises(InputError, match="pictures of several sizes"):
        source.opened(torch.tensor([[0, 0], [2, 0]]), 1)
