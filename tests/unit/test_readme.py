"""The pages of the documentation: commands accept the flags shown, links and paths lead to existing files."""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from dashboards.report import ReportOptions
from dashboards.ui import UiOptions
from experiments.claims import ClaimsOptions
from experiments.evaluate import EvaluateOptions
from experiments.launch import Experiment, Options
from orchestration.config import TrainConfig
from orchestration.sweep.config import SweepConfig
from orchestration.terminal.command_line import read_command_line, read_options
from orchestration.terminal.flags import flags_of
from soflow.config import NAMED_SECTIONS, RunConfig
from soflow.config_files import to_yaml

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *ROOT.glob("docs/**/*.md"),
    )
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TOP = ("soflow", "orchestration", "dashboards", "experiments", "tests", "benchmarks", "docs")
OTHER_FLAGS = {"--help", "--print-completion", "--config", "--num-cpus", "--num-gpus", "--server"}
"""Flags without a field, of Ray, and of benchmarks."""
HISTORY = "CHANGELOG.md"
"""Also names what exists no longer."""


def fenced(page: str, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(PAGES[page]) if kind == language]


def inline(page: str) -> list[str]:
    """Return the code in backticks within a page's sentences."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", FENCE.sub("", PAGES[page]))]


def commands(page: str) -> list[list[str]]:
    """Return the command lines of a page's blocks and sentences, split into words."""
    lines = "\n".join(fenced(page, "sh")).replace("\\\n", " ").splitlines()
    written = [shlex.split(line, comments=True) for line in lines]
    written += [shlex.split(text) for text in inline(page) if re.match(r"(make|python|\.venv/bin/python) ", text)]
    return [words for words in written if words]


def programs(pages: dict[str, str] = PAGES) -> list[str]:
    """Return the different Python command lines of all pages: a program or module, and its arguments."""
    found = [words[1:] for page in pages for words in commands(page) if words[0].endswith("python")]
    return list(dict.fromkeys(shlex.join(words) for words in found if words[:2] != ["-m", "pytest"]))


def flags(arguments: list[str]) -> list[str]:
    return [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]


@functools.cache
def help_of(program: tuple[str, ...]) -> str:
    """Return the text that a program prints for all its flags."""
    everything = ["all"] if program[0].startswith("experiments/") else []
    shown = subprocess.run(
        [sys.executable, *program, "--help", *everything], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def experiment_of(program: str) -> Experiment | None:
    text = (ROOT / program).read_text() if program.endswith(".py") else ""
    is_experiment = "EXPERIMENT = Experiment(" in text
    return importlib.import_module(f"experiments.{Path(program).stem}").EXPERIMENT if is_experiment else None


def test_the_readme_shows_commands():
    shown = {tuple(words[:2]) for words in commands("README.md")}
    assert {("make", "sweep"), ("make", "test"), ("make", "ui")} <= shown
    assert {("python", "experiments/sweep_schedule.py"), ("python", "experiments/train.py")} <= shown


def test_commands_are_found_in_blocks_and_sentences(monkeypatch):
    text = "See `python a.py\n--flag`.\n```sh\nmake x  # why\npython b.py \\\n    --other 'a b'\n```\n"
    monkeypatch.setitem(PAGES, "page", text)
    assert commands("page") == [["make", "x"], ["python", "b.py", "--other", "a b"], ["python", "a.py", "--flag"]]


@pytest.fixture(autouse=True)
def lab(monkeypatch):
    """The module of docs/plugins.md."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))


@pytest.mark.parametrize("command", programs())
def test_a_program_accepts_the_flags_shown(command, tmp_path):
    program, *arguments = shlex.split(command)
    if program == "-m":
        assert not set(flags(arguments)) - set(re.findall(r"--[\w.-]+", help_of((program, arguments[0]))))
        return
    assert (ROOT / program).exists()
    if program.startswith("benchmarks/"):  # slow to start
        assert all(f'"{flag}"' in (ROOT / program).read_text() for flag in flags(arguments))
        return
    (tmp_path / "best.yaml").write_text(to_yaml(RunConfig()))
    (tmp_path / "authors.yaml").write_text("velocity_loss_ratio: 0.75\nmodel_type: DiT-B-4\n")
    (tmp_path / "FOLDER").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "FOLDER" / "1.png")
    made = {"image_shape": (3, 16, 16), "num_classes": 2, "data_sha256": ""}
    save_file({"weights": np.zeros(1)}, tmp_path / "images.safetensors", {"made": json.dumps(made)})
    files = {path.name: str(path) for path in tmp_path.iterdir()}
    arguments = [files.get(Path(argument).name, argument) for argument in arguments]
    if experiment := experiment_of(program):
        options, rest = read_options(Options, arguments)
        layers = [*experiment.layers(options.scale), *([{"hypotheses": ()}] if "--cases" in rest else [])]
        read_command_line(SweepConfig, "", rest, layers, Options)
    elif program == "experiments/train.py":
        read_command_line(TrainConfig, "", arguments)
    else:
        assert not set(flags(arguments)) - {"--help"} - set(re.findall(r"--[\w.-]+", help_of((program,))))


@pytest.mark.parametrize(
    "target", sorted({words[1] for page in PAGES for words in commands(page) if words[0] == "make"})
)
def test_make_has_the_target(target):
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", PAGES[page])):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if page != HISTORY])
def test_paths_exist(page):
    """Check paths from a top-level folder, and names of Python files, which may be in any folder."""
    names = {path.name for top in TOP for path in (ROOT / top).rglob("*.py")}
    for text in inline(page):
        path = text.rstrip("/")
        if re.fullmatch(rf"({'|'.join(TOP)})(/[\w.-]+)+", path) and "NAME" not in path:
            assert (ROOT / path).exists(), text
        elif re.fullmatch(r"\w+\.py", path):
            assert path in names, text


@pytest.mark.parametrize("page", [page for page in PAGES if page != HISTORY])
def test_flags_in_sentences_exist(page):
    models = (SweepConfig, TrainConfig, Options, ClaimsOptions, EvaluateOptions, ReportOptions, UiOptions)
    objectives = (None, "my_lab:AnnealedSoFlow")
    shown = itertools.chain(*(flags_of(*pair).values() for pair in itertools.product(models, objectives)))
    known = OTHER_FLAGS | {flag.name for flag in shown}
    known |= {f"--{section}" for section in NAMED_SECTIONS}
    for text in inline(page):
        if text.startswith("--"):
            assert {flag.replace("_", "-") for flag in flags(text.split())} <= known, text


def test_every_page_can_be_reached_from_the_readme():
    reached, new = set(), {"README.md"}
    while new:
        reached |= new
        links = {(page, link) for page in new for link in re.findall(r"\]\(([\w/.]+\.md)", PAGES[page])}
        found = {os.path.normpath(Path(page).parent / link) for page, link in links}
        new = (found & set(PAGES)) - reached
    assert reached == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_are_python(page):
    for block in fenced(page, "python"):
        for line in re.findall(r'^"\w+": .+,$', block, re.MULTILINE):  # an entry of a registry
            block = block.replace(line, f"{{{line}}}")
        ast.parse(block)
