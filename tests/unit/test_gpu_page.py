"""docs/gpu.md: it counts the code paths that run without a GPU, and names every file with lines for CUDA."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from helpers import REPOSITORY

from tests.unit.soflow.test_fake_cuda import PATHS

PAGE = (REPOSITORY / "docs/gpu.md").read_text()
PACKAGES = ("soflow", "orchestration", "dashboards", "experiments")


def test_the_page_states_the_number_of_paths():
    assert f"{PATHS} code paths" in PAGE


def test_the_page_names_every_file_with_lines_for_cuda():
    files = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py") if "cuda" in code_of(path)]
    section = PAGE.partition("## Lines that only CUDA reaches")[2].partition("\n## ")[0]
    named = set(re.findall(rf"^\| `((?:{'|'.join(PACKAGES)})/[\w/]+\.py)`", section, re.MULTILINE))
    assert len(named) > 10
    assert named == {str(path.relative_to(REPOSITORY)) for path in files}


def code_of(path: Path) -> str:
    """Return the source without docstrings and comments."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return ast.unparse(tree)
