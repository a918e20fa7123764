"""Sample grids."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor


def write_grid(images: Tensor, path: Path, columns: int, smallest_side: int = 32) -> None:
    """Write uint8 images [N, C, H, W] as one PNG, atomically; small images are enlarged without smoothing."""
    from PIL import Image
    from torchvision.utils import make_grid

    scale = max(1, -(-smallest_side // images.shape[-1]))
    enlarged = images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    grid = make_grid(enlarged, nrow=columns, padding=2, pad_value=96)  # RGB also for grey images
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(partial, format="PNG")
    os.replace(partial, path)
