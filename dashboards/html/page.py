"""Rendering of a self-contained HTML page: template, plotly.js and figures in one file that works offline."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from importlib.resources import files
from typing import Any

import jinja2
import plotly.io
import plotly.offline
from markupsafe import Markup

from dashboards.html.drawing import Panel
from dashboards.palette import CASE_COLORS

HEIGHT = 340
"""Default height of a figure in pixels."""


def render_panels(template: str, panels: list[Panel], **values: Any) -> str:
    """Render a page from a template that extends base.html.j2; all text in `values` is escaped."""
    loader = jinja2.FunctionLoader(lambda name: files("dashboards.html").joinpath("templates", name).read_text())
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(
        plotly=_plotly(),
        themes=_in_script(_themes()),
        figures=_in_script([_without_theme(figure) for panel in panels for figure in panel.figures]),
        panels=panels,
        height=HEIGHT,
        **values,
    )


@functools.cache
def _plotly() -> str:
    """Compress plotly.js with gzip and base64, to 40 % of its size."""
    return base64.b64encode(gzip.compress(plotly.offline.get_plotlyjs().encode(), mtime=0)).decode()


def _without_theme(figure: Any) -> dict[str, Any]:
    """Convert a figure to JSON values without the layout that all figures share."""
    values = json.loads(plotly.io.to_json(figure, validate=False))
    layout = values["layout"]
    for name in ("template", "title", "width"):
        layout.pop(name, None)
    layout.setdefault("height", HEIGHT)
    return {"data": values["data"], "layout": layout}


def _themes() -> dict[str, Any]:
    """Build plotly's templates for the light and the dark color scheme."""
    shared = {
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 64, "r": 24, "t": 28, "b": 52},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "colorway": list(CASE_COLORS),
        "hoverlabel": {"namelength": -1},
    }
    colors = {
        "light": ("#24292f", "#e3e6ea", "#aab1b9", "rgba(255,255,255,0.8)"),
        "dark": ("#d7dce2", "#343b44", "#59626d", "rgba(22,25,29,0.8)"),
    }
    themes = {}
    for name, (text, grid, line, behind) in colors.items():
        axis = {"gridcolor": grid, "linecolor": line, "zerolinecolor": grid, "tickcolor": line, "automargin": True}
        axis |= {"title": {"standoff": 8}, "showline": True, "ticks": "outside", "ticklen": 4, "zeroline": False}
        font = shared["font"] | {"color": text}
        text_on_lines = {"bgcolor": behind, "borderpad": 0}
        layout = shared | {"font": font, "xaxis": axis, "yaxis": axis, "annotationdefaults": text_on_lines}
        themes[name] = {"layout": layout}
    return themes


def _in_script(values: Any) -> Markup:
    """Serialize to JSON that cannot close its script element."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))
