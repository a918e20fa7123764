"""Diffusion transformer (arXiv 2212.09748) conditioned on time t and gap t − s, as in SoFlow and MeanFlow.

Parameter names match the published checkpoints.
"""

from __future__ import annotations

import math

import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from soflow.networks.attention import TanhGELU, attend

NUM_FREQUENCIES = 128


class DiT(nn.Module):
    """DiT backbone F_θ(x, t, s, y) for square images.

    Args:
        image_size: side in pixels, divisible by patch.
        num_classes: number of classes; the label table has one more row, the null label.
        patch: side of a patch in pixels.
        width: size of the hidden states.
        depth: number of blocks.
        heads: number of attention heads.
        gradient_checkpointing: recompute blocks in the backward pass instead of storing their activations.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        num_classes: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        self.patch, self.channels, self.gradient_checkpointing = patch, channels, gradient_checkpointing
        self.x_embedder = PatchEmbed(image_size, patch, channels, width)
        self.register_buffer("pos_embed", position_table(width, image_size // patch))
        self.t_embedder = TimeEmbedder(width)
        self.s_embedder = TimeEmbedder(width)
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(num_classes + 1, width)})
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.final_layer = FinalLayer(width, patch * patch * channels)
        self._initialize()

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """Compute the backbone's output, shaped like x.

        Args:
            x: images [B, C, H, W].
            t, s: start and end times [B], s ≤ t, in [0, 1].
            labels: classes [B] int64; num_classes is the null label.
        """
        tokens = self.x_embedder(x) + self.pos_embed
        condition = self.t_embedder(t) + self.s_embedder(t - s) + self.y_embedder["embedding_table"](labels)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, condition, use_reentrant=False)
            else:
                tokens = block(tokens, condition)
        return self._unpatchify(self.final_layer(tokens, condition))

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """Rearrange tokens [B, G·G, p·p·C], with channels fastest, into images [B, C, G·p, G·p]."""
        grid, patch = math.isqrt(tokens.shape[1]), self.patch
        x = tokens.view(-1, grid, grid, patch, patch, self.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.channels, grid * patch, grid * patch)

    def _initialize(self) -> None:
        """Initialize linear layers (Xavier), t and label embeddings (std 0.02), modulations and output (zeros)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        # The gap embedder keeps Xavier.
        for name in ("y_embedder.embedding_table", "t_embedder.mlp.0", "t_embedder.mlp.2"):
            nn.init.normal_(self.get_parameter(f"{name}.weight"), std=0.02)
        for module in (*self.blocks, self.final_layer):
            nn.init.zeros_(module.get_parameter("adaLN_modulation.1.weight"))
        nn.init.zeros_(self.final_layer.linear.weight)


class TimeEmbedder(nn.Module):
    """Embedding of a scalar time in [0, 1]: 128 cosines and 128 sines, then two linear layers."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        exponents = torch.arange(NUM_FREQUENCIES, dtype=time.dtype, device=time.device) / NUM_FREQUENCIES
        angles = time[:, None] * torch.exp(-math.log(10000) * exponents)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class SelfAttention(Attention):
    """Multi-head self-attention over tokens [B, N, C]; the weights have timm's names, as in published checkpoints."""

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, length, 3, self.num_heads, self.head_dim)
        mixed = attend(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Transformer block with adaLN-Zero modulation."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = SelfAttention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, 4 * width, act_layer=TanhGELU)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        modulation = self.adaLN_modulation(condition)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        tokens = tokens + gate1 * self.attn(self.norm1(tokens) * (1 + scale1) + shift1)
        return tokens + gate2 * self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)


class FinalLayer(nn.Module):
    """Modulated layer norm and linear output layer."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(tokens) * (1 + scale) + shift)


def position_table(width: int, grid: int) -> Tensor:
    """Compute fixed 2-D sine-cosine positions [1, grid², width]: row-major tokens, column half before row half.

    Computed in float64 and returned in float32, as in the published checkpoints.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    half = torch.cat([angles.sin(), angles.cos()], dim=1)
    column, row = half[None, :].expand(grid, -1, -1), half[:, None].expand(-1, grid, -1)
    return torch.cat([column, row], dim=2).reshape(1, grid * grid, width).float()
