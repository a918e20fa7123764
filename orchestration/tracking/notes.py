"""Descriptions of runs and models in MLflow, in Markdown.

Names and reasons come from users and libraries. They are shown as code, which MLflow's pages do not interpret.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from orchestration.config import TrainConfig
from soflow.data.config import DatasetConfig

LONGEST = 1000
"""Characters of a piece of foreign text; MLflow takes 8,000 per description."""


def dataset_entry(config: DatasetConfig, facts: dict[str, str]) -> dict[str, Any] | None:
    """Make the arguments of `Tracker.log_dataset`; None for old reports without a data fingerprint."""
    if "dataset_fingerprint" not in facts:
        return None
    return {
        "name": config.name,
        "digest": facts["dataset_fingerprint"],
        "source": {"name": config.name, "root": str(config.root) if config.root else "comes with the package"},
        "profile": {"num_samples": int(facts["dataset_size"]), "sample_shape": list(config.sample_shape)},
    }


def run_note(config: TrainConfig, folder: Path) -> str:
    """Describe a single training run."""
    title = f"**{config.objective.name} on {config.dataset.name}**, {config.training.total_steps} steps"
    text = f"{title}. Files: {code(folder)}. More samples: {code(f'python experiments/sample.py {folder}')}"
    return f"{config.note}\n\n{text}" if config.note else text


def model_note(step: int, git_commit: str) -> str:
    """Describe a logged model by the code that generates images with it."""
    return (
        f"Averaged weights after {step} steps. In an environment with soflow at commit {code(git_commit)}:\n\n"
        "```python\nimport mlflow\nimport pandas as pd\n\n"
        'model = mlflow.pyfunc.load_model("models:/MODEL_ID")\n'
        'labels = pd.DataFrame({"label": [0, 1, 2]})\n'
        'images = model.predict(labels, params={"seed": 7, "nfe": 1})  # uint8 [3, C, H, W]\n```'
    )


def code(text: Any) -> str:
    """Format foreign text as a code span."""
    shown = " ".join(str(text).replace("`", "'").split())
    return f"`{shown if len(shown) <= LONGEST else shown[:LONGEST] + ' …'}`"


def link(words: str, kind: str, target: str) -> str:
    """Format a link for `Tracker.describe`: to a run by its key, a file of this run by its path, or a view."""
    words = re.sub(r"[\[\]]", "", words)
    return words if set(target) & set("<>\n") else f"[{words}](<{kind}:{target}>)"
