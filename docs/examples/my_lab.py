"""A data set, network, objective, schedule and diagnostic outside the package, as docs/plugins.md explains them."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from soflow.config_base import Fraction
from soflow.data.in_memory import InMemorySource
from soflow.diagnostics.base import Subject, probes, root_mean_square
from soflow.objectives.base import Draws
from soflow.objectives.config import SoFlowFields
from soflow.objectives.soflow import SoFlow


# --8<-- [start:dataset]
class Stripes(InMemorySource):
    """512 gray images of 8x8 pixels with horizontal (class 0) or vertical stripes (class 1)."""

    channels, image_size, num_classes = 1, 8, 2
    feature_network = "digits-cnn"

    def __init__(self, root=None, image_size=None, download=False):
        rng = np.random.default_rng(0)
        labels = rng.integers(2, size=512)
        phases = rng.uniform(0, 2 * np.pi, (512, 1, 1))
        rows = np.rint(127.5 + 127.5 * np.sin(np.arange(8)[:, None] * np.pi / 2 + phases))
        images = np.where(labels[:, None, None] == 0, rows, rows.transpose(0, 2, 1))
        super().__init__(np.broadcast_to(images, (512, 8, 8))[:, None].astype(np.uint8), labels, self.num_classes)


# --8<-- [end:dataset]


# --8<-- [start:network]
class TinyNetwork(nn.Module):
    """Perceptron of image, times and label."""

    def __init__(self, image_size: int, channels: int, num_classes: int, width: int = 256):
        super().__init__()
        pixels = channels * image_size**2
        self.label = nn.Embedding(num_classes + 1, width)  # the last row is the null label
        self.first = nn.Linear(pixels + 2, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, pixels)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """Compute F_θ(x, t, s, label), shaped like x [B, C, H, W]; times and labels are [B]."""
        hidden = self.first(torch.cat([x.flatten(1), torch.stack([t, t - s], 1)], 1)) + self.label(labels)
        hidden = nn.functional.silu(self.second(nn.functional.silu(hidden)))
        return self.last(hidden).view_as(x)


# --8<-- [end:network]


# --8<-- [start:objective]
class AnnealedSoFlow(SoFlow):
    """SoFlow whose flow-matching fraction λ moves linearly from `first_fraction` to `flow_matching_fraction`."""

    search = ("objective.first_fraction=0.3:1", "objective.flow_matching_fraction=0.1:0.9")

    class Config(SoFlowFields):
        name: str = "my_lab:AnnealedSoFlow"
        first_fraction: Fraction = 0.9
        """λ at the first step."""

        @property
        def progress_schedule(self) -> str:
            return "lambda(k, K)"

    def draw(self, noise: Tensor, progress: float, generator: torch.Generator) -> Draws:
        first, last = self.config.first_fraction, self.config.flow_matching_fraction
        now = copy.copy(self)
        now.config = self.config.model_copy(update={"flow_matching_fraction": first + (last - first) * progress})
        return super(AnnealedSoFlow, now).draw(noise, progress, generator)


# --8<-- [end:objective]


# --8<-- [start:functions]
def square_root(progress: float, r_init: float, r_end: float) -> float:
    """Gap ratio r(k, K) that shrinks fast at first."""
    return r_init + (r_end - r_init) * math.sqrt(progress)


@torch.no_grad()
def contrast(subject: Subject) -> dict[str, float]:
    """Compute the RMS of pixels of images generated in one step; 1 is full contrast."""
    images = []
    for probe in probes(subject, "contrast"):
        ones, zeros = probe.times(1.0), probe.times(0.0)
        images.append(subject.objective.solution(subject.network, probe.noise, ones, zeros, probe.labels))
    return {"rms": root_mean_square(images)}


# --8<-- [end:functions]
