"""Damaged recordings through the real command: each is tracked correctly or refused with a message, never a traceback.

The recording is the real one where it is there, else a tiny one, a few frames long. What is mutated, and how, follows
from the seed alone.
"""

import copy
import itertools
import json
import os
import random
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT, tiny_network, tiny_recording, write_gray_video

from lib.checkpoints import save_network
from lib.cli import main

FRAMES = 3
JSON_SEEDS, VIDEO_SEEDS = range(200), range(40)
WHOLE = ("cameras", "camera_angles", "hand_model")
"""The fields of a recording that are not given per frame."""
NAN, DEEP = float("nan"), 900
VALUES = [
    None,
    True,
    "",
    "12",
    {},
    [],
    [[]],
    0,
    -1,
    255,
    0.5,
    -0.5,
    1e-300,
    1e30,
    -1e30,
    1e308,
    NAN,
    float("inf"),
    10**400,
]


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> tuple[dict, bytes]:
    """The labels and the video of the first frames of the real recording, else of a tiny one."""
    folder = tmp_path_factory.mktemp("original")
    real = Path(os.environ.get("UMETRACK_REAL", ROOT.parent / "shared" / "real")) / "recording" / "recording_00.mp4"
    if not real.is_file():
        video = tiny_recording(FRAMES).write(folder)
        return json.loads(video.with_suffix(".json").read_text()), video.read_bytes()
    with av.open(str(real)) as container:
        frames = [f.to_ndarray(format="gray") for f in itertools.islice(container.decode(video=0), FRAMES)]
    write_gray_video(folder / "short.mp4", np.stack([np.split(frame, 4, axis=1) for frame in frames]))
    labels = json.loads(real.with_suffix(".json").read_text())
    short = {name: value if name in WHOLE else value[:FRAMES] for name, value in labels.items()}
    return short, (folder / "short.mp4").read_bytes()


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("network") / "tiny.safetensors"
    save_network(tiny_network(), path)
    return path


def mutate_labels(labels: dict, rng: random.Random) -> tuple[bytes, str | None]:
    """The text of mutated labels, and the field that was mutated; None where the text itself was damaged."""
    if rng.random() < 0.1:
        return mutate_bytes(json.dumps(labels).encode(), rng), None
    labels = copy.deepcopy(labels)
    inside, key = labels, rng.choice(sorted(labels))
    field = key
    while isinstance(inside[key], dict | list) and len(inside[key]) and rng.random() < 0.8:
        inside = inside[key]
        key = rng.choice(sorted(inside)) if isinstance(inside, dict) else rng.randrange(len(inside))
    _mutate_entry(inside, key, rng)
    return json.dumps(labels).encode(), field


def _mutate_entry(inside: dict | list, key: str | int, rng: random.Random) -> None:
    """Delete, repeat, nest, scale or replace an entry."""
    old, kind = inside[key], rng.random()
    if kind < 0.1:
        del inside[key]
    elif kind < 0.15 and isinstance(old, list):
        inside[key] = old + old[-1:]
    elif kind < 0.2:
        inside[key] = json.loads("[" * DEEP + "1" + "]" * DEEP)
    elif kind < 0.5:
        inside[key] = _scaled(old, rng.choice((0.0, -1.0, 1e-40, 1e-3, 1e3, 1e30, 1e300)))
    else:
        inside[key] = rng.choice(VALUES)


def _scaled(value, factor: float):
    """All numbers below a value, times a factor."""
    if isinstance(value, list):
        return [_scaled(part, factor) for part in value]
    if isinstance(value, dict):
        return {name: _scaled(part, factor) for name, part in value.items()}
    return value * factor if isinstance(value, int | float) else value


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Overwrite, cut out, repeat or append some bytes."""
    start = rng.randrange(len(content))
    length, kind = min(rng.choice((1, 8, 400, 20_000)), len(content) - start), rng.randrange(4)
    part, end = content[start : start + length], start + length
    if kind == 0:
        return content[:start] + rng.randbytes(length) + content[end:]
    if kind == 1:
        return content[:start] + content[end:]
    if kind == 2:
        return content[:end] + part + content[end:]
    return content[:start] if rng.random() < 0.5 else content + rng.randbytes(length)


def outcome(folder: Path, video: bytes, labels: bytes, network: Path, capsys) -> tuple[int, str]:
    """What `track` returns and says of a recording; it leaves its output exactly if it succeeds, and no traceback."""
    path, output = folder / "mutated.mp4", folder / "results" / "tracks.npz"
    path.write_bytes(video)
    path.with_suffix(".json").write_bytes(labels)
    output.parent.mkdir(exist_ok=True)
    code = main(["track", str(path), "--weights", str(network), "--output", str(output), "--device", "cpu"])
    message = capsys.readouterr().err
    assert sorted(left.name for left in folder.rglob("*")) == sorted(
        ["mutated.json", "mutated.mp4", "results"] + ["tracks.npz"] * (code == 0)
    )
    if code == 0:
        with np.load(output) as stored:
            assert np.isfinite(stored["tracked_keypoints"][stored["valid_tracking"]]).all()
            assert np.isfinite(stored["gt_keypoints"]).all()
            assert np.abs(stored["tracked_keypoints"]).max() < 1e6
    else:
        assert code == 2
        assert message.startswith("error: ")
    return code, message


def test_the_recording_itself_is_tracked(recording, network, tmp_path, capsys):
    labels, video = recording
    assert outcome(tmp_path, video, json.dumps(labels).encode(), network, capsys) == (0, "")


@pytest.mark.parametrize("seed", JSON_SEEDS)
def test_mutated_labels(recording, network, tmp_path, capsys, seed):
    labels, video = recording
    text, field = mutate_labels(labels, random.Random(seed))
    code, message = outcome(tmp_path, video, text, network, capsys)
    if code:
        assert "mutated.json" in message
        assert field is None or field in message


@pytest.mark.parametrize("seed", VIDEO_SEEDS)
def test_mutated_videos(recording, network, tmp_path, capsys, seed):
    labels, video = recording
    code, message = outcome(
        tmp_path, mutate_bytes(video, random.Random(seed)), json.dumps(labels).encode(), network, capsys
    )
    if code:
        assert "mutated.mp4" in message
