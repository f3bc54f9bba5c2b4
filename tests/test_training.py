"""The loop: it learns, it resumes to the bit, its terms are what the equations say, and it refuses what it must."""

import errno
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from conftest import TINY, tiny_network
from test_clips import sequence_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lib.checkpoints import load_network, save_network
from lib.clips import NO_AUGMENTATION, TRUE_SKELETON, ClipSource, SkeletonNoise
from lib.errors import InputError
from lib.experiments import REFERENCE_NETWORK, beginning, experiment, train_experiment
from lib.files import read_json, sha256_of
from lib.hands import for_hand
from lib.losses import LossWeights, pinch_loss, temporal_loss
from lib.multistage.keypoints import KeyNet, KeyNetConfig, pretrain
from lib.network import TemporalState
from lib.objective import (
    Beginning,
    ClipData,
    ClipLearner,
    ClipTraining,
    ClipTrainingConfig,
    clip_features,
    keep_batch_norms,
)
from lib.rendered.shape import generic_hand
from lib.training import Run, draw_examples, fit_to_minutes, thinned

CONFIG = ClipTrainingConfig(
    network=TINY, augmentation=NO_AUGMENTATION, told=TRUE_SKELETON, pose_steps=6, steps=12, hands=8, pose_clip_frames=4,
    clip_frames=4, warmup_steps=2, precision="float32", compiled=False, validation_every=6, validation_hands=8,
)  # fmt: skip

WEIGHTS = "weights.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ClipData:
    source = ClipSource([sequence_of(tmp_path_factory.mktemp("recording"), 6)])
    return ClipData(source, source, "made up")


@pytest.fixture
def batch(data):
    clips, generator = draw_examples(data.train.clips(4), 3, seed=0, step=0)
    return data.train.batch(clips, 4, NO_AUGMENTATION, generator)


def run(folder: Path, data: ClipData, **changes) -> Run:
    """A run in the folder; runs beside it share a first phase with it."""
    return Run(folder, ClipTraining(replace(CONFIG, **changes), data, generic_hand()), "cpu")


def test_overfits_a_clip(data, tmp_path):
    source = ClipSource([sequence_of(tmp_path, 4)])
    source.labels["views"][:, 1] = 0  # the left hand only: one clip
    one = ClipData(source, source, "one clip")
    steps = {"steps": 500, "pose_steps": 500, "validation_every": 500}
    training = run(tmp_path / "run", one, **steps, hands=4, learning_rate=4e-3, warmup_steps=10)
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


def test_phases_and_schedule():
    config = replace(CONFIG, pose_steps=5, steps=10, learning_rate=1.0, second_learning_rate=0.1, warmup_steps=4)
    assert config.weights_at(4) == replace(config.weights, temporal=0.0, pinch=0.0)
    assert config.weights_at(5) == config.weights
    rates = [config.learning_rate_at(step) for step in range(11)]
    assert rates[0] == pytest.approx(0.25)
    assert rates[4] == pytest.approx(0.5 + 0.5 * np.cos(0.8 * np.pi))
    assert rates[5:] == pytest.approx([0.1 * rate for rate in (*rates[:5], 0.0)], abs=1e-7)
    constant = replace(config, schedule="constant")
    assert [constant.learning_rate_at(step) for step in (0, 3, 5, 10)] == pytest.approx([0.25, 1.0, 0.025, 0.1])
    assert (config.lasting(40).steps, config.lasting(40).pose_steps) == (40, 20)


def test_the_second_phase_keeps_the_batch_statistics_of_the_first(data, tmp_path):
    training = run(tmp_path / "run", data)

    def changed_by_a_step() -> list[tuple[bool, bool]]:
        norms = [m for m in training.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        before = [(norm.running_mean.clone(), norm.weight.detach().clone()) for norm in norms]
        training.one_step()
        pairs = zip(norms, before, strict=True)
        return [(not torch.equal(n.running_mean, mean), not torch.equal(n.weight, scale)) for n, (mean, scale) in pairs]

    assert all(mean and scale for mean, scale in changed_by_a_step())
    while training.step < CONFIG.pose_steps:
        training.one_step()
    assert all(scale and not mean for mean, scale in changed_by_a_step())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_muon_steps_move_the_weights_of_the_network_in_either_precision(data, tmp_path, precision):
    training = run(tmp_path / "run", data, optimizer="muon", precision=precision)
    before = {name: p.detach().clone() for name, p in training.network.named_parameters()}
    training.one_step()
    moved = {
        name: not torch.equal(p, before[name]) for name, p in training.network.named_parameters() if p.grad is not None
    }
    assert moved["fusion.0.weight"]
    assert all(moved.values()), moved


def test_batch_statistics_are_kept_on_several_gpus_too():
    layers = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))).train()
    keep_batch_norms(layers)
    assert not layers[1].training


def test_processes_draw_other_numbers_than_each_other_at_any_step():
    examples = torch.arange(100)
    drawn = [
        torch.rand(4, generator=draw_examples(examples, 4, seed=0, step=step, rank=rank, processes=2)[1]).tolist()
        for step in range(4)
        for rank in range(2)
    ]
    assert len({tuple(numbers) for numbers in drawn}) == 8


def test_what_draws_the_augmentation_has_not_drawn_the_examples():
    _, generator = draw_examples(torch.arange(100), 4, seed=0, step=3)
    assert not torch.equal(torch.randint(100, (4,), generator=generator), draw_examples(torch.arange(100), 4, 0, 3)[0])


def test_runs_are_judged_on_the_users_they_learn_from_and_on_others(data, tmp_path):
    elsewhere = ClipSource([sequence_of(tmp_path, 6)])
    elsewhere.labels["world_from_wrist"][..., 2, 3] += 0.1
    others = replace(data, validation=elsewhere)
    for name, of, same in (("a", data, True), ("b", others, False)):
        row = run(tmp_path / name, of).validate()
        assert (row["train_known_mpjpe_mm"] == row["validation_known_mpjpe_mm"]) == same


@pytest.mark.parametrize("noise", [SkeletonNoise(), TRUE_SKELETON])
def test_both_phases_are_told_skeletons_as_wrong_as_asked(data, noise):
    config = replace(CONFIG, told=noise)
    for step in (CONFIG.pose_steps - 1, CONFIG.pose_steps):
        batch = ClipTraining(config, data, generic_hand()).batch(step, rank=0, processes=1)
        told, true = batch.told_model.skeleton_feature, batch.hand_model.skeleton_feature
        assert torch.equal(told, true) == (noise == TRUE_SKELETON)


def test_processes_share_a_batch_evenly():
    examples = torch.arange(100)
    whole, _ = draw_examples(examples, 6, seed=1, step=2)
    shares = [draw_examples(examples, 6, seed=1, step=2, rank=rank, processes=3) for rank in range(3)]
    assert torch.equal(torch.cat([share for share, _ in shares]), whole)
    assert len({float(torch.rand(1, generator=generator)) for _, generator in shares}) == 3
    with pytest.raises(InputError, match="a batch of 6 cannot be shared evenly by 4 processes"):
        draw_examples(examples, 6, seed=1, step=2, processes=4)


def test_a_share_that_cannot_be_even_is_refused_before_anything_is_trained(data, tmp_path, monkeypatch):
    """The first phase's batch of 8 single frames could be shared by 4 processes, the second's of 2 clips could not."""
    monkeypatch.setattr("lib.training.dist.is_initialized", lambda: True)
    monkeypatch.setattr("lib.training.dist.get_rank", lambda: 0)
    monkeypatch.setattr("lib.training.dist.get_world_size", lambda: 4)
    with pytest.raises(InputError, match="a batch of 2 cannot be shared evenly by 4 processes"):
        run(tmp_path / "run", data, pose_clip_frames=1)
    assert not (tmp_path / "run").exists()


def _train(folder: Path, recording: Path, delay: float) -> None:
    torch.set_num_threads(1)
    source = ClipSource([sequence_of(recording, 6)])
    training = run(folder / "run", ClipData(source, source, "made up"), steps=40, pose_steps=20)
    training.train(folder / WEIGHTS, save_seconds=delay)


def _step_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0


def test_a_killed_run_ends_with_the_same_weights(tmp_path):
    """kill -9 while it trains, twice, then resume to the end: bit-identical to a run that was left alone."""
    context = multiprocessing.get_context("spawn")
    for name in ("alone", "killed"):
        (tmp_path / f"recording_{name}").mkdir()
    _train(tmp_path / "alone", tmp_path / "recording_alone", 1e9)
    checkpoint, steps = tmp_path / "killed/run/checkpoint.pt", [0]
    for _ in range(2):
        process = context.Process(target=_train, args=(tmp_path / "killed", tmp_path / "recording_killed", 0.0))
        process.start()
        while process.is_alive() and _step_of(checkpoint) <= steps[-1] + 3:
            time.sleep(0.01)
        process.kill()
        process.join()
        steps.append(_step_of(checkpoint))
    assert 0 < steps[1] < steps[2] < 40, "the runs must have been killed on their way"
    _train(tmp_path / "killed", tmp_path / "recording_killed", 0.0)
    runs = [tmp_path / name / "run" for name in ("alone", "killed")]
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in runs]
    for name, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][name]), name
    logs = [pd.read_csv(folder / "log.csv").drop(columns=["seconds", "waiting"]) for folder in runs]
    pd.testing.assert_frame_equal(*logs)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_resuming_after_every_step_changes_nothing(data, tmp_path, optimizer):
    run(tmp_path / "a/alone", data, optimizer=optimizer).train(tmp_path / WEIGHTS)
    interrupted = run(tmp_path / "b/steps", data, optimizer=optimizer)
    while interrupted.step < CONFIG.steps:
        interrupted.one_step()
        interrupted.save()
        interrupted = run(tmp_path / "b/steps", data, optimizer=optimizer)
    alone = torch.load(tmp_path / "a/alone/checkpoint.pt", weights_only=True)["network"]
    assert all(torch.equal(value, alone[name]) for name, value in interrupted.network.state_dict().items())
    sittings = read_json(tmp_path / "b/steps/config.json")["sittings"]
    assert [sitting["from_step"] for sitting in sittings] == list(range(CONFIG.steps + 1))
    assert all(sitting["machine"]["threads"] == torch.get_num_threads() for sitting in sittings)


def test_another_configuration_is_refused_with_the_difference(data, tmp_path):
    run(tmp_path, data)
    with pytest.raises(InputError, match=r"training\.learning_rate: 0\.002 there, 0\.5 asked for"):
        run(tmp_path, data, learning_rate=0.5)
    with pytest.raises(InputError, match="data: made up there, other asked for"):
        run(tmp_path, replace(data, fingerprint="other"))


def test_a_run_that_begins_with_another_network_is_bound_to_it(data, tmp_path):
    weights = tmp_path / "keynet.safetensors"

    def begun(name: str, seed: int) -> Run:
        torch.manual_seed(seed)
        save_network(KeyNet(KeyNetConfig(keypoint_input=False, blocks="residual")), weights)
        config = replace(CONFIG, network=REFERENCE_NETWORK, pretrained="keynet_image_only")
        begins = Beginning(partial(pretrain, weights=weights), sha256_of(weights))
        return Run(tmp_path / name, ClipTraining(config, data, generic_hand(), begins), "cpu")

    first, same, other = (begun(*name_and_seed) for name_and_seed in (("a", 0), ("b", 0), ("c", 1)))
    of_first, of_same, of_other = (training.network.backbone.stem[1].weight for training in (first, same, other))
    assert torch.equal(of_first, of_same)
    assert not torch.equal(of_first, of_other)
    assert read_json(tmp_path / "a/config.json")["data"] == read_json(tmp_path / "c/config.json")["data"]
    with pytest.raises(InputError, match=r"holds another run.*\n  pretrained: \w+ there, \w+ asked for"):
        begun("a", 1)


def test_what_a_training_begins_with_must_have_been_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.experiments.results_folder", lambda profile: tmp_path / profile)
    with pytest.raises(InputError, match=r"run python -m lib train keynet_image_only --profile smoke first"):
        beginning(experiment("full", "smoke"), "smoke")
    assert beginning(CONFIG, "smoke") is None


@pytest.fixture
def experiments(data, tmp_path, monkeypatch):
    """Results in a folder of their own; `full` is a tiny training."""
    monkeypatch.setattr("lib.experiments.results_folder", lambda profile: tmp_path)
    monkeypatch.setattr("lib.experiments.EXPERIMENTS", {"full": replace(CONFIG, steps=2, pose_steps=1)})
    monkeypatch.setattr("lib.experiments.load_task", lambda config, *others: ClipTraining(config, data, generic_hand()))


def test_another_seed_is_another_run(experiments, tmp_path):
    for seed in (0, 1):
        train_experiment("full", "reference", tmp_path, generic_hand(), "cpu", seed=seed)
    seeds = [read_json(tmp_path / "runs" / name / "config.json")["training"]["seed"] for name in ("full", "full_seed1")]
    assert seeds == [0, 1]
    first, second = (load_network(tmp_path / "checkpoints" / f"{n}.safetensors") for n in ("full", "full_seed1"))
    assert not torch.equal(first.backbone.head.weight, second.backbone.head.weight)


def test_what_has_been_trained_is_not_trained_over(experiments, tmp_path):
    train_experiment("full", "reference", tmp_path, generic_hand(), "cpu")
    with pytest.raises(InputError, match="holds a run already: go on with --resume"):
        train_experiment("full", "reference", tmp_path, generic_hand(), "cpu")
    (tmp_path / "runs/full/checkpoint.pt").unlink()  # as in a fresh clone: released weights, no checkpoint
    before = (tmp_path / "checkpoints/full.safetensors").read_bytes()
    for resume in (False, True):
        with pytest.raises(InputError, match=r"full\.safetensors is there: remove it .* or give another --seed"):
            train_experiment("full", "reference", tmp_path, generic_hand(), "cpu", resume=resume)
    assert (tmp_path / "checkpoints/full.safetensors").read_bytes() == before


def test_minutes_become_steps_once(experiments, data, tmp_path, monkeypatch):
    task = ClipTraining(CONFIG, data, generic_hand())
    now = itertools.count()
    monkeypatch.setattr("lib.training.time.perf_counter", lambda: float(next(now)))  # a step takes two seconds
    assert fit_to_minutes(task, "cpu", 2.0, tmp_path / "run").steps == 60
    Run(tmp_path / "run", replace(task, config=CONFIG.lasting(30)), "cpu").save()
    assert fit_to_minutes(task, "cpu", 2.0, tmp_path / "run").steps == 30


def test_each_phase_has_an_augmentation_of_its_own(data):
    rolled = replace(NO_AUGMENTATION, roll=0.5)
    config = replace(CONFIG, second_augmentation=rolled, occluded=0.0)

    def cameras(config: ClipTrainingConfig, step: int) -> torch.Tensor:
        return ClipTraining(config, data, generic_hand()).batch(step, 0, 1).crops.camera_from_world

    for step, augmentation in ((0, NO_AUGMENTATION), (CONFIG.pose_steps, rolled)):
        alone = replace(config, augmentation=augmentation, second_augmentation=augmentation)
        assert torch.equal(cameras(config, step), cameras(alone, step))
    assert not torch.equal(
        cameras(config, CONFIG.pose_steps), cameras(replace(config, pose_steps=12), CONFIG.pose_steps)
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(data, tmp_path):
    training = run(tmp_path / "run", data)
    with torch.no_grad():
        training.network.regressor_known.layers[2].bias.fill_(float("nan"))
    with pytest.raises(InputError, match=r"step 0 is not finite .*bad_batch_0\.pt"):
        training.train(tmp_path / WEIGHTS)
    kept = torch.load(tmp_path / "run/bad_batch_0.pt", weights_only=True)
    assert kept["crops"]["images"].shape == (8, 2, 96, 96)
    assert not (tmp_path / WEIGHTS).exists()


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_harms_the_weights(data, tmp_path):
    training = run(tmp_path / "run", data)
    training.network.fusion[0].weight.register_hook(lambda gradient: gradient * float("nan"))
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    with pytest.raises(InputError, match=r"step 0 is not finite .*gradient_norm nan.*bad_batch_0\.pt"):
        training.train(tmp_path / WEIGHTS)
    assert all(torch.equal(p, before[name]) for name, p in training.network.named_parameters())
    assert not (tmp_path / WEIGHTS).exists()


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(data, tmp_path, monkeypatch):
    training = run(tmp_path / "run", data)
    training.one_step()
    training.save()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        training.train(tmp_path / WEIGHTS, save_seconds=0.0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


_TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from pathlib import Path
sys.path[:0] = [{tests!r}]
from lib.machines import process_group
from test_training import gradients_of_share
torch.set_num_threads(1)
with process_group("cpu"):
    gradients = gradients_of_share(Path({folder!r}), dist.get_rank(), dist.get_world_size())
    if dist.get_rank() == 0:
        torch.save(gradients, Path({folder!r}) / "two.pt")
"""


def gradients_of_share(folder: Path, rank: int, processes: int) -> dict[str, torch.Tensor]:
    """Gradients of one step, batch normalisation frozen: each process sees its own half of a batch."""
    recording = folder / f"recording_{processes}_{rank}"
    recording.mkdir()
    source = ClipSource([sequence_of(recording, 6)])
    clips, generator = draw_examples(source.clips(4), 4, seed=0, step=0)
    share = len(clips) // processes
    batch = source.batch(clips[rank * share : (rank + 1) * share], 4, NO_AUGMENTATION, generator)
    learner = ClipLearner(tiny_network(), generic_hand())
    trained = DistributedDataParallel(learner, find_unused_parameters=True) if processes > 1 else learner
    trained.eval()
    trained(batch, LossWeights()).total.backward()
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


def test_two_processes_with_half_the_batch_each_give_the_same_gradients(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(_TWO_PROCESSES.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    finished = torchrun(script)
    assert (tmp_path / "two.pt").exists(), finished.stderr
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = gradients_of_share(tmp_path, 0, 1)
    assert two.keys() == one.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max() + 1e-3))


_BOTH_PHASES = """
import sys, torch, torch.distributed as dist
from pathlib import Path
sys.path[:0] = [{tests!r}]
from lib.machines import process_group
from test_training import train_with_others
torch.set_num_threads(1)
with process_group("cpu"):
    train_with_others(Path({folder!r}), dist.get_rank())
"""


def train_with_others(folder: Path, rank: int) -> None:
    """Both phases, once at a stretch and once in three sittings."""
    recording = folder / f"recording_{rank}"
    recording.mkdir()
    source = ClipSource([sequence_of(recording, 6)])
    data = ClipData(source, source, "made up")
    run(folder / "a/alone", data, optimizer="muon").train(folder / "alone.safetensors")
    for step in (4, 9):
        training = run(folder / "b/sittings", data, optimizer="muon")
        while training.step < step:
            training.one_step()
        training.save()
        dist.barrier()
    run(folder / "b/sittings", data, optimizer="muon").train(folder / "sittings.safetensors")


def test_two_processes_train_both_phases_and_go_on_where_they_were(tmp_path):
    script = tmp_path / "both.py"
    script.write_text(_BOTH_PHASES.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    finished = torchrun(script)
    assert finished.returncode == 0, finished.stderr
    alone, sittings = (load_network(tmp_path / f"{name}.safetensors").state_dict() for name in ("alone", "sittings"))
    assert all(torch.equal(value, sittings[name]) for name, value in alone.items())
    about = [read_json(tmp_path / name / "config.json")["sittings"] for name in ("a/alone", "b/sittings")]
    assert [[sitting["from_step"] for sitting in one] for one in about] == [[0], [0, 4, 9]]
    assert {sitting["processes"] for one in about for sitting in one} == {2}
    logs = [pd.read_csv(tmp_path / name / "log.csv").known_mpjpe_mm for name in ("a/alone", "b/sittings")]
    pd.testing.assert_series_equal(*logs)


def torchrun(script: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)


def test_a_log_can_be_thinned_in_parts():
    log = pd.DataFrame({"step": range(1000), "crops": range(7, 7007, 7), "seconds": np.arange(1000) / 2})
    log["error"] = np.linspace(20, 10, 1000)
    log["validation_error"] = log.error.where(log.step % 100 == 99)
    once = thinned(log)
    assert once[["step", "crops"]].iloc[-1].tolist() == [999, 7000]
    assert len(once) == 200
    assert once.validation_error.count() == 10
    twice = thinned(pd.concat([thinned(log[:800], points=160), log[800:]]))
    pd.testing.assert_frame_equal(once, twice)
    pd.testing.assert_frame_equal(thinned(log[:20]), log[:20], check_names=False)


def test_the_second_phase_begins_with_what_the_first_has_learnt(data, tmp_path):
    def error(training: Run) -> float:
        """Of the first phase's clips, one frame long, so that there is nothing to remember."""
        with torch.no_grad():
            losses = training.module.eval()(training.task.batch(0, 0, 1), CONFIG.weights_at(0))
        return float(losses.terms["known_mpjpe_mm"])

    first = run(tmp_path / "no_temporal", data, pose_clip_frames=1, network=replace(TINY, temporal_module=False))
    while first.step < CONFIG.pose_steps:
        first.one_step()
    second = run(tmp_path / "full", data, pose_clip_frames=1)
    assert (second.step, second.network.config.temporal_module) == (CONFIG.pose_steps, True)
    assert error(second) == pytest.approx(error(first), rel=0.02)


def test_a_phase_in_common_is_trained_once(data, tmp_path):
    alone = run(tmp_path / "alone" / "full", data, weights=LossWeights(pinch=0.0))
    alone.train(tmp_path / "alone" / WEIGHTS)
    run(tmp_path / "runs" / "pose", data, weights=LossWeights(temporal=0.0, pinch=0.0)).train(tmp_path / WEIGHTS)
    second = run(tmp_path / "runs" / "full", data, weights=LossWeights(pinch=0.0))
    assert second.step == CONFIG.pose_steps
    assert [sitting["from_step"] for sitting in second.sittings] == [0, CONFIG.pose_steps]
    second.train(tmp_path / "runs" / WEIGHTS)
    assert (tmp_path / "runs" / WEIGHTS).read_bytes()[-1000:] == (tmp_path / "alone" / WEIGHTS).read_bytes()[-1000:]
    curves = [pd.read_csv(folder / "full" / "curve.csv") for folder in (tmp_path / "alone", tmp_path / "runs")]
    pd.testing.assert_frame_equal(*(curve.drop(columns=["seconds", "waiting"]) for curve in curves))
    assert curves[0].crops.iloc[-1] == pd.read_csv(tmp_path / "runs/pose/curve.csv").crops.iloc[-1]
    forgetful = run(tmp_path / "runs" / "no_temporal", data, network=replace(TINY, temporal_module=False))
    assert forgetful.step == CONFIG.pose_steps, "single frames are the same to a network without memory"
    other = run(tmp_path / "runs" / "other", data, seed=1, weights=LossWeights(pinch=0.0))
    assert other.step == 0
