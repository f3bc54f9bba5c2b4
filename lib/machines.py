"""What code runs on: the precision of a training, several processes, the name of the machine.

Precision and compilation change results by rounding only. So they belong to the machine, not to what is trained:
weights, shared phases and rows of a search are found whatever they were computed with.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, partialmethod
from pathlib import Path
from typing import Literal, TypeVar, get_args

import cv2
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lib.errors import InputError

Precision = Literal["float32", "bfloat16"]
Measured = TypeVar("Measured")
Name, Result = TypeVar("Name"), TypeVar("Result")
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@cache
def native_precision(device_type: str) -> Precision:
    """bfloat16 where the processor or GPU multiplies it natively, else float32.

    A processor without it emulates it, five times slower than float32. Where the processor does not say that it lacks
    it, a few convolutions are timed: a virtual machine or `ONEDNN_MAX_CPU_ISA` may keep kernels from using what it has.
    """
    if device_type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device_type != "cpu" or (_cpu_flags() and not _cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}):
        return "float32"
    return "bfloat16" if _convolution_seconds(torch.bfloat16) < _convolution_seconds(torch.float32) else "float32"


def _cpu_flags() -> set[str]:
    """The instructions of the processor; empty where the system does not list them."""
    return {flag for line in _cpu_info("flags") + _cpu_info("Features") for flag in line.split()}


@torch.no_grad()
def _convolution_seconds(dtype: torch.dtype) -> float:
    """The shortest of some runs of a convolution as the backbones have them."""
    layer = nn.Conv2d(64, 64, 3, padding=1).to(dtype=dtype, memory_format=torch.channels_last)
    images = torch.zeros(16, 64, 24, 24, dtype=dtype).to(memory_format=torch.channels_last)
    seconds = []
    for _ in range(6):  # the first prepares the kernel
        start = time.perf_counter()
        layer(images)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def accelerate(network: nn.Module, device: torch.device, precision: Precision, compiled: bool) -> None:
    """Run a network's `costly_layers` in the precision asked for, and compiled if asked for. Weights stay float32.

    Raises InputError if compilation is asked for and no compiler is there: of C++, for a GPU of C.
    """
    if compiled:
        compilers = ("c++", "g++", "clang++") if device.type == "cpu" else ("cc", "gcc", "clang")
        if not any(shutil.which(name) for name in compilers):
            raise InputError(
                f"compiling the network needs one of {', '.join(compilers)}: install it, or train without --compile"
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


def in_processes(jobs: Mapping[Name, Callable[[], Result]], workers: int, title: str, unit: str) -> dict[Name, Result]:
    """The results of named jobs, begun in their order in processes of one thread each, with a progress bar.

    The first failure stops what has not begun. Raises InputError if a process dies.
    """
    with ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn"), start_worker) as pool:
        pending = {pool.submit(job): name for name, job in jobs.items()}
        try:
            done = tqdm(as_completed(pending), title, len(pending), unit=unit)
            results = {pending[job]: job.result() for job in done}
        except BrokenProcessPool as error:
            raise InputError(f"{title}: a process has died; if memory ran out, use fewer --workers") from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {name: results[name] for name in jobs}


def without_result(job: Callable[[], object]) -> None:
    """What some jobs leave is in files; what they return need not travel between processes."""
    job()


def start_worker() -> None:
    """Keep a process to one thread and its progress to itself; an interrupt is the parent's business."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def distribute(learner: nn.Module) -> nn.Module:
    """One gradient from several processes. No synchronised batch norm, because a process without a hand in two views
    skips layers in which the others would wait for it."""
    return DistributedDataParallel(learner, find_unused_parameters=True)


def agreed(measured: Measured) -> Measured:
    """What the first process measured, in all of them."""
    values = [measured]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def machine(device: torch.device) -> dict[str, str | int]:
    """What a run ran on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "instructions": instruction_set(device),
        "torch": str(torch.__version__),  # which is no plain string
        "python": platform.python_version(),
    }


def instruction_set(device: torch.device) -> str:
    """What the kernels are chosen by: of a processor AVX2 or AVX512, say, of a GPU sm_90."""
    if device.type == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return torch.backends.cpu.get_cpu_capability()


def processor(device: torch.device) -> str:
    """What times, and whatever depends on rounding, were measured on."""
    about = machine(device)
    return f"{about['device']}, {about['instructions']}"


def _cpu_name() -> str:
    """The model of the processor where the system says so, else its architecture."""
    names = _cpu_info("model name")
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_info(field: str) -> list[str]:
    """The values of a field of Linux's /proc/cpuinfo, one per core; none on other systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return [value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == field]


CODE = Path(__file__).parent
"""The folder of the code that runs."""


def commit() -> str:
    """The commit of the code that runs, `-dirty` if it differs from that; 'unknown' without git or a checkout."""

    def git(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(CODE), *command], check=False, capture_output=True, text=True)

    if shutil.which("git") is None or (head := git("rev-parse", "--short=12", "HEAD")).returncode:
        return "unknown"
    return head.stdout.strip() + ("-dirty" if git("status", "--porcelain", ".").stdout else "")
