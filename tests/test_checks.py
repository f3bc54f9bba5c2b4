"""Values that cannot be are refused, with entry, frame and likely cause; what can be is read."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import MOUNTING_ANGLES_DEG, TinyRecording, in_mm, tiny_recording
from made_up_data import put

from lib.errors import InputError
from lib.files import MM
from lib.formats.checks import json_array
from lib.formats.hand_files import hand_from_json
from lib.recordings import read_recording
from lib.transforms import axis_angle_rotation, homogeneous

FRAMES = 6
CAMERAS, WRISTS = "camera_to_world_transforms", "wrist_transforms"


@pytest.fixture
def walking() -> TinyRecording:
    """The tiny recording in a room: the headset is 1.2 m from the origin, turns and moves."""
    tiny, time = tiny_recording(FRAMES), torch.arange(FRAMES, dtype=torch.float64)
    axis = torch.nn.functional.normalize(torch.tensor([0.3, 1.0, 0.2], dtype=torch.float64), dim=0)
    turned = axis_angle_rotation(axis.expand(FRAMES, 3), 0.7 + 0.05 * time)
    position = torch.stack((0.2 + 0.02 * time, -1.1 + 0 * time, 0.4 - 0.01 * time), dim=1)
    room_from_headset = in_mm(homogeneous(turned, position))[:, None]
    for name in (CAMERAS, WRISTS):
        tiny.labels[name] = (room_from_headset @ torch.tensor(tiny.labels[name], dtype=torch.float64)).tolist()
    return tiny


def test_the_recording_in_a_room_is_read(walking, tmp_path):
    recording = read_recording(walking.write(tmp_path))
    assert recording.labelled.all()
    assert recording.posed.all()


def transposed(poses: np.ndarray) -> np.ndarray:
    return poses.swapaxes(-1, -2)


def enlarged(poses: np.ndarray) -> np.ndarray:
    return poses * np.where(np.pad(np.ones((3, 3)), (0, 1)) == 1, 1.05, 1.0)


def mirrored(poses: np.ndarray) -> np.ndarray:
    return poses * [-1, 1, 1, 1]


def with_positions_times(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda poses: poses * np.where(np.arange(4) == 3, [[factor], [factor], [factor], [1]], 1.0)


def of_one_frame(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda poses: np.where(np.arange(len(poses))[:, None, None, None] == 4, change(poses), poses)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (CAMERAS, transposed, f"{CAMERAS} of frame 0, camera 0, is no rigid motion.* 0 0 0 1; transposed\\?"),
        (WRISTS, transposed, f"{WRISTS} of frame 0, left, is no rigid motion.*transposed\\?"),
        (CAMERAS, of_one_frame(transposed), f"{CAMERAS} of frame 4, camera 0, .*transposed\\?"),
        (CAMERAS, enlarged, r"frame 0, camera 0, is no rigid motion.*scaled by 1\.05\?"),
        (WRISTS, enlarged, r"frame 0, left, is no rigid motion.*scaled by 1\.05\?"),
        (WRISTS, of_one_frame(mirrored), r"frame 4, left, .*mirrored\? \(right hands are stored unmirrored\)"),
        (WRISTS, lambda poses: 1e-6 * poses, "frame 0, left, is no rigid motion"),
        (CAMERAS, np.linalg.inv, rf"{CAMERAS}.*inverted \(camera_from_world\)\?"),
        (WRISTS, np.linalg.inv, f"the labelled wrists are out of view or reach, .* if .*{WRISTS} were inverted"),
        (CAMERAS, with_positions_times(1e-3), r"all cameras lie within 0\.144 mm; in metres instead of mm\?"),
        (CAMERAS, with_positions_times(1e3), r"two cameras lie 144 m apart, expected a headset of up to 1 m"),
        (CAMERAS, with_positions_times(1e30), "position within 10 km"),
        (WRISTS, with_positions_times(1e-3), r"all wrists lie within 5 mm of the origin; in metres instead of mm\?"),
        (WRISTS, with_positions_times(1e3), r"lies 1\d\d\d m from any camera.*in another unit than camera_to_world"),
        (WRISTS, of_one_frame(with_positions_times(9.0)), r"of frame 4, (left|right), lies .* m from any camera"),
    ],
)
def test_poses_that_cannot_be(walking, tmp_path, name, change, message):
    walking.labels[name] = change(np.array(walking.labels[name])).tolist()
    with pytest.raises(InputError, match=message):
        read_recording(walking.write(tmp_path))


def test_a_camera_that_moves_within_its_headset(walking, tmp_path):
    poses = np.array(walking.labels[CAMERAS])
    poses[3, 2, 0, 3] += 30
    walking.labels[CAMERAS] = poses.tolist()
    with pytest.raises(InputError, match="in frame 3, camera 2 stands elsewhere in the headset than in most"):
        read_recording(walking.write(tmp_path))


def test_rounded_poses_and_small_corrections_of_the_rig_are_read(walking, tmp_path):
    poses = np.array(walking.labels[CAMERAS])
    poses[3, 2, 0, 3] += 5
    walking.labels[CAMERAS] = poses.round(3).tolist()
    walking.labels[WRISTS] = np.array(walking.labels[WRISTS]).round(3).tolist()
    assert read_recording(walking.write(tmp_path)).labelled.all()


def test_hands_that_no_camera_sees_are_read(walking, tmp_path):
    """Out of view, half a metre behind the headset, but of the right convention."""
    wrists, cameras = np.array(walking.labels[WRISTS]), np.array(walking.labels[CAMERAS])
    wrists[..., :3, 3] = cameras[:, :1, :3, 3] - 500 * cameras[:, 1:2, :3, 2]
    walking.labels[WRISTS] = wrists.tolist()
    assert read_recording(walking.write(tmp_path)).labelled.all()


def test_what_is_not_labelled_may_be_anything(walking, tmp_path):
    walking.labels["hand_confidences"][2][1] = 0.0
    walking.labels[WRISTS][2][1] = np.full((4, 4), 1e9).tolist()
    walking.labels["joint_angles"][2][1] = [90.0] * 22
    recording = read_recording(walking.write(tmp_path))
    assert recording.labelled.sum() == 2 * FRAMES - 1
    assert torch.equal(recording.world_from_wrist[2, 1], torch.eye(4, dtype=torch.float64))
    assert not recording.joint_angles[2, 1].any()


NAN, INF = float("nan"), float("inf")
DEEP = json.loads("[" * 900 + "1" + "]" * 900)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("cameras", 1, "fx", -24.0), r"cameras: focal length\[1\]\[0\] is -24 px, expected 0\.05 to 50 times"),
        (put("cameras", 3, "fy", 0.37), r"focal length\[3\]\[1\] is 0\.37 px.*not in pixels\?"),
        (put("cameras", 0, "cx", 317.5), r"principal point\[0\]\[0\] is 317\.5 px, far outside the image's 64x48"),
        (put("cameras", 0, "k3", NAN), "cameras: k3 is nan, expected a finite number"),
        (put("cameras", 0, "p1", 1e30), r"distortion\[0\]\[6\] is 1e\+30, expected -100 to 100"),
        (put("cameras", 0, "ImageSizeX", INF), "cameras: ImageSizeX is inf, expected a finite number"),
        (put("cameras", 0, "ImageSizeX", 64.5), r"ImageSizeX is 64\.5, expected a whole number"),
        (put("cameras", 0, "ImageSizeX", 10**400), "ImageSizeX is not an array of numbers"),
        (put("cameras", 0, 7), "cameras: not in the expected form: an object with the field 'DistortionModel'"),
        (put("cameras", {"a": 1}), "cameras: expected 1 to 8 cameras, got a dict"),
        (put("camera_angles", np.deg2rad(MOUNTING_ANGLES_DEG).tolist()), r"camera_angles\[1\] is 1\.57.*in radians\?"),
        (put("camera_angles", 2, 1e9), r"camera_angles\[2\] is 1e\+09, expected -360 to 360"),
        (put("joint_angles", 1, 0, 5, 45.0), r"joint_angles\[1\]\[0\]\[5\] is 45 rad.*in degrees\?"),
        (put("joint_angles", 1, 0, 5, 10**400), "joint_angles is not an array of numbers"),
        (put("joint_angles", 1, 0, DEEP), "joint_angles is not an array of numbers"),
        (put("hand_model", "hand_scale", 0.01), "hand_scale is 0.01, expected 0.1 to 10"),
        (put("hand_model", "hand_scale", 10**400), "hand_model: hand_scale is not an array of numbers"),
        (put("hand_model", "joint_rotation_axes", 4, [0, 0, 0]), r"joint_rotation_axes\[4\] has length 0, expected 1"),
        (put("hand_model", "joint_rotation_axes", 21, [1e30, 0, 0]), r"joint_rotation_axes\[21\] has length 1e\+30"),
        (put("hand_model", "landmark_rest_bone_weights", 7, [0, 0, 0]), r"landmark_rest_bone_weights\[7\] sums to 0"),
        (put("hand_model", "dense_bone_weights", 7, [0] * 17), r"dense_bone_weights\[7\] sums to 0"),
        (put("hand_model", "dense_bone_weights", 7, 0, -5), r"dense_bone_weights\[7\]\[0\] is -5, expected -0\.01"),
        (put("hand_model", "dense_bone_weights", [[1.0] + [0.0] * 16]), r"dense_bone_weights has shape \(1, 17\)"),
        (put("hand_model", "mesh_triangles", 0, 0, 100_000), r"mesh_triangles must lie in 0\.\.\d+"),
        (put("hand_model", "landmark_rest_bone_indices", 0, 0, 1.5), "landmark_rest_bone_indices must lie in 0..16"),
        (put("hand_model", "joint_limits", 3, [1.0, -1.0]), r"joint_limits\[3\] begins at 1 rad, above its end"),
        (put("hand_model", "joint_limits", 3, [-45, 74]), r"joint_limits\[3\]\[0\] is -45, expected"),
        (put("hand_model", "joint_rest_positions", 3, 0, NAN), r"joint_rest_positions\[3\]\[0\] is nan, expected a"),
    ],
)  # fmt: skip
def test_values_that_cannot_be(tmp_path, change, message):
    tiny = tiny_recording(3)
    change(tiny.labels)
    with pytest.raises(InputError, match=message) as caught:
        read_recording(tiny.write(tmp_path))
    assert "recording_00.json: " in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("joint_rest_positions", "landmark_rest_positions", "mesh_vertices"), r"reach 0\.1\d* mm.*in metres instead"),
        (("joint_rest_positions",), "joint_rest_positions reach .* in another unit than they"),
        (("mesh_vertices",), "mesh_vertices reach .* in another unit than they"),
    ],
)
def test_hands_in_metres(names, message):
    hand = tiny_recording(1).labels["hand_model"]
    hand |= {name: (np.array(hand[name]) / MM).tolist() for name in names}
    with pytest.raises(InputError, match=message):
        hand_from_json(hand)


def test_labels_beyond_the_limits_of_a_joint_are_read(tmp_path):
    """Real ones exceed them by up to five degrees."""
    tiny = tiny_recording(2)
    limits = np.array(tiny.labels["hand_model"]["joint_limits"])
    tiny.labels["joint_angles"] = np.tile(limits[:, 1] + np.deg2rad(10), (2, 2, 1)).tolist()
    assert read_recording(tiny.write(tmp_path)).labelled.all()


@pytest.mark.parametrize("value", [[[1.0, 2.0], None], None, [[1.0, None], [3.0, 4.0]], [[[1.0]], [[2.0]]]])
def test_null_where_nothing_may_be_absent(value):
    with pytest.raises(InputError, match=r"^values (is not an array|has shape)"):
        json_array({"values": value}, "values", (2, 2))


@pytest.mark.parametrize(
    ("names", "frame", "hand"),
    [
        (("joint_angles",), 1, 0),
        ((WRISTS,), 2, 1),
        (("hand_confidences",), 0, 1),
        (("joint_angles", WRISTS, "hand_confidences"), 2, 0),
    ],
)
def test_null_in_place_of_a_hand_is_an_absent_hand(walking, tmp_path, names, frame, hand):
    for name in names:
        walking.labels[name][frame][hand] = None
    recording = read_recording(walking.write(tmp_path))
    expected = torch.ones(FRAMES, 2, dtype=torch.bool)
    expected[frame, hand] = False
    assert torch.equal(recording.labelled, expected)


def test_null_in_place_of_the_cameras_is_a_frame_without_headset(walking, tmp_path):
    walking.labels[CAMERAS][2] = None
    recording = read_recording(walking.write(tmp_path))
    assert recording.posed.tolist() == [frame != 2 for frame in range(FRAMES)]
    assert recording.labelled.all(dim=1).tolist() == recording.posed.tolist()
