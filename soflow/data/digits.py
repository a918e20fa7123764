"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships (UCI's optical recognition test set)."""

from __future__ import annotations

import numpy as np

from soflow.config import DatasetConfig
from soflow.data.in_memory import InMemorySource


def open_source(config: DatasetConfig) -> InMemorySource:
    from sklearn.datasets import load_digits  # a second to import

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0...16
    return InMemorySource(images[:, None], digits.target.astype(np.int64), num_classes=10)
