"""The text of --help: the flags that people use first, or with `--help all` every flag."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from orchestration.config import Launch
from orchestration.terminal.flags import Flag, flags_of
from soflow.config import NAMED_SECTIONS, flatten, to_dict
from soflow.config_base import Section

COMMON = {
    "Training": (
        *("objective", "dataset", "network", "training.total_steps", "training.batch_size"),
        *("training.precision", "optimizer.learning_rate", "evaluation.nfe", "seed"),
    ),
    "Sweep": ("num_trials", "search", "cases", "sampler", "early_stopping.kind", "max_concurrent"),
    "Where": (
        *("name", "tags", "note", "resume", "storage", "address"),
        *("tracking_uri", "resources.num_workers", "progress"),
    ),
}
"""The flags of --help, by group."""


def help_text(
    model: type[Section],
    description: str,
    values: dict[str, Any],
    options: type[Section] | None,
    positional: str | None,
    everything: bool,
) -> str:
    """Return the help text of a program.

    Args:
        values: the program's own defaults, as nested dictionaries.
        everything: list every flag.
    """
    flags = flags_of(model, values.get("objective", {}).get("name"))
    short = {name: _short_form(name, flags[f"{name}.name"]) for name in NAMED_SECTIONS if f"{name}.name" in flags}
    defaults = _defaults(model, values)
    path = Path(sys.argv[0])
    program = f"-m dashboards.{path.stem}" if path.parent.name == "dashboards" else f"experiments/{path.name}"
    values_first = f" [{positional.upper()}...]" if positional else ""
    lines = [f"usage: python {program}{values_first} [--FLAG VALUE ...]", "", description.strip(), ""]
    if options is not None:
        lines += _group("This program", list(flags_of(options).values()), {})
    if not short:  # no training, and few flags
        own = [flag for path, flag in flags.items() if path.partition(".")[0] not in Launch.model_fields]
        where = [flag for flag in flags.values() if flag not in own]
        return "\n".join([*lines, *_group("Flags", own, defaults), *_group("Where", where, defaults)]).rstrip()
    if everything:
        for section in dict.fromkeys(path.rpartition(".")[0] for path in flags):
            group = [flag for path, flag in flags.items() if path.rpartition(".")[0] == section]
            lines += _group(section or "Launch", group, defaults)
    else:
        for title, paths in COMMON.items():
            group = [short.get(path) or flags[path] for path in paths if path in short or path in flags]
            lines += _group(title, group, defaults)
    lines += ["  --config FILE", *_wrapped("YAML file with these keys; repeatable, later files and flags win."), ""]
    text = (
        "Every flag is a path into the configuration, the same in YAML files, search spaces and MLflow parameters. "
        f"--help all lists all {len(flags)} flags; --print-completion prints a script for bash."
    )
    return "\n".join([*lines, *textwrap.wrap(text, _width())])


def _short_form(name: str, flag: Flag) -> Flag:
    known = list(NAMED_SECTIONS[name])
    shown = ", ".join(known if len(known) < 10 else [*known[:3], "…", *known[-3:]])
    return Flag(name, f"one of {shown}", flag.help or f"Training objective: {shown}.", flag.default)


def _group(title: str, flags: list[Flag], defaults: dict[str, Any]) -> list[str]:
    lines = [f"{title}:"] if flags else []
    for flag in flags:
        default = defaults.get(flag.path, defaults.get(f"{flag.path}.name", flag.default))
        name = flag.path.rpartition(".")[2].upper()
        value = "" if flag.is_bool and not flag.words else f" {name}{' ...' if flag.many else ''}"
        shown = (
            ""
            if default is None or default is PydanticUndefined or default is False or default in ((), [])
            else f" ({_shown(default)})"
        )
        choices = f" {flag.kind[0].upper()}{flag.kind[1:]}." if flag.kind.startswith("one of") and not flag.help else ""
        lines.append(f"  {flag.name}{value}")
        lines += _wrapped(" ".join(flag.help.split()) + choices + shown)
    return [*lines, ""] if flags else []


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False)


def _width() -> int:
    return min(110, shutil.get_terminal_size((100, 24)).columns)


def _defaults(model: type[Section], values: dict[str, Any]) -> dict[str, Any]:
    """Return the default of every path; of fields that depend on a required one, the model's own."""
    try:
        return flatten(to_dict(model.model_validate(values)))
    except ValidationError:
        return {}
