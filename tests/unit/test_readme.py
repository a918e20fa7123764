"""The README's commands exist and take the flags that it shows; its files are where it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.config import TrainConfig
from orchestration.sweep.config import SweepConfig
from orchestration.terminal.command_line import read_command_line
from soflow.config import RunConfig
from soflow.config_files import to_yaml

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
COMMANDS = [line.split("#")[0].strip() for line in BLOCKS.splitlines() if line.strip()]
PROGRAMS = [command for command in COMMANDS if command.startswith("python ")]
MODELS = {"experiments/sweep_schedule.py": SweepConfig, "experiments/train.py": TrainConfig}


def test_the_readme_shows_commands():
    assert {"make sweep", "make test", "make ui"} <= set(COMMANDS)
    assert {shlex.split(command)[1] for command in PROGRAMS} >= set(MODELS)


@pytest.mark.parametrize("command", PROGRAMS)
def test_a_program_takes_the_flags_shown(command, tmp_path):
    _, program, *arguments = shlex.split(command)
    if program in MODELS:
        (tmp_path / "best.yaml").write_text(to_yaml(RunConfig()))
        (tmp_path / "authors.yaml").write_text("velocity_loss_ratio: 0.75\nmodel_type: DiT-B-4\n")
        own = {path.name: str(path) for path in tmp_path.iterdir()}
        arguments = [own.get(Path(argument).name, argument) for argument in arguments]
        read_command_line(MODELS[program], "", arguments)
        return
    shown = subprocess.run([sys.executable, ROOT / program, "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    for flag in (argument for argument in arguments if argument.startswith("--")):
        assert flag in shown.stdout


@pytest.mark.parametrize("target", [command.split()[1] for command in COMMANDS if command.startswith("make ")])
def test_make_has_the_target(target):
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_names_in_the_table_of_places_exist():
    table = README[README.index("| you look for") : README.index("An objective, a network")]
    folder = ""
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", table):
        folder = name.rsplit("/", 1)[0] if "/" in name else folder
        assert (ROOT / (name if "/" in name else f"{folder}/{name}")).exists(), name
