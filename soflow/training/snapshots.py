"""Snapshots of a run's power-function averages, and weights averaged over other lengths, made from them.

A file contains the averages of all configured lengths after one step. Training writes it once and never deletes it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soflow.config import RunConfig
from soflow.config_base import ConfigError
from soflow.posthoc_ema import Average, Reconstruction, Snapshot, reconstruct
from soflow.training import checkpoints
from soflow.training.config import TrainingConfig
from soflow.training.ema import MovingAverage

FOLDER = "snapshots"
MOST_ERROR = 0.1
"""Largest relative error of a reconstructed profile; beyond it, the average is another one."""
GIB = 2**30


def save(averages: Mapping[float, MovingAverage], directory: Path, step: int, training: TrainingConfig) -> None:
    """Write the snapshot of a step atomically."""
    _delete_unfinished(directory)
    dtype = getattr(torch, training.snapshot_dtype)
    content = {
        length: {name: value.to("cpu", dtype) for name, value in average.module.named_parameters()}
        for length, average in averages.items()
    }
    checkpoints.write(content, _path(directory, step))


def delete_all(directory: Path) -> None:
    """Delete the snapshots of an earlier run in the folder."""
    _delete_unfinished(directory)
    for step in _steps(directory):
        _path(directory, step).unlink()


def _delete_unfinished(directory: Path) -> None:
    """Delete what a process that was killed while writing has left."""
    for partial in (directory / FOLDER).glob(".step-*"):
        partial.unlink()


def check_size(config: RunConfig, network: nn.Module) -> None:
    """Check that the snapshots of a run stay within their limit.

    Raises:
        ConfigError: with the size that they would have, and the rhythm that fits.
    """
    size, training = predicted_bytes(config, network) / GIB, config.training
    if size > training.snapshot_gib:
        fitting = -(-training.total_steps // max(1, int(num_snapshots(training) * training.snapshot_gib / size)))
        raise ConfigError(
            f"training.snapshot_every = {training.snapshot_every}: {num_snapshots(training)} snapshots take "
            f"{size:.3g} GiB, more than training.snapshot_gib = {training.snapshot_gib:g}; {fitting} fits, or a higher "
            "limit"
        )


def num_snapshots(training: TrainingConfig) -> int:
    """Return the number of snapshots of a whole run."""
    return -(-training.total_steps // training.snapshot_every) if training.snapshot_every else 0


def predicted_bytes(config: RunConfig, network: nn.Module) -> int:
    """Return the size of all snapshots of a run."""
    training = config.training
    numbers = sum(weights.numel() for weights in network.parameters())
    size = torch.finfo(getattr(torch, training.snapshot_dtype)).bits // 8
    return num_snapshots(training) * len(training.snapshot_lengths) * numbers * size


class Snapshots:
    """Snapshots of a run up to a step.

    Args:
        directory: folder of the run.
        step: of the weights to average to.

    Raises:
        ConfigError: if there are none; it says which fields to set next time.
    """

    def __init__(self, directory: Path, config: RunConfig, step: int):
        self.directory, training = directory, config.training
        counts = {saved: saved // training.ema_every for saved in _steps(directory) if saved <= step}
        self._updates = {saved: count for saved, count in counts.items() if count}
        self.lengths = training.snapshot_lengths
        self.num_updates = step // training.ema_every
        if not self._updates:
            rhythm = -(-training.total_steps // 16)
            raise ConfigError(
                f"{directory}: has no snapshots up to step {step}, so only the average of its checkpoints can be "
                f"evaluated (ema = trained); train with --training.snapshot-every {rhythm} for others"
            )

    def reconstruction(self, average: Average) -> Reconstruction:
        """Find the coefficients for an average; those of one snapshot after another, for each the lengths in order."""
        return _reconstruction(self._listed(), average, self.num_updates)

    def check(self, average: Average) -> Reconstruction:
        """Find the coefficients for an average that can be reconstructed.

        Raises:
            ConfigError: with the error that it would have.
        """
        found = self.reconstruction(average)
        if found.error > MOST_ERROR:
            raise ConfigError(
                f"ema = {average}: cannot be made from {len(self._updates)} snapshots of the lengths "
                f"{', '.join(map(str, self.lengths))}: the profile's error would be {found.error:.0%}, at most "
                f"{MOST_ERROR:.0%} is allowed; choose one between the snapshots' lengths and a few times the longest, "
                "or train with more snapshots"
            )
        return found

    def weights(self, average: Average) -> dict[str, Tensor]:
        """Compute the averaged parameters by name, float32 on the CPU; one snapshot is in memory at a time.

        Raises:
            CheckpointError: if a snapshot is damaged; its coefficient cannot be made up for.
            ConfigError: as `check`.
        """
        coefficients = iter(self.check(average).coefficients.tolist())
        total: dict[str, Tensor] = {}
        for step in self._updates:
            content: dict[Any, Any] = checkpoints.load(_path(self.directory, step))
            for length in self.lengths:
                factor = next(coefficients)
                for name, value in content[length].items():
                    if name not in total:
                        total[name] = torch.zeros(value.shape, dtype=torch.float64)
                    total[name].add_(value.double(), alpha=factor)
        return {name: value.float() for name, value in total.items()}

    def _listed(self) -> tuple[Snapshot, ...]:
        return tuple(Snapshot(length, count) for count in self._updates.values() for length in self.lengths)


@functools.lru_cache(maxsize=64)
def _reconstruction(snapshots: tuple[Snapshot, ...], average: Average, num_updates: int) -> Reconstruction:
    return reconstruct(snapshots, average, num_updates)


def _path(directory: Path, step: int) -> Path:
    return directory / FOLDER / f"step-{step:08d}.pt"


def _steps(directory: Path) -> list[int]:
    names = (re.fullmatch(r"step-(\d+)\.pt", path.name) for path in (directory / FOLDER).glob("step-*.pt"))
    return sorted(int(name[1]) for name in names if name)
