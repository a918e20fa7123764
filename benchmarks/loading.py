"""How many images per second does each data source deliver, by number of loading processes?

Reads random batches, as in training, through soflow.data.loading on the CPU. The files are generated and fit into the
file cache of the system, so that the computation is measured, not the disk. Latents of 256x256 pixels take 32 KiB each,
in HDF5 files of several layouts; images are JPEGs of ImageNet's usual size, 500x375, cropped and resized to 256x256.

    python benchmarks/loading.py --seconds 5
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image

from soflow.data import open_source
from soflow.data.base import DataSource
from soflow.data.config import DatasetConfig
from soflow.data.in_memory import InMemorySource
from soflow.data.loading import EpochOrder, batches

PROCESSES = (0, 1, 2)
WARMUP_BATCHES = 3
NUM_LATENTS, NUM_JPEGS = 16384, 256
RANDOM = np.random.default_rng(0)


def in_memory(folder: Path) -> DataSource:
    """Make a data set of CIFAR-10's size in memory."""
    return InMemorySource(RANDOM.integers(0, 256, (50_000, 3, 32, 32), np.uint8), np.zeros(50_000, np.int64), 10)


def jpegs(folder: Path) -> DataSource:
    """Write smooth random JPEGs; plain noise would give larger files than photographs."""
    (folder / "images" / "one").mkdir(parents=True)
    for i in range(NUM_JPEGS):
        coarse = Image.fromarray(RANDOM.integers(0, 256, (47, 63, 3), np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / "images" / "one" / f"{i}.jpg", quality=95)
    return open_source(DatasetConfig(name="image_folder", root=folder / "images", image_size=256))


def latents(**layout) -> Callable[[Path], DataSource]:
    """Return a function that writes latents to an HDF5 file of this layout."""

    def make(folder: Path) -> DataSource:
        path = folder / "latents.h5"
        with h5py.File(path, "w") as file:
            stored = file.create_dataset("latents", (NUM_LATENTS, 8, 32, 32), np.float32, **layout)
            for begin in range(0, NUM_LATENTS, 512):
                stored[begin : begin + 512] = RANDOM.random((512, 8, 32, 32), np.float32)
            file.create_dataset("labels", data=np.zeros(NUM_LATENTS, np.int64))
            file.create_dataset("amount", data=np.int64(NUM_LATENTS))
            file.create_dataset("latent_size", data=np.int64(32))
        return open_source(DatasetConfig(name="latents", root=path, image_size=256))

    return make


CASES: dict[str, tuple[Callable[[Path], DataSource], int]] = {
    "in memory, 32x32 pixels": (in_memory, 256),
    "latents, contiguous (encode_latents.py)": (latents(), 256),
    "latents, chunks of 1 sample": (latents(chunks=(1, 8, 32, 32)), 256),
    "latents, chunks of 128 samples": (latents(chunks=(128, 8, 32, 32)), 256),
    "latents, chunks of 128 samples, gzip": (latents(chunks=(128, 8, 32, 32), compression="gzip"), 16),
    "latents, chunks of 1024 samples": (latents(chunks=(1024, 8, 32, 32)), 256),
    "image folder, JPEGs to 256x256 pixels": (jpegs, 32),
}
"""Data source and batch size of each case."""


def images_per_s(source: DataSource, batch_size: int, processes: int, seconds: float) -> float:
    """Measure the images per second over at least `seconds`."""
    order = EpochOrder(len(source), batch_size, seed=0)
    loader = batches(source, order, range(10**6), torch.device("cpu"), processes=processes)
    for _ in range(WARMUP_BATCHES):
        next(loader)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        next(loader)
        count += 1
    rate = count * batch_size / (time.perf_counter() - begin)
    loader.close()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="length of each measurement (default 5)")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"h5py {h5py.__version__} with HDF5 {h5py.version.hdf5_version}; images/s\n")
    print("| source | " + " | ".join(f"{n} processes" for n in PROCESSES) + " |\n" + "|---" * 4 + "|")
    for name, (make, batch_size) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            source = make(Path(folder))
            rates = [images_per_s(source, batch_size, processes, seconds) for processes in PROCESSES]
        print(f"| {name} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |", flush=True)


if __name__ == "__main__":
    main()
