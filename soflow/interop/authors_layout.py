"""How the SoFlow authors name, order and shape the weights of their networks.

DiT weights have the same names here, except that without label drop their label table has no null row, because it
would never be used.

The U-Net of their CIFAR-10 experiments is EDM's SongUNet with a second time, without labels, with 128 · 2 numbers per
time and with six augmentation parameters. Its names, its order and the filters among its buffers are EDM's
(arXiv 2206.00364). Here it differs in

- attention: they interleave query, key and value channels, q₀ k₀ v₀ q₁ …; here all query channels come first;
- augmentation: vertical flips and rotations, which they never draw, have no input;
- labels: every image gets the null row here, a constant in front of a linear layer. Export moves it through that
  layer's weights into its bias; import sets the table to zero.

A file's names and shapes are checked. Three properties do not show in them and are assumed: EDM's interleaved channels
(`INTERLEAVED`); times in [0, 1] without a factor, and t before t − s, as in MeanFlow's U-Net for CIFAR-10.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from soflow.config import RunConfig
from soflow.data.augmentation import NUM_PARAMETERS
from soflow.networks.registry import NETWORKS

PREFIX = "network."

INTERLEAVED = True
"""True if the authors' attention interleaves channels, as EDM's does. In MeanFlow's, all query channels come first."""
AUGMENTATIONS = (0, 2, 5, 6, 7, 8)
"""Columns of `soflow.data.augmentation` that are inputs of the authors' U-Net."""
MAPPING = {"map_augment": "map_augmentation", "map_layer0": "mapping.0", "map_layer1": "mapping.2"}
"""Modules here by their modules, in their order."""
BLOCK = {
    "norm0": "norm0",
    "conv0": "conv0",
    "affine": "shift",
    "norm1": "norm1",
    "conv1": "conv1",
    "skip": "skip",
    "norm2": "attention.norm",
    "qkv": "attention.qkv",
    "proj": "attention.project",
}
"""Modules of a block here by their modules, in their order."""
RESAMPLED = ("conv0", "skip")
"""Their modules with a buffer `resample_filter`, in blocks that halve or double the side."""


class Layout(ABC):
    """Names, order and shapes of a network's weights in the authors' checkpoints.

    Attributes:
        entries: for each key of theirs, in their order, our name, or the value of a buffer that exists there only.
        label_table: our name of the label table.
    """

    entries: dict[str, str | Tensor]
    label_table: str

    @property
    def keys(self) -> dict[str, str]:
        """Their keys by our names, in their order."""
        return {name: key for key, name in self.entries.items() if isinstance(name, str)}

    @abstractmethod
    def to_ours(self, name: str, value: Tensor) -> Tensor:
        """Convert a weight of theirs, or an optimizer moment of it, to the shape of our weight `name`."""

    @abstractmethod
    def to_theirs(self, name: str, value: Tensor) -> Tensor:
        """Invert `to_ours`."""

    def merged(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Move weights without a key of theirs into others, without a change of the network's output."""
        return weights


class DiTLayout(Layout):
    """Layout of a DiT with the parameters and buffers `names`, in that order."""

    label_table = "y_embedder.embedding_table.weight"

    def __init__(self, config: RunConfig, names: Iterable[str]):
        self.entries = {PREFIX + name: name for name in names}
        self.lacks_null_row = config.dataset.conditional and config.objective.label_drop == 0

    def to_ours(self, name: str, value: Tensor) -> Tensor:
        if name == self.label_table and value.dim() and self.lacks_null_row:
            return torch.cat([value, torch.zeros_like(value[:1])])
        return value

    def to_theirs(self, name: str, value: Tensor) -> Tensor:
        return value[:-1].clone() if name == self.label_table and value.dim() and self.lacks_null_row else value


class UNetLayout(Layout):
    """Layout of a U-Net with the parameters `names`."""

    label_table = "label_table.weight"

    def __init__(self, config: RunConfig, names: Iterable[str]):
        size, side, names = NETWORKS[config.network.name].size, config.dataset.sample_shape[1], set(names)
        taps = torch.tensor(size.get("resample_filter", (1, 1)), dtype=torch.float32)
        filter_2d = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
        self.entries = {}
        for theirs, ours in _modules(side, len(size["multipliers"]), size["blocks"]):
            for kind in ("weight", "bias"):
                if f"{ours}.{kind}" in names:
                    self.entries[f"{PREFIX}{theirs}.{kind}"] = f"{ours}.{kind}"
            block, _, part = theirs.rpartition(".")
            if part in RESAMPLED and block.endswith(("down", "up")):
                self.entries[f"{PREFIX}{theirs}.resample_filter"] = filter_2d

    def to_ours(self, name: str, value: Tensor) -> Tensor:
        if not value.dim():
            return value
        if name == "map_augmentation.weight":
            return value.new_zeros(len(value), NUM_PARAMETERS).index_copy(1, _columns(value), value)
        return _swap(value, (-1, 3)) if ".qkv." in name and INTERLEAVED else value

    def to_theirs(self, name: str, value: Tensor) -> Tensor:
        if not value.dim():
            return value
        if name == "map_augmentation.weight":
            return value.index_select(1, _columns(value))
        return _swap(value, (3, -1)) if ".qkv." in name and INTERLEAVED else value

    def merged(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        null = weights[self.label_table][-1]
        if not null.any():
            return weights
        bias = weights["mapping.0.bias"].double() + weights["mapping.0.weight"].double() @ null.double()
        return {**weights, "mapping.0.bias": bias}


def layout_of(config: RunConfig, names: Iterable[str]) -> Layout:
    """Build the layout of the configured network with the parameters and buffers `names`."""
    return (DiTLayout if config.network.name.startswith("DiT-") else UNetLayout)(config, names)


def _modules(side: int, levels: int, blocks: int) -> Iterator[tuple[str, str]]:
    """Yield their name and ours of every module with weights, in their order.

    Args:
        side: side of the images in pixels.
        blocks: residual blocks per level of the encoder.
    """
    yield from MAPPING.items()
    sides = [f"{side >> level}x{side >> level}" for level in range(levels)]
    yield f"enc.{sides[0]}_conv", "input"
    encoder = [f"enc.{size}_{part}" for size in sides for part in ("down", *(f"block{i}" for i in range(blocks)))][1:]
    for index, theirs in enumerate(encoder):
        yield from _block(theirs, f"encoder.{index}")
    for level, size in enumerate(reversed(sides)):
        for index, entry in enumerate(("up",) if level else ("in0", "in1")):
            yield from _block(f"dec.{size}_{entry}", f"entries.{level}.{index}")
        for index in range(blocks + 1):
            yield from _block(f"dec.{size}_block{index}", f"decoder.{level}.{index}")
    yield f"dec.{sides[0]}_aux_norm", "output_norm"
    yield f"dec.{sides[0]}_aux_conv", "output"


def _block(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [(f"{theirs}.{part}", f"{ours}.{name}") for part, name in BLOCK.items()]


def _columns(value: Tensor) -> Tensor:
    return torch.tensor(AUGMENTATIONS, device=value.device)


def _swap(value: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Swap the two factors, of these sizes, of the first dimension's index."""
    return value.unflatten(0, sizes).transpose(0, 1).flatten(0, 1)
