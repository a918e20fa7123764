"""One training run in its directory: train to a report, evaluate, draw a grid, write a checkpoint, go on.

The directory holds config.yaml, the checkpoints that are kept (`checkpoints`), grids/ with PNGs of samples for each
report and reports/ with what each of them said. Nothing here knows what started the run or where its reports go.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from soflow import networks, objectives
from soflow.codecs import pixels as codecs
from soflow.codecs.pixels import Codec
from soflow.config import RunConfig, parse, to_dict
from soflow.data import DataSource
from soflow.evaluation.fidelity import Evaluator
from soflow.evaluation.generated import evaluate, evaluation_nfe, look_closer, sampler_for
from soflow.objectives.base import Objective, normal
from soflow.randomness import generator
from soflow.sampling import sample
from soflow.training import checkpoints, reports
from soflow.training.grids import write_grid
from soflow.training.reports import Report
from soflow.training.trainer import Trainer

GRID_ROWS, GRID_COLUMNS = 8, 10
LAST_NFE = (1, 2, 4)
"""The last report's samples are also drawn at these numbers of network evaluations."""


class TrainingRun:
    """A run on one of `world_size` workers, which all train and evaluate; rank 0 writes files.

    Args:
        directory: the run's own folder, on storage that all workers see.
        start: steps that were reported, 0 for a fresh start. The run goes on from the newest good checkpoint up to
            there and may so be some steps behind.
        evaluator: of the configured data and features, for the same rank and number of workers.
        taken_over: step whose checkpoint is another run's, which may be of another configuration (0: none is).

    Raises:
        CheckpointError: if all checkpoints to start from are missing or damaged, or one is of another configuration.
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
        taken_over: int = 0,
    ):
        self.config, self.directory, self.device, self.evaluator = config, directory, device, evaluator
        self.trainer = Trainer(config, source, device, rank, world_size, micro_batches)
        if start:
            self._restore(start, taken_over)
        if start == taken_over and rank == 0:
            reports.begin(config, directory, start)

    @property
    def finished(self) -> bool:
        return self.trainer.step >= self.config.training.total_steps

    def advance(self) -> Report | None:
        """Train to the next report and make it; None on ranks other than 0.

        Raises:
            NonFiniteLoss: if training diverged.
            StepOutOfMemory: if a step did not fit into memory.
        """
        trainer = self.trainer
        metrics = trainer.advance(reports.next_step(self.config, trainer.step) - trainer.step)
        network, began = trainer.averaged_network(), time.perf_counter()
        metrics |= evaluate(trainer, network, self.evaluator)
        evaluation = self.config.evaluation
        if evaluation.diagnostics and (self.finished or evaluation.diagnose_every_report):
            metrics |= look_closer(trainer, network, self.evaluator)
        metrics["time/evaluate_s"] = time.perf_counter() - began  # of this report; it ends in numbers, so synchronised
        if trainer.rank:
            return None
        grids = self._draw(network)
        state = trainer.state_dict() | {"config": to_dict(self.config), "num_classes": trainer.source.num_classes}
        checkpoints.save(state, self.directory, trainer.step, metrics["fid"])
        report = Report(trainer.step, metrics, self._facts(), grids, self.finished)
        reports.record(report, self.directory)
        return report

    def _draw(self, network: nn.Module) -> dict[str, Path]:
        """Grids from equal noise, by the name of their pictures: named as the metrics at equal NFE are."""
        trainer, found = self.trainer, {}
        first, *others = evaluation_nfe(self.config, trainer.objective)
        for nfe in (first, *(sorted({*others, *LAST_NFE} - {first}) if self.finished else ())):
            suffix = "" if nfe == first else f"_{nfe}nfe"
            path = self.directory / "grids" / f"step-{trainer.step:08d}{suffix}.png"
            images = draw_grid(trainer.objective, network, self.config, self.device, nfe, codec=trainer.codec)
            write_grid(images, path, GRID_COLUMNS)
            found[f"samples{suffix}"] = path
        return found

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
            "micro_batch": str(self.trainer.micro_batch),
            "nfe": ",".join(map(str, evaluation_nfe(self.config, self.trainer.objective))),
            "dataset_fingerprint": self.trainer.source.fingerprint[:12],
            "dataset_size": str(len(self.trainer.source)),
            **{f"fid_{name}": str(value) for name, value in self.evaluator.protocol().items()},
        }

    def _restore(self, start: int, taken_over: int) -> None:
        step, state = checkpoints.load_newest(self.directory, start, self.device)
        if (agreed := self.trainer.earliest(step)) < step:  # another worker could not read this one
            step, state = checkpoints.load_newest(self.directory, agreed, self.device)
        if step != taken_over and parse(state["config"]) != self.config:
            path = checkpoints.path_of(self.directory, step)
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
