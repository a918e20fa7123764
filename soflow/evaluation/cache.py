"""Cache of tensors in safetensors files with checksums."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from soflow.files import write_atomic

logger = logging.getLogger(__name__)


def cached(path: Path, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read tensors from a safetensors file; compute and write them first if the file is missing or damaged.

    If the file cannot be read or written, log a warning and return the computed tensors.
    """
    if path.exists():
        try:
            return _read(path)
        except (SafetensorError, OSError, ValueError) as error:
            logger.warning("%s: damaged cache file, recomputing it (%s)", path, error)
    tensors = compute()
    try:
        write_atomic(path, safetensors.torch.save(tensors, {"sha256": _digest(tensors)}))
    except OSError as error:
        logger.warning("%s: cannot be written; the next run will recompute it (%s)", path, error)
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        stated = (file.metadata() or {}).get("sha256")
    if stated != _digest(tensors):
        raise ValueError("its content does not match its checksum")
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()
