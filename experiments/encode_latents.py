"""Encode a folder of images, one sub-folder per class, with Stable Diffusion's autoencoder into one HDF5 file.

The file has the layout of SoFlow's authors and is what --dataset latents trains on. An interrupted run goes
on where it was when the same command is given again. While it works, finished parts lie in OUT.parts, and at its end
they and the file take twice the file's size: 84 GB for ImageNet at 256 pixels.

$ python experiments/encode_latents.py --root imagenet/train --out imagenet-256.h5
$ python experiments/train.py --dataset latents --dataset.root imagenet-256.h5 --dataset.image-size 256
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from orchestration.config import EXIT_CODES
from orchestration.terminal.command_line import fail
from soflow.config_base import ConfigError
from soflow.data.base import DataError


@dataclass
class EncodeConfig:
    root: Path
    """Folder of images with one sub-folder per class."""
    out: Path
    """The HDF5 file to write."""
    image_size: int = 256
    """Side in pixels of the centre square that is encoded, a multiple of 8."""
    vae: str = "stabilityai/sd-vae-ft-mse"
    """Folder or hub id of the AutoencoderKL."""
    num_workers: int | None = None
    """How many encode at a time; by default one per GPU, or one per CPU core where there is no GPU."""
    batch_size: int = 16
    """Images encoded at a time by each worker, which takes 0.2 GiB per image of 256 pixels."""
    address: str | None = None
    """HOST:PORT of an existing Ray cluster, or auto; by default one is started here for the time of the run."""


def main() -> int:
    options = tyro.cli(EncodeConfig, description=__doc__)
    for name in ("num_workers", "batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            fail(f"{name} = {value}: must be at least 1")
    from orchestration.encode.run import EncodingFailed, encode

    try:
        encode(**vars(options))
    except (ConfigError, DataError) as error:
        fail(error)
    except EncodingFailed as error:
        print(f"failed: {error}; the same command goes on with what is missing", file=sys.stderr)
        return EXIT_CODES["FAILED"]
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with what is missing, finished parts are in {options.out}.parts")
        return EXIT_CODES["KILLED"]
    print(f"latents of {options.image_size} x {options.image_size} images: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
