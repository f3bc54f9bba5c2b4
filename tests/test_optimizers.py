"""Muon takes orthogonal steps through matrices, Adam all others; SGD steps down the gradient."""

from copy import deepcopy

import pytest
import torch
from conftest import tiny_network

from lib.network import UmeTrack
from lib.optimizers import Optimizer

RATE = 0.01


@pytest.fixture
def network() -> UmeTrack:
    network = tiny_network()
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    return network


def changes(network: UmeTrack, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """What one step adds to each parameter."""
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer.step(RATE)
    return {name: p.detach() - before[name] for name, p in network.named_parameters()}


def test_muon_steps_equally_far_in_all_directions_of_a_matrix(network):
    changed = changes(network, Optimizer("muon", network))
    for name in ("backbone.stages.2.0.conv1.weight", "fusion.0.weight", "skeleton_encoder.0.weight"):
        matrix = changed[name].flatten(1)
        lengths = torch.linalg.svdvals(matrix)
        expected = RATE * 0.2 * max(matrix.shape) ** 0.5
        assert 0.6 * expected < lengths.min() <= lengths.max() < 1.3 * expected, name
        assert float((changed[name] * network.get_parameter(name).grad).sum()) < 0, name


def test_adam_takes_vectors_and_outputs(network):
    changed = changes(network, Optimizer("muon", network))
    for name in ("regressor_known.layers.2.weight", "backbone.stem.1.bias", "backbone.stem.2.weight"):
        torch.testing.assert_close(changed[name], -RATE * network.get_parameter(name).grad.sign(), atol=1e-6, rtol=1e-3)


def test_sgd_steps_down_the_gradient(network):
    for name, change in changes(network, Optimizer("sgd", network)).items():
        torch.testing.assert_close(change, -RATE * network.get_parameter(name).grad, atol=1e-6, rtol=1e-3)


def test_a_weight_without_gradient_stays(network):
    network.fusion.requires_grad_(False)
    for p in network.fusion.parameters():
        p.grad = None
    changed = changes(network, Optimizer("muon", network))
    assert all(bool(change.any()) != name.startswith("fusion") for name, change in changed.items())


@pytest.mark.parametrize("name", ["adam", "sgd", "muon"])
def test_it_goes_on_where_another_was(network, name):
    first = Optimizer(name, network)
    first.step(RATE)
    state = {part: torch.clone(value) for part, value in network.state_dict().items()}
    saved = deepcopy(first.state_dict())
    second_network = tiny_network(seed=1)
    second = Optimizer(name, second_network)
    second_network.load_state_dict(state)
    second.load_state_dict(saved)
    for mine, theirs in zip(second_network.parameters(), network.parameters(), strict=True):
        mine.grad = theirs.grad.clone()
    expected, got = changes(network, first), changes(second_network, second)
    for key, change in expected.items():
        torch.testing.assert_close(got[key], change, atol=1e-7, rtol=1e-5)
