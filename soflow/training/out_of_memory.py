"""Telling a lack of memory from other errors: it comes in many forms."""

from __future__ import annotations

import torch

SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""Parts of messages of torch's plain RuntimeErrors."""


class StepOutOfMemory(RuntimeError):
    """An optimiser step did not fit into memory; the message holds the numbers."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of a device or of the host, was not enough."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
