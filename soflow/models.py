"""Trained models for sampling and evaluation: `soflow.load_model("results/NAME").sample(16)`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from soflow import codecs
from soflow.codecs.base import Codec
from soflow.config import RunConfig, override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.evaluation.fidelity import Batch, Evaluator, Measurement
from soflow.evaluation.generated import by_nfe, check_times, evaluation_nfe, generate, sampler_for
from soflow.evaluation.moments import Workers
from soflow.objectives.base import Objective
from soflow.posthoc_ema import TRAINED, average_of
from soflow.training import checkpoints, trained
from soflow.training.grids import GRID_COLUMNS, GRID_ROWS, draw_grid, grid_image
from soflow.training.snapshots import Snapshots

if TYPE_CHECKING:
    from PIL.Image import Image

Progress = Callable[[Iterable[Batch], str], Iterable[Batch]]
"""Function (batches, description) that passes the batches on while it shows progress."""


@dataclass
class Count:
    """Number of samples that a network has evaluated."""

    samples: int = 0


@contextmanager
def counted(network: nn.Module) -> Iterator[Count]:
    """Count the samples that a network evaluates inside the block; a guided sample is two."""
    count = Count()

    def add(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        count.samples += len(arguments[0])

    hook = network.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        hook.remove()


def best_device() -> torch.device:
    """Return CUDA where it is available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    path: str | Path, best: bool = False, device: torch.device | str | None = None, ema: str = TRAINED
) -> Model:
    """Load the averaged weights of a checkpoint.

    Args:
        path: checkpoint file, or folder of a run or trial, of which the newest checkpoint is loaded.
        best: of a folder, load the checkpoint with the lowest FID.
        device: default: CUDA if available.
        ema: average of the weights, see `Model.use_average`.

    Raises:
        CheckpointError: if the checkpoint is missing or damaged, or its weights are infinite or NaN.
        ConfigError: if its objective, network or dataset is a plug-in that cannot be imported.
    """
    found, chosen = checkpoints.find(Path(path), best), torch.device(device or best_device())
    model = Model(found, *trained.load_sampler(found, chosen), chosen)
    model.use_average(ema)
    return model


class Model:
    """Trained network with the objective that says how to sample from it.

    Attributes:
        path: checkpoint.
        config: configuration of the training run.
        network: averaged weights, F_θ(x, t, s, labels).
        objective: solution map f_θ(x, t, s) and velocity v_θ(x, t) of the network.
    """

    def __init__(self, path: Path, config: RunConfig, objective: Objective, network: nn.Module, device: torch.device):
        self.path, self.config, self.objective, self.network, self.device = path, config, objective, network, device
        self._ema = TRAINED

    def __repr__(self) -> str:
        config, parameters = self.config, sum(weights.numel() for weights in self.network.parameters())
        return (
            f"<{config.objective.name} model of {config.dataset.name}, {config.network.name}, {parameters:,} weights>"
        )

    @functools.cached_property
    def codec(self) -> Codec:
        """Codec of the model's data, with its autoencoder if they are latents."""
        return codecs.build(self.config.dataset, self.device)

    def use_average(self, ema: str) -> None:
        """Replace the network's weights by another average of the weights at the same step.

        Args:
            ema: "trained" for the average that training evaluated; for others, which are made from the run's snapshots,
                a relative length such as "0.1", or an EMA's decay such as "decay=0.999".

        Raises:
            ConfigError: if the average is unknown, or cannot be made from the snapshots.
        """
        if ema == self._ema:
            return
        try:
            average = average_of(ema)
        except ValueError as error:
            raise ConfigError(f"ema = {ema}: {error}") from None
        state = checkpoints.load(self.path)
        weights = state["ema"]
        if average is not None:  # buffers are equal in all averages
            weights = weights | Snapshots(self.path.parent, self.config, state["step"]).weights(average)
        self.network.load_state_dict(weights)
        self._ema = ema

    def sample(
        self, num_samples: int, nfe: int = 1, labels: Sequence[int] = (), sampler: str | None = None, seed: int = 0
    ) -> Tensor:
        """Generate images, uint8 [num_samples, C, H, W] on the CPU.

        Args:
            nfe: number of function evaluations per image.
            labels: classes, repeated in turn; by default as in the run's evaluation, whose images these are for the
                seed of the run.
            sampler: "renoise", "compose" or "heun"; default: the objective's.
            seed: seed of the noise.

        Raises:
            ConfigError: if a label is unknown, the sampler cannot take so many evaluations, or the autoencoder of a
                latent network cannot be loaded.
        """
        if len(labels):
            repeated = [labels[number % len(labels)] for number in range(num_samples)]
            return self._grid(nfe, self._checked(repeated), 1, sampler, seed).cpu()
        return torch.cat([batch.images.cpu() for batch in self.samples(num_samples, nfe, sampler, seed)])

    def samples(self, num_samples: int, nfe: int = 1, sampler: str | None = None, seed: int = 0) -> Iterator[Batch]:
        """Generate the images of `sample` batch by batch, with their labels."""
        evaluation = self.config.evaluation.model_copy(update={"num_samples": num_samples})
        config = self.config.model_copy(update={"seed": seed, "evaluation": evaluation})
        return self._batches(config, nfe, sampler, trained.class_counts(self.path, config, self.objective))

    def _batches(
        self, config: RunConfig, nfe: int, sampler: str | None, counts: Sequence[int], also: Sequence[str] = ()
    ) -> Iterator[Batch]:
        sampler, workers = self._checked_sampler(config, nfe, sampler), Workers(self.device)
        return generate(self.objective, self.network, self.codec, config, nfe, sampler, workers, counts, also)

    def grid(
        self,
        nfe: int = 1,
        labels: Sequence[int] = (),
        rows: int = GRID_ROWS,
        sampler: str | None = None,
        seed: int = 0,
    ) -> Image:
        """Draw samples as one picture, with a column per label; grids of equal seed start from the same noise.

        Args:
            labels: classes of the columns; default: the first ten.

        Raises:
            ConfigError: as `sample`.
        """
        columns = self._checked(labels) if len(labels) else range(GRID_COLUMNS)
        return grid_image(self._grid(nfe, columns, rows, sampler, seed), len(columns))

    def _checked(self, labels: Iterable[int]) -> list[int]:
        if not self.config.dataset.conditional:
            raise ConfigError("labels: must be left out, the model was trained without")
        checked = [int(label) for label in labels]
        for label in (min(checked), max(checked)):
            if not 0 <= label < self.objective.num_classes:
                number = self.objective.num_classes
                raise ConfigError(f"labels = {label}: must be from 0 to {number - 1}, below the number of classes")
        return checked

    def _grid(self, nfe: int, labels: Sequence[int], rows: int, sampler: str | None, seed: int) -> Tensor:
        sampler = self._checked_sampler(self.config, nfe, sampler)
        arguments = (self.objective, self.network, self.config, self.device, nfe, sampler, seed, rows)
        return draw_grid(*arguments, self.codec, labels)

    def _checked_sampler(self, config: RunConfig, nfe: int, sampler: str | None) -> str:
        """Return the sampler, by default the configured one, if it can take so many evaluations."""
        if nfe < 1:
            raise ConfigError(f"nfe = {nfe}: must be 1 or more")
        sampler = sampler or sampler_for(config, self.objective, nfe)
        if sampler == "heun" and nfe % 2:
            raise ConfigError(f"nfe = {nfe}: must be even with sampler = heun, whose steps take two evaluations")
        return sampler

    def evaluate(
        self,
        cache: str | Path = "results/reference",
        root: str | Path | None = None,
        seed: int | None = None,
        **changes: Any,
    ) -> dict[str, float]:
        """Compute FID and the other metrics at every NFE, named as in a run's reports.

        Args:
            cache: folder of reference features, computed once per dataset and feature network.
            root: folder of the dataset, if it was moved.
            seed: seed of the noise; default: the run's.
            changes: fields of the run's `evaluation` to replace, e.g. num_samples=10_000, nfe=(1, 2).

        Raises:
            ConfigError, DataError: if the data, the feature network or the reference is unusable.
        """
        changed = {f"evaluation.{name}": value for name, value in changes.items()}
        changed |= {} if root is None else {"dataset.root": str(root)}
        changed |= {} if seed is None else {"seed": seed}
        config = parse(override(to_dict(self.config), changed))
        evaluator = self.evaluator(config, Path(cache))
        metrics: dict[str, float] = {}
        for _, _, measured in self.measure(config, evaluator):
            metrics |= measured
        return metrics | evaluator.floor()

    def evaluator(self, config: RunConfig, cache: Path) -> Evaluator:
        """Load feature network and reference of a configuration that differs in its evaluation only."""
        return Evaluator(open_source(config.dataset), config, self.device, cache)

    def measure(
        self,
        config: RunConfig,
        evaluator: Evaluator,
        progress: Progress = lambda batches, description: batches,
        also: Sequence[Evaluator] = (),
    ) -> Iterator[tuple[int, str, dict[str, float]]]:
        """Yield NFE, sampler and metrics of each NFE of the configuration.

        Args:
            progress: wraps the batches of each NFE.
            also: evaluators of the same images by other FID protocols; their metrics have names such as "fid@adm".
        """
        check_times(config, self.objective)
        counts = evaluator.class_counts
        first, *_ = all_nfe = evaluation_nfe(config, self.objective)
        protocols = [other.config.protocol for other in also]
        for nfe in all_nfe:
            measurements = [Measurement(evaluator), *map(Measurement, also)]
            for batch in progress(self._batches(config, nfe, None, counts, protocols), f"{nfe} NFE"):
                for number, measurement in enumerate(measurements):
                    measurement.add(batch.rounded(number - 1) if number else batch)
            measured = measurements[0].metrics()
            for protocol, measurement in zip(protocols, measurements[1:], strict=True):
                measured |= {f"{name}@{protocol}": value for name, value in measurement.metrics().items()}
            yield nfe, sampler_for(config, self.objective, nfe), by_nfe(measured, nfe, first)
