"""How likely a predicted hand is right: a logistic regression on the features of a network that stays as it is.

Crops that miss their hand, or show the other one, give features of another mean and spread. The published network's own
uncertainty needs losses that the paper does not name; this is ours, fitted to validation users (`lib.study`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.crops import Crops
from lib.errors import InputError
from lib.files import read_json, sha256_of, write_atomically
from lib.network import FEATURE_CHANNELS, Features

CLOSE_M = 0.04
"""A hand is right if the mean error of its landmarks is below this: more than networks err where they see a hand, and
less than the crop forgives."""
SIGNS = 2 * FEATURE_CHANNELS + 4
"""Numbers by which a prediction is judged."""
_RIDGE = 1e-3
_LEAST_M = 1e-3


def signs(features: Features, crops: Crops, moved: Float[Tensor, "hands 21 3"]) -> Float[Tensor, f"hands {SIGNS}"]:
    """What a prediction is judged by: mean and spread of the features of `network.extract`, whether two cameras see the
    hand, how large it is, and how far (m) the predicted landmarks have `moved` from those that the crop was taken for.
    """
    flat, moved = features.flatten(2), moved.to(features)
    about = (
        crops.two_views.to(features),
        crops.focal_px[:, 0].log(),
        (moved.norm(dim=-1).mean(dim=-1) + _LEAST_M).log(),
        (moved.mean(dim=-2).norm(dim=-1) + _LEAST_M).log(),
    )
    return torch.cat((flat.mean(dim=-1), flat.std(dim=-1), torch.stack(about, dim=-1)), dim=-1)


@dataclass(frozen=True)
class Confidence:
    """The logistic regression: how likely a hand with such signs is within `CLOSE_M` of the truth."""

    weights: Float[Tensor, f"{SIGNS}"]
    bias: float

    def logit(self, signs: Float[Tensor, f"hands {SIGNS}"]) -> Float[Tensor, "hands"]:
        """The logarithm of the odds, float64."""
        return signs.double() @ self.weights.to(signs.device) + self.bias

    @staticmethod
    def fit(signs: Float[Tensor, f"hands {SIGNS}"], right: Bool[Tensor, "hands"]) -> Confidence:
        """The most likely weights (with a little ridge) of signs in units of their spread, which they are returned
        without."""
        mean, spread = signs.double().mean(dim=0), signs.double().std(dim=0).clamp(min=1e-6)
        scaled, target = (signs.double() - mean) / spread, right.double()
        weights, bias = torch.zeros(SIGNS, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        parameters = [weights.requires_grad_(), bias.requires_grad_()]
        solver = torch.optim.LBFGS(parameters, max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

        def loss() -> Tensor:
            solver.zero_grad()
            fit = torch.nn.functional.binary_cross_entropy_with_logits(scaled @ weights + bias, target)
            total = fit + _RIDGE * weights.square().sum()
            total.backward()
            return total

        solver.step(loss)
        plain = weights.detach() / spread
        return Confidence(plain, float(bias.detach() - plain @ mean))

    def save(self, path: Path, about: dict) -> None:
        """Write it as JSON, with what it is made from, when complete."""
        content = about | {"bias": self.bias, "weights": self.weights.tolist()}
        write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content)))


def confidence_path(network: Path) -> Path:
    """Where the confidence of a network lies: beside its weights."""
    return network.with_suffix(".confidence.json")


def read_confidence(network: Path) -> Confidence:
    """The confidence of a network with the weights of a file. Raises InputError if there is none, or another's."""
    path = confidence_path(network)
    how = f"python -m lib fit-confidence --weights {network} makes it, in about ten minutes"
    if not path.is_file():
        raise InputError(f"no file {path}, which tells how sure predictions are: {how}")
    try:
        content = read_json(path)
        weights, made_of = torch.tensor(content["weights"], dtype=torch.float64), content["network_sha256"]
        fits = weights.shape == (SIGNS,) and bool(weights.isfinite().all()) and math.isfinite(content["bias"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no confidence of a network ({error!r}): {how}") from error
    if not fits:
        raise InputError(f"{path} holds no {SIGNS} finite weights and a bias: {how}")
    if made_of != sha256_of(network):
        raise InputError(f"{path} was fitted to another network than {network}: {how}")
    return Confidence(weights, float(content["bias"]))
