"""Shards of a long encoding on disk, written atomically and named by a digest of their images."""

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
    """Settings shared by all shards of a folder. Batch size and device are not included: they change only rounding."""

    root: str
    """Folder of the images."""
    vae: str
    """SHA-256 of the autoencoder's weights."""
    image_size: int
    images_per_shard: int


class Shards:
    """Latents of images, in shards of consecutive images; a shard contains the moments [n, 8, h, w] of its n images.

    The file name of a shard contains a digest of its images' names, sizes and modification times. Replacing an image,
    or adding images at the end, therefore leaves all other shards valid.

    Raises:
        ConfigError: if the folder contains shards with another setup, or cannot be written.
    """

    def __init__(self, folder: Path, setup: Setup, images: list[Path]):
        self.folder, self.setup = folder, setup
        expected, path = asdict(setup), folder / SETUP_FILE
        try:
            if not path.exists():
                write_atomic(path, json.dumps(expected, indent=2).encode())
            saved = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"out: cannot save shards in {folder} ({error}); choose another out") from None
        if saved != expected:
            different = [name for name in expected if not isinstance(saved, dict) or saved.get(name) != expected[name]]
            raise ConfigError(
                f"out: {folder} contains shards with another {', '.join(different)}; "
                "delete that folder or choose another out"
            )
        self.num_images = len(images)
        self._digests = [_digest(images[self.images(number)]) for number in range(len(self))]

    def __len__(self) -> int:
        return -(-self.num_images // self.setup.images_per_shard)

    def images(self, number: int) -> slice:
        """Return the positions of a shard's images among all images."""
        size = self.setup.images_per_shard
        return slice(number * size, min((number + 1) * size, self.num_images))

    def size(self, number: int) -> int:
        """Return the number of images of a shard."""
        images = self.images(number)
        return images.stop - images.start

    def start(self) -> list[int]:
        """Return the numbers of the missing shards and reset their attempts."""
        missing = [number for number in range(len(self)) if not self.is_complete(number)]
        for number in missing:
            self._path(number, "attempts").unlink(missing_ok=True)
        return missing

    def count_attempt(self, number: int) -> int:
        """Add an attempt at a shard and return the number of attempts since `start`, on all machines."""
        # One byte per attempt: appending is atomic and survives the loss of the worker.
        with self._path(number, "attempts").open("ab") as file:
            file.write(b".")
            return file.tell()

    def is_complete(self, number: int) -> bool:
        """Check that the file of a shard exists and has the right shape."""
        side = self.setup.image_size // LATENT_FACTOR
        try:
            moments = self.read(number)
        except (OSError, EOFError, ValueError):  # missing or truncated
            return False
        return moments.shape == (self.size(number), MOMENTS, side, side) and moments.dtype == np.float32

    def read(self, number: int) -> np.ndarray:
        """Map the moments [n, 8, h, w] of a shard into memory."""
        return np.load(self._path(number, "npy"), mmap_mode="r", allow_pickle=False)

    def write(self, number: int, moments: np.ndarray) -> None:
        """Write the moments [n, 8, h, w] of a shard atomically."""
        content = io.BytesIO()
        np.save(content, moments)
        write_atomic(self._path(number, "npy"), content.getvalue())
        self._path(number, "attempts").unlink(missing_ok=True)

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"shard-{number:06d}-{self._digests[number]}.{suffix}"


def _digest(images: list[Path]) -> str:
    stats = ((path, path.stat()) for path in images)
    listing = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]
