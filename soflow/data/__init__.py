"""Data sources: samples and integer labels, read in batches by index as NumPy arrays."""

from __future__ import annotations

import importlib

from soflow.data.base import DataSource
from soflow.data.config import DatasetConfig
from soflow.data.registry import SOURCES


def open_source(config: DatasetConfig) -> DataSource:
    """Open the configured data source.

    Raises:
        DataError: if its files are missing or unusable.
    """
    module = importlib.import_module(SOURCES[config.name].module)
    return module.open_source(config.root, config.image_size, config.download)
