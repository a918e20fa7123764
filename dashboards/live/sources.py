"""What the live view reads and keeps between refreshes: clients, sweeps, sample grids and tracebacks."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import streamlit as st

from dashboards.live.reader import LiveSweep, Trial
from dashboards.reading.images import SAMPLES, list_grids
from dashboards.reading.mlflow_runs import connect, read_artifact
from orchestration.tracking.schema import TRACEBACK

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 10_000_000
"""Pixels of a sample grid; a larger one is not shown."""


@st.cache_resource(show_spinner=False)
def client_of(tracking_uri: str):
    return connect(tracking_uri)


@st.cache_resource(max_entries=20, show_spinner=False)
def live_sweep(tracking_uri: str, run_id: str) -> LiveSweep:
    """Share one reader between all windows that show a sweep."""
    return LiveSweep(client_of(tracking_uri), run_id)


def newest_grid(sweep: LiveSweep, trial: Trial) -> tuple[int, Image] | None:
    """Read a trial's newest sample grid and its step; None if there is no readable one."""
    try:
        return _grid_of(sweep, trial.run_id, repr(sorted(trial.metrics.items())))
    except Exception:  # incomplete or invalid image, or no server, which is reported elsewhere
        return None


@st.cache_data(max_entries=50, show_spinner=False)
def _grid_of(_sweep: LiveSweep, run_id: str, latest: str) -> tuple[int, Image] | None:
    """Read a trial's newest sample grid; `latest` changes with every report and invalidates the cache."""
    from PIL import Image

    grids = list_grids(_sweep.client, run_id).get(SAMPLES)
    if not grids:
        return None
    content = read_artifact(_sweep.client, run_id, grids[max(grids)])
    with warnings.catch_warnings(), Image.open(io.BytesIO(content or b"")) as image:
        warnings.simplefilter("error")
        if image.width * image.height > MOST_PIXELS:
            return None
        return max(grids), image.convert("RGB")


@st.cache_data(max_entries=50, show_spinner=False)
def traceback_of(_sweep: LiveSweep, run_id: str, ended_ms: int | None) -> str | None:
    """Read the traceback of a failed trial; `ended_ms` invalidates the cache if the trial is run again."""
    content = read_artifact(_sweep.client, run_id, TRACEBACK)
    return None if content is None else content.decode(errors="replace")
