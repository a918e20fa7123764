"""Random stored samples of a data set's shape: a step costs the same whatever its images show."""

from __future__ import annotations

import numpy as np

from soflow.data.config import DatasetConfig
from soflow.data.in_memory import InMemorySource

SAMPLES, CLASSES = 256, 10


def synthetic_source(config: DatasetConfig, num_classes: int = CLASSES) -> InMemorySource:
    """A source that hands out noise as the configured one hands out images or latents; needs no files."""
    random = np.random.default_rng(0)
    channels, *sides = config.sample_shape
    if config.latent:  # stored as mean and standard deviation
        samples = np.abs(random.standard_normal((SAMPLES, 2 * channels, *sides), dtype=np.float32))
    else:
        samples = random.integers(0, 256, (SAMPLES, channels, *sides), dtype=np.uint8)
    return InMemorySource(samples, np.arange(SAMPLES) % num_classes, num_classes)
