"""Checkpoint files: written atomically, verified on reading, loaded without executing code.

A run keeps its last report's checkpoint, the one before and that of its best report, and between reports an interim
one (training.checkpoint_every_s). If the last one is damaged or missing, the run resumes from the one before. torch
writes zip archives, which store a CRC-32 of each member.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from soflow.files import atomic, write_atomic

LOG = logging.getLogger(__name__)

BEST_FILE = "best.json"
"""File with step and FID of the best report so far; the checkpoint of that step is kept."""
INTERIM_FILE = "interim.pt"
"""Checkpoint between two reports; the next report's takes its place."""


class CheckpointError(RuntimeError):
    """Missing or damaged checkpoint; the message names its file."""


def path_of(directory: Path, step: int) -> Path:
    """Return the path of a step's checkpoint in a run's directory."""
    return directory / f"checkpoint-{step:08d}.pt"


def latest_step(directory: Path) -> int:
    """Return the step of the newest checkpoint in a run's directory, or 0 without checkpoints."""
    return max(_steps(directory), default=0)


def best_step(directory: Path) -> int | None:
    """Return the step of the report with the lowest FID so far, or None without any FID."""
    best = _best(directory)
    return None if best is None else best[0]


def find(path: Path, best: bool = False) -> Path:
    """Return the checkpoint to load: the file itself, or of a run's directory the newest or the best one.

    Args:
        best: choose the one with the lowest FID, if the directory has any FID.

    Raises:
        CheckpointError: if a directory contains none.
    """
    if not path.is_dir():
        return path
    step = (best_step(path) if best else None) or latest_step(path)
    if not step:
        raise CheckpointError(
            f"{path}: contains no checkpoint; give the folder of a run or trial, or a checkpoint-*.pt"
        )
    return path_of(path, step)


def save(state: dict[str, Any], directory: Path, step: int, fid: float = math.nan) -> Path:
    """Write a checkpoint atomically, then delete all but this one, the one before and the best.

    Later checkpoints are deleted too: the run was resumed from an earlier step and will write them again.

    Args:
        fid: FID of this step's report, which selects the best checkpoint.
    """
    path = path_of(directory, step)
    # Left by a process that was killed while writing.
    for stale in (*directory.glob(".checkpoint-*"), *directory.glob(f".{INTERIM_FILE}-*")):
        stale.unlink()
    write(state, path)
    (directory / INTERIM_FILE).unlink(missing_ok=True)
    best = _best(directory)
    if math.isfinite(fid) and (best is None or best[0] >= step or fid < best[1]):
        best = step, fid
        write_atomic(directory / BEST_FILE, json.dumps({"step": step, "fid": fid}).encode())
    steps = _steps(directory)
    kept = {step, max((old for old in steps if old < step), default=step), best[0] if best else step}
    for old in set(steps) - kept:
        path_of(directory, old).unlink(missing_ok=True)
    return path


def save_interim(state: dict[str, Any], directory: Path) -> None:
    """Write a checkpoint between reports atomically, in place of the one before."""
    write(state, directory / INTERIM_FILE)


def load_interim(directory: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Load the checkpoint between reports; None if it is missing or damaged."""
    path = directory / INTERIM_FILE
    if not path.exists():
        return None
    try:
        return load(path, device)
    except CheckpointError as error:
        LOG.warning("%s; resuming from the last report", error)
        return None


def write(state: dict[Any, Any], path: Path) -> None:
    """Write a checkpoint atomically and durably."""
    with atomic(path) as partial, partial.open("wb") as file:
        torch.save(state, file)
        # Without fsync, a machine failure soon after the rename could leave an empty file under the final name.
        file.flush()
        os.fsync(file.fileno())


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CheckpointError: if the file is missing, damaged or not a checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify checksums
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"contains a {type(state).__name__}")
        return state
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except Exception as error:  # unpickling can fail in any way
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: is damaged or not a checkpoint ({reason})") from None


def load_newest(directory: Path, at_most: int, device: torch.device | str = "cpu") -> tuple[int, dict[str, Any]]:
    """Load the newest readable checkpoint up to step `at_most`; return its step and content.

    Damaged checkpoints are skipped with a warning.

    Raises:
        CheckpointError: if none is readable; the message names every file that was tried.
    """
    faults = []
    for step in sorted({at_most, *(step for step in _steps(directory) if step < at_most)}, reverse=True):
        try:
            state = load(path_of(directory, step), device)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        if faults:
            LOG.warning("%s; resuming from step %d", "; ".join(faults), step)
        return step, state
    raise CheckpointError("; ".join(faults))


def _best(directory: Path) -> tuple[int, float] | None:
    try:
        values = json.loads((directory / BEST_FILE).read_text())
        return int(values["step"]), float(values["fid"])
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: the next report becomes the best
        return None


def _steps(directory: Path) -> list[int]:
    names = (re.fullmatch(r"checkpoint-(\d+)\.pt", path.name) for path in directory.glob("checkpoint-*.pt"))
    return [int(name[1]) for name in names if name]
