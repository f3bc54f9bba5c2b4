"""What is written beside every result."""

import shutil
import subprocess

import pytest

from lib.errors import InputError
from lib.machines import commit
from lib.study import results
from lib.study.runs import training_curves


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of one commit: code in lib/, a table in results/."""

    def git(*command: str) -> str:
        about = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *about, *command], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    for name in ("lib/code.py", "results/table.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr("lib.machines.CODE", tmp_path / "lib")
    return tmp_path, git("rev-parse", "HEAD").strip()


def test_a_commit_is_marked_where_the_code_differs_from_it(checkout):
    folder, head = checkout
    assert commit() == head[:12]
    (folder / "results/table.csv").write_text("2\n")
    assert commit() == head[:12], "results say nothing about the code"
    (folder / "lib/code.py").write_text("2\n")
    assert commit() == f"{head[:12]}-dirty"
    (folder / "lib/code.py").write_text("1\n")
    (folder / "lib/new.py").touch()
    assert commit() == f"{head[:12]}-dirty", "a new module is code, too"


def test_without_git_the_commit_is_unknown(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"


def test_only_runs_that_have_ended_have_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    for run, last in (("ended", 99), ("stopped", 49), ("somebody's own", 99)):
        folder = tmp_path / "results/tiny/runs" / run
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"training": {"steps": 100}}')
        (folder / "curve.csv").write_text(f"step,crops\n9,90\n{last},{10 * last}\n")
    assert list(training_curves("tiny", ("ended", "stopped"))) == ["ended"]
    shutil.rmtree(tmp_path / "results/tiny/runs/ended")
    with pytest.raises(InputError, match="no training has left a whole curve"):
        training_curves("tiny", ("ended", "stopped"))


def test_outside_a_checkout_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.machines.CODE", tmp_path)
    assert commit() == "unknown"
