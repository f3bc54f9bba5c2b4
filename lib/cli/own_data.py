"""Data of one's own: `survey` says what a folder offers, `import` makes a training cache of it, `export` writes others'
layouts, and networks as ONNX."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from lib.cli.onnx_export import export_onnx
from lib.crop_cache import CropSequence
from lib.errors import InputError
from lib.files import refuse_overwriting
from lib.formats.challenge_tars import write_challenge_tar
from lib.formats.cut_clips import clips_of, clips_of_sequence
from lib.formats.folders import RecordingName, files_of, find_recordings
from lib.formats.torch_data import MONO, ShardClip, write_shard
from lib.machines import in_processes
from lib.recordings import read_recording
from lib.study.own_data import import_training, missing, survey


def run_survey(options: argparse.Namespace) -> None:
    """Print what there is, and what that disables."""
    offered = survey(options.folder)
    print(offered.drop(columns="problem").to_string(index=False))
    for problem in offered.problem[offered.problem != ""]:
        print(f"cannot be read: {problem}")
    for name, disabled in missing(offered).items():
        print(f"no {name.replace('_', ' ')}: {disabled}")


def run_import(options: argparse.Namespace) -> int:
    """Say what a folder offers, and make a training cache of it. The exit code is 1 if some recordings failed."""
    run_survey(options)
    name = options.name or options.folder.absolute().name
    problems = import_training(options.folder, name, options.workers)
    for path, problem in problems.items():
        print(f"not imported: {path}: {problem}", file=sys.stderr)
    print(f"imported; train on it by python -m lib train EXPERIMENT --profile {name}")
    return 1 if problems else 0


def run_export(options: argparse.Namespace) -> int:
    """Write what is not written yet: a shard for each protocol, user and split, a .tar for each recording, or an ONNX
    file, which is always written.

    The exit code is 1 if some failed.
    """
    if options.format == "onnx":
        export_onnx(options.source, options.output)
        return 0
    sources = _sources(options.source)
    groups: dict[Path, list[Path]] = {}
    for source in sources:
        groups.setdefault(_target(RecordingName.of(source), options), []).append(source)
    for target, of_it in groups.items():
        refuse_overwriting({"--output": _last_file(target)}, {f"{p}": p for source in of_it for p in files_of(source)})
    part, parts = options.shard
    jobs = {
        target: partial(_export, of_it, target, options.format, options.frames, not options.without_labels)
        for target, of_it in list(groups.items())[part - 1 :: parts]
    }
    told = in_processes(jobs, options.workers, "writing", "file")
    failed = {target: problem for target, problem in told.items() if problem}
    for target, problem in failed.items():
        print(f"not written: {target}: {problem}", file=sys.stderr)
    print(f"{len(jobs) - len(failed)} of {len(jobs)} are written below {options.output}")
    return 1 if failed else 0


def _sources(folder: Path) -> list[Path]:
    """Recordings, or, where there are none, sequences of a training cache (their paths without suffix)."""
    cached = sorted({path.with_suffix("") for path in folder.rglob("*.npy")})
    try:
        return find_recordings(folder)
    except InputError:
        if not cached:
            raise
    return cached


def _target(name: RecordingName, options: argparse.Namespace) -> Path:
    """Where a recording goes."""
    if options.format == "challenge":
        return options.output / f"{name.split}_{name.protocol}" / f"{name.user}_{name.recording}.tar"
    number = "".join(filter(str.isdecimal, name.user)) or "0"
    return options.output / name.protocol / f"{int(number):05d}" / name.split


def _last_file(target: Path) -> Path:
    """What is there once a target is written."""
    return target if target.suffix == ".tar" else target / f"{MONO}.torch.idx"


def _export(sources: list[Path], target: Path, form: str, frames: int, labels: bool) -> str | None:
    """Write one file, or one shard, if it is not there; what keeps it from being written."""
    if _last_file(target).is_file():
        return None
    try:
        if form == "challenge":
            (source,) = sources
            write_challenge_tar(read_recording(source), target, labels)
        else:
            write_shard(target, chain.from_iterable(_clips(source, frames) for source in sources))
    except (InputError, OSError) as error:
        return str(error)
    return None


def _clips(source: Path, frames: int) -> Iterator[ShardClip]:
    if source.with_suffix(".npy").is_file():
        return clips_of_sequence(CropSequence.load(source), frames)
    return clips_of(read_recording(source), frames)
