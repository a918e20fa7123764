"""From image files of every kind to 8-bit RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from soflow.data.base import DataError

BACKGROUND = (255, 255, 255, 255)
"""White, on which transparent images are laid."""


def open_rgb(path: Path) -> Image.Image:
    """Read an image file as 8-bit RGB, turned as its EXIF orientation says.

    Raises:
        DataError: if the file is damaged or not an image; the message names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return as_rgb(ImageOps.exif_transpose(image))
    # Pillow's decoders raise these exceptions on damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any of Pillow's modes to RGB.

    Black and white, gray, palette, CMYK, YCbCr, HSV and LAB images are converted by color. Transparent images are laid
    on white. 16-bit gray values v become round(v · 255 / 65535), floating-point ones in [0, 1] round(255 v). Of an
    animation, the current frame is taken.

    Raises:
        ValueError: if 32-bit integers exceed 16 bits, or floating-point values lie outside [0, 1].
    """
    if image.mode.startswith("I"):
        return _scaled(image, 65535)
    if image.mode == "F":
        return _scaled(image, 1)
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.has_transparency_data or image.mode in ("La", "RGBa"):
        opaque = image.convert("LA") if image.mode == "La" else image
        layer = opaque.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), layer).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image, white: int) -> Image.Image:
    """Scale gray values in [0, white] to [0, 255]."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > white:
        raise ValueError(
            f"gray values of mode {image.mode} must lie in 0 to {white}, not {values.min()} to {values.max()}"
        )
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # the image is not changed in place
    return converted
