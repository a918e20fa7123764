"""Any folder of images with one sub-folder per class."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from soflow.config import DatasetConfig
from soflow.data import DataError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class ImageFolder:
    """RGB images read from disk as they are needed, cropped to the centre square and resized."""

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
                f"dataset.root = {root}: no images found; expected one sub-folder per class holding "
                f"{', '.join(sorted(EXTENSIONS))} files"
            )
        self.paths = [path for path, _ in files]
        self.labels = np.array([label for _, label in files], np.int64)
        self.num_classes = len(classes)
        # Not the contents: reading a large data set takes longer than training a little on it.
        stats = ((path.relative_to(root), path.stat()) for path in self.paths)
        listing = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
        self.fingerprint = hashlib.sha256(f"{image_size}\n{listing}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([self._read(self.paths[i]) for i in indices]), self.labels[indices]

    def _read(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                square = ImageOps.fit(
                    image.convert("RGB"), (self.image_size, self.image_size), Image.Resampling.LANCZOS
                )
        except OSError as error:
            raise DataError(f"{path}: cannot be read as an image ({error})") from None
        return np.asarray(square).transpose(2, 0, 1)


def open_source(config: DatasetConfig) -> ImageFolder:
    if config.root is None or not config.root.is_dir():
        raise DataError(f"dataset.root = {config.root}: must be a folder with one sub-folder of images per class")
    return ImageFolder(config.root, config.image_size)
