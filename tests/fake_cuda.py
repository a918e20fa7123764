"""A CUDA device without hardware: tensors on it have a shape, a dtype and a device, but no content.

Tensors on the CPU stay real, so that the host's part of the code runs as it is. As on a real device, an operation on
tensors of both raises, and so does a generator of the other device. Values that the code reads back from the device
are made up: numbers are all equal, a mask is true everywhere, a copy to the host is random.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
CUDA = torch.device("cuda:0")


class FakeCuda(TorchDispatchMode):
    """Dispatch mode in which operations on CUDA tensors compute shapes only.

    Args:
        number: value of every number that is read from the device, truncated if it is an integer.

    Attributes:
        read_back: names of the operations that made the host wait for a value of the device, in order.
    """

    def __init__(self, number: float):
        super().__init__()
        self.number = number
        self.read_back: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        values = tree_leaves((args, kwargs))
        if not any(on_cuda(value) for value in values):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return self._read(func, self._number(args[0].dtype))
        if func is aten.nonzero.default:
            count = len(args[0]) if args[0].dim() else 1
            return self._read(func, torch.zeros(count, args[0].dim(), dtype=torch.int64, device=CUDA))
        if func is aten.index.Tensor:
            args = (args[0], [self._rows(func, index) for index in args[1]])
        result = func(*args, **kwargs)
        if func is aten._to_copy.default and result.device.type == "cpu":
            with unset_fake_temporarily():
                return self._read(func, torch.rand(result.shape).to(result.dtype))
        return result

    def _read(self, func, value: Any) -> Any:
        self.read_back.append(str(func))
        return value

    def _number(self, dtype: torch.dtype) -> bool | int | float:
        return (
            self.number if dtype.is_floating_point else bool(self.number) if dtype == torch.bool else int(self.number)
        )

    def _rows(self, func, index: Tensor | None) -> Tensor | None:
        """Replace a mask by the indices of its true rows; of one on the device, whose content is unknown, by all."""
        if index is None or index.dtype != torch.bool:
            return index
        if isinstance(index, FakeTensor):
            return self._read(func, torch.arange(len(index), device=CUDA))
        with unset_fake_temporarily():
            return index.nonzero().squeeze(1)


class Generator(torch.Generator):
    """Generator that states its device, because one of CUDA needs hardware; on the device no numbers are drawn."""

    def __new__(cls, device: torch.device | str = "cpu"):
        return super().__new__(cls)

    def __init__(self, device: torch.device | str = "cpu"):
        self.stated = torch.device(device)

    @property
    def device(self) -> torch.device:
        return self.stated


def on_cuda(value: Any) -> bool:
    """Check whether a value is a tensor on CUDA, or CUDA itself, as in `torch.zeros(2, device=value)`."""
    return isinstance(value, FakeTensor) or (isinstance(value, torch.device) and value.type == "cuda")


class OneDevice(TorchFunctionMode):
    """Mode in which drawing numbers on another device than the generator's raises, as torch does with hardware."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        numbers = func(*args, **(kwargs or {}))
        generator = (kwargs or {}).get("generator")
        if generator is not None and generator.device.type != numbers.device.type:
            raise RuntimeError(
                f"Expected a generator on {numbers.device.type}, but found one on {generator.device.type}"
            )
        return numbers


def overwrite(tensor: Tensor, other: Tensor) -> None:
    """Give a tensor the dtype and device of another."""
    tensor.data = other.data


@contextmanager
def fake_cuda(number: float = 2.0) -> Iterator[FakeCuda]:
    """Run the block with a CUDA device that computes shapes only."""
    shapes, mode = FakeTensorMode(allow_non_fake_inputs=True), FakeCuda(number)
    shapes.cache_enabled = False  # a result that is repeated has no forward-mode derivative
    with pytest.MonkeyPatch.context() as patch, shapes, mode, OneDevice():
        patch.setattr(torch, "Generator", Generator)
        # Autocast asks the hardware, and would otherwise be off.
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        patch.setattr(torch.utils, "swap_tensors", overwrite)  # `nn.Module.to`: torch's own refuses fake parameters
        yield mode
