"""Random samples with the shape of a dataset, as the cost of a step does not depend on image content."""

from __future__ import annotations

import numpy as np

from soflow.data.config import DatasetConfig
from soflow.data.in_memory import InMemorySource
from soflow.data.registry import SOURCES

SAMPLES = 256


def synthetic_source(config: DatasetConfig) -> InMemorySource:
    """Create a source of random images or latents of the configured shape and classes; no files are needed."""
    num_classes = SOURCES[config.name].num_classes
    random = np.random.default_rng(0)
    channels, *sides = config.sample_shape
    if config.latent:  # stored as mean and standard deviation
        samples = np.abs(random.standard_normal((SAMPLES, 2 * channels, *sides), dtype=np.float32))
    else:
        samples = random.integers(0, 256, (SAMPLES, channels, *sides), dtype=np.uint8)
    return InMemorySource(samples, np.arange(SAMPLES) % num_classes, num_classes)
