"""Encode a folder of images, one sub-folder per class, with Stable Diffusion's autoencoder into one HDF5 file.

The file has the layout of SoFlow's authors, for --dataset latents. The same command resumes an interrupted run.
Finished shards are kept in OUT.shards until the end, when both together take twice the file's size: 84 GB for ImageNet
at 256 pixels.

$ python experiments/encode_latents.py --root imagenet/train --out imagenet-256.h5
$ python experiments/train.py --dataset latents --dataset.root imagenet-256.h5 --dataset.image-size 256
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchestration.interruption import exit_code, listen
from orchestration.terminal.command_line import fail, read_command_line
from soflow.config_base import ConfigError, Count, Section
from soflow.data.base import DataError


class EncodeOptions(Section):
    root: Path
    """Folder of images with one sub-folder per class."""
    out: Path
    """HDF5 file to write."""
    image_size: Count = 256
    """Side in pixels of the encoded center square, a multiple of 8."""
    vae: str = "stabilityai/sd-vae-ft-mse"
    """Folder or hub id of the AutoencoderKL."""
    num_workers: Count | None = None
    """Parallel workers. Default: one per GPU, or one per CPU core without GPUs."""
    batch_size: Count = 16
    """Images encoded at a time by each worker; 0.2 GiB per image of 256 pixels."""
    address: str | None = None
    """HOST:PORT of a running Ray cluster, or `auto`. Default: start one on this machine and stop it at the end."""


def main() -> int:
    listen()
    options = read_command_line(EncodeOptions, __doc__)
    from orchestration.encode.run import EncodingFailed, encode

    try:
        encode(**dict(options))
    except (ConfigError, DataError) as error:
        fail(error)
    except EncodingFailed as error:
        print(f"failed: {error}; the same command resumes", file=sys.stderr)
        return exit_code("FAILED")
    except KeyboardInterrupt:
        print(f"interrupted; the same command resumes; finished shards are in {options.out}.shards")
        return exit_code("KILLED")
    print(f"latents of {options.image_size} x {options.image_size} images: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
