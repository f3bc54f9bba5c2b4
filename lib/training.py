"""The training loop (§5.1), whatever is trained: bit-exact resume, one process or several.

What is trained, on which batches and towards what, is a `Task`. A run is a folder: `config.json` (what is trained, on
what, and for every session by which code, on which machine, how, from which step), `log.csv` (a row per step),
`curve.csv` (the same, thinned), `checkpoint.pt` (weights, optimiser, position). The weights of a finished run go to a
file of their own, with which another training may begin.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from lib.checkpoints import save_network
from lib.errors import InputError
from lib.files import read_json, write_atomically
from lib.machines import Precision, accelerate, agreed, commit, distribute, machine, native_precision
from lib.optimizers import Optimizer, OptimizerName


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and how fast a run learns; a task adds the rest of what decides how it ends, besides data and machine.

    The learning rate warms up, then falls to zero along half a cosine or stays. Source: §5.1. Deviation: the schedule,
    which the paper leaves open, a rate of 2e-3 instead of 2e-4, gradients cut to a norm, steps instead of epochs.
    """

    steps: int = 3_600
    optimizer: OptimizerName = "adam"
    learning_rate: float = 2e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 200
    gradient_norm: float = 5.0
    seed: int = 0
    validation_every: int = 500

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        warm = self.learning_rate * min(1.0, (step + 1) / self.warmup_steps)
        if self.schedule == "constant":
            return warm
        progress = torch.tensor(step / self.steps).clamp(max=1.0)
        return warm * float(0.5 + 0.5 * torch.cos(torch.pi * progress))

    def with_steps(self, steps: int) -> TrainingConfig:
        """The same training in another number of steps, of which a tenth at most warms up."""
        return replace(self, steps=steps, warmup_steps=min(self.warmup_steps, max(1, steps // 10)))


@dataclass(frozen=True)
class Losses:
    """What is minimised, and what else a step is judged by."""

    total: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]]


class Task(ABC):
    """What a run learns. A description without state: all that changes while it learns belongs to the run.

    A batch is a dataclass of tensors whose length is the number of pictures in it.
    """

    config: TrainingConfig
    data: Any
    """What it learns from: `train`, `validation`, which is of validation users, and the `fingerprint` of both."""
    progress_metric: str
    """The term that the progress bar shows."""

    @property
    def sources(self) -> Mapping[str, str]:
        """Fingerprints of what it learns from."""
        return {"data": self.data.fingerprint}

    @abstractmethod
    def learner(self, device: torch.device) -> nn.Module:
        """A new module that computes the losses. Its `network` is saved; `network.costly_layers` may run in bfloat16,
        and Muon leaves `network.output_layers` to Adam."""

    def begin(self, learner: nn.Module) -> None:  # noqa: B027
        """Put what the training begins with into a new learner: here the random weights that it has."""

    @abstractmethod
    def batch(self, step: int, rank: int, processes: int) -> Any:
        """The share of a step's batch that falls to one of the processes: a function of its arguments alone."""

    @abstractmethod
    def losses(self, learner: nn.Module, batch: Any) -> Losses:
        """What `learner` makes of a batch."""

    @abstractmethod
    def validate(self, learner: nn.Module, source: Any) -> Losses:
        """Errors on examples of `data.train` or `data.validation`: the same ones every time, without augmentation."""


class Run:
    """A training run in its folder. `train` goes on from the last checkpoint, if there is one.

    A new run computes in the `precision` asked for (default: what the device multiplies natively), and goes on in it.
    Raises InputError if the folder holds a run with another configuration, data or precision; the message says what
    differs.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        device: torch.device | str,
        precision: Precision | None = None,
        compiled: bool = False,
    ):
        self.folder, self.task, self.config, self.device = folder, task, task.config, torch.device(device)
        self.precision, self.compiled = precision or agreed(native_precision(self.device.type)), compiled
        self.sources = dict(task.sources)
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.step, self.seconds, self.log, self.sessions = 0, 0.0, [], []
        if self.processes > 1:
            task.batch(self.config.steps - 1, self.rank, self.processes)  # better refused now than after hours
        self._claim_folder()
        self._resume(asked=precision)
        if self.step < self.config.steps:
            self._start_session()

    def train(self, weights: Path, save_seconds: float = 60.0) -> nn.Module:
        """Train to the end and write the weights in half precision; the checkpoint is renewed every `save_seconds`.

        What has ended is left as it is.
        """
        config = self.config
        if self.step == config.steps and weights.exists():
            return self.network  # written anew they would be other bytes
        self.save()
        last_saved = time.monotonic()
        quiet = {"disable": True} if self.rank else {}  # else as TQDM_DISABLE says
        with tqdm(total=config.steps, initial=self.step, desc=self.folder.name, unit="step", **quiet) as progress:
            while self.step < config.steps:
                row = self.one_step()
                progress.update()
                progress.set_postfix(
                    {self.task.progress_metric: f"{row[self.task.progress_metric]:.3g}"}, refresh=False
                )
                if time.monotonic() - last_saved > save_seconds:
                    self.save()
                    last_saved = time.monotonic()
        self.save()
        self._save_weights(weights)
        return self.network

    def one_step(self) -> dict[str, int | float]:
        """Train one step and return its row of the log: crops so far, losses, errors, seconds so far, seconds spent on
        the batch."""
        started = time.perf_counter()
        batch = self.task.batch(self.step, self.rank, self.processes)
        waited = time.perf_counter() - started
        self.learner.train()
        losses = self.task.losses(self.learner, batch)
        if not bool(torch.isfinite(losses.total)):
            raise InputError(self._keep_bad_batch(batch, losses.terms))
        self.network.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_norm)
        if not bool(torch.isfinite(norm)):
            raise InputError(self._keep_bad_batch(batch, losses.terms | {"gradient_norm": norm}))
        self.optimizer.step(self.config.learning_rate_at(self.step))
        crops = len(batch) * self.processes + (self.log[-1]["crops"] if self.log else 0)
        row = {"step": self.step, "crops": crops, "gradient_norm": float(norm)}
        row |= {name: float(value.detach()) for name, value in losses.terms.items()}
        self.step += 1
        if self.step % self.config.validation_every == 0 or self.step == self.config.steps:
            row |= self.validate()
        self.seconds += time.perf_counter() - started
        row |= {"seconds": self.seconds, "waiting": waited}
        self.log.append(row)
        return row

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Errors on users it learns from and, called validation, on others; how far they are apart is what more data
        could bring."""
        sources = {"train": self.task.data.train, "validation": self.task.data.validation}
        errors = {name: self.task.validate(self.module.eval(), of) for name, of in sources.items()}
        return {f"{users}_{name}": float(value) for users, of in errors.items() for name, value in of.terms.items()}

    def save(self) -> None:
        """Write checkpoint, log and curve, each whole or not at all."""
        if self.rank > 0:
            return
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
            "sessions": self.sessions,
        }
        whole = BytesIO()  # torch itself would not say that the disk is full
        torch.save(state, whole)
        write_atomically(self.folder / "checkpoint.pt", lambda path: path.write_bytes(whole.getbuffer()))
        if not self.log:
            return
        log = pd.DataFrame(self.log)
        write_atomically(self.folder / "log.csv", lambda path: log.to_csv(path, index=False))
        write_atomically(
            self.folder / "curve.csv", lambda path: thinned(log).to_csv(path, index=False, float_format="%.6g")
        )

    def _save_weights(self, path: Path) -> None:
        """Write the weights in half precision, with all that tells how they came about."""
        if self.rank == 0:
            about = {"run": (self.folder / "config.json").read_text(), "seconds": f"{self.seconds:.0f}"}
            save_network(self.network, path, about | {"crops": f"{self.log[-1]['crops']}"}, half=True)

    def _set_up(self, learner: nn.Module) -> None:
        """Train this from now on."""
        self.module, self.network = learner, learner.network
        if not self.network.costly_layers:
            self.precision = "float32"  # nothing of it may run in another
        accelerate(self.network, self.device, self.precision, self.compiled)
        # After what lays weights out anew in memory.
        self.optimizer = Optimizer(self.config.optimizer, self.network, self.precision)
        self.learner = distribute(self.module) if self.processes > 1 else self.module

    def _resume(self, asked: Precision | None) -> None:
        """Go on from the last checkpoint, or begin."""
        path = self.folder / "checkpoint.pt"
        torch.manual_seed(self.config.seed)
        learner = self.task.learner(self.device)
        if path.exists():
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.precision = state["sessions"][-1]["precision"]
            if asked not in (None, self.precision):
                raise InputError(
                    f"{self.folder} was begun in {self.precision}: "
                    f"go on without --precision {asked}, or choose another folder"
                )
            self._set_up(learner)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
            self.sessions = state["sessions"]
        else:
            self.task.begin(learner)
            self._set_up(learner)

    def _claim_folder(self) -> None:
        """Write down what the run is, or check that the folder holds the same one."""
        path = self.folder / "config.json"
        mine = json.loads(json.dumps({"training": asdict(self.config), **self.sources}))
        if path.exists():
            theirs = read_json(path)
            begun = {name: theirs.get(name) for name in mine}
            begun["training"] = _with_defaults(begun["training"], asdict(type(self.config)()))
            changed = _differences(json.loads(json.dumps(begun)), mine)
            if changed:
                listing = "\n  ".join(changed)
                raise InputError(f"{self.folder} holds another run; choose another folder or remove it:\n  {listing}")
        elif self.rank == 0:
            write_atomically(path, lambda temporary: temporary.write_text(json.dumps(mine, indent=1)))

    def _start_session(self) -> None:
        """Write down who goes on with the run from here."""
        session = {"from_step": self.step, "commit": commit(), "machine": machine(self.device)}
        session |= {"precision": self.precision, "compiled": self.compiled, "processes": self.processes}
        self.sessions.append(session)
        if self.rank == 0:
            path = self.folder / "config.json"
            about = read_json(path) | {"sessions": self.sessions}
            write_atomically(path, lambda temporary: temporary.write_text(json.dumps(about, indent=1)))

    def _keep_bad_batch(self, batch: Any, terms: Mapping[str, Tensor]) -> str:
        path = self.folder / f"bad_batch_{self.step}.pt"
        write_atomically(path, lambda temporary: torch.save(asdict(batch), temporary))
        values = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in terms.items())
        return f"loss or gradient of step {self.step} is not finite ({values}); its batch is kept in {path}"


def fit_to_minutes(
    task: Task,
    device: torch.device | str,
    minutes: float,
    folder: Path,
    precision: Precision | None = None,
    compiled: bool = False,
) -> TrainingConfig:
    """The task's configuration with as many steps as fit into `minutes`; a run that has begun keeps its.

    The speed is measured on a few steps of a run that is thrown away.
    """
    begun = (folder / "config.json").exists() and not (folder / "curve.csv").exists()  # perhaps killed at once
    if begun or (folder / "checkpoint.pt").exists():
        return task.config.with_steps(read_json(folder / "config.json")["training"]["steps"])
    with TemporaryDirectory() as scratch:
        run = Run(Path(scratch, "run"), task, device, precision, compiled)
        seconds = [run.one_step()["seconds"] for _ in range(15)]
    steps = max(2, int(60 * minutes / ((seconds[-1] - seconds[4]) / 10)))
    return task.config.with_steps(agreed(steps))


def draw_examples(
    examples: Int[Tensor, "examples *row"], count: int, seed: int, step: int, rank: int = 0, processes: int = 1
) -> tuple[Int[Tensor, "chosen *row"], torch.Generator]:
    """One process's share of the examples of a step, and the generator that draws their augmentation.

    Functions of the arguments alone. Raises InputError if the `count` examples cannot be shared evenly.
    """
    if count % processes:
        raise InputError(f"a batch of {count} cannot be shared evenly by {processes} processes")
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    chosen = examples[torch.randint(len(examples), (count,), generator=generator)]
    share = count // processes
    generator.manual_seed(generator.initial_seed() + ((rank + 1) << 24))  # no step of the run has it
    return chosen[rank * share : (rank + 1) * share], generator


def thinned(log: pd.DataFrame, points: int = 200) -> pd.DataFrame:
    """The log of a run in some `points` rows: means over steps, with the step, crops and seconds at which they end.

    One ends at each validation, which so stands where it was made. Part of a log may be thinned already, by earlier
    versions elsewhere.
    """
    if log.empty:
        return log
    steps = int(log.step.iloc[-1]) + 1
    judged = log.filter(like="validation_").notna().any(axis=1)
    part = log.step * min(points, steps) // steps + judged.shift(fill_value=False).cumsum()
    ends = log.groupby(part)[["step", "crops", "seconds"]].last()
    return log.groupby(part).mean().assign(**ends)


def _with_defaults(stored: Mapping, defaults: Mapping) -> dict:
    """A stored configuration, and the defaults of fields that there were not when it was stored."""
    parts = {
        name: _with_defaults(stored[name], value)
        for name, value in defaults.items()
        if isinstance(value, Mapping) and isinstance(stored.get(name), Mapping)
    }
    return {**defaults, **stored, **parts}


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
