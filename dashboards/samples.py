"""Sample grids of a sweep's best, median and worst trial, small enough to travel inside a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from dashboards.findings import Findings, title
from dashboards.records import SweepRecord

FIRST = "samples"
"""The name of the grids that are shown over steps; of others, such as those at more NFE, the last."""
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
    """One trial's grids of one kind, by step."""

    heading: str
    pictures: list[Picture]


def strips(record: SweepRecord, findings: Findings) -> list[Strip]:
    """Empty if the trials have no pictures, or none may be called the best."""
    found = []
    for role, number in _chosen(findings).items():
        images = record.images(number)
        value = record.trials.set_index("trial").loc[number, record.goals[0]]
        several = len(images) > 1
        for name, paths in sorted(images.items()):
            kind = f" · {name}" if several else ""
            steps = _spread(sorted(paths)) if name == FIRST else [max(paths)]
            pictures = [_picture(record, number, step, paths[step]) for step in steps]
            pictures = [picture for picture in pictures if picture]
            nfe = record.runs[number].data.tags.get("nfe", "").partition(",")[0]
            how = f" · {nfe} NFE" if name == FIRST and nfe else ""
            heading = f"{role}: trial {number}, {title(record.goals[0])} {value:.4g}{kind}{how}"
            if pictures:
                found.append(Strip(heading, pictures))
    return found


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


def _picture(record: SweepRecord, number: int, step: int, path: str) -> Picture | None:
    content = record.artifact(record.runs[number], path)
    uri = content and data_uri(content)
    return Picture(f"step {step:,}", uri) if uri else None


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
