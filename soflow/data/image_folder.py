"""Folder of images, with one sub-folder per class or without classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from soflow.data.base import DataError
from soflow.data.decoding import open_rgb
from soflow.data.manifest import fingerprint, manifest

UNEVEN = 2
"""Ratio of the largest class to the smallest above which a note recommends samples in the data's proportions."""
EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class ImageFolder:
    """RGB images read from disk on demand, resized and cropped to the center square.

    Hidden files and folders, those whose names begin with a dot, are left out.

    Attributes:
        paths: paths of the images, by class and sorted by name within a class.
        labels: int64 [N]; classes are numbered in the order of their folder names. Without folders there is one class.
        notes: sentences on what was left out.
    """

    def __init__(self, root: Path, image_size: int):
        self.image_size = image_size
        found, others = _images_by_folder(root)
        in_root = found.pop("", [])
        if not found and not in_root:
            raise DataError(
                f"dataset.root = {root}: no images found; expected {', '.join(sorted(EXTENSIONS))} files, in one "
                f"sub-folder per class or without sub-folders{_found_instead(others)}"
            )
        by_class = [found[name] for name in sorted(found)] or [in_root]
        self.paths = [path for paths in by_class for path in paths]
        self.labels = np.repeat(np.arange(len(by_class)), [len(paths) for paths in by_class]).astype(np.int64)
        self.num_classes = len(by_class)
        self.notes = _notes(root, found, in_root, others) + _imbalance(root, self.labels)
        self.fingerprint = fingerprint(f"center crop of {image_size}", root, self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([read_image(self.paths[i], self.image_size) for i in indices]), self.labels[indices]


def read_image(path: Path, size: int) -> np.ndarray:
    """Read an image file as uint8 [3, size, size].

    Raises:
        DataError: if the file is damaged or not an image; the message names it.
    """
    return np.asarray(center_square(open_rgb(path), size)).transpose(2, 0, 1)


def _visible_files(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted within each folder, without hidden files and folders."""
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _visible_files(path)
        else:
            yield path


def common_side(root: Path) -> int:
    """Return the short side of the images in a folder, in pixels, if all have the same width and height.

    Raises:
        DataError: if the folder is missing or has no images, or their sizes differ.
    """
    if not root.is_dir():
        raise DataError(f"root = {root} must be a folder of images, with one sub-folder per class")
    found, _ = _images_by_folder(root)
    paths = [path for paths in found.values() for path in paths]
    examples: dict[tuple[int, int], Path] = {}
    for path, entry in zip(paths, manifest(root, paths), strict=True):
        if entry.sides is not None:
            examples.setdefault(entry.sides, path)
    if len(examples) != 1:
        listed = ", ".join(f"{path.name} {width} x {height}" for (width, height), path in list(examples.items())[:2])
        differ = f"the images differ in size ({listed})" if examples else f"no images were found in {root}"
        raise DataError(f"image_size must be set for image_folder, in pixels, because {differ}")
    return min(next(iter(examples)))


def _images_by_folder(root: Path) -> tuple[dict[str, list[Path]], Counter[str]]:
    """Return the images by class folder, "" for those outside, and the number of other files by suffix."""
    found: dict[str, list[Path]] = {}
    others: Counter[str] = Counter()
    try:
        paths = list(_visible_files(root))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None
    for path in paths:
        folder, *inside = path.relative_to(root).parts
        if path.suffix.lower() in EXTENSIONS:
            found.setdefault(folder if inside else "", []).append(path)
        else:
            others[path.suffix.lower() or "no suffix"] += 1
    return found, others


def _imbalance(root: Path, labels: np.ndarray) -> list[str]:
    counts = np.bincount(labels)
    if counts.max() <= UNEVEN * counts.min():
        return []
    return [
        f"{root}: classes have {counts.min()} to {counts.max()} images; FID draws as many samples of each class unless "
        "evaluation.labels = data"
    ]


def _notes(root: Path, found: dict[str, list[Path]], in_root: list[Path], others: Counter[str]) -> list[str]:
    notes = []
    folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if found and (empty := sorted(folders - set(found))):
        notes.append(f"{root}: {len(empty)} folders without images are no classes: {', '.join(empty[:5])}")
    if found and in_root:
        notes.append(f"{root}: {len(in_root)} images outside the class folders are left out")
    if others:
        notes.append(f"{root}: {others.total()} files are left out{_found_instead(others)}")
    return notes


def _found_instead(others: Counter[str]) -> str:
    return f" ({', '.join(f'{count} with {suffix}' for suffix, count in others.most_common(5))})" if others else ""


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
        raise DataError(f"dataset.root = {root}: must be a folder of images, with one sub-folder per class")
    assert image_size is not None  # the configuration requires it
    return ImageFolder(root, image_size)
