"""Tab completion: what bash offers after part of a command line."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from experiments.launch import Options
from orchestration.config import TrainConfig
from orchestration.sweep.config import SweepConfig
from orchestration.terminal.completion import completion_script


def offered(monkeypatch, folder, line: str, model=SweepConfig) -> list[str]:
    """Return what bash offers for the last word of a command line; "" as last word starts a new one."""
    (program,) = [word for word in line.split() if word.endswith(".py")]
    monkeypatch.setattr(sys, "argv", [program])
    words = line.split(" ")
    shell = (
        f"{completion_script(model, Options)}\n"
        f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}\n"
        '_soflow_complete; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", shell], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    assert done.stderr == ""
    return done.stdout.split()


PROGRAM = "python experiments/sweep_schedule.py"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{PROGRAM} --num-t", ["--num-trials"]),
        (f"{PROGRAM} --objective.jv", ["--objective.jvp", "--objective.jvp-attention"]),
        (f"{PROGRAM} --training.precision ", ["fp32", "tf32", "bf16"]),
        (f"{PROGRAM} --objective mean", ["meanflow"]),
        (f"{PROGRAM} --dataset.conditional ", ["true", "false"]),
        (f"{PROGRAM} --seed ", []),
        (f"{PROGRAM} --sca", ["--scale"]),
        (f"{PROGRAM} --scale ", ["small", "paper"]),
        (f"{PROGRAM} --scale = p", ["paper"]),  # bash's words of --scale=p
        ("python -u experiments/sweep_schedule.py --num-t", ["--num-trials"]),
    ],
)
def test_flags_and_choices_are_offered(monkeypatch, tmp_path, line, words):
    assert offered(monkeypatch, tmp_path, line) == words


def test_other_programs_are_left_to_the_shell(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["experiments/train.py"])
    shell = f"{completion_script(TrainConfig)}\nCOMP_WORDS=(python other.py --n); COMP_CWORD=2; _soflow_complete\n"
    done = subprocess.run(
        ["bash", "-c", f"{shell} echo ${{#COMPREPLY[@]}}"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0"


def test_sweeps_and_runs_are_offered_after_resume(monkeypatch, tmp_path):
    for folder, file in (
        ("results/first", "sweep.yaml"),
        ("results/second", "run.yaml"),
        ("other/third", "sweep.yaml"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / file).touch()
    (tmp_path / "results/reference").mkdir()
    assert offered(monkeypatch, tmp_path, f"{PROGRAM} --resume ") == ["first", "second"]
    assert offered(monkeypatch, tmp_path, f"{PROGRAM} --resume f") == ["first"]
    assert offered(monkeypatch, tmp_path, f"{PROGRAM} --storage other --resume ") == ["third"]
    assert offered(monkeypatch, tmp_path, f"{PROGRAM} --storage = other --resume ") == ["third"]
