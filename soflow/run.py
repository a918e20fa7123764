"""One training run in its directory: train to a report, evaluate, draw a grid, write a checkpoint, go on.

The directory holds config.yaml, the newest checkpoints and grids/, one PNG per report. Nothing here knows what
started the run or where its reports go.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from soflow import checkpoints, codecs, networks, objectives
from soflow.codecs import Codec
from soflow.config import RunConfig, parse, to_dict, to_yaml
from soflow.data import DataSource
from soflow.evaluation.fidelity import Evaluator
from soflow.evaluation.generated import evaluate, evaluation_nfe, look_closer, sampler_for
from soflow.images import write_grid
from soflow.objectives.base import Objective, normal
from soflow.randomness import generator
from soflow.sampling import sample
from soflow.training import Trainer

GRID_ROWS, GRID_COLUMNS = 8, 10


@dataclass(frozen=True)
class Report:
    """What a run has to say after some more steps."""

    step: int
    """Optimiser steps done."""
    metrics: dict[str, float]
    facts: dict[str, str]
    """How the numbers were made: hardware, precision, evaluation protocol."""
    grid: Path
    """PNG of one-step samples, a column per class."""


class TrainingRun:
    """A run on one of `world_size` workers, which all train and evaluate; rank 0 writes files.

    Args:
        directory: the run's own folder, on storage that all workers see.
        start: step of the checkpoint to go on from, 0 for a fresh start.
        evaluator: of the configured data and features, for the same rank and number of workers.

    Raises:
        CheckpointError: if the checkpoint to start from is missing, damaged or of another configuration.
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
    ):
        self.config, self.directory, self.device, self.evaluator = config, directory, device, evaluator
        self.trainer = Trainer(config, source, device, rank, world_size)
        if start:
            self._restore(checkpoints.path_of(directory, start))
        elif rank == 0:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "config.yaml").write_text(to_yaml(config))

    @property
    def finished(self) -> bool:
        return self.trainer.step >= self.config.training.total_steps

    def advance(self) -> Report | None:
        """Train to the next report and make it; None on ranks other than 0.

        Raises:
            NonFiniteLoss: if training diverged.
        """
        training, trainer = self.config.training, self.trainer
        next_report = (trainer.step // training.report_every + 1) * training.report_every
        metrics = trainer.advance(min(next_report, training.total_steps) - trainer.step)
        network = trainer.averaged_network()
        metrics |= evaluate(trainer, network, self.evaluator)
        evaluation = self.config.evaluation
        if evaluation.diagnostics and (self.finished or evaluation.diagnose_every_report):
            metrics |= look_closer(trainer, network, self.evaluator)
        if trainer.rank:
            return None
        grid = self.directory / "grids" / f"step-{trainer.step:08d}.png"
        nfe = evaluation_nfe(self.config, trainer.objective)[0]
        images = draw_grid(trainer.objective, network, self.config, self.device, nfe, codec=trainer.codec)
        write_grid(images, grid, GRID_COLUMNS)
        state = trainer.state_dict() | {"config": to_dict(self.config), "num_classes": trainer.source.num_classes}
        checkpoints.save(state, self.directory, trainer.step)
        return Report(trainer.step, metrics, self._facts(), grid)

    def _facts(self) -> dict[str, str]:
        """How this run's numbers were made, for comparing like with like."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else platform.processor() or platform.machine(),
            "dtype": self.config.training.precision,
            "quotient_dtype": self.config.training.quotient_precision,
            "attention": self.trainer.objective.attention,
            "memory_measure": "peak of tensors in an optimiser step",
            "threads": str(torch.get_num_threads()),
            "workers": str(self.trainer.world_size),
            "nfe": ",".join(map(str, evaluation_nfe(self.config, self.trainer.objective))),
            **{f"fid_{name}": str(value) for name, value in self.evaluator.protocol().items()},
        }

    def _restore(self, path: Path) -> None:
        state = checkpoints.load(path, self.device)
        if parse(state["config"]) != self.config:
            raise checkpoints.CheckpointError(f"{path}: belongs to another configuration than the run resuming from it")
        self.trainer.load_state_dict(state)


def draw_grid(
    objective: Objective,
    network: nn.Module,
    config: RunConfig,
    device: torch.device,
    nfe: int,
    sampler: str | None = None,
    seed: int = 0,
    rows: int = GRID_ROWS,
    codec: Codec | None = None,
) -> Tensor:
    """uint8 samples [rows · 10, C, H, W], row by row, one column per class (the first ten), from seeded noise.

    Args:
        codec: of the configured data, built if it is not at hand.
    """
    random = generator(device, seed, "grid")
    noise = normal((rows * GRID_COLUMNS, *config.dataset.sample_shape), random)
    labels = torch.arange(len(noise), device=device) % GRID_COLUMNS % objective.num_classes
    if not config.dataset.conditional:
        labels = torch.full_like(labels, objective.num_classes)
    sampler = sampler or sampler_for(config, objective, nfe)
    samples = sample(objective, network, noise, labels, nfe, sampler, random)
    return (codec or codecs.build(config.dataset, device)).decode(samples)


def load_sampler(path: Path, device: torch.device) -> tuple[RunConfig, Objective, nn.Module]:
    """The configuration, the objective and the averaged network of a checkpoint, ready to sample.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    state = checkpoints.load(path, device)
    config = parse(state["config"])
    network = networks.build(config, state["num_classes"]).to(device)
    network.load_state_dict(state["ema"])
    return config, objectives.build(config, state["num_classes"]), network.eval()
