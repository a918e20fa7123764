"""Detect out-of-memory errors, which torch raises in several forms."""

from __future__ import annotations

import torch

SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""Substrings of the messages of plain RuntimeErrors that mean out of memory."""


class StepOutOfMemory(RuntimeError):
    """Optimizer step that does not fit into memory; the message contains batch size and number of workers."""


def is_out_of_memory(error: BaseException) -> bool:
    """Check whether an error means out of memory, on the device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error)
    # oneDNN without memory for its code. Longer messages that begin alike are about operations that it does not have.
    no_memory_for_code = message.strip() == "could not create a primitive"
    return isinstance(error, RuntimeError) and (no_memory_for_code or any(sign in message for sign in SIGNS))
