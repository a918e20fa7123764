"""1,797 handwritten digits of 8x8 pixels, included in scikit-learn (test set of UCI's optical recognition dataset)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from soflow.data.in_memory import InMemorySource


def open_source(root: Path | None = None, image_size: int | None = None, download: bool = False) -> InMemorySource:
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 17 gray levels, 0...16
    return InMemorySource(images[:, None], digits.target.astype(np.int64), num_classes=10)
