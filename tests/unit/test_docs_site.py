"""The documentation: it builds without a warning, describes every field, and its Python runs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from helpers import REPOSITORY
from nbclient import NotebookClient

import soflow
from experiments.launch import Options
from orchestration.config import TrainConfig
from orchestration.sweep.config import SweepConfig
from orchestration.terminal.flags import flags_of
from soflow.objectives.registry import OBJECTIVES

pytestmark = pytest.mark.slow  # builds the site, starts Ray
DOCS = REPOSITORY / "docs"


def module(name: str):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "site" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPOSITORY)}
    built = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert not built.stderr.strip()
    return folder


def test_every_page_is_in_the_navigation(site):
    pages = {path.relative_to(DOCS) for path in DOCS.rglob("*.md")}
    for page in pages:
        assert (site / page.with_suffix("") / "index.html").exists() or page.name == "index.md", page
    listed = re.findall(r": ([\w/]+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {Path(name) for name in listed} == pages


def test_the_reference_has_every_field_name_and_program(site):
    page = (site / "reference" / "configuration" / "index.html").read_text()
    fields = {*flags_of(SweepConfig), *flags_of(TrainConfig)}
    fields |= {path for name in OBJECTIVES.included for path in flags_of(TrainConfig, name)}
    assert not [path for path in fields if f"<code>{path}</code>" not in page]
    python = (site / "reference" / "python" / "index.html").read_text()
    described = {name for name in soflow.__all__ if not name.endswith(("Error", "Config", "Loss"))}
    assert not [name for name in described if f'id="soflow.{name}"' not in python]
    commands = (site / "reference" / "commands" / "index.html").read_text()
    for path in (REPOSITORY / "experiments").glob("*.py"):
        assert not ("__main__" in path.read_text() and path.name not in commands), path.name
    assert "--dry-run" in commands
    assert "dry_run" in Options.model_fields


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not re.findall(r'<(?:script|img)[^>]* src="http|<link[^>]*stylesheet[^>]*"http', page.read_text()), page


def test_the_notebook_is_the_page():
    notebook = module("notebook")
    expected = notebook.notebook((DOCS / "start.md").read_text())
    assert nbformat.read(notebook.NOTEBOOK, as_version=4) == expected, "run `make docs`"


@pytest.mark.soak  # two minutes; `make docs` makes the notebook anew
def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(module("notebook").NOTEBOOK, as_version=4)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute(env=environment)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert "objective.r_end = 2: must be less than or equal to 1" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2  # the grids
    assert (tmp_path / "results" / "first" / "config.yaml").exists()
    sweeps = [path for path in (tmp_path / "results").iterdir() if (path / "sweep.yaml").exists()]
    assert len(sweeps) == 1
    assert yaml.safe_load((sweeps[0] / "sweep.yaml").read_text())["num_trials"] == 4


def test_the_blocks_about_plug_ins_are_in_the_example():
    page, example = (DOCS / "plugins.md").read_text(), (DOCS / "examples" / "my_lab.py").read_text()
    quoted = re.findall(r'--8<-- "docs/examples/my_lab.py:(\w+)"', page)
    assert quoted == ["dataset", "network", "objective", "functions"]
    for name in quoted:
        assert f"[start:{name}]" in example
        assert f"[end:{name}]" in example
