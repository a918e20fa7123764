"""Finished parts of a long encoding on disk: each written whole or not at all, and known by the images it is of."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from soflow.config_base import ConfigError
from soflow.data.base import LATENT_FACTOR
from soflow.data.latents import MOMENTS
from soflow.files import write_atomic

SETUP_FILE = "setup.json"


@dataclass(frozen=True)
class Setup:
    """What all parts in a folder share; beside it, rounding in the last digits depends on batch size and device."""

    root: str
    """Folder of the images."""
    vae: str
    """SHA-256 of the autoencoder's weights."""
    image_size: int
    images_per_part: int


class Parts:
    """Latents of images, a part being a run of consecutive ones: part k holds their moments [n, 8, h, w].

    A part's file name tells by a digest of its images' names, sizes and times of change what it is of. So an image that
    is replaced, or files that are added at the end, leave the other parts valid.

    Raises:
        ConfigError: if the folder holds parts of another set-up or cannot be written.
    """

    def __init__(self, folder: Path, setup: Setup, images: list[Path]):
        self.folder, self.setup = folder, setup
        facts, path = asdict(setup), folder / SETUP_FILE
        try:
            if not path.exists():
                write_atomic(path, json.dumps(facts, indent=2).encode())
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"out: cannot keep finished parts in {folder} ({error}); choose another out") from None
        if found != facts:
            other = [name for name in facts if not isinstance(found, dict) or found.get(name) != facts[name]]
            raise ConfigError(
                f"out: {folder} holds parts of another set-up (another {', '.join(other)}); "
                "delete that folder or choose another out"
            )
        self.num_images = len(images)
        self._digests = [_digest(images[self.images(number)]) for number in range(len(self))]

    def __len__(self) -> int:
        return -(-self.num_images // self.setup.images_per_part)

    def images(self, number: int) -> slice:
        """Which of all images a part is of."""
        each = self.setup.images_per_part
        return slice(number * each, min((number + 1) * each, self.num_images))

    def size(self, number: int) -> int:
        """How many images a part is of."""
        images = self.images(number)
        return images.stop - images.start

    def start(self) -> list[int]:
        """The parts that are missing, each with no attempt yet."""
        missing = [number for number in range(len(self)) if not self.is_complete(number)]
        for number in missing:
            self._path(number, "attempts").unlink(missing_ok=True)
        return missing

    def count_attempt(self, number: int) -> int:
        """How many attempts at a part there have been since `start`, with this one, on all machines."""
        with self._path(number, "attempts").open("ab") as file:
            file.write(b".")
            return file.tell()

    def is_complete(self, number: int) -> bool:
        side = self.setup.image_size // LATENT_FACTOR
        try:
            part = self.read(number)
        except (OSError, EOFError, ValueError):  # missing or cut short
            return False
        return part.shape == (self.size(number), MOMENTS, side, side) and part.dtype == np.float32

    def read(self, number: int) -> np.ndarray:
        return np.load(self._path(number, "npy"), mmap_mode="r", allow_pickle=False)

    def write(self, number: int, moments: np.ndarray) -> None:
        content = io.BytesIO()
        np.save(content, moments)
        write_atomic(self._path(number, "npy"), content.getvalue())
        self._path(number, "attempts").unlink(missing_ok=True)

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"part-{number:06d}-{self._digests[number]}.{suffix}"


def _digest(images: list[Path]) -> str:
    stats = ((path, path.stat()) for path in images)
    listing = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]
