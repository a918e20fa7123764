"""CIFAR-10: 50,000 RGB training images of 32x32 pixels in 10 classes, in the binary or the Python version."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from soflow.data.base import DataError
from soflow.data.in_memory import InMemorySource

BINARY, PICKLED = "cifar-10-batches-bin", "cifar-10-batches-py"
BINARY_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
"""Size of a record of the binary version: the label, then the red, green and blue planes in row-major order."""


def open_source(root: Path | None, image_size: int | None = None, download: bool = False) -> InMemorySource:
    return open_split(root, "train", download)


def open_split(root: Path | None, split: str, download: bool = False) -> InMemorySource:
    """Open the "train" split (50,000 images) or the "test" split (10,000 images).

    Raises:
        DataError: if files are missing or differ from the published ones.
    """
    if root is None:
        raise DataError(f"dataset.root = None: must be the folder that contains CIFAR-10's {BINARY} or {PICKLED}")
    if (folder := _find(root, BINARY, BINARY_FILES[split][0])) is not None:
        batches = [_read_records(folder / name) for name in BINARY_FILES[split]]
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    else:
        images, labels = _read_pickled(root, split, download)
    return InMemorySource(images, labels, num_classes=10)


def _find(root: Path, folder: str, file: str) -> Path | None:
    """Return `root` or its sub-folder of this name, whichever contains the file; None if neither does."""
    return next((path for path in (root / folder, root) if (path / file).exists()), None)


def _read_records(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read images [N, 3, 32, 32] and labels [N] from a file of the binary version."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); fetch it again") from None
    if not len(content) or len(content) % RECORD_BYTES:
        raise DataError(f"{path}: {len(content)} bytes are no whole records of {RECORD_BYTES} bytes; fetch it again")
    records = content.reshape(-1, RECORD_BYTES)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        raise DataError(f"{path}: has a label {labels.max()}, expected 0 to 9; fetch CIFAR-10's binary version again")
    return records[:, 1:].reshape(-1, *SHAPE), labels


def _read_pickled(root: Path, split: str, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read images [N, 3, 32, 32] and labels [N] of the Python version.

    Its files are pickles, which can execute code, so only files with the published MD5 are opened.
    """
    folder = _find(root, PICKLED, "data_batch_1")
    if folder is None and not download:
        raise DataError(
            f"dataset.root = {root}: no {BINARY}/data_batch_1.bin and no {PICKLED}/data_batch_1 in it; give the "
            "folder where CIFAR-10 was unpacked, or set dataset.download"
        )
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    parent = root if folder is None else folder.parent
    if download:
        try:
            CIFAR10(parent, download=True)  # does nothing if the files exist
        except (OSError, RuntimeError) as error:
            raise DataError(f"dataset.root = {root}: CIFAR-10 cannot be downloaded to it ({error})") from None
    for name, md5 in (*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]):
        path = parent / PICKLED / name
        if not check_integrity(path, md5):
            fault = "is not the published file (its MD5 differs)" if path.exists() else "is missing"
            raise DataError(f"{path}: {fault}; unpack cifar-10-python.tar.gz again, or set dataset.download")
    data = CIFAR10(parent, train=split == "train")
    return np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.array(data.targets, np.int64)
