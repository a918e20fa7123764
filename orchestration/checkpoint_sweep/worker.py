"""The worker's side of a checkpoint sweep: keeps network, feature network and reference, and exchanges weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.checkpoint_sweep.config import Point
from orchestration.store.location import on_this_machine

if TYPE_CHECKING:
    import torch

    from soflow.evaluation.fidelity import Evaluator
    from soflow.models import Model


@dataclass(frozen=True)
class Subject:
    """Checkpoint to measure."""

    checkpoint: Path
    changes: dict[str, Any]
    """Values of its run's configuration to replace, by path: how all points are measured."""
    cache: Path
    """Folder of reference features."""


@dataclass(frozen=True)
class Measure:
    """Measure a point and draw a sample grid of it."""

    point: Point
    grid: Path
    """PNG file to write."""


@dataclass(frozen=True)
class Measured:
    """Answer to `Measure`: metrics, or the reason of a failure."""

    metrics: dict[str, float]
    protocol: dict[str, Any]
    """Settings that must agree for values of metrics to be comparable."""
    failure: str = ""


class CheckpointWorker:
    """Server that measures points of one checkpoint."""

    def __init__(self, subject: Subject, device: torch.device, rank: int, world_size: int):
        self.subject, self.device = subject, device
        self._loaded: Model | None = None
        self._evaluator: Evaluator | None = None

    def close(self) -> None:
        """Do nothing: there is nothing to finish."""

    def failure(self, request: Measure, error: Exception) -> Measured:
        """Return the reason of a failure in one line."""
        return Measured({}, {}, f"{type(error).__name__}: {error}".splitlines()[0])

    def serve(self, request: Measure) -> Measured:
        """Measure the point."""
        from soflow.config import override, parse, to_dict
        from soflow.models import Model, counted, load_model
        from soflow.training.grids import save_png

        began = time.perf_counter()
        if self._loaded is None:
            self._loaded = load_model(on_this_machine(self.subject.checkpoint), device=self.device)
        loaded = self._loaded
        loaded.use_average(request.point.ema)
        config = parse(override(to_dict(loaded.config), self.subject.changes | request.point.changes()))
        model = Model(loaded.path, config, loaded.objective, loaded.network, self.device)
        model.codec = loaded.codec  # with an autoencoder, if it has one, that is loaded once
        if self._evaluator is None:
            self._evaluator = model.evaluator(config, on_this_machine(self.subject.cache))
        with counted(model.network) as count:
            ((_, _, metrics),) = model.measure(config, self._evaluator)
        metrics |= self._evaluator.floor()
        metrics["evaluations"] = count.samples / config.evaluation.num_samples
        metrics["time/evaluate_s"] = time.perf_counter() - began
        save_png(model.grid(request.point.nfe), on_this_machine(request.grid))
        return Measured(metrics, self._evaluator.protocol())
