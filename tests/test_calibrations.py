"""Calibrations that others write: every format gives the cameras and places that it says, or is refused by name."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import TinyRecording, random_poses, tiny_recording
from scipy.spatial.transform import Rotation
from torch.testing import assert_close

from lib.cameras import KannalaBrandt, Pinhole, RadialTangential
from lib.cli import main
from lib.errors import InputError
from lib.formats.calibrations import read_rig
from lib.recordings import read_recording
from lib.transforms import invert

FOCAL, CENTER, SIZE = [420.0, 425.0], [318.2, 241.7], [640, 480]
KB4, RADTAN = [-0.02, 0.05, -0.02, 0.003], [-0.28, 0.07, 0.001, -0.0005]


def near_poses(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Places of cameras a decimetre apart, the first one at the origin."""
    poses = random_poses(rng, count)
    poses[:, :3, 3] = 0.1 * torch.arange(count)[:, None] * torch.tensor([0.9, 0.3, -0.2]).double()
    poses[0] = torch.eye(4)
    return poses


def kalibr(poses: torch.Tensor) -> dict:
    models = [("equidistant", KB4), ("radtan", RADTAN), ("none", [])]
    stored = {}
    for index, pose in enumerate(poses):
        name, lens = models[index % 3]
        stored[f"cam{index}"] = {
            "camera_model": "pinhole", "distortion_model": name, "distortion_coeffs": lens,
            "intrinsics": [*FOCAL, *CENTER], "resolution": SIZE, "rostopic": "/camera", "cam_overlaps": [0],
        }  # fmt: skip
        if index:
            stored[f"cam{index}"]["T_cn_cnm1"] = (invert(pose) @ poses[index - 1]).tolist()
    return stored


def basalt(poses: torch.Tensor) -> dict:
    names = {"kb4": ("k1", "k2", "k3", "k4"), "pinhole-radtan8": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")}
    lenses = {"kb4": KB4, "pinhole-radtan8": [*RADTAN, 0.01, 0.0, 0.0, 0.0]}
    intrinsics = dict(zip(("fx", "fy", "cx", "cy"), (*FOCAL, *CENTER), strict=True))
    kinds = [("kb4", "pinhole-radtan8")[index % 2] for index in range(len(poses))]
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat()
    keys = ("px", "py", "pz", "qx", "qy", "qz", "qw")
    places = np.concatenate((poses[:, :3, 3], quaternions), axis=1).tolist()
    cameras = [
        {"camera_type": kind, "intrinsics": intrinsics | dict(zip(names[kind], lenses[kind], strict=True))}
        for kind in kinds
    ]
    places = [dict(zip(keys, place, strict=True)) for place in places]
    return {"value0": {"T_imu_cam": places, "intrinsics": cameras, "resolution": [SIZE] * len(poses)}}


def write(path: Path, content: dict) -> Path:
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))
    return path


def test_a_kalibr_camchain(rng, tmp_path):
    poses = near_poses(rng, 3)
    rig = read_rig([write(tmp_path / "camchain.yaml", kalibr(poses))])
    assert [type(camera) for camera in rig.cameras] == [KannalaBrandt, RadialTangential, Pinhole]
    assert_close(rig.rig_from_camera, poses)
    assert rig.cameras[0].distortion.tolist() == KB4
    assert rig.cameras[1].distortion.tolist() == [*RADTAN, 0.0, 0.0, 0.0, 0.0]
    for camera in rig.cameras:
        assert (camera.width, camera.height, camera.focal_px.tolist(), camera.center_px.tolist()) == (
            *SIZE,
            FOCAL,
            CENTER,
        )


def test_a_basalt_calibration(rng, tmp_path):
    poses = near_poses(rng, 4)
    rig = read_rig([write(tmp_path / "calibration.json", basalt(poses))])
    assert [type(camera) for camera in rig.cameras] == [KannalaBrandt, RadialTangential] * 2
    assert_close(rig.rig_from_camera, poses, atol=1e-12, rtol=0)
    assert rig.cameras[1].distortion.tolist() == [*RADTAN, 0.01, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_files_that_opencv_writes(rng, tmp_path, suffix):
    """One a camera, by OpenCV's own writer; the place of the second is ours."""
    poses, paths = near_poses(rng, 2), []
    matrix = np.array([[FOCAL[0], 0, CENTER[0]], [0, FOCAL[1], CENTER[1]], [0, 0, 1]])
    for index in range(2):
        paths.append(tmp_path / f"camera{index}.{suffix}")
        file = cv2.FileStorage(str(paths[-1]), cv2.FILE_STORAGE_WRITE)
        for name, value in (("image_width", SIZE[0]), ("image_height", SIZE[1])):
            file.write(name, value)
        file.write("camera_matrix", matrix)
        file.write("distortion_coefficients", np.array([[*RADTAN, 0.02]]))
        file.release()
    place = poses[1].tolist()
    if suffix == "json":
        write(paths[1], json.loads(paths[1].read_text()) | {"rig_from_camera": place})
    else:
        paths[1].write_text(paths[1].read_text() + f"rig_from_camera: {place}\n")
    rig = read_rig(paths)
    assert_close(rig.rig_from_camera, poses)
    for camera in rig.cameras:
        assert camera.distortion.tolist() == [*RADTAN, 0.02, 0.0, 0.0, 0.0]
        assert (camera.focal_px.tolist(), camera.center_px.tolist()) == (FOCAL, CENTER)


def test_a_ros_camera_info(tmp_path):
    stored = {
        "image_width": 640, "image_height": 480, "distortion_model": "equidistant",
        "camera_matrix": {"rows": 3, "cols": 3, "data": [FOCAL[0], 0, CENTER[0], 0, FOCAL[1], CENTER[1], 0, 0, 1]},
        "distortion_coefficients": {"rows": 1, "cols": 4, "data": KB4},
    }  # fmt: skip
    (camera,) = read_rig([write(tmp_path / "camera.yaml", stored)]).cameras
    assert isinstance(camera, KannalaBrandt)
    assert camera.distortion.tolist() == KB4


def test_mounting_angles_turn_the_picture_upright(tmp_path):
    """The second camera is turned by a quarter, as seen in its picture: what is up for the first is sideways for it."""
    poses = torch.eye(4).double().repeat(2, 1, 1)
    poses[1, :3, :3] = torch.from_numpy(Rotation.from_euler("z", -90, degrees=True).as_matrix())
    poses[1, 0, 3] = 0.1
    rig = read_rig([write(tmp_path / "camchain.yaml", kalibr(poses))])
    assert torch.rad2deg(rig.mounting_angles()).tolist() == pytest.approx([0.0, 90.0])


def change(stored: dict, *path_and_value) -> dict:
    *path, last, value = path_and_value
    inner = stored
    for key in path:
        inner = inner[key]
    inner[last] = value
    return stored


@pytest.mark.parametrize(
    ("path_and_value", "message"),
    [
        (("cam1", "distortion_model", "fov"), "cam1: distortion_model is fov, expected equidistant, radtan, none"),
        (("cam0", "camera_model", "omni"), "cam0: camera_model is omni, expected pinhole"),
        (("cam0", "intrinsics", [1.0, 2.0]), r"cam0: intrinsics has shape \(2,\), expected \(4,\)"),
        (("cam0", "distortion_coeffs", [0.1]), r"distortion_coeffs has shape \(1,\), expected \(4,\)"),
        (("cam0", "resolution", [640.5, 480]), "size is 640.5, expected a whole number"),
        (("cam0", "intrinsics", [-420.0, 425, 318, 241]), r"focal length\[0\] is -420 px"),
        (("cam1", "T_cn_cnm1", np.diag([2.0, 2, 2, 1]).tolist()), "the places of the cameras .* is no rigid motion"),
        (("cam1", {}), "cam1: the field 'camera_model' is missing"),
        (("cam1", "T_cn_cnm1", 3, [0, 0, 0]), "T_cn_cnm1 is not an array of numbers with equal rows"),
    ],
)
def test_what_a_calibration_lacks_is_named(rng, tmp_path, path_and_value, message):
    path = write(tmp_path / "camchain.yaml", change(kalibr(near_poses(rng, 2)), *path_and_value))
    with pytest.raises(InputError, match=message) as caught:
        read_rig([path])
    assert "camchain.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML or JSON"),
        ("- 1\n- 2\n", "no imagewidth|expected a Kalibr, Basalt, OpenCV or ROS calibration"),
        ("!!python/object/apply:os.system ['touch hacked']", "not valid YAML or JSON"),
        ("a: &a [*a]", "expected a Kalibr, Basalt, OpenCV or ROS calibration|not valid YAML"),
        ("[" * 100_000, "not valid YAML or JSON"),
        ("", "expected a Kalibr, Basalt, OpenCV or ROS calibration"),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "calibration.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_rig([path])
    assert not (tmp_path / "hacked").exists()


@pytest.fixture
def stereo(tmp_path) -> tuple[Path, TinyRecording]:
    """A calibration of the two front cameras of a tiny recording, as a Kalibr camchain, and their pictures."""
    tiny = tiny_recording(3)
    poses = torch.tensor(tiny.labels["camera_to_world_transforms"][0])[[1, 2]].double()
    poses[:, :3, 3] /= 1000
    stored = kalibr(poses)
    for entry, camera in zip(stored.values(), tiny.labels["cameras"][1:3], strict=True):
        entry |= {"distortion_model": "equidistant", "distortion_coeffs": KB4, "resolution": [64, 48]}
        entry["intrinsics"] = [camera[name] for name in ("fx", "fy", "cx", "cy")]
    return write(tmp_path / "camchain.yaml", stored), TinyRecording({}, tiny.images[:, 1:3])


def test_a_recording_of_ones_own_rig(stereo, tmp_path, capsys):
    """Calibration in, recording out: it is read without labels, and with those of a hand."""
    calibration, pictures = stereo
    video = pictures.write(tmp_path)
    labels = video.with_suffix(".json")
    labels.unlink()
    assert main(["import-calibration", str(calibration), "--output", str(labels), "--angles", "90", "90"]) == 0
    assert "2 cameras, KannalaBrandt, turned from upright by 90, 90 degrees" in capsys.readouterr().out
    recording = read_recording(video)
    assert (len(recording), len(recording.mounting_angles)) == (3, 2)
    assert isinstance(recording.camera, KannalaBrandt)
    assert not recording.labelled.any()
    assert_close(recording.world_from_camera[0, 0], torch.eye(4).double())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--angles", "90"], "1 --angles, expected one for each of 2 cameras"),
        (["--output", "camchain.yaml"], "camchain.yaml is the calibration camchain.yaml, which it would overwrite"),
    ],
)
def test_import_refuses(stereo, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    before = stereo[0].read_bytes()
    assert main(["import-calibration", "camchain.yaml", "--output", "rig.json", *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "rig.json").exists()
    assert stereo[0].read_bytes() == before


def test_cameras_of_several_models_are_refused(rng, tmp_path, capsys):
    path = write(tmp_path / "camchain.yaml", kalibr(near_poses(rng, 2)))
    assert main(["import-calibration", str(path), "--output", str(tmp_path / "rig.json")]) == 2
    assert "of one model, got KannalaBrandt, RadialTangential" in capsys.readouterr().err
