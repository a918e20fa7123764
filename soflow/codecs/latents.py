"""Stable Diffusion's autoencoder: codec of latent datasets, and encoder for creating them.

A dataset stores for each image the mean and standard deviation of the encoder's normal distribution ("moments"). A
network is trained on draws from it times `LATENT_SCALE`, as in latent diffusion (arXiv 2112.10752), DiT and SoFlow.
"""

from __future__ import annotations

import importlib.util
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from soflow.codecs.base import Codec
from soflow.codecs.pixels import Pixels
from soflow.config_base import ConfigError, first_line
from soflow.data.base import LATENT_CHANNELS, LATENT_FACTOR
from soflow.precision import Precision

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LATENT_SCALE = 0.18215
"""Scales latents to about unit standard deviation."""
DECODE_BATCH = 16
"""Images per decoder call; the decoder needs about 0.25 GiB per image of 256x256 pixels."""
PRECISION = Precision("tf32")
"""Precision of the autoencoder, independent of the network's: bfloat16 errors would be visible in images."""
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
REMEDY = "give a folder as diffusers' save_pretrained writes it, or a hub id such as stabilityai/sd-vae-ft-mse"


class Latents(Codec):
    """Codec of stored moments [B, 8, h, w]. Training needs no autoencoder, so it is loaded at the first decoding.

    Args:
        vae: folder or hub id of the autoencoder.
    """

    def __init__(self, vae: str, device: torch.device):
        self.vae, self.device = vae, device

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Compute (mean + std · noise) · 0.18215, float32 [B, 4, h, w]; without noise, the scaled mean."""
        mean, std = stored.float().chunk(2, dim=1)
        return LATENT_SCALE * (mean if noise is None else mean + std * noise)

    @torch.no_grad()
    def pixels(self, samples: Tensor) -> Tensor:
        """Decode latents [B, 4, h, w] to pixels [B, 3, 8h, 8w]."""
        with PRECISION.context(samples.device):
            parts = (samples.float() / LATENT_SCALE).split(DECODE_BATCH)
            return torch.cat([self._autoencoder.decode(part).sample for part in parts])

    def images(self, stored: Tensor) -> Tensor:
        return self.decode(self.encode(stored))

    @cached_property
    def _autoencoder(self) -> AutoencoderKL:
        return load_vae(self.vae, self.device)


@torch.no_grad()
def moments(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode uint8 images [B, 3, H, W] to mean and standard deviation of their latents, float32 [B, 8, H/8, W/8]."""
    with PRECISION.context(images.device):
        latents = vae.encode(Pixels().encode(images)).latent_dist
        return torch.cat([latents.mean, latents.std], dim=1)


def load_vae(vae: str, device: torch.device) -> AutoencoderKL:
    """Load an autoencoder from a folder or hub id, frozen, in float32.

    Raises:
        ConfigError: if it is missing, damaged or incompatible with Stable Diffusion's latents.
    """
    folder = vae_folder(vae)
    from diffusers import AutoencoderKL

    try:
        # Random initial weights, which are overwritten, must not advance the caller's random state.
        with torch.random.fork_rng(devices=[]):
            loaded, info = AutoencoderKL.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
            )
    except Exception as error:  # diffusers passes on any exception of its dependencies
        raise _rejected(vae, f"{folder / WEIGHTS} cannot be loaded ({first_line(error)})") from None
    if info["missing_keys"]:  # diffusers leaves them at random values
        raise _rejected(vae, f"{folder / WEIGHTS} lacks {info['missing_keys'][0]}")
    return loaded.to(device).float().eval().requires_grad_(False)


def vae_folder(vae: str) -> Path:
    """Return the local folder of an autoencoder, downloaded if `vae` is a hub id, and check its config.

    Raises:
        ConfigError: see `load_vae`; damaged weights are not detected.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise ConfigError(f"dataset.vae = {vae}: needs the package diffusers; pip install 'soflow[latents]'")
    folder = Path(vae) if Path(vae).is_dir() else _fetch(vae)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise _rejected(vae, f"no file {folder / name}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        _check(vae, config)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError) as error:
        raise _rejected(vae, f"{folder / CONFIG} cannot be read ({first_line(error)})") from None
    return folder


def _check(vae: str, config: dict[str, Any]) -> None:
    """Reject autoencoders with incompatible latents; missing config entries default to Stable Diffusion's values."""
    values = {
        "scaling_factor": config.get("scaling_factor", LATENT_SCALE),
        "latent_channels": config.get("latent_channels", LATENT_CHANNELS),
        "pixels per latent side": 2 ** (len(config["block_out_channels"]) - 1) if "block_out_channels" in config else 1,
        "shift_factor": config.get("shift_factor") or 0,
    }
    required_values = (LATENT_SCALE, LATENT_CHANNELS, LATENT_FACTOR, 0)
    for (name, value), required in zip(values.items(), required_values, strict=True):
        if value != required:
            raise _rejected(vae, f"{name} is {value}, must be {required}")


def _fetch(vae: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(vae, allow_patterns=[CONFIG, WEIGHTS]))
    except HFValidationError:
        raise _rejected(vae, "no such folder") from None
    except Exception as error:  # network and hub errors have many classes
        raise _rejected(vae, f"no such folder here, and it cannot be fetched ({first_line(error)})") from None


def _rejected(vae: str, fault: str) -> ConfigError:
    return ConfigError(f"dataset.vae = {vae}: {fault}; {REMEDY}")
