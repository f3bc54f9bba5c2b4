"""What takes the steps of a training: Adam as in the paper, SGD as in the baseline's, or Muon."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.machines import Precision

OptimizerName = Literal["adam", "sgd", "muon"]


class Optimizer:
    """One or several optimisers that step together, at a rate that is given anew for every step.

    Muon updates matrices; a convolution counts as a matrix of outputs by all inputs of one output. Adam updates biases,
    batch normalisations and the layers in `network.output_layers`. SGD has a momentum of 0.9. Deviation: the paper
    trains with Adam.
    """

    def __init__(self, name: OptimizerName, network: nn.Module, precision: Precision = "float32"):
        self.matrices: list[tuple[nn.Parameter, nn.Parameter]] = []
        parameters = list(network.parameters())
        if name == "sgd":
            self.parts = {"sgd": torch.optim.SGD(parameters, momentum=0.9)}
            return
        self.parts = {}
        if name == "muon":
            outputs = {id(p) for layer in network.output_layers for p in layer.parameters()}
            inner = [p for p in parameters if p.ndim > 1 and id(p) not in outputs]
            self.matrices = [(p, nn.Parameter(_as_matrix(_channels_last(p).detach()))) for p in inner]
            known = {id(p) for p in inner}
            parameters = [p for p in parameters if id(p) not in known]
            views = [matrix for _, matrix in self.matrices]
            self.parts["muon"] = Muon(views, precision)
        self.parts["adam"] = torch.optim.Adam(parameters, fused=True)

    def step(self, rate: float) -> None:
        """Take a step along the gradients of the network's parameters."""
        for weight, matrix in self.matrices:
            matrix.grad = None if weight.grad is None else _as_matrix(weight.grad)
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another of the same name and network was."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


class Muon(torch.optim.Optimizer):
    """Replaces the averaged gradient of a matrix by an orthogonal one near it, which equalises its singular values.

    Source: Jordan et al. 2024; the length of a step, as long as Adam's, from Liu et al. 2025. Deviation: torch's own
    computes in bfloat16 everywhere, which took half of a training step where the processor emulates it; this one in the
    `precision` of the training. In bfloat16 the two are bit-exact.
    """

    MOMENTUM = 0.95
    ADAM_LENGTH = 0.2
    """Root mean square of Adam's steps, in units of the rate."""

    def __init__(self, matrices: Iterable[nn.Parameter], precision: Precision):
        super().__init__(matrices, {"lr": 0.0})
        self.dtype = getattr(torch, precision)

    @torch.no_grad()
    def step(self) -> None:
        """Take a step along the gradients; matrices without one stay."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                average = state["momentum_buffer"].lerp_(matrix.grad, 1 - self.MOMENTUM)
                ahead = matrix.grad.lerp(average, self.MOMENTUM)  # Nesterov's momentum
                length = self.ADAM_LENGTH * max(matrix.shape) ** 0.5
                matrix.add_(orthogonalised(ahead.to(self.dtype)), alpha=-group["lr"] * length)


def orthogonalised(matrix: Float[Tensor, "rows columns"], iterations: int = 5) -> Float[Tensor, "rows columns"]:
    """A matrix with the same singular vectors and singular values of about one (0.7 to 1.2).

    Newton-Schulz iterations by a polynomial of degree five that is steep at zero. Source: Jordan et al. 2024.
    """
    linear, cubic, quintic = 3.4445, -4.7750, 2.0315
    wide = matrix.T if len(matrix) > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), wide, beta=linear)
    return wide.T if len(matrix) > matrix.shape[1] else wide


def _channels_last(weight: nn.Parameter) -> nn.Parameter:
    """The same parameter, in the order in memory that lets `_as_matrix` look at it without a copy."""
    if weight.ndim == 4:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return weight


def _as_matrix(weight: Float[Tensor, "out in *kernel"]) -> Float[Tensor, "out in_times_kernel"]:
    return weight.permute(0, *range(2, weight.ndim), 1).flatten(1)
