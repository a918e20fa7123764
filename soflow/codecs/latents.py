"""Stable Diffusion's autoencoder: the codec of data sets of latents, and what makes such data sets.

A data set stores for each image the mean and the standard deviation of the encoder's normal distribution ("moments");
a network is trained on draws from it times `LATENT_SCALE`, as in latent diffusion (arXiv 2112.10752), DiT and SoFlow.
"""

from __future__ import annotations

import importlib.util
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from soflow.codecs.pixels import Pixels
from soflow.config_base import ConfigError
from soflow.data.base import LATENT_CHANNELS, LATENT_FACTOR
from soflow.precision import Precision

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LATENT_SCALE = 0.18215
"""Makes latents about as spread as standard normal noise."""
DECODE_BATCH = 16
"""Images decoded at a time: the decoder holds about 0.25 GiB per image of 256x256 pixels."""
PRECISION = Precision("tf32")
"""Of the autoencoder, whatever the network's is: bfloat16 would show in images, TensorFloat-32 does not."""
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
REMEDY = "give a folder as diffusers' save_pretrained writes it, or a hub id such as stabilityai/sd-vae-ft-mse"


class Latents:
    """The codec of stored moments [B, 8, h, w]; training needs no autoencoder, so it is read at the first decoding.

    Args:
        vae: folder or hub id of the autoencoder.
    """

    def __init__(self, vae: str, device: torch.device):
        self.vae, self.device = vae, device

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """(mean + std · noise) · 0.18215, float32 [B, 4, h, w]; without noise [B, 4, h, w] the mean is taken."""
        mean, std = stored.float().chunk(2, dim=1)
        return LATENT_SCALE * (mean if noise is None else mean + std * noise)

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        """uint8 images [B, 3, 8h, 8w] of latents [B, 4, h, w]."""
        with PRECISION.context(samples.device):
            parts = (samples.float() / LATENT_SCALE).split(DECODE_BATCH)
            return torch.cat([Pixels().decode(self._autoencoder.decode(part).sample) for part in parts])

    def images(self, stored: Tensor) -> Tensor:
        return self.decode(self.encode(stored))

    @cached_property
    def _autoencoder(self) -> AutoencoderKL:
        return load_vae(self.vae, self.device)


@torch.no_grad()
def moments(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Mean and standard deviation, float32 [B, 8, H / 8, W / 8], of the latents of uint8 images [B, 3, H, W]."""
    with PRECISION.context(images.device):
        latents = vae.encode(Pixels().encode(images)).latent_dist
        return torch.cat([latents.mean, latents.std], dim=1)


def load_vae(vae: str, device: torch.device) -> AutoencoderKL:
    """The autoencoder of a folder or a hub id, frozen, in float32.

    Raises:
        ConfigError: if it is missing, damaged or not of Stable Diffusion's kind.
    """
    folder = vae_folder(vae)
    from diffusers import AutoencoderKL

    try:
        # Initial weights, overwritten at once, must not advance the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            loaded, found = AutoencoderKL.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
            )
    except Exception as error:  # diffusers raises whatever its parts do
        raise _refused(vae, f"{folder / WEIGHTS} cannot be loaded ({_first_line(error)})") from None
    if found["missing_keys"]:  # which diffusers leaves at random values
        raise _refused(vae, f"{folder / WEIGHTS} lacks {found['missing_keys'][0]}")
    return loaded.to(device).float().eval().requires_grad_(False)


def vae_folder(vae: str) -> Path:
    """The local folder of an autoencoder, fetched if `vae` is a hub id, and checked as far as its config tells.

    Raises:
        ConfigError: as `load_vae`, but for damaged weights.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise ConfigError(f"dataset.vae = {vae}: needs the package diffusers; pip install 'soflow[latents]'")
    folder = Path(vae) if Path(vae).is_dir() else _fetch(vae)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise _refused(vae, f"no file {folder / name}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        _check(vae, config)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError) as error:
        raise _refused(vae, f"{folder / CONFIG} cannot be read ({_first_line(error)})") from None
    return folder


def _check(vae: str, config: dict[str, Any]) -> None:
    """Refuse autoencoders whose latents are of another kind; what a config leaves out has Stable Diffusion's value."""
    found = {
        "scaling_factor": config.get("scaling_factor", LATENT_SCALE),
        "latent_channels": config.get("latent_channels", LATENT_CHANNELS),
        "pixels per latent side": 2 ** (len(config["block_out_channels"]) - 1) if "block_out_channels" in config else 1,
        "shift_factor": config.get("shift_factor") or 0,
    }
    needed = (LATENT_SCALE, LATENT_CHANNELS, LATENT_FACTOR, 0)
    for (name, value), wanted in zip(found.items(), needed, strict=True):
        if value != wanted:
            raise _refused(vae, f"{name} is {value}, must be {wanted}")


def _fetch(vae: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(vae, allow_patterns=[CONFIG, WEIGHTS]))
    except HFValidationError:
        raise _refused(vae, "no such folder") from None
    except Exception as error:  # of the network and of the hub, in many classes
        raise _refused(vae, f"no such folder here, and it cannot be fetched ({_first_line(error)})") from None


def _refused(vae: str, fault: str) -> ConfigError:
    return ConfigError(f"dataset.vae = {vae}: {fault}; {REMEDY}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
