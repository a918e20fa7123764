"""Configuration of the data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from soflow.config_base import Count, Fraction, InputPath, Section, one_of
from soflow.data.base import LATENT_CHANNELS, LATENT_FACTOR
from soflow.data.registry import SOURCES


class DatasetConfig(Section):
    name: str = "digits"
    """Where samples come from: digits (8x8, inside scikit-learn), fashion_mnist, cifar10, image_folder, latents or
    gaussians (8x8, whose flow is known)."""
    root: InputPath | None = None
    """Folder of the data set's files, for latents the HDF5 file; digits and gaussians need none, fashion_mnist finds
    Debian's."""
    conditional: bool = True
    """Train with class labels; without them every sample gets the null label."""
    image_size: Count | None = None
    """Side in pixels, for image_folder what it crops and resizes to, for latents that of the encoded images."""
    download: bool = False
    """Let the source fetch missing files from the internet."""
    augmentation: Fraction = 0.0
    """Probability of each of EDM's augmentations (0.12 in the CIFAR-10 experiments), of which the network is told."""
    augmentations: Literal["upright", "edm"] = "upright"
    """Which: all of EDM's, or those that keep images upright, as in the SoFlow and MeanFlow experiments."""
    vae: str = "stabilityai/sd-vae-ft-mse"
    """Folder or hub id of the AutoencoderKL that turns latents into images."""
    loading_processes: Annotated[int, Field(ge=0)] = 0
    """Processes per worker that read batches ahead; 0 reads in the worker itself, best for data in memory."""

    _name = field_validator("name")(one_of(SOURCES))

    @field_validator("vae")
    @classmethod
    def _folder_is_absolute(cls, vae: str) -> str:
        return str(Path(vae).absolute()) if Path(vae).exists() else vae

    @model_validator(mode="after")
    def _size_is_known(self) -> DatasetConfig:
        fixed = SOURCES[self.name].image_size
        if fixed is None and self.image_size is None:
            raise ValueError(f"image_size must be given for {self.name}, a number of pixels")
        if fixed is not None and self.image_size not in (None, fixed):
            raise ValueError(f"image_size = {self.image_size} must be {fixed} or left out for {self.name}")
        if self.latent and self.image_size % LATENT_FACTOR:
            raise ValueError(f"image_size = {self.image_size} must be a multiple of {LATENT_FACTOR} for {self.name}")
        if self.latent and self.augmentation:
            raise ValueError(f"augmentation = {self.augmentation:g} must be 0 for {self.name}: it acts on images")
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        source = SOURCES[self.name]
        side = source.image_size or self.image_size
        return source.channels, side, side

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network generates: images, or latents of them."""
        channels, side, _ = self.image_shape
        return (
            (LATENT_CHANNELS, side // LATENT_FACTOR, side // LATENT_FACTOR) if self.latent else (channels, side, side)
        )

    @property
    def latent(self) -> bool:
        return SOURCES[self.name].latent
