"""Reading and writing network weights: our safetensors, and the published checkpoint that users bring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lib.errors import InputError
from lib.files import refuse_pointer, write_atomically
from lib.network import NetworkConfig, UmeTrack

_Network = TypeVar("_Network", bound=nn.Module)
LISTED = 12
PUBLISHED_PREFIXES = {
    "_feature_extractor._image_backbone.0._layers.0.": "backbone.stem.",
    **{f"_feature_extractor._image_backbone.0._layers.{i}.": f"backbone.stages.{i - 1}." for i in (1, 2, 3, 4)},
    "_feature_extractor._image_backbone.1.": "backbone.head.",
    "_feature_extractor._multi_view_fusion.": "fusion.",
    "_temporal._temporal_module.": "temporal.",
    "_skeleton_enc._layers.": "skeleton_encoder.",
    "_regressor_k._pose_regression_layers.": "regressor_known.layers.",
    "_regressor_u._pose_regression_layers.": "regressor_unknown.layers.",
}


def load_network(path: Path) -> UmeTrack:
    """The network in evaluation mode with the weights of a file: ours (.safetensors) or the published checkpoint.

    Never unpickles anything but tensors. Raises InputError if the file is missing, is no state dict, or does not fit
    the network it claims to be; the message lists the parameters concerned.
    """
    if path.suffix == ".safetensors" or not path.is_file():
        return load_weights(path, UmeTrack, NetworkConfig)
    refuse_pointer(path)
    return _with_weights(UmeTrack, NetworkConfig(), _read_published(path), path)


def load_weights(path: Path, network: type[_Network], config: type) -> _Network:
    """A network of the given class in evaluation mode, its configuration and weights from a .safetensors file.

    Raises InputError as `load_network` does, and if the file holds another class of network.
    """
    if not path.is_file():
        raise InputError(
            f"no weights at {path}: expected a .safetensors file of this project or the published checkpoint"
        )
    refuse_pointer(path)
    return _with_weights(network, *_read_safetensors(path, network.__name__, config), path)


def _with_weights(network: type[_Network], config: Any, weights: Mapping[str, Tensor], source: Path) -> _Network:
    try:
        with torch.device("meta"):
            expected = network(config).state_dict()
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{source} describes a network that cannot be, {config}: {error}") from error
    check_names_and_shapes(weights, expected, source)
    _check_values(weights, source)
    loaded = network(config)
    loaded.load_state_dict(weights)
    return loaded.eval()


def read_metadata(path: Path) -> dict[str, str]:
    """What a .safetensors file says of the weights it holds. Raises InputError if it is none."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path} is not a .safetensors file: {error}") from error


def save_network(
    network: nn.Module, path: Path, metadata: Mapping[str, str] | None = None, *, half: bool = False
) -> None:
    """Write weights, class and configuration to a .safetensors file, under its final name only when complete."""
    about = {"class": type(network).__name__, "network": json.dumps(asdict(network.config))}
    metadata = about | dict(metadata or {})
    weights = half_precision(network) if half else network.state_dict()
    weights = {name: value.contiguous() for name, value in weights.items()}
    write_atomically(path, lambda temporary: temporary.write_bytes(save(weights, metadata)))


def half_precision(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network, rounded to half precision; counters stay as they are."""
    return {name: w.half() if w.is_floating_point() else w for name, w in network.state_dict().items()}


def check_names_and_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path) -> None:
    """Raise InputError that lists missing, unexpected and misshapen parameters, at most `LISTED` of each kind."""
    problems = [
        [f"missing {name}" for name in expected if name not in weights],
        [f"unexpected {name}" for name in weights if name not in expected],
        [
            f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    ]
    if count := sum(map(len, problems)):
        lines = [line for kind in problems for line in [*kind[:LISTED], *(["..."] if len(kind) > LISTED else [])]]
        listing = "\n  ".join(lines)
        raise InputError(f"{source} does not hold the weights of this network; {count} differences:\n  {listing}")


def _check_values(weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise InputError unless weights are finite and variances not negative: else poses were not finite."""
    for name, value in weights.items():
        if not torch.isfinite(value).all() or (name.endswith("running_var") and (value < 0).any()):
            raise InputError(f"{source}: {name} holds values that are not finite, or a variance below zero")


def _read_safetensors(path: Path, expected: str, config_class: type) -> tuple[Any, dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        settings = json.loads(metadata["network"])
        stored = metadata.get("class", UmeTrack.__name__)  # files without the entry hold one
        if stored != expected:
            raise InputError(f"{path} holds the weights of a {stored}, expected those of a {expected}")
        config = config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not a weights file of this project (safetensors with its network's configuration): {error}"
        ) from error
    return config, {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def _read_published(path: Path) -> dict[str, Tensor]:
    """The published state dict under our names; unknown names stay as they are, for the message."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything: IndexError, AssertionError, struct.error, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is not a checkpoint that can be read safely (a pickled dictionary of tensors): {reason}"
        ) from error
    if not isinstance(weights, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()
    ):
        raise InputError(
            f"{path} holds a {type(weights).__name__}, expected a dictionary from parameter names to tensors"
        )
    return {_our_name(name): value for name, value in weights.items()}


def _our_name(published: str) -> str:
    for theirs, ours in PUBLISHED_PREFIXES.items():
        if published.startswith(theirs):
            return published.replace(theirs, ours, 1).replace(".downsample.", ".shortcut.")
    return published
