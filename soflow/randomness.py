"""Random numbers that depend on a seed, a purpose and a step, and on nothing that happened before.

A resumed run draws what the uninterrupted one would have drawn, without any generator state in its checkpoint.
"""

from __future__ import annotations

import hashlib

import torch


def generator(device: torch.device | str, seed: int, *purpose: str | int) -> torch.Generator:
    """A fresh generator on `device` for this seed and purpose, e.g. generator("cpu", 0, "noise", step)."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
