"""Two commands on one folder, and commands that are killed: nothing is corrupted, nothing is lost."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from lib.errors import InputError
from lib.files import working_in, write_atomically
from lib.rendered.shape import generic_hand
from lib.study.experiments import train_experiment
from lib.study.methods import make_predictions

HOLD = """
import sys, time
from pathlib import Path
from lib.files import working_in
with working_in(Path(sys.argv[1]), wait=True):
    print("working", flush=True)
    time.sleep(float(sys.argv[2]))
"""
RENDER = """
import sys
from pathlib import Path
from lib.rendered.dataset import Profile, render_dataset
if __name__ == "__main__":
    render_dataset(Profile("tiny", 1, 0, 1, 2, 0, 2, frames=30), "train", Path(sys.argv[1]), workers=1)
"""
TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, "{tests}")
from tiny_runs import made_up_data, run
import torch
torch.set_num_threads(1)
folder = Path(sys.argv[1])
(folder / "recording").mkdir(parents=True, exist_ok=True)
run(folder / "runs" / "tiny", made_up_data(folder / "recording")).train(folder / "weights.safetensors", save_seconds=0)
"""
ADD_ROWS = """
import sys
from pathlib import Path
import lib.study.results
from lib.study.recipe import _replace_row
lib.study.results.ROOT = Path(sys.argv[1])
for number in range(40):
    _replace_row("tiny", {"variant": f"{sys.argv[2]} {number}", "crops_asked": 1})
"""


def start(script: str, *arguments: object) -> subprocess.Popen:
    path = Path(str(arguments[0])).parent / f"script_{abs(hash(script))}.py"
    path.write_text(script.replace("{tests}", str(Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(path), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    """What a process says on standard error, once it has ended well."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def kill_when(process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    """As soon as something is there; it must still be running then."""
    end = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path, capsys):
    folder = tmp_path / "folder"
    other = start(HOLD, folder, 60)
    assert other.stdout.readline() == "working\n"
    with pytest.raises(InputError, match=r"another process works in .*folder: wait until it has ended"):
        working_in(folder, wait=False).__enter__()
    waiting = start(HOLD, folder, 0)
    assert waiting.stderr.readline() == f"waiting for another process that works in {folder}\n"
    other.kill()  # its lock goes with it
    assert waiting.communicate(timeout=60)[0] == "working\n"
    other.communicate()
    with working_in(folder, wait=False):
        assert capsys.readouterr().err == ""


def test_without_locks_work_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lib.files.fcntl", None)
    with working_in(tmp_path, wait=False), working_in(tmp_path, wait=False):
        assert "cannot be locked (no such locks on this system)" in capsys.readouterr().err


def test_where_a_folder_cannot_be_locked_work_goes_on(tmp_path, monkeypatch, capsys):
    """As on some network drives; no file stays open."""

    def flock(file: int, how: int) -> None:
        opened.append(file)
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    opened: list[int] = []
    monkeypatch.setattr("lib.files.fcntl.flock", flock)
    with working_in(tmp_path, wait=True):
        assert "cannot be locked ([Errno 9] Bad file descriptor)" in capsys.readouterr().err
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(opened[0])


def test_a_run_that_is_being_trained_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.study.experiments.results_folder", lambda profile: tmp_path)
    with (
        working_in(tmp_path / "runs" / "full", wait=False),
        pytest.raises(InputError, match=r"another process works in .*full: wait until it has ended, or stop it"),
    ):
        train_experiment("full", "smoke", tmp_path, generic_hand(), "cpu", resume=True)


def test_predictions_wait_for_those_that_are_being_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lib.study.results.ROOT", tmp_path)
    folder = tmp_path / "results" / "tiny" / "predictions"
    folder.parent.mkdir(parents=True)
    other = start(HOLD, folder, 1)
    assert other.stdout.readline() == "working\n"
    with pytest.raises(InputError, match="no complete testing data"):
        make_predictions("tiny", tmp_path / "data", workers=1)
    assert capsys.readouterr().err == f"waiting for another process that works in {folder}\n"
    finish(other)


def test_searches_at_once_lose_no_row(tmp_path):
    both = start(ADD_ROWS, tmp_path, "one"), start(ADD_ROWS, tmp_path, "two")
    for process in both:
        finish(process)
    table = pd.read_csv(tmp_path / "results" / "tiny" / "tables" / "recipe.csv")
    assert sorted(table.variant) == sorted(f"{name} {number}" for name in ("one", "two") for number in range(40))


def test_what_a_killed_process_left_is_removed(tmp_path):
    """Not what others write just now, here or on another machine, nor other files."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = []
    write_atomically(tmp_path / "a.txt", lambda path: (path.write_text(""), names.append(path.name)))
    mine, pid = names[0], str(os.getpid())
    others = {mine.replace(pid, "1"), mine.replace(f"-{pid}", f"elsewhere-{ended.pid}"), mine.replace(".a.", ".b.")}
    others |= {"a.npz", mine.replace(pid, "x")}
    left = mine.replace(pid, str(ended.pid))
    for name in {*others, left}:
        (tmp_path / name).touch()
    write_atomically(tmp_path / "a.txt", lambda path: path.write_text("new"))
    assert {path.name for path in tmp_path.iterdir()} == others | {"a.txt"}


def test_a_killed_rendering_ends_with_the_same_bytes(tmp_path):
    """Killed when half of the first sequence is there; then two processes go on at once."""
    whole, killed = tmp_path / "whole" / "data", tmp_path / "killed" / "data"
    for folder in (whole, killed):
        folder.parent.mkdir()
    finish(start(RENDER, whole))
    expected = content(whole)
    first = min(name for name in expected if name.endswith(".npy"))
    kill_when(start(RENDER, killed), (killed / first).exists)
    both = start(RENDER, killed), start(RENDER, killed)
    assert sum("waiting for another process" in finish(process) for process in both) == 1
    assert content(killed) == expected


def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    """Killed before the first of twelve steps, and then twice on its way."""
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    for folder in (whole, killed):
        folder.parent.mkdir()
    finish(start(TRAIN, whole))
    log, config = (killed / "runs" / "tiny" / name for name in ("log.csv", "config.json"))

    def has_done(steps: int) -> bool:
        return config.exists() and steps <= (len(log.read_text().splitlines()) - 1 if log.exists() else 0)

    for steps in (0, 2, 8):
        kill_when(start(TRAIN, killed), partial(has_done, steps))
        assert not (killed / "weights.safetensors").exists()
    finish(start(TRAIN, killed))
    expected, weights = (load_file(folder / "weights.safetensors") for folder in (whole, killed))
    assert expected.keys() == weights.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert not [path.name for path in killed.rglob(".*")]


@pytest.mark.parametrize("used", [True, False])
def test_a_folder_made_for_nothing_goes_again(tmp_path, used):
    folder = tmp_path / "new"
    with working_in(folder, wait=False):
        assert folder.is_dir()
        if used:
            (folder / "file").touch()
    assert folder.exists() == used
    with working_in(tmp_path, wait=False):
        pass
    assert tmp_path.is_dir(), "it was there before"
