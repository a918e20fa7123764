"""Count FLOPs and memory of a step, operation by operation; also works on meta tensors, without computation."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from soflow.config_base import PrecisionName
from soflow.precision import counted_precision

aten = torch.ops.aten
# torch's registry of FLOP formulas lacks the CPU attention kernel.
FORMULAS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}


class Operation(NamedTuple):
    """Work of one kernel."""

    phase: str
    """Phase of the step (soflow.profiling.phases); "" outside all phases."""
    flops: int
    moved_bytes: int
    """Bytes read and written."""
    precision: PrecisionName


class OperationCounter(TorchDispatchMode):
    """Dispatch mode that counts floating-point operations (FLOPs), by torch's formulas, and bytes of live tensors.

    The mode is also a recorder of phases (soflow.profiling.phases). Register tensors that exist before with `track`.

    Attributes:
        operations: operation of every kernel, in order.
        live_bytes: bytes of all live tensors.
        peak_bytes: maximum of live_bytes since the start or the last `reset_peak`.
    """

    def __init__(self):
        super().__init__()
        self.operations: list[Operation] = []
        self.live_bytes = self.peak_bytes = 0
        self._phase = ""
        self._storages: dict[int, int] = {}

    @property
    def flops(self) -> dict[str, int]:
        """FLOPs by phase."""
        total: Counter[str] = Counter()
        for operation in self.operations:
            total[operation.phase] += operation.flops
        return {name: flops for name, flops in total.items() if flops}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def reset_peak(self) -> None:
        self.peak_bytes = self.live_bytes

    def track(self, *tensors: Tensor) -> None:
        """Count these tensors' memory until they are freed; views of one storage count once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._storages:
                continue
            self._storages[key] = storage.nbytes()
            self.live_bytes += storage.nbytes()
            weakref.finalize(storage, self._release, key)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _release(self, key: int) -> None:
        self.live_bytes -= self._storages.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        results = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        self.track(*results)
        if not func.is_view:
            inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            moved = sum(value.numel() * value.element_size() for value in (*inputs, *results))
            flops = formula(*args, **kwargs, out_val=result) if formula else 0
            self.operations.append(Operation(self._phase, flops, moved, counted_precision(inputs)))
        return result
