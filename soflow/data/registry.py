"""Registry of the data sources: one module each, plus an entry here.

Each module has a function `open_source(root, image_size, download) -> DataSource`. A plug-in is a subclass of
`DataSource` with these arguments and the class attributes `channels`, `num_classes` and, unless the configuration sets
it, `image_size`; maybe also `feature_network`, default Inception.
"""

from __future__ import annotations

from types import NoneType
from typing import Any

from soflow.data.base import SourceInfo
from soflow.plugins import PluginError, Registry


def _plugin(reference: str, source: Any) -> SourceInfo:
    if missing := [name for name in ("channels", "num_classes") if not isinstance(getattr(source, name, None), int)]:
        raise PluginError(f"needs whole numbers as class attributes {' and '.join(missing)}")
    if not isinstance(getattr(source, "image_size", None), (int, NoneType)):
        raise PluginError(f"image_size = {source.image_size}: must be a whole number, the side in pixels")
    return SourceInfo(
        reference,
        source.channels,
        getattr(source, "image_size", None),
        getattr(source, "feature_network", "inception"),
        source.num_classes,
    )


_INCLUDED = {
    "digits": SourceInfo("soflow.data.digits:open_source", 1, 8, "digits-cnn", 10),
    "fashion_mnist": SourceInfo("soflow.data.fashion_mnist:open_source", 1, 28, "fashion-cnn", 10),
    "cifar10": SourceInfo("soflow.data.cifar10:open_source", 3, 32, "inception", 10),
    "image_folder": SourceInfo("soflow.data.image_folder:open_source", 3, None, "inception", 1000),
    "gaussians": SourceInfo("soflow.data.gaussians:open_source", 1, 8, "digits-cnn", 10, closed_form=True),
    "latents": SourceInfo("soflow.data.latents:open_source", 3, None, "inception", 1000, latent=True),
}
SOURCES = Registry("datasets", _INCLUDED, _plugin)
