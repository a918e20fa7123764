"""1,797 handwritten digits of 8x8 pixels, included in scikit-learn (test set of UCI's optical recognition dataset)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from soflow.data.in_memory import InMemorySource


def open_source(root: Path | None = None, image_size: int | None = None, download: bool = False) -> InMemorySource:
    gray, labels = read_digits()
    images = np.rint(gray * (255 / 16)).astype(np.uint8)
    return InMemorySource(images[:, None], labels, num_classes=10)


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read the gray levels 0...16, float64 [1797, 8, 8], and the labels, int64 [1797].

    Same arrays as sklearn.datasets.load_digits, without the import of scikit-learn, which takes a second of CPU time in
    every process that trains.
    """
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (package,) = spec.submodule_search_locations
    table = np.loadtxt(Path(package) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
