"""DetNet and KeyNet: their sizes, their codes of keypoints and circles, their batches, and that they learn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_recording
from tiny_runs import sequence_of
from torch import nn
from torch.nn.functional import grid_sample

from lib.checkpoints import load_network, load_weights, save_network
from lib.clip_training import ClipData
from lib.clips import NO_AUGMENTATION, Augmentation, ClipSource
from lib.crop_cache import ViewSequence, shrink, view_sequence
from lib.errors import InputError
from lib.hands import for_hand
from lib.multistage.detection import Circles, DetNet, DetNetConfig, detect, normalised, to_circles
from lib.multistage.detection_training import (
    DetectionLearner,
    DetectionTraining,
    DetectionTrainingConfig,
    ViewData,
    ViewSource,
    detection_errors,
)
from lib.multistage.keypoint_training import KeypointTraining, KeypointTrainingConfig, PriorConfig, crop_batch
from lib.multistage.keypoints import (
    BIN_PX,
    Heatmaps,
    KeyNet,
    KeyNetConfig,
    decode,
    hand_scale,
    predict_keypoints,
    pretrain,
    prior,
    targets,
)
from lib.network import UmeTrack
from lib.recordings import read_recording
from lib.rendered.shape import generic_hand, user_hand
from lib.study.experiments import PUBLISHED_NETWORK, REFERENCE_NETWORK
from lib.training import Run

EXACT = PriorConfig(untracked=0.0, stale=0.0, extrapolation=1.0, position=0.0, rotation=0.0, joint_angles=0.0)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def multiplications(network: nn.Module, *inputs: torch.Tensor) -> int:
    """Multiply-accumulate operations of the convolutions in one call."""
    counts = []

    def count(layer: nn.Module, _, output: torch.Tensor) -> None:
        counts.append(output.numel() * layer.weight[0].numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(*inputs)
    return sum(counts)


def saved(keynet: KeyNet, folder: Path) -> Path:
    save_network(keynet, folder / "keynet.safetensors")
    return folder / "keynet.safetensors"


def test_an_image_encoder_begins_with_what_a_keynet_sees(tmp_path):
    torch.manual_seed(0)
    keynet = KeyNet(KeyNetConfig(keypoint_input=False, blocks="residual"))
    keynet.train()(torch.rand(8, 1, 96, 96), torch.zeros(8, 63))  # means and variances of its own
    backbone = UmeTrack(REFERENCE_NETWORK).backbone
    pretrain(backbone, saved(keynet, tmp_path))
    images = torch.rand(2, 1, 96, 96)
    with torch.no_grad():
        seen = backbone.eval().stages(backbone.stem(images))
        expected = keynet.eval().backbone.trunk[0](keynet.backbone.image(images))
    assert torch.allclose(seen, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("keynet", "network", "message"),
    [
        (KeyNetConfig(blocks="inverted", keypoint_input=False), REFERENCE_NETWORK, "expected residual"),
        (KeyNetConfig(blocks="residual"), REFERENCE_NETWORK, "has shape"),
        (KeyNetConfig(blocks="residual", keypoint_input=False), PUBLISHED_NETWORK, "missing"),
    ],
)
def test_an_image_encoder_begins_as_no_other_keynet(keynet, network, message, tmp_path):
    with pytest.raises(InputError, match=message):
        pretrain(UmeTrack(network).backbone, saved(KeyNet(keynet), tmp_path))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> ClipSource:
    """Both hands in eight frames, moving at constant speed in one posture, as two cameras see them."""
    sequence = sequence_of(tmp_path_factory.mktemp("recording"), 8)
    return ClipSource([replace(sequence, joint_angles=sequence.joint_angles[:1].repeat(8, axis=0))])


@pytest.fixture(scope="module")
def views(tmp_path_factory) -> ViewSequence:
    """Views of noise, both hands in front of the two front cameras."""
    recording = read_recording(tiny_recording(7).write(tmp_path_factory.mktemp("recording")))
    pictures = list(recording.images())
    return view_sequence(recording, lambda frame: pictures[frame])


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_detnet_has_the_published_size():
    network = DetNet(DetNetConfig())
    picture = torch.zeros(1, 1, 120, 160)
    assert round(parameters(network) / 1e6, 2) == 1.45
    assert round(multiplications(network, picture) / 1e6) == 137
    assert network.backbone(picture).shape == (1, 160, 4, 5)
    assert network(picture).shape == (1, 2, 4)


@pytest.mark.parametrize(("keypoint_input", "size"), [(True, 1_948_326), (False, 1_641_126)])
def test_keynet_has_the_published_shapes(keypoint_input: bool, size: int):
    network = KeyNet(KeyNetConfig(keypoint_input)).eval()
    images, told = torch.rand(2, 1, 96, 96), torch.randn(2, 63)
    assert parameters(network) == size
    assert network.backbone.image(images).shape == (2, 64, 12, 12)
    assert network.backbone(images, told).shape == (2, 160, 6, 6)
    with torch.no_grad():
        heatmaps, untold = network(images, told), network(images, torch.zeros(2, 63))
    assert heatmaps.plane.shape == (2, 21, 18, 18)
    assert heatmaps.distance.shape == (2, 21, 18)
    assert torch.equal(heatmaps.plane, untold.plane) != keypoint_input


# ---- codes ----------------------------------------------------------------------------------------------------------


def test_keypoints_come_back_from_their_heatmaps():
    generator = torch.Generator().manual_seed(0)
    pixels = 144 * torch.rand(50, 21, 2, generator=generator) - 24.5
    distance = 0.2 * torch.rand(50, 21, generator=generator) - 0.1
    found = decode(targets(pixels, distance))
    torch.testing.assert_close(found.pixels, pixels, rtol=0, atol=0.01)
    torch.testing.assert_close(found.relative_distance, distance, rtol=0, atol=1e-4)
    assert found.confidence.min() > 0.75


def test_one_bin_and_an_empty_heatmap_are_decoded():
    heatmaps = Heatmaps(torch.zeros(1, 21, 18, 18), torch.zeros(1, 21, 18))
    heatmaps.plane[0, 0, 17, 3] = 2.0
    heatmaps.distance[0, 0, 9] = 1.0
    found = decode(heatmaps)
    torch.testing.assert_close(found.pixels[0, 0], torch.tensor([3.5, 115.5]), rtol=0, atol=BIN_PX / 2)
    assert float(found.relative_distance[0, 0]) == pytest.approx(0.13 / 18)
    assert found.confidence[0].tolist() == [1.0] + 20 * [0.0]
    for values in (found.pixels, found.relative_distance):
        assert torch.isfinite(values).all()


def test_the_prior_is_centred_and_zero_for_an_untracked_hand():
    told = prior(torch.full((2, 21, 2), 47.5), torch.full((2, 21), 0.13), torch.tensor([True, False]))
    assert torch.equal(told[0].unflatten(0, (21, 3)), torch.tensor([0.0, 0.0, 1.0]).expand(21, 3))
    assert not told[1].any()


def test_hand_scale_is_one_for_the_generic_hand_and_follows_the_size():
    hand = generic_hand()
    assert float(hand_scale(hand)) == pytest.approx(1.0, abs=1e-4)
    scales = torch.tensor([0.8, 1.3])
    torch.testing.assert_close(hand_scale(hand.scaled(scales)), scales, rtol=1e-4, atol=0)
    assert 0.7 < float(hand_scale(user_hand(3))) < 1.3


def test_circles_come_back_from_the_networks_code():
    circles = torch.tensor([[[100.0, 50.0, 40.0], [600.0, 470.0, 60.0]]])
    code = torch.cat((normalised(circles, 120, 160), torch.tensor([[[0.0], [2.0]]])), dim=-1)
    found = to_circles(code, 120, 160)
    torch.testing.assert_close(torch.cat((found.center_px, found.radius_px[..., None]), dim=-1), circles)
    torch.testing.assert_close(found.presence, torch.tensor([[0.0, 2.0]]).sigmoid())


# ---- views ----------------------------------------------------------------------------------------------------------


def test_shrinking_averages_blocks_and_pads_on_the_right(rng):
    picture = rng.integers(0, 256, (480, 636), dtype=np.uint8)
    small = shrink(picture)
    assert small.shape == (120, 160)
    mean = picture.reshape(120, 4, 159, 4).mean(axis=(1, 3))
    assert np.abs(small[:, :159] - mean).max() <= 0.5
    assert not small[:, 159].any()
    with pytest.raises(InputError, match="63x48 pixels cannot be shrunk"):
        shrink(np.zeros((48, 63), np.uint8))


def test_views_are_labelled_with_circles_around_the_landmarks(views, tmp_path):
    recording = read_recording(tiny_recording(7).write(tmp_path))
    assert len(views) == 2 * 4
    assert (views.landmarks_seen[[1, 2, 5, 6]] == 21).all()
    for frame, camera, row in ((0, 1, 1), (6, 2, 6)):
        poses = for_hand(recording.world_from_wrist[frame], torch.arange(2))
        landmarks = recording.hand_model.landmarks(recording.joint_angles[frame], poses)
        pixels = recording.cameras(frame)[camera].project(landmarks.flatten(0, 1)).unflatten(0, (2, 21)).numpy()
        distance = np.linalg.norm(pixels - views.circles[row, :, None, :2], axis=-1)
        np.testing.assert_allclose(distance.max(axis=1), views.circles[row, :, 2], rtol=1e-4)
    hidden = views.landmarks_seen < 19
    assert not views.circles[hidden].any()


def test_views_are_saved_and_a_broken_file_is_named(views, tmp_path):
    views.save(tmp_path / "recording_00")
    loaded = ViewSequence.load(tmp_path / "recording_00")
    for name, value in vars(views).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    np.savez(tmp_path / "recording_00.npz", **(vars(views) | {"circles": views.circles[1:]}))
    with pytest.raises(InputError, match=r"not a complete sequence of views: circles is float32"):
        ViewSequence.load(tmp_path / "recording_00")
    (tmp_path / "recording_00.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"recording_00\.npz is not a complete sequence of views"):
        ViewSequence.load(tmp_path / "recording_00")


def test_detect_finds_what_the_network_says():
    """Outputs are relative to the centre of the padded view, in units of its width."""

    class Sure(DetNet):
        def forward(self, pictures):
            assert pictures.shape == (1, 1, 120, 160)
            return torch.tensor([[[0.0, 0.0, 0.1, 9.0], [-0.25, 0.125, 0.05, -9.0]]])

    found = detect(Sure(DetNetConfig()), np.zeros((480, 636), np.uint8))
    torch.testing.assert_close(found.center_px, torch.tensor([[320.0, 240.0], [160.0, 320.0]]))
    torch.testing.assert_close(found.radius_px, torch.tensor([64.0, 32.0]))
    assert (found.presence > 0.5).tolist() == [True, False]


def test_detection_errors_on_a_hand_made_case():
    center = torch.tensor([[[10.0, 10.0], [50.0, 50.0]], [[0.0, 0.0], [0.0, 0.0]]])
    true = Circles(center, torch.tensor([[5.0, 5.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    found = Circles(center + torch.tensor([3.0, 4.0]), true.radius_px + 2, torch.tensor([[0.9, 0.2], [0.6, 0.1]]))
    present = true.presence > 0
    absent = torch.tensor([[False, False], [True, True]])
    errors = {name: float(value) for name, value in detection_errors(found, true, present, absent).items()}
    assert errors == {"center_px": 5.0, "radius_px": 2.0, "recall_percent": 50.0, "false_positives_percent": 50.0}


# ---- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.0, 0.1])
def test_without_noise_the_prior_of_a_steady_motion_is_the_truth(source, size):
    """In a world that augmentation has enlarged, too."""
    hands = source.clips(1)
    hands = hands[hands[:, 0] >= 2]
    batch = crop_batch(source, hands, replace(NO_AUGMENTATION, world_scale=size), EXACT, torch.Generator())
    told = prior(batch.pixels, batch.relative_distance, torch.ones(len(batch), dtype=torch.bool))
    behind = crop_batch(source, hands, NO_AUGMENTATION, replace(EXACT, extrapolation=0.0), torch.Generator())
    torch.testing.assert_close(batch.prior, told, rtol=0, atol=1e-3)
    assert (behind.prior - told).abs().max() > 0.01
    assert len(batch) == 2 * len(hands)


def test_stale_and_untracked_hands_of_the_first_frames_have_no_prior(source):
    hands = source.clips(1)
    nothing = replace(EXACT, untracked=1.0)
    assert not crop_batch(source, hands, NO_AUGMENTATION, nothing, torch.Generator()).prior.any()
    late = replace(EXACT, stale=1.0, stale_frames=3)
    told = crop_batch(source, hands, NO_AUGMENTATION, late, torch.Generator()).prior.any(dim=1)
    assert torch.equal(told, (hands[:, 0] >= 3).repeat_interleave(2))


def test_perturbed_crops_keep_keypoints_on_what_they_show(source):
    """Crops of the same hand, one of them perturbed, show the same grey value under each keypoint."""
    hands = source.clips(1)
    plain = crop_batch(source, hands, NO_AUGMENTATION, EXACT, torch.Generator().manual_seed(0))
    augmentation = Augmentation(gain=0.0, single_view=0.0)
    turned = crop_batch(source, hands, augmentation, EXACT, torch.Generator().manual_seed(0))
    assert (plain.pixels - turned.pixels).norm(dim=-1).median() > 2
    torch.testing.assert_close(plain.relative_distance, turned.relative_distance, rtol=0, atol=1e-4)
    grid = [(batch.pixels * 2 / 95 - 1)[:, None] for batch in (plain, turned)]
    values = [grid_sample(b.images, g, align_corners=True) for b, g in zip((plain, turned), grid, strict=True)]
    inside = torch.stack(grid).abs().amax(dim=(0, -1)) < 0.9
    correlation = torch.corrcoef(torch.stack([value[:, 0][inside] for value in values]))[0, 1]
    assert correlation > 0.8


def test_brightness_is_all_that_changes_in_views(views):
    source = ViewSource([views])
    batches = [source.batch(torch.arange(8), gain, torch.Generator().manual_seed(0)) for gain in (0.0, 0.3)]
    assert not torch.equal(batches[0].pictures, batches[1].pictures)
    assert torch.equal(batches[0].circles, batches[1].circles)
    assert batches[0].present.sum() == 8
    assert not (batches[0].present & batches[0].absent).any()


# ---- training -------------------------------------------------------------------------------------------------------


def keypoint_training(source: ClipSource, **changes) -> KeypointTraining:
    config = KeypointTrainingConfig(augmentation=NO_AUGMENTATION, hands=1, validation_hands=1, warmup_steps=1)
    return KeypointTraining(replace(config, **changes), ClipData(source, source, "made up"))


def test_keynet_learns_a_hand_by_heart(tmp_path):
    sequence = sequence_of(tmp_path, 1)
    sequence.views[0, 1] = 0
    task = keypoint_training(
        ClipSource([sequence]), steps=40, validation_every=40, learning_rate=3e-3, schedule="constant"
    )
    run = Run(tmp_path, task, "cpu")
    run.train(tmp_path / "keynet.safetensors")
    batch = run.task.batch(0, 0, 1)
    empty = targets(batch.pixels, batch.relative_distance).plane.square().mean()
    assert run.log[-1]["plane"] < 0.6 * empty
    assert run.log[-1]["hits_percent"] > 20
    network = load_weights(tmp_path / "keynet.safetensors", KeyNet, KeyNetConfig)
    assert network.config == KeyNetConfig()
    assert predict_keypoints(network, batch.images, batch.prior).pixels.shape == (2, 21, 2)


def test_detnet_learns_a_few_views_by_heart(views, tmp_path):
    source = ViewSource([views])
    config = DetectionTrainingConfig(
        steps=200, views=8, gain=0.0, warmup_steps=10, validation_every=200, validation_views=8, learning_rate=1e-3
    )
    run = Run(tmp_path, DetectionTraining(config, ViewData(source, source, "made up")), "cpu")
    run.train(tmp_path / "detnet.safetensors")
    assert run.log[-1]["recall_percent"] > 90
    assert run.log[-1]["circle"] < 0.1 * run.log[0]["circle"]


def test_hands_half_in_view_do_not_count(views):
    source = ViewSource([views])
    batch = source.batch(torch.arange(8), 0.0, torch.Generator())
    learner = DetectionLearner(DetNet(DetNetConfig()).eval(), 100.0, 10.0)
    half = replace(batch, present=torch.zeros_like(batch.present), absent=torch.zeros_like(batch.absent))
    with torch.no_grad():
        assert float(learner(half).total) == 0.0
        assert float(learner(batch).total) > 0.0


def test_runs_of_the_baseline_resume_to_the_bit(source, tmp_path):
    task = keypoint_training(source, steps=4, validation_every=4, optimizer="sgd", schedule="constant")
    whole = Run(tmp_path / "whole", task, "cpu")
    for _ in range(4):
        whole.one_step()
    for _ in range(2):
        broken = Run(tmp_path / "broken", task, "cpu")
        for _ in range(2):
            broken.one_step()
        broken.save()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, broken.network.state_dict()[name]), name


def test_the_weights_of_another_network_are_refused(tmp_path, weights):
    with pytest.raises(InputError, match="holds the weights of a UmeTrack, expected those of a KeyNet"):
        load_weights(weights, KeyNet, KeyNetConfig)
    save_network(DetNet(DetNetConfig()), tmp_path / "detnet.safetensors")
    with pytest.raises(InputError, match="holds the weights of a DetNet, expected those of a UmeTrack"):
        load_network(tmp_path / "detnet.safetensors")
    assert load_weights(tmp_path / "detnet.safetensors", DetNet, DetNetConfig).config == DetNetConfig()
