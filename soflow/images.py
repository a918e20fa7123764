"""Between pixels and what networks see, and sample grids."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def to_network(images: np.ndarray, device: torch.device | str) -> Tensor:
    """uint8 pixels [B, C, H, W] in 0...255 to float32 in [−1, 1]."""
    return torch.from_numpy(images).to(device).float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Network range [−1, 1] to uint8 in 0...255, [B, C, H, W]; values outside are clamped, NaN becomes 0."""
    return ((images.nan_to_num(-1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


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
