"""Muon takes orthogonal steps through matrices, Adam all others; SGD steps down the gradient."""

from copy import deepcopy

import pytest
import torch
from conftest import tiny_network
from torch import nn

from lib.network import UmeTrack
from lib.optimizers import Muon, Optimizer, orthogonalised

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


def test_muon_in_bfloat16_is_that_of_torch():
    """Equal to the bit, over steps that its momentum connects, of wide and of tall matrices."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 40), (40, 6), (8, 8))
    mine, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    muon = Muon(mine, "bfloat16")
    reference = torch.optim.Muon(theirs, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for rate in (0.1, 0.02, 0.3):
        for ours, other in zip(mine, theirs, strict=True):
            ours.grad = other.grad = torch.randn(ours.shape, generator=generator)
        for optimizer in (muon, reference):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        assert all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (8, 8)])
def test_orthogonalised_matrices_keep_their_singular_vectors(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.T @ orthogonalised(matrix) @ right.T
    torch.testing.assert_close(values, torch.diag(values.diag()), atol=1e-10, rtol=0)
    assert 0.65 < values.diag().min() <= values.diag().max() < 1.25


def test_a_matrix_of_zeros_has_no_direction():
    assert not orthogonalised(torch.zeros(3, 4)).any()


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
