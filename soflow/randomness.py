"""Stateless random numbers: they depend on a seed, a purpose and a step only.

A resumed run therefore draws the same numbers as an uninterrupted one, without generator states in its checkpoint.
"""

from __future__ import annotations

import hashlib

import torch


def generator(device: torch.device | str, seed: int, *purpose: str | int) -> torch.Generator:
    """Create a generator for this seed and purpose, e.g. generator("cpu", 0, "noise", step).

    The generator is on `device`, or on the CPU if `device` is "meta".
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    device = "cpu" if torch.device(device).type == "meta" else device
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
