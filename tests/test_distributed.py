"""Several processes: they share batches, numbers and gradients as one process would have them."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from conftest import tiny_network
from tiny_runs import made_up_data, run, sequence_of
from torch.nn.parallel import DistributedDataParallel

from lib.checkpoints import load_network
from lib.clip_training import ClipData, ClipLearner
from lib.clips import NO_AUGMENTATION, ClipSource
from lib.errors import InputError
from lib.files import read_json
from lib.losses import LossWeights
from lib.rendered.shape import generic_hand
from lib.training import draw_examples


def test_processes_draw_other_numbers_than_each_other_at_any_step():
    examples = torch.arange(100)
    drawn = [
        torch.rand(4, generator=draw_examples(examples, 4, seed=0, step=step, rank=rank, processes=2)[1]).tolist()
        for step in range(4)
        for rank in range(2)
    ]
    assert len({tuple(numbers) for numbers in drawn}) == 8


def test_processes_share_a_batch_evenly():
    examples = torch.arange(100)
    whole, _ = draw_examples(examples, 6, seed=1, step=2)
    shares = [draw_examples(examples, 6, seed=1, step=2, rank=rank, processes=3) for rank in range(3)]
    assert torch.equal(torch.cat([share for share, _ in shares]), whole)
    assert len({float(torch.rand(1, generator=generator)) for _, generator in shares}) == 3
    with pytest.raises(InputError, match="a batch of 6 cannot be shared evenly by 4 processes"):
        draw_examples(examples, 6, seed=1, step=2, processes=4)


def test_a_share_that_cannot_be_even_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.training.dist.is_initialized", lambda: True)
    monkeypatch.setattr("lib.training.dist.get_rank", lambda: 0)
    monkeypatch.setattr("lib.training.dist.get_world_size", lambda: 4)
    with pytest.raises(InputError, match="a batch of 2 cannot be shared evenly by 4 processes"):
        run(tmp_path / "run", made_up_data(tmp_path))
    assert not (tmp_path / "run").exists()


_TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from pathlib import Path
sys.path[:0] = [{tests!r}]
from lib.machines import process_group
from test_distributed import gradients_of_share
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


_IN_SESSIONS = """
import sys, torch, torch.distributed as dist
from pathlib import Path
sys.path[:0] = [{tests!r}]
from lib.machines import process_group
from test_distributed import train_with_others
torch.set_num_threads(1)
with process_group("cpu"):
    train_with_others(Path({folder!r}), dist.get_rank())
"""


def train_with_others(folder: Path, rank: int) -> None:
    """Once at a stretch and once in three sessions."""
    recording = folder / f"recording_{rank}"
    recording.mkdir()
    source = ClipSource([sequence_of(recording, 6)])
    data = ClipData(source, source, "made up")
    run(folder / "a/alone", data, optimizer="muon").train(folder / "alone.safetensors")
    for step in (4, 9):
        training = run(folder / "b/sessions", data, optimizer="muon")
        while training.step < step:
            training.one_step()
        training.save()
        dist.barrier()
    run(folder / "b/sessions", data, optimizer="muon").train(folder / "sessions.safetensors")


def test_two_processes_train_and_go_on_where_they_were(tmp_path):
    script = tmp_path / "sessions.py"
    script.write_text(_IN_SESSIONS.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    finished = torchrun(script)
    assert finished.returncode == 0, finished.stderr
    alone, sessions = (load_network(tmp_path / f"{name}.safetensors").state_dict() for name in ("alone", "sessions"))
    assert all(torch.equal(value, sessions[name]) for name, value in alone.items())
    about = [read_json(tmp_path / name / "config.json")["sessions"] for name in ("a/alone", "b/sessions")]
    assert [[session["from_step"] for session in one] for one in about] == [[0], [0, 4, 9]]
    assert {session["processes"] for one in about for session in one} == {2}
    logs = [pd.read_csv(tmp_path / name / "log.csv").known_mpjpe_mm for name in ("a/alone", "b/sessions")]
    pd.testing.assert_series_equal(*logs)


def torchrun(script: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
