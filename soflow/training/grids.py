"""Grids of images, one column per class: samples from seeded noise, and real images of the same classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from soflow import codecs
from soflow.codecs.base import Codec
from soflow.config import RunConfig
from soflow.data.base import DataSource
from soflow.evaluation.generated import sampler_for, sampling_options
from soflow.files import atomic
from soflow.objectives.base import Objective, normals
from soflow.randomness import generator
from soflow.sampling import sample

if TYPE_CHECKING:
    from PIL.Image import Image

GRID_ROWS, GRID_COLUMNS = 8, 10
BACKGROUND = 96
"""Gray between the images of a grid."""


def write_grid(images: Tensor, path: Path, columns: int, smallest_side: int = 32) -> None:
    """Write uint8 images [N, C, H, W] as one PNG atomically, see `grid_image`."""
    save_png(grid_image(images, columns, smallest_side), path)


def save_png(image: Image, path: Path) -> None:
    """Write a picture atomically."""
    with atomic(path) as partial:
        image.save(partial, format="PNG")


def grid_image(images: Tensor, columns: int, smallest_side: int = 32) -> Image:
    """Arrange uint8 images [N, C, H, W] in one picture; enlarge small images without smoothing."""
    from PIL.Image import fromarray
    from torchvision.utils import make_grid

    scale = max(1, -(-smallest_side // images.shape[-1]))
    enlarged = images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(enlarged, nrow=columns, padding=2, pad_value=BACKGROUND)  # RGB, also for grayscale images
    return fromarray(grid.permute(1, 2, 0).numpy())


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

    At most evaluation.batch_size of them are generated at a time.

    Args:
        classes: of the columns; by default the first ten, or all of them in turn if there are fewer.
        codec: codec of the configured data; built if None.
    """
    random = generator(device, seed, "grid")
    fresh = normals((rows * len(classes), *config.dataset.sample_shape), random)
    labels = torch.tensor(list(classes), device=device).repeat(rows) % objective.num_classes
    if not config.dataset.conditional:
        labels = torch.full_like(labels, objective.num_classes)
    sampler, codec = sampler or sampler_for(config, objective, nfe), codec or codecs.build(config.dataset, device)
    size, images, options = config.evaluation.batch_size, [], sampling_options(config)
    begins = range(0, len(labels), size)
    for begin, noise in zip(begins, itertools.tee(fresh, len(begins)), strict=True):
        part = slice(begin, begin + size)
        own = (values[part] for values in noise)
        images.append(codec.decode(sample(objective, network, next(own), labels[part], nfe, sampler, own, options)))
    return torch.cat(images)


def real_grid(source: DataSource, codec: Codec, device: torch.device, rows: int = GRID_ROWS) -> Tensor:
    """Read uint8 images [rows · GRID_COLUMNS, C, H, W] of a dataset, row by row, with the columns of `draw_grid`.

    Every class shows its first images, again from the first if it has too few; one without images stays gray.
    """
    labels = np.tile(np.arange(GRID_COLUMNS), rows) % source.num_classes
    indices = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        places, found = np.flatnonzero(labels == label), np.flatnonzero(source.labels == label)
        indices[places] = np.resize(found, len(places))
    stored, classes = source.batch(indices)
    images, missing = (torch.from_numpy(array).to(device) for array in (stored, classes != labels))
    return codec.images(images).masked_fill(missing[:, None, None, None], BACKGROUND)
