"""The end-to-end network as one ONNX file: a frame of hands in one call, without torch.

ONNX has no singular value decomposition, and a trace keeps no sizes that Python has seen. So `NetworkFrame` computes
anew what `lib.network` computes; `export_network` leaves no file whose poses are others.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.crops import Crops
from lib.errors import InputError
from lib.files import MM, write_atomically
from lib.hands import HANDS, NUM_FINGER_JOINTS, NUM_JOINTS, RIGHT, HandModel, for_hand
from lib.network import BACKBONE_FOCAL_PX, MEMORY_CHANNELS, MIN_SIGMA, Regressor, TemporalState, UmeTrack
from lib.tracking import advance
from lib.transforms import quaternion_rotation

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OUTPUTS = ("joint_angles", "world_from_wrist", "landmark_sigma", "scale", "next_memory", "features", "extracted")
OPSET = 18
ANGLE_TOLERANCE, LANDMARK_TOLERANCE_MM = 1e-4, 0.1
"""By which poses of the file may differ from those of torch (rad, mm), and its other outputs (the first)."""
_SQUARINGS = 16

Frames = Sequence[tuple[Tensor, Crops]]
"""Which of the two hands are in the crops of a frame, and the crops."""
_Motion = tuple[Tensor, Tensor]
"""Rotation, mirrored or not, and translation as a column."""


class NetworkFrame(nn.Module):
    """One frame of a network in evaluation mode, in operations that ONNX has.

    Takes what `frame_inputs` gives and returns what `OUTPUTS` names, for any number of hands: the pose by regressor K,
    the scale of the generic hand by regressor U, which means something for hands that two cameras see, the memory for
    the next frame, and the features after and before the temporal module.
    """

    def __init__(self, network: UmeTrack):
        super().__init__()
        self.network = network.eval()
        self.register_buffer("products", _rotation_by_products())

    def forward(
        self, images, focal_px, camera_from_world, hand, two_views, skeleton_feature, memory, memory_camera_from_world,
        tracked,
    ):  # fmt: skip
        network, reference = self.network, camera_from_world[:, 0]
        extracted = features = self._extract(images, focal_px, camera_from_world, two_views)
        if network.config.temporal_module:
            if network.config.feature_transform:
                memory = _move(memory, _between(reference, memory_camera_from_world))
            memory = torch.where(tracked[:, None, None, None], memory, 0.0)
            mixed = network.temporal(torch.cat((memory, features), dim=1))
            memory, features = mixed[:, :MEMORY_CHANNELS], mixed[:, MEMORY_CHANNELS:]
        given = features
        if network.config.skeleton_encoder:
            skeleton = network.skeleton_encoder(skeleton_feature[None]).expand(images.shape[0], -1, -1, -1)
            given = torch.cat((features, skeleton), dim=1)
        angles, points, _, sigma = _regress(network.regressor_known, given)
        _, _, log_scale, _ = _regress(network.regressor_unknown, features)
        return (
            nn.functional.pad(angles, (0, NUM_JOINTS - NUM_FINGER_JOINTS)), self._wrist(points, reference, hand),
            nn.functional.softplus(sigma).clamp(min=MIN_SIGMA), log_scale[:, 0].exp(), memory, features, extracted,
        )  # fmt: skip

    def _extract(self, images, focal_px, camera_from_world, two_views):
        """As `UmeTrack.extract`, with only the second views that there are."""
        hands, network = images.shape[0], self.network
        pictures = torch.cat((images[:, 0], images[:, 1].index_select(0, two_views.nonzero()[:, 0])))
        encoded = network.backbone(pictures[:, None])
        place = torch.where(two_views, hands - 1 + two_views.long().cumsum(dim=0), 0)
        first, second = encoded[:hands], encoded.index_select(0, place)
        depth = (focal_px / BACKBONE_FOCAL_PX)[..., None, None]
        one = torch.ones_like(depth)
        lens = torch.cat((one, one, depth), dim=-2)
        if network.config.feature_transform:
            rotation, translation = _between(camera_from_world[:, 0], camera_from_world[:, 1])
            unscaled = rotation * lens[:, 1].transpose(-1, -2) / lens[:, 0], translation / lens[:, 0]
            second = _move(second, unscaled)
        fused = network.fusion(torch.cat((first, second), dim=1))
        features = torch.where(two_views[:, None, None, None], fused, first)
        if network.config.feature_transform:
            features = (features.reshape(hands, 3, -1) * lens[:, 0]).reshape(features.shape)
        return features

    def _wrist(self, points, camera_from_world, hand):
        """The wrist by its root points in the camera, as `transforms.align_points` and `hands.for_hand` have it."""
        rest = self.network.regressor_known.root_points
        points = points.reshape(-1, *rest.shape)
        center, rest_center = points.mean(dim=1, keepdim=True), rest.mean(dim=0, keepdim=True)
        turn = nearest_rotation((points - center).transpose(-1, -2) @ (rest - rest_center), self.products)
        shift = (center - rest_center @ turn.transpose(-1, -2)).transpose(-1, -2)
        world_from_camera = camera_from_world[:, :3, :3].transpose(-1, -2)
        mirrored = torch.where((hand == RIGHT)[:, None], torch.tensor([-1.0, 1.0, 1.0]), torch.ones(3))
        rotation = world_from_camera @ turn * mirrored[:, None]
        translation = world_from_camera @ (shift - camera_from_world[:, :3, 3:])
        bottom = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(points.shape[0], 1, 4)
        return torch.cat((torch.cat((rotation, translation), dim=2), bottom), dim=1)


def _regress(regressor: Regressor, features: Tensor) -> tuple[Tensor, ...]:
    """Angles, root points, log scale and sigmas, as `Regressor` has them."""
    return regressor.layers(features).mean(dim=(2, 3)).split(regressor.sizes, dim=1)


def _between(b_from_world: Tensor, a_from_world: Tensor) -> _Motion:
    """b_from_a."""
    rotation = b_from_world[:, :3, :3] @ a_from_world[:, :3, :3].transpose(-1, -2)
    return rotation, b_from_world[:, :3, 3:] - rotation @ a_from_world[:, :3, 3:]


def _move(features: Tensor, motion: _Motion) -> Tensor:
    """As `network.feature_transform`."""
    rotation, translation = motion
    return (rotation @ features.reshape(features.shape[0], 3, -1) + translation).reshape(features.shape)


def nearest_rotation(matrix: Tensor, products: Tensor) -> Tensor:
    """As `transforms.nearest_rotation`, by products and sums alone; `products` are `_rotation_by_products`.

    tr(R^T matrix) is a quadratic form of R's unit quaternion q, so the best q is its first eigenvector. Powers of the
    form, shifted to have no negative eigenvalue, tend to q q^T, and repeated squaring gives high ones. Source: Horn
    1987.
    """
    flat = matrix.double().reshape(-1, 9)
    identity = torch.eye(4, dtype=torch.float64)
    bound = (3 * (flat * flat).sum(dim=1, keepdim=True)).sqrt()
    power = (flat / bound @ products.T).reshape(-1, 4, 4) + identity
    for _ in range(_SQUARINGS):
        power = power @ power
        power = power / (power * identity).sum(dim=(1, 2), keepdim=True)
    return (power.reshape(-1, 16) @ products).reshape(-1, 3, 3).to(matrix.dtype)


def _rotation_by_products() -> Float[Tensor, "16 9"]:
    """What the products q q^T of a unit quaternion are multiplied by to give its rotation, row by row."""
    unit = torch.eye(4, dtype=torch.float64)
    both = unit[:, None] + unit
    of_both = quaternion_rotation(both) * both.square().sum(dim=-1)[..., None, None]
    alone = quaternion_rotation(unit)
    return ((of_both - alone[:, None] - alone) / 2).reshape(16, 9)


def frame_inputs(crops: Crops, model: HandModel, state: TemporalState) -> dict[str, Tensor]:
    """The inputs of a frame by their names; `state` is that of the hands in the crops."""
    return {
        "images": crops.images,
        "focal_px": crops.focal_px,
        "camera_from_world": crops.camera_from_world,
        "hand": crops.hand,
        "two_views": crops.two_views,
        "skeleton_feature": model.skeleton_feature.float(),
        "memory": state.memory,
        "memory_camera_from_world": state.camera_from_world,
        "tracked": state.tracked,
    }


def run(session: InferenceSession, inputs: Mapping[str, Tensor], outputs: tuple[str, ...]) -> list[Tensor]:
    """Outputs of a file by name; no others are computed."""
    from onnxruntime import RunOptions

    options = RunOptions()
    options.only_execute_path_to_fetches = True
    taken = {i.name for i in session.get_inputs()}  # a network without temporal module takes no memory
    given = {name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items() if name in taken}
    return [torch.from_numpy(value) for value in session.run(outputs, given, options)]


def open_session(path: Path, threads: int | None = None) -> InferenceSession:
    """An ONNX file, ready to run on the CPU, on as many threads as torch unless said otherwise.

    Raises InputError without onnxruntime, and for a file that it cannot read.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX files are run by onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # see OMP_WAIT_POLICY in lib/__init__.py
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has one class for each kind of failure
        raise InputError(f"{path} is not an ONNX file that can be run: {str(error).splitlines()[0]}") from error


def require_onnx() -> None:
    """Raise InputError unless what writes and compares ONNX files is installed."""
    if any(find_spec(name) is None for name in ("onnx", "onnxruntime")):
        raise InputError("ONNX files are written by onnx and run by onnxruntime: pip install onnx onnxruntime")


def write_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: tuple[str, ...], path: Path, sizes: Mapping[str, dict]
) -> None:
    """Write a module in evaluation mode as ONNX; `sizes` names the dimensions that may vary."""
    with warnings.catch_warnings():
        # The exporter of torch's tracer is deprecated; the other one needs more packages.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        torch.onnx.export(
            module.eval(), tuple(inputs.values()), path, input_names=list(inputs), output_names=list(outputs),
            dynamic_axes=sizes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip


def export_network(network: UmeTrack, path: Path, model: HandModel, frames: Frames) -> None:
    """Write a network as an ONNX file that runs a frame, if its poses of `model` are torch's.

    Both go through `frames`, of which one must show all its hands to two cameras. Raises InputError if angles differ by
    more than `ANGLE_TOLERANCE`, or landmarks by more than `LANDMARK_TOLERANCE_MM`; then no file is left.
    """
    _, crops = next(frame for frame in frames if frame[1].two_views.all())
    inputs = frame_inputs(crops, model, TemporalState.untracked(len(crops.images)))
    sizes = {name: {0: "hands"} for name in (*inputs, *OUTPUTS) if name != "skeleton_feature"}

    def write(temporary: Path) -> None:
        write_onnx(NetworkFrame(network), inputs, OUTPUTS, temporary, sizes)
        check_frames(open_session(temporary), network, model, frames)

    write_atomically(path, write)


@torch.inference_mode()
def export_plain(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: tuple[str, ...], path: Path, sizes: Mapping[str, dict]
) -> None:
    """Write a network without state as an ONNX file. Arguments as of `write_onnx`; raises as `export_network` does."""
    expected = module.eval()(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)

    def write(temporary: Path) -> None:
        write_onnx(module, inputs, outputs, temporary, sizes)
        for name, mine, theirs in zip(outputs, run(open_session(temporary), inputs, outputs), expected, strict=True):
            _refuse(mine, theirs, ANGLE_TOLERANCE, name)

    write_atomically(path, write)


@torch.inference_mode()
def check_frames(session: InferenceSession, network: UmeTrack, model: HandModel, frames: Frames) -> None:
    """Raise InputError if a file says something else of frames than the network."""
    state = TemporalState.untracked(HANDS)
    skeleton = model.to(dtype=torch.float32)
    for hands, crops in frames:
        angles, wrists, *mine = run(session, frame_inputs(crops, model, state[hands]), OUTPUTS)
        extracted = network.extract(crops)
        features, state = advance(network, extracted, crops, hands, state)
        known, unknown = network.known(features, crops, skeleton), network.unknown(features, crops)
        landmarks = [
            model.landmarks(a.double(), for_hand(w.double(), crops.hand)) * MM
            for a, w in ((angles, wrists), (known.joint_angles, known.world_from_wrist))
        ]
        theirs = known.landmark_sigma, unknown.scale, state.memory[hands], features, extracted
        _refuse(angles, known.joint_angles, ANGLE_TOLERANCE, "joint angles (rad)")
        _refuse(*landmarks, LANDMARK_TOLERANCE_MM, "landmarks (mm)")
        for name, a, b in zip(OUTPUTS[2:], mine, theirs, strict=True):
            largest = b.abs().max().clamp(min=1)
            _refuse(a / largest, b / largest, ANGLE_TOLERANCE, name)


def _refuse(mine: Tensor, theirs: Tensor, tolerance: float, name: str) -> None:
    away = (mine - theirs).abs().max().item()
    if not away <= tolerance:
        raise InputError(
            f"no file is written: its {name} differ from torch's by {away:.2g}, expected at most {tolerance:g}"
        )
