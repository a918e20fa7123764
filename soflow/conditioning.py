"""Conditioning of a network besides time: class labels and augmentation parameters.

Both are stored in one tensor, `labels`: int64 classes [B], or float [B, 1 + A] with the class in column 0 and the A
augmentation parameters in the remaining columns. Class `num_classes` is the null label.
"""

from __future__ import annotations

import torch
from torch import Tensor


def join(classes: Tensor, augmentation: Tensor | None) -> Tensor:
    """Combine classes [B] and optional augmentation parameters [B, A] into labels."""
    if augmentation is None:
        return classes
    return torch.cat([classes[:, None].to(augmentation.dtype), augmentation], dim=1)


def split(labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split labels into classes [B] int64 and augmentation parameters [B, A] or None."""
    return (labels, None) if labels.dim() == 1 else (labels[:, 0].long(), labels[:, 1:])


def with_null(labels: Tensor, null: int, where: Tensor | None = None) -> Tensor:
    """Replace classes by the null label, for all samples or where the mask [B] is true; keep the augmentation."""
    classes, augmentation = split(labels)
    where = torch.ones_like(classes, dtype=torch.bool) if where is None else where
    return join(classes.masked_fill(where, null), augmentation)
