"""Reference pages made from the code when the site is built: the configuration tree and what --help prints."""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import sys
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path

from orchestration.config import TrainConfig
from orchestration.sweep.config import SweepConfig
from orchestration.terminal.flags import Flag, flags_of
from soflow.objectives.registry import OBJECTIVES

ROOT = Path(__file__).parents[2]
MODULES = ("dashboards.report", "dashboards.ui")


def on_page_markdown(markdown: str, **page) -> str:
    """Replace the markers of generated parts."""
    for marker, generate in (("configuration", configuration), ("commands", commands)):
        if f"<!-- {marker} -->" in markdown:
            markdown = markdown.replace(f"<!-- {marker} -->", generate())
    return markdown


def configuration() -> str:
    """Describe every field of runs, of each objective and of sweeps in tables, one per section."""
    run = flags_of(TrainConfig)
    sections = dict.fromkeys(_section(path) for path in run if _section(path) not in ("", "objective"))
    lines = []
    for section in sections:
        lines += _table(section.capitalize(), [flag for path, flag in run.items() if _section(path) == section])
    for name in OBJECTIVES.included:
        flags = flags_of(TrainConfig, name)
        lines += _table(f"Objective {name}", [flag for path, flag in flags.items() if _section(path) == "objective"])
    lines += _table("Launch", [flag for path, flag in run.items() if not _section(path)])
    sweep = flags_of(SweepConfig)
    lines += _table("Sweep", [flag for path, flag in sweep.items() if path not in run])
    return "\n".join(lines)


def _section(path: str) -> str:
    return path.rpartition(".")[0]


def _table(title: str, flags: list[Flag]) -> list[str]:
    rows = [f"| `{flag.path}` | {_default(flag)} | {_cell(flag)} |" for flag in flags]
    return [f"## {title}", "", "| path | default | meaning |", "|---|---|---|", *rows, ""]


def _default(flag: Flag) -> str:
    if flag.default is None or flag.default == () or "PydanticUndefined" in repr(flag.default):
        return "–"
    values = flag.default if isinstance(flag.default, tuple) else (flag.default,)
    return f"`{' '.join(map(str, values))}`"


def _cell(flag: Flag) -> str:
    meaning = " ".join(flag.help.split()) or f"{flag.kind[0].upper()}{flag.kind[1:]}."
    if flag.kind.startswith("one of") and flag.help:
        meaning = f"{meaning} ({flag.kind})"
    return meaning.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def commands() -> str:
    """Print --help of every program."""
    programs = sorted(path for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text())
    lines = []
    for name in (*(f"experiments/{path.name}" for path in programs), *MODULES):
        lines += [f"## {name.removeprefix('experiments/')}", "", "```text", _help(name).rstrip(), "```", ""]
    return "\n".join(lines)


def _help(name: str) -> str:
    """Return a program's help from a process forked from this one, which has most of its imports."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_send_help, args=(name, sender))
    process.start()
    sender.close()  # so that a program that fails ends the wait
    text = receiver.recv()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{name} --help ended with exit code {process.exitcode}")
    return text


def _send_help(name: str, sender: Connection) -> None:
    os.chdir(ROOT)
    os.environ["COLUMNS"] = "100"
    sys.argv, sys.path = [name, "--help"], [str(ROOT), *sys.path]
    with redirect_stdout(io.StringIO()) as text:
        try:
            if name.endswith(".py"):
                runpy.run_path(name, run_name="__main__")
            else:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
        finally:
            sender.send(text.getvalue())
