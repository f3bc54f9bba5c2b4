import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import random_angles
from torch.testing import assert_close

from lib.cameras import Fisheye62, Fisheye624, Pinhole
from lib.errors import InputError
from lib.files import hand_to_json
from lib.hot3d import CAMERA_MODELS, camera_from_calibration, read_hot3d
from lib.recordings import read_recording
from lib.rendered.shape import generic_hand

STREAMS = ("1201-1", "1201-2")
WIDTH, HEIGHT = 636, 480
QUATERNION, TRANSLATION = [0.8, 0.0, 0.6, 0.0], [0.1, -0.2, 1.5]
POSE = {"quaternion_wxyz": QUATERNION, "translation_xyz": TRANSLATION}
WRIST = {"quaternion_wxyz": [0.5, 0.5, -0.5, 0.5], "translation_xyz": [0.0, 0.1, 0.4]}
ARIA = [241.6, 317.9, 239.8, -0.02, 0.09, -0.06, 0.01, 0.002, -0.001, 0.0005, -0.0002, 0.0004, -0.0001, 0.0006, -0.0002]


def calibration(model: str = "CameraModelType.FISHEYE624", parameters: list[float] = ARIA) -> dict:
    return {
        "image_width": WIDTH,
        "image_height": HEIGHT,
        "projection_model_type": model,
        "projection_params": parameters,
    }


def tiny_clip(rng) -> dict[str, bytes]:
    """The members of a clip: three frames of two streams; the right hand is missing in frame 1, NaN in frame 2."""
    hand = generic_hand()
    members = {"__hand_shapes.json__": {"umetrack": hand_to_json(hand), "mano": [0.0] * 10}}
    for frame in range(3):
        members[f"{frame:06d}.cameras.json"] = {
            stream: {"calibration": calibration(), "T_world_from_camera": POSE} for stream in STREAMS
        }
        pose = {"joint_angles": random_angles(rng, hand)[:20].tolist(), "T_world_from_wrist": WRIST}
        broken = {"joint_angles": [float("nan")] * 20, "T_world_from_wrist": WRIST}
        right = ({"umetrack_pose": pose}, None, {"umetrack_pose": broken})[frame]
        members[f"{frame:06d}.hands.json"] = {"left": {"umetrack_pose": pose, "mano_pose": None}, "right": right}
        for index, stream in enumerate(STREAMS):
            members[f"{frame:06d}.image_{stream}.jpg"] = jpeg(60 * frame + 20 * index)
    return {name: value if isinstance(value, bytes) else json.dumps(value).encode() for name, value in members.items()}


def jpeg(level: int) -> bytes:
    return cv2.imencode(".jpg", np.full((HEIGHT, WIDTH), level, np.uint8))[1].tobytes()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def members(rng):
    return tiny_clip(rng)


def test_a_clip_comes_back(members, tmp_path):
    clip = read_hot3d(write_tar(tmp_path / "clip.tar", members))
    assert len(clip) == 3
    assert tuple(clip.camera) == STREAMS
    assert clip.labelled.tolist() == [[True, True], [True, False], [True, False]]
    stored = json.loads(members["000001.hands.json"])["left"]["umetrack_pose"]["joint_angles"]
    assert_close(clip.joint_angles[1, 0], torch.tensor([*stored, 0.0, 0.0], dtype=torch.float64))
    assert clip.joint_angles.isfinite().all()
    assert_close(clip.world_from_wrist[0, 0, :3, 3], torch.tensor(WRIST["translation_xyz"], dtype=torch.float64))
    assert_close(clip.hand_model.joint_rest_positions.float(), generic_hand().joint_rest_positions)


def test_cameras_of_a_clip_stand_where_the_file_says(members, tmp_path):
    posed = read_hot3d(write_tar(tmp_path / "clip.tar", members)).posed("1201-2", 1)
    # 0.8 + 0.6 j turns by 2 acos(0.8) about y: cos 0.28, sin 0.96.
    expected = [[0.28, 0, 0.96, 0.1], [0, 1, 0, -0.2], [-0.96, 0, 0.28, 1.5], [0, 0, 0, 1]]
    assert_close(posed.world_from_camera, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_pictures_of_a_clip(members, tmp_path):
    clip = read_hot3d(write_tar(tmp_path / "clip.tar", members))
    for frame in range(3):
        for index, stream in enumerate(STREAMS):
            picture = clip.image(stream, frame)
            assert picture.shape == (HEIGHT, WIDTH)
            assert np.abs(picture.astype(int) - (60 * frame + 20 * index)).max() <= 1
    with pytest.raises(InputError, match="no picture of stream 214-1 in frame 0; streams: 1201-1, 1201-2"):
        clip.image("214-1", 0)


def test_a_broken_picture(members, tmp_path):
    clip = read_hot3d(write_tar(tmp_path / "clip.tar", {**members, "000001.image_1201-1.jpg": b"no picture"}))
    with pytest.raises(InputError, match="picture of stream 1201-1 in frame 1 is broken"):
        clip.image("1201-1", 1)


def test_names_that_leave_the_folder_are_ignored(members, tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    evil = {"../escaped.json": b"{}", "/tmp/000009.cameras.json": b"{}", "../000009.image_1201-1.jpg": jpeg(3)}
    clip = read_hot3d(write_tar(folder / "clip.tar", {**members, **evil}))
    assert len(clip) == 3
    assert len(clip.encoded) == 6
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "clip.tar"]


@pytest.mark.parametrize(
    ("model", "parameters", "expected"),
    [
        ("CameraModelType.FISHEYE624", ARIA, Fisheye624),
        ("CameraModelType.FISHEYE624", ARIA[:1] + ARIA, Fisheye624),
        ("OculusVisionFishEye62", [240.0, 241.0, 320.0, 239.0, *[0.01] * 8], Fisheye62),
        ("PinholePlane", [240.0, 241.0, 320.0, 239.0], Pinhole),
    ],
)
def test_camera_models(model, parameters, expected):
    camera = camera_from_calibration(calibration(model, parameters))
    assert type(camera) is expected
    assert (camera.width, camera.height) == (WIDTH, HEIGHT)
    assert torch.cat((camera.focal_px, camera.center_px, camera.distortion)).tolist()[-len(parameters) :] == parameters


def test_one_focal_length_serves_both_axes():
    assert camera_from_calibration(calibration()).focal_px.tolist() == [ARIA[0], ARIA[0]]


def test_an_unknown_camera_model_lists_the_known_ones(members, tmp_path):
    with pytest.raises(InputError, match=rf"unknown camera model KB4: known are {', '.join(CAMERA_MODELS)}"):
        camera_from_calibration(calibration("KB4"))
    stored = json.loads(members["000000.cameras.json"])
    stored["1201-1"]["calibration"]["projection_model_type"] = "KB4"
    path = write_tar(tmp_path / "clip.tar", {**members, "000000.cameras.json": json.dumps(stored).encode()})
    with pytest.raises(InputError, match=r"clip\.tar: 000000\.cameras\.json: unknown camera model KB4"):
        read_hot3d(path)


def test_a_wrong_number_of_parameters():
    with pytest.raises(InputError, match="FISHEYE624 takes 16 projection parameters, got 14"):
        camera_from_calibration(calibration(parameters=ARIA[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"__hand_shapes.json__": None}, "the member __hand_shapes.json__ is missing"),
        ({"000001.cameras.json": b'{"1201-1": {}}'}, "is missing"),
        ({"000001.cameras.json": b"{"}, "not in the expected form"),
        ({f"00000{frame}.cameras.json": None for frame in range(3)}, r"no NNNNNN\.cameras\.json inside"),
    ],
)
def test_malformed_clips(members, tmp_path, change, message):
    kept = {name: content for name, content in {**members, **change}.items() if content is not None}
    with pytest.raises(InputError, match=message):
        read_hot3d(write_tar(tmp_path / "clip.tar", kept))


def test_not_a_clip(members, tmp_path):
    path = tmp_path / "clip.tar"
    for content in (b"no tar at all" * 100, write_tar(path, members).read_bytes()[:2000]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a clip that can be read"):
            read_hot3d(path)
    with pytest.raises(InputError, match="is not a clip that can be read"):
        read_hot3d(tmp_path / "none.tar")


def write_recording(folder: Path) -> None:
    """A recording of two frames: the headset one metre up, the left hand tracked in both frames, the right in one."""
    wrist = {"t_xyz": WRIST["translation_xyz"], "q_wxyz": WRIST["quaternion_wxyz"]}
    hands = [
        {"wrist_xform": wrist, "joint_angles": [0.1] * 22, "hand_confidence": confidence} for confidence in (1.0, 0.0)
    ]
    lines = [{"timestamp_ns": 10, "hand_poses": {"0": hands[0], "1": hands[0]}}]
    lines += [{"timestamp_ns": 20, "hand_poses": {"0": hands[0], "1": hands[1]}}]
    model = {"imageWidth": WIDTH, "imageHeight": HEIGHT, "projectionModelType": "CameraModelType.FISHEYE624"}
    stored = {**model, "projectionParams": ARIA, "stream_id": "1201-1", "T_Device_Camera": POSE}
    header = "timestamp[ns]," + ",".join(f"t_wo_{a}[m]" for a in "xyz") + "," + ",".join(f"q_wo_{a}" for a in "wxyz")
    (folder / "umetrack_hand_pose_trajectory.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "camera_models.json").write_text(json.dumps([stored]))
    (folder / "headset_trajectory.csv").write_text(f"{header}\n10,0,1,0,1,0,0,0\n20,0,1,0,1,0,0,0")
    (folder / "umetrack_hand_user_profile.json").write_text(json.dumps(hand_to_json(generic_hand())))


def test_a_recording_comes_back(tmp_path):
    write_recording(tmp_path)
    recording = read_hot3d(tmp_path)
    assert recording.labelled.tolist() == [[True, True], [True, False]]
    position = recording.posed("1201-1", 1).world_from_camera[:3, 3]
    assert_close(position, torch.tensor([0.1, 0.8, 1.5], dtype=torch.float64))
    assert_close(recording.joint_angles[1], torch.tensor([[0.1], [0.0]], dtype=torch.float64).expand(2, 22))


@pytest.mark.parametrize(
    "name",
    [
        "umetrack_hand_pose_trajectory.jsonl",
        "camera_models.json",
        "headset_trajectory.csv",
        "umetrack_hand_user_profile.json",
    ],
)
def test_a_recording_with_a_missing_file(tmp_path, name):
    write_recording(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=name):
        read_hot3d(tmp_path)


def test_a_frame_without_headset_pose_is_one_frame(tmp_path):
    write_recording(tmp_path)
    path = tmp_path / "headset_trajectory.csv"
    path.write_text(path.read_text().replace("20,0", "21,0"))
    recording = read_hot3d(tmp_path)
    assert recording.headset_tracked.tolist() == [True, False]
    assert recording.labelled.tolist() == [[True, True], [False, False]]
    assert recording.world_from_camera["1201-1"].isfinite().all()
    path.write_text(path.read_text().replace("10,0", "11,0"))
    with pytest.raises(InputError, match="no headset pose at any of 2 labelled times"):
        read_hot3d(tmp_path)


def test_the_real_clip_holds_the_poses_of_the_real_recording(real):
    clip, recording = read_hot3d(real / "hot3d_quest3"), read_recording(real / "recording" / "recording_00.mp4")
    assert torch.equal(clip.labelled, recording.labelled)
    assert_close(clip.joint_angles, recording.joint_angles, atol=1e-12, rtol=0)
    assert_close(clip.world_from_wrist, recording.world_from_wrist, atol=1e-12, rtol=0)
    assert_close(clip.hand_model.mesh_vertices, recording.hand_model.mesh_vertices, atol=1e-12, rtol=0)
    assert clip.camera.keys() == {"1201-1", "1201-2"}
