"""Precision and threads: what is chosen where nobody says otherwise."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny_runs import made_up_data, run

from lib import cores, machines
from lib.crop_cache import ViewSequence
from lib.errors import InputError
from lib.files import read_json, sha256_of
from lib.multistage.detection_training import DetectionTraining, DetectionTrainingConfig, ViewData, ViewSource
from lib.study.experiments import RELEASED_RUNS, configuration, experiment_and_seed, trained_weights_path
from lib.study.results import results_folder
from lib.study.settings import leaves
from lib.training import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_up_data(tmp_path_factory.mktemp("recording"))


@pytest.mark.parametrize(
    ("flags", "seconds", "expected"),
    [
        ({"avx2"}, {torch.bfloat16: 1.0, torch.float32: 2.0}, "float32"),  # emulated, whatever a measurement says
        ({"avx2", "avx512_bf16"}, {torch.bfloat16: 1.0, torch.float32: 2.0}, "bfloat16"),
        ({"avx2", "avx512_bf16"}, {torch.bfloat16: 5.0, torch.float32: 2.0}, "float32"),  # kernels do not use it
        (set(), {torch.bfloat16: 1.0, torch.float32: 2.0}, "bfloat16"),  # the system does not say
        (set(), {torch.bfloat16: 5.0, torch.float32: 2.0}, "float32"),
    ],
)
def test_a_processor_trains_in_what_it_multiplies_natively(monkeypatch, flags, seconds, expected):
    monkeypatch.setattr(machines, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(machines, "_convolution_seconds", seconds.get)
    assert machines.native_precision.__wrapped__("cpu") == expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_trains_in_what_it_multiplies_natively(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert machines.native_precision.__wrapped__("cuda") == expected


def test_the_measured_fraction_of_a_second():
    seconds = machines._convolution_seconds(torch.float32)
    assert 0 < seconds < 1


@pytest.mark.parametrize("native", ["float32", "bfloat16"])
def test_a_run_takes_the_native_precision_and_records_it(data, tmp_path, monkeypatch, native):
    monkeypatch.setattr("lib.training.native_precision", lambda device_type: native)
    training = run(tmp_path / "run", data, precision=None)
    convolution = training.network.backbone(torch.zeros(1, 1, 96, 96))
    assert convolution.dtype == getattr(torch, native)
    (session,) = read_json(tmp_path / "run" / "config.json")["sessions"]
    assert (session["precision"], session["machine"]["instructions"]) == (
        native,
        machines.instruction_set(torch.device("cpu")),
    )


def test_a_run_goes_on_in_the_precision_it_began_with(data, tmp_path, monkeypatch):
    run(tmp_path / "run", data, precision="bfloat16").save()
    monkeypatch.setattr("lib.training.native_precision", lambda device_type: "float32")
    assert run(tmp_path / "run", data, precision=None).precision == "bfloat16"
    with pytest.raises(InputError, match="was begun in bfloat16: go on without --precision float32"):
        run(tmp_path / "run", data, precision="float32")


def test_a_network_that_cannot_run_in_bfloat16_is_recorded_in_float32(tmp_path):
    rng = np.random.default_rng(0)
    images, circles = rng.integers(0, 256, (4, 48, 64), dtype=np.uint8), rng.uniform(5, 40, (4, 2, 3))
    views = ViewSequence(images, circles.astype(np.float32), np.full((4, 2), 21))
    source = ViewSource([views], "cpu")
    task = DetectionTraining(DetectionTrainingConfig(steps=1, views=4), ViewData(source, source, "made up"))
    assert Run(tmp_path / "run", task, "cpu", "bfloat16").sessions[0]["precision"] == "float32"


def test_released_runs_are_those_of_the_code():
    """Each trained what its configuration says now, where it says it, and began with the weights that are there."""
    folder = results_folder("reference")
    for name in RELEASED_RUNS:
        about = read_json(folder / "runs" / name / "config.json")
        experiment, seed = experiment_and_seed(name)
        config = configuration(experiment, "reference", seed)
        now = dict(leaves(config))
        then = {key: tuple(value) if isinstance(value, list) else value for key, value in _flat(about["training"])}
        assert then.items() <= now.items(), name
        weights = trained_weights_path("reference", getattr(config, "pretrained", None) or "none")
        if weights.exists():
            assert about["pretrained"] == sha256_of(weights), name


def _flat(settings: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        yield from _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


def test_jobs_run_in_processes_of_one_thread():
    jobs = {number: partial(math.sqrt, number) for number in (16, 4, 9)}
    assert list(machines.in_processes(jobs, 2, "roots", "root").items()) == [(16, 4), (4, 2), (9, 3)]
    assert machines.in_processes({"threads": torch.get_num_threads}, 2, "threads", "process") == {"threads": 1}


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        (partial(math.sqrt, -1), ValueError, "math domain error"),
        (partial(os._exit, 1), InputError, "roots: a process has died; if memory ran out, use fewer --workers"),
    ],
    ids=["error", "death"],
)
def test_the_first_failure_of_a_process_is_raised(job, error, message):
    with pytest.raises(error, match=message):
        machines.in_processes({"fails": job, "works": partial(math.sqrt, 4)}, 1, "roots", "root")


ENTRANCES = {
    "command": ["-m", "lib", "experiments"],
    "library": ["-c", "import lib, torch"],
}


def waits_passively(arguments: list[str], **environment: str) -> bool:
    """What OpenMP itself says when it is loaded."""
    said = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    said |= {"OMP_DISPLAY_ENV": "TRUE", **environment}
    shown = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=said, capture_output=True, text=True, check=True)
    assert "OMP_WAIT_POLICY" in shown.stderr, "OpenMP did not say how its threads wait"
    return "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stderr


@pytest.mark.parametrize("arguments", ENTRANCES.values(), ids=ENTRANCES)
def test_threads_wait_passively_unless_the_user_says_otherwise(arguments):
    assert waits_passively(arguments)
    assert not waits_passively(arguments, OMP_WAIT_POLICY="ACTIVE")


def test_threads_are_as_many_as_cores_are_free(monkeypatch, tmp_path):
    """Two samples of what cores did: the first core of two is idle for 95 ticks of 100, the second for 10."""
    stat = tmp_path / "stat"
    first = "cpu  9 9 9 9 9 9 9 0 0 0\ncpu0 0 0 0 50 0 0 0 0 0 0\ncpu1 0 0 0 50 0 0 0 0 0 0\nintr 5"
    second = "cpu  9 9 9 9 9 9 9 0 0 0\ncpu0 5 0 0 140 5 0 0 0 0 0\ncpu1 60 10 10 60 0 5 5 0 0 0\nintr 6"
    samples = first, second
    monkeypatch.setattr(cores, "_STAT", stat)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: stat.write_text(samples[1]))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    stat.write_text(samples[0])
    assert cores.threads_to_use() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1})
    stat.write_text(samples[0])
    assert cores.threads_to_use() == 1, "at least one"
    idle = samples[0].replace("50", "150")
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: stat.write_text(idle))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    stat.write_text(samples[0])
    assert cores.threads_to_use() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert cores.threads_to_use() == 7


def test_without_the_statistics_of_linux_all_cores_are_used(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "_STAT", tmp_path / "missing")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cores.threads_to_use() == os.cpu_count()


def test_kernels_are_cached_apart_for_every_version(tmp_path):
    """Of the modules that hold any; a change elsewhere leaves them as they are."""
    package = tmp_path / "lib"
    (package / "rendered").mkdir(parents=True)
    for name in ("__init__.py", "compiled.py"):
        shutil.copy(ROOT / "lib" / name, package)
    (package / "rendered" / "light.py").write_text("@compiled")

    def folder() -> str:
        program = "import lib.compiled, numba; print(numba.config.CACHE_DIR)"
        free = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, cwd=tmp_path, env=free | {"PYTHONPATH": str(tmp_path)}, check=True, capture_output=True, text=True
        ).stdout.strip()

    first = folder()
    assert first.startswith(str(package / "__pycache__"))
    (package / "network.py").write_text("other")
    assert folder() == first
    (package / "rendered" / "light.py").write_text("@compiled # changed")
    assert folder() != first
