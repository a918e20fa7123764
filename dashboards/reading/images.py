"""Sample grids of trials, read from their runs' artifacts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dashboards.reading.mlflow_runs import connect, one_line, read_artifact
from dashboards.reading.sweep_data import SweepData
from orchestration.tracking.schema import IMAGES

if TYPE_CHECKING:
    from mlflow import MlflowClient

SAMPLES = "samples"
"""Name of the grids at the first NFE; `samples_{n}nfe` are those at other NFE."""
REAL = "real"
"""Name of the grid of real images; runs recorded before it was drawn have none."""


@dataclass(frozen=True)
class TrialImages:
    """Grids of a trial as PNG: samples by step at the first NFE and by NFE at the last step, and real images."""

    over_steps: dict[int, bytes]
    by_nfe: dict[int, bytes]
    real: bytes | None = None


def list_grids(client: MlflowClient, run_id: str) -> dict[str, dict[int, str]]:
    """List a run's grids: artifact paths by name, such as "samples", and step."""
    grids: dict[str, dict[int, str]] = {}
    for item in client.list_artifacts(run_id, IMAGES):
        if match := re.fullmatch(rf"{IMAGES}/(.+?)[+%]step[+%](\d+)[+%]timestamp[+%].+\.png", item.path):
            grids.setdefault(match[1].replace("~", "/"), {})[int(match[2])] = item.path
    return grids


def read_images(data: SweepData, numbers: Iterable[int], most: int) -> dict[int, TrialImages]:
    """Read the grids of some trials: at most `most` steps, evenly spaced up to the last one; unreadable ones are left
    out."""
    client = connect(data.tracking_uri)
    with one_line(data.tracking_uri):
        return {number: _read(client, data.runs[number].info.run_id, most) for number in numbers}


def _read(client: MlflowClient, run_id: str, most: int) -> TrialImages:
    grids = list_grids(client, run_id)
    paths = grids.get(SAMPLES, {})
    steps = evenly(sorted(paths), most)
    last = {
        int(match[1]): by_step[max(by_step)]
        for name, by_step in sorted(grids.items())
        if (match := re.fullmatch(rf"{SAMPLES}_(\d+)nfe", name))
    }

    def read(paths: dict[int, str]) -> dict[int, bytes]:
        contents = {key: read_artifact(client, run_id, path) for key, path in paths.items()}
        return {key: content for key, content in contents.items() if content}

    real = grids.get(REAL)
    return TrialImages(
        over_steps=read({step: paths[step] for step in steps}),
        by_nfe=read(last) if most > 1 else {},
        real=read_artifact(client, run_id, real[max(real)]) if real else None,
    )


def evenly(items: list, most: int) -> list:
    """Select at most `most` items at even distances, the last and, of two or more, the first among them."""
    if most == 1:
        return items[-1:]
    return [items[index] for index in np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]
