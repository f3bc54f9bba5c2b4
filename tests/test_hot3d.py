import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import hand_in_front, headset, random_angles, tiny_recording
from made_up_data import put
from scipy.spatial.transform import Rotation
from torch.testing import assert_close

from lib.cameras import Fisheye44, Fisheye62, Fisheye624, Pinhole
from lib.crops import choose_views
from lib.errors import InputError
from lib.formats.challenge_tars import write_challenge_tar
from lib.formats.hand_files import hand_to_json
from lib.formats.hot3d import CALIBRATED_MODELS, camera_from_calibration, read_hot3d
from lib.recordings import read_recording
from lib.rendered.shape import generic_hand
from lib.tracking import true_keypoints
from lib.transforms import homogeneous, quaternion_rotation

STREAMS = ("1201-1", "1201-2")
WIDTH, HEIGHT = 636, 480
MIDDLE_TIP, WRIST_POINT = 2, 5
NAN = float("nan")
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


POINT = np.array([0.31, -0.22, 0.27])
"""Metres before a camera, 54.6 degrees off its axis."""
FOCAL_CENTER = [241.6, 240.9, 317.9, 239.8]
EIGHT = [-0.021, 0.093, -0.064, 0.013, 0.0021, -0.0013, -0.0052, 0.00067]
PRISM = [0.0004, -0.0001, 0.0006, -0.0002]


def image_of(point, focal, center, k, shift=lambda x, y, s2: (0, 0)) -> np.ndarray:
    """The pixel of a point in a fisheye with radial terms k and a shift of what they have bent; plain arithmetic."""
    radius = np.hypot(point[0], point[1])
    angle = np.arctan2(radius, point[2])
    bent = angle * (1 + sum(term * angle ** (2 * n + 2) for n, term in enumerate(k)))
    x, y = bent * point[:2] / radius
    return np.array(focal) * (np.array([x, y]) + shift(x, y, x * x + y * y)) + center


def ovr62(parameters: list[float]) -> np.ndarray:
    fx, fy, cx, cy, k1, k2, k3, k4, p1, p2, k5, k6 = parameters
    return image_of(
        POINT, (fx, fy), (cx, cy), (k1, k2, k3, k4, k5, k6),
        lambda x, y, s2: (2 * p2 * x * y + p1 * (s2 + 2 * x * x), 2 * p1 * x * y + p2 * (s2 + 2 * y * y)),
    )  # fmt: skip


def ovr44(parameters: list[float]) -> np.ndarray:
    fx, fy, cx, cy, k1, k2, k3, k4, p1, p2, p3, p4 = parameters

    def shift(x, y, s2):
        growth = 1 + p3 * s2 + p4 * s2**2
        return growth * (2 * p1 * x * y + p2 * (s2 + 2 * x * x)), growth * (2 * p2 * x * y + p1 * (s2 + 2 * y * y))

    return image_of(POINT, (fx, fy), (cx, cy), (k1, k2, k3, k4), shift)


def ovr624(parameters: list[float]) -> np.ndarray:
    fx, fy, cx, cy, k1, k2, k3, k4, k5, k6, p1, p2, s1, s2, s3, s4 = parameters

    def shift(x, y, r2):
        tangential = 2 * p2 * x * y + p1 * (r2 + 2 * x * x), 2 * p1 * x * y + p2 * (r2 + 2 * y * y)
        return tangential[0] + s1 * r2 + s2 * r2**2, tangential[1] + s3 * r2 + s4 * r2**2

    return image_of(POINT, (fx, fy), (cx, cy), (k1, k2, k3, k4, k5, k6), shift)


def pinhole(parameters: list[float]) -> np.ndarray:
    return np.array(parameters[:2]) * POINT[:2] / POINT[2] + parameters[2:]


@pytest.mark.parametrize(
    ("model", "parameters", "kind", "expected"),
    [
        ("CameraModelType.FISHEYE624", ARIA, Fisheye624, ovr624(ARIA[:1] + ARIA)),
        ("CameraModelType.FISHEYE624", FOCAL_CENTER + ARIA[3:], Fisheye624, ovr624(FOCAL_CENTER + ARIA[3:])),
        ("OculusVisionFishEye624", FOCAL_CENTER + EIGHT + PRISM, Fisheye624, ovr624(FOCAL_CENTER + EIGHT + PRISM)),
        ("OculusVisionFishEye62", FOCAL_CENTER + EIGHT, Fisheye62, ovr62(FOCAL_CENTER + EIGHT)),
        ("OculusVisionFishEye", FOCAL_CENTER + EIGHT, Fisheye44, ovr44(FOCAL_CENTER + EIGHT)),
        ("PinholePlane", FOCAL_CENTER, Pinhole, pinhole(FOCAL_CENTER)),
    ],
)
def test_the_order_of_lens_parameters(model, parameters, kind, expected):
    """Against projections written out here, with parameters that all differ."""
    camera = camera_from_calibration(calibration(model, parameters))
    assert type(camera) is kind
    assert (camera.width, camera.height) == (WIDTH, HEIGHT)
    assert_close(camera.project(torch.from_numpy(POINT)), torch.from_numpy(expected), atol=1e-9, rtol=0)


def test_the_projections_of_this_test_differ():
    """Else the test above could not tell the orders apart."""
    pixels = [project(FOCAL_CENTER + EIGHT) for project in (ovr62, ovr44)] + [ovr624(FOCAL_CENTER + EIGHT + PRISM)]
    for i in range(3):
        assert np.linalg.norm(pixels[i] - pixels[i - 1]) > 0.5


@pytest.mark.parametrize("model", ["OculusVisionFishEye62", "OculusVisionFishEye", "PinholePlane"])
def test_only_fisheye624_may_leave_out_a_focal_length(model):
    count = 3 + CALIBRATED_MODELS[model.upper()].num_distortion
    with pytest.raises(InputError, match=rf"{model} takes {count + 1} projection parameters, got {count}"):
        camera_from_calibration(calibration(model, [240.0, 318.0, 240.0, *EIGHT][:count]))


def test_one_focal_length_serves_both_axes():
    assert camera_from_calibration(calibration()).focal_px.tolist() == [ARIA[0], ARIA[0]]


def test_an_unknown_camera_model_lists_the_known_ones(members, tmp_path):
    with pytest.raises(InputError, match=rf"unknown camera model KB4: known are {', '.join(CALIBRATED_MODELS)}"):
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
        ({"000001.cameras.json": b"{"}, r"000001\.cameras\.json: not in the expected form"),
        ({"000001.cameras.json": b"[" * 100_000}, r"000001\.cameras\.json: not in the expected form"),
        ({"000001.cameras.json": b"7"}, r"000001\.cameras\.json: not in the expected form: expected an object"),
        ({"000001.cameras.json": None}, r"the member 000001\.cameras\.json is missing"),
        ({"000002.hands.json": None}, r"the member 000002\.hands\.json is missing"),
        ({"000001.cameras.json": b"{}"}, r"000001\.cameras\.json: the stream 1201-1 of the first frame is missing"),
        ({"000001.hands.json": b'{"left": 3}'}, r"000001\.hands\.json: not in the expected form"),
        ({"000001.hands.json": b'{"left": {"umetrack_pose": {}}}'}, r"000001\.hands\.json: the field 'joint_angles'"),
        ({"__hand_shapes.json__": b'{"mano": []}'}, "__hand_shapes.json__: the field 'umetrack' is missing"),
        ({f"00000{frame}.cameras.json": None for frame in range(3)}, r"no NNNNNN\.cameras\.json inside"),
    ],
)
def test_malformed_clips(members, tmp_path, change, message):
    kept = {name: content for name, content in {**members, **change}.items() if content is not None}
    with pytest.raises(InputError, match=message):
        read_hot3d(write_tar(tmp_path / "clip.tar", kept))


FIRST, CAMERAS, HANDS = "000000.cameras.json", "000001.cameras.json", "000002.hands.json"
LEFT = ("left", "umetrack_pose")


def changed(content: bytes, *path_and_value) -> bytes:
    """JSON with another value at a path."""
    labels = json.loads(content)
    put(*path_and_value)(labels)
    return json.dumps(labels).encode()


@pytest.mark.parametrize(
    ("member", "path", "value", "message"),
    [
        (CAMERAS, ("1201-2", "T_world_from_camera", "quaternion_wxyz"), [0, 0, 0, 0], "has length 0, exp"),
        (CAMERAS, ("1201-2", "T_world_from_camera", "translation_xyz"), [1e9, 0, 0], "of frame 1, 1201-2"),
        (FIRST, ("1201-1", "calibration", "projection_params", 0), -241.6, "focal length.* is -241.6 px"),
        (FIRST, ("1201-1", "calibration", "projection_params", 5), NAN, r"projection_params\[5\] is nan"),
        (HANDS, (*LEFT, "T_world_from_wrist", "quaternion_wxyz"), [0] * 4, "has length 0"),
        (HANDS, (*LEFT, "T_world_from_wrist", "translation_xyz"), [0, 99, 0], "of frame 2, left"),
        (HANDS, (*LEFT, "joint_angles", 4), 60.0, r"joint_angles\[2\]\[0\]\[4\] is 60 rad"),
        (HANDS, (*LEFT, "joint_angles"), [0.1] * 19, "are 19, expected 20 or 22"),
        ("__hand_shapes.json__", ("umetrack", "hand_scale"), 0.0, "hand_scale is 0, expected 0.1 to 10"),
    ],
)  # fmt: skip
def test_values_that_cannot_be(members, tmp_path, member, path, value, message):
    members[member] = changed(members[member], *path, value)
    with pytest.raises(InputError, match=message) as caught:
        read_hot3d(write_tar(tmp_path / "clip.tar", members))
    assert "clip.tar: " in str(caught.value)


def test_null_is_an_absent_camera_pose_or_hand(members, tmp_path):
    members["000001.cameras.json"] = changed(members["000001.cameras.json"], "1201-2", "T_world_from_camera", None)
    members["000000.hands.json"] = changed(members["000000.hands.json"], "left", "umetrack_pose", None)
    clip = read_hot3d(write_tar(tmp_path / "clip.tar", members))
    assert clip.headset_tracked.tolist() == [True, False, True]
    assert clip.labelled.tolist() == [[False, True], [False, False], [True, False]]


def test_a_clip_without_labels_is_read(members, tmp_path):
    kept = {name: content for name, content in members.items() if "hands" not in name}
    clip = read_hot3d(write_tar(tmp_path / "clip.tar", kept))
    assert not clip.labelled.any()
    assert clip.headset_tracked.all()


def test_a_picture_of_another_size_than_its_camera(members, tmp_path):
    members["000001.image_1201-1.jpg"] = cv2.imencode(".jpg", np.zeros((24, 32), np.uint8))[1].tobytes()
    with pytest.raises(InputError, match="in frame 1 has 32x24 pixels, its camera 636x480"):
        read_hot3d(write_tar(tmp_path / "clip.tar", members)).image("1201-1", 1)


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


TRAJECTORY, HEADSET = "umetrack_hand_pose_trajectory.jsonl", "headset_trajectory.csv"


def write_mask(folder: Path, *rows: str) -> Path:
    path = folder / "masks" / "mask_qa_pass.csv"
    path.parent.mkdir()
    path.write_text("\n".join(("timestamp[ns],stream_id,mask", *rows)))
    return path


@pytest.mark.parametrize(
    ("rows", "passed"),
    [
        (("10,1201-1,True", "20,1201-1,True"), [True, True]),
        (("10,1201-1,True", "10,1201-2,False", "20,1201-1,True", "20,1201-2,True"), [False, True]),
        (("10,1201-1,True",), [True, False]),
        (("10,1201-1,False", "15,1201-1,True"), [False, False]),
    ],
)
def test_frames_that_failed_the_quality_check_are_unlabelled(tmp_path, rows, passed):
    write_recording(tmp_path)
    write_mask(tmp_path, *rows)
    recording = read_hot3d(tmp_path)
    assert recording.passed_quality_check.tolist() == passed
    assert recording.labelled.tolist() == [[passed[0]] * 2, [passed[1], False]]
    assert recording.headset_tracked.all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("10,1201-1,yes",), "mask is yes at 10 ns, expected True or False"),
        (("11,1201-1,True",), "lists none of the labelled times"),
        (("ten,1201-1,True",), "not in the expected form"),
        (("10",), "mask is None"),
    ],
)
def test_malformed_masks(tmp_path, rows, message):
    write_recording(tmp_path)
    path = write_mask(tmp_path, *rows)
    with pytest.raises(InputError, match=f"mask_qa_pass.csv: {message}"):
        read_hot3d(tmp_path)
    path.write_text("time,mask")
    with pytest.raises(InputError, match=r"the column timestamp\[ns\] is missing; there are time, mask"):
        read_hot3d(tmp_path)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (TRAJECTORY, '"timestamp_ns": 20', '"timestamp_ns": 10', "line 2: timestamp_ns is 10"),
        (TRAJECTORY, '"timestamp_ns": 20', '"timestamp_ns": 2e9', "line 2: timestamp_ns is 2000"),
        (TRAJECTORY, '"hand_confidence": 1.0', '"hand_confidence": "x"', "line 1: hand_confidence"),
        (TRAJECTORY, "[0.5, 0.5, -0.5, 0.5]", "[0, 0, 0, 0]", "line 1: q_wxyz has length 0"),
        (HEADSET, "20,0,1,0,1,0,0,0", "20,0,1,0,0,0,0,0", "at 20 ns: quaternion_wxyz has length 0"),
        (HEADSET, "20,0,1,0,1,0,0,0", "20,0,1,0", "headset_trajectory.csv: at 20 ns: not in the"),
        (HEADSET, "20,0,1,0,1,0,0,0", "2" * 200_000, "headset_trajectory.csv: not in the expected form: field larger"),
        (HEADSET, "20,0,1,0,1,0,0,0", "20,0,x,0,1,0,0,0", "at 20 ns: not in the expected form"),
        (HEADSET, "20,0,1,0", "20,0,1000000,0", "of frame 1, 1201-1, is no rigid motion"),
        (HEADSET, "q_wo_w", "q_w", "the column q_wo_w is missing"),
        ("camera_models.json", "[{", '{"a": [{', "camera_models.json is not valid JSON"),
        ("camera_models.json", "[0.1, -0.2, 1.5]", "[NaN, 0, 0]", "T_Device_Camera of a camera is null or not finite"),
    ],
)  # fmt: skip
def test_malformed_recordings(tmp_path, name, old, new, message):
    write_recording(tmp_path)
    content = (tmp_path / name).read_text()
    assert old in content
    (tmp_path / name).write_text(content.replace(old, new))
    with pytest.raises(InputError, match=message):
        read_hot3d(tmp_path)


def test_null_in_place_of_a_hand_of_a_recording(tmp_path):
    write_recording(tmp_path)
    path = tmp_path / "umetrack_hand_pose_trajectory.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["hand_poses"]["1"] = None
    del lines[1]["hand_poses"]["0"]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_hot3d(tmp_path).labelled.tolist() == [[True, False], [False, False]]


def with_streams(members: dict[str, bytes], change) -> dict[str, bytes]:
    """The same clip; `change` may edit the cameras of a frame."""
    for name in [name for name in members if name.endswith("cameras.json")]:
        cameras = json.loads(members[name])
        change(cameras)
        members[name] = json.dumps(cameras).encode()
    return members


def test_a_clip_is_a_recording(members, tmp_path):
    path = write_tar(tmp_path / "clip.tar", members)
    recording, clip = read_recording(path), read_hot3d(path)
    assert recording.path == path
    assert torch.equal(recording.labelled, clip.labelled)
    assert_close(recording.world_from_wrist, clip.world_from_wrist)
    assert_close(recording.camera.distortion[1], clip.camera["1201-2"].distortion)
    images = np.stack(list(recording.images()))
    assert images.shape == (3, 2, HEIGHT, WIDTH)
    assert np.abs(images.astype(int) - [[[[60 * f + 20 * s]] for s in range(2)] for f in range(3)]).max() <= 1
    assert np.array_equal(next(recording.images(start=2)), images[2])


def test_coloured_streams_and_those_without_pictures_are_left_out(members, tmp_path):
    def add(cameras: dict) -> None:
        for stream, label in (("214-1", "camera-rgb"), ("1201-3", "camera-slam-top")):
            cameras[stream] = cameras[STREAMS[0]] | {"calibration": calibration() | {"label": label}}

    members = with_streams(members, add)
    members |= {f"{frame:06d}.image_214-1.jpg": jpeg(200) for frame in range(3)}
    recording = read_recording(write_tar(tmp_path / "clip.tar", members))
    assert next(recording.images()).shape == (2, HEIGHT, WIDTH)
    assert next(recording.images()).max() < 100


def test_streams_of_several_sizes(members, tmp_path):
    def shrink(cameras: dict) -> None:
        cameras["1201-2"]["calibration"] |= {"image_width": 500, "image_height": 400}

    small = cv2.imencode(".jpg", np.full((400, 500), 90, np.uint8))[1].tobytes()
    members = with_streams(members, shrink) | {f"{frame:06d}.image_1201-2.jpg": small for frame in range(3)}
    recording = read_recording(write_tar(tmp_path / "clip.tar", members))
    images = next(recording.images())
    assert recording.camera.size_px.tolist() == [[WIDTH, HEIGHT], [500, 400]]
    assert np.abs(recording.cameras(0).camera.view(images, 1).astype(int) - 90).max() <= 1
    assert not images[1, 400:].any()
    assert not images[1, :, 500:].any()


def test_a_clip_of_a_test_split(members, tmp_path):
    """Without labels, without a hand."""
    members = {name: content for name, content in members.items() if "hand" not in name}
    recording = read_recording(write_tar(tmp_path / "clip.tar", members))
    assert recording.hand_model is None
    assert not recording.labelled.any()
    assert len(list(recording.images())) == 3


def test_a_picture_that_is_missing(members, tmp_path):
    del members["000002.image_1201-1.jpg"]
    recording = read_recording(write_tar(tmp_path / "clip.tar", members))
    with pytest.raises(InputError, match=r"clip\.tar: no picture of stream 1201-1 in frame 2"):
        list(recording.images())


def placed(headset_from_camera: torch.Tensor) -> dict:
    """A pose as clips store it."""
    xyzw = Rotation.from_matrix(headset_from_camera[:3, :3].numpy()).as_quat()
    return {"quaternion_wxyz": [xyzw[3], *xyzw[:3]], "translation_xyz": headset_from_camera[:3, 3].tolist()}


@pytest.mark.parametrize("labels", [("camera-slam-left", "camera-slam-right"), ("camera-a", "camera-b")], ids=str)
@pytest.mark.parametrize("swapped", [False, True])
def test_how_cameras_are_turned(members, tmp_path, labels, swapped):
    """The front cameras of the nominal headset, whose mounting angles are 90 degrees, wherever the headset is."""
    rig = headset()
    world_from_headset = homogeneous(quaternion_rotation(torch.tensor([0.3, 0.5, -0.7, 0.4]).double()), torch.ones(3))
    sides = (1, 2) if not swapped else (2, 1)

    def place(cameras: dict) -> None:
        for stream, side in zip(STREAMS, sides, strict=True):
            cameras[stream]["T_world_from_camera"] = placed(world_from_headset @ rig.world_from_camera[side])
            cameras[stream]["calibration"]["label"] = labels[side - 1]

    members = with_streams(members, place)
    wrist = placed(world_from_headset @ hand_in_front(0.0))
    for name in [name for name in members if name.endswith(".hands.json")]:
        hands = json.loads(members[name])
        hands["left"]["umetrack_pose"]["T_world_from_wrist"] = wrist
        members[name] = json.dumps(hands | {"right": None}).encode()
    recording = read_recording(write_tar(tmp_path / "clip.tar", members))
    assert_close(torch.rad2deg(recording.mounting_angles), torch.full((2,), 90.0).double(), atol=6.0, rtol=0)


def test_crop_cameras_of_a_clip_tell_how_cameras_are_turned(tiny_tracker, tmp_path):
    recording = read_recording(tiny_recording(3).write(tmp_path))
    write_challenge_tar(recording, tmp_path / "clip.tar")
    clip = read_recording(tmp_path / "clip.tar")
    assert_close(clip.mounting_angles[1:3], recording.mounting_angles[1:3], atol=1e-6, rtol=0)
    known = tiny_tracker.track_known(clip, clip.hand_model)
    assert known.valid_tracking.all()
    assert_close(known.gt_keypoints, true_keypoints(recording), atol=1e-3, rtol=0)  # its wrists are of float32


def test_the_real_clip_has_upright_crops(real):
    """Its headset's cameras are turned by a quarter; hands that reach forward have their fingers above the wrist."""
    recording = read_recording(real / "hot3d_quest3")
    assert_close(torch.rad2deg(recording.mounting_angles), torch.full((2,), -90.0).double(), atol=3.0, rtol=0)
    views, crop = choose_views(recording.cameras(0), recording.mounting_angles, recording.hands(0))
    assert views.all()
    pixels = crop.project(recording.hands(0).landmarks()[:, None])
    assert (pixels[:, :, MIDDLE_TIP, 1] < pixels[:, :, WRIST_POINT, 1] - 40).all()
    assert recording.cameras(0)[None].sees(recording.hands(0).landmarks()[:, None]).all()
    with pytest.raises(InputError, match=r"holds no pictures that can be read: of HOT3D its clips"):
        next(recording.images())


def test_the_real_clip_holds_the_poses_of_the_real_recording(real):
    clip, recording = read_hot3d(real / "hot3d_quest3"), read_recording(real / "recording" / "recording_00.mp4")
    assert torch.equal(clip.labelled, recording.labelled)
    assert_close(clip.joint_angles, recording.joint_angles, atol=1e-12, rtol=0)
    assert_close(clip.world_from_wrist, recording.world_from_wrist, atol=1e-12, rtol=0)
    assert_close(clip.hand_model.mesh_vertices, recording.hand_model.mesh_vertices, atol=1e-12, rtol=0)
    assert clip.camera.keys() == {"1201-1", "1201-2"}
