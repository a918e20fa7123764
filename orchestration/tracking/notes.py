"""What MLflow's pages say about sweeps, trials, runs and models, in Markdown.

Names and reasons come from users and libraries: they are shown as code, which no page interprets.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from orchestration.config import SweepConfig, TrainConfig
from orchestration.sweep import search_space
from orchestration.sweep.search_space import Dimension
from orchestration.terminal.format import format_number, format_value, short_name
from soflow.data.config import DatasetConfig

REPORT = "report.html"
"""What `dashboards.report` attaches to a sweep's run at its end."""
LONGEST = 1000
"""Characters of a piece of foreign text; MLflow takes 8,000 a description."""


def of_sweep(config: SweepConfig, folder: Path, summary: Any = None) -> str:
    """Of a sweep as it is set up and, if it has a summary, as it ended."""
    rows = config.cases or [
        f"{short_name(found.path)}: {_range(found)}" for found in search_space.build(config).dimensions
    ]
    kind = "compared" if config.cases else f"searched by {config.sampler}, early stopping {config.early_stopping.kind}"
    trials = f"{config.num_trials} trials of {config.training.total_steps} steps, {config.max_concurrent} at a time"
    parts = [
        *([_result(folder, summary)] if summary else []),
        f"**{config.objective.name} on {config.dataset.name}**: {trials}; {kind}:",
        "\n".join(f"- {code(row)}" for row in rows),
        f"Trials: the filter {code(f'tags.sweep = {folder.name!r}')}; the best one has the tag `best`.",
        f"Files: {code(folder)}.",
    ]
    return "\n\n".join(parts)


def _result(folder: Path, summary: Any) -> str:
    files = ", ".join(link(name, "artifact", name) for name in (REPORT, *(path.name for path in summary.files)))
    if "best/trial" not in summary.metrics:
        return f"**No trial reached its last step within the constraints.** {files}"
    number, fid = int(summary.metrics["best/trial"]), summary.metrics["best/fid"]
    best = link(f"trial {number}", "run", f"{folder.name}/{number:04d}")
    return f"**Best: {best}, FID {format_number(fid, '.4g')}.** {files}. Its weights are a logged model."


def of_trial(folder: Path, number: int, point: dict[str, Any], end: str = "", files: tuple[str, ...] = ()) -> str:
    """Of a trial: its sweep, its point, and how it ended with the files that say more."""
    values = ", ".join(f"{short_name(path)} = {format_value(value)}" for path, value in point.items())
    parts = [end, f"Trial {number} of {link('the sweep', 'run', folder.name)} {code(folder.name)}: {code(values)}"]
    more = ", ".join(link(name, "artifact", name) for name in files)
    return "\n\n".join(filter(None, [*parts, more]))


def of_end(state: str, result: dict[str, Any]) -> str:
    """How a trial ended, by its last result."""
    where = f"at step {result['step']} with FID {format_number(result.get('fid', math.nan), '.4g')}"
    return f"**{state}**: {code(result['reason'])}" if state == "failed" else f"**{state}** {where}"


def of_dataset(config: DatasetConfig, facts: dict[str, str]) -> dict[str, Any] | None:
    """What `Tracker.log_dataset` takes, None for reports of before fingerprints were among their facts."""
    if "dataset_fingerprint" not in facts:
        return None
    return {
        "name": config.name,
        "digest": facts["dataset_fingerprint"],
        "source": {"name": config.name, "root": str(config.root) if config.root else "comes with the package"},
        "profile": {"num_samples": int(facts["dataset_size"]), "sample_shape": list(config.sample_shape)},
    }


def of_run(config: TrainConfig, folder: Path) -> str:
    what = f"**{config.objective.name} on {config.dataset.name}**, {config.training.total_steps} steps"
    return f"{what}. Files: {code(folder)}. More samples: {code(f'python experiments/sample.py {folder}')}"


def of_model(step: int, git_commit: str) -> str:
    """Of a logged model: how to draw images."""
    return (
        f"Averaged weights after {step} steps. In an environment with soflow at commit {code(git_commit)}:\n\n"
        "```python\nimport mlflow\nimport pandas as pd\n\n"
        'model = mlflow.pyfunc.load_model("models:/MODEL_ID")\n'
        'labels = pd.DataFrame({"label": [0, 1, 2]})\n'
        'images = model.predict(labels, params={"seed": 7, "nfe": 1})  # uint8 [3, C, H, W]\n```'
    )


def code(text: Any) -> str:
    """Foreign text as a code span."""
    shown = " ".join(str(text).replace("`", "'").split())
    return f"`{shown if len(shown) <= LONGEST else shown[:LONGEST] + ' …'}`"


def link(words: str, kind: str, target: str) -> str:
    """To a run by its key or to a file of this run by its path, for `Tracker.describe`."""
    words = re.sub(r"[\[\]]", "", words)
    return words if set(target) & set("<>\n") else f"[{words}](<{kind}:{target}>)"


def _range(dimension: Dimension) -> str:
    if dimension.choices:
        return ", ".join(map(str, dimension.choices))
    return f"{dimension.low:g} to {dimension.high:g}" + (", logarithmic" if dimension.log else "")
