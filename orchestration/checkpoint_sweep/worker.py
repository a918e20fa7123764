"""The worker's side of a checkpoint sweep: keeps network, feature network and reference, and exchanges weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.checkpoint_sweep.config import TRAINED, Point, average_of
from orchestration.store.location import on_this_machine

if TYPE_CHECKING:
    import torch

    from soflow.evaluation.fidelity import Evaluator
    from soflow.models import Model
    from soflow.training.snapshots import Snapshots


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
        self._model: Model | None = None
        self._evaluator: Evaluator | None = None
        self._snapshots: Snapshots | None = None
        self._ema = TRAINED

    def close(self) -> None:
        """Do nothing: there is nothing to finish."""

    def failure(self, request: Measure, error: Exception) -> Measured:
        """Return the reason of a failure in one line."""
        return Measured({}, {}, f"{type(error).__name__}: {error}".splitlines()[0])

    def serve(self, request: Measure) -> Measured:
        """Measure the point."""
        from soflow.config import override, parse, to_dict
        from soflow.models import Model, counted
        from soflow.training.grids import save_png

        began = time.perf_counter()
        loaded = self._with_weights(request.point.ema)
        config = parse(override(to_dict(loaded.config), self.subject.changes | request.point.changes()))
        model = Model(loaded.path, config, loaded.objective, loaded.network, self.device)
        if self._evaluator is None:
            self._evaluator = model.evaluator(config, on_this_machine(self.subject.cache))
        with counted(model.network) as count:
            ((_, _, metrics),) = model.measure(config, self._evaluator)
        metrics |= self._evaluator.floor()
        metrics["evaluations"] = count.samples / config.evaluation.num_samples
        metrics["time/evaluate_s"] = time.perf_counter() - began
        save_png(model.grid(request.point.nfe), on_this_machine(request.grid))
        return Measured(metrics, self._evaluator.protocol())

    def _with_weights(self, ema: str) -> Model:
        """Return the model with these averaged weights in its network."""
        from soflow.models import load_model
        from soflow.training import checkpoints, snapshots

        path = on_this_machine(self.subject.checkpoint)
        if self._model is None:
            self._model, self._ema = load_model(path, device=self.device), TRAINED
        model = self._model
        if ema != self._ema:
            average = average_of(ema)
            if average is None:
                model.network.load_state_dict(checkpoints.load(path, self.device)["ema"])
            else:
                if self._snapshots is None:
                    step = checkpoints.load(path)["step"]
                    self._snapshots = snapshots.Snapshots(path.parent, model.config, step)
                # Buffers are equal in all averages.
                model.network.load_state_dict(self._snapshots.weights(average), strict=False)
            self._ema = ema
        return model
