"""Training run in a directory: alternate between training and reports (evaluation, sample grid, checkpoint).

The directory contains config.yaml, the checkpoints (see `checkpoints`), grids/ with the PNGs of each report, and
reports/ with the metrics. This module does not depend on the program that starts the run or reads its reports.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from soflow.config import RunConfig, extends, parse, to_dict
from soflow.data.base import DataSource, class_counts
from soflow.diagnostics import diagnose
from soflow.diagnostics.base import Subject
from soflow.evaluation.fidelity import Batch, Evaluator
from soflow.evaluation.generated import by_nfe, evaluation_nfe, generate, sampler_for
from soflow.files import patiently
from soflow.training import checkpoints, reports, snapshots
from soflow.training.grids import GRID_COLUMNS, draw_grid, real_grid, write_grid
from soflow.training.interval import CheckpointTimer
from soflow.training.reports import Report
from soflow.training.trainer import Trainer

LOG = logging.getLogger(__name__)

NUM_DIAGNOSED = 512
"""Number of training samples used by diagnostics."""
LAST_NFE = (1, 2, 4)
"""Additional NFE values of the last report's sample grids."""


class TrainingRun:
    """Training run on one of `world_size` data-parallel workers. All workers train and evaluate; rank 0 writes files.

    Args:
        directory: folder of the run, on storage shared by all workers.
        start: last reported step, 0 for a new run. The run resumes from the newest readable checkpoint up to this step,
            which may be an earlier one.
        evaluator: evaluator of the configured data and features, for the same rank and number of workers.
        utilization: metrics of the steps up to one, from its number and their median milliseconds.
        notice: called on all workers alike; True once one's machine has announced its end, so that a checkpoint is due.
        on_interim: called on rank 0 after a checkpoint between reports.

    Raises:
        CheckpointError: if the checkpoint to start from is of another configuration or of other data.
    """

    def __init__(
        self,
        config: RunConfig,
        source: DataSource,
        directory: Path,
        device: torch.device,
        evaluator: Evaluator,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
        utilization: Callable[[int, float], dict[str, float]] = lambda step, step_ms: {},
        notice: Callable[[], bool] = lambda: False,
        on_interim: Callable[[], None] = lambda: None,
    ):
        self.config, self.directory, self.device, self.evaluator = config, directory, device, evaluator
        self._utilization, self._on_interim = utilization, on_interim
        self.trainer = Trainer(config, source, device, rank, world_size, micro_batches)
        if config.training.snapshot_every and not start:
            snapshots.check_size(config, self.trainer.network)
        self._timer = CheckpointTimer(config.training.checkpoint_every_s, self.trainer.reduce, notice, device)
        self._restore(start)

    @property
    def finished(self) -> bool:
        return self.trainer.step >= self.config.training.total_steps

    def advance(self) -> Report | None:
        """Train to the next report and return it; return None on ranks other than 0.

        Raises:
            NonFiniteLoss: if training diverged.
            StepOutOfMemory: if a step did not fit into memory.
        """
        trainer = self.trainer
        metrics = trainer.advance(
            reports.next_step(self.config, trainer.step) - trainer.step,
            self._timer.due,
            self._save_interim,
            self._save_snapshot,
        )
        metrics |= self._utilization(trainer.step, metrics["time/step_ms"])
        if trainer.approximates_derivative:
            metrics["jvp/relative_error"] = trainer.derivative_error()
        network, began = trainer.averaged_network(), time.perf_counter()
        metrics |= self.evaluate(network)
        evaluation = self.config.evaluation
        if evaluation.diagnostics and (self.finished or evaluation.diagnose_every_report):
            metrics |= self.diagnose(network)
        metrics["time/evaluate_s"] = time.perf_counter() - began  # the metrics are Python floats: already synchronized
        self._timer.saved()  # by rank 0, in a moment
        if trainer.rank:
            return None
        return patiently(lambda: self._save(network, metrics), self.directory)

    def _save_interim(self) -> None:
        """Save a checkpoint between reports; on all workers."""
        state = self._complete(self.trainer.state_dict())
        if not self.trainer.rank:
            patiently(lambda: checkpoints.save_interim(state, self.directory), self.directory)
            self._on_interim()
        self._timer.saved()

    def _save_snapshot(self) -> None:
        """Save a snapshot of the power-function averages; on rank 0."""
        trainer = self.trainer
        if not trainer.rank:
            arguments = trainer.power_averages, self.directory, trainer.step, self.config.training
            patiently(lambda: snapshots.save(*arguments), self.directory)

    def _complete(self, state: dict[str, Any]) -> dict[str, Any]:
        """Add to a trainer's state what sampling from a checkpoint needs."""
        source = self.trainer.source
        facts = {"config": to_dict(self.config), "num_classes": source.num_classes}
        return state | facts | {"class_counts": class_counts(source), "dataset_fingerprint": source.fingerprint}

    def _save(self, network: nn.Module, metrics: dict[str, float]) -> Report:
        """Write sample grids, a checkpoint and the report, in this order: a report has all its files."""
        trainer = self.trainer
        grids = self._draw(network)
        checkpoints.save(self._complete(trainer.state_dict()), self.directory, trainer.step, metrics["fid"])
        report = Report(trainer.step, metrics, self._facts(), grids, self.finished, tuple(trainer.curve))
        reports.save_report(report, self.directory)
        return report

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Compute all metrics at every configured NFE and, on rank 0, the FID floor of the data."""
        trainer = self.trainer
        metrics: dict[str, float] = {}
        first, *_ = all_nfe = evaluation_nfe(self.config, trainer.objective)
        for nfe in all_nfe:
            sampler = sampler_for(self.config, trainer.objective, nfe)
            metrics |= by_nfe(self.evaluator.evaluate(self._images(network, nfe, sampler)), nfe, first)
        return metrics | self.evaluator.floor()

    def diagnose(self, network: nn.Module) -> dict[str, float]:
        """Compute the configured diagnostics, e.g. "diagnostics/ode_violation/mean"; equal on all workers."""
        source = self.trainer.source
        # Drawn, because folders of images are sorted by class; the same for all runs.
        drawn = np.random.default_rng(0).permutation(len(source))[:NUM_DIAGNOSED]
        stored, classes = source.batch(drawn)
        labels = torch.from_numpy(classes).to(self.device)
        subject = Subject(
            objective=self.trainer.objective,
            network=network,
            data=self.trainer.codec.encode(torch.from_numpy(stored).to(self.device)),
            labels=labels if self.config.dataset.conditional else torch.full_like(labels, source.num_classes),
            seed=self.config.seed,
            fid=lambda nfe, sampler, other=network: self.evaluator.fid(self._images(other, nfe, sampler)),
            components=getattr(source, "components", None),
        )
        metrics = diagnose(self.config.evaluation.diagnostics, subject)
        return {f"diagnostics/{name}": value for name, value in metrics.items()}

    def _images(self, network: nn.Module, nfe: int, sampler: str) -> Iterator[Batch]:
        """Generate this worker's share of the evaluation images."""
        trainer, workers = self.trainer, self.evaluator.workers
        counts = class_counts(trainer.source)
        return generate(trainer.objective, network, trainer.codec, self.config, nfe, sampler, workers, counts)

    def _draw(self, network: nn.Module) -> dict[str, Path]:
        """Write sample grids at each NFE from the same noise and, at the end, a grid of real images.

        Returns:
            paths by name; names of samples have the metrics' suffixes.
        """
        trainer, paths = self.trainer, {}
        first, *others = evaluation_nfe(self.config, trainer.objective)
        for nfe in (first, *(sorted({*others, *LAST_NFE} - {first}) if self.finished else ())):
            suffix = "" if nfe == first else f"_{nfe}nfe"
            path = self.directory / "grids" / f"step-{trainer.step:08d}{suffix}.png"
            images = draw_grid(trainer.objective, network, self.config, self.device, nfe, codec=trainer.codec)
            write_grid(images, path, GRID_COLUMNS)
            paths[f"samples{suffix}"] = path
        if self.finished:
            paths["real"] = self.directory / "grids" / "real.png"
            write_grid(real_grid(trainer.source, trainer.codec, self.device), paths["real"], GRID_COLUMNS)
        return paths

    def _facts(self) -> dict[str, str]:
        """Collect the conditions that must agree for two runs' numbers to be comparable."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else platform.processor() or platform.machine(),
            "dtype": self.config.training.precision,
            "quotient_dtype": self.config.training.quotient_precision,
            "attention": self.trainer.objective.attention,
            "compiled": str(self.trainer.compiled).lower(),
            **({"compile_choice": self.trainer.compile_choice} if self.trainer.compile_choice else {}),
            "memory_measure": "peak of tensors in an optimizer step",
            "threads": str(torch.get_num_threads()),
            "workers": str(self.trainer.world_size),
            "micro_batch": str(self.trainer.micro_batch),
            "nfe": ",".join(map(str, evaluation_nfe(self.config, self.trainer.objective))),
            "dataset_fingerprint": self.trainer.source.fingerprint[:12],
            "dataset_size": str(len(self.trainer.source)),
            **{f"fid_{name}": str(value) for name, value in self.evaluator.protocol().items()},
        }

    def _newest(self, at_most: int) -> tuple[int, dict[str, Any]]:
        """Read the newest readable checkpoint; if none is readable, the training begins again, at step 0."""
        try:
            return checkpoints.load_newest(self.directory, at_most, self.device) if at_most else (0, {})
        except checkpoints.CheckpointError as error:
            LOG.warning("%s; training from the start", error)
            return 0, {}

    def _interim(self, start: int) -> tuple[int, dict[str, Any]] | None:
        """Read the checkpoint between reports, if it follows this report of this run with as many workers."""
        state = checkpoints.load_interim(self.directory, self.device)
        if state is None or len(intervals := state["interval"]) != self.trainer.world_size:
            return None
        fits = intervals[0]["begin"] == start and parse(state["config"]) == self.config
        return (state["step"], state) if fits else None

    def _restore(self, start: int) -> None:
        step, state = agreed(self._interim(start) or self._newest(start), self._newest, self.trainer.range_of)
        if not step:
            if not (start or self.trainer.rank):
                snapshots.delete_all(self.directory)
                patiently(lambda: reports.begin(self.config, self.directory), self.directory)
            return
        if not extends(self.config, parse(state["config"])):
            path = checkpoints.path_of(self.directory, step)
            raise checkpoints.CheckpointError(f"{path}: belongs to another configuration than the run resuming from it")
        now = self.trainer.source.fingerprint
        if (then := state.get("dataset_fingerprint", now)) != now:  # older checkpoints have none
            raise checkpoints.CheckpointError(
                f"{self.directory}: its training data have changed (fingerprint {then[:12]}, now {now[:12]}); restore "
                "them to resume, or start a run under another name"
            )
        self.trainer.load_state_dict(state)
        if not self.trainer.rank:
            patiently(lambda: reports.save_config(self.config, self.directory), self.directory)


Checkpoint = tuple[int, dict[str, Any]]
"""Step and state; step 0 has none."""


def agreed(
    newest: Checkpoint, at_most: Callable[[int], Checkpoint], range_of: Callable[[int], tuple[int, int]]
) -> Checkpoint:
    """Return the newest checkpoint that all workers have: those on different machines may have different ones.

    Args:
        newest: this worker's newest checkpoint.
        at_most: loads this worker's newest one up to a step.
        range_of: returns the least and the greatest of all workers' steps; every worker calls it equally often.
    """
    step, state = newest
    low, high = range_of(step)
    while low < high:
        if step > low:
            step, state = at_most(low)
        low, high = range_of(step)
    return step, state
