"""Generate samples from a checkpoint: a grid with one column per class, or a file for ADM's evaluator.

$ python experiments/sample.py results/NAME/trials/0003
$ python experiments/sample.py results/NAME/checkpoint-00001200.pt --nfe 4 --sampler compose --out samples.png
$ python experiments/sample.py results/NAME --best --labels 3 7 --rows 4
$ python experiments/sample.py results/NAME --npz samples.npz --num-samples 50000

Every --seed gives other noise. With the seed of the run, the .npz file contains the images behind its FID.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator, model_validator

from orchestration.store.runs import StoredCheckpoint
from orchestration.terminal.command_line import fail, read_command_line
from soflow.config_base import ConfigError, Count, OutputPath, Section
from soflow.evaluation.config import Sampler
from soflow.posthoc_ema import TRAINED

if TYPE_CHECKING:
    from soflow.models import Model


class SampleOptions(Section):
    checkpoint: StoredCheckpoint
    """Checkpoint file, or folder of a run or trial."""
    best: bool = False
    """Of a folder, use the checkpoint with the lowest FID instead of the newest."""
    ema: str = TRAINED
    """Average of the weights: trained, or made from the run's snapshots with a relative length such as 0.1."""
    labels: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Classes of the grid's columns. Default: the first ten. Not for a .npz file."""
    nfe: Count | None = None
    """Number of function evaluations per sample. Default: the first that the run evaluated, as for its FID."""
    sampler: Sampler | None = None
    """Sampler for nfe > 1. Default: the objective's."""
    seed: int = 0
    """Seed of the noise."""
    rows: Count = 8
    """Samples per class in the grid."""
    out: OutputPath = Path("samples.png")
    """PNG file to write."""
    npz: OutputPath | None = None
    """Write this .npz file instead of the PNG: uint8 images arr_0 [N, H, W, C] and their classes arr_1."""
    num_samples: Count = 50000
    """Samples in the .npz file; their classes follow the run's `evaluation.labels`."""

    @field_validator("out")
    @classmethod
    def _is_a_png(cls, path: Path) -> Path:
        if path.suffix.lower() != ".png":
            raise ValueError("must be the name of a .png file, which keeps every pixel")
        return path

    @model_validator(mode="after")
    def _classes_of_a_file_are_the_evaluation_s(self) -> SampleOptions:
        if self.npz is not None and self.labels:
            raise ValueError(f"labels = {list(self.labels)}: must be left out with npz, whose classes are those of FID")
        return self


def main() -> int:
    options = read_command_line(SampleOptions, __doc__, positional="checkpoint")
    from soflow.training.checkpoints import CheckpointError

    try:
        print(write(options))
    except (CheckpointError, ConfigError) as error:
        fail(error)
    return 0


def write(options: SampleOptions) -> str:
    """Generate samples, write the file and return a one-line summary.

    Raises:
        CheckpointError: if the checkpoint is missing or damaged.
        ConfigError: if the autoencoder of a latent network cannot be loaded, or the sampler cannot take so many steps.
    """
    from soflow.evaluation.generated import evaluation_nfe
    from soflow.models import load_model
    from soflow.training.grids import GRID_COLUMNS, save_png

    model = load_model(options.checkpoint, options.best, ema=options.ema)
    nfe = options.nfe or evaluation_nfe(model.config, model.objective)[0]
    if options.npz is None:
        image = model.grid(nfe, options.labels, options.rows, options.sampler, options.seed)
        save_png(image, options.out)
        written, count = options.out, options.rows * (len(options.labels) or GRID_COLUMNS)
    else:
        write_file(options, model, nfe)
        written, count = options.npz, options.num_samples
    return f"{count} samples of {model.path} with {nfe} evaluation(s) each: {written}"


def write_file(options: SampleOptions, model: Model, nfe: int) -> None:
    """Write the .npz file batch by batch, with a progress bar."""
    from rich.console import Console
    from rich.progress import track

    from soflow.interop.npz import write_samples

    count, size = options.num_samples, model.config.evaluation.batch_size
    batches = model.samples(count, nfe, options.sampler, options.seed)
    shown = track(batches, "sampling", -(-count // size), transient=True, console=Console(stderr=True))
    write_samples(options.npz, shown, (count, *model.config.dataset.image_shape))


if __name__ == "__main__":
    sys.exit(main())
