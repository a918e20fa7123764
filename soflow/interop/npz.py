"""Sample files for ADM's evaluator: uint8 images `arr_0` [N, H, W, C] and labels `arr_1` [N]."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soflow.evaluation.fidelity import Batch
from soflow.files import atomic


def write_samples(path: Path, batches: Iterable[Batch], shape: tuple[int, int, int, int]) -> None:
    """Write batches atomically, in order, with one batch in memory at a time.

    Args:
        batches: images, either all with labels or all without.
        shape: (N, C, H, W) of all images together.

    Raises:
        ValueError: if the batches do not add up to this shape.
    """
    count, channels, height, width = shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, channels)}
    labels: list[Tensor] = []
    written = 0
    with atomic(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        # np.savez needs the whole array in memory; 50,000 ImageNet images take 9 GiB.
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for batch in batches:
                _check(batch.images, shape)
                file.write(batch.images.permute(0, 2, 3, 1).cpu().numpy().tobytes())
                written += len(batch.images)
                labels += [] if batch.labels is None else [batch.labels.cpu()]
        if written != count:
            raise ValueError(f"{written} images written, expected {count}")
        if labels:
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, torch.cat(labels).numpy())


def _check(images: Tensor, shape: tuple[int, int, int, int]) -> None:
    if images.dtype != torch.uint8 or images.shape[1:] != shape[1:]:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape[1:])}, expected uint8 {shape[1:]}")
