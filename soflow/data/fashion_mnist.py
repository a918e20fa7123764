"""Fashion-MNIST: 60,000 training images of 28x28 pixels in 10 classes (arXiv 1708.07747)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from soflow.data.base import DataError
from soflow.data.in_memory import InMemorySource

DEBIAN_PACKAGE = Path("/usr/share/datasets/fashion-mnist")


def open_source(root: Path | None = None, image_size: int | None = None, download: bool = False) -> InMemorySource:
    return open_split(root, "train", download)


def open_split(root: Path | None, split: str, download: bool = False) -> InMemorySource:
    """Open the "train" split (60,000 images) or the "t10k" split (10,000 test images).

    Raises:
        DataError: if files are missing or damaged.
    """
    if download:
        _download(root)
    paths = [_find(root, f"{split}-{name}-ubyte") for name in ("images-idx3", "labels-idx1")]
    images, labels = (_read_idx(path) for path in paths)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or not len(labels) or labels.max() > 9:
        raise DataError(
            f"{paths[0]}: must contain N images of 28x28 and {paths[1].name} as many labels below 10, "
            f"not arrays of shape {images.shape} and {labels.shape}"
        )
    return InMemorySource(images[:, None], labels.astype(np.int64), num_classes=10)


def _download(root: Path | None) -> None:
    from torchvision.datasets import FashionMNIST

    if root is None:
        raise DataError("dataset.download = True: needs dataset.root, the folder to download to")
    try:
        FashionMNIST(root, download=True)
    except (OSError, RuntimeError) as error:  # torchvision raises a RuntimeError if no mirror answers
        raise DataError(f"dataset.root = {root}: cannot be downloaded to ({error})") from None


def _find(root: Path | None, name: str) -> Path:
    folders = [root, root / "FashionMNIST" / "raw"] if root else [DEBIAN_PACKAGE]
    for path in (folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".gz")):
        if path.exists():
            return path
    raise DataError(
        f"dataset.root = {root}: no file {name}[.gz] in {' or '.join(map(str, folders))}; give the folder of "
        "Fashion-MNIST's IDX files, install Debian's package dataset-fashion-mnist, or set dataset.download"
    )


def _read_idx(path: Path) -> np.ndarray:
    """Read an array in IDX format: two zero bytes, a type byte, the rank, big-endian sizes, then the data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch it again") from None
    rank = content[3] if len(content) > 3 else 0
    shape = np.frombuffer(content, ">u4", rank, offset=4) if len(content) >= 4 + 4 * rank else np.zeros(0)
    if content[:3] != b"\x00\x00\x08" or len(content) != 4 + 4 * rank + shape.prod():
        raise DataError(f"{path}: is not a complete IDX file of bytes; fetch it again")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape.astype(int))
