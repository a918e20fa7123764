"""Images encoded by Stable Diffusion's autoencoder, in one HDF5 file in the format of the SoFlow authors.

Datasets of the file:

- `latents` [N, 8, H, W] float32: for each image, 4 channels of the encoder's mean, then 4 channels of its standard
  deviation. H and W are 1/8 of the image side. Training reads this dataset in random order.
- `labels` [N] int64, and the scalars `amount` (N) and `latent_size` (H = W).

experiments/encode_latents.py writes such files, with the attribute `num_classes`. Without this attribute, the labels
must be 0 to K - 1 without gaps for K classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from soflow.data.base import LATENT_CHANNELS, LATENT_FACTOR, DataError
from soflow.data.manifest import manifest

MOMENTS = 2 * LATENT_CHANNELS
"""Channels stored per image: means, then standard deviations."""
REMEDY = "experiments/encode_latents.py makes such files"


class LatentFile:
    """Moments [N, 8, H, W] and labels of an HDF5 file, read from disk on demand.

    Every process opens a separate file handle, because a handle inherited by a fork shares HDF5's state with the parent
    and handles cannot be pickled.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: h5py.File | None = None
        self._pid = 0
        with self._damage_named():
            file = self._open()
            for name in ("latents", "labels", "amount", "latent_size"):
                if not isinstance(file.get(name), h5py.Dataset):
                    raise DataError(f"{path}: has no dataset {name}; {REMEDY}")
            self.shape = self._checked_shape(file)
            self.labels = file["labels"][()]
            classes = file.attrs.get("num_classes")
        self.labels, self.num_classes = self._checked_labels(classes)
        self.fingerprint = self._digest()

    def __len__(self) -> int:
        return self.shape[0]

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read moments, float32 [B, 8, H, W], and int64 labels [B] at indices [B], in any order."""
        moments = np.empty((len(indices), *self.shape[1:]), np.float32)
        with self._damage_named():
            latents = self._open()["latents"]
            # One read per sample, in file order. HDF5's multi-sample selection takes up to 20 times longer
            # (docs/loading.md) and rejects repeated samples, which a batch across epochs can contain.
            for i in np.argsort(indices):
                moments[i] = latents[indices[i]]
        return moments, self.labels[indices]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def _open(self) -> h5py.File:
        """Return this process's file handle; open it on first use."""
        if self._file is not None and self._pid != os.getpid():
            self._file.close()  # the parent's handle, copied by a fork
            self._file = None
        if self._file is None:
            # Finished files are never written, and some cluster file systems do not support locks.
            self._file = h5py.File(self.path, "r", locking=False)
            self._pid = os.getpid()
        return self._file

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py's exceptions for damaged files
            raise DataError(f"{self.path}: cut short, damaged or no HDF5 file ({error}); {REMEDY}") from None

    def _checked_shape(self, file: h5py.File) -> tuple[int, int, int, int]:
        latents, labels = file["latents"], file["labels"]
        amount, side = (np.asarray(file[name][()]).tolist() for name in ("amount", "latent_size"))
        shape = latents.shape
        if len(shape) != 4 or shape[1] != MOMENTS or shape[2] != shape[3] or not shape[0] or latents.dtype.kind != "f":
            raise DataError(
                f"{self.path}: latents of {latents.dtype} {shape} must be floats [N, {MOMENTS}, H, H], "
                f"{LATENT_CHANNELS} channels of means and {LATENT_CHANNELS} of standard deviations; {REMEDY}"
            )
        if shape[0] != amount or shape[2] != side or labels.shape != shape[:1]:
            raise DataError(
                f"{self.path}: latents {shape}, labels {labels.shape}, amount {amount} and latent_size {side} "
                f"contradict each other; {REMEDY}"
            )
        return shape

    def _checked_labels(self, num_classes: Any) -> tuple[np.ndarray, int]:
        if self.labels.dtype.kind not in "iu":
            raise DataError(f"{self.path}: labels of {self.labels.dtype} must be integers; {REMEDY}")
        smallest, largest = int(self.labels.min()), int(self.labels.max())
        if num_classes is None and (gaps := sorted(set(range(largest + 1)) - set(self.labels.tolist()))):
            raise DataError(
                f"{self.path}: labels run from {smallest} to {largest}, but no sample has label {gaps[0]}; number the "
                "classes from 0 without gaps, or set the file's attribute num_classes"
            )
        num_classes = largest + 1 if num_classes is None else int(num_classes)
        if smallest < 0 or largest >= num_classes:
            raise DataError(
                f"{self.path}: labels run from {smallest} to {largest}, must be in 0 to {num_classes - 1}; {REMEDY}"
            )
        return self.labels.astype(np.int64), num_classes

    def _digest(self) -> str:
        """Check 16 samples and return the digest of the file."""
        samples, _ = self.batch(np.linspace(0, len(self) - 1, 16).astype(int))
        if not np.isfinite(samples).all() or (samples[:, LATENT_CHANNELS:] < 0).any():
            raise DataError(
                f"{self.path}: channels {LATENT_CHANNELS} to {MOMENTS - 1} of latents must be finite standard "
                f"deviations, not negative (logarithms of variances?); {REMEDY}"
            )
        # Not the file's name: a copy has the same fingerprint.
        (entry,) = manifest(self.path.parent, [self.path])
        return entry.sha256


def open_source(root: Path | None, image_size: int | None, download: bool = False) -> LatentFile:
    if root is None or not root.is_file():
        raise DataError(f"dataset.root = {root}: must be an HDF5 file of latents; {REMEDY}")
    source = LatentFile(root)
    if (side := source.shape[2] * LATENT_FACTOR) != image_size:
        raise DataError(
            f"{root}: contains latents of side {source.shape[2]}, of images of {side} pixels, "
            f"but dataset.image_size = {image_size}; set dataset.image_size to {side}"
        )
    return source


def write_latents(path: Path, parts: Iterable[np.ndarray], labels: np.ndarray, side: int, num_classes: int) -> None:
    """Write a file of latents; the file at `path` is incomplete until this function returns.

    The layout is contiguous, like the authors' files: it is the fastest for reading single samples (docs/loading.md).

    Args:
        parts: moments [n, 8, side, side] in the order of the labels [N]; the n add up to N.
    """
    with h5py.File(path, "w") as file:
        latents = file.create_dataset("latents", (len(labels), MOMENTS, side, side), np.float32)
        file.create_dataset("labels", data=labels.astype(np.int64))
        file.create_dataset("amount", data=np.int64(len(labels)))
        file.create_dataset("latent_size", data=np.int64(side))
        file.attrs["num_classes"] = num_classes
        begin = 0
        for part in parts:
            latents[begin : begin + len(part)] = part
            begin += len(part)
    assert begin == len(labels), "parts and labels differ in number"
