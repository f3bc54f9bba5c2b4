import pickle
from pathlib import Path

import pytest
import torch
from conftest import tiny_network
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib.checkpoints import PUBLISHED_PREFIXES, load_network, save_network
from lib.errors import InputError
from lib.network import NetworkConfig, UmeTrack


@pytest.mark.parametrize(
    "changes", [{}, {"skeleton_encoder": False, "temporal_module": False, "feature_transform": False}]
)
def test_weights_and_configuration_come_back(tmp_path, changes):
    network, path = tiny_network(**changes), tmp_path / "weights.safetensors"
    save_network(network, path, metadata={"commit": "abc"})
    loaded = load_network(path)
    assert loaded.config == network.config
    assert not loaded.training
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def published_state_dict() -> dict[str, torch.Tensor]:
    """Our network's weights under the published names."""
    network = UmeTrack(NetworkConfig())
    weights = {}
    for name, value in network.state_dict().items():
        theirs, ours = next((t, o) for t, o in PUBLISHED_PREFIXES.items() if name.startswith(o))
        weights[name.replace(ours, theirs, 1).replace(".shortcut.", ".downsample.")] = value
    return weights


def test_published_checkpoint(tmp_path):
    weights, path = published_state_dict(), tmp_path / "published.torch"
    torch.save(weights, path)
    loaded = load_network(path).state_dict()
    assert len(loaded) == len(weights)
    assert all(torch.equal(a, b) for a, b in zip(loaded.values(), weights.values(), strict=True))


def message_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_network(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_wrong_names_and_shapes_are_all_listed(tmp_path):
    path = tmp_path / "wrong.torch"
    weights = published_state_dict()
    weights.pop("_temporal._temporal_module.0.bias")
    weights["_feature_extractor._image_backbone.1.weight"] = torch.zeros(72, 128, 1, 1)
    torch.save({**weights, "optimizer.step": torch.zeros(1)}, path)
    message = message_of(path)
    assert "3 differences" in message
    assert "missing temporal.0.bias" in message
    assert "backbone.head.weight has shape (72, 128, 1, 1), expected (72, 256, 1, 1)" in message
    assert "unexpected optimizer.step" in message


def test_wrong_names_in_our_own_format(tmp_path, weights):
    path, stored = tmp_path / "renamed.safetensors", load_file(weights)
    stored["other"] = stored.pop("backbone.head.bias")
    with safe_open(weights, "pt") as file:
        save_file(stored, path, file.metadata())
    message = message_of(path)
    assert "missing backbone.head.bias" in message
    assert "unexpected other" in message


class Malicious:
    """Touches a file when unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2))], ids=["torch", "pickle"]
)
def test_nothing_but_tensors_is_unpickled(tmp_path, save):
    path, marker = tmp_path / "malicious.torch", tmp_path / "executed"
    save({"weight": Malicious(marker)}, path)
    assert "not a checkpoint that can be read safely" in message_of(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(1)], torch.zeros(2), {"state_dict": {"weight": torch.zeros(1)}}, {0: torch.zeros(1)}],
    ids=str,
)
def test_not_a_state_dict(tmp_path, content):
    path = tmp_path / "list.torch"
    torch.save(content, path)
    assert f"holds a {type(content).__name__}, expected a dictionary from parameter names to tensors" in message_of(
        path
    )


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x80\x02K\x05."], ids=["empty", "text", "number"])
def test_not_a_checkpoint(tmp_path, content):
    path = tmp_path / "weights.torch"
    path.write_bytes(content)
    assert "weights.torch" in message_of(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".torch", ".safetensors"])
def test_truncated_files(tmp_path, weights, suffix, share):
    path = tmp_path / f"truncated{suffix}"
    if suffix == ".torch":
        torch.save(load_file(weights), path)
    else:
        path.write_bytes(weights.read_bytes())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = message_of(path)
    assert (
        "not a checkpoint that can be read safely" if suffix == ".torch" else "not a weights file of this project"
    ) in message


@pytest.mark.parametrize(
    "metadata",
    [None, {"network": "no json"}, {"network": "[1]"}, {"network": '{"depth": 3}'}, {"network": '{"stem": "x"}'}],
)
def test_safetensors_without_a_valid_configuration(tmp_path, weights, metadata):
    path = tmp_path / "foreign.safetensors"
    save_file(load_file(weights), path, metadata)
    assert "not a weights file of this project" in message_of(path)


@pytest.mark.parametrize("suffix", [".torch", ".safetensors"])
def test_a_git_lfs_pointer_is_named(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    assert "is a Git LFS pointer, not the file itself" in message_of(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone.head.bias", float("nan")),
        ("backbone.head.bias", float("inf")),
        ("backbone.stem.2.running_var", -1.0),
    ],
)
def test_weights_that_make_no_finite_pose(tmp_path, weights, name, value):
    path, stored = tmp_path / "broken.safetensors", load_file(weights)
    stored[name][1] = value
    with safe_open(weights, "pt") as file:
        save_file(stored, path, file.metadata())
    assert f"{name} holds values that are not finite, or a variance below zero" in message_of(path)


@pytest.mark.parametrize(
    "network", ['{"widths": [-8, 8, 8, 8]}', '{"widths": ["a", 8, 8, 8]}', '{"blocks": [null, 1, 1, 1]}']
)
def test_a_network_that_cannot_be(tmp_path, weights, network):
    path = tmp_path / "odd.safetensors"
    save_file(load_file(weights), path, {"network": network})
    assert "odd.safetensors" in message_of(path)


def test_no_file(tmp_path):
    assert "no weights at" in message_of(tmp_path / "none.safetensors")


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_network(tiny_network(), path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"
