"""What is learnt: terms are what the equations say, and each phase trains on what it should."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, tiny_network
from tiny_runs import CONFIG, WEIGHTS, made_up_data, run, sequence_of

from lib.clip_training import ClipData, ClipLearner, ClipTraining, Pretrained, clip_features
from lib.clips import NO_AUGMENTATION, TRUE_SKELETON, ClipSource, SkeletonNoise
from lib.hands import for_hand
from lib.losses import LossWeights, pinch_loss, temporal_loss
from lib.network import TemporalState
from lib.rendered.shape import generic_hand
from lib.training import Run, draw_examples


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ClipData:
    return made_up_data(tmp_path_factory.mktemp("recording"))


@pytest.fixture
def batch(data):
    clips, generator = draw_examples(data.train.clips(4), 3, seed=0, step=0)
    return data.train.batch(clips, 4, NO_AUGMENTATION, generator)


def test_overfits_a_clip(data, tmp_path):
    source = ClipSource([sequence_of(tmp_path, 4)])
    source.labels["views"][:, 1] = 0  # the left hand only: one clip
    one = ClipData(source, source, "one clip")
    steps, pose = {"steps": 500, "validation_every": 500}, LossWeights(temporal=0.0, pinch=0.0)
    training = run(tmp_path / "run", one, **steps, weights=pose, hands=4, learning_rate=8e-3, warmup_steps=10)
    training.train(tmp_path / WEIGHTS)
    assert training.log[-1]["known_mpjpe_mm"] < 2.0


def test_terms_are_those_of_the_equations(batch):
    torch.manual_seed(0)
    network = tiny_network()
    learner = ClipLearner(network, generic_hand())
    with torch.no_grad():
        losses = {
            name: learner(batch, LossWeights(temporal=temporal, pinch=pinch, unknown=0.0)).total
            for name, temporal, pinch in (
                ("pose", 0.0, 0.0),
                ("temporal", 0.05, 0.0),
                ("pinch", 0.0, 0.4),
                ("all", 0.05, 0.4),
            )
        }
        prediction = network.known(clip_features(network, batch), batch.crops, batch.hand_model)
    angles = prediction.joint_angles.unflatten(0, batch.shape)
    wrists = prediction.world_from_wrist.unflatten(0, batch.shape)
    landmarks = batch.hand_model.landmarks(
        prediction.joint_angles, for_hand(prediction.world_from_wrist, batch.crops.hand)
    )
    temporal = 0.05 * temporal_loss(angles, wrists).mean()
    pinch = 0.4 * pinch_loss(landmarks, batch.pinch.flatten()).mean()
    assert temporal > 0
    torch.testing.assert_close(losses["temporal"] - losses["pose"], temporal, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["pinch"] - losses["pose"], pinch, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["all"] - losses["pose"], temporal + pinch, rtol=1e-4, atol=1e-5)


def test_unknown_term_counts_two_view_hands_only(batch):
    network = tiny_network()
    learner = ClipLearner(network, generic_hand())
    weights = LossWeights(unknown=1.0)
    single = replace(batch, crops=replace(batch.crops, two_views=torch.zeros_like(batch.crops.two_views)))
    with torch.no_grad():
        assert not any(name.startswith("unknown") for name in learner(single, weights).terms)
        both = learner(batch, weights)
    torch.testing.assert_close(both.total, both.terms["known_loss"] + both.terms["unknown_loss"])


def test_acceleration_of_u_needs_three_frames_that_two_cameras_see(batch):
    learner = ClipLearner(tiny_network(), generic_hand())
    frames, clips = batch.shape
    for seen, counts in (([True, False, True, True], False), ([False, True, True, True], True)):
        two = torch.tensor(seen)[:, None].expand(frames, clips).flatten()
        with torch.no_grad():
            terms = learner(replace(batch, crops=replace(batch.crops, two_views=two)), LossWeights()).terms
        assert (float(terms["unknown_temporal"]) > 0) == counts


def test_clip_state_is_carried_frame_by_frame(batch):
    """Running a clip at once equals tracking it one frame after the other."""
    network = tiny_network()
    frames, clips = batch.shape
    with torch.no_grad():
        at_once = clip_features(network, batch).unflatten(0, (frames, clips))
        state = TemporalState.untracked(clips)
        for frame in range(frames):
            rows = slice(frame * clips, (frame + 1) * clips)
            features, state = network.features(batch.crops[rows], state)
            torch.testing.assert_close(at_once[frame], features, rtol=1e-4, atol=1e-5)


def test_schedule():
    config = replace(CONFIG, steps=5, learning_rate=1.0, warmup_steps=4)
    rates = [config.learning_rate_at(step) for step in range(6)]
    assert rates[0] == pytest.approx(0.25)
    assert rates[4] == pytest.approx(0.5 + 0.5 * np.cos(0.8 * np.pi))
    assert rates[5] == pytest.approx(0.0, abs=1e-7)
    constant = replace(config, schedule="constant")
    assert [constant.learning_rate_at(step) for step in (0, 3, 5)] == pytest.approx([0.25, 1.0, 1.0])
    brief = replace(config, steps=1000, warmup_steps=50).with_steps(200)
    assert (brief.steps, brief.warmup_steps) == (200, 20)  # a tenth


@pytest.mark.parametrize("kept", [True, False])
def test_batch_statistics_are_kept_where_asked_for(data, tmp_path, kept):
    training = run(tmp_path / "run", data, keep_batch_norms=kept)
    norms = [m for m in training.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [(norm.running_mean.clone(), norm.weight.detach().clone()) for norm in norms]
    training.one_step()
    assert norms
    for norm, (mean, scale) in zip(norms, before, strict=True):
        assert torch.equal(norm.running_mean, mean) == kept
        assert not torch.equal(norm.weight, scale)


@pytest.mark.parametrize("noise", [SkeletonNoise(), TRUE_SKELETON])
def test_skeletons_are_as_wrong_as_asked(data, noise):
    batch = ClipTraining(replace(CONFIG, skeleton_noise=noise), data, generic_hand()).batch(3, rank=0, processes=1)
    told, true = batch.input_model.skeleton_feature, batch.hand_model.skeleton_feature
    assert torch.equal(told, true) == (noise == TRUE_SKELETON)


def test_a_network_with_a_memory_begins_with_what_one_without_has_learnt(data, tmp_path):
    alone = {"clip_frames": 1, "weights": LossWeights(temporal=0.0, pinch=0.0)}

    def error(training: Run) -> float:
        """Of single frames, so that there is nothing to remember."""
        single = replace(training.task, config=replace(CONFIG, **alone))
        with torch.no_grad():
            losses = training.module.eval()(single.batch(0, 0, 1), single.config.weights)
        return float(losses.terms["known_mpjpe_mm"])

    first = run(tmp_path / "first", data, **alone, network=replace(TINY, temporal_module=False))
    for _ in range(6):
        first.one_step()
    learnt = {name: weight.clone() for name, weight in first.network.state_dict().items()}
    second = run(tmp_path / "second", data, pretrained=Pretrained(learnt, "made up"))
    assert second.network.config.temporal_module
    assert error(second) == pytest.approx(error(first), rel=0.02)
    new = run(tmp_path / "new", data)
    assert error(new) != pytest.approx(error(first), rel=0.02)
