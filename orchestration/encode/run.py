"""Images to latents with Ray Data: many workers, finished parts on disk, one HDF5 file at the end.

Whatever ends the program costs the parts that were in work and nothing else: the same command goes on with those.
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
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from orchestration.cluster import check_address, ray_session
from orchestration.encode.shards import Parts, Setup
from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.data.base import LATENT_FACTOR, DataError
from soflow.data.config import DatasetConfig
from soflow.data.image_folder import ImageFolder, read_image
from soflow.data.latents import write_latents
from soflow.files import atomic, sha256

IMAGES_PER_PART = 64
"""What an interruption costs: a CPU core takes 4 s per image of 256x256 pixels, a GPU milliseconds."""
ATTEMPTS = 3
"""How many workers may be lost, with their process or node, on one part."""
SAY_EVERY_S = 10
"""How often progress is printed where there is no terminal to draw it on."""


class EncodingFailed(RuntimeError):
    """Encoding ended early through no fault of what was given."""


class Encoder:
    """A Ray Data worker: reads a part's images with several threads, encodes them and writes the part."""

    def __init__(self, parts: Parts, vae: str, batch_size: int, threads: int):
        self.parts, self.vae, self.batch_size = parts, vae, batch_size
        self.readers = ThreadPoolExecutor(threads)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list]:
        """From rows with a `part`'s number and `paths`, how many `images` it has and what its `fault` is, or ""."""
        parts = zip(rows["part"].tolist(), rows["paths"], strict=True)
        return {
            "images": [len(paths) for paths in rows["paths"]],
            "fault": [self._write(number, list(paths)) for number, paths in parts],
        }

    def _write(self, number: int, paths: list[str]) -> str:
        import torch

        try:
            if self.parts.count_attempt(number) > ATTEMPTS:  # Ray Data itself would start lost workers for ever
                return f"{paths[0]}: the worker was lost {ATTEMPTS} times from here; is batch_size too large?"
            self.parts.write(number, self._encode(paths))
        except torch.OutOfMemoryError:
            return f"batch_size = {self.batch_size}: too large for the device's memory; choose a smaller one"
        except OSError as error:
            return f"{self.parts.folder}: cannot be written ({error})"
        except DataError as error:
            return f"{error}; replace that file and give the same command again"
        except ConfigError as error:
            return str(error)
        return ""

    def _encode(self, paths: list[str]) -> np.ndarray:
        """Moments [n, 8, h, w] of n images; reading goes on while batches are being encoded."""
        import torch

        from soflow.codecs.latents import moments

        images = self.readers.map(partial(read_image, size=self.parts.setup.image_size), map(Path, paths))
        found = []
        while batch := list(islice(images, self.batch_size)):
            found.append(moments(self._vae, torch.from_numpy(np.stack(batch)).to(self._vae.device)).cpu().numpy())
        return np.concatenate(found)

    @cached_property
    def _vae(self) -> Any:
        import torch

        from soflow.codecs.latents import load_vae

        torch.set_num_threads(1)  # sums, and so the last digits, depend on the number of threads
        return load_vae(self.vae, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def encode(
    root: Path,
    vae: str,
    image_size: int,
    out: Path,
    batch_size: int,
    num_workers: int | None = None,
    address: str | None = None,
    images_per_part: int = IMAGES_PER_PART,
) -> None:
    """Encode a folder of images into one HDF5 file of latents, going on from the parts that are there.

    Args:
        num_workers: how many encode at a time; by default one per GPU, or one per CPU where there is no GPU.
        address: of a Ray cluster, whose nodes must all see the files under the same paths; by default one is started.

    Raises:
        ConfigError, DataError: in one line, if something given cannot be used.
        EncodingFailed: if Ray or the disk gives up.
    """
    from soflow.codecs.latents import WEIGHTS, vae_folder

    if image_size % LATENT_FACTOR or image_size < LATENT_FACTOR:
        raise ConfigError(f"image_size = {image_size}: must be a multiple of {LATENT_FACTOR}")
    if out.exists():
        raise ConfigError(f"out = {out}: exists; delete it or choose another name")
    if address is not None:
        check_address(address)
    root, out = root.absolute(), out.absolute()
    source = open_source(DatasetConfig(name="image_folder", root=root, image_size=image_size))
    setup = Setup(str(root), sha256(vae_folder(vae) / WEIGHTS), image_size, images_per_part)
    parts = Parts(out.with_name(f"{out.name}.parts"), setup, source.paths)
    vae = str(Path(vae).absolute()) if Path(vae).is_dir() else vae

    if missing := parts.start():
        with _ray(address), _native_remarks_hidden():
            _encode_missing(parts, missing, source, vae, batch_size, num_workers)
    _merge(parts, source, out)


def _encode_missing(
    parts: Parts, missing: list[int], source: ImageFolder, vae: str, batch_size: int, num_workers: int | None
) -> None:
    import ray
    import ray.data

    there = ray.cluster_resources()
    workers, gpus = share(num_workers, int(there.get("CPU", 0)), int(there.get("GPU", 0)))
    workers = min(workers, len(missing))
    threads = max(1, int(there["CPU"]) // workers)
    rows = [{"part": number, "paths": list(map(str, source.paths[parts.images(number)]))} for number in missing]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Encoder,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        fn_constructor_args=(parts, vae, batch_size, threads),
        num_cpus=1,
        num_gpus=gpus,
    )
    done = len(source) - sum(map(parts.size, missing))
    try:
        _follow(results.iter_rows(), done, len(source))
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EncodingFailed(f"Ray gave up ({lines[-1]})") from None


def share(num_workers: int | None, cpus: int, gpus: int) -> tuple[int, float]:
    """How many workers there are and which part of a GPU each gets.

    Raises:
        ConfigError: if there are not as many CPUs.
    """
    workers = num_workers or gpus or max(cpus, 1)
    if workers > cpus:
        raise ConfigError(f"num_workers = {workers}: each needs a CPU, and there are {cpus}; choose fewer")
    return workers, 1 / math.ceil(workers / gpus) if gpus else 0


def _follow(results: Iterator[dict[str, Any]], done: int, total: int) -> None:
    """Show progress as parts get finished.

    Raises:
        DataError: what the first part that could not be finished said.
    """
    console = Console()
    columns = (BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting the workers", total=total, completed=done)
        first, began, said = 0, 0.0, 0.0
        for result in results:
            if result["fault"]:
                raise DataError(result["fault"])
            done, now = done + result["images"], time.monotonic()
            line = f"{done} of {total} images"
            if first:
                per_image_s = (now - began) / (done - first)
                line += f", {1 / per_image_s:.3g} images/s, {_minutes((total - done) * per_image_s)} to go"
            else:  # what came before is the start of the workers
                first, began = done, now
            progress.update(task, completed=done, description=line)
            if not console.is_terminal and now - said > SAY_EVERY_S:
                console.print(line, soft_wrap=True, highlight=False)
                said = now


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _merge(parts: Parts, source: ImageFolder, out: Path) -> None:
    """One file of all parts, whole at once; then the parts are no longer needed."""
    side = parts.setup.image_size // LATENT_FACTOR
    try:
        with atomic(out) as merged:
            write_latents(merged, map(parts.read, range(len(parts))), source.labels, side, source.num_classes)
    except OSError as error:
        raise EncodingFailed(f"{out} cannot be written ({error}); the parts in {parts.folder} are complete") from None
    shutil.rmtree(parts.folder, ignore_errors=True)


@contextmanager
def _ray(address: str | None) -> Iterator[None]:
    """A connection to a Ray cluster; one of our own ends with it.

    Raises:
        ConfigError: if there is none.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with ray_session(address):
        yield


@contextmanager
def _native_remarks_hidden() -> Iterator[None]:
    """Ray's native code tells the terminal how it restarts Ray Data's actors; its log files keep that."""
    sys.stderr.flush()
    python, native = sys.stderr, os.dup(2)
    with open(native, "w", buffering=1) as shown, open(os.devnull, "w") as hidden:
        os.dup2(hidden.fileno(), 2)
        sys.stderr = shown
        try:
            yield
        finally:
            sys.stderr = python
            os.dup2(native, 2)
