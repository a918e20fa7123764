"""Configuration of the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from soflow.config_base import Count, Fraction, InputPath, Section, one_of
from soflow.data.base import LATENT_CHANNELS, LATENT_FACTOR
from soflow.data.registry import SOURCES


class DatasetConfig(Section):
    name: str = "digits"
    """Dataset: digits (8x8, included in scikit-learn), fashion_mnist, cifar10, image_folder, latents or gaussians
    (8x8, with a flow known in closed form)."""
    root: InputPath | None = None
    """Folder of the dataset; for latents, the HDF5 file. Not needed for digits and gaussians. Default for
    fashion_mnist: Debian's package."""
    conditional: bool = True
    """Train with class labels. If false, every sample gets the null label."""
    image_size: Count | None = None
    """Image side in pixels. image_folder resizes and crops to it, default: the images' side if all have the same size;
    for latents, the side of the encoded images."""
    download: bool = False
    """Download missing files from the internet."""
    augmentation: Fraction = 0.0
    """Probability of each EDM augmentation (0.12 in the CIFAR-10 experiments). The network receives the augmentation
    parameters as input."""
    augmentations: Literal["upright", "edm"] = "upright"
    """Set of augmentations: edm = all, upright = without vertical flips and rotations, as in the SoFlow and MeanFlow
    experiments."""
    vae: str = "stabilityai/sd-vae-ft-mse"
    """Folder or Hugging Face hub id of the AutoencoderKL that decodes latents to images."""
    loading_processes: Annotated[int, Field(ge=0)] = 0
    """Data-loading processes per worker that prefetch batches; 0 loads in the worker, best for data in memory."""

    _name = field_validator("name")(one_of(SOURCES))

    @model_validator(mode="before")
    @classmethod
    def _size_of_equal_images(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("name") != "image_folder" or not values.get("root"):
            return values
        if values.get("image_size") is not None:
            return values
        from soflow.data.image_folder import common_side

        return values | {"image_size": common_side(Path(values["root"]).expanduser())}

    @field_validator("vae")
    @classmethod
    def _folder_is_absolute(cls, vae: str) -> str:
        return str(Path(vae).absolute()) if Path(vae).exists() else vae

    @model_validator(mode="after")
    def _size_is_known(self) -> DatasetConfig:
        fixed = SOURCES[self.name].image_size
        if fixed is None and self.image_size is None:
            raise ValueError(f"image_size must be set for {self.name}, in pixels")
        if fixed is not None and self.image_size not in (None, fixed):
            raise ValueError(f"image_size = {self.image_size} must be {fixed} or left out for {self.name}")
        if self.latent and self.image_shape[1] % LATENT_FACTOR:
            raise ValueError(f"image_size = {self.image_size} must be a multiple of {LATENT_FACTOR} for {self.name}")
        if self.latent and self.augmentation:
            raise ValueError(f"augmentation = {self.augmentation:g} must be 0 for {self.name}: it acts on images")
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        source = SOURCES[self.name]
        side = source.image_size or self.image_size
        assert side is not None  # see `_size_is_known`
        return source.channels, side, side

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the samples that the network generates: images or latents."""
        channels, side, _ = self.image_shape
        return (
            (LATENT_CHANNELS, side // LATENT_FACTOR, side // LATENT_FACTOR) if self.latent else (channels, side, side)
        )

    @property
    def latent(self) -> bool:
        return SOURCES[self.name].latent
