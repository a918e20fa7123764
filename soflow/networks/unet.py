"""DDPM++ U-Net for CIFAR-10 (arXiv 2011.13456, in EDM's variant, arXiv 2206.00364), also conditioned on the gap t − s.

Times are embedded as in MeanFlow's public PyTorch code: t and t − s, unscaled in [0, 1], are each mapped to a
positional embedding of size 2 · width, and the two are concatenated. SoFlow's public code also sets size 2 · width per
time; `soflow.interop.authors_layout` names what its checkpoints confirm and what is assumed.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from soflow.conditioning import split
from soflow.data.augmentation import NUM_PARAMETERS
from soflow.networks.attention import attend

MAX_POSITIONS = 10000
NEAR_ZERO = 1e-5  # initial gain of the last layer of each residual branch and of the output layer; 0 blocks gradients
SKIP_SCALE = math.sqrt(0.5)  # preserves the variance of a sum of two branches


class UNet(nn.Module):
    """U-Net backbone F_θ(x, t, s, labels) for square images.

    Args:
        image_size: side in pixels, divisible by 2 once per level after the first.
        num_classes: number of classes; the label table has one more row, the null label.
        width: channels of the first convolution, a multiple of 32; level i has width · multipliers[i].
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_sides: sides of the feature maps with self-attention; the middle of the lowest level always has it.
        resample_filter: taps of the filter for halving and doubling the side; (1, 3, 3, 1) in SoFlow and MeanFlow.
        gradient_checkpointing: recompute each block in the backward pass instead of storing its activations. Backward
            through torch.func.jvp then fails; jvp under no_grad works.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        num_classes: int,
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention_sides: tuple[int, ...],
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        resample_filter: tuple[int, ...] = (1, 1),
    ):
        super().__init__()
        self.width, self.gradient_checkpointing = width, gradient_checkpointing
        size = 4 * width
        self.label_table = nn.Embedding(num_classes + 1, size)
        self.map_augmentation = nn.Linear(NUM_PARAMETERS, size, bias=False)
        self.mapping = nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU())

        def block(inputs: int, outputs: int, attention: bool = False, resample: nn.Module | None = None) -> Block:
            return Block(inputs, outputs, size, dropout, attention, resample)

        levels = [width * multiplier for multiplier in multipliers]
        attends = [image_size >> level in attention_sides for level in range(len(levels))]

        self.input = nn.Conv2d(channels, width, 3, padding=1)
        self.encoder, skips = nn.ModuleList(), [width]
        for level, outputs in enumerate(levels):
            if level > 0:
                self.encoder.append(block(skips[-1], skips[-1], resample=Resample(resample_filter, up=False)))
                skips.append(skips[-1])
            widths = [skips[-1]] + [outputs] * blocks
            self.encoder.extend(block(before, after, attends[level]) for before, after in pairwise(widths))
            skips += widths[1:]

        # Per level, lowest first: entry blocks, and blocks that each take one skip connection.
        self.entries, self.decoder, last = nn.ModuleList(), nn.ModuleList(), levels[-1]
        for level, outputs in reversed(list(enumerate(levels))):
            lowest = level == len(levels) - 1
            up = None if lowest else Resample(resample_filter, up=True)
            entry = [block(last, last, True), block(last, last)] if lowest else [block(last, last, resample=up)]
            self.entries.append(nn.ModuleList(entry))
            widths = [last] + [outputs] * (blocks + 1)
            self.decoder.append(
                nn.ModuleList(
                    block(before + skips.pop(), after, attends[level] and index == blocks)
                    for index, (before, after) in enumerate(pairwise(widths))
                )
            )
            last = outputs
        self.output_norm = group_norm(last)
        self.output = nn.Conv2d(last, channels, 3, padding=1)
        self._initialize()

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """Compute the backbone's output, shaped like x.

        Args:
            x: images [B, C, H, W].
            t, s: start and end times [B], s ≤ t, in [0, 1].
            labels: classes [B] int64, or [B, 1 + 9] with augmentation parameters; see soflow.conditioning.
        """
        embedding = self._embed(t, s, labels)
        x = self.input(x)
        skips = [x]
        for block in self.encoder:
            x = self._run(block, x, embedding)
            skips.append(x)
        for entry, blocks in zip(self.entries, self.decoder, strict=True):
            for block in entry.children():
                x = self._run(block, x, embedding)
            for block in blocks.children():
                x = self._run(block, torch.cat([x, skips.pop()], dim=1), embedding)
        return self.output(F.silu(self.output_norm(x)))

    def _embed(self, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """Embed times, class and augmentation [B, 4 · width]; no augmentation equals zero parameters."""
        classes, augmentation = split(labels)
        times = torch.cat([positional(t, 2 * self.width), positional(t - s, 2 * self.width)], dim=1)
        embedding = times + self.label_table(classes)
        if augmentation is not None:
            embedding = embedding + self.map_augmentation(augmentation.to(times.dtype))
        return self.mapping(embedding)

    def _run(self, block: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, embedding, use_reentrant=False)
        return block(x, embedding)

    def _initialize(self) -> None:
        """Initialize as in EDM: Xavier weights, zero biases, last layers near zero, smaller attention inputs.

        EDM's label layer takes one-hot vectors times √num_classes, and the zero vector as null label.
        """
        gains: dict[nn.Module, float] = {self.output: NEAR_ZERO}
        for module in self.modules():
            if isinstance(module, Block):
                gains[module.conv1] = NEAR_ZERO
            elif isinstance(module, Attention):
                gains |= {module.project: NEAR_ZERO, module.qkv: math.sqrt(0.2)}
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, gains.get(module, 1.0))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        table = self.label_table.weight
        nn.init.xavier_uniform_(table[:-1], math.sqrt(len(table) - 1))
        nn.init.zeros_(table[-1])


class Block(nn.Module):
    """Residual block conditioned by a shift, with optional resampling at its start and attention at its end."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, dropout: float, attention: bool, resample: nn.Module | None
    ):
        super().__init__()
        self.resample = resample or nn.Identity()
        self.norm0 = group_norm(inputs)
        self.conv0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shift = nn.Linear(embedding, outputs)
        self.norm1 = group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs and resample is None else nn.Conv2d(inputs, outputs, 1)
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        branch = self.conv0(self.resample(F.silu(self.norm0(x))))
        branch = F.silu(self.norm1(branch + self.shift(embedding)[:, :, None, None]))
        branch = self.conv1(self.dropout(branch))
        return self.attention(SKIP_SCALE * (self.skip(self.resample(x)) + branch))


class Attention(nn.Module):
    """Single-head self-attention between pixels, with skip connection."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = group_norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        # [B, 1 head, pixels, 3 · width]; fused kernels require contiguous channels.
        joint = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].contiguous()
        query, key, value = joint.chunk(3, dim=-1)
        attended = attend(query, key, value)
        return SKIP_SCALE * (x + self.project(attended[:, 0].transpose(1, 2).reshape(x.shape)))


class Resample(nn.Module):
    """Layer that halves or doubles the side with a separable low-pass filter and zero padding."""

    kernel: Tensor

    def __init__(self, taps: tuple[int, ...], up: bool):
        super().__init__()
        filter_1d = torch.tensor(taps) / sum(taps) * (2 if up else 1)
        self.register_buffer("kernel", torch.outer(filter_1d, filter_1d)[None, None], persistent=False)
        self.convolve = F.conv_transpose2d if up else F.conv2d
        self.padding = (len(taps) - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, -1, -1, -1)
        return self.convolve(x, kernel, stride=2, padding=self.padding, groups=channels)


class GroupNorm(nn.GroupNorm):
    """Group norm in the precision of its weights, also under autocast.

    CUDA's autocast does so itself. On a CPU, the forward-mode derivative would have another dtype than the value.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def group_norm(channels: int) -> GroupNorm:
    """Build a group norm with 32 groups, or fewer so that a group has at least 4 channels."""
    return GroupNorm(min(32, channels // 4), channels, eps=1e-6)


def positional(time: Tensor, size: int) -> Tensor:
    """Embed times [B] as [B, size]: sines, then cosines, of time · 10000^(−i / (size/2 − 1))."""
    half = size // 2
    exponents = torch.arange(half, dtype=time.dtype, device=time.device) / (half - 1)
    angles = time[:, None] * torch.exp(-math.log(MAX_POSITIONS) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
