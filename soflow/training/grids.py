"""Sample grids: one column per class, generated from seeded noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from soflow import codecs
from soflow.codecs.base import Codec
from soflow.config import RunConfig
from soflow.evaluation.generated import sampler_for
from soflow.files import atomic
from soflow.objectives.base import Objective, normals
from soflow.randomness import generator
from soflow.sampling import sample

GRID_ROWS, GRID_COLUMNS = 8, 10


def write_grid(images: Tensor, path: Path, columns: int, smallest_side: int = 32) -> None:
    """Write uint8 images [N, C, H, W] as one PNG atomically; enlarge small images without smoothing."""
    from PIL import Image
    from torchvision.utils import make_grid

    scale = max(1, -(-smallest_side // images.shape[-1]))
    enlarged = images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(enlarged, nrow=columns, padding=2, pad_value=96)  # RGB, also for grayscale images
    with atomic(path) as partial:
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(partial, format="PNG")


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
    classes: Sequence[int] = range(GRID_COLUMNS),
) -> Tensor:
    """Generate uint8 samples [rows · columns, C, H, W] from seeded noise, row by row, with one column per class.

    Args:
        classes: of the columns; by default the first ten, or all of them in turn if there are fewer.
        codec: codec of the configured data; built if None.
    """
    random = generator(device, seed, "grid")
    fresh = normals((rows * len(classes), *config.dataset.sample_shape), random)
    noise = next(fresh)
    labels = torch.tensor(list(classes), device=device).repeat(rows) % objective.num_classes
    if not config.dataset.conditional:
        labels = torch.full_like(labels, objective.num_classes)
    sampler = sampler or sampler_for(config, objective, nfe)
    samples = sample(objective, network, noise, labels, nfe, sampler, fresh)
    return (codec or codecs.build(config.dataset, device)).decode(samples)
