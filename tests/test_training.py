"""The loop: it resumes to the bit, shares what runs have in common, and refuses what it must."""

import errno
import itertools
import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from tiny_runs import CONFIG, WEIGHTS, made_up_data, run, sequence_of

from lib.checkpoints import load_network, save_network
from lib.clip_training import ClipData, ClipTraining, ClipTrainingConfig
from lib.clips import ClipSource
from lib.errors import InputError
from lib.files import read_json, sha256_of
from lib.losses import LossWeights
from lib.multistage.keypoints import KeyNet, KeyNetConfig
from lib.network import UmeTrack
from lib.rendered.shape import generic_hand
from lib.study.experiments import REFERENCE_NETWORK, configuration, read_pretrained, train_experiment
from lib.training import Run, draw_examples, fit_to_minutes, thinned


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ClipData:
    return made_up_data(tmp_path_factory.mktemp("recording"))


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


def _train(folder: Path, recording: Path, delay: float) -> None:
    torch.set_num_threads(1)
    source = ClipSource([sequence_of(recording, 6)])
    training = run(folder / "run", ClipData(source, source, "made up"), steps=40)
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
    sessions = read_json(tmp_path / "b/steps/config.json")["sessions"]
    assert [session["from_step"] for session in sessions] == list(range(CONFIG.steps))
    assert all(session["machine"]["threads"] == torch.get_num_threads() for session in sessions)


def test_what_has_ended_is_left_as_it_is(data, tmp_path):
    run(tmp_path / "run", data).train(tmp_path / WEIGHTS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run(tmp_path / "run", data).train(tmp_path / WEIGHTS)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_another_configuration_is_refused_with_the_difference(data, tmp_path):
    run(tmp_path, data)
    with pytest.raises(InputError, match=r"training\.learning_rate: 0\.002 there, 0\.5 asked for"):
        run(tmp_path, data, learning_rate=0.5)
    with pytest.raises(InputError, match="data: made up there, other asked for"):
        run(tmp_path, replace(data, fingerprint="other"))


def with_weights(folder: Path, monkeypatch, seed: int = 0) -> ClipTrainingConfig:
    """A configuration that begins as a KeyNet, whose weights are there."""
    monkeypatch.setattr("lib.study.experiments.results_folder", lambda profile: folder)
    torch.manual_seed(seed)
    keynet = KeyNet(KeyNetConfig(keypoint_input=False, blocks="residual"))
    save_network(keynet, folder / "checkpoints" / "keynet_image_only.safetensors")
    return replace(CONFIG, network=REFERENCE_NETWORK, pretrained="keynet_image_only")


def test_a_run_goes_on_although_there_are_new_settings(data, tmp_path):
    """A field that was added since has its default then and now; another value is another run."""
    run(tmp_path, data).save()
    about = read_json(tmp_path / "config.json")
    del about["training"]["weights"]["unknown"], about["training"]["pinch_copies"]
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert run(tmp_path, data).step == 0
    with pytest.raises(InputError, match=r"training\.pinch_copies: 6 there, 2 asked for"):
        run(tmp_path, data, pinch_copies=2)


def test_a_run_that_begins_with_another_network_is_bound_to_it(data, tmp_path, monkeypatch):
    def begun(name: str, seed: int) -> Run:
        config = with_weights(tmp_path, monkeypatch, seed)
        task = ClipTraining(config, data, generic_hand(), read_pretrained(config, "reference"))
        return Run(tmp_path / name, task, "cpu")

    first, same, other = (begun(*name_and_seed) for name_and_seed in (("a", 0), ("b", 0), ("c", 1)))
    of_first, of_same, of_other = (training.network.backbone.stem[1].weight for training in (first, same, other))
    assert torch.equal(of_first, of_same)
    assert not torch.equal(of_first, of_other)
    assert read_json(tmp_path / "a/config.json")["data"] == read_json(tmp_path / "c/config.json")["data"]
    with pytest.raises(InputError, match=r"holds another run.*\n  pretrained: \w+ there, \w+ asked for"):
        begun("a", 1)


def test_what_a_training_begins_with_must_have_been_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.study.experiments.results_folder", lambda profile: tmp_path / profile)
    with pytest.raises(InputError, match=r"run python -m lib train single_frames --profile smoke first"):
        read_pretrained(configuration("full", "smoke"), "smoke")
    assert read_pretrained(CONFIG, "smoke") is None


def test_what_a_training_begins_with_must_have_its_layers(tmp_path, monkeypatch):
    config = replace(with_weights(tmp_path, monkeypatch), network=replace(REFERENCE_NETWORK, widths=(8, 16, 32)))
    with pytest.raises(InputError, match=r"(?s)cannot begin as keynet_image_only: .* has shape .*, expected \(8,"):
        read_pretrained(config, "reference")
    config = replace(CONFIG, pretrained="other")
    save_network(UmeTrack(replace(TINY, skeleton_encoder=False)), tmp_path / "checkpoints" / "other.safetensors")
    with pytest.raises(InputError, match=r"(?s)cannot begin as other: .*\n  missing skeleton_encoder"):
        read_pretrained(config, "reference")
    (tmp_path / "checkpoints" / "other.safetensors").write_text("no weights")
    with pytest.raises(InputError, match=r"cannot begin as other: .* is not a \.safetensors file"):
        read_pretrained(config, "reference")


@pytest.fixture
def experiments(data, tmp_path, monkeypatch):
    """Results in a folder of their own; `full` is a tiny training, and so is the first phase that it begins with."""
    monkeypatch.setattr("lib.study.experiments.results_folder", lambda profile: tmp_path)
    brief = replace(CONFIG, steps=2, weights=LossWeights(temporal=0.0))
    monkeypatch.setattr("lib.study.experiments.FIRST_PHASES", {"single_frames": replace(brief, clip_frames=1)})
    monkeypatch.setattr("lib.study.experiments.EXPERIMENTS", {"full": replace(brief, pretrained="single_frames")})
    monkeypatch.setattr("lib.study.experiments.load_clips", lambda folder, device: data)


def test_another_seed_is_another_run(experiments, tmp_path):
    for seed in (0, 1):
        train_experiment("full", "reference", tmp_path, generic_hand(), "cpu", seed=seed)
    seeds = [read_json(tmp_path / "runs" / name / "config.json")["training"]["seed"] for name in ("full", "full_seed1")]
    assert seeds == [0, 1]
    first_phases = [read_json(tmp_path / "runs" / name / "config.json")["training"] for name in ("full", "full_seed1")]
    assert [training["pretrained"] for training in first_phases] == ["single_frames", "single_frames_seed1"]
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
    begun = Run(tmp_path / "run", replace(task, config=CONFIG.with_steps(30)), "cpu")
    assert fit_to_minutes(task, "cpu", 2.0, tmp_path / "run").steps == 30, "even if it was killed before it saved"
    begun.one_step()
    begun.save()
    assert fit_to_minutes(task, "cpu", 2.0, tmp_path / "run").steps == 30
    (tmp_path / "run" / "checkpoint.pt").unlink()  # as in a fresh clone
    assert fit_to_minutes(task, "cpu", 2.0, tmp_path / "run").steps == 60


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


def test_a_log_can_be_thinned_in_parts():
    log = pd.DataFrame({"step": range(1000), "crops": range(7, 7007, 7), "seconds": np.arange(1000) / 2})
    log["error"] = np.linspace(20, 10, 1000)
    log["validation_error"] = log.error.where(log.step % 100 == 99)
    once = thinned(log)
    assert once[["step", "crops"]].iloc[-1].tolist() == [999, 7000]
    assert len(once) == 200
    assert once.step[once.validation_error.notna()].tolist() == list(range(99, 1000, 100))
    twice = thinned(pd.concat([thinned(log[:800], points=160), log[800:]]))
    pd.testing.assert_frame_equal(once, twice)
    pd.testing.assert_frame_equal(thinned(log[:20]), log[:20], check_names=False)


def test_a_first_phase_is_trained_once(experiments, tmp_path):
    """With the experiment that needs it first; for others it is there."""
    train_experiment("full", "reference", tmp_path, generic_hand(), "cpu")
    weights = tmp_path / "checkpoints" / "single_frames.safetensors"
    before = weights.read_bytes(), weights.stat().st_mtime_ns
    train_experiment("full", "reference", tmp_path, generic_hand(), "cpu", settings={"hands": "4"}, name="mine")
    assert (weights.read_bytes(), weights.stat().st_mtime_ns) == before
    about = read_json(tmp_path / "runs" / "mine" / "config.json")
    assert about["pretrained"] == sha256_of(weights)
    assert [session["from_step"] for session in about["sessions"]] == [0]


def test_a_first_phase_that_was_stopped_goes_on(experiments, tmp_path, data):
    config = configuration("single_frames", "reference")
    stopped = Run(tmp_path / "runs" / "single_frames", ClipTraining(config, data, generic_hand()), "cpu")
    stopped.one_step()
    stopped.save()
    train_experiment("full", "reference", tmp_path, generic_hand(), "cpu")
    sessions = read_json(tmp_path / "runs" / "single_frames" / "config.json")["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 1]
