"""A cache of tensors in safetensors files, each verified by a checksum when it is read."""

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
    """Tensors from a safetensors file, computed and written first if it is missing or damaged.

    A file that cannot be read or written costs time, never the result: the log says so and the tensors are computed.
    """
    if path.exists():
        try:
            return _read(path)
        except (SafetensorError, OSError, ValueError) as error:
            logger.warning("%s: damaged cache file, computing it again (%s)", path, error)
    tensors = compute()
    try:
        write_atomic(path, safetensors.torch.save(tensors, {"sha256": _digest(tensors)}))
    except OSError as error:
        logger.warning("%s: cannot be written, so the next run computes it again (%s)", path, error)
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
        digest.update(tensors[name].contiguous().numpy())
    return digest.hexdigest()
