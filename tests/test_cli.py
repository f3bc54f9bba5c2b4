import itertools
import json
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import ROOT, TinyRecording, tiny_recording, write_gray_video

from lib.checkpoints import save_network
from lib.cli import main
from lib.files import sha256_of
from lib.live.confidence import SIGNS, Confidence, confidence_path
from lib.metrics import mpjpe
from lib.multistage.detection import DetNet, DetNetConfig
from lib.multistage.keypoints import KeyNet, KeyNetConfig
from lib.overlay import write_video
from lib.recordings import read_recording
from lib.study.results import results_folder
from lib.tracking import true_keypoints

FRAMES = 4


@pytest.fixture
def files(tmp_path, weights) -> dict[str, str]:
    """A tiny recording, weights with a confidence beside them and a generic hand, by the name of their option."""
    Confidence(torch.zeros(SIGNS).double(), 5.0).save(confidence_path(weights), {"network_sha256": sha256_of(weights)})
    video = tiny_recording(FRAMES).write(tmp_path)
    hand = tmp_path / "hand.json"
    hand.write_text(json.dumps(json.loads(video.with_suffix(".json").read_text())["hand_model"]))
    return {"recording": str(video), "--weights": str(weights), "--generic-hand": str(hand)}


@pytest.fixture
def results(tmp_path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def track(files: dict[str, str], results: Path, *more: str) -> int:
    options = [part for name, value in files.items() if name.startswith("--") for part in (name, value)]
    return main(["track", files["recording"], *options, "--output", str(results / "tracks.npz"), *more])


@pytest.mark.parametrize("skeleton", ["known", "unknown"])
def test_track(files, results, capsys, skeleton):
    assert track(files, results, "--skeleton", skeleton) == 0
    assert [path.name for path in results.iterdir()] == ["tracks.npz"]
    with np.load(results / "tracks.npz", allow_pickle=False) as stored:
        tracks = dict(stored)
    shapes = dict.fromkeys(("tracked_keypoints", "gt_keypoints"), (2, FRAMES, 21, 3))
    shapes |= dict.fromkeys(("valid_tracking", "labelled", "confidence"), (2, FRAMES))
    shapes |= {"joint_angles": (2, FRAMES, 22), "world_from_wrist": (2, FRAMES, 4, 4), "timestamps": (FRAMES,)}
    shapes["hand_model"] = ()
    if skeleton == "unknown":
        shapes["scale"] = ()
    assert {name: value.shape for name, value in tracks.items()} == shapes
    printed = capsys.readouterr().out
    error = mpjpe(tracks["tracked_keypoints"], tracks["gt_keypoints"], tracks["valid_tracking"])
    assert "tracked hand instances     8 of 8" in printed
    assert f"MPJPE                   {error:.2f} mm" in printed
    assert ("scale of generic hand" in printed) == (skeleton == "unknown")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory) -> str:
    """A folder with weights of both networks of the multi-stage baseline."""
    folder = tmp_path_factory.mktemp("baseline")
    torch.manual_seed(0)
    save_network(KeyNet(KeyNetConfig()), folder / "keynet.safetensors")
    save_network(DetNet(DetNetConfig()), folder / "detnet.safetensors")
    return str(folder)


@pytest.fixture
def blind(baseline, tmp_path) -> str:
    """The baseline with a detector that never finds a hand."""
    folder = tmp_path / "blind"
    shutil.copytree(baseline, folder)
    network = DetNet(DetNetConfig())
    torch.nn.init.constant_(network.presence[0].weight, 0.0)
    torch.nn.init.constant_(network.presence[1].bias, -9.0)
    save_network(network, folder / "detnet.safetensors")
    return str(folder)


@pytest.mark.parametrize("skeleton", ["known", "unknown"])
def test_track_with_the_baseline(files, baseline, results, capsys, skeleton):
    files["--weights"] = baseline
    assert track(files, results, "--method", "multistage", "--skeleton", skeleton) == 0
    assert "tracked hand instances" in capsys.readouterr().out
    with np.load(results / "tracks.npz") as stored:
        assert np.isfinite(stored["tracked_keypoints"]).all()
        assert ("scale" in stored) == (skeleton == "unknown")


def test_the_methods_refuse_each_others_weights_and_options(files, baseline, results, capsys):
    assert track(files, results, "--method", "multistage") == 2
    assert "no weights at" in capsys.readouterr().err
    assert track(files, results, "--crops", "own", "--detector", f"{baseline}/keynet.safetensors") == 2
    assert "holds the weights of a KeyNet, expected those of a DetNet" in capsys.readouterr().err
    confidence_path(Path(files["--weights"])).unlink()
    assert track(files, results, "--crops", "own", "--detector", f"{baseline}/detnet.safetensors") == 2
    assert "which tells how sure predictions are: " in capsys.readouterr().err
    files["--weights"] = f"{baseline}/keynet.safetensors"
    assert track(files, results) == 2
    assert "holds the weights of a KeyNet, expected those of a UmeTrack" in capsys.readouterr().err


def test_calibration_samples(files, results, capsys):
    """One sample gives another scale than the average of all eight."""
    for samples in ("1", "8"):
        assert track(files, results, "--skeleton", "unknown", "--calibration-samples", samples) == 0
    scales = [line for line in capsys.readouterr().out.splitlines() if line.startswith("scale of generic hand")]
    assert len(set(scales)) == 2


def test_the_generic_hand_is_ours_unless_another_is_given(files, results, capsys):
    given = track(files, results, "--skeleton", "unknown"), capsys.readouterr().out
    del files["--generic-hand"]
    assert (track(files, results, "--skeleton", "unknown"), capsys.readouterr().out) == given


def test_overlay_has_every_frame_of_the_recording(files, results):
    overlay = results / "overlay.mp4"
    assert track(files, results, "--overlay", str(overlay)) == 0
    with av.open(str(overlay)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(48, 4 * 64, 3)] * FRAMES
    assert {path.name for path in results.iterdir()} == {"tracks.npz", "overlay.mp4"}


def test_a_video_of_odd_sides_loses_a_row(tmp_path):
    write_video(tmp_path / "odd.mp4", iter(np.full((3, 47, 65, 3), 90, np.uint8)), 30000 / 1001)
    with av.open(str(tmp_path / "odd.mp4")) as container:
        assert [(frame.height, frame.width) for frame in container.decode(video=0)] == [(46, 64)] * 3
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)


@pytest.mark.parametrize(
    "wrong",
    [
        ("train", "full", "--minutes", "0"),
        ("render", "--output", "here", "--scale", "-1"),
        ("train", "full", "--device", "nonsense"),
    ],
)
def test_options_out_of_range_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as refused:
        main(list(wrong))
    assert refused.value.code == 2
    assert wrong[-1] in capsys.readouterr().err


def test_frames_without_camera_poses_do_not_count(files, results, capsys):
    content = tiny_recording(FRAMES)
    content.labels["camera_to_world_transforms"][0] = np.zeros((4, 4, 4)).tolist()
    content.labels["camera_to_world_transforms"][1][3][0][0] = float("nan")
    content.write(Path(files["recording"]).parent)
    assert track(files, results) == 0
    assert "tracked hand instances     4 of 8" in capsys.readouterr().out
    with np.load(results / "tracks.npz") as stored:
        assert stored["valid_tracking"].tolist() == [[False, False, True, True]] * 2


def rewritten(files, **changes) -> None:
    """Write the recording anew with some fields of its labels changed, or left out where they are None."""
    content = tiny_recording(FRAMES)
    labels = {name: value for name, value in (content.labels | changes).items() if value is not None}
    TinyRecording(labels, content.images).write(Path(files["recording"]).parent)


NO_LABELS = dict.fromkeys(("joint_angles", "wrist_transforms", "hand_confidences"))
BEHIND = np.array(tiny_recording(FRAMES).labels["wrist_transforms"])
BEHIND[..., 2, 3] -= 2000


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"hand_confidences": np.zeros((FRAMES, 2)).tolist()},
            (),
            "labels no hand: .*--crops own",
        ),
        (NO_LABELS, (), "labels no hand"),
        (
            {"camera_to_world_transforms": np.zeros((FRAMES, 4, 4, 4)).tolist()},
            (),
            "the headset has no pose in any frame",
        ),
        ({"wrist_transforms": BEHIND.tolist()}, (), "nothing was tracked: no camera sees 19 of the 21 landmarks"),
        ({"hand_model": None}, (), "has no hand_model: add the user's, or track with --skeleton unknown"),
        (NO_LABELS, ("--method", "multistage", "--crops", "own"), "nothing was tracked: the detector found no hand"),
        (NO_LABELS, ("--crops", "own"), "nothing was tracked: the detector found no hand"),
    ],
)
def test_nothing_tracked_is_an_error_that_says_why(files, blind, results, capsys, changes, options, message):
    rewritten(files, **changes)
    if "multistage" in options:
        files["--weights"] = blind
    elif options:
        options = (*options, "--detector", f"{blind}/detnet.safetensors")
    assert track(files, results, *options) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(results.iterdir())


def test_without_a_hand_an_unknown_skeleton_is_tracked(files, results, capsys):
    rewritten(files, hand_model=None)
    assert track(files, results, "--skeleton", "unknown", "--overlay", str(results / "overlay.mp4")) == 0
    printed = capsys.readouterr().out
    assert "tracked hand instances     8 of 8" in printed
    assert "nothing to compare with" in printed
    assert "scale of generic hand" in printed


def test_without_hand_and_labels_the_baseline_follows_its_own_crops(real, results, tmp_path, capsys):
    """The released networks on the first frames of captured motion."""
    whole = real / "recording" / "recording_00.mp4"
    labels = json.loads(whole.with_suffix(".json").read_text())
    kept = ("cameras", "camera_angles", "camera_to_world_transforms")
    few = {name: labels[name][:12] if name == kept[-1] else labels[name] for name in kept}
    images = np.stack(list(itertools.islice(read_recording(whole).images(), 12)))
    video = TinyRecording(few, images).write(tmp_path)
    weights = ("--weights", str(results_folder("reference") / "checkpoints"), "--output", str(results / "tracks.npz"))
    options = ("--method", "multistage", "--crops", "own", "--skeleton", "unknown")
    assert main(["track", str(video), *weights, *options]) == 0, capsys.readouterr().err
    with np.load(results / "tracks.npz") as stored:
        assert stored["valid_tracking"].sum() >= 16
        errors = np.linalg.norm(stored["tracked_keypoints"] - _first_truth(whole, 12), axis=-1).mean(axis=-1)
        assert np.median(errors[stored["valid_tracking"]]) < 25
        assert np.isnan(stored["gt_keypoints"][stored["valid_tracking"]]).all()


def _first_truth(video: Path, frames: int) -> np.ndarray:
    return true_keypoints(read_recording(video))[:, :frames]


@pytest.mark.parametrize("option", ["--output", "--overlay"])
@pytest.mark.parametrize("of", ["recording", "labels", "--weights", "--generic-hand", "link", "output"])
def test_an_output_never_overwrites_an_input(files, results, capsys, option, of):
    folder = Path(files["recording"]).parent
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (folder / "link").symlink_to(files["recording"])
    paths = {"labels": files["recording"].replace(".mp4", ".json"), "link": str(folder / "link")}
    paths["output"] = str(results / "tracks.npz")
    options = [option, (files | paths)[of]]
    if of == "output":
        options += ["--output" if option == "--overlay" else "--overlay", paths["output"]]
    assert track(files, results, *options) == 2
    assert "which it would overwrite: name another file" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert not list(results.iterdir())


def rewrite(change):
    """A way to break a recording: `change` edits its content before it is written anew."""

    def break_recording(files: dict[str, str]) -> None:
        content = tiny_recording(FRAMES)
        change(content)
        content.write(Path(files["recording"]).parent)

    return break_recording


def unknown_camera_model(content: TinyRecording) -> None:
    content.labels["cameras"][2]["DistortionModel"] = "Brown"


def three_cameras(content: TinyRecording) -> None:
    content.labels["cameras"].pop()


def labels_of_another_length(content: TinyRecording) -> None:
    for name in ("joint_angles", "wrist_transforms", "hand_confidences", "camera_to_world_transforms"):
        content.labels[name].append(content.labels[name][0])


def no_hand_is_labelled(content: TinyRecording) -> None:
    content.labels["hand_confidences"] = np.zeros((FRAMES, 2)).tolist()


def missing_json(files: dict[str, str]) -> None:
    Path(files["recording"]).with_suffix(".json").unlink()


def truncated_video(files: dict[str, str]) -> None:
    video = Path(files["recording"])
    video.write_bytes(video.read_bytes()[:-2000])


def more_frames(files: dict[str, str]) -> None:
    write_gray_video(Path(files["recording"]), tiny_recording(FRAMES + 2).images)


def no_weights(files: dict[str, str]) -> None:
    files["--weights"] += ".none"


def wrong_weights(files: dict[str, str]) -> None:
    files["--weights"] += ".torch"
    torch.save({"weight": torch.zeros(2)}, files["--weights"])


def no_state_dict(files: dict[str, str]) -> None:
    files["--weights"] += ".torch"
    torch.save([1, 2], files["--weights"])


def pickled_code(files: dict[str, str]) -> None:
    files["--weights"] += ".torch"
    torch.save({"weight": Path("code")}, files["--weights"])


def broken_generic_hand(files: dict[str, str]) -> None:
    Path(files["--generic-hand"]).write_text("{}")


@pytest.mark.parametrize(
    ("break_something", "messages"),
    [
        (missing_json, ["no file", "recording_00.json"]),
        (truncated_video, ["recording_00.mp4"]),
        (more_frames, ["holds 6 frames, but its json labels 4"]),
        (rewrite(labels_of_another_length), ["holds 4 frames, but its json labels 5"]),
        (rewrite(unknown_camera_model), ["camera models Brown, FishEye62: expected one for all cameras"]),
        (rewrite(three_cameras), ["camera_angles has shape (4,), expected (3,)"]),
        (rewrite(no_hand_is_labelled), ["labels no hand", "track with --crops own"]),
        (no_weights, ["no weights at"]),
        (wrong_weights, ["missing backbone.stem.0.weight", "unexpected weight"]),
        (no_state_dict, ["holds a list, expected a dictionary from parameter names to tensors"]),
        (pickled_code, ["not a checkpoint that can be read safely"]),
        (broken_generic_hand, ["hand.json: the field 'landmark_rest_bone_indices' is missing"]),
    ],
)
def test_bad_input(files, results, capsys, break_something, messages):
    """Exit code 2, a message that says what is wrong, and no file left, not even a temporary one."""
    break_something(files)
    assert track(files, results, "--skeleton", "unknown", "--overlay", str(results / "overlay.mp4")) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert all(message in captured.err for message in messages)
    assert captured.out == ""
    assert not list(results.iterdir())


@pytest.mark.parametrize("option", ["--output", "--overlay"])
def test_a_folder_is_no_file_to_write(files, results, capsys, option):
    assert track(files, results, option, str(results)) == 2
    assert "is a folder, expected the name of a file to write" in capsys.readouterr().err
    assert not list(results.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--calibration-samples", "0"], "expected a positive whole number, got 0"),
        (["--calibration-samples", "many"], "expected a positive whole number, got many"),
        (["--device", "abacus"], "no device abacus here"),
        (["--skeleton", "guessed"], "invalid choice: 'guessed'"),
    ],
)
def test_wrong_usage(files, results, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        track(files, results, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(results.iterdir())


def test_training_asks_for_its_data(tmp_path, capsys):
    folder = ROOT / "results" / "reference" / "runs" / "full_seed99"
    assert main(["train", "full", "--seed", "99", "--data", str(tmp_path)]) == 2
    assert (
        f"no crops in {tmp_path / 'training.json'}: run python -m lib render --split train" in capsys.readouterr().err
    )
    assert not folder.exists()


def test_released_weights_are_not_trained_over(capsys):
    assert main(["train", "full", "--minutes", "1"]) == 2
    assert "full.safetensors is there: remove it" in capsys.readouterr().err


def test_benchmark_names_every_stage(files, capsys):
    arguments = ["--recording", files["recording"], "--weights", files["--weights"], "--repeats", "1", "--threads", "1"]
    assert main(["benchmark", "tracking", "--device", "cpu", *arguments]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["stage", "device", "threads", "median_ms", "p95_ms", "processor"]
    stages = ("decode video", "crop cameras", "warp crops", "network", "decode pose", "whole frame")
    assert {row.split(" cpu ")[0].strip() for row in rows} == {*stages}


def test_the_module_is_a_command(files, results):
    missing_json(files)
    command = [sys.executable, "-m", "lib", "track", files["recording"], "--weights", files["--weights"]]
    command += ["--output", str(results / "tracks.npz")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no file")
    assert not list(results.iterdir())
