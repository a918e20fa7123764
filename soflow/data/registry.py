"""Registry of the data sources: one module each, plus an entry here.

Each module has a function `open_source(root, image_size, download) -> DataSource`.
"""

from __future__ import annotations

from soflow.data.base import SourceInfo

SOURCES = {
    "digits": SourceInfo("soflow.data.digits", 1, 8, "digits-cnn", 10),
    "fashion_mnist": SourceInfo("soflow.data.fashion_mnist", 1, 28, "fashion-cnn", 10),
    "cifar10": SourceInfo("soflow.data.cifar10", 3, 32, "inception", 10),
    "image_folder": SourceInfo("soflow.data.image_folder", 3, None, "inception", 1000),
    "gaussians": SourceInfo("soflow.data.gaussians", 1, 8, "digits-cnn", 10, closed_form=True),
    "latents": SourceInfo("soflow.data.latents", 3, None, "inception", 1000, latent=True),
}
