"""The training loop (§3.4, §5.1): two phases, resumable to the bit, in one process or several.

A run is a folder: `config.json` (what is trained, on what, by which code, on which machine), `log.csv` (a row per
step), `checkpoint.pt` (weights, optimiser, position). The weights of a finished run go to a file of their own.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pandas as pd
import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lib.checkpoints import save_network
from lib.clips import NO_AUGMENTATION, Augmentation, ClipBatch, ClipSource
from lib.errors import InputError
from lib.files import read_json, write_atomically
from lib.hands import HandModel
from lib.losses import LossWeights
from lib.network import NetworkConfig, UmeTrack
from lib.objective import ClipLearner
from lib.results import commit


@dataclass(frozen=True)
class TrainingConfig:
    """All that decides what a run ends with, besides the data and the machine.

    The first `pose_steps` train with L_pose alone, the rest with all terms of `weights`. The learning rate warms up,
    then falls to zero along half a cosine. Source: §5.1. Deviation: schedule, clip length and batch, which the paper
    leaves open or chooses for nine GPUs.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    augmentation: Augmentation = field(default_factory=Augmentation)
    pose_steps: int = 4000
    steps: int = 8000
    clips: int = 16
    clip_frames: int = 8
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    gradient_norm: float = 5.0
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    compiled: bool = False
    validation_every: int = 500
    validation_clips: int = 96

    def weights_at(self, step: int) -> LossWeights:
        """The loss weights of a step: no temporal and no pinch term in the first phase."""
        return replace(self.weights, temporal=0.0, pinch=0.0) if step < self.pose_steps else self.weights

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        progress = torch.tensor(step / self.steps).clamp(max=1.0)
        return (
            self.learning_rate
            * min(1.0, (step + 1) / self.warmup_steps)
            * float(0.5 + 0.5 * torch.cos(torch.pi * progress))
        )


@dataclass(frozen=True)
class Data:
    """Clips to train on, clips of held-out users to watch the training with, and the fingerprint of both."""

    train: ClipSource
    validation: ClipSource
    train_clips: Int[Tensor, "clips 2"]
    validation_clips: Int[Tensor, "clips 2"]
    fingerprint: str


class Run:
    """A training run in its folder. `train` goes on from the last checkpoint, if there is one.

    Raises InputError if the folder holds a run with another configuration or other data, whose difference it prints.
    """

    def __init__(
        self, folder: Path, config: TrainingConfig, data: Data, generic_hand: HandModel, device: torch.device | str
    ):
        self.folder, self.config, self.data, self.device = folder, config, data, torch.device(device)
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if config.clips % self.processes:
            raise InputError(f"a batch of {config.clips} clips cannot be shared evenly by {self.processes} processes")
        torch.manual_seed(config.seed)
        self.network = UmeTrack(config.network).to(device)
        learner = ClipLearner(self.network, generic_hand.to(device, torch.float32))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.step, self.seconds, self.log = 0, 0.0, []
        self._claim_folder()
        self._resume()
        accelerate(self.network, self.device, config)
        self.learner = _distribute(learner, self.device) if self.processes > 1 else learner

    def train(self, weights: Path, save_seconds: float = 60.0) -> UmeTrack:
        """Train to the end and write the weights in half precision; the checkpoint is renewed every `save_seconds`."""
        config = self.config
        last_saved = time.monotonic()
        quiet = {"disable": True} if self.rank else {}  # else as TQDM_DISABLE says
        with tqdm(total=config.steps, initial=self.step, desc=self.folder.name, unit="step", **quiet) as progress:
            while self.step < config.steps:
                row = self.one_step()
                progress.update()
                progress.set_postfix(mpjpe_mm=f"{row['known_mpjpe_mm']:.1f}", refresh=False)
                if time.monotonic() - last_saved > save_seconds:
                    self.save()
                    last_saved = time.monotonic()
        self.save()
        if self.rank == 0:
            about = {"run": (self.folder / "config.json").read_text(), "seconds": f"{self.seconds:.0f}"}
            save_network(self.network.half(), weights, about)
        return self.network.float()

    def one_step(self) -> dict[str, int | float]:
        """Train one step and return its row of the log: losses, errors, seconds so far, seconds spent on the batch."""
        started = time.perf_counter()
        batch = self._batch()
        waited = time.perf_counter() - started
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(self.step)
        self.learner.train()
        losses = self.learner(batch, self.config.weights_at(self.step))
        if not bool(torch.isfinite(losses.total)):
            raise InputError(self._keep_bad_batch(batch, losses.terms))
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_norm)
        self.optimizer.step()
        crops = len(batch.crops.two_views) + int(batch.crops.two_views.sum())
        row = {"step": self.step, "crops": crops, "gradient_norm": float(norm)}
        row |= {name: float(value.detach()) for name, value in losses.terms.items()}
        self.step += 1
        if self.step % self.config.validation_every == 0 or self.step == self.config.steps:
            row |= self.validate()
        self.seconds += time.perf_counter() - started
        row |= {"seconds": self.seconds, "waiting": waited}
        self.log.append(row)
        return row

    def _batch(self) -> ClipBatch:
        """This process's share of the step's batch."""
        config = self.config
        clips, generator = draw_clips(self.data.train_clips, config.clips, config.seed, self.step)
        share = config.clips // self.processes
        generator.manual_seed(generator.initial_seed() + self.rank)
        mine = clips[self.rank * share : (self.rank + 1) * share]
        return self.data.train.batch(mine, config.clip_frames, config.augmentation, generator)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Errors on held-out users, on the same clips every time, without augmentation."""
        config, learner = self.config, ClipLearner(self.network.eval(), self._generic_hand())
        clips, generator = draw_clips(self.data.validation_clips, config.validation_clips, seed=0, step=0)
        batch = self.data.validation.batch(clips, config.clip_frames, NO_AUGMENTATION, generator)
        terms = learner(batch, self.config.weights).terms
        return {f"validation_{name}": float(value) for name, value in terms.items()}

    def _generic_hand(self) -> HandModel:
        learner = self.learner.module if self.processes > 1 else self.learner
        return learner.generic_hand

    def save(self) -> None:
        """Write checkpoint and log, each whole or not at all."""
        if self.rank > 0:
            return
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
        }
        write_atomically(self.folder / "checkpoint.pt", lambda path: torch.save(state, path))
        write_atomically(self.folder / "log.csv", lambda path: pd.DataFrame(self.log).to_csv(path, index=False))

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]

    def _claim_folder(self) -> None:
        """Write down what the run is, or check that the folder holds the same one."""
        path = self.folder / "config.json"
        mine = json.loads(json.dumps({"training": asdict(self.config), "data": self.data.fingerprint}))
        if path.exists():
            theirs = read_json(path)
            changed = _differences({k: theirs.get(k) for k in mine}, mine)
            if changed:
                listing = "\n  ".join(changed)
                raise InputError(f"{self.folder} holds another run; choose another folder or remove it:\n  {listing}")
        elif self.rank == 0:
            about = {"commit": commit(), "machine": machine(self.device), "processes": self.processes}
            write_atomically(path, lambda temporary: temporary.write_text(json.dumps(mine | about, indent=1)))

    def _keep_bad_batch(self, batch: ClipBatch, terms: Mapping[str, Tensor]) -> str:
        path = self.folder / f"bad_batch_{self.step}.pt"
        content = {
            "crops": vars(batch.crops),
            "joint_angles": batch.joint_angles,
            "world_from_wrist": batch.world_from_wrist,
        }
        write_atomically(path, lambda temporary: torch.save(content, temporary))
        values = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in terms.items())
        return f"the loss of step {self.step} is not finite ({values}); its batch is kept in {path}"


def fit_to_minutes(
    config: TrainingConfig,
    data: Data,
    generic_hand: HandModel,
    device: torch.device | str,
    minutes: float,
    folder: Path,
) -> TrainingConfig:
    """The configuration with as many steps as fit into `minutes`, phases in proportion; a run that has begun keeps its.

    The speed is measured on a few steps of a run that is thrown away.
    """
    begun = folder / "config.json"
    if begun.exists():
        steps = read_json(begun)["training"]["steps"]
    else:
        with TemporaryDirectory() as scratch:
            run = Run(Path(scratch), config, data, generic_hand, device)
            seconds = [run.one_step()["seconds"] for _ in range(15)]
        steps = max(2, int(60 * minutes / ((seconds[-1] - seconds[4]) / 10)))
    return replace(config, steps=steps, pose_steps=steps * config.pose_steps // config.steps)


def draw_clips(
    clips: Int[Tensor, "clips 2"], count: int, seed: int, step: int
) -> tuple[Int[Tensor, "chosen 2"], torch.Generator]:
    """The clips of a step, and the generator that goes on to draw their augmentation: functions of (seed, step)."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    return clips[torch.randint(len(clips), (count,), generator=generator)], generator


def accelerate(network: UmeTrack, device: torch.device, config: TrainingConfig) -> None:
    """Run the backbone, where the time goes, in the precision asked for, and compiled. The weights stay float32.

    Raises InputError if compilation is asked for and no C++ compiler is there.
    """
    backbone = network.backbone
    if config.compiled:
        if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
            raise InputError(
                "compiling the network needs a C++ compiler (g++): install one, or train with --no-compile"
            )
        backbone.compile(dynamic=True)
    if config.precision == "bfloat16":
        backbone.forward = torch.autocast(device.type, torch.bfloat16)(backbone.forward)


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, if it did; each takes its own GPU."""
    if "RANK" not in os.environ:
        yield
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
        dist.barrier()  # a process that left first would take the connections of the others with it
    finally:
        dist.destroy_process_group()


def _distribute(learner: ClipLearner, device: torch.device) -> nn.Module:
    """One gradient from several processes; on GPUs one batch normalisation, too."""
    if device.type == "cuda":
        learner = nn.SyncBatchNorm.convert_sync_batchnorm(learner)
    return DistributedDataParallel(learner, find_unused_parameters=True)


def machine(device: torch.device) -> dict[str, str | int]:
    """What a run ran on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _differences(theirs: Mapping, mine: Mapping, prefix: str = "") -> list[str]:
    """One line per setting that differs."""
    lines = []
    for name in sorted({*theirs, *mine}):
        before, now = theirs.get(name), mine.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            lines += _differences(before, now, f"{prefix}{name}.")
        elif before != now:
            lines.append(f"{prefix}{name}: {before} there, {now} asked for")
    return lines
