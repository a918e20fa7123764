"""Peak memory: exact for tensors, and resident memory of the process."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor


class AllocationPeak:
    """Context manager that measures the peak of allocated tensor memory inside the block, relative to its start.

    On the CPU it sums all allocations and releases recorded by the profiler, including those inside kernels, so the
    result is exact and reproducible to the byte. The profiler may miss releases of memory that was allocated before its
    first use in a process; release temporary tensors before the block.

    Attributes:
        peak_bytes: the result, available after the block.
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
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()  # type: ignore[attr-defined]  # missing in torch's stub
            peak = max(peak, live)
    return peak


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Redirect stderr to the null device, because the profiler's C++ library logs to it."""
    stderr, null_device = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_device, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null_device)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Sum the bytes of the tensors' storages, counting each storage once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


class PeakResidentMemory:
    """Peak resident memory of this process since `reset`, including libraries."""

    def reset(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak to the current resident size

    def mib(self) -> float:
        """Return the peak in MiB; if the system cannot reset it, the peak since the start of the process."""
        try:
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) / 2**10
        except (OSError, IndexError):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
