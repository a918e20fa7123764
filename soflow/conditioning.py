"""What a network is told about its samples besides their times: classes, and how the images were augmented.

Both travel as one tensor, `labels`: int64 classes [B], or float [B, 1 + A] with the class in column 0 and the A
augmentation parameters behind it. Class `num_classes` is the null label.
"""

from __future__ import annotations

import torch
from torch import Tensor


def join(classes: Tensor, augmentation: Tensor | None) -> Tensor:
    """Labels from classes [B] and augmentation parameters [B, A], if there are any."""
    if augmentation is None:
        return classes
    return torch.cat([classes[:, None].to(augmentation.dtype), augmentation], dim=1)


def split(labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Classes [B] int64 and augmentation parameters [B, A] or None."""
    return (labels, None) if labels.dim() == 1 else (labels[:, 0].long(), labels[:, 1:])


def with_null(labels: Tensor, null: int, where: Tensor | None = None) -> Tensor:
    """Labels whose class is the null label, everywhere or where a mask [B] says so; the augmentation stays."""
    classes, augmentation = split(labels)
    where = torch.ones_like(classes, dtype=torch.bool) if where is None else where
    return join(classes.masked_fill(where, null), augmentation)
