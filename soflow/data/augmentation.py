"""EDM's non-leaking augmentation (arXiv 2206.00364, appendix F.2): random geometric transforms.

The network receives the augmentation parameters as input, so it can distinguish augmented from plain images. All-zero
parameters select plain images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_PARAMETERS = 9
"""Columns: xflip, yflip, scale, rotation (cos − 1, sin), anisotropy (2, along its axis), translation (x, y)."""

# Multipliers of the probability for each transform; with 1e8, any probability above 0 flips half of the images.
EDM = {"xflip": 1e8, "yflip": 1.0, "scale": 1.0, "rotate": 1.0, "aniso": 1.0, "translate": 1.0}
# As in SoFlow and MeanFlow on CIFAR-10: images stay upright.
UPRIGHT = EDM | {"yflip": 0.0, "rotate": 0.0}

SCALE_STD = 0.2  # of log2
ANISO_STD = 0.2  # of log2
ANISO_ROTATE_PROBABILITY = 0.5
TRANSLATE_STD = 0.125  # of the image's side

# Low-pass decomposition filter of the Symlet with six vanishing moments (Daubechies, Ten Lectures on Wavelets).
# It is orthogonal to its even shifts, so doubling and then halving the resolution reproduces the image.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
SYM6_CENTER = 5  # index of the filter's center tap
SUPPORT = 3  # radius of the filter in pixels: half of its twelve half-pixel taps


def augment(
    images: Tensor,
    probability: float,
    generator: torch.Generator,
    multipliers: Mapping[str, float] = EDM,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """Randomly flip, scale, rotate, stretch and shift images.

    Args:
        images: [B, C, H, W], floating point; worker `rank`'s share of the batch, whose images the workers take in turn.
        probability: probability of each transform, before its multiplier.
        generator: source of the whole batch's random numbers, so that the number of workers changes no image.

    Returns:
        Images [B, C, H, W], and augmentation parameters [B, 9] float32, zero for transforms that were not applied.
    """
    batch, device = len(images) * world_size, generator.device
    share = slice(rank, None, world_size)

    def uniform() -> Tensor:
        return torch.rand(batch, generator=generator, device=device)[share]

    def normal() -> Tensor:
        return torch.randn(batch, generator=generator, device=device)[share]

    def sometimes(name: str, values: Tensor) -> Tensor:
        return torch.where(uniform() < probability * multipliers[name], values, 0.0)

    flip_x = sometimes("xflip", (uniform() < 0.5).float())
    flip_y = sometimes("yflip", (uniform() < 0.5).float())
    scale = sometimes("scale", normal())
    angle = sometimes("rotate", math.pi * (2 * uniform() - 1))
    aniso = sometimes("aniso", normal())
    axis = torch.where(uniform() < ANISO_ROTATE_PROBABILITY, math.pi * (2 * uniform() - 1), 0.0)
    chosen = sometimes("translate", torch.ones(len(images), device=device))
    shift_x, shift_y = chosen * normal(), chosen * normal()

    columns = [flip_x, flip_y, scale, angle.cos() - 1, angle.sin(), aniso * axis.cos(), aniso * axis.sin()]
    parameters = torch.stack([*columns, shift_x, shift_y], dim=1)
    stretch = torch.exp2(ANISO_STD * aniso)
    inverse = (
        torch.exp2(-SCALE_STD * scale)[:, None, None]
        * rotation(angle)
        @ rotation(-axis)
        @ torch.diag_embed(torch.stack([1 / stretch, stretch], dim=1))
        @ rotation(axis)
    )
    moved = parameters[:, 2:].any(dim=1).to(images.device)
    shift = TRANSLATE_STD * torch.stack([shift_x * images.shape[3], shift_y * images.shape[2]], dim=1)

    images = torch.where(flip_x.to(images.device).view(-1, 1, 1, 1) > 0, images.flip(3), images)
    images = torch.where(flip_y.to(images.device).view(-1, 1, 1, 1) > 0, images.flip(2), images)
    if moved.any():
        images[moved] = resample(images[moved], inverse.to(images)[moved], shift.to(images)[moved])
    return images, parameters.to(images.device)


def resample(images: Tensor, inverse: Tensor, shift: Tensor) -> Tensor:
    """Transform images: the output pixel at p shows the input at inverse · (p − shift).

    p is in pixels (x, y) relative to the image center. Anti-aliased as in EDM: upsampling by 2 with a wavelet low-pass
    filter, linear interpolation, and downsampling. The image is extended by reflection as far as needed (EDM reflects
    once and then uses zeros).

    Args:
        images: [B, C, H, W].
        inverse: linear maps [B, 2, 2].
        shift: shifts [B, 2] in pixels.
    """
    batch, channels, height, width = images.shape
    # Half-pixel positions of the output, extended by the support of the downsampling filter.
    positions = [
        torch.arange(-SYM6_CENTER, 2 * side + 10 - SYM6_CENTER, dtype=images.dtype, device=images.device) / 2
        - (side - 1) / 2
        for side in (width, height)
    ]
    output = torch.stack(torch.meshgrid(*positions, indexing="xy"), dim=-1)
    source = (output.flatten(0, 1) - shift[:, None]) @ inverse.mT
    source = source + source.new_tensor([width - 1, height - 1]) / 2

    beyond = torch.maximum(-source, source - source.new_tensor([width - 1, height - 1]))
    margin = max(0, math.ceil(beyond.max().item())) + SUPPORT
    rows, columns = (reflected(side, margin, images.device) for side in (height, width))
    padded = images[:, :, rows][:, :, :, columns].flatten(0, 1)[:, None]
    taps = images.new_tensor(SYM6)
    row, column = taps.view(1, 1, 1, -1), taps.view(1, 1, -1, 1)
    fine = F.conv_transpose2d(F.conv_transpose2d(padded, row, stride=(1, 2)), column, stride=(2, 1))

    index = 2 * (source + margin) + SYM6_CENTER
    grid = (2 * index + 1) / index.new_tensor([fine.shape[3], fine.shape[2]]) - 1
    fine = fine.view(batch, channels, *fine.shape[2:])
    sampled = F.grid_sample(fine, grid.view(batch, *output.shape), mode="bilinear", align_corners=False)
    sampled = sampled.flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(sampled, row, stride=(1, 2)), column, stride=(2, 1)).view(images.shape)


def reflected(side: int, margin: int, device: torch.device) -> Tensor:
    """Compute indices [side + 2 · margin] of an image row extended by reflection about the outermost pixel centers."""
    last = side - 1
    return last - (last - torch.arange(-margin, side + margin, device=device) % (2 * last)).abs()


def rotation(angle: Tensor) -> Tensor:
    """Build rotation matrices [B, 2, 2] for angles [B]."""
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
