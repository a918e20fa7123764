"""Encoding of images to latents with Ray Data: parallel workers, shards on disk, one HDF5 file at the end.

An interruption loses only the unfinished shards; the same command resumes with these.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn

from orchestration.cluster import check_address, ray_session
from orchestration.encode.shards import Setup, Shards
from orchestration.terminal.format import plain_console, three_digits
from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.data.base import LATENT_FACTOR, DataError
from soflow.data.config import DatasetConfig
from soflow.data.image_folder import ImageFolder, read_image
from soflow.data.latents import write_latents
from soflow.files import atomic, sha256

IMAGES_PER_SHARD = 64
"""Work lost by an interruption: a CPU core takes 4 s per image of 256x256 pixels, a GPU milliseconds."""
ATTEMPTS = 3
"""How many workers may be lost, with their process or node, on one shard."""
PRINT_EVERY_S = 10
"""Interval of progress lines if stdout is not a terminal."""


class EncodingFailed(RuntimeError):
    """Failure of Ray or the disk during encoding, with valid inputs."""


class Encoder:
    """Ray Data worker that reads a shard's images with several threads, encodes them and writes the shard."""

    def __init__(self, shards: Shards, vae: str, batch_size: int, threads: int):
        self.shards, self.vae, self.batch_size = shards, vae, batch_size
        self.readers = ThreadPoolExecutor(threads)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list]:
        """Encode shards.

        Args:
            rows: numbers of shards as `shard`, and the paths of their images as `paths`.

        Returns:
            The number of images of each shard as `images`, and its error message, or "", as `fault`.
        """
        shards = zip(rows["shard"].tolist(), rows["paths"], strict=True)
        return {
            "images": [len(paths) for paths in rows["paths"]],
            "fault": [self._write(number, list(paths)) for number, paths in shards],
        }

    def _write(self, number: int, paths: list[str]) -> str:
        """Encode and write a shard; return an error message, or ""."""
        import torch

        try:
            # Ray Data restarts lost workers without limit, also if the shard itself is the cause.
            if self.shards.count_attempt(number) > ATTEMPTS:
                return f"{paths[0]}: the worker was lost {ATTEMPTS} times from here on; lower batch_size"
            self.shards.write(number, self._encode(paths))
        except torch.OutOfMemoryError:
            return f"batch_size = {self.batch_size}: must fit into the device's memory; choose a smaller one"
        except OSError as error:
            return f"{self.shards.folder}: cannot be written ({error})"
        except DataError as error:
            return f"{error}; replace that file and run the same command again"
        except ConfigError as error:
            return str(error)
        return ""

    def _encode(self, paths: list[str]) -> np.ndarray:
        """Compute the moments [n, 8, h, w] of n images, reading ahead while batches are encoded."""
        import torch

        from soflow.codecs.latents import moments

        images = self.readers.map(partial(read_image, size=self.shards.setup.image_size), map(Path, paths))
        batches = []
        while batch := list(islice(images, self.batch_size)):
            batches.append(moments(self._vae, torch.from_numpy(np.stack(batch)).to(self._vae.device)).cpu().numpy())
        return np.concatenate(batches)

    @cached_property
    def _vae(self) -> Any:
        import torch

        from soflow.codecs.latents import load_vae

        torch.set_num_threads(1)  # the number of threads changes the order of sums, and with it the last digits
        return load_vae(self.vae, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def encode(
    root: Path,
    vae: str,
    image_size: int,
    out: Path,
    batch_size: int,
    num_workers: int | None = None,
    address: str | None = None,
    images_per_shard: int = IMAGES_PER_SHARD,
) -> None:
    """Encode a folder of images into one HDF5 file of latents; continue from existing shards.

    Args:
        num_workers: parallel workers. Default: one per GPU, or one per CPU without GPUs.
        address: address of a Ray cluster, whose nodes all see the files under the same paths. Default: start one.

    Raises:
        ConfigError, DataError: in one line, if an argument or an image is unusable.
        EncodingFailed: if Ray or the disk fails.
    """
    from soflow.codecs.latents import WEIGHTS, vae_folder

    if image_size % LATENT_FACTOR or image_size < LATENT_FACTOR:
        raise ConfigError(f"image_size = {image_size}: must be a multiple of {LATENT_FACTOR}")
    if out.exists():
        raise ConfigError(f"out = {out}: must not exist; delete it or choose another name")
    if address is not None:
        check_address(address)
    root, out = root.absolute(), out.absolute()
    source = open_source(DatasetConfig(name="image_folder", root=root, image_size=image_size))
    assert isinstance(source, ImageFolder)
    setup = Setup(str(root), sha256(vae_folder(vae) / WEIGHTS), image_size, images_per_shard)
    shards = Shards(out.with_name(f"{out.name}.shards"), setup, source.paths)
    vae = str(Path(vae).absolute()) if Path(vae).is_dir() else vae

    if missing := shards.start():
        with _ray(address), _native_messages_hidden():
            _encode_missing(shards, missing, source, vae, batch_size, num_workers)
    _merge(shards, source, out)


def _encode_missing(
    shards: Shards, missing: list[int], source: ImageFolder, vae: str, batch_size: int, num_workers: int | None
) -> None:
    import ray
    import ray.data

    available = ray.cluster_resources()
    workers, gpus = share(num_workers, int(available.get("CPU", 0)), int(available.get("GPU", 0)))
    workers = min(workers, len(missing))
    threads = max(1, int(available["CPU"]) // workers)
    rows = [{"shard": number, "paths": list(map(str, source.paths[shards.images(number)]))} for number in missing]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Encoder,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        fn_constructor_args=(shards, vae, batch_size, threads),
        num_cpus=1,
        num_gpus=gpus,
    )
    done = len(source) - sum(map(shards.size, missing))
    try:
        _show_progress(results.iter_rows(), done, len(source))
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EncodingFailed(f"Ray failed ({lines[-1]})") from None


def share(num_workers: int | None, cpus: int, gpus: int) -> tuple[int, float]:
    """Return the number of workers and the fraction of a GPU for each.

    Raises:
        ConfigError: if the workers outnumber the CPUs.
    """
    workers = num_workers or gpus or max(cpus, 1)
    if workers > cpus:
        raise ConfigError(f"num_workers = {workers}: must not exceed the {cpus} CPUs; choose fewer workers")
    return workers, 1 / math.ceil(workers / gpus) if gpus else 0


def _show_progress(results: Iterator[dict[str, Any]], done: int, total: int) -> None:
    """Show progress as shards are finished.

    Raises:
        DataError: with the error of the first shard that failed.
    """
    console = plain_console()
    columns = (BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting the workers", total=total, completed=done)
        first, began, printed_at = 0, 0.0, 0.0
        for result in results:
            if result["fault"]:
                raise DataError(result["fault"])
            done, now = done + result["images"], time.monotonic()
            line = f"{done} of {total} images"
            if first:
                per_image_s = (now - began) / (done - first)
                line += f", {three_digits(1 / per_image_s)} images/s, {_minutes((total - done) * per_image_s)} to go"
            else:  # the speed is measured from the first shard on, without the start of the workers
                first, began = done, now
            progress.update(task, completed=done, description=line)
            if not console.is_terminal and now - printed_at > PRINT_EVERY_S:
                console.print(line, soft_wrap=True, highlight=False)
                printed_at = now


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _merge(shards: Shards, source: ImageFolder, out: Path) -> None:
    """Write all shards to one file atomically, then delete them."""
    side = shards.setup.image_size // LATENT_FACTOR
    try:
        with atomic(out) as merged:
            write_latents(merged, map(shards.read, range(len(shards))), source.labels, side, source.num_classes)
    except OSError as error:
        raise EncodingFailed(f"{out} cannot be written ({error}); the shards in {shards.folder} are complete") from None
    shutil.rmtree(shards.folder, ignore_errors=True)


@contextmanager
def _ray(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start one and stop it at the end.

    Raises:
        ConfigError: if the cluster cannot be reached.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with ray_session(address):
        yield


@contextmanager
def _native_messages_hidden() -> Iterator[None]:
    """Hide messages of Ray's native code on restarts of Ray Data's actors, which its log files contain as well."""
    sys.stderr.flush()
    # Native code writes to file descriptor 2: point it to the null device, and Python's stderr to the terminal itself.
    python_stderr, terminal = sys.stderr, os.dup(2)
    with open(terminal, "w", buffering=1) as visible, open(os.devnull, "w") as hidden:
        os.dup2(hidden.fileno(), 2)
        sys.stderr = visible
        try:
            yield
        finally:
            sys.stderr = python_stderr
            os.dup2(terminal, 2)
