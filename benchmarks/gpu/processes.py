"""Functions in new processes, with a time limit: several on one GPU, or one that must leave no memory behind."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

TIMEOUT = timedelta(seconds=90)
"""Longest wait for another process to start, or for its part of a collective operation."""


def in_processes(function: Callable[..., Any], arguments: list[tuple], seconds: float) -> list[Any]:
    """Call function(*arguments) for every item at the same time, each in a new process; return the results in order.

    Raises:
        TimeoutError: if they take longer than `seconds`; the processes are killed.
    """
    with multiprocessing.get_context("spawn").Pool(len(arguments), maxtasksperchild=1) as pool:
        try:
            calls = [(function, items) for items in arguments]
            return list(map(pickle.loads, pool.starmap_async(_pickled, calls, chunksize=1).get(seconds)))
        except multiprocessing.TimeoutError:
            raise TimeoutError(f"no result after {seconds:.0f} seconds") from None


def _pickled(function: Callable[..., Any], arguments: tuple) -> bytes:
    """Pickle the result by value, as torch would share its tensors' memory, which ends with this process."""
    return pickle.dumps(function(*arguments))


def meet(rendezvous: Path, rank: int, world_size: int) -> None:
    """Wait until every process of a group has come here.

    Args:
        rendezvous: file that does not exist yet, equal in all processes.
    """
    store = torch.distributed.FileStore(str(rendezvous), world_size)
    store.set(str(rank), "here")
    store.wait([str(other) for other in range(world_size)], TIMEOUT)
