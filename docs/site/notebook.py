"""Make the notebook of docs/start.md: its sentences and its Python, without the commands of a terminal."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DOCS = Path(__file__).parents[1]
NOTEBOOK = DOCS / "examples" / "first_ten_minutes.ipynb"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def notebook(page: str) -> nbformat.NotebookNode:
    """Convert a page: a cell per block of Python, and one for the text between two of them."""
    cells, text, end = [], "", 0
    for block in BLOCK.finditer(page):
        text, end = text + page[end : block.start()], block.end()
        if block[1] != "python":
            text += block[0]
            continue
        cells += [new_markdown_cell(text.strip()), new_code_cell(block[2].rstrip())]
        text = ""
    cells.append(new_markdown_cell((text + page[end:]).strip()))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # random otherwise
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((?!http)([\w/]+\.md)", r"](../\1", cell.source)
    return new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


if __name__ == "__main__":
    nbformat.write(notebook((DOCS / "start.md").read_text()), NOTEBOOK)
