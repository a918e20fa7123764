"""Sample grids of a sweep's best, median and worst trial, small enough to travel inside a page."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass

from dashboards.reading.sweep_data import SweepRecord
from dashboards.sweep.findings import Findings, title

FIRST = "samples"
"""The name of the grids that are shown over steps."""
NFE = re.compile(rf"{FIRST}_(\d+)nfe")
"""Names of those at other numbers of network evaluations, of which the last are shown."""
STEPS = 5
"""Grids over steps: the first and the last report and some between."""
LARGEST_SIDE = 360
"""Pixels; larger grids are reduced."""


@dataclass(frozen=True)
class Picture:
    caption: str
    uri: str


@dataclass(frozen=True)
class Strip:
    """One trial's grids side by side."""

    heading: str
    pictures: list[Picture]


def strips(record: SweepRecord, findings: Findings) -> list[Strip]:
    """Empty if the trials have no pictures, or none may be called the best."""
    found = []
    for role, number in _chosen(findings).items():
        images = record.images(number)
        value = record.trials.set_index("trial").loc[number, record.goals[0]]
        heading = f"{role}: trial {number}, {title(record.goals[0])} {value:.4g}"
        over_steps, nfe = images.get(FIRST, {}), record.runs[number].data.tags.get("nfe", "").partition(",")[0]
        found.append(
            Strip(
                f"{heading}{f' · {nfe} NFE' if nfe else ''}",
                _pictures(record, number, {f"step {step:,}": over_steps[step] for step in _spread(sorted(over_steps))}),
            )
        )
        at_the_end = {int(match[1]): paths for name, paths in images.items() if (match := NFE.fullmatch(name))}
        if over_steps and nfe.isdecimal():
            at_the_end[int(nfe)] = over_steps
        if len(at_the_end) > 1:
            grids = {f"{nfe} NFE": at_the_end[nfe][max(at_the_end[nfe])] for nfe in sorted(at_the_end)}
            found.append(Strip(f"{heading} · numbers of network evaluations", _pictures(record, number, grids)))
    return [strip for strip in found if strip.pictures]


def _chosen(findings: Findings) -> dict[str, int]:
    """The best, the median and the worst of the ranked trials, as far as they differ."""
    ranked = [int(number) for number in findings.table.loc[findings.table["rank"].notna(), "trial"]]
    if not ranked:
        return {}
    chosen = {"Best": ranked[0]}
    if len(ranked) > 2:
        chosen["Median"] = ranked[len(ranked) // 2]
    if len(ranked) > 1:
        chosen["Worst finished"] = ranked[-1]
    return chosen


def _spread(steps: list[int]) -> list[int]:
    if len(steps) <= STEPS:
        return steps
    return [steps[round(position * (len(steps) - 1) / (STEPS - 1))] for position in range(STEPS)]


def _pictures(record: SweepRecord, number: int, paths: dict[str, str]) -> list[Picture]:
    """Those of the artifacts that can be read, by their captions."""
    contents = {caption: record.artifact(record.runs[number], path) for caption, path in paths.items()}
    uris = {caption: content and data_uri(content) for caption, content in contents.items()}
    return [Picture(caption, uri) for caption, uri in uris.items() if uri]


def data_uri(png: bytes) -> str | None:
    """A picture as the smaller of lossless and lossy WebP; None if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png)) as opened:
            image = opened.convert("RGB")
    except OSError:
        return None
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    encodings = []
    for settings in ({"lossless": True}, {"quality": 80}):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", **settings)
        encodings.append(buffer.getvalue())
    return f"data:image/webp;base64,{base64.b64encode(min(encodings, key=len)).decode()}"
