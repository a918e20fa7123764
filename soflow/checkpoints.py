"""Checkpoint files: written whole or not at all, read without executing anything that they contain."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

KEEP = 2
"""Newest checkpoints kept per run: an orchestrator may be one report behind the files."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing or damaged; the message names its file."""


def path_of(directory: Path, step: int) -> Path:
    return directory / f"checkpoint-{step:08d}.pt"


def latest_step(directory: Path) -> int:
    """Step of the newest checkpoint in a run's directory, 0 if there is none."""
    return max(_steps(directory), default=0)


def save(state: dict[str, Any], directory: Path, step: int) -> Path:
    """Write atomically, then drop all but the newest `KEEP` files."""
    path = path_of(directory, step)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in sorted(_steps(directory))[:-KEEP]:
        path_of(directory, old).unlink(missing_ok=True)
    return path


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CheckpointError: if the file is missing, damaged or not a checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare checksums
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"holds a {type(state).__name__}")
        return state
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except Exception as error:  # unpickling can fail in any way
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: is damaged or not a checkpoint ({reason})") from None


def _steps(directory: Path) -> list[int]:
    names = (re.fullmatch(r"checkpoint-(\d+)\.pt", path.name) for path in directory.glob("checkpoint-*.pt"))
    return [int(name[1]) for name in names if name]
