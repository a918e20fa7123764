"""Arithmetic and memory of a step, counted operation by operation; works on meta tensors, which compute nothing."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

aten = torch.ops.aten
# torch's registry of formulas lacks the attention kernel of the CPU.
FORMULAS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}


class OperationCounter(TorchDispatchMode):
    """Counts floating-point operations, by torch's own formulas, and bytes of live tensors.

    Products with a structural zero are left out: forward-mode differentiation of a linear layer hands the zero tangent
    of its weight to a product that is never computed outside of such a mode.

    Records phases (soflow.profiling.phases). Tensors that exist before it starts must be made known with `track`.

    Attributes:
        operations: of every kernel its phase, floating-point operations and bytes read and written; the phase is ""
            outside of all phases.
        live_bytes: bytes of all tensors that are alive now.
        peak_bytes: the most that were alive at once since the start or the last `reset_peak`.
    """

    def __init__(self):
        super().__init__()
        self.operations: list[tuple[str, int, int]] = []
        self.live_bytes = self.peak_bytes = 0
        self._phase = ""
        self._storages: dict[int, int] = {}
        self._zeros: set[int] = set()

    @property
    def flops(self) -> dict[str, int]:
        """Floating-point operations by phase."""
        total: Counter[str] = Counter()
        for name, flops, _ in self.operations:
            total[name] += flops
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
        """Count these tensors' memory as long as they live; views share theirs."""
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
        self._zeros.discard(key)

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
        if func._overloadpacket in (aten.zeros, aten._efficientzerotensor):
            self._zeros.update(value.untyped_storage()._cdata for value in results)
        if formula is not None and any(self._is_structural_zero(value) for value in args):
            return result
        if not func.is_view:
            given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            moved = sum(value.numel() * value.element_size() for value in (*given, *results))
            flops = formula(*args, **kwargs, out_val=result) if formula else 0
            self.operations.append((self._phase, flops, moved))
        return result

    def _is_structural_zero(self, value: Any) -> bool:
        """Whether a tensor is one zero expanded to a shape, as differentiation rules write zeros."""
        if not isinstance(value, Tensor) or value.dim() == 0 or any(value.stride()):
            return False
        return value.untyped_storage()._cdata in self._zeros
