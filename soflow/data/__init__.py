"""Data sources: samples and integer labels, read in batches by index as NumPy arrays."""

from __future__ import annotations

from soflow.data.base import DataSource
from soflow.data.config import DatasetConfig
from soflow.data.registry import SOURCES
from soflow.plugins import load


def open_source(config: DatasetConfig) -> DataSource:
    """Open the configured data source.

    Raises:
        DataError: if its files are missing or unusable.
    """
    return load(SOURCES[config.name].implementation)(config.root, config.image_size, config.download)
