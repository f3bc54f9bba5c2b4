"""What a training runs on: its precision, several processes, and the name of the machine."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lib.errors import InputError

Precision = Literal["float32", "bfloat16"]


def accelerate(network: nn.Module, device: torch.device, precision: Precision, compiled: bool) -> None:
    """Run a network's `costly_layers` in the precision asked for, and compiled if asked for. Weights stay float32.

    Raises InputError if compilation is asked for and no compiler is there: of C++, for a GPU of C.
    """
    if compiled:
        compilers = ("c++", "g++", "clang++") if device.type == "cpu" else ("cc", "gcc", "clang")
        if not any(shutil.which(name) for name in compilers):
            raise InputError(
                f"compiling the network needs one of {', '.join(compilers)}: install it, or train with --no-compile"
            )
        for layers in network.costly_layers:
            layers.compile(dynamic=True)
    if precision == "bfloat16":
        network.to(memory_format=torch.channels_last)
        for layers in network.costly_layers:
            layers.forward = torch.autocast(device.type, torch.bfloat16)(layers.forward)


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


def distribute(learner: nn.Module) -> nn.Module:
    """One gradient from several processes. Batch normalisations stay apart: a process without a hand in two views
    passes by layers in which the others would wait for it."""
    return DistributedDataParallel(learner, find_unused_parameters=True)


def machine(device: torch.device) -> dict[str, str | int]:
    """What a run ran on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),  # which is no plain string
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    """The model of the processor where the system says so, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
