"""Write a grid of samples from a checkpoint: one column per class, new noise with every --seed.

$ python experiments/sample.py results/NAME/trials/0003
$ python experiments/sample.py results/NAME/checkpoint-00001200.pt --nfe 4 --sampler compose --out samples.png
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from orchestration.command_line import fail


@dataclass
class SampleConfig:
    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint file, or the folder of a run or trial, whose newest checkpoint is taken."""
    nfe: int = 1
    """Number of network evaluations per sample."""
    sampler: Literal["renoise", "compose", "heun"] | None = None
    """Sampler for more than one evaluation; by default the one that the objective was made for."""
    seed: int = 0
    """Seed of the noise."""
    rows: int = 8
    """Samples per class."""
    out: Path = Path("samples.png")
    """The PNG to write."""


def main() -> int:
    options = tyro.cli(SampleConfig, description=__doc__)
    if options.nfe < 1 or options.rows < 1:
        fail(f"nfe = {options.nfe}, rows = {options.rows}: must be at least 1")
    if options.sampler == "heun" and options.nfe % 2:
        fail(f"nfe = {options.nfe}: must be even for the heun sampler")
    import torch

    from soflow import checkpoints
    from soflow.images import write_grid
    from soflow.run import GRID_COLUMNS, draw_grid, load_sampler

    path = options.checkpoint
    if path.is_dir():
        path = checkpoints.path_of(path, checkpoints.latest_step(path))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        config, objective, network = load_sampler(path, device)
    except checkpoints.CheckpointError as error:
        fail(error)
    images = draw_grid(objective, network, config, device, options.nfe, options.sampler, options.seed, options.rows)
    write_grid(images, options.out, GRID_COLUMNS)
    print(f"{len(images)} samples of {path} with {options.nfe} evaluation(s) each: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
