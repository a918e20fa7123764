"""Checkpoint files: written whole or not at all, checked when read, read without executing anything that they contain.

A run keeps its last checkpoint, the one before and that of its best report. If the last is torn or gone, the run goes
on from the one before. torch writes a zip archive, which holds a CRC-32 of each member.
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
"""Step and FID of a run's best report so far, whose checkpoint is kept."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing or damaged; the message names its file."""


def path_of(directory: Path, step: int) -> Path:
    return directory / f"checkpoint-{step:08d}.pt"


def latest_step(directory: Path) -> int:
    """Step of the newest checkpoint in a run's directory, 0 if there is none."""
    return max(_steps(directory), default=0)


def best_step(directory: Path) -> int | None:
    """Step of the report with the lowest FID so far, None if no report's FID is known."""
    best = _best(directory)
    return None if best is None else best[0]


def save(state: dict[str, Any], directory: Path, step: int, fid: float = math.nan) -> Path:
    """Write atomically, then drop all checkpoints but this one, the one before and the best.

    Later ones go too: this run has gone back behind them and will write them again.

    Args:
        fid: of this step's report, by which the best checkpoint is known.
    """
    path = path_of(directory, step)
    for stale in directory.glob(".checkpoint-*"):  # of a process that was killed while writing
        stale.unlink()
    with atomic(path) as partial, partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    best = _best(directory)
    if math.isfinite(fid) and (best is None or best[0] >= step or fid < best[1]):
        best = step, fid
        write_atomic(directory / BEST_FILE, json.dumps({"step": step, "fid": fid}).encode())
    steps = _steps(directory)
    kept = {step, max((old for old in steps if old < step), default=step), best[0] if best else step}
    for old in set(steps) - kept:
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


def load_newest(directory: Path, at_most: int, device: torch.device | str = "cpu") -> tuple[int, dict[str, Any]]:
    """Step and content of the newest checkpoint that can be read, none newer than step `at_most`.

    The log names damaged ones.

    Raises:
        CheckpointError: naming every file that was tried, if there is no good one.
    """
    faults = []
    for step in sorted({at_most, *(step for step in _steps(directory) if step < at_most)}, reverse=True):
        try:
            state = load(path_of(directory, step), device)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        if faults:
            LOG.warning("%s; going on from step %d", "; ".join(faults), step)
        return step, state
    raise CheckpointError("; ".join(faults))


def _best(directory: Path) -> tuple[int, float] | None:
    try:
        values = json.loads((directory / BEST_FILE).read_text())
        return int(values["step"]), float(values["fid"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: then the next report counts as best
        return None


def _steps(directory: Path) -> list[int]:
    names = (re.fullmatch(r"checkpoint-(\d+)\.pt", path.name) for path in directory.glob("checkpoint-*.pt"))
    return [int(name[1]) for name in names if name]
