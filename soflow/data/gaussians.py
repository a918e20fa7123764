"""Gaussian images with a known flow: class c is N(μ_c, σ² I); 60,000 fixed samples of 8x8 pixels in 10 classes.

With labels, the flow of every class has a closed form. Without labels (dataset.conditional = False) the data is a
mixture, whose velocity has a closed form. The means are the mean images of scikit-learn's ten digits, scaled to
[−0.4, 0.4] in pixel values of [−1, 1]. With σ = 0.12, black and white are at least 5 σ from every mean, so at most 1.1
of all 3,840,000 pixels are expected to be clipped.

Storing pixels as bytes rounds them to steps of 2/255 = σ/15. Such rounding acts like independent uniform noise
(Sheppard); `Components.variance` includes its variance, 0.04 % of the total. Errors of a map are therefore measurable
down to about 0.0023, the RMS of the rounding and a fiftieth of σ, without a codec for floating-point images.

FID is of little use here: its features come from the network for handwritten digits, which was not trained on such
images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soflow.data.digits import read_digits
from soflow.data.in_memory import InMemorySource

NUM_SAMPLES, NUM_CLASSES = 60_000, 10
LARGEST_MEAN = 0.4
SIGMA = 0.12
STEP = 2 / 255
"""Distance of adjacent gray levels in [−1, 1]."""


@dataclass(frozen=True)
class Components:
    """Data distribution: class c is N(means[c], variance I), with equal class probabilities."""

    means: np.ndarray
    """Means in [−1, 1], the range of the network's input, float64 [num_classes, C, H, W]."""
    variance: float


class Gaussians(InMemorySource):
    """Samples of a Gaussian mixture, with its components."""

    def __init__(self, components: Components):
        self.components = components
        labels = np.arange(NUM_SAMPLES) % NUM_CLASSES
        noise = np.random.default_rng(0).standard_normal((NUM_SAMPLES, *components.means.shape[1:]))
        pixels = np.rint((components.means[labels] + SIGMA * noise + 1) * 127.5)
        super().__init__(np.clip(pixels, 0, 255).astype(np.uint8), labels.astype(np.int64), NUM_CLASSES)


def open_source(root: Path | None = None, image_size: int | None = None, download: bool = False) -> Gaussians:
    return Gaussians(Components(mean_digits(), SIGMA**2 + STEP**2 / 12))


def mean_digits() -> np.ndarray:
    """Compute μ_c [10, 1, 8, 8] in [−0.4, 0.4]: the mean image of each digit of scikit-learn."""
    gray, labels = read_digits()
    means = np.stack([gray[labels == label].mean(0) for label in range(NUM_CLASSES)])
    return (means[:, None] / 16 * 2 - 1) * LARGEST_MEAN
