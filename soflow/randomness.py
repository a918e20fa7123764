"""Random numbers that depend on a seed, a purpose and a step, and on nothing that happened before.

A resumed run draws what the uninterrupted one would have drawn, without any generator state in its checkpoint.
"""

from __future__ import annotations

import hashlib

import torch


def generator(device: torch.device | str, seed: int, *purpose: str | int) -> torch.Generator:
    """A fresh generator for this seed and purpose, e.g. generator("cpu", 0, "noise", step).

    On `device`, but on the CPU for meta tensors, which have no numbers.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    device = "cpu" if torch.device(device).type == "meta" else device
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
