"""The report of a search as one HTML page."""

from __future__ import annotations

from dataclasses import dataclass

from dashboards.html.facts import shared_values
from dashboards.html.page import render_panels
from dashboards.html.pictures import REAL_IMAGES, Picture, pictures
from dashboards.labels import title
from dashboards.reading.images import TrialImages
from dashboards.reading.protocols import not_comparable
from dashboards.sweep.answer import answer, question
from dashboards.sweep.figures import panels
from dashboards.sweep.findings import Findings
from dashboards.sweep.table import trials_table


@dataclass(frozen=True)
class Strip:
    """Grids of one trial side by side; those of the best one begin with real images."""

    heading: str
    pictures: list[Picture]


def search_page(findings: Findings, images: dict[int, TrialImages]) -> str:
    """Render the report.

    Args:
        images: sample grids of the illustrated trials.
    """
    notes = list(findings.data.notes)
    if findings.ranked and not findings.comparable:
        notes.append(not_comparable(findings.protocols, "Figures of quality are left out"))
    return render_panels(
        "sweep.html.j2",
        panels(findings),
        question=question(findings.data),
        answer=answer(findings),
        notes=notes,
        table=trials_table(findings),
        strips=_strips(findings, images),
        **shared_values(findings.data, findings.protocols),
    )


def _strips(findings: Findings, images: dict[int, TrialImages]) -> list[Strip]:
    goal, rows, strips = findings.data.goals[0], findings.table.set_index("trial"), []
    for role, number in findings.illustrated.items():
        heading = f"{role}: trial {number}, {title(goal)} {rows.loc[number, goal]:.4g}"
        grids = images[number]
        nfe = next((protocol.first_nfe for protocol in findings.protocols if number in protocol.trials), "")
        beside = {REAL_IMAGES: grids.real} if grids.real and number == findings.best else {}
        over_steps = beside | {f"step {step:,}": png for step, png in grids.over_steps.items()}
        strips.append(Strip(f"{heading}{f' · {nfe} NFE' if nfe else ''}", pictures(over_steps)))
        by_nfe = dict(grids.by_nfe)
        if grids.over_steps and nfe.isdecimal():
            by_nfe[int(nfe)] = grids.over_steps[max(grids.over_steps)]
        if len(by_nfe) > 1:
            strips.append(Strip(f"{heading} · by NFE", pictures({f"{nfe} NFE": by_nfe[nfe] for nfe in sorted(by_nfe)})))
    return [strip for strip in strips if strip.pictures]
