"""How DetNet is trained: on whole views, shrunk, of every sixth frame of the training sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from lib.crop_cache import ViewSequence
from lib.crops import MIN_LANDMARKS_SEEN
from lib.errors import InputError
from lib.losses import masked_mean
from lib.multistage.detection import PRESENCE_THRESHOLD, Circles, DetNet, DetNetConfig, normalised, to_circles
from lib.training import Losses, Task, TrainingConfig, draw_examples


@dataclass(frozen=True)
class DetectionTrainingConfig(TrainingConfig):
    """DetNet, its loss and its batches. Source: MEgATrack for the weights and the augmentation.

    Deviation: Adam and half a cosine instead of SGD at a constant rate, and fewer views per batch.
    """

    network: DetNetConfig = field(default_factory=DetNetConfig)
    circle_weight: float = 100.0
    presence_weight: float = 10.0
    gain: float = 0.3
    """Standard deviation of the logarithm of the brightness."""
    views: int = 32
    """Per batch."""
    validation_views: int = 256


@dataclass(frozen=True)
class ViewBatch:
    """Views and the circles in them, normalised. A hand that is neither `present` nor `absent` is half in view."""

    pictures: Float[Tensor, "views 1 rows columns"]
    circles: Float[Tensor, "views 2 3"]
    present: Bool[Tensor, "views 2"]
    absent: Bool[Tensor, "views 2"]

    def __len__(self) -> int:
        return len(self.pictures)


class ViewSource:
    """The views of many sequences on the training device. Raises InputError if there are none."""

    def __init__(self, sequences: Sequence[ViewSequence], device: torch.device | str = "cpu"):
        if not sequences:
            raise InputError(
                "no sequences of views: render them first with python -m lib render --split train --output DIR"
            )
        self.device = torch.device(device)
        self.images, self.circles, self.landmarks_seen = (
            torch.from_numpy(np.concatenate([getattr(sequence, name) for sequence in sequences])).to(device)
            for name in ("images", "circles", "landmarks_seen")
        )

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, views: Int[Tensor, "views"], gain: float, generator: torch.Generator) -> ViewBatch:
        """The given views, each made brighter or darker."""
        factor = (gain * torch.randn(len(views), 1, 1, 1, generator=generator)).exp().to(self.device)
        views = views.to(self.device)
        pictures, seen = self.images[views], self.landmarks_seen[views]
        return ViewBatch(
            pictures=(pictures[:, None].float().div(255) * factor).clamp(0, 1),
            circles=normalised(self.circles[views], *pictures.shape[1:]),
            present=seen >= MIN_LANDMARKS_SEEN,
            absent=seen == 0,
        )


@dataclass(frozen=True)
class ViewData:
    """Views to train on, views of validation users, and the fingerprint of both."""

    train: ViewSource
    validation: ViewSource
    fingerprint: str


class DetectionLearner(nn.Module):
    """DetNet as it is trained: views in, losses out."""

    def __init__(self, network: DetNet, circle_weight: float, presence_weight: float):
        super().__init__()
        self.network = network
        self.circle_weight, self.presence_weight = circle_weight, presence_weight

    def forward(self, batch: ViewBatch) -> Losses:
        """Squared error of the circles of hands that are there, and cross-entropy of their presence.

        Hands that are half in view do not count. Also reported are what `detection_errors` says.
        """
        output = self.network(batch.pictures)
        squared = (output[..., :3] - batch.circles).square().sum(dim=-1)
        circle = masked_mean(squared, batch.present)
        entropy = binary_cross_entropy_with_logits(output[..., 3], batch.present.float(), reduction="none")
        presence = masked_mean(entropy, batch.present | batch.absent)
        total = self.circle_weight * circle + self.presence_weight * presence
        both = output.detach(), as_output(batch.circles, batch.present)
        found, true = (to_circles(values, *batch.pictures.shape[2:]) for values in both)
        errors = detection_errors(found, true, batch.present, batch.absent)
        return Losses(total, {"loss": total, "circle": circle, "presence": presence} | errors)


def detection_errors(
    found: Circles, true: Circles, present: Bool[Tensor, "views 2"], absent: Bool[Tensor, "views 2"]
) -> dict[str, Tensor]:
    """Median errors of centre and radius (px) of the hands that are found, recall, and false positives.

    Recall and false positives are percentages of the hands that are there and that are not.
    """
    positive = found.presence >= PRESENCE_THRESHOLD
    hits = positive & present
    center = (found.center_px - true.center_px).norm(dim=-1)
    radius = (found.radius_px - true.radius_px).abs()
    return {
        "center_px": center[hits].median() if bool(hits.any()) else center.new_tensor(torch.nan),
        "radius_px": radius[hits].median() if bool(hits.any()) else radius.new_tensor(torch.nan),
        "recall_percent": 100 * masked_mean(positive.float(), present),
        "false_positives_percent": 100 * masked_mean(positive.float(), absent),
    }


@dataclass(frozen=True)
class DetectionTraining(Task):
    """The training of DetNet."""

    config: DetectionTrainingConfig
    data: ViewData
    progress_metric = "center_px"

    def learner(self, device: torch.device) -> DetectionLearner:
        """A new DetNet and its loss."""
        config = self.config
        return DetectionLearner(
            DetNet(config.network).to(device),
            config.circle_weight,
            config.presence_weight,
        )

    def batch(self, step: int, rank: int, processes: int) -> ViewBatch:
        """One process's share of the step's views, augmented."""
        config, source = self.config, self.data.train
        views, generator = draw_examples(torch.arange(len(source)), config.views, config.seed, step, rank, processes)
        return source.batch(views, config.gain, generator)

    def losses(self, learner: nn.Module, batch: ViewBatch) -> Losses:
        """The loss."""
        return learner(batch)

    def validate(self, learner: DetectionLearner, source: ViewSource) -> Losses:
        """Errors on views."""
        views, generator = draw_examples(torch.arange(len(source)), self.config.validation_views, seed=0, step=0)
        return learner(source.batch(views, 0.0, generator))


def as_output(circles: Float[Tensor, "views 2 3"], present: Bool[Tensor, "views 2"]) -> Float[Tensor, "views 2 4"]:
    """Labels in the form of the network's output."""
    return torch.cat((circles, present[..., None].float()), dim=-1)
