"""Peak memory: exact for tensors, and the resident size of the process."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor


class AllocationPeak:
    """The most bytes of tensors that were allocated at once inside `with`, above what was there at its beginning.

    On the CPU the profiler's record of the allocator is summed up: every allocation and release, those inside kernels
    included, so that the figure is exact and repeatable to the byte. Releases of what was allocated before the first
    such record in a process may be missing from it, so leave nothing around that a step releases.

    Attributes:
        peak_bytes: the result, after the block.
    """

    def __init__(self, device: torch.device):
        self.device, self.peak_bytes = device, 0

    def __enter__(self) -> AllocationPeak:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._record = _recorded_allocations()
            self._profile = self._record.__enter__()
        return self

    def __exit__(self, *error) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self._record.__exit__(*error)
            self.peak_bytes = _peak(self._profile)


@contextmanager
def _recorded_allocations() -> Iterator[torch.profiler.profile]:
    with (
        _quiet_stderr(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        yield profile


def _peak(profile: torch.profiler.profile) -> int:
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler's library writes lines of its own to the process's stderr."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


class PeakResidentMemory:
    """Peak of this process's resident memory since `reset`: tensors, libraries and all."""

    def reset(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak to the current resident size

    def mib(self) -> float:
        """MiB. Where the system cannot reset a process's peak, this is the peak of its whole life."""
        try:
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) / 2**10
        except (OSError, IndexError):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
