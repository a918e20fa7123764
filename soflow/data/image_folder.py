"""Folder of images with one sub-folder per class."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from soflow.data.base import DataError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class ImageFolder:
    """RGB images read from disk on demand, resized and cropped to the center square.

    Attributes:
        paths: paths of the images, by class and sorted by name within a class.
        labels: int64 [N]; classes are numbered in the order of their folder names.
    """

    def __init__(self, root: Path, image_size: int):
        self.image_size = image_size
        classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
        files = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((root / name).rglob("*"))
            if path.suffix.lower() in EXTENSIONS
        ]
        if not files:
            raise DataError(
                f"dataset.root = {root}: no images found; expected one sub-folder per class with "
                f"{', '.join(sorted(EXTENSIONS))} files"
            )
        self.paths = [path for path, _ in files]
        self.labels = np.array([label for _, label in files], np.int64)
        self.num_classes = len(classes)
        # Sizes and times instead of contents, because reading a large dataset would take too long.
        stats = ((path.relative_to(root), path.stat()) for path in self.paths)
        listing = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
        # This spelling is part of the fingerprint: changing it would invalidate every cached reference.
        self.fingerprint = hashlib.sha256(f"centre crop of {image_size}\n{listing}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([read_image(self.paths[i], self.image_size) for i in indices]), self.labels[indices]


def read_image(path: Path, size: int) -> np.ndarray:
    """Read an image file as uint8 [3, size, size].

    Raises:
        DataError: if the file is damaged or not an image; the message names it.
    """
    try:
        with Image.open(path) as image:
            square = center_square(image.convert("RGB"), size)
    # Pillow's decoders raise these exceptions on damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from None
    return np.asarray(square).transpose(2, 0, 1)


def center_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side of an image to `size` and crop the central size x size pixels.

    This is the ImageNet preprocessing of ADM (arXiv 2105.05233), also used by DiT, MeanFlow and SoFlow: both sides are
    halved by box averaging while the short one is at least 2 · size, followed by one bicubic resize.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def open_source(root: Path | None, image_size: int | None, download: bool = False) -> ImageFolder:
    if root is None or not root.is_dir():
        raise DataError(f"dataset.root = {root}: must be a folder with one sub-folder of images per class")
    assert image_size is not None  # the configuration requires it
    return ImageFolder(root, image_size)
