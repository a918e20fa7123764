"""Gaussian images whose flow is known: class c is N(μ_c, σ² I), 60,000 fixed draws of 8x8 pixels in 10 classes.

With labels every class's flow has a closed form; without them (dataset.conditional = False) the data is a mixture whose
velocity has one. The means are scikit-learn's mean images of the ten digits, drawn into [−0.4, 0.4] of the pixels'
[−1, 1], and σ = 0.12: black and white lie 5 σ away from any mean, so of all 3,840,000 pixels at most 1.1 are expected
to be clipped. Storing pixels as bytes rounds to steps of 2/255 = σ/15, where rounding is like adding independent
uniform noise (Sheppard); `Components.variance` holds its variance too, 0.04 % of the whole. A map can so be told from
the true one down to about 0.0023, the rounding's own RMS and a fiftieth of σ; no codec for floating-point images is
needed.

Its FID means little: the features are those of the network for handwritten digits, which has never seen such images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soflow.data.in_memory import InMemorySource

NUM_SAMPLES, NUM_CLASSES = 60_000, 10
LARGEST_MEAN = 0.4
SIGMA = 0.12
STEP = 2 / 255
"""Between neighbouring grey levels in [−1, 1]."""


@dataclass(frozen=True)
class Components:
    """What is known of the data: class c, one sample in as many as there are classes, is N(means[c], variance I)."""

    means: np.ndarray
    """As the network sees them, float64 [num_classes, C, H, W]."""
    variance: float


class Gaussians(InMemorySource):
    """The draws, and what they are drawn from."""

    def __init__(self, components: Components):
        self.components = components
        labels = np.arange(NUM_SAMPLES) % NUM_CLASSES
        noise = np.random.default_rng(0).standard_normal((NUM_SAMPLES, *components.means.shape[1:]))
        pixels = np.rint((components.means[labels] + SIGMA * noise + 1) * 127.5)
        super().__init__(np.clip(pixels, 0, 255).astype(np.uint8), labels.astype(np.int64), NUM_CLASSES)


def open_source(root: Path | None = None, image_size: int | None = None, download: bool = False) -> Gaussians:
    return Gaussians(Components(mean_digits(), SIGMA**2 + STEP**2 / 12))


def mean_digits() -> np.ndarray:
    """μ_c: scikit-learn's mean image of each digit, in [−0.4, 0.4], [10, 1, 8, 8]."""
    from sklearn.datasets import load_digits  # a second to import

    digits = load_digits()
    means = np.stack([digits.images[digits.target == label].mean(0) for label in range(NUM_CLASSES)])
    return (means[:, None] / 16 * 2 - 1) * LARGEST_MEAN
