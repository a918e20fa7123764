"""Large vision transformers as feature networks: DINOv2 for FD-DINOv2, CLIP's image encoder for CMMD.

The networks are timm's; their weights come from a file in the layout in which they were published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor
from torch.nn.functional import interpolate
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

OFFSET = 0.1
"""DINOv2 adds this to the side of the grid to which it interpolates its position embeddings."""


@dataclass(frozen=True)
class VisionTransformer:
    """One of timm's vision transformers, and how images are prepared for it."""

    name: str
    """Name in timm."""
    side: int
    """Height and width, in pixels, to which images are resized."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Mean and standard deviation of red, green and blue in 0...1, to which pixels are standardized."""
    num_features: int
    whole_levels: bool
    """Resize as Pillow does, with antialiasing and to whole levels 0...255; otherwise as torch does by default."""
    projects: bool = False
    """The features are the class token's projection, otherwise the normalized class token itself."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model."""


class TransformerFeatures(FeatureExtractorBase):
    """Vision transformer as torch-fidelity feature extractor with the one layer "features" [B, width], float32.

    Args:
        feature_extractor_weights_path: .safetensors file, or a file that torch loads without unpickling objects.

    Raises:
        RuntimeError: if the file has other weights; the message names the keys.
        ValueError: if it has no weights by name, or CLIP's for images of another size.
    """

    spec: VisionTransformer

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__(name, features_list)
        spec = self.spec
        classes = spec.num_features if spec.projects else 0
        self.network = timm.create_model(spec.name, img_size=spec.side, num_classes=classes, **spec.options)
        state = _read(Path(feature_extractor_weights_path))
        side = self.network.patch_embed.grid_size[0]
        if spec.projects:
            _check_positions_of(state, side)
        else:
            state = _with_positions_of(state, side)
        self.network.load_state_dict(checkpoint_filter_fn(state, self.network))
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).reshape(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of uint8 images [B, 3 or 1, H, W]; grayscale counts as three equal channels."""
        return (self.network(self.prepared(input.expand(-1, 3, -1, -1))).float(),)

    def prepared(self, images: Tensor) -> Tensor:
        """Resize and standardize uint8 images [B, 3, H, W] to [B, 3, side, side]."""
        side, pixels = self.spec.side, images.to(self.mean.dtype)
        if self.spec.whole_levels:
            for size in ((images.shape[2], side), (side, side)):  # Pillow rounds the width's result, then the height's
                pixels = interpolate(pixels, size, mode="bicubic", antialias=True).round().clamp(0, 255)
            pixels = pixels / 255
        else:
            pixels = interpolate(pixels / 255, (side, side), mode="bicubic")
        return (pixels - self.mean) / self.std

    @staticmethod
    def get_provided_features_list():
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "features"

    @staticmethod
    def can_be_compiled():
        return False


class DINOv2(TransformerFeatures):
    """DINOv2's ViT-L/14 (arXiv 2304.07193) as FD-DINOv2 uses it (arXiv 2306.04675).

    Its file is the authors' dinov2_vitl14_pretrain.pth, or timm's.
    """

    spec = VisionTransformer(
        "vit_large_patch14_dinov2", 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1024, whole_levels=True
    )


class CLIP(TransformerFeatures):
    """CLIP's image encoder ViT-L/14 at 336 pixels (arXiv 2103.00020) as CMMD uses it (arXiv 2401.09603).

    Its file has OpenAI's weights, named as OpenAI and OpenCLIP do: `visual.conv1.weight` and so on.
    """

    spec = VisionTransformer(
        "vit_large_patch14_clip_quickgelu_336",
        336,
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
        768,
        whole_levels=False,
        projects=True,
    )


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"it has a {type(state).__name__}, not weights by name")
    return state


def _check_positions_of(state: dict[str, Tensor], side: int) -> None:
    """Check that CLIP was trained on a grid of `side`² patches: timm would interpolate its position embeddings."""
    positions = state.get("visual.positional_embedding")
    if positions is not None and len(positions) != 1 + side**2:
        raise ValueError(f"its images have {len(positions) - 1} patches, not {side**2}")


def _with_positions_of(state: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """Interpolate DINOv2's position embeddings [1, 1 + M², D] to a grid of `side`² patches, as its authors' code does.

    timm would interpolate them with antialiasing.
    """
    positions = state.get("pos_embed")
    if positions is None or positions.shape[1] == 1 + side**2:
        return state
    trained = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].float().reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
    scale = (side + OFFSET) / trained
    grid = interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return state | {"pos_embed": torch.cat([positions[:, :1].float(), grid.flatten(2).mT], 1)}
