"""The network as an ONNX file: what it says, and that it needs no torch."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, normal, random_crops, tiny_network
from test_live import World

from lib.cli import main
from lib.crops import Crops
from lib.errors import InputError
from lib.files import MM
from lib.hands import for_hand
from lib.live import onnx_files
from lib.live.engines import onnx_engine, torch_engine
from lib.live.onnx_files import _rotation_by_products, export_network, nearest_rotation, open_session
from lib.network import TemporalState, root_points
from lib.rendered.shape import generic_hand
from lib.tracking import prepare_for_inference
from lib.transforms import nearest_rotation as by_svd

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SHAPES = {
    "all": {},
    "without feature transform": {"feature_transform": False},
    "without skeleton encoder": {"skeleton_encoder": False},
    "without temporal module": {"temporal_module": False},
    "convolution": {"stem": "convolution", "widths": (8, 8, 8, 8), "blocks": (1, 1, 1, 1)},
}


def some_frames(rng: np.random.Generator) -> list:
    """Both hands, one of them, seen by two cameras or by one."""
    hands = [[0, 1], [0, 1], [1], [0, 1], [0]]
    views = (True, True), (False, True), (False,), (False, False), (True,)
    return [(torch.tensor(h), random_crops(rng, two)) for h, two in zip(hands, views, strict=True)]


@pytest.mark.parametrize("mirrored", [False, True])
def test_rotations_are_those_of_singular_values(rng, mirrored):
    points = root_points().double() @ by_svd(normal(rng, 200, 3, 3)).mT + 0.02 * normal(rng, 200, 7, 3)
    matrix = (points - points.mean(dim=1, keepdim=True)).mT @ (root_points() - root_points().mean(dim=0)).double()
    matrix = matrix * torch.tensor([1.0, 1.0, -1.0 if mirrored else 1.0])
    assert (matrix.det() < 0).any() == mirrored
    torch.testing.assert_close(nearest_rotation(matrix, _rotation_by_products()), by_svd(matrix), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_networks_of_every_shape_say_the_same(tmp_path, rng, hand, shape):
    network, path = tiny_network(**SHAPES[shape]), tmp_path / "network.onnx"
    export_network(network, path, hand, some_frames(rng))
    assert [p.name for p in tmp_path.iterdir()] == ["network.onnx"]
    assert not network.training
    with pytest.raises(InputError, match=r"no file is written: its joint angles \(rad\) differ from torch's by"):
        onnx_files.check_frames(open_session(path), tiny_network(1, **SHAPES[shape]), hand, some_frames(rng))


def test_a_file_that_says_something_else_is_not_left(tmp_path, rng, hand, monkeypatch):
    monkeypatch.setattr(onnx_files, "BACKBONE_FOCAL_PX", 201.0)
    with pytest.raises(InputError, match="differ from torch's by"):
        export_network(tiny_network(), tmp_path / "network.onnx", hand, some_frames(rng))
    assert not [*tmp_path.iterdir()]


def test_the_live_tracker_sees_the_same_by_either_engine(tmp_path, rng, hand):
    frames = some_frames(rng)
    export_network(tiny_network(), tmp_path / "network.onnx", hand, frames)
    engines = torch_engine(prepare_for_inference(tiny_network())), onnx_engine(open_session(tmp_path / "network.onnx"))
    engines, states = list(enumerate(engines)), [TemporalState.untracked(2)] * 2
    with torch.inference_mode():
        for hands, crops in [*frames, *frames]:
            by_torch, by_onnx = (engine(crops, hands, hand.to(dtype=torch.float32), states[i]) for i, engine in engines)
            states = [by_torch.after, by_onnx.after]
            wrists = [for_hand(o.known.world_from_wrist.double(), hands) for o in (by_torch, by_onnx)]
            angles = [o.known.joint_angles.double() for o in (by_torch, by_onnx)]
            landmarks = [MM * hand.landmarks(*pose) for pose in zip(angles, wrists, strict=True)]
            torch.testing.assert_close(*landmarks, atol=0.1, rtol=0)
            for name in ("extracted", "features"):
                torch.testing.assert_close(getattr(by_torch, name), getattr(by_onnx, name), atol=1e-4, rtol=0)
            assert torch.equal(states[0].tracked, states[1].tracked)
            torch.testing.assert_close(states[0].camera_from_world, states[1].camera_from_world)


def test_the_live_tracker_asks_its_engine(hand):
    world, asked = World(hand), []

    def engine(crops, hands, *rest):
        asked.append(hands.tolist())
        return torch_engine(world)(crops, hands, *rest)

    tracker = world.tracker(engine=engine)
    seen, _ = world.run(tracker, tracker.start(), 3)
    assert seen[-1].tracked.all()
    assert asked[-1] == [0, 1]


def test_the_script_of_the_readme_needs_no_torch(tmp_path, weights):
    """Nor anything else of this project; its poses are torch's."""
    text = (ROOT / "lib" / "README.md").read_text()
    (script,) = (part.split("```")[0] for part in text.split("```python\n") if "onnxruntime.InferenceSession(" in part)
    assert main(["export", str(weights), "--format", "onnx", "--output", str(tmp_path / "network.onnx")]) == 0
    blocked = "import sys\nsys.modules |= {'torch': None, 'lib': None}\n"
    saved = "\nnp.savez('out.npz', **pose, images=crops['images'], **hands)\n"
    command = [sys.executable, "-W", "error", "-c", blocked + script + saved]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    out = {name: torch.from_numpy(value) for name, value in np.load(tmp_path / "out.npz").items()}
    torch.testing.assert_close(out, out | expected_of_script(), atol=1e-4, rtol=1e-4)


def expected_of_script() -> dict[str, torch.Tensor]:
    """What torch makes of the same arrays."""
    rng, network = np.random.default_rng(0), tiny_network()
    skeleton = torch.from_numpy(rng.random(132, np.float32)).reshape(22, 6)
    state = TemporalState.untracked(2)
    for _ in range(3):
        crops = Crops(
            images=torch.from_numpy(rng.random((2, 2, 96, 96), np.float32)),
            focal_px=torch.full((2, 2), 200.0),
            camera_from_world=torch.eye(4).repeat(2, 2, 1, 1),
            hand=torch.tensor([0, 1]),
            two_views=torch.tensor([True, False]),
        )
        features, state = network.features(crops, state)
    axes, positions = skeleton.split(3, dim=1)
    model = replace(generic_hand(), joint_rotation_axes=axes, joint_rest_positions=positions)
    known, unknown = network.known(features, crops, model), network.unknown(features, crops)
    return {
        "joint_angles": known.joint_angles,
        "world_from_wrist": known.world_from_wrist,
        "landmark_sigma": known.landmark_sigma,
        "scale": unknown.scale,
        "next_memory": state.memory,
    }


@pytest.mark.parametrize("name", ["keynet", "detnet"])
def test_networks_of_the_baseline(tmp_path, name):
    released = ROOT / "results" / "reference" / "checkpoints" / f"{name}.safetensors"
    assert main(["export", str(released), "--format", "onnx", "--output", str(tmp_path / "network.onnx")]) == 0
    assert open_session(tmp_path / "network.onnx").get_inputs()[0].shape[1] == 1


def test_without_onnxruntime_it_says_what_to_install(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(weights), "--format", "onnx", "--output", str(tmp_path / "network.onnx")]) == 2
    assert "pip install onnx onnxruntime" in capsys.readouterr().err
    assert not (tmp_path / "network.onnx").exists()


def test_what_is_no_onnx_file_is_refused(tmp_path):
    (tmp_path / "network.onnx").write_bytes(b"no")
    with pytest.raises(InputError, match="not an ONNX file that can be run"):
        open_session(tmp_path / "network.onnx")
