"""What takes the steps of a training: Adam as in the paper, SGD as in the baseline's, or Muon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

OptimizerName = Literal["adam", "sgd", "muon"]


class Optimizer:
    """One or several optimisers from torch that step together, at a rate that is said anew for every step.

    Muon (Jordan et al. 2024) is for matrices: it replaces their averaged gradient by the nearest orthogonal matrix, so
    that all directions are learnt equally fast, and what is seldom asked for is not drowned by what always is. A
    convolution counts as a matrix, outputs by all that one of them sees. Steps are as long as Adam's (Liu et al. 2025),
    which takes those of biases, of batch normalisations and of the layers in `network.output_layers`. SGD has a
    momentum of 0.9. Deviation: the paper trains with Adam.
    """

    def __init__(self, name: OptimizerName, network: nn.Module):
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
            self.parts["muon"] = torch.optim.Muon(views, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
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


def _channels_last(weight: nn.Parameter) -> nn.Parameter:
    """The same parameter, in the order in memory that lets `_as_matrix` look at it without a copy."""
    if weight.ndim == 4:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return weight


def _as_matrix(weight: Float[Tensor, "out in *kernel"]) -> Float[Tensor, "out in_times_kernel"]:
    return weight.permute(0, *range(2, weight.ndim), 1).flatten(1)
